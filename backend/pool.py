"""The thread pool, the queue, the leases on devices, and the recovery of what was running."""

import logging
import math
import shutil
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

from backend.models import Job, JobStatus, utc_now
from backend.paths import DataPaths
from backend.processes import Mark, adopt, find_all_marked, find_marked
from backend.store import StoreError
from backend.supervisor import Supervisor, Surroundings, leader_of

logger = logging.getLogger(__name__)

HOUSEKEEPING_SECONDS: Final = 5.0
SWEEP_SECONDS: Final = 30.0
ROOM_BYTES: Final = 16 * 2**20
"""With less than this left on the disk of the data folder no job is started."""

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
        """Lease the devices that an adopted job has already, as far as nobody else has them."""
        taken = tuple(i for i in devices if self._holder.get(i, 0) in (None, job_id))
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
        self.waits_for_room = False
        """The disk of the data folder is full, and no job is started until it is not."""
        self._swept_at = -1e9
        self._closing = threading.Event()
        self._executor: ThreadPoolExecutor | None = None
        self._housekeeper = threading.Thread(
            target=self._keep_house, name="housekeeper", daemon=True
        )

    def start(self) -> None:
        """Take over what an earlier server left running, then work on the queue."""
        # Adopted jobs may be more than `workers`: the setting may have been lowered meanwhile. And
        # a job whose supervisor failed needs a new thread after another has taken its place.
        running = self._around.store.running()
        self._executor = ThreadPoolExecutor(
            2 * self._workers + len(running), thread_name_prefix="supervisor"
        )
        self.recover(running)
        self._sweep()
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
        try:
            running = self._around.store.running()
            return sum(self._goes_on(job) for job in running)
        except StoreError as error:
            logger.warning("How many jobs go on cannot be told exactly. %s", error)
            return len(supervisors)

    def _goes_on(self, job: Job) -> bool:
        assert job.id is not None
        leader = leader_of(job, self._paths.run(job.id), self._around.nonce)
        return leader is not None and leader.alive()

    def supervised(self) -> Sequence[int]:
        """The jobs that run now."""
        with self._lock:
            return list(self._supervisors)

    def supervisor(self, job_id: int) -> Supervisor | None:
        """Who supervises this job; None where nobody does."""
        return self._supervisors.get(job_id)

    def lingers(self, job_id: int) -> bool:
        """Whether a process of a job that has ended is still there, or its memory is not back."""
        supervisor = self._supervisors.get(job_id)
        return job_id in self._lingering or (supervisor is not None and supervisor.lingers)

    def cancel(self, job_id: int, *, now: bool = False) -> bool:
        """Pass a request on to the job's supervisor; False where it has none."""
        supervisor = self._claimed(job_id)
        if supervisor:
            supervisor.cancel(now=now)
        return supervisor is not None

    def pause(self, job_id: int) -> bool:
        """As `cancel`, of a pause."""
        supervisor = self._claimed(job_id)
        if supervisor:
            supervisor.pause()
        return supervisor is not None

    def _claimed(self, job_id: int) -> Supervisor | None:
        with self._lock:  # between its claim and its supervisor a job is nobody's
            return self._supervisors.get(job_id)

    def leases(self) -> Mapping[int, int | None]:
        with self._lock:
            return self._leases.holders()

    def dispatch(self) -> None:
        """Start as many queued jobs as there are free threads and devices.

        Where the database cannot be used the queue waits, and housekeeping tries again.
        """
        if self._executor is None:
            return
        # On a full disk one job after the other would start only to fail.
        self.waits_for_room = self._free_bytes() < ROOM_BYTES
        if self.waits_for_room:
            return
        try:
            with self._lock:
                self._start_queued()
        except StoreError as error:
            logger.warning("The queue waits, and will be tried again. %s", error)

    def _start_queued(self) -> None:
        """Under the lock."""
        while not self._closing.is_set() and len(self._supervisors) < self._workers:
            # What is left of a life before a pause goes first, or it would be taken for this one.
            job = self._around.store.next_queued(besides=[*self._lingering, *self._supervisors])
            if job is None:
                return
            assert job.id is not None
            devices = self._leases.take(job.id, job.gpus)
            if devices is None and job.gpus <= len(self._leases.holders()):
                return
            devices = devices or ()  # more than there are: it cannot start, and will be told
            claimed = False
            try:
                claimed = self._claim(job, devices)
            finally:
                if not claimed:  # cancelled in this instant, or the database cannot be written
                    self._leases.give_back(job.id)
            if claimed:
                self._supervise(Supervisor(job, self._paths.run(job.id), devices, self._around))

    def _claim(self, job: Job, devices: Sequence[int]) -> bool:
        """Take a job for this server; False where it is not queued any more."""
        assert job.id is not None
        now = utc_now()
        if job.started_at is None:
            said = "Started"
            changed: dict[str, Any] = {"started_at": now}
        else:
            paused = (now - job.paused_at).total_seconds() if job.paused_at else 0.0
            paused_seconds = job.paused_seconds + max(0.0, paused)
            said = "Resumed"
            changed = {"resumed_at": now, "paused_seconds": paused_seconds}
        claimed = self._around.store.change(
            job.id, JobStatus.QUEUED, JobStatus.RUNNING, said, devices=list(devices), **changed
        )
        for name, value in changed.items():
            setattr(job, name, value)
        return claimed

    def _free_bytes(self) -> float:
        """On the disk of the data folder."""
        try:
            return shutil.disk_usage(self._paths.folder).free
        except OSError:  # no folder, no figure; whoever needs it will say so
            return math.inf

    def recover(self, running: Iterable[Job]) -> None:
        """Supervise again those jobs that are running by the database, but not by this pool."""
        for job_id in (job.id for job in running):
            try:
                with self._lock:
                    if job_id is not None and job_id not in self._supervisors:
                        self._take_up(job_id)
            except Exception:  # of one job, which keeps nobody from the others
                logger.exception("Job %s cannot be taken up; it will be tried again", job_id)

    def _take_up(self, job_id: int) -> None:
        """Under the lock."""
        # Read again: it may have got its verdict since those that run were read.
        job = self._around.store.get(job_id)
        if self._closing.is_set() or job is None or job.status != JobStatus.RUNNING:
            return
        paths = self._paths.run(job_id)
        leader = leader_of(job, paths, self._around.nonce)
        if leader is None:
            found, told = "had not begun", "Found claimed but not begun, and started now"
        elif leader.alive():
            found, told = "adopted", "Found running, and supervised again"
        else:
            found, told = "is gone", None
        logger.info("Job %s was running: %s", job_id, found)
        if told:
            self._around.store.try_to_note(job_id, told)
        devices = self._leases.take_these(job_id, job.devices)
        self._supervise(Supervisor(job, paths, devices, self._around, leader=leader))

    def _sweep(self) -> None:
        """Look for processes that outlived their job's verdict; they are killed, and keep the
        job's devices until they are gone."""
        self._swept_at = time.monotonic()
        for job_id in find_all_marked(self._around.nonce):
            with self._lock:
                job = self._around.store.get(job_id)
                if job is None or job.status is JobStatus.RUNNING:
                    continue  # a running one has its supervisor, or will be taken up
                if job_id in self._supervisors or job_id in self._lingering:
                    continue
                left = find_marked(Mark(job_id, self._around.nonce))  # as it is under the lock
                if not left:
                    continue
                pids = ", ".join(str(row.id.pid) for row in left)
                logger.warning("Job %s does not run, but pid %s lives on: killed", job_id, pids)
                self._around.store.try_to_note(
                    job_id, f"Found alive after the job's end, and killed: {pids}"
                )
                devices = self._leases.take_these(job_id, job.devices)
                leader = adopt(left[0].id, Mark(job_id, self._around.nonce))
                lingering = Supervisor(
                    job, self._paths.run(job_id), devices, self._around, leader=leader
                )
                self._lingering[job_id] = lingering
            lingering.cleared()

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
            if supervisor.lingers and not failed:
                self._lingering[supervisor.job_id] = supervisor
            elif not failed:
                self._leases.give_back(supervisor.job_id)
        self.dispatch()

    def _keep_house(self) -> None:
        while not self._closing.wait(HOUSEKEEPING_SECONDS):
            try:
                self.tick()
            except StoreError as error:  # its sentence says it all, every five seconds
                logger.warning("Housekeeping waits. %s", error)
            except Exception:
                logger.exception("Housekeeping failed; it will be tried again")

    def tick(self) -> None:
        """Give back devices whose memory has come back late, mend ghosts, look for processes that
        outlived their jobs, look at the queue."""
        if time.monotonic() - self._swept_at >= SWEEP_SECONDS:
            self._sweep()
        for job_id, supervisor in tuple(self._lingering.items()):
            if supervisor.cleared():
                with self._lock:
                    self._lingering.pop(job_id, None)
                    if job_id not in self._supervisors:
                        self._leases.give_back(job_id)
        self.recover(self._around.store.running())
        self._take_back_leases()
        self.dispatch()

    def _take_back_leases(self) -> None:
        """Of jobs that have ended and whose supervisors failed after that."""
        with self._lock:
            for job_id in {holder for holder in self._leases.holders().values() if holder}:
                if job_id in self._supervisors or job_id in self._lingering:
                    continue
                job = self._around.store.get(job_id)
                if job is None or job.status is not JobStatus.RUNNING:
                    self._leases.give_back(job_id)
