"""Trees of processes that do not want to end, on every end of a job."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import processes
from backend.models import FailureKind, JobStatus
from backend.processes import ProcessId, read_table, send_kill
from tests.faults.conftest import Folder, Serve
from tests.waiting import lives, wait_until, wait_until_ended

HEAD = """
import os, signal, subprocess, sys, time
def tell():
    os.write(1, f"pid {os.getpid()}\\n".encode())
def child(then):
    if os.fork() == 0:
        then()
        time.sleep(600)
        os._exit(0)
"""
TREES = {
    "ranks in sessions of their own": """
def rank():
    os.setsid()
    child(tell)
    tell()
for _ in range(2):
    child(rank)
count = 5
""",
    "a daemon, double-forked": """
def middle():
    os.setsid()
    child(tell)
    os._exit(0)
child(middle)
os.wait()
count = 2
""",
    "a daemon with a cleaned environment": """
def middle():
    os.setsid()
    if os.fork() == 0:
        code = "import os, time; print('pid', os.getpid(), flush=True); time.sleep(600)"
        os.execve(sys.executable, [sys.executable, "-c", code], {})
    os._exit(0)
child(middle)
os.wait()
count = 2
""",
    "some that ignore SIGTERM": """
def stubborn():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    tell()
for _ in range(3):
    child(stubborn)
count = 4
""",
    "one that forks while it is being killed": """
def hydra():
    def grow(*_):
        for _ in range(2):
            if os.fork() == 0:
                return
        os._exit(0)
    signal.signal(signal.SIGTERM, grow)
    tell()
    while True:
        time.sleep(600)
child(hydra)
count = 2
""",
    "one that is stopped": """
def stopped():
    tell()
    os.kill(os.getpid(), signal.SIGSTOP)
child(stopped)
count = 2
""",
}
TAIL = """
tell()
while open(sys.argv[1]).read().count("pid ") < count:
    time.sleep(0.01)
if sys.argv[2] == "itself":
    sys.exit(3)
print("ready", flush=True)
time.sleep(600)
"""


def pids_of(text: str) -> list[int]:
    return [int(pid) for pid in re.findall(r"pid (\d+)", text)]


@pytest.mark.parametrize("end", ["cancel", "timeout", "itself"])
@pytest.mark.parametrize("tree", list(TREES))
def test_no_process_survives_the_end(folder: Folder, serve: Serve, tree: str, end: str) -> None:
    job_id = folder.queue(
        HEAD + TREES[tree] + TAIL,
        folder.run(1).log,
        end,
        timeout_seconds=2 if end == "timeout" else 600,
    )
    service = serve(cancel_grace_seconds=0.5, stall_grace_seconds=0.5)
    if end != "itself":
        folder.wait_for_line(job_id, "ready")
    if end == "cancel":
        service.cancel(job_id)
    wait_until_ended(service, job_id)
    pids = pids_of(folder.run(job_id).log.read_text())
    assert len(pids) >= 2
    assert [pid for pid in pids if lives(pid)] == []
    assert folder.processes(job_id) == []
    job = service.job(job_id)
    assert (job.status, job.failure_kind) == {
        "cancel": (JobStatus.CANCELLED, None),
        "timeout": (JobStatus.FAILED, FailureKind.TIMEOUT),
        "itself": (JobStatus.FAILED, FailureKind.CRASHED),
    }[end]


def test_the_workers_of_a_data_loader_end_with_their_training(folder: Folder, serve: Serve) -> None:
    job_id = folder.queue(
        """
        import os, time, torch
        class Slow(torch.utils.data.Dataset):
            def __len__(self):
                return 10**6
            def __getitem__(self, index):
                if index < 2:
                    os.write(1, f"pid {os.getpid()}\\n".encode())
                time.sleep(0.01)
                return index
        loader = torch.utils.data.DataLoader(Slow(), num_workers=2, batch_size=1)
        for batch in loader:
            pass
        """
    )
    service = serve()
    wait_until(lambda: len(pids_of(service.log_tail(job_id))) == 2, 60)
    workers = pids_of(service.log_tail(job_id))
    assert all(map(lives, workers))
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert not any(map(lives, workers))
    assert folder.processes(job_id) == []


REAL_WORK = """
import os, signal, subprocess, sys, time
if len(sys.argv) == 2:
    work = subprocess.Popen([sys.executable, __file__, sys.argv[1], "work"])
    while not os.path.exists("ready"):
        time.sleep(0.01)
    print("ready", flush=True)
    if sys.argv[1] == "cancel":
        work.wait()   # and dies of SIGTERM at once, as a shell does
    sys.exit(0)
def save(*_):
    time.sleep(0.7)
    open("saved", "w").close()
    sys.exit(0)
