"""Real processes that hang, each with the sentence that its page must give."""

import errno
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from backend import hang, kernel, stacks
from backend.hang import capture
from backend.processes import STACKS_SIGNAL, LaunchSpec, LocalLeader, Mark, end_tree, launch
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the stacks are taken on Linux")

LAST = " The last progress was step 812, 10 minutes ago, in phase `evaluating`."


@dataclass
class Job:
    """A launched script."""

    leader: LocalLeader
    folder: Path

    @property
    def path(self) -> Path:
        return self.folder / "stacks.txt"

    @property
    def log(self) -> str:
        return (self.folder / "log.txt").read_text()

    @property
    def pid(self) -> int:
        """Of the training itself, the runner's first child."""
        rows = self.leader.tree(afresh=True)
        return min(row.id.pid for row in rows if row.parent == self.leader.id.pid)

    def wait_for(self, line: str) -> None:
        wait_until(lambda: f"{line}\n" in self.log, 60, lambda: f"No {line!r} in: {self.log}")

    def wait_until_stuck(self, state: str = "S") -> None:
        """Until it has said so, and does nothing since."""
        self.wait_for("stuck")
        pid, before = self.pid, ""

        def is_still() -> bool:
            nonlocal before
            now, before = _switches(pid), before
            same, before = now == before, now
            return kernel.state_of(pid) == state and (same or state == "R")

        wait_until(is_still, 30, lambda: f"Its state is {kernel.state_of(pid)}; {self.log}")

    def capture(self, patience_seconds: float = 2.0) -> str:
        """Take its stacks; return what stacks.txt holds then."""
        assert capture(
            self.leader.tree(afresh=True),
            self.path,
            self.leader.id,
            source_folders=[self.folder],
            patience_seconds=patience_seconds,
        )
        return self.path.read_text()

    def sentence(self) -> str:
        """Take its stacks; return what the page says."""
        self.capture()
        return self.said()

    def said(self) -> str:
        """What the page says, without the numbers that nobody can foresee."""
        report = stacks.read(self.path.read_text())
        assert report is not None
        said = stacks.sentence(report, last_step=812, silent_seconds=600, phase="evaluating")
        said = re.sub(r"child \d+", "child N", said)
        return re.sub(r"(127\.0\.0\.1:|/dev/pts/)\d+", r"\1N", said)


Stick = Callable[..., Job]


def _switches(pid: int) -> str:
    status = Path(f"/proc/{pid}/status").read_text()
    return "".join(re.findall(r"ctxt_switches:\s*\d+", status))


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Stick]:
    """Launches a script as train.py. What is left of it at the end is killed."""
    jobs: list[Job] = []

    def start(source: str) -> Job:
        folder = tmp_path / f"run{len(jobs)}"
        folder.mkdir()
        script = folder / "train.py"
        script.write_text(dedent(source).lstrip())
        environment = {"PATH": os.environ["PATH"], "SIGNALBOX_RUN_DIR": str(folder)}
        mark = Mark(len(jobs) + 1, str(tmp_path))
        spec = LaunchSpec(
            Path(sys.executable), (str(script),), folder, environment, folder / "log.txt", mark
        )
        jobs.append(Job(launch(spec), folder))
        return jobs[-1]

    yield start
    for job in jobs:
        ended = end_tree(job.leader, 0, threading.Event())
        assert ended is not None
        assert ended.survivors == ()


@pytest.fixture(scope="module")
def spy() -> bool:
    """Whether py-spy may read other processes here; where it may not, less is said of them."""
    return not isinstance(hang._Spy(10).threads(os.getpid()), str)


@pytest.fixture
def fake_spy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a shell script in py-spy's place."""

    def put(script: str) -> None:
        program = tmp_path / "py-spy"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        monkeypatch.setattr(hang.shutil, "which", lambda *_, **__: str(program))

    return put


