"""The thread pool, the queue, the leases on devices, and the recovery of what was running."""

import logging
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from backend.models import Job, JobStatus, utc_now
from backend.paths import DataPaths
from backend.supervisor import Supervisor, Surroundings, leader_of

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS: Final = 5.0
CLOSE_SECONDS: Final = 5.0


class Leases:
    """Who has which device. One job has a device to itself."""

    def __init__(self, devices: Iterable[int]) -> None:
        self._holder: dict[int, int | None] = dict.fromkeys(devices)

    def take(self, job_id: int, count: int) -> tuple[int, ...] | None:
        """Lease `count` free devices to a job; None where there are not so many."""
        free = [index for index, holder in self._holder.items() if holder is None]
        if len(free) < count:
            return None
        return self.take_these(job_id, free[:count])

    def take_these(self, job_id: int, devices: Iterable[int]) -> tuple[int, ...]:
        """Lease the devices that an adopted job has already."""
        taken = tuple(index for index in devices if index in self._holder)
        for index in taken:
            self._holder[index] = job_id
        return taken

    def give_back(self, job_id: int) -> None:
        for index, holder in self._holder.items():
            if holder == job_id:
                self._holder[index] = None

    def holders(self) -> Mapping[int, int | None]:
        return dict(self._holder)


class Pool:
    """Runs queued jobs, first come, first served, `workers` at a time.

    The queue is the database's; a thread of the pool supervises one job from its claim to its
    verdict. A job whose turn has come but whose devices are taken waits, and those behind it too.
    """

    def __init__(self, around: Surroundings, paths: DataPaths, workers: int) -> None:
        self._around = around
        self._paths = paths
        self._workers = workers
        self._lock = threading.Lock()
        self._supervisors: dict[int, Supervisor] = {}
        self._leases = Leases(device.index for device in around.source.devices())
        self._lingering: dict[int, Supervisor] = {}
        self._closing = threading.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._housekeeper = threading.Thread(
            target=self._keep_house, name="housekeeper", daemon=True
        )

    def start(self) -> None:
        """Take over what an earlier server left running, then work on the queue."""
        # Adopted jobs may be more than `workers`: the setting may have been lowered meanwhile.
        running = self._around.store.running()
        self._executor = ThreadPoolExecutor(
            max(self._workers, len(running)), thread_name_prefix="supervisor"
        )
        self.recover(running)
        self.dispatch()
        self._housekeeper.start()

    def close(self) -> int:
        """Stop supervising; return how many jobs go on running without a server."""
        self._closing.set()
        with self._lock:
            supervisors = list(self._supervisors.values())
        for supervisor in supervisors:
            supervisor.detach()
        if self._executor:
            self._executor.shutdown(wait=True)
        if self._housekeeper.ident:
            self._housekeeper.join(CLOSE_SECONDS)
        return len(self._around.store.running())

    def supervisor(self, job_id: int) -> Supervisor | None:
        """Who supervises this job; None where nobody does."""
        return self._supervisors.get(job_id)

    def cancel(self, job_id: int) -> None:
        """Pass a request that the database has already on to the job's supervisor."""
        with self._lock:  # between its claim and its supervisor a job is nobody's
            supervisor = self._supervisors.get(job_id)
        if supervisor:
            supervisor.cancel()

    def leases(self) -> Mapping[int, int | None]:
        with self._lock:
            return self._leases.holders()

    def dispatch(self) -> None:
        """Start as many queued jobs as there are free threads and devices."""
        if self._executor is None:
            return
        with self._lock:
            while not self._closing.is_set() and len(self._supervisors) < self._workers:
                job = self._around.store.next_queued()
                if job is None:
                    return
                assert job.id is not None
                devices = self._leases.take(job.id, job.gpus)
                if devices is None and job.gpus <= len(self._leases.holders()):
                    return
                devices = devices or ()  # more than there are: it cannot start, and will be told
                if not self._around.store.change(
                    job.id,
                    JobStatus.QUEUED,
                    JobStatus.RUNNING,
                    "Started",
                    started_at=utc_now(),
                    devices=list(devices),
                ):
                    self._leases.give_back(job.id)  # cancelled in this instant
                    continue
                self._supervise(Supervisor(job, self._paths.run(job.id), devices, self._around))

    def recover(self, running: Iterable[Job]) -> None:
        """Supervise again those jobs that are running by the database, but not by this pool."""
        with self._lock:
            for job_id in (job.id for job in running):
                if self._closing.is_set() or job_id is None or job_id in self._supervisors:
                    continue
                # Read again under the lock: it may have got its verdict since `running` was read.
                job = self._around.store.get(job_id)
                if job is None or job.status != JobStatus.RUNNING:
                    continue
                leader = leader_of(job, self._around.nonce)
                alive = leader.alive()
                logger.info("Job %s was running: %s", job_id, "adopted" if alive else "is gone")
                if alive:
                    self._around.store.note(job_id, "Found running, and supervised again")
                devices = self._leases.take_these(job_id, job.devices)
                self._supervise(
                    Supervisor(job, self._paths.run(job_id), devices, self._around, leader=leader)
                )

    def _supervise(self, supervisor: Supervisor) -> None:
        """Under the lock."""
        assert self._executor is not None
        self._supervisors[supervisor.job_id] = supervisor
        self._executor.submit(self._work, supervisor)

    def _work(self, supervisor: Supervisor) -> None:
        failed = False
        try:
            supervisor.run()
        except Exception:
            # The job is still running by the database, and on its devices: housekeeping takes it
            # up again.
            failed = True
            logger.exception("The supervisor of job %s failed", supervisor.job_id)
        with self._lock:
            self._supervisors.pop(supervisor.job_id, None)
            if supervisor.lingers:
                self._lingering[supervisor.job_id] = supervisor
            elif not failed:
                self._leases.give_back(supervisor.job_id)
        try:
            self.dispatch()
        except SQLAlchemyError:
            logger.exception("The queue cannot be read; it will be tried again")

    def _keep_house(self) -> None:
        while not self._closing.wait(HOUSEKEEPING_SECONDS):
            try:
                self.tick()
            except Exception:
                logger.exception("Housekeeping failed; it will be tried again")

    def tick(self) -> None:
        """Give back devices whose memory has come back late, mend ghosts, look at the queue."""
        for job_id, supervisor in tuple(self._lingering.items()):
            if supervisor.cleared():
                with self._lock:
                    self._lingering.pop(job_id, None)
                    self._leases.give_back(job_id)
        self.recover(self._around.store.running())
        self.dispatch()
