"""The runner, with real processes: what a script sees, and what exit.json says of its end."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from backend import processes
from backend.diagnosis import read_exit
from backend.training import runner
from tests.waiting import wait_until

STACKS_SIGNAL = signal.SIGUSR2


class Job:
    """A script under the runner."""

    def __init__(self, run_dir: Path, arguments: list[str], cwd: Path) -> None:
        self.run_dir = run_dir
        environment = {
            **os.environ,
            "SIGNALBOX_RUN_DIR": str(run_dir),
            "SIGNALBOX_STACKS_SIGNAL": str(int(STACKS_SIGNAL)),
            "PYTHONUNBUFFERED": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, runner.__file__, *arguments],
            cwd=cwd,
            env=environment,
            start_new_session=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def end(self, seconds: float = 30) -> tuple[str, str]:
        out, err = self.process.communicate(timeout=seconds)
        return out, err

    @property
    def ending(self) -> dict[str, Any]:
        ending: dict[str, Any] = json.loads((self.run_dir / "exit.json").read_text())
        return ending


Start = Callable[..., Job]
Launch = Callable[..., Job]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path


@pytest.fixture
def start(folder: Path) -> Iterator[Start]:
    """Starts the runner with these arguments."""
    jobs: list[Job] = []

    def start(*arguments: str, cwd: Path = folder, run_dir: Path = folder / "run") -> Job:
        jobs.append(Job(run_dir, list(arguments), cwd))
        return jobs[-1]

    yield start
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGKILL)
        if job.process.stdin and not job.process.stdin.closed:
            job.process.communicate()


@pytest.fixture
def launch(folder: Path, start: Start) -> Launch:
    """Writes a script, and starts it under the runner."""

    def launch(source: str, *args: str) -> Job:
        (folder / "train.py").write_text(dedent(source), encoding="utf-8")
        return start(str(folder / "train.py"), *args)

    return launch


def bare(script: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *args], capture_output=True, text=True, check=False
    )


def test_a_good_end_is_recorded(launch: Launch) -> None:
    job = launch("print('hello')")
    assert job.end() == ("hello\n", "")
    assert job.process.returncode == 0
    assert job.ending["code"] == 0
    assert job.ending["signal"] is None
    assert job.ending["exception"] is None
    assert job.ending["started_at"] <= job.ending["finished_at"]
    assert job.ending["finished_at"].endswith("Z")
    assert sorted(p.name for p in job.run_dir.iterdir()) == ["exit.json", "stacks.txt"]


@pytest.mark.parametrize(
    "source",
    [
        "def f():\n    raise ValueError('boom')\nf()",
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise RuntimeError('två') from e",
        "x = (",
        "import sys\nsys.exit(3)",
        "import sys\nsys.exit('no data')",
        "import sys\nsys.exit(None)",
        "import sys\nsys.excepthook = lambda *a: print(a[1], a[2].tb_lineno, a[2].tb_next)\n"
        "raise ValueError('x')",
        "import atexit\natexit.register(print, 'bye')\nraise KeyError('k')",
        "import sys\nprint(sys.argv, sys.path[0], __file__, __name__, __spec__, __package__)",
        "import inspect\ndef f(): pass\nprint(inspect.getsource(f), __loader__.get_filename())",
        "import threading, time\nlate = lambda: (time.sleep(0.2), print(1))\n"
        "threading.Thread(target=late).start()",
        "raise KeyboardInterrupt",
    ],
)
def test_a_script_behaves_as_under_plain_python(launch: Launch, folder: Path, source: str) -> None:
    job = launch(source, "a b", "é", "")
    out, err = job.end()
    plain = bare(folder / "train.py", "a b", "é", "")
    assert (out, err, job.process.returncode) == (plain.stdout, plain.stderr, plain.returncode)


def test_the_exception_is_recorded(launch: Launch) -> None:
    job = launch("def f():\n    raise ValueError('boom\\nmore')\nf()")
    _, err = job.end()
    exception = job.ending["exception"]
    assert exception["type"] == "ValueError"
    assert exception["message"] == "boom\nmore"
    assert exception["line"] == "ValueError: boom"
    assert exception["traceback"] == err
    assert "runner.py" not in err


def test_the_type_of_an_exception_is_qualified(launch: Launch) -> None:
    job = launch("import json\njson.loads('{')")
    job.end()
    assert job.ending["exception"]["type"] == "json.decoder.JSONDecodeError"
    assert job.ending["exception"]["line"].startswith("json.decoder.JSONDecodeError: Expecting")


def test_a_huge_exception_is_bounded_and_blocks_nothing(launch: Launch) -> None:
    job = launch("raise ValueError('é' * 10_000_000 + 'end')")
    job.end()
    exception = job.ending["exception"]
    assert len(exception["traceback"].encode()) <= runner.MAX_TRACEBACK_BYTES
    assert exception["traceback"].endswith("end\n")
    assert len(exception["message"]) == runner.MAX_MESSAGE_CHARACTERS


def test_any_text_of_an_exception_is_recorded(launch: Launch) -> None:
    job = launch("raise ValueError('\\0 \\x1b \\ud800 é \U0001f600 \\\\ud800')")
    job.end()
    assert job.ending["exception"]["message"] == "\0 \x1b \ud800 é \U0001f600 \\ud800"


def test_an_exception_that_cannot_be_printed_is_recorded(launch: Launch) -> None:
    job = launch("class E(Exception):\n    def __str__(self): return 1 / 0\nraise E")
    job.end()
    assert job.process.returncode == 1
    assert job.ending["exception"]["type"] == "E"


def test_the_sentence_of_sys_exit_is_the_error(launch: Launch) -> None:
    job = launch("import sys\nsys.exit('no data')")
    job.end()
    assert job.ending["code"] == 1
    assert job.ending["exception"]["line"] == "no data"


def test_a_missing_script_is_said_in_pythons_words(start: Start, folder: Path) -> None:
    job = start(str(folder / "none.py"))
    _, err = job.end()
    plain = bare(folder / "none.py")
    assert err.split(": ", 1)[1] == plain.stderr.split(": ", 1)[1]
    assert job.process.returncode == plain.returncode == 2
    assert job.ending["exception"]["type"] == "FileNotFoundError"


def test_a_missing_module_is_said_in_pythons_words(start: Start) -> None:
    job = start("-m", "no_such_module")
    _, err = job.end()
    assert err == f"{sys.executable}: No module named no_such_module\n"
    assert job.ending["code"] == 1
    assert "no_such_module" in job.ending["exception"]["line"]


def test_a_module_runs_as_with_dash_m(start: Start, folder: Path) -> None:
    (folder / "pkg").mkdir()
    (folder / "pkg" / "__init__.py").touch()
    (folder / "pkg" / "job.py").write_text(
        "import sys, pickle\n"
        "class C: pass\n"
        "pickle.dumps(C())\n"
        "print(sys.argv, sys.path[0], __file__, __name__, __spec__.name, __package__)\n"
        "raise ValueError('boom')\n"
    )
    job = start("-m", "pkg.job", "x")
    out, err = job.end()
    plain = subprocess.run(
        [sys.executable, "-m", "pkg.job", "x"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (out, err) == (plain.stdout, plain.stderr)
    assert job.ending["exception"]["line"] == "ValueError: boom"


def test_the_death_of_the_child_is_recorded_and_shared(launch: Launch) -> None:
    job = launch("import os\nos.kill(os.getpid(), 9)")
    job.end()
    assert job.process.returncode == -signal.SIGKILL
    assert (job.ending["code"], job.ending["signal"]) == (None, signal.SIGKILL)


def test_a_crash_prints_the_python_stack(launch: Launch) -> None:
    job = launch("import os\ndef here(): os.abort()\nhere()")
    _, err = job.end()
    assert job.process.returncode == -signal.SIGABRT
    assert "in here" in err
    assert job.ending["signal"] == signal.SIGABRT


def test_a_script_that_does_not_cooperate_dies_of_sigterm(launch: Launch) -> None:
    job = launch("import time\nprint('up')\ntime.sleep(60)")
    assert job.line() == "up"
    job.process.terminate()
    job.end()
    assert job.process.returncode == -signal.SIGTERM
    assert job.ending["signal"] == signal.SIGTERM


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_reaches_the_script(launch: Launch, number: signal.Signals) -> None:
    job = launch(
        f"""
        import signal, sys, time
        signal.signal({int(number)}, lambda *_: sys.exit(7))
        print("up")
        time.sleep(60)
        """
    )
    assert job.line() == "up"
    job.process.send_signal(number)
    job.end()
    assert job.ending["code"] == job.process.returncode == 7


def test_no_signal_is_lost_at_the_start(launch: Launch) -> None:
    for _ in range(10):
        job = launch("import time\ntime.sleep(60)")
        wait_until(
            lambda job=job: (job.run_dir / "stacks.txt").exists(),  # type: ignore[misc]
            10,
            "The child was not armed.",
        )
        job.process.terminate()
        job.end(seconds=10)
        assert job.process.returncode == -signal.SIGTERM
        (job.run_dir / "stacks.txt").unlink()


def test_classes_of_main_survive_pickling_and_spawn(launch: Launch) -> None:
    job = launch(
        """
        import multiprocessing, pickle, threading

        class Weight:
            def __init__(self, value): self.value = value

        def double(weight): return Weight(weight.value * 2)

        if __name__ == "__main__":
            assert pickle.loads(pickle.dumps(Weight(1))).value == 1
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.apply(double, (Weight(21),)).value)
        """
    )
    out, err = job.end()
    assert (out, err) == ("42\n", "")


def test_a_fork_that_raises_does_not_speak_for_the_job(launch: Launch) -> None:
    job = launch(
        """
        import os
        if os.fork() == 0:
            raise ValueError("of the fork")
        os.wait()
        """
    )
    job.end()
    assert job.ending["exception"] is None
    assert sorted(p.name for p in job.run_dir.iterdir()) == ["exit.json", "stacks.txt"]


def test_a_grandchild_that_lives_on_does_not_delay_the_end(launch: Launch) -> None:
    job = launch(
        """
        import subprocess, sys
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                                 close_fds=False, stdin=subprocess.DEVNULL)
        print(child.pid)
        raise ValueError("boom")
        """
    )
    grandchild = int(job.line())
    try:
        assert job.process.wait(timeout=10) == 1
        assert job.ending["exception"]["line"] == "ValueError: boom"
    finally:
        os.kill(grandchild, signal.SIGKILL)


DAEMON = """
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        code = "import os, time; print(os.getpid(), flush=True); {then}"
        os.execve(sys.executable, [sys.executable, "-c", code], {{}})  # no variable of the job's
    os._exit(0)
