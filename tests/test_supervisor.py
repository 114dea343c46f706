"""One job's life, look by look, with the time passed in and a leader that does as it is told."""

import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from backend import hang, launching, pausing
from backend import store as store_module
from backend import supervisor as supervisor_module
from backend.checkpoints import GivenUpError
from backend.gpu import HostSource
from backend.models import FailureKind, Job, JobStatus, RequestKind, utc_now
from backend.news import NewsKind
from backend.paths import RunPaths
from backend.processes import CouldNotStartError, Ended, LaunchSpec, ProcessId, ProcessRow
from backend.settings import Settings
from backend.spec import StopFile
from backend.store import Store, StoreError
from backend.supervisor import Supervisor, Surroundings
from tests.waiting import wait_until

TIMEOUT = 10.0


class FakeLeader:
    """A leader without a process: it lives until it is asked to stop."""

    def __init__(self) -> None:
        self.id = ProcessId(1001, "boot:1")
        self.code: int | None = None
        self.asked = 0
        self.let_go_of = False
        self.memory_bytes = 5000

    def alive(self) -> bool:
        return self.code is None

    def exit_code(self) -> int | None:
        return self.code

    def ask_to_stop(self) -> None:
        if self.alive():
            self.asked += 1
            self.code = -15

    def leftovers(self) -> list[ProcessRow]:
        return []

    def tree(self, afresh: bool) -> list[ProcessRow]:
        return [ProcessRow(self.id, 1, "S", self.memory_bytes)] if self.alive() else []

    def know(self, ids: Iterable[ProcessId]) -> bool:
        return False

    def let_go(self) -> None:
        self.let_go_of = True


