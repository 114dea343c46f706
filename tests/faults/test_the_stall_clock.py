"""What the stall clock survives: machines that sleep, clocks that step, files that lie."""

import os
import signal
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from backend import models
from backend import supervisor as supervisor_module
from backend.models import FailureKind, JobStatus
from backend.progress import ProgressReader
from tests.faults.conftest import Folder, Serve, Start
from tests.waiting import wait_until, wait_until_ended

SILENT_AFTER_ONE = """
    import os, signalbox, sys, time
    run = signalbox.start()
    run.log(1, loss=1)
    print("begun", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
    run.finish()
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def test_a_server_that_was_stopped_for_longer_than_the_timeout_ends_no_healthy_job(
    folder: Folder, start: Start, gate: Path
) -> None:
    """As on a suspended laptop: nobody looks, and nobody is to blame for the silence."""
    job_id = folder.queue(SILENT_AFTER_ONE, gate, timeout_seconds=4)
    server = start()
    folder.wait_for_line(job_id, "begun")
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(5)  # the passing of this time is what is tested
    os.kill(server.pid, signal.SIGCONT)
    time.sleep(0.5)  # ten looks
    assert folder.job(job_id).status is JobStatus.RUNNING
    gate.touch()
    wait_until(lambda: folder.job(job_id).status is JobStatus.COMPLETED)


def test_a_server_that_was_stopped_saves_no_stuck_job(folder: Folder, start: Start) -> None:
    job_id = folder.queue("import time; time.sleep(600)", timeout_seconds=3)
    server = start()
    wait_until(lambda: folder.processes(job_id))
    os.kill(server.pid, signal.SIGSTOP)
    time.sleep(1)
    os.kill(server.pid, signal.SIGCONT)
    wait_until(lambda: folder.job(job_id).status is JobStatus.FAILED)
    assert folder.job(job_id).failure_kind is FailureKind.TIMEOUT


@pytest.mark.parametrize("step", [timedelta(days=-1), timedelta(days=1)])
def test_a_clock_that_steps_neither_kills_nor_saves(
    folder: Folder, serve: Serve, gate: Path, monkeypatch: pytest.MonkeyPatch, step: timedelta
) -> None:
    healthy = folder.queue(SILENT_AFTER_ONE, gate, timeout_seconds=600)
    stuck = folder.queue("import time; time.sleep(600)", timeout_seconds=1.5)
    service = serve(workers=2)
    folder.wait_for_line(healthy, "begun")
    now, stepped = time.time, step.total_seconds()
    monkeypatch.setattr(time, "time", lambda: now() + stepped)
    for module in (models, supervisor_module):
        monkeypatch.setattr(module, "utc_now", lambda: datetime.now(UTC) + step)
    wait_until_ended(service, stuck)
    failure = folder.failure(stuck)
    assert failure is not None
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.seconds_without_progress is not None
    assert 1.5 <= failure.seconds_without_progress < 60
    assert service.job(healthy).status is JobStatus.RUNNING
    gate.touch()
    wait_until_ended(service, healthy)
    assert service.job(healthy).status is JobStatus.COMPLETED


def test_a_progress_file_that_never_appears_is_a_stall(folder: Folder, serve: Serve) -> None:
    job_id = folder.queue("import time; time.sleep(600)", timeout_seconds=0.6)
    service = serve()
    wait_until_ended(service, job_id)
    assert service.job(job_id).error == ("Training timed out - no progress updates for 0.6 seconds")


def test_a_file_that_is_only_touched_is_a_stall(folder: Folder, serve: Serve) -> None:
    """Touched, rewritten with the same bytes, replaced by a copy: nothing of it is news."""
    job_id = folder.queue(
        """
        import os, time
        path = os.environ["SIGNALBOX_PROGRESS"]
        while True:
            with open(path + ".new", "w") as file:
                file.write('{"step": 1}')
            os.replace(path + ".new", path)
            time.sleep(0.03)
            os.utime(path)
            time.sleep(0.03)
        """,
        timeout_seconds=1,
    )
    service = serve()
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert (job.failure_kind, job.current_step) == (FailureKind.TIMEOUT, 1)


def test_a_file_that_is_replaced_by_an_older_one_is_news_once(folder: Folder, serve: Serve) -> None:
    """The content has changed, so somebody lives; what comes after is silence like any other."""
    job_id = folder.queue(
        """
        import os, time
        path = os.environ["SIGNALBOX_PROGRESS"]
        def publish(text):
            with open(path + ".new", "w") as file:
                file.write(text)
            os.replace(path + ".new", path)
        publish('{"step": 100, "loss": 1}')
        print("newer", flush=True)
        time.sleep(0.6)
        publish('{"step": 7, "loss": 9, "updated_at": "2001-01-01T00:00:00Z"}')
        os.utime(path, (0, 0))
        print("older", flush=True)
        time.sleep(600)
        """,
        timeout_seconds=1,
    )
    service = serve()
    folder.wait_for_line(job_id, "older")
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert (job.failure_kind, job.current_step) == (FailureKind.TIMEOUT, 7)
    assert job.elapsed_seconds is not None
    assert job.elapsed_seconds > 1.5, "its last change was a sign of life"


def test_a_job_whose_last_news_is_seen_only_at_the_last_look_lives(
    folder: Folder, serve: Serve, gate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a loaded machine a change may come between two looks, just before the end."""
    job_id = folder.queue(SILENT_AFTER_ONE, gate, timeout_seconds=0.7)
    look, saved = ProgressReader.look, list[bool]()

    def blind_until_the_last(reader: ProgressReader, *, closely: bool = False) -> bool:
        if closely and not saved:
            saved.append(look(reader, closely=True))
            gate.touch()
            return saved[0]
        return bool(saved) and look(reader, closely=closely)

    monkeypatch.setattr(ProgressReader, "look", blind_until_the_last)
    service = serve()
    wait_until_ended(service, job_id)
    assert saved == [True]
    assert service.job(job_id).status is JobStatus.COMPLETED


def test_one_stall_is_one_verdict_and_one_failure(folder: Folder, serve: Serve) -> None:
    """It refuses to go for its whole grace, in which it is as silent as before."""
    job_id = folder.queue(
        """
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
        """,
        timeout_seconds=0.4,
    )
    service = serve(stall_grace_seconds=1.2)
    wait_until_ended(service, job_id)
    assert folder.states(job_id) == [JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.FAILED]
    assert len(service.failures()) == 1
    assert len(folder.cleanups(job_id)) == 1