os.wait()
"""


def _parent(pid: int) -> int:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[1])


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")
def test_a_daemon_stays_in_the_tree_and_is_recorded_at_the_end(launch: Launch) -> None:
    job = launch(DAEMON.format(then="time.sleep(60)") + "input()\nraise ValueError('boom')")
    daemon = int(job.line())
    try:
        wait_until(lambda: _parent(daemon) == job.process.pid, 10, "It has another parent.")
        start_ticks = processes.read_table()[daemon].id.started
        assert job.process.stdin is not None
        job.process.stdin.write("\n")
        job.process.stdin.flush()
        assert job.process.wait(timeout=10) == 1
        assert job.ending["exception"]["line"] == "ValueError: boom"
        assert [[pid, f"{job.ending['boot']}:{ticks}"] for pid, ticks in job.ending["left"]] == [
            [daemon, start_ticks]
        ]
        record = read_exit(job.run_dir / "exit.json")
        assert record
        assert record.left == ((daemon, start_ticks),)
    finally:
        os.kill(daemon, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has child subreapers")
def test_orphans_that_end_are_reaped_and_end_nothing(launch: Launch) -> None:
    job = launch(DAEMON.format(then="pass") * 3 + "input()\n")
    orphans = [int(job.line()) for _ in range(3)]
    wait_until(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans),
        10,
        "There are zombies.",
    )
    assert job.process.poll() is None
    job.process.terminate()
    job.end()
    assert job.process.returncode == -signal.SIGTERM
    assert "left" not in job.ending


def test_the_stacks_of_all_threads_are_written_on_request(launch: Launch) -> None:
    job = launch(
        """
        import threading
        def stuck(): threading.Lock().acquire() and lock.acquire()
        def beside(): threading.Event().wait()
        lock = threading.Lock()
        lock.acquire()
        threading.Thread(target=beside, daemon=True).start()
        print("up")
        stuck()
        """
    )
    assert job.line() == "up"
    stacks = job.run_dir / "stacks.txt"
    job.process.send_signal(STACKS_SIGNAL)  # the runner passes it on, and neither dies of it
    wait_until(stacks.read_text, 10, "One signal did not bring one dump.")

    def both_are_seen() -> bool:
        job.process.send_signal(STACKS_SIGNAL)  # the threads may only be on their way there
        text = stacks.read_text()
        return "in stuck" in text and "in beside" in text

    wait_until(both_are_seen, 10, "The stacks do not show both threads.")
    assert job.process.poll() is None


def test_the_stacks_are_written_while_the_gil_is_held(launch: Launch) -> None:
    job = launch(
        """
        import ctypes
        def held(): ctypes.PyDLL(None).sleep(60)  # PyDLL keeps the GIL
        print("up")
        held()
        """
    )
    assert job.line() == "up"
    stacks = job.run_dir / "stacks.txt"

    def it_is_seen() -> bool:
        job.process.send_signal(STACKS_SIGNAL)
        return "in held" in stacks.read_text()

    wait_until(it_is_seen, 10, "The stacks were not written.")


@pytest.mark.parametrize("run_dir", ["gone", "train.py", "/proc/self"])  # root writes anywhere else
def test_without_a_run_folder_the_script_still_runs_and_ends(
    start: Start, folder: Path, run_dir: str
) -> None:
    (folder / "train.py").write_text("print('hello')\nraise ValueError('boom')")
    job = start(str(folder / "train.py"), run_dir=folder / run_dir)
    out, err = job.end()
    assert out == "hello\n"
    assert err.endswith("ValueError: boom\n")
    assert job.process.returncode == 1


def test_the_ending_of_an_earlier_life_is_removed(launch: Launch, folder: Path) -> None:
    (folder / "run" / "exit.json").write_text('{"code": 1}')
    job = launch("print('up')\ninput()")
    assert job.line() == "up"
    assert not (folder / "run" / "exit.json").exists()
    job.end()


@pytest.mark.parametrize("kind", ["link", "other folder"])
def test_what_replaced_the_run_folder_is_left_alone(
    launch: Launch, folder: Path, kind: str
) -> None:
    job = launch("import sys\nprint('up')\nsys.stdin.read()\nraise ValueError('boom')")
    assert job.line() == "up"
    (folder / "run").rename(folder / "moved")
    (folder / "elsewhere").mkdir()
    if kind == "link":
        (folder / "run").symlink_to(folder / "elsewhere")
    else:
        (folder / "elsewhere").rename(folder / "run")
    job.end()
    assert list((folder / "run").iterdir()) == []
    ending = json.loads((folder / "moved" / "exit.json").read_text())
    assert ending["exception"]["line"] == "ValueError: boom"


@pytest.mark.parametrize("name", ["exit.json", "exit.json.tmp", "exit.json.room", "stacks.txt"])
def test_a_link_in_the_run_folder_is_not_written_through(
    launch: Launch, folder: Path, name: str
) -> None:
    (folder / "secret").write_text("secret")
    (folder / "run" / name).symlink_to(folder / "secret")
    job = launch("raise ValueError('boom')")
    job.end()
    assert job.ending["exception"]["line"] == "ValueError: boom"
    assert (folder / "secret").read_text() == "secret"


def test_a_script_that_closes_every_descriptor_is_recorded(launch: Launch, folder: Path) -> None:
    (folder / "mine").write_text("mine")
    job = launch(
        f"""
        import os
        os.closerange(3, 1000)
        mine = [os.open({str(folder / "mine")!r}, os.O_RDWR) for _ in range(5)]
        raise ValueError("boom")
        """
    )
    job.end()
    assert job.ending["exception"]["line"] == "ValueError: boom"
    assert (folder / "mine").read_text() == "mine", "the room is given back by its number alone"


def test_no_reserve_is_left_of_a_job_that_is_killed(launch: Launch) -> None:
    job = launch("import time\nprint('up')\ntime.sleep(60)")
    assert job.line() == "up"
    os.killpg(job.process.pid, signal.SIGKILL)
    job.end()
    assert [p.name for p in job.run_dir.iterdir()] == ["stacks.txt"]


def _in_a_mount_of_its_own(command: list[str], **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        ["unshare", "--user", "--map-root-user", "--mount", *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


FILL = """
import os, sys
line = "x" * 100
try:
    with open(os.environ["SIGNALBOX_RUN_DIR"] + "/checkpoint.pt", "wb", buffering=0) as file:
        while True:
            file.write(bytes(512))