class Watched:
    """A running job with its supervisor, whose clock stands still between two looks."""

    def __init__(self, store: Store, settings: Settings, folder: Path, **fields: Any) -> None:
        self.store = store
        self.settings = settings
        self.paths = RunPaths(folder)
        self.paths.checkpoints.mkdir(parents=True)
        self.leader = FakeLeader()
        self.launched: list[LaunchSpec] = []
        self.told: list[tuple[str, JobStatus]] = []
        """What was told of the job, with its state in the database at that moment."""
        job = Job(
            **{
                "name": "a job", "recipe": "script", "timeout_seconds": TIMEOUT, "gpus": 0,
                "command": {"argv": ["script.py"], "folder": str(folder)}, **fields,
            }
        )  # fmt: skip
        self.job_id = store.add(job)
        store.change(
            self.job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=utc_now()
        )
        self.supervisor = self.adopt()

    @property
    def job(self) -> Job:
        job = self.store.get(self.job_id)
        assert job is not None
        return job

    def adopt(self) -> Supervisor:
        """A supervisor for the job, which runs already."""
        return self._supervisor(leader=self.leader)

    def launch_with(self, launcher: Callable[[LaunchSpec], FakeLeader]) -> Supervisor:
        """A supervisor that starts the job."""
        return self._supervisor(launcher=launcher)

    def _supervisor(self, **how: Any) -> Supervisor:
        def tell(job_id: int, kind: NewsKind) -> None:
            assert job_id == self.job_id
            self.told.append((kind.value, self.job.status))

        around = Surroundings(self.settings, self.store, HostSource(), "nonce", tell)
        return Supervisor(self.job, self.paths, (), around, clock=lambda: 0.0, **how)

    def look(self, *times: float) -> list[bool]:
        return [self.supervisor.tick(now) for now in times]

    def report(self, **figures: Any) -> None:
        beside = self.paths.progress.with_suffix(".tmp")
        beside.write_text(json.dumps(figures))
        beside.replace(self.paths.progress)

    def end(self, **record: Any) -> None:
        """What the runner would do."""
        self.paths.exit.write_text(json.dumps(record))
        self.leader.code = record.get("code") or 0

    def messages(self) -> list[str]:
        return [event.message for event in self.store.timeline(self.job_id)]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(store_module, "BUSY_SECONDS", 0.05)
    store = Store(tmp_path / "signalbox.db")
    yield store
    store.close()


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The pids of each asking for stacks."""
    asked: list[list[int]] = []

    def capture(rows: list[ProcessRow], path: Path, leader: ProcessId, **_: object) -> bool:
        asked.append([row.id.pid for row in rows])
        path.write_text(f"stacks {len(asked)}")
        return True

    monkeypatch.setattr(hang, "capture", capture)
    return asked


@pytest.fixture
def watch(
    store: Store, settings: Settings, tmp_path: Path, stacks: object
) -> Callable[..., Watched]:
    def watch(**fields: Any) -> Watched:
        return Watched(store, settings, tmp_path / "run", **fields)

    return watch


Watch = Callable[..., Watched]


# What is told


def test_an_end_is_told_once_its_verdict_is_written(watch: Watch) -> None:
    watched = watch()
    watched.end(code=0)
    watched.look(0.0)
    assert watched.told == [("ended", JobStatus.COMPLETED)]


def test_the_warning_and_the_timeout_are_told_once_each(watch: Watch) -> None:
    watched = watch()
    watched.look(0, 2, 4, 6, 7.9)
    assert watched.told == []
    watched.look(8, 8.5, 9)
    assert watched.told == [("about_to_time_out", JobStatus.RUNNING)]
    watched.supervisor.extend()
    watched.look(9.5, 11.5, 13.5, 15.5, 16.9)
    assert len(watched.told) == 1, "it was granted another full timeout"
    watched.look(17.5, 18)
    assert len(watched.told) == 2
    watched.look(19.5)
    assert watched.told[2:] == [("ended", JobStatus.FAILED)]


def test_a_pause_is_no_end_and_is_not_told(watch: Watch) -> None:
    watched = watch()
    watched.report(step=8, status="stopping", can_pause=True)
    watched.look(0.0)
    watched.end(code=0)
    watched.look(0.1)
    assert watched.job.status is JobStatus.PAUSED
    assert watched.told == []


# The stall clock


def test_stacks_at_eighty_percent_and_the_end_at_a_hundred(
    watch: Watch, stacks: list[list[int]]
) -> None:
    watched = watch()
    watched.report(step=7)
    assert watched.look(0, 2, 4, 6, 7.9) == [False] * 5
    assert stacks == []
    assert watched.look(8) == [False]
    assert stacks == [[1001]]
    assert watched.supervisor.live().stacks_taken
    assert watched.look(9, 9.9) == [False] * 2
    assert watched.supervisor.live().seconds_left == pytest.approx(0.1)
    assert watched.look(10) == [True]
    assert len(stacks) == 2
    assert watched.leader.asked == 1
    job = watched.job
    message = "Training timed out - no progress updates for 10 seconds"
    assert (job.status, job.error) == (JobStatus.FAILED, message)
    assert job.failure_kind is FailureKind.TIMEOUT
    failure = watched.store.failure(watched.job_id)
    assert failure is not None
    assert (failure.message, failure.stacks, failure.last_step) == (message, "stacks 2", 7)
    assert failure.seconds_without_progress == 10
    assert job.progress["current_step"] == 7


def test_a_job_that_never_writes_is_caught_too(watch: Watch) -> None:
    watched = watch(timeout_seconds=60)
    assert watched.look(*range(1, 60)) == [False] * 59
    assert watched.look(60) == [True]
    assert watched.job.error == "Training timed out - no progress updates for 1 minute"


def test_a_report_starts_the_clock_anew_and_the_next_stall_has_its_own_stacks(
    watch: Watch, stacks: list[list[int]]
) -> None:
    watched = watch()
    watched.look(*range(1, 9))
    assert len(stacks) == 1
    watched.report(step=1)
    watched.look(9)
    assert not watched.supervisor.live().stacks_taken
    assert watched.supervisor.live().seconds_left == TIMEOUT
    watched.look(*range(10, 18))
    assert len(stacks) == 2


def test_a_change_that_only_the_last_look_sees_saves_the_job(
    watch: Watch, stacks: list[list[int]]
) -> None:
    watched = watch()
    watched.report(step=1)
    watched.look(*range(10))
    watched.report(step=2)
    status = watched.paths.progress.stat()  # a coarse clock could leave these as they were
    watched.supervisor._reader._signature = (
        *(status.st_ino, status.st_size),
        *(status.st_mtime_ns, status.st_ctime_ns),
    )
    assert watched.look(10) == [False]
    live = watched.supervisor.live()
    assert live.reading
    assert live.reading.current_step == 2
    assert (live.silent_seconds, live.stacks_taken) == (0, False)
    assert watched.leader.asked == 0
    watched.look(*range(11, 19))
    assert len(stacks) == 2, "the next stall has its own stacks"


def test_a_job_that_ends_at_the_last_look_has_ended_by_itself(watch: Watch) -> None:
    watched = watch()
    watched.look(*range(1, 10))
    alive = iter([True])
    watched.leader.alive = lambda: next(alive, False)  # type: ignore[method-assign]
    watched.end(code=0)
    assert watched.look(10) == [False]
    assert watched.look(10) == [True]
    assert watched.job.status is JobStatus.COMPLETED


def test_an_extension_grants_another_full_timeout(watch: Watch) -> None:
    watched = watch()
    watched.look(*range(1, 10))
    watched.supervisor.extend()
    assert watched.supervisor.live().seconds_left == TIMEOUT
    assert watched.look(*range(10, 19)) == [False] * 9
    assert watched.look(19) == [True]
    assert watched.job.error == "Training timed out - no progress updates for 10 seconds"


def test_time_in_which_nobody_looked_does_not_count(watch: Watch) -> None:
    watched = watch()
    assert watched.look(1, 5000, 10_000) == [False] * 3


def test_a_broken_file_is_told_and_is_no_progress(watch: Watch) -> None:
    watched = watch()
    watched.paths.progress.write_text("[1]")
    assert watched.look(*range(1, 10)) == [False] * 9
    assert watched.supervisor.live().problem == (
        "progress.json holds a list where an object is expected."
    )
    assert watched.look(10) == [True]
    assert watched.job.progress == {}


# Cancel


def test_a_cancelled_job_is_asked_and_measured(watch: Watch) -> None:
    watched = watch()
    watched.look(1)
    watched.supervisor.cancel()
    assert watched.look(2) == [True]
    assert watched.job.status is JobStatus.CANCELLED
    assert watched.leader.asked == 1
    assert "asked_at" in json.loads(watched.paths.stop.read_text())
    assert watched.store.failure(watched.job_id) is None
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (cleanup.device, cleanup.before_bytes, cleanup.after_bytes) == ("host", 5000, 0)
    assert (cleanup.reason, cleanup.released) == ("cancelled", True)


def test_of_a_cancel_and_an_end_in_the_same_look_the_end_counts(watch: Watch) -> None:
    watched = watch()
    watched.look(1)
    watched.end(code=0)
    watched.supervisor.cancel()
    assert watched.look(2) == [True]
    assert watched.job.status is JobStatus.COMPLETED
    assert watched.leader.asked == 0
    changes = [e.to_status for e in watched.store.timeline(watched.job_id) if e.to_status]
    assert changes == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.COMPLETED]


def test_a_job_that_saves_and_exits_well_when_asked_is_cancelled(watch: Watch) -> None:
    watched = watch()
    watched.leader.ask_to_stop = lambda: watched.end(code=0)  # type: ignore[method-assign]
    watched.supervisor.cancel()
    assert watched.look(1) == [True]
    assert watched.job.status is JobStatus.CANCELLED


def test_a_cancel_that_an_earlier_server_was_asked_for_is_carried_out(watch: Watch) -> None:
    watched = watch()
    watched.store.request(watched.job_id, RequestKind.CANCELLING, "Cancel was asked for")
    watched.supervisor = watched.adopt()
    assert watched.look(1) == [True]
    assert watched.job.status is JobStatus.CANCELLED
    assert watched.leader.asked == 1


def test_a_cancel_that_an_earlier_server_carried_out_half_way_is_one(watch: Watch) -> None:
    watched = watch()
    watched.store.request(watched.job_id, RequestKind.CANCELLING, "Cancel was asked for")
    watched.supervisor = watched.adopt()
    watched.end(code=None, signal=15)
    assert watched.look(1) == [True]
    assert watched.job.status is JobStatus.CANCELLED
    assert watched.job.error is None


def test_a_job_cancelled_before_its_launch_is_not_launched(watch: Watch) -> None:
    watched = watch()
    supervisor = watched.launch_with(lambda spec: pytest.fail("It was launched."))
    supervisor.cancel()
    supervisor.run()
    assert watched.job.status is JobStatus.CANCELLED


# Launch


def test_a_launched_job_is_known_by_its_process(watch: Watch) -> None:
    watched = watch()

    def launch(spec: LaunchSpec) -> FakeLeader:
        watched.launched.append(spec)
        watched.end(code=0)
        return watched.leader

    watched.launch_with(launch).run()
    job = watched.job
    assert (job.pid, job.process_start) == (1001, "boot:1")
    assert job.status is JobStatus.COMPLETED
    assert watched.launched[0].argv == ("script.py",)


def test_what_could_not_start_is_a_failure_without_a_cleanup(watch: Watch) -> None:
    watched = watch()

    def launch(spec: LaunchSpec) -> FakeLeader:
        raise CouldNotStartError("There is no python.")

    watched.launch_with(launch).run()
    job = watched.job
    assert (job.status, job.error) == (JobStatus.FAILED, "There is no python.")
    assert job.failure_kind is FailureKind.COULD_NOT_START
    assert watched.store.cleanups(watched.job_id, 10) == []


def test_a_run_folder_that_cannot_be_made_is_a_failure_of_the_job(watch: Watch) -> None:
    watched = watch()
    watched.paths.checkpoints.rmdir()
    watched.paths.checkpoints.write_text("in the way")
    watched.launch_with(lambda spec: watched.leader).run()
    assert watched.job.failure_kind is FailureKind.COULD_NOT_START
    assert "The run folder cannot be written" in (watched.job.error or "")


def test_a_job_that_needs_more_gpus_than_it_got_could_not_start(watch: Watch) -> None:
    """As after a restart with fewer of them: it must neither run without nor block the queue."""
    watched = watch(gpus=2)
    watched.launch_with(lambda spec: pytest.fail("It was launched.")).run()
    assert watched.job.failure_kind is FailureKind.COULD_NOT_START
    assert watched.job.error == "It needs 2 GPUs, and this machine has fewer now."


# Ends


def test_what_a_timeout_ends_a_job_for_is_written_down_before_the_first_signal(
    watch: Watch,
) -> None:
    watched = watch()
    ask, asked_with = watched.leader.ask_to_stop, []

    def asked() -> None:
        asked_with.append(watched.job.ending)
        ask()

    watched.leader.ask_to_stop = asked  # type: ignore[method-assign]
    watched.look(*range(1, 11))
    (ending,) = asked_with
    assert ending["error"] == "Training timed out - no progress updates for 10 seconds"
    assert ending["silent_seconds"] == 10
    assert watched.job.failure_kind is FailureKind.TIMEOUT
    assert watched.job.ending is None, "It is over."


def test_an_end_that_another_server_began_keeps_its_verdict_and_its_figures(watch: Watch) -> None:
    watched = watch()
    watched.leader.memory_bytes = 7000
    watched.leader.ask_to_stop = watched.supervisor.detach  # type: ignore[method-assign]
    watched.look(*range(1, 11))
    assert watched.job.status is JobStatus.RUNNING
    watched.leader.code = -15
    at = utc_now() - timedelta(microseconds=1)
    watched.paths.exit.write_text(
        json.dumps({"code": None, "signal": 15, "finished_at": at.isoformat()})
    )
    watched.adopt().run()
    job = watched.job
    assert (job.failure_kind, job.finished_at) == (FailureKind.TIMEOUT, at)
    failure = watched.store.failure(watched.job_id)
    assert failure is not None
    assert failure.message == "Training timed out - no progress updates for 10 seconds"
    assert failure.seconds_without_progress == 10
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (cleanup.reason, cleanup.before_bytes) == ("timeout", 7000)
    messages = [e.message for e in watched.store.timeline(watched.job_id) if e.to_status]
    assert messages == ["Submitted", "Started", failure.message], "one stall, one verdict"


def test_how_it_ended_is_written_down_where_only_this_server_knows(watch: Watch) -> None:
    """exit.json could not be written, and the server closes while it ends what was left behind."""
    watched = watch()
    watched.leader.code = 3
    watched.supervisor.detach()
    watched.leader.leftovers = lambda: [ProcessRow(ProcessId(77, "b:7"), 1, "S", 1)]  # type: ignore[method-assign]
    watched.look(1)
    assert watched.job.status is JobStatus.RUNNING
    del watched.leader.leftovers
    watched.leader.code = None  # as far as the next server can tell
    watched.leader.alive = lambda: False  # type: ignore[method-assign]
    watched.adopt().run()
    assert watched.job.error == "The process exited with code 3."


def test_a_cancel_that_came_after_the_end_does_not_take_its_place(watch: Watch) -> None:
    """It was asked for while what the job left behind was being ended; then the server died."""
    watched = watch()
    watched.end(code=1, exception={"type": "ValueError", "line": "ValueError: its own"})
    watched.store.request(watched.job_id, RequestKind.CANCELLING, "Cancel was asked for")
    watched.adopt().run()
    assert watched.job.error == "ValueError: its own"


def test_a_cancel_that_only_the_run_folder_knows_of_is_carried_through(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the request nor the verdict could be written, and the server was closed."""
    watched = watch()
    watched.leader.ask_to_stop = watched.supervisor.detach  # type: ignore[method-assign]
    watched.supervisor.cancel()
    watched.look(1)
    assert (watched.job.requested, watched.job.ending) == (None, None)
    watched.leader.code = 0
    watched.paths.exit.write_text(json.dumps({"code": 0, "finished_at": utc_now().isoformat()}))
    watched.adopt().run()
    assert watched.job.status is JobStatus.CANCELLED


