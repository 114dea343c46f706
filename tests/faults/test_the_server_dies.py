"""What a job, its verdict and its queue survive when the server dies."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
import pytest

from backend import supervisor as supervisor_module
from backend.models import FailureKind, JobStatus, RequestKind
from backend.processes import Mark
from tests.conftest import PROJECT
from tests.faults.conftest import Folder, Serve, Start
from tests.server import Server
from tests.waiting import lives, wait_until, wait_until_ended

WAITS = """
    import os, sys, time
    print("begun", flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
    print("over", flush=True)
"""
REFUSES = """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("begun", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def gate(tmp_path: Path) -> Path:
    return tmp_path / "gate"


def test_fifty_servers_killed_at_random_moments() -> None:
    """The long form: `python -m tests.faults.rounds 500`."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.rounds", "50"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"(\d+) of them left jobs running\. (\d+) jobs", done.stdout)
    assert found, done.stdout
    assert min(map(int, found.groups())) > 10, done.stdout


def test_jobs_outlive_a_closed_terminal(folder: Folder, serve: Serve, gate: Path) -> None:
    """The terminal that the real server was typed into goes away: SIGHUP to all that is in it."""
    job_id = folder.queue(WAITS, gate)
    ours, theirs = pty.openpty()
    server = Server(folder.settings.data)
    child = subprocess.Popen(
        [*(sys.executable, "-c", "import fcntl, os, signal, sys, termios;"
           "signal.signal(signal.SIGHUP, signal.SIG_DFL);"  # nohup may have run the tests
           "fcntl.ioctl(0, termios.TIOCSCTTY); os.execv(sys.executable, sys.argv[1:])"),
         *(sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", str(server.port))],
        cwd=PROJECT, env=dict(server._environment()), start_new_session=True,
        stdin=theirs, stdout=theirs, stderr=theirs,
    )  # fmt: skip
    os.close(theirs)
    folder.wait_for_line(job_id, "begun")
    os.close(ours)
    child.wait(30)
    (pid, *_) = folder.processes(job_id)
    assert lives(pid)
    service = serve()
    gate.touch()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED
    assert "over" in service.log_tail(job_id)


def test_a_job_holds_nothing_of_its_server(folder: Folder, start: Start, gate: Path) -> None:
    """A session of its own, output straight into its log, and no pipe, socket or other file."""
    job_id = folder.queue(WAITS, gate)
    server = start()
    folder.wait_for_line(job_id, "begun")
    for pid in folder.processes(job_id):
        open_files = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir()]
        own = folder.run(job_id).folder
        strange = [f for f in open_files if f != Path("/dev/null") and not f.is_relative_to(own)]
        assert strange == []
        assert os.getsid(pid) == folder.job(job_id).pid != os.getsid(server.pid)


def test_a_timeout_is_one_though_the_server_is_killed_in_its_grace(
    folder: Folder, start: Start, serve: Serve
) -> None:
    job_id = folder.queue(REFUSES, timeout_seconds=0.5)
    server = start(stall_grace_seconds=60)
    wait_until(lambda: folder.job(job_id).ending)
    server.kill()
    assert folder.processes(job_id)
    wait_until_ended(serve(), job_id)
    failure = folder.failure(job_id)
    assert failure is not None
    assert failure.kind is FailureKind.TIMEOUT
    assert failure.message == "Training timed out - no progress updates for 0.5 seconds"
    assert failure.seconds_without_progress is not None
    assert 0.5 <= failure.seconds_without_progress < 60
    assert "REFUSES" not in failure.stacks
    assert "time.sleep" in failure.stacks or "script" in failure.stacks
    assert len(folder.cleanups(job_id)) == 1
    assert folder.states(job_id)[1:] == [JobStatus.RUNNING, JobStatus.FAILED]
    assert folder.processes(job_id) == []


def test_a_cancel_is_carried_through_though_the_server_is_killed_in_its_grace(
    folder: Folder, start: Start, serve: Serve
) -> None:
    job_id = folder.queue(REFUSES)
    server = start(cancel_grace_seconds=60)
    folder.wait_for_line(job_id, "begun")
    server.tell(f"cancel {job_id}")
    wait_until(lambda: folder.job(job_id).requested is RequestKind.CANCELLING)
    server.kill()
    assert folder.processes(job_id)
    service = serve(cancel_grace_seconds=0.2)
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.CANCELLED
    assert folder.failure(job_id) is None
    assert folder.processes(job_id) == []
    (cleanup,) = folder.cleanups(job_id)
    assert cleanup.before_bytes is not None, "It lived when it was found, and could be measured."


def test_the_queue_keeps_its_order_and_waits_for_what_runs(
    folder: Folder, start: Start, serve: Serve, gate: Path
) -> None:
    ids = [folder.queue(WAITS, gate) for _ in range(4)]
    server = start(workers=1)
    folder.wait_for_line(ids[0], "begun")
    server.kill()
    service = serve(workers=1)
    assert [service.job(i).queue_position for i in ids] == [None, 1, 2, 3]
    assert service.job(ids[0]).pid in folder.processes(ids[0])
    gate.touch()
    wait_until_ended(service, *ids)
    starts = [folder.job(i).started_at for i in ids]
    assert starts == sorted(starts, key=lambda at: at.timestamp() if at else 0)
    assert {service.job(i).status for i in ids} == {JobStatus.COMPLETED}


@pytest.mark.parametrize(
    ("then", "status", "error"),
    [
        ("", JobStatus.COMPLETED, None),
        ("raise ValueError('late')", JobStatus.FAILED, "ValueError: late"),
        ("os.kill(os.getpid(), 9)", JobStatus.FAILED, "The process was killed by SIGKILL."),
    ],
)
def test_what_ended_while_no_server_lived_has_its_true_verdict_and_time(
    folder: Folder, start: Start, serve: Serve, gate: Path, then: str, status: JobStatus, error: Any
) -> None:
    job_id = folder.queue(WAITS + f"    {then}\n", gate)
    server = start()
    folder.wait_for_line(job_id, "begun")
    server.kill()
    gate.touch()
    wait_until(folder.run(job_id).exit.exists)
    wait_until(lambda: not folder.processes(job_id))
    service = serve()
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert (job.status, job.error) == (status, error)
    said = json.loads(folder.run(job_id).exit.read_text())["finished_at"]
    assert job.finished_at == datetime.fromisoformat(said)
    (cleanup,) = service.cleanups(job_id)
    assert (cleanup.before_bytes, cleanup.after_bytes) == (None, 0), "nothing is made up"


def test_what_vanished_without_a_word_is_lost(folder: Folder, start: Start, serve: Serve) -> None:
    """Server and job are killed with all that they are, as the machine's memory killer may do."""
    job_id = folder.queue(REFUSES)
    server = start()
    folder.wait_for_line(job_id, "begun")
    wait_until(lambda: folder.job(job_id).pid)
    server.kill()
    for pid in folder.processes(job_id):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not folder.processes(job_id))
    folder.run(job_id).exit.unlink(missing_ok=True)
    service = serve()
    wait_until_ended(service, job_id)
    job = service.job(job_id)
    assert job.failure_kind is FailureKind.LOST
    assert job.error == "The process is gone and left no word of how it ended."
    failure = folder.failure(job_id)
    assert failure is not None
    assert failure.seconds_without_progress is None, "nobody was there to count"
    assert "begun" in failure.log_tail


def test_what_a_restart_of_the_machine_ended_is_lost_and_says_so(
    folder: Folder, serve: Serve
) -> None:
    job_id = folder.queue("print('hello')")
    with folder.store() as store:
        before: dict[str, Any] = {"pid": os.getppid(), "process_start": "another-boot:77"}
        store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", **before)
    wait_until_ended(serve(), job_id)
    job = folder.job(job_id)
    assert (job.failure_kind, job.error) == (FailureKind.LOST, supervisor_module.RESTARTED)
    assert lives(os.getppid()), "a stranger who has the pid now"


def test_what_was_claimed_but_not_begun_is_begun(folder: Folder, serve: Serve) -> None:
    """The server died between taking the job from the queue and starting its process."""
    job_id = folder.queue("print('once', flush=True)")
    with folder.store() as store:
        store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started")
    wait_until_ended(serve(), job_id)
    assert folder.job(job_id).status is JobStatus.COMPLETED
    assert folder.run(job_id).log.read_text() == "once\n"


def test_what_was_claimed_and_asked_to_end_is_not_begun(folder: Folder, serve: Serve) -> None:
    job_id = folder.queue("print('never')")
    with folder.store() as store:
        store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started")
        store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
    wait_until_ended(serve(), job_id)
    assert folder.job(job_id).status is JobStatus.CANCELLED
    assert not folder.run(job_id).log.exists()


def test_what_had_begun_is_not_begun_twice(folder: Folder, start: Start, serve: Serve) -> None:
    """The server died before it had written down whom it had started, and that one died too."""
    job_id = folder.queue(REFUSES)
    server = start()
    folder.wait_for_line(job_id, "begun")
    server.kill()
    for pid in folder.processes(job_id):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not folder.processes(job_id))
    folder.run(job_id).exit.unlink(missing_ok=True)
    with folder.store() as store:
        store.update_running(job_id, pid=None, process_start=None)
    wait_until_ended(serve(), job_id)
    assert folder.job(job_id).failure_kind is FailureKind.LOST
    assert folder.run(job_id).log.read_text().count("begun") == 1