STUCK = {
    "a lock": (
        """
        import threading
        lock = threading.Lock()
        def step():
            with lock:
                print("stuck", flush=True)
                lock.acquire()
        step()
        """,
        "The main thread is waiting for a lock in `lock.acquire()` (train.py, line 6, in step).",
    ),
    "a queue": (
        """
        import queue
        def next_batch(batches):
            print("stuck", flush=True)
            return batches.get()
        next_batch(queue.Queue())
        """,
        "The main thread is waiting in `queue.get` (train.py, line 4, in next_batch).",
    ),
    "a socket": (
        """
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        connection = socket.create_connection(server.getsockname())
        print("stuck", flush=True)
        connection.recv(1)
        """,
        "The main thread is waiting in `connection.recv(1)` (train.py, line 5)[, blocked in "
        "`recvfrom` on a socket to 127.0.0.1:N].",
    ),
    "a download": (
        """
        import socket, urllib.request
        server = socket.create_server(("127.0.0.1", 0))
        print("stuck", flush=True)
        urllib.request.urlopen("http://127.0.0.1:%d" % server.getsockname()[1])
        """,
        "The main thread is waiting in `urlopen` (train.py, line 4)[, blocked in `recvfrom` on a "
        "socket to 127.0.0.1:N].",
    ),
    "a full pipe": (
        """
        import subprocess
        child = subprocess.Popen(["sleep", "600"], stdin=subprocess.PIPE)
        print("stuck", flush=True)
        child.stdin.write(bytes(10**6))
        """,
        "The main thread is waiting in `child.stdin.write(bytes(10**6))` (train.py, line 4), "
        "blocked in `write` on a pipe; child N (`sleep 600`) is sleeping.",
    ),
    "a question": (
        """
        import os, pty, sys
        outer, inner = pty.openpty()
        sys.stdin = open(inner)
        print("stuck", flush=True)
        input()
        """,
        "The main thread is waiting in `input()` (train.py, line 5)[, blocked in `read` on the "
        "terminal /dev/pts/N].",
    ),
    "a sleep": (
        """
        import time
        print("stuck", flush=True)
        time.sleep(600)
        """,
        "The main thread is sleeping in `time.sleep(600)` (train.py, line 3).",
    ),
    "other threads": (
        """
        import threading, time
        def save():
            time.sleep(600)
        threading.Thread(target=save, name="saver").start()
        print("stuck", flush=True)
        """,
        "The main thread is waiting for the end of its other threads; {thread `saver`|another "
        "thread} is in `time.sleep(600)` (train.py, line 3, in save).",
    ),
    "a worker of its own": (
        """
        import multiprocessing
        def work(queue):
            queue.get()
        context = multiprocessing.get_context("fork")
        worker = context.Process(target=work, args=(context.Queue(),))
        worker.start()
        print("stuck", flush=True)
        worker.join()
        """,
        "The main thread is waiting in `Process.join` (train.py, line 8); child N (a fork) is "
        "waiting in `queue.get` (train.py, line 3, in work), blocked in `read` on a pipe.",
    ),
    "a call that keeps the GIL": (
        """
        import ctypes, os, threading
        def feed():
            threading.Event().wait()
        threading.Thread(target=feed, name="feeder", daemon=True).start()
        pipe, _ = os.pipe()
        libc, byte = ctypes.PyDLL(None), ctypes.create_string_buffer(1)
        print("stuck", flush=True)
        libc.read(pipe, byte, 1)
        """,
        "The main thread is waiting in `libc.read(pipe, byte, 1)` (train.py, line 8), blocked in "
        "`read` on a pipe{, while it holds the GIL, so no other thread can run|}; {thread "
        "`feeder`|another thread} is waiting in `Event.wait` (train.py, line 3, in feed).",
    ),
    "more threads than faulthandler shows": (
        """
        import threading, time
        for n in range(110):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        print("stuck", flush=True)
        time.sleep(600)
        """,
        "The main thread is sleeping{ in `time.sleep(600)` (train.py, line 5)|}.",
    ),
}
"""Scripts and what is said of them: in braces what py-spy adds, and what is said without it; in
brackets what the kernel says only to a debugger."""

BUSY = {
    "a loop": (
        """
        print("stuck", flush=True)
        n = 0
        while True:
            n += 1
        """,
        r"The main thread is busy in `(n \+= 1|while True:)` \(train.py, line [34]\).",
    ),
    "a call that computes with the GIL": (
        """
        print("stuck", flush=True)
        number = 3 ** 10**8
        """,
        r"The main thread is busy in `number = 3 \*\* 10\*\*8` \(train.py, line 2\).",
    ),
}