def test_what_ended_before_it_was_asked_to_has_its_own_verdict(watch: Watch) -> None:
    watched = watch()
    at = utc_now()
    watched.leader.ask_to_stop = watched.supervisor.detach  # type: ignore[method-assign]
    watched.supervisor.cancel()
    watched.look(1)
    watched.leader.code = 0
    watched.paths.exit.write_text(json.dumps({"code": 0, "finished_at": at.isoformat()}))
    watched.adopt().run()
    assert watched.job.status is JobStatus.COMPLETED


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"asked_at": "2001-01-01T00:00:00Z"}',
        '{"asked_at": "soon", "ending": {"status": "cancelled"}}',
        *(
            json.dumps(
                {
                    "asked_at": "2999-01-01T00:00:00Z",
                    "ending": {
                        "status": status,
                        "kind": kind,
                        "error": None,
                        "finished_at": None,
                        "silent_seconds": None,
                    },
                }
            )
            for status, kind in (
                ("queued", None),
                ("running", None),
                ("completed", None),
                ("failed", None),
                ("failed", "timeout"),
                ("cancelled", "timeout"),
            )
        ),
    ],
)
def test_a_stop_file_that_says_nothing_is_none(watch: Watch, content: str) -> None:
    watched = watch()
    watched.paths.stop.write_text(content)
    watched.end(code=0)
    watched.adopt().run()
    assert watched.job.status is JobStatus.COMPLETED