signal.signal(signal.SIGTERM, save)
open("ready", "w").close()
time.sleep(600)
"""


@pytest.mark.parametrize("end", ["cancel", "itself"])
def test_work_that_saves_outlives_its_wrapper_within_the_grace(
    folder: Folder, serve: Serve, end: str
) -> None:
    job_id = folder.queue(REAL_WORK, end)
    service = serve(cancel_grace_seconds=30)
    folder.wait_for_line(job_id, "ready")
    if end == "cancel":
        service.cancel(job_id)
    leader = ProcessId(service.job(job_id).pid or 0, "")
    wait_until(lambda: not lives(leader.pid))
    assert service.job(job_id).status is JobStatus.RUNNING, "The work is not over."
    wait_until_ended(service, job_id)
    assert (folder.settings.data / "saved").exists()
    assert folder.processes(job_id) == []
    wanted = JobStatus.CANCELLED if end == "cancel" else JobStatus.COMPLETED
    assert service.job(job_id).status is wanted


def test_neighbours_and_strangers_are_left_alone(folder: Folder, serve: Serve) -> None:
    """Of three jobs and a process of nobody's that looks like one of theirs, one job is ended."""
    sleeps = "import time; print('ready', flush=True); time.sleep(600)"
    ids = [folder.queue(sleeps) for _ in range(3)]
    service = serve(workers=3)
    for job_id in ids:
        folder.wait_for_line(job_id, "ready")
    before = {job_id: folder.processes(job_id) for job_id in ids}
    service.cancel(ids[1])
    wait_until_ended(service, ids[1])
    assert {job_id: folder.processes(job_id) for job_id in ids} == {**before, ids[1]: []}


def _out_of_reach(pid: int) -> Callable[[ProcessId, int, bool], bool]:
    """Signals, as the kernel sends them where a process belongs to somebody else."""
    send = processes._send

    def refuse(target: ProcessId, number: int, wake: bool) -> bool:
        if target.pid == pid:
            raise PermissionError(1, "Operation not permitted")
        return send(target, number, wake)

    return refuse


def test_what_survives_sigkill_is_named_and_blocks_nobody_else(
    folder: Folder, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes.end_tree, "__kwdefaults__", {
        **processes.end_tree.__kwdefaults__, "patience_seconds": 0.3,
    })  # fmt: skip
    monkeypatch.setattr("backend.pool.HOUSEKEEPING_SECONDS", 0.1)
    script = HEAD + TREES["ranks in sessions of their own"] + TAIL
    job_id = folder.queue(script, folder.run(1).log, "stays")
    service = serve(cancel_grace_seconds=0.2)
    folder.wait_for_line(job_id, "ready")
    pids = pids_of(service.log_tail(job_id))
    # One of the ranks: what the script is asked, the runner passes on to it.
    survivor = next(pid for pid in pids if os.getsid(pid) == pid)
    row = read_table()[survivor].id
    monkeypatch.setattr(processes, "_send", _out_of_reach(survivor))
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert [pid for pid in pids if lives(pid)] == [survivor]
    messages = [event.message for event in service.timeline(job_id)]
    assert f"Could not be ended, not even by SIGKILL: pid {survivor}" in messages
    (cleanup,) = service.cleanups(job_id)
    assert cleanup.released is False
    assert cleanup.after_bytes
    other = folder.queue("print('other')")
    wait_until_ended(service, other)
    assert service.job(other).status is JobStatus.COMPLETED
    monkeypatch.undo()
    send_kill(row)
    wait_until(lambda: not lives(survivor))


def test_a_tree_of_two_hundred_is_gone_soon_after_its_grace(folder: Folder, serve: Serve) -> None:
    """The goal is a second; the bench measures it. The bound here is for a busy machine."""
    grace = 0.5
    job_id = folder.queue(
        """
        import os, signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        for _ in range(199):
            if os.fork() == 0:
                break
        else:
            print("ready", flush=True)
        time.sleep(600)
        """
    )
    service = serve(cancel_grace_seconds=grace)
    folder.wait_for_line(job_id, "ready")
    wait_until(lambda: len(folder.processes(job_id)) == 201)  # the runner is one more
    begin = time.monotonic()
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert folder.processes(job_id) == []
    assert time.monotonic() - begin < grace + 10


def test_a_signal_reaches_only_whom_it_is_meant_for(tmp_path: Path) -> None:
    """A pid that was used again, and those that nobody may signal."""
    me = read_table()[os.getppid()].id
    recycled = ProcessId(me.pid, f"{me.started}0")
    for target in (recycled, *(ProcessId(pid, me.started) for pid in (0, 1, -1, os.getpid()))):
        assert not processes.send_signal(target, signal.SIGKILL)
    assert lives(me.pid)