def _expected(job: Job, said: str, spy: bool) -> str:
    said = re.sub(r"{([^|}]*)\|([^}]*)}", r"\1" if spy else r"\2", said)
    try:
        Path(f"/proc/{job.pid}/syscall").read_text()
    except OSError:
        return re.sub(r"\[.*\]", "", said) + LAST
    return re.sub(r"[][]", "", said) + LAST


@pytest.mark.parametrize("name", STUCK)
def test_what_it_waits_for_is_one_sentence(start: Stick, name: str, spy: bool) -> None:
    source, said = STUCK[name]
    job = start(source)
    job.wait_until_stuck()
    assert job.sentence() == _expected(job, said, spy)
    assert job.leader.alive()
    assert kernel.state_of(job.pid) == "S"


@pytest.mark.parametrize("name", BUSY)
def test_what_it_computes_is_one_sentence(start: Stick, name: str) -> None:
    source, said = BUSY[name]
    job = start(source)
    job.wait_until_stuck("R")
    assert re.fullmatch(said + re.escape(LAST), job.sentence())


def test_a_data_worker_that_died_and_one_that_sleeps_are_told(start: Stick) -> None:
    job = start(
        """
        import os, signal, time
        from torch.utils.data import DataLoader, Dataset, _utils
        class Data(Dataset):
            def __len__(self):
                return 8
            def __getitem__(self, index):
                print(f"worker {index}", flush=True)
                if index % 2:
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(600)
        _utils.MP_STATUS_CHECK_INTERVAL = 600  # else it would soon see that one is dead
        batches = iter(DataLoader(Data(), batch_size=None, num_workers=2))
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        print("stuck", flush=True)
        next(batches)
        """
    )
    job.wait_until_stuck()
    job.wait_for("worker 0")
    job.wait_for("worker 1")

    def workers() -> str:
        children = [row.id.pid for row in job.leader.tree(afresh=True) if row.parent == job.pid]
        return "".join(map(kernel.state_of, children))

    wait_until(lambda: workers() == "S", 30, lambda: f"The states are {workers()!r}")
    assert job.sentence() == (
        "The main thread is waiting for the next batch of its DataLoader (train.py, line 15); "
        "DataLoader worker 1 is dead: it died of SIGKILL, and nobody has waited for it; "
        "DataLoader worker 0 is sleeping in `time.sleep(600)` (train.py, line 10, in __getitem__)."
        + LAST
    )


def test_a_stopped_process_is_told_and_stays_stopped(start: Stick, spy: bool) -> None:
    job = start(
        """
        import os, signal
        def step():
            print("stuck", flush=True)
            os.kill(os.getpid(), signal.SIGSTOP)
        step()
        print("went on", flush=True)
        """
    )
    job.wait_until_stuck("T")
    said = "The main thread is stopped, as by SIGSTOP or Ctrl-Z{ (train.py, line 4, in step)|}."
    assert job.sentence() == _expected(job, said, spy)
    assert kernel.state_of(job.pid) == "T"
    assert "went on" not in job.log
    os.kill(job.pid, signal.SIGCONT)
    wait_until(lambda: not job.leader.alive(), 30)
    assert "went on" in job.log
    assert job.leader.exit_code() == 0, "it died of a signal that waited for it"


SURVIVORS = """
    import os, signal, subprocess, sys, time
    number = int(os.environ["SIGNALBOX_STACKS_SIGNAL"])
    wait = "import time; print('up', flush=True); time.sleep(600)"
    unarmed = subprocess.Popen([sys.executable, "-c", wait], env={**os.environ, "RANK": "1"})
    closed = os.fork()
    if not closed:
        os.closerange(3, 100)
        for n in range(8):
            open("precious", "a")  # would have the number of stacks.txt
        files = [open("precious", "a") for n in range(8)]
        print("up", flush=True)
        time.sleep(600)
    blocked = os.fork()
    if not blocked:
        signal.pthread_sigmask(signal.SIG_BLOCK, [number])
        print("up", flush=True)
        time.sleep(600)
    reset = os.fork()
    if not reset:
        signal.signal(number, signal.SIG_DFL)
        print("up", flush=True)
        time.sleep(600)
    print("pids", unarmed.pid, closed, blocked, reset, flush=True)
    print("stuck", flush=True)
    subprocess.run(["sleep", "600"])
"""