except OSError as error:
    {then}
"""


@pytest.mark.parametrize(
    ("then", "line", "keeps_traceback"),
    [
        ("raise", "OSError: [Errno 28] No space left on device", True),
        ("raise ValueError('é' * 200_000)", "ValueError: é", True),
        ("raise type('E' * 1000, (Exception,), {})('\\1' * 70_000)", "EEEE", False),
    ],
    ids=["plain", "long", "longer than the room"],
)
def test_a_full_disk_does_not_lose_the_reason(
    folder: Path, then: str, line: str, keeps_traceback: bool
) -> None:
    try:
        probe = _in_a_mount_of_its_own(["mount", "-t", "tmpfs", "none", str(folder / "run")])
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if probe.wait():
        pytest.skip("no file system can be mounted here: " + probe.communicate()[1].strip())
    probe.communicate()
    (folder / "train.py").write_text(FILL.format(then=then), encoding="utf-8")
    run = folder / "run"
    shell = (
        f"mount -t tmpfs -o size=1m none {run} && cd {folder} && "
        f"{sys.executable} {runner.__file__} train.py; "
        f"ls {run}; stat -f -c %f {run}; cat {run}/exit.json"
    )
    job = _in_a_mount_of_its_own(["sh", "-c", shell], SIGNALBOX_RUN_DIR=str(run))
    out, err = job.communicate(timeout=60)
    *names, free_blocks, ending = out.splitlines()
    record = json.loads(ending)
    assert record["code"] == 1
    assert record["exception"]["line"].startswith(line)
    assert bool(record["exception"]["traceback"]) == keeps_traceback
    assert sorted(names) == ["checkpoint.pt", "exit.json"], err
    assert int(free_blocks) > 0, "the reserve was given back"


def test_where_there_is_no_fork_the_end_is_recorded_too(folder: Path) -> None:
    (folder / "train.py").write_text("import sys\nsys.exit(int(sys.argv[1]))")
    (folder / "sitecustomize.py").write_text("import os\ndel os.fork\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "SIGNALBOX_RUN_DIR": str(folder / "run"),
    }
    done = subprocess.run(
        [sys.executable, runner.__file__, str(folder / "train.py"), "4"],
        env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    assert json.loads((folder / "run" / "exit.json").read_text())["code"] == 4
