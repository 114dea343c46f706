"""Everything at once: whatever is asked of a job at the same instant, it has one verdict, and its
history is a legal path."""

import itertools
import random
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
)

from backend.models import (
    TRANSITIONS,
    Cleanup,
    Failure,
    FailureKind,
    Job,
    JobStatus,
    RequestKind,
)
from backend.paths import DataPaths
from backend.processes import find_all_marked, send_kill
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from backend.submission import Submission
from tests.faults.conftest import Folder, Serve
from tests.waiting import live_jobs, wait_until, wait_until_ended

ENDED = [status for status in JobStatus if status.ended]


def one_legal_life(store: Store, job: Job) -> None:
    """The job's history is a path through the states, and ends where the job is."""
    assert job.id is not None
    changes = [event for event in store.timeline(job.id) if event.to_status]
    states = [event.to_status for event in changes if event.to_status]
    assert states[0] is JobStatus.QUEUED
    assert all(new in TRANSITIONS[old] for old, new in itertools.pairwise(states))
    assert [event.from_status for event in changes] == [None, *states[:-1]]
    assert states[-1] is job.status
    assert sum(status.ended for status in states) == job.status.ended
    assert (store.failure(job.id) is not None) == (job.status is JobStatus.FAILED)
    assert (job.finished_at is not None) == job.status.ended
    assert (job.failure_kind is not None) == (job.status is JobStatus.FAILED)


class StoreMachine(RuleBasedStateMachine):
    """The store against a model of it that fits in a dictionary."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = Store(self.folder / "signalbox.db")
        self.model: dict[int, JobStatus] = {}
        self.requested: dict[int, RequestKind | None] = {}

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @rule(target=jobs)
    def submit(self) -> int:
        job_id = self.store.add(Job(name="job", recipe="script", timeout_seconds=9, gpus=0))
        assert job_id not in self.model
        self.model[job_id], self.requested[job_id] = JobStatus.QUEUED, None
        return job_id

    @rule(job_id=jobs, old=st.sampled_from(JobStatus), data=st.data())
    def change(self, job_id: int, old: JobStatus, data: st.DataObject) -> None:
        if not TRANSITIONS[old]:
            return
        new = data.draw(st.sampled_from(sorted(TRANSITIONS[old])))
        values: dict[str, Any] = {}
        if new is JobStatus.FAILED:
            kind = data.draw(st.sampled_from(FailureKind))
            failure = Failure(job_id=job_id, kind=kind, message=str(kind))
            values = {"failure": failure, "failure_kind": kind}
        cleanup = Cleanup(job_id=job_id, reason="ended", device="host", source="host")
        done = self.store.change(job_id, old, new, "a change", cleanups=[cleanup], **values)
        assert done == (self.model[job_id] is old)
        if done:
            self.model[job_id], self.requested[job_id] = new, None

    @rule(job_id=jobs, kind=st.sampled_from(RequestKind))
    def request(self, job_id: int, kind: RequestKind) -> None:
        asked = self.store.request(job_id, kind, "it was asked for")
        running = self.model[job_id] is JobStatus.RUNNING
        allowed = {None, RequestKind.PAUSING} - {kind}
        assert asked == (running and self.requested[job_id] in allowed)
        if asked:
            self.requested[job_id] = kind

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store(self.folder / "signalbox.db")

    @invariant()
    def it_says_what_the_model_says(self) -> None:
        counts = self.store.counts()
        assert counts == {s: list(self.model.values()).count(s) for s in JobStatus}
        waiting = [job_id for job_id, s in self.model.items() if s is JobStatus.QUEUED]
        positions = self.store.queue_positions()
        assert sorted(positions) == waiting
        turn = self.store.next_queued()
        assert (turn.id if turn else None) == min(
            positions, key=positions.__getitem__, default=None
        )
        for job_id, status in self.model.items():
            job = self.store.get(job_id)
            assert job is not None
            assert (job.status, job.requested) == (status, self.requested[job_id])
            one_legal_life(self.store, job)


TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=25, stateful_step_count=20, deadline=None)

JOB = """\
import os, sys, time
run = os.environ["SIGNALBOX_RUN_DIR"]
if sys.argv[1] == "raises":
    raise ValueError("its own")
if sys.argv[1] == "pauses":
    with open(run + "/beside", "w") as file:
        file.write('{"can_pause": true}')
    os.replace(run + "/beside", run + "/progress.json")
def is_to_pause():
    try:
        with open(run + "/stop.json") as file:
            return sys.argv[1] == "pauses" and '"pause":true' in file.read()
    except OSError:
        return False
while sys.argv[1] != "ends" and not os.path.exists("gate") and not is_to_pause():
    time.sleep(0.01)