def test_who_would_die_of_the_signal_or_misuse_it_is_never_signalled(
    start: Stick, spy: bool
) -> None:
    job = start(SURVIVORS)
    job.wait_until_stuck()
    wait_until(lambda: job.log.count("up\n") == 4, 30, lambda: job.log)
    pids = [int(pid) for pid in re.findall(r"pids (.*)", job.log)[0].split()]
    text = job.capture()
    assert [kernel.state_of(pid) for pid in pids] == ["S"] * 4
    assert (job.folder / "precious").read_text() == ""
    for pid in pids:
        pending = re.findall(r"^(?:SigPnd|ShdPnd):\s*(\w+)", _status(pid), re.MULTILINE)
        assert {int(mask, 16) for mask in pending} == {0}
    report = stacks.read(text)
    assert report is not None
    roles = {process.pid: process.role for process in report.processes}
    assert [roles[pid] for pid in pids] == ["rank 1", "fork", "fork", "fork"]
    read = {process.pid for process in report.processes if process.main_thread}
    assert read == {job.pid, *pids} if spy else {job.pid}
    assert "It is no Python process." in text


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


SLEEPER = """
    import time
    def step():
        print("stuck", flush=True)
        time.sleep(600)
    step()
"""


def test_where_py_spy_may_not_read_it_is_said_why_and_nobody_waits_long(
    start: Stick, fake_spy: Callable[[str], None]
) -> None:
    unarmed = f"import signal; signal.signal({STACKS_SIGNAL}, signal.SIG_DFL)\n"
    job = start(unarmed + dedent(SLEEPER))
    job.wait_until_stuck()
    for script, reason in (
        (
            "echo 'Error: Permission Denied: Try sudo\nmore' >&2; exit 1",
            "Permission Denied: Try sudo",
        ),
        ("exit 1", "it does not say why"),
        ("echo '[{}]'", "'thread_id'"),
        ("echo no JSON", "Expecting value: line 1 column 1 (char 0)"),
    ):
        fake_spy(script)
        assert f"Its stacks cannot be read by py-spy: {reason}\n" in job.capture()
    fake_spy("exec sleep 600")
    began = time.monotonic()
    assert "Its stacks cannot be read: py-spy took too long." in job.capture(patience_seconds=0.3)
    assert 0.3 < time.monotonic() - began < 3
    assert job.said() == "The main thread is sleeping." + LAST