def test_the_memory_before_an_end_is_that_of_the_server_that_began_it(watch: Watch) -> None:
    watched = watch()
    watched.leader.memory_bytes = 7000
    watched.leader.ask_to_stop = watched.supervisor.detach  # type: ignore[method-assign]
    watched.look(*range(1, 11))
    watched.supervisor.run()  # which finds itself detached, as the thread does
    watched.leader.memory_bytes = 10  # it has freed most of it since it was asked
    del watched.leader.ask_to_stop
    watched.adopt().run()
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (cleanup.before_bytes, cleanup.peak_bytes) == (7000, 7000)


def test_a_cancel_that_is_carried_through_has_the_grace_and_the_figures_of_a_cancel(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch()
    watched.leader.memory_bytes = 7000
    watched.leader.ask_to_stop = watched.supervisor.detach  # type: ignore[method-assign]
    watched.supervisor.cancel()
    watched.supervisor.run()
    watched.look(1)
    watched.supervisor.run()
    watched.leader.memory_bytes = 10
    del watched.leader.ask_to_stop
    graces: list[float] = []

    def end_tree(leader: FakeLeader, grace: float, *_: object, **__: object) -> Ended:
        graces.append(grace)
        leader.code = -15
        return Ended((), 0)

    monkeypatch.setattr(supervisor_module, "end_tree", end_tree)
    watched.adopt().run()
    assert graces == [watched.settings.cancel_grace_seconds]
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (watched.job.status, cleanup.before_bytes) == (JobStatus.CANCELLED, 7000)


def test_an_end_that_no_stop_file_can_tell_of_is_carried_through_all_the_same(
    watch: Watch,
) -> None:
    """The leader left no exit.json and its pid was not written down: an orphan is taken for it."""
    watched = watch()
    ending = {"status": "completed", "kind": None, "error": None, "finished_at": None}
    watched.store.update_running(watched.job_id, ending={**ending, "silent_seconds": None})
    watched.adopt().run()
    assert watched.job.status is JobStatus.COMPLETED
    assert watched.leader.asked == 1


def test_a_stop_file_that_is_a_folder_leaves_nothing_open(watch: Watch) -> None:
    watched = watch()
    watched.paths.stop.mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(5):
        assert StopFile.read(watched.paths) is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_job_whose_end_has_begun_is_granted_nothing_more(watch: Watch) -> None:
    watched = watch()
    granted: list[bool] = [watched.supervisor.extend()]
    ask = watched.leader.ask_to_stop

    def asked() -> None:
        granted.append(watched.supervisor.extend())
        ask()

    watched.leader.ask_to_stop = asked  # type: ignore[method-assign]
    watched.look(*range(1, 11))
    assert watched.job.failure_kind is FailureKind.TIMEOUT
    assert granted == [True, False]


def test_a_run_repeated_by_hand_does_not_carry_the_mark(watch: Watch) -> None:
    watched = watch()
    launched: list[LaunchSpec] = []

    def launch(spec: LaunchSpec) -> FakeLeader:
        launched.append(spec)
        watched.leader.code = 0
        return watched.leader

    watched.launch_with(launch).run()
    variables = json.loads(watched.paths.spec.read_text())["variables"]
    assert "SIGNALBOX_RUN_DIR" in variables
    assert not set(launched[0].mark.variables()) & set(variables)


def test_of_a_job_that_nobody_watched_no_silence_is_told(watch: Watch) -> None:
    watched = watch()
    watched.end(code=3)
    watched.look(1)
    failure = watched.store.failure(watched.job_id)
    assert failure is not None
    assert failure.seconds_without_progress is None


def test_a_job_that_was_lost_with_the_machine_says_so(watch: Watch) -> None:
    watched = watch()
    watched.leader.alive = lambda: False  # type: ignore[method-assign]
    assert watched.leader.id.started.startswith("boot:"), "another boot than this"
    watched.look(1)
    assert watched.job.failure_kind is FailureKind.LOST
    assert watched.job.error == supervisor_module.RESTARTED


def test_a_closing_server_leaves_the_peak_to_the_next(watch: Watch) -> None:
    watched = watch()
    watched.leader.memory_bytes = 9000
    watched.look(1)
    watched.supervisor.detach()
    watched.supervisor.run()
    watched.leader.memory_bytes = 4000
    watched.supervisor = watched.adopt()
    watched.look(2)
    assert watched.supervisor.live().peak_bytes == 9000


def test_a_verdict_is_written_even_where_what_goes_with_it_cannot_be(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", 0.01)
    watched = watch()
    watched.report(step=3)
    change = watched.store.change

    def refuse(*args: Any, **values: Any) -> bool:
        if values["cleanups"] or values["progress"] or values["failure"].log_tail:
            raise StoreError("A mistake in this program.", passing=False)
        return change(*args, **values)

    monkeypatch.setattr(watched.store, "change", refuse)
    watched.paths.log.write_text("a line")
    watched.end(code=2)
    watched.look(1)
    assert watched.job.error == "The process exited with code 2."


def test_a_detached_job_goes_on_without_a_verdict(watch: Watch) -> None:
    watched = watch()
    watched.supervisor.detach()
    watched.supervisor.run()
    assert watched.job.status is JobStatus.RUNNING
    assert watched.leader.asked == 0
    assert watched.leader.let_go_of


def test_a_closing_server_leaves_a_cancel_under_way_to_the_next(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch()
    watched.leader.ask_to_stop = watched.supervisor.detach  # type: ignore[method-assign]
    watched.supervisor.cancel()
    watched.look(1)
    assert watched.job.status is JobStatus.RUNNING


@pytest.mark.parametrize(
    "said",
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2999-01-01T00:00:00Z",
        "1999-01-01T00:00:00",
        "yesterday",
        "",
    ],
)
def test_a_senseless_time_of_the_end_does_not_stop_the_verdict(watch: Watch, said: str) -> None:
    watched = watch()
    watched.end(code=0, finished_at=said)
    _in_time(lambda: watched.look(1), watched.supervisor.detach)
    job = watched.job
    assert job.status is JobStatus.COMPLETED
    assert job.started_at is not None
    assert job.finished_at is not None
    assert job.started_at <= job.finished_at <= utc_now()


def _in_time(do: Callable[[], object], give_up: Callable[[], object]) -> None:
    """Do it in a thread; where it hangs, give up after a while."""
    thread = threading.Thread(target=do)
    thread.start()
    thread.join(5)
    hangs = thread.is_alive()
    give_up()
    thread.join(10)
    assert not hangs, "It hangs."


def test_the_end_was_when_the_runner_says_it_was(watch: Watch) -> None:
    """An adopted job may have ended long before a server came to look."""
    watched = watch()
    started = watched.job.started_at
    assert started is not None
    at = started + timedelta(microseconds=1)
    watched.end(code=0, finished_at=at.isoformat())
    watched.look(1)
    assert watched.job.finished_at == at


def test_survivors_are_named_and_kept_in_mind(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch()
    row = ProcessRow(ProcessId(77, "boot:7"), 1, "D", 3000)
    monkeypatch.setattr(supervisor_module, "end_tree", lambda *_, **__: Ended((row,), 2))
    watched.look(1)
    watched.supervisor.cancel()
    watched.look(2)
    assert watched.supervisor.survivors == (row.id,)
    assert "Could not be ended, not even by SIGKILL: pid 77" in watched.messages()
    assert "2 process(es) did not stop within 5 seconds and were killed" in watched.messages()
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (cleanup.after_bytes, cleanup.released) == (3000, False)


def test_a_verdict_waits_for_a_locked_database(
    watch: Watch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(supervisor_module, "RETRY_SECONDS", 0.02)
    watched = watch()
    watched.end(code=0)
    other = sqlite3.connect(tmp_path / "signalbox.db", isolation_level=None)
    other.execute("begin immediate")
    thread = threading.Thread(target=watched.look, args=(1,))
    with caplog.at_level(logging.WARNING):
        thread.start()
        wait_until(lambda: caplog.text.count("its verdict cannot be written yet") >= 2)
        assert watched.job.status is JobStatus.RUNNING
        other.execute("rollback")
        thread.join(30)
    other.close()
    assert watched.job.status is JobStatus.COMPLETED
    assert watched.messages().count("Completed") == 1


def test_a_note_that_cannot_be_written_does_not_cost_the_verdict(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch()

    def refuse(job_id: int, message: str) -> None:
        raise StoreError("The database is locked.", passing=True)

    monkeypatch.setattr(watched.store, "note", refuse)
    monkeypatch.setattr(supervisor_module, "end_tree", lambda *_, **__: Ended((), 3))
    watched.look(*range(1, 11))
    assert watched.job.failure_kind is FailureKind.TIMEOUT


def test_a_second_verdict_is_dropped(watch: Watch) -> None:
    watched = watch()
    watched.store.change(watched.job_id, JobStatus.RUNNING, JobStatus.CANCELLED, "by another")
    watched.end(code=0)
    assert watched.look(1) == [True]
    assert watched.job.status is JobStatus.CANCELLED


def test_memory_is_read_every_second_and_its_peak_kept(watch: Watch) -> None:
    watched = watch()
    for now, used in ((1.0, 1000), (1.5, 9000), (2.0, 4000), (3.1, 2000)):
        watched.leader.memory_bytes = used
        watched.look(now)
    live = watched.supervisor.live()
    assert (live.memory_bytes, live.peak_bytes) == (2000, 4000), "at 1.5 s it was not yet time"
    watched.end(code=0)
    watched.look(4)
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (cleanup.before_bytes, cleanup.peak_bytes) == (2000, 4000), "the last while it ran"
    assert cleanup.reason == "ended"


# A timeout of a phase's own


def test_a_phase_may_be_silent_for_longer_or_shorter_than_its_job(watch: Watch) -> None:
    watched = watch()
    watched.report(step=1, phase="downloading", phase_timeout_seconds=30)
    assert watched.look(*range(30)) == [False] * 30
    assert watched.supervisor.live().seconds_left == 1
    watched.report(step=1, phase="evaluating", phase_timeout_seconds=3)
    assert watched.look(30, 31, 32) == [False] * 3
    watched.report(step=1, phase="training")
    assert watched.look(*range(33, 43)) == [False] * 10
    watched.report(step=1, phase="evaluating", phase_timeout_seconds=3)
    assert watched.look(43, 44, 45, 46) == [False, False, False, True]
    assert watched.job.error == "Training timed out - no progress updates for 3 seconds"


@pytest.mark.parametrize("wrong", [0, -1, 1e12, True, "3", None])
def test_a_timeout_that_makes_no_sense_is_none(watch: Watch, wrong: object) -> None:
    watched = watch()
    watched.report(step=1, phase_timeout_seconds=wrong)
    watched.look(0)
    assert watched.supervisor.live().seconds_left == TIMEOUT


# Pause


GRACE = 120  # seconds


def ask_to_pause(watched: Watched) -> None:
    assert watched.store.request(watched.job_id, RequestKind.PAUSING, "Pause was asked for")
    watched.supervisor.pause()


def pause_file(watched: Watched) -> Any:
    return json.loads(watched.paths.stop.read_text())


def test_a_job_that_saves_and_ends_is_paused_and_measured(watch: Watch) -> None:
    watched = watch()
    watched.report(step=7, can_pause=True, status="running")
    watched.look(1)
    ask_to_pause(watched)
    assert watched.look(2) == [False]
    asked = pause_file(watched)
    assert (asked["pause"], asked["ending"]) == (True, None)
    assert watched.leader.asked == 0, "Nothing is signalled that may die of it."
    assert watched.job.requested is RequestKind.PAUSING
    watched.report(step=8, can_pause=True, status="stopping", checkpoint="step-8")
    watched.end(code=0)
    assert watched.look(3) == [True]
    job = watched.job
    assert (job.status, job.requested, job.checkpoint) == (JobStatus.PAUSED, None, "step-8")
    assert (job.pid, job.finished_at, job.failure_kind) == (None, None, None)
    assert job.paused_at is not None
    (cleanup,) = watched.store.cleanups(watched.job_id, 10)
    assert (cleanup.reason, cleanup.before_bytes, cleanup.after_bytes) == ("paused", 5000, 0)
    assert watched.messages()[-1] == "Paused"


@pytest.mark.parametrize(
    ("says", "ends", "status"),
    [
        ({"status": "finished", "can_pause": True}, {"code": 0}, JobStatus.COMPLETED),
        ({"status": "running", "can_pause": True}, {"code": 0}, JobStatus.COMPLETED),
        ({"status": "stopping", "can_pause": True}, {"code": 1}, JobStatus.FAILED),
        ({"can_pause": True}, {"code": 0}, JobStatus.PAUSED),
        ({"can_pause": True}, {"signal": 15}, JobStatus.PAUSED),
        ({"can_pause": True}, {"signal": 9}, JobStatus.FAILED),
        ({}, {"code": 0}, JobStatus.COMPLETED),
        ({}, {"signal": 15}, JobStatus.FAILED),
    ],
)
def test_only_a_job_that_ended_because_it_was_asked_is_paused(
    watch: Watch, says: dict[str, Any], ends: dict[str, Any], status: JobStatus
) -> None:
    watched = watch()
    watched.report(step=8, **says)
    ask_to_pause(watched)
    watched.look(1)
    watched.end(**{"code": None, "signal": None, **ends})
    assert watched.look(2) == [True]
    assert watched.job.status is status


def test_a_job_that_saves_and_stops_because_somebody_else_asked_can_be_resumed(
    watch: Watch,
) -> None:
    """Somebody sent its process a SIGTERM. That it is completed would not be true."""
    watched = watch()
    watched.report(step=8, status="stopping", can_pause=True)
    watched.look(1)
    watched.end(code=0)
    watched.look(2)
    assert watched.job.status is JobStatus.PAUSED


@pytest.mark.parametrize("ends", [{"code": 0}, {"code": None, "signal": 15}])
@pytest.mark.parametrize("asked", ["in the instant of its end", "long before"])
def test_a_job_that_gives_no_word_is_paused_only_while_that_is_asked(
    watch: Watch, asked: str, ends: dict[str, Any]
) -> None:
    watched = watch(timeout_seconds=1000)
    watched.report(step=8, can_pause=True)
    watched.look(1)
    if asked == "long before":
        ask_to_pause(watched)
        watched.look(2, 200)
        assert watched.job.requested is None, "it was withdrawn"
    watched.end(**ends)
    if asked != "long before":
        ask_to_pause(watched)
    assert watched.look(201) == [True]
    assert watched.job.status is not JobStatus.PAUSED


@pytest.mark.parametrize("can_pause", [True, False])
def test_a_job_that_ignores_the_ask_goes_on_and_its_page_says_why(
    watch: Watch, can_pause: bool
) -> None:
    watched = watch(timeout_seconds=1000)
    watched.report(step=8, can_pause=can_pause)
    watched.look(0)
    ask_to_pause(watched)
    assert watched.look(1, 1 + GRACE) == [False] * 2
    assert watched.job.notice is None
    assert watched.look(2 + GRACE) == [False]
    job = watched.job
    assert (job.status, job.requested) == (JobStatus.RUNNING, None)
    assert "did not stop within 2 minutes of being asked" in (job.notice or "")
    assert ("has never said that it can" in (job.notice or "")) is not can_pause
    assert watched.messages()[-1] == job.notice
    assert not watched.paths.stop.exists()
    assert watched.leader.asked == 0
    ask_to_pause(watched)
    assert watched.look(3 + GRACE) == [False]
    assert pause_file(watched)["pause"] is True
    assert watched.job.notice is None


def test_the_grace_stretches_while_a_checkpoint_grows(watch: Watch) -> None:
    watched = watch(timeout_seconds=10_000)
    watched.report(step=8, can_pause=True, status="stopping")
    ask_to_pause(watched)
    saving = watched.paths.checkpoints / ".step-9.tmp"
    saving.mkdir()
    for hundred in range(1, 6):
        (saving / "model.pt").write_bytes(bytes(hundred))
        assert watched.look(hundred * 100) == [False]
        assert watched.job.requested is RequestKind.PAUSING
    assert watched.look(500 + GRACE) == [False]
    assert watched.job.requested is RequestKind.PAUSING
    watched.look(501 + GRACE)
    assert watched.job.requested is None


def test_a_job_that_saves_regularly_and_never_stops_is_let_go(watch: Watch) -> None:
    watched = watch(timeout_seconds=100_000)
    watched.report(step=8, can_pause=True, status="running")
    ask_to_pause(watched)
    for number in range(4):
        (watched.paths.checkpoints / f"step-{number}").mkdir()
        (watched.paths.checkpoints / f"step-{number}" / "model.pt").write_bytes(b"weights")
        watched.look(number * 100)
    assert watched.job.requested is None
    assert "did not stop within 2 minutes" in (watched.job.notice or "")


def test_no_pause_takes_for_ever(watch: Watch) -> None:
    watched = watch(timeout_seconds=100_000)
    watched.report(step=8, can_pause=True, status="stopping")
    ask_to_pause(watched)
    growing = watched.paths.checkpoints / ".step-9.tmp"
    for hundred in range(36):
        growing.write_bytes(bytes(hundred))
        watched.look(hundred * 100)
        assert watched.job.requested is RequestKind.PAUSING
    growing.write_bytes(bytes(100))
    watched.look(3700)
    assert watched.job.requested is None


def test_a_checkpoint_that_grows_for_a_pause_is_a_sign_of_life(watch: Watch) -> None:
    watched = watch()
    watched.report(step=8, can_pause=True, status="stopping")
    ask_to_pause(watched)
    growing = watched.paths.checkpoints / ".step-9.tmp"
    for second in range(30):
        growing.write_bytes(bytes(second))
        assert watched.look(second) == [False]
    assert watched.look(*range(30, 38)) == [False] * 8
    assert watched.look(38, 39) == [False, True]
    assert watched.job.failure_kind is FailureKind.TIMEOUT


def test_a_signal_is_sent_once_and_only_after_the_script_has_said_so(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []
    script = ProcessRow(ProcessId(1002, "boot:2"), 1001, "S", 1)
    monkeypatch.setattr(pausing, "script_of", lambda leader, rows: script)
    monkeypatch.setattr(pausing, "catches", lambda pid, number: True)

    def send(target: ProcessId, number: int, *, wake: bool) -> bool:
        sent.append(target.pid)
        return True

    monkeypatch.setattr(pausing, "send_signal", send)
    watched = watch()
    ask_to_pause(watched)
    watched.look(1)
    watched.report(step=1, can_pause=True)
    watched.look(2)
    assert sent == []
    watched.report(step=2, can_pause="sigterm")
    watched.look(3, 4)
    assert sent == [1002]
    watched.supervisor = watched.adopt()
    watched.look(5)
    assert sent == [1002], "the earlier server may have sent it"


def test_a_job_may_decline_with_a_reason(watch: Watch) -> None:
    watched = watch(env={"KEY": "hush-hush"})
    ask_to_pause(watched)
    watched.look(1)
    asked_at = pause_file(watched)["asked_at"]
    watched.report(can_pause=True, stop_declined="an older reason", stop_declined_asked_at="2020")
    watched.look(2)
    assert watched.job.requested is RequestKind.PAUSING
    reason = "there is no room for hush-hush."
    watched.report(can_pause=True, stop_declined=reason, stop_declined_asked_at=asked_at)
    watched.look(3)
    assert watched.job.notice == "It was not paused: there is no room for *********."
    assert watched.job.requested is None


def test_a_pause_that_was_withdrawn_and_obeyed_all_the_same_is_one(watch: Watch) -> None:
    watched = watch(timeout_seconds=1000)
    watched.report(step=8, can_pause=True, status="stopping")
    ask_to_pause(watched)
    watched.look(1, 200)
    assert watched.job.requested is None
    watched.end(code=0)
    watched.supervisor = watched.adopt()
    assert watched.look(201) == [True], "a later server's is the same verdict"
    assert (watched.job.status, watched.job.notice) == (JobStatus.PAUSED, None)


def test_a_cancel_ends_a_job_that_was_asked_to_pause(watch: Watch) -> None:
    watched = watch()
    watched.report(step=8, can_pause=True, status="stopping")
    ask_to_pause(watched)
    watched.look(1)
    watched.store.request(watched.job_id, RequestKind.CANCELLING, "Cancel was asked for")
    watched.supervisor.cancel()
    assert watched.look(2) == [True]
    assert watched.job.status is JobStatus.CANCELLED
    assert pause_file(watched)["ending"]["status"] == "cancelled"


@pytest.mark.parametrize("told", [True, False])
def test_of_a_pause_and_a_cancel_in_the_same_look_the_cancel_counts(
    watch: Watch, told: bool
) -> None:
    """Also where the supervisor itself has not heard of it yet."""
    watched = watch()
    watched.report(step=8, can_pause=True, status="stopping")
    ask_to_pause(watched)
    watched.look(1)
    watched.end(code=0)
    watched.store.request(watched.job_id, RequestKind.CANCELLING, "Cancel was asked for")
    if told:
        watched.supervisor.cancel()
    assert watched.look(2) == [True]
    assert watched.job.status is JobStatus.CANCELLED
    assert watched.job.finished_at is not None


def test_a_pause_that_an_earlier_server_asked_for_is_seen_to_its_end(watch: Watch) -> None:
    watched = watch(timeout_seconds=1000)
    watched.report(step=8, can_pause=True)
    ask_to_pause(watched)
    watched.look(1)
    asked = pause_file(watched)
    watched.supervisor = watched.adopt()
    watched.look(2)
    assert pause_file(watched) == asked, "it is the same ask"
    watched.report(step=8, can_pause=True, status="stopping")
    watched.end(code=0)
    assert watched.look(3) == [True]
    assert watched.job.status is JobStatus.PAUSED


def test_a_job_that_paused_while_no_server_lived_is_paused(watch: Watch) -> None:
    watched = watch()
    ask_to_pause(watched)
    watched.look(1)
    watched.report(step=8, can_pause=True, status="stopping")
    at = utc_now()
    watched.end(code=0, finished_at=at.isoformat())
    watched.adopt().run()
    assert (watched.job.status, watched.job.paused_at) == (JobStatus.PAUSED, at)


def test_a_pause_that_cannot_be_told_is_withdrawn(watch: Watch) -> None:
    watched = watch()
    watched.paths.stop.mkdir()
    ask_to_pause(watched)
    assert watched.look(1) == [False]
    assert "It was not paused: stop.json cannot be written" in (watched.job.notice or "")


# A life after a pause


def resumed(watched: Watched) -> None:
    """As if it had been paused, and claimed again."""
    then = utc_now()
    store, job_id = watched.store, watched.job_id
    store.change(job_id, JobStatus.RUNNING, JobStatus.PAUSED, "Paused", paused_at=then)
    store.change(job_id, JobStatus.PAUSED, JobStatus.QUEUED, "Resume was asked for")
    store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Resumed", resumed_at=utc_now())


@pytest.mark.parametrize("end", ["cancel", "close"])
def test_a_job_is_not_started_any_more_once_its_checkpoints_are_not_waited_for(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    watched = watch()
    resumed(watched)
    supervisor = watched.launch_with(lambda spec: pytest.fail("It was launched."))

    def choose(paths: RunPaths, config: str, give_up: Callable[[], bool]) -> object:
        assert not give_up()
        _ = supervisor.cancel() if end == "cancel" else supervisor.detach()
        assert give_up()
        raise GivenUpError

    monkeypatch.setattr(launching, "choose", choose)
    supervisor.run()
    expected = JobStatus.CANCELLED if end == "cancel" else JobStatus.RUNNING
    assert watched.job.status is expected, "the next server begins what this one has not"


def test_a_paused_job_that_cannot_be_started_stays_paused_and_says_why(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch()
    resumed(watched)

    def no_room(*_: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(launching, "choose", no_room)
    watched.launch_with(lambda spec: pytest.fail("It was launched.")).run()
    job = watched.job
    assert (job.status, job.finished_at) == (JobStatus.PAUSED, None)
    assert "It was not resumed: The run folder cannot be written" in (job.notice or "")
    assert "No space left on device" in (job.notice or "")


def test_what_an_earlier_life_left_is_no_word_of_this_one(watch: Watch) -> None:
    watched = watch()
    watched.report(step=8, status="finished", can_pause=True)
    watched.end(code=0, finished_at=utc_now().isoformat())
    watched.leader.code = None
    watched.store.update_running(watched.job_id, progress={"current_step": 8}, checkpoint="step-8")
    resumed(watched)

    def launch(spec: LaunchSpec) -> FakeLeader:
        watched.leader.code = 3
        return watched.leader

    watched.launch_with(launch).run()
    job = watched.job
    assert (job.status, job.error) == (JobStatus.FAILED, "The process exited with code 3.")
    assert (job.progress, job.checkpoint) == ({}, None), "it began anew"
    failure = watched.store.failure(watched.job_id)
    assert failure is not None
    assert failure.last_step is None


# Automatic retries


def test_a_failure_queues_its_retry_in_the_same_change(watch: Watch) -> None:
    watched = watch(max_retries=3, retry_number=1, env={"A": "b"}, params={"x": 1})
    before = utc_now()
    watched.look(*range(1, 11))
    assert watched.job.failure_kind is FailureKind.TIMEOUT
    retry = watched.store.live_child(watched.job_id)
    assert retry is not None
    assert (retry.continues_id, retry.retry_number, retry.max_retries) == (watched.job_id, 2, 3)
    assert (retry.name, retry.env, retry.params) == ("a job", {"A": "b"}, {"x": 1})
    assert retry.starts_after is not None
    assert 19 < (retry.starts_after - before).total_seconds() < 60
    assert watched.store.next_queued() is None, "it waits"
    assert f"Will be retried automatically, as job {retry.id}" in watched.messages()


def test_a_job_whose_cancel_came_too_late_is_not_retried(watch: Watch) -> None:
    watched = watch(max_retries=3)
    ask = watched.leader.ask_to_stop

    def cancel_in_its_grace() -> None:
        watched.store.request(watched.job_id, RequestKind.CANCELLING, "Cancel was asked for")
        ask()

    watched.leader.ask_to_stop = cancel_in_its_grace  # type: ignore[method-assign]
    watched.look(*range(1, 11))
    assert watched.job.failure_kind is FailureKind.TIMEOUT
    assert watched.store.live_child(watched.job_id) is None


@pytest.mark.parametrize(
    ("fields", "ends"),
    [
        ({}, {"code": 1}),
        ({"max_retries": 2, "retry_number": 2}, {"code": 1}),
        ({"max_retries": 2}, {"code": 0}),
        ({"max_retries": 2}, {"code": None, "signal": 15}),
    ],
    ids=["not asked for", "tried so often", "no failure", "killed by somebody"],
)
def test_nothing_else_is_retried_by_itself(
    watch: Watch, fields: dict[str, Any], ends: dict[str, Any]
) -> None:
    watched = watch(**fields)
    watched.end(**ends)
    assert watched.look(1) == [True]
    assert watched.store.live_child(watched.job_id) is None


# Looks from outside


def test_a_look_from_outside_tells_at_once_and_the_next_tick_tells_the_clock(
    watch: Watch, stacks: list[list[int]]
) -> None:
    watched = watch()
    watched.report(step=1)
    watched.look(*range(10))
    assert watched.supervisor.live().stacks_taken
    watched.report(step=2)
    watched.supervisor.look()
    live = watched.supervisor.live()
    assert live.reading
    assert live.reading.current_step == 2
    assert (live.silent_seconds, live.seconds_left, live.stacks_taken) == (0, TIMEOUT, False)
    assert watched.look(10) == [False], "the tick finds no change, and the job lives"
    assert watched.supervisor.live() == live
    assert watched.look(*range(11, 20)) == [False] * 9
    assert watched.supervisor.live().silent_seconds == 9
    assert len(stacks) == 2, "the next stall has its own stacks"
    assert watched.look(20) == [True]


def test_a_look_from_outside_that_finds_nothing_leaves_the_clock_alone(watch: Watch) -> None:
    watched = watch()
    watched.report(step=1)
    for now in range(10):
        assert watched.look(now) == [False]
        watched.supervisor.look()
        assert watched.supervisor.live().silent_seconds == now
    assert watched.look(10) == [True]


def test_what_only_a_look_from_outside_saw_does_not_stop_the_end_of_a_job(watch: Watch) -> None:
    watched = watch()

    def report_late() -> None:
        watched.leader.code = -15
        watched.report(step=9)
        watched.supervisor.look()

    watched.leader.ask_to_stop = report_late  # type: ignore[method-assign]
    watched.report(step=1)
    assert watched.look(*range(11)) == [False] * 10 + [True]
    failure = watched.store.failure(watched.job_id)
    assert failure is not None
    assert (failure.kind, failure.seconds_without_progress) == (FailureKind.TIMEOUT, 10)
    assert failure.last_step == 9


def test_two_looks_never_read_the_file_at_the_same_moment(
    watch: Watch, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = watch()
    inside: list[int] = []
    most: list[int] = []

    def look(*, closely: bool = False) -> bool:
        inside.append(1)
        most.append(len(inside))
        threading.Event().wait(0.01)
        inside.pop()
        return False

    monkeypatch.setattr(watched.supervisor._reader, "look", look)
    threads = [threading.Thread(target=watched.supervisor.look) for _ in range(5)]
    for thread in threads:
        thread.start()
    watched.look(1)
    watched.end(code=0)
    watched.look(2)
    for thread in threads:
        thread.join()
    assert len(most) == 8, "two of them at the job's end"
    assert max(most) == 1


SECRET = "hf_" + "secret" * 60


@pytest.mark.parametrize("before", [0, 1900, 4080])
def test_no_value_of_a_variable_is_kept_of_what_a_job_said(watch: Watch, before: int) -> None:
    """Each text is cut somewhere, by the runner at 4,096 characters: what is left of a value
    there would not be found later."""
    job = watch(env={"KEY": SECRET})
    job.report(step=1, phase="_" * 190 + SECRET)
    assert job.look(1) == [False]
    job.paths.log.write_text("_" * 1990 + SECRET + "\n")
    message = ("_" * before + SECRET)[:4096]
    exception = {"type": "ValueError", "message": message, "line": f"ValueError: {message}"}
    job.end(code=1, exception=exception)
    assert job.look(2) == [True]
    failure = job.store.failure(job.job_id)
    assert failure is not None
    assert failure.kind is FailureKind.CRASHED
    kept = (failure.message, failure.log_tail, job.job.error, job.job.progress, job.messages())
    assert "hf_" not in str(kept)
    assert "*" in str(failure.log_tail)
    assert len(job.job.error or "") == min(2000, len(f"ValueError: {message}"))


def test_a_value_in_what_could_not_be_started_is_hidden(watch: Watch) -> None:
    job = watch(env={"KEY": SECRET})

    def refuse(spec: LaunchSpec) -> FakeLeader:
        raise CouldNotStartError("_" * 1990 + SECRET)

    job.launch_with(refuse).run()
    assert "hf_" not in f"{job.job.error} {job.messages()}"


def test_a_value_in_an_end_that_an_earlier_server_began_is_hidden(watch: Watch) -> None:
    job = watch(env={"KEY": SECRET})
    ending = {"status": "failed", "kind": "crashed", "error": "_" * 1995 + SECRET[:5]}
    job.store.update_running(
        job.job_id, ending={**ending, "finished_at": None, "silent_seconds": None}
    )
    job.adopt().run()
    assert job.job.error == "_" * 1995 + "*" * 5