def test_a_process_that_outlived_its_jobs_verdict_is_ended_at_the_next_start(
    folder: Folder, serve: Serve
) -> None:
    job_id = folder.queue("print('hello')")
    first = serve()
    wait_until_ended(first, job_id)
    first.close()
    environment = {**os.environ, **Mark(job_id, folder.nonce).variables()}
    left = subprocess.Popen(["/bin/sleep", "600"], env=environment)
    serve()
    assert left.wait(30) == -signal.SIGKILL
    messages = [event.message for event in folder.timeline(job_id)]
    assert f"Found alive after the job's end, and killed: {left.pid}" in messages
    assert folder.job(job_id).status is JobStatus.COMPLETED


def test_a_job_that_was_let_go_is_no_ghost(
    folder: Folder,
    serve: Serve,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its supervisor died of a bug; by the time it is looked for, the job has ended."""
    monkeypatch.setattr("backend.pool.HOUSEKEEPING_SECONDS", 0.2)
    tick = supervisor_module.Supervisor.tick
    failed: list[int] = []

    def fails_once(supervisor: supervisor_module.Supervisor, now: float) -> bool:
        if not failed:
            failed.append(supervisor.job_id)
            gate.touch()
            wait_until(lambda: folder.run(supervisor.job_id).exit.exists())
            raise RuntimeError("a bug")
        return tick(supervisor, now)

    monkeypatch.setattr(supervisor_module.Supervisor, "tick", fails_once)
    job_id = folder.queue(WAITS, gate)
    service = serve()
    wait_until_ended(service, job_id)
    assert service.job(job_id).status is JobStatus.COMPLETED
    assert f"The supervisor of job {job_id} failed" in caplog.text
    pid = folder.job(job_id).pid
    assert pid is not None
    assert not psutil.pid_exists(pid), "It was waited for, and is no zombie."


def test_a_copy_of_the_data_folder_lays_hands_on_nobodys_jobs(
    folder: Folder, start: Start, serve: Serve, gate: Path
) -> None:
    """One server goes on with its jobs; another is started on a copy of its folder."""
    job_id = folder.queue(WAITS, gate)
    start()
    folder.wait_for_line(job_id, "begun")
    wait_until(lambda: folder.job(job_id).pid)
    before = folder.processes(job_id)
    copy = folder.settings.data.with_name("copy")
    shutil.copytree(folder.settings.data, copy)
    other = serve(data=copy)
    wait_until_ended(other, job_id)
    lost = other.job(job_id)
    assert lost.failure_kind is FailureKind.LOST
    assert lost.error == supervisor_module.ELSEWHERE
    assert folder.processes(job_id) == before
    gate.touch()
    wait_until(lambda: folder.job(job_id).status is JobStatus.COMPLETED)