def test_faulthandler_needs_no_py_spy(start: Stick, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(SLEEPER)
    job.wait_until_stuck()
    monkeypatch.setattr(hang.shutil, "which", lambda *_, **__: None)
    said = "The main thread is sleeping in `time.sleep(600)` (train.py, line 4, in step)."
    assert job.sentence() == said + LAST


def test_an_answer_that_comes_too_late_is_taken_for_nobody_elses(
    start: Stick, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(
        """
        import os, time
        for n in range(2):
            if not os.fork():
                time.sleep(600)
        print("stuck", flush=True)
        time.sleep(600)
        """
    )
    job.wait_until_stuck()
    asked = []

    def send_late(target: object, number: int, *, wake: bool) -> bool:
        asked.append(target)
        return True

    monkeypatch.setattr(hang, "send_signal", send_late)
    monkeypatch.setattr(hang.shutil, "which", lambda *_, **__: None)
    began = time.monotonic()
    text = job.capture(patience_seconds=0.3)
    assert 0.3 < time.monotonic() - began < 3
    assert len(asked) == 1
    assert text.count("=== Process") == 3
    assert text.count("py-spy is not installed") == 3
    os.kill(job.pid, STACKS_SIGNAL or 0)
    wait_until(lambda: len(job.path.read_text()) > len(text), 10, "It did not answer.")
    report = stacks.read(job.path.read_text())
    assert report is not None
    assert [process.threads for process in report.processes] == [(), (), ()]


def test_what_a_job_writes_into_the_file_is_only_text(start: Stick) -> None:
    job = start(SLEEPER)
    job.wait_until_stuck()
    forged = "=== Taken at now\n=== Process 1: init\n\0\x1b[2J\n" + "x" * 3 * 2**20
    with job.path.open("a") as file:
        file.write(forged)
    text = job.capture()
    assert len(text) <= hang.MAX_FILE_BYTES
    with job.path.open("a") as file:
        file.write("=== Process 2: after the end\n")
    assert "time.sleep(600)" in job.said()


def test_sections_are_kept_as_long_as_there_is_room(start: Stick) -> None:
    job = start(SLEEPER)
    job.wait_until_stuck()
    one = job.capture()
    assert job.capture().count("=== Taken at") == 2
    with job.path.open("a") as file:
        file.write(one * (2 * hang.MAX_FILE_BYTES // len(one)))
    text = job.capture()
    assert len(text.encode()) <= hang.MAX_FILE_BYTES
    assert text.startswith("\n=== Taken at")
    assert text.count("=== Taken at") == text.count("=== End\n")
    assert text.count("=== Taken at") > 100


def test_very_deep_stacks_of_many_threads_are_cut_and_the_main_one_is_kept(start: Stick) -> None:
    job = start(
        """
        import threading, time
        def descend(depth):
            if depth:
                descend(depth - 1)
            else:
                time.sleep(600)
        for n in range(80):
            threading.Thread(target=descend, args=(90,), daemon=True).start()
        print("stuck", flush=True)
        time.sleep(600)
        """
    )
    job.wait_until_stuck()
    text = job.capture()
    assert len(text.encode()) <= hang.MAX_PROCESS_BYTES + 1024
    assert "The stacks of its first threads are left out." in text
    report = stacks.read(text)
    assert report is not None
    assert [frame.line for frame in stacks.own_frames(report)] == [10]
    assert report.training.waits_in == "clock_nanosleep"


def test_two_who_ask_at_once_get_a_whole_section_each(start: Stick) -> None:
    job = start(SLEEPER)
    job.wait_until_stuck()
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda _: job.capture(), range(2)))
    sections = job.path.read_text().split("=== Taken at")[1:]
    assert len(sections) == 2
    for section in sections:
        assert section.count("=== Process") == section.count("Current thread") == 1
        assert section.strip().endswith("=== End")


def test_a_line_of_source_is_quoted_only_from_the_folders_given(start: Stick) -> None:
    job = start(SLEEPER)
    job.wait_until_stuck()
    rows = job.leader.tree(afresh=True)
    capture(rows, job.path, job.leader.id, source_folders=[job.folder / "elsewhere"])
    assert "source:" not in job.path.read_text()
    script = job.folder / "train.py"
    script.rename(job.folder.parent / "secret.py")
    script.symlink_to(job.folder.parent / "secret.py")
    assert "source:" not in job.capture()
    script.unlink()
    os.mkfifo(script)
    assert "source:" not in job.capture()
    assert "(train.py, line 4, in step)" in job.said()


def test_only_so_many_processes_are_shown(start: Stick, monkeypatch: pytest.MonkeyPatch) -> None:
    job = start(SLEEPER.replace("import time", "import os, time; os.fork() and os.fork()"))
    job.wait_until_stuck()
    monkeypatch.setattr(hang, "MAX_PROCESSES", 1)
    text = job.capture()
    assert text.count("=== Process") == 1
    assert re.search(r"And \d more processes\.", text)


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a link", "no run folder"])
def test_what_is_no_file_is_not_written_into(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "stacks.txt"
    target = tmp_path / "target"
    target.write_text("mine")
    if kind == "a folder":
        path.mkdir()
    elif kind == "a FIFO":
        os.mkfifo(path)
    elif kind == "a link":
        path.symlink_to(target)
    else:
        path = tmp_path / "gone" / "stacks.txt"
    assert not capture([], path, hang.ProcessId(os.getpid(), ""))
    assert target.read_text() == "mine"


def test_on_a_full_disk_the_file_stays_as_it_was(
    start: Stick, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = start(SLEEPER)
    job.wait_until_stuck()
    before = job.capture()
    write = os.write

    def write_half(descriptor: int, content: bytes) -> int:
        if len(content) < 200:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, content[: len(content) // 2])

    monkeypatch.setattr(hang.os, "write", write_half)
    assert not capture(job.leader.tree(afresh=True), job.path, job.leader.id)
    assert job.path.read_text() == before