"""


class ServiceMachine(RuleBasedStateMachine):
    """The service with real processes, and servers that come and go."""

    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        (self.folder / "job.py").write_text(JOB)
        self.kinds: dict[int, str] = {}
        self.cancelled: set[int] = set()
        self.killed: set[int] = set()
        self.ended: dict[int, JobStatus] = {}

    @property
    def nonce(self) -> str:
        return DataPaths(self.folder / "data").read_nonce() or ""

    @initialize()
    def open(self) -> None:
        self.service = Service(
            Settings(
                data=self.folder / "data",
                workers=2,
                poll_seconds=0.02,
                cancel_grace_seconds=2,
                stall_grace_seconds=0.2,
            )
        )
        self.service.start()

    def teardown(self) -> None:
        (self.folder / "gate").touch()
        for job_id in live_jobs(self.service):
            if self.kinds[job_id] == "hangs":
                self.service.cancel(job_id)
                self.cancelled.add(job_id)
        wait_until(self.all_have_ended, 60, "They did not end.")
        self.nothing_changes_after_the_end()
        for job_id, kind in self.kinds.items():
            job = self.service._store.get(job_id)
            assert job is not None
            one_legal_life(self.service._store, job)
            true = {JobStatus.FAILED if kind in ("raises", "stalls") else JobStatus.COMPLETED}
            if job_id in self.killed:
                true = {JobStatus.FAILED, JobStatus.COMPLETED}
            if job_id in self.cancelled:
                true = true | {JobStatus.CANCELLED}
            assert job.status in true, (kind, job)
        assert find_all_marked(self.nonce) == {}
        self.service.close()
        shutil.rmtree(self.folder)

    def all_have_ended(self) -> bool:
        for job_id in live_jobs(self.service):
            self.service.resume(job_id)  # which a pause may still come to
        return not live_jobs(self.service)

    @rule(
        target=jobs,
        kind=st.sampled_from(["ends", "raises", "waits", "stalls", "hangs", "pauses", "pauses"]),
    )
    def submit(self, kind: str) -> int:
        params = {"script": str(self.folder / "job.py"), "args": [kind], "python": sys.executable,
                  "working_dir": str(self.folder)}  # fmt: skip
        if kind == "stalls":
            params["args"] = ["waits for ever"]
            params["working_dir"] = "/"
        if kind == "hangs":
            params["working_dir"] = "/"
        minutes = 0.3 / 60 if kind == "stalls" else 10
        job_id = self.service.submit(
            Submission(recipe="script", params=params, timeout_minutes=minutes)
        )
        self.kinds[job_id] = kind
        return job_id

    @rule(job_id=jobs)
    def cancel(self, job_id: int) -> None:
        if self.service.cancel(job_id):
            self.cancelled.add(job_id)

    @rule(target=jobs, job_id=jobs)
    def retry(self, job_id: int) -> int:
        new = self.service.retry(job_id)
        self.kinds[new] = self.kinds[job_id]
        return new

    @rule(job_id=jobs, begun=st.booleans(), to_its_end=st.booleans())
    def pause(self, job_id: int, begun: bool, to_its_end: bool) -> None:
        def runs() -> bool:
            return self.service.job(job_id).status is JobStatus.RUNNING

        progress = DataPaths(self.folder / "data").run(job_id).progress
        can_pause = self.kinds[job_id] == "pauses"
        if can_pause and begun:
            wait_until(lambda: not runs() or progress.exists())
        if self.service.pause(job_id) and can_pause and to_its_end:
            wait_until(lambda: not runs())

    @rule(job_id=jobs)
    def resume(self, job_id: int) -> None:
        self.service.resume(job_id)

    @rule(job_id=jobs)
    def extend(self, job_id: int) -> None:
        self.service.extend(job_id)

    @rule(job_id=jobs)
    def kill_its_leader(self, job_id: int) -> None:
        """As somebody else may do at any moment."""
        job = self.service._store.get(job_id)
        assert job is not None
        for row in find_all_marked(self.nonce).get(job_id, []):
            if row.id.pid == job.pid:
                self.killed.add(job_id)
                send_kill(row.id)

    @rule()
    def open_the_gate_for_a_moment(self) -> None:
        (self.folder / "gate").touch()
        # Of those that are still queued nobody knows when their turn comes: jobs that hang may be
        # before them.
        waiting = [i for i in self.service.queue().running if self.kinds[i] == "waits"]
        wait_until(lambda: not any(i in live_jobs(self.service) for i in waiting))
        (self.folder / "gate").unlink()

    @rule()
    def housekeeping(self) -> None:
        self.service._pool.tick()

    @rule()
    def close_and_open_again(self) -> None:
        self.service.close()
        self.open()

    @invariant()
    def nothing_changes_after_the_end(self) -> None:
        for job_id in self.kinds:
            status = self.service.job(job_id).status
            assert self.ended.get(job_id, status) is status
            if status.ended:
                self.ended[job_id] = status


TestService = ServiceMachine.TestCase
TestService.settings = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    # To make a history of real processes shorter takes minutes, and hardly ever comes to an end.
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)


def everything_at_once(service: Service, ids: list[int], choose: random.Random) -> None:
    """Ask all that can be asked of the last job, at about the time of its end and its timeout."""
    job_id = ids[-1]
    acts: list[Callable[[], object]] = [
        lambda: service.cancel(job_id),
        lambda: service.cancel(job_id),
        lambda: service.extend(job_id),
        lambda: service.pause(job_id),
        lambda: service.resume(job_id),
        lambda: ids.append(service.retry(job_id)),
        service._pool.tick,
    ]
    threads = [threading.Timer(choose.uniform(0.2, 0.5), act) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_all_that_can_be_asked_at_the_same_instant(folder: Folder, serve: Serve) -> None:
    """Submit, cancel, pause, resume, end, timeout, extend, retry and shutdown, ten times over."""
    source = "import sys, time; time.sleep(float(sys.argv[1]))"
    choose = random.Random(1)
    ids: list[int] = []
    for _ in range(10):
        ids.append(folder.queue(source, 0.3, timeout_seconds=0.35))
        service = serve(workers=4)
        everything_at_once(service, ids, choose)
        service.close()
    service = serve()
    wait_until_ended(service, *ids)
    for job_id in ids:
        one_legal_life(service._store, folder.job(job_id))
    assert find_all_marked(folder.nonce) == {}
    assert {folder.job(i).failure_kind for i in ids} <= {None, FailureKind.TIMEOUT}
