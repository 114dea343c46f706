"""Trees of real processes: launched, found, asked, killed, and strangers left alone."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent

import pytest

from backend import processes
from backend.processes import (
    CouldNotStartError,
    Ended,
    LaunchSpec,
    Leader,
    LocalLeader,
    Mark,
    ProcessId,
    ProcessRow,
    ProcessTable,
    adopt,
    command_line,
    end_tree,
    find_all_marked,
    find_leader,
    find_marked,
    launch,
    read_table,
    send_signal,
    variables_of,
)
from tests.waiting import lives, wait_until

NEVER = threading.Event()
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


@dataclass
class Run:
    """A launched script."""

    leader: LocalLeader
    mark: Mark
    spec: LaunchSpec

    def lines(self) -> list[str]:
        """What it has printed, whole lines only."""
        return self.spec.log.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]

    def line(self, start: str) -> str:
        """The first line that starts so, once it is there."""

        def found() -> list[str]:
            return [line for line in self.lines() if line.startswith(start)]

        wait_until(found, 30, lambda: f"No line {start!r}; there are {self.lines()}")
        return found()[0]

    def pids(self, count: int) -> list[int]:
        """The pids that the script's processes printed as `pid 123`, once all have."""
        wait_until(lambda: len(self._pids()) >= count, 30, lambda: f"Only {self.lines()}")
        return self._pids()

    def _pids(self) -> list[int]:
        # Not line by line: unbuffered, a line's end is written by itself, after another's line.
        log = self.spec.log.read_text(encoding="utf-8", errors="replace")
        return [int(pid) for pid in re.findall(r"pid (\d+)", log)]

    def end(self, grace_seconds: float = 10) -> Ended:
        ended = end_tree(self.leader, grace_seconds, NEVER)
        assert ended is not None
        assert ended.survivors == ()
        return ended


Start = Callable[..., Run]


def _environment(folder: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "SIGNALBOX_RUN_DIR": str(folder), "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Launches a script. What is left of it at the end is killed."""
    runs: list[Run] = []

    def start(source: str, *args: str, mark: Mark | None = None, **environment: str) -> Run:
        mark = mark or Mark(len(runs) + 1, str(tmp_path))
        folder = tmp_path / f"run {len(runs)}"
        folder.mkdir()
        script = folder / "script.py"
        script.write_text(dedent(source), encoding="utf-8")
        spec = LaunchSpec(
            python=Path(sys.executable),
            argv=(str(script), *args),
            folder=folder,
            environment={**_environment(folder), **environment},
            log=folder / "log.txt",
            mark=mark,
        )
        runs.append(Run(launch(spec), mark, spec))
        return runs[-1]

    yield start
    pids = [pid for run in runs for pid in run._pids()]
    for run in runs:
        for row in find_marked(run.mark):
            send_signal(row.id, signal.SIGKILL)
        wait_until(lambda run=run: not run.leader.alive())
    for pid in pids:
        if row := processes._row(pid):
            send_signal(row.id, signal.SIGKILL)


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process that is nobody's job."""
    child = subprocess.Popen(SLEEP)
    yield child
    child.kill()
    child.wait()


# Launching


def test_a_job_has_its_session_folder_log_and_environment(start: Start) -> None:
    run = start(
        """
        import json, os, sys
        print("out", flush=True)
        print("err", file=sys.stderr, flush=True)
        print(json.dumps({"session": os.getsid(0), "folder": os.getcwd(), "args": sys.argv[1:],
                          "stdin": sys.stdin.read(), "env": dict(os.environ)}), flush=True)
        """,
        "--rate",
        "0.1 0.2",
        GREETING="hello",
    )
    said = json.loads(run.line("{"))
    assert said["session"] == run.leader.id.pid != os.getsid(0)
    assert said["folder"] == str(run.spec.folder)
    assert said["args"] == ["--rate", "0.1 0.2"]
    assert said["stdin"] == ""
    assert said["env"]["GREETING"] == "hello"
    assert said["env"]["SIGNALBOX_JOB_ID"] == "1"
    assert said["env"]["SIGNALBOX_NONCE"] == run.mark.nonce
    assert "HOME" not in said["env"], "nothing is inherited that was not given"
    assert run.lines()[:2] == ["out", "err"]


def test_the_log_of_an_earlier_life_is_kept(start: Start) -> None:
    run = start("print('new')")
    run.spec.log.write_text("old\n")
    second = launch(run.spec)
    wait_until(lambda: not run.leader.alive() and not second.alive())
    assert run.lines()[0] == "old"
    assert "new" in run.lines()


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("1/0", 1),
        ("import os; os.kill(os.getpid(), 9)", -9),
        ("import os; os.kill(os.getpid(), 11)", -11),
        ("import os; os.abort()", -6),
    ],
)
def test_the_exit_code_is_that_of_the_script(start: Start, source: str, code: int) -> None:
    run = start(source)
    wait_until(lambda: not run.leader.alive())
    assert run.leader.exit_code() == code


def test_a_running_job_has_no_exit_code(start: Start) -> None:
    run = start("print('pid 1', flush=True); import time; time.sleep(600)")
    assert run.leader.alive()
    assert run.leader.exit_code() is None
    run.end()
    assert run.leader.exit_code() == -signal.SIGTERM


def _missing_interpreter(folder: Path) -> dict[str, object]:
    return {"python": folder / "no python"}


def _no_program(folder: Path) -> dict[str, object]:
    (folder / "plain").touch(mode=0o644)
    return {"python": folder / "plain"}


def _not_for_this_machine(folder: Path) -> dict[str, object]:
    (folder / "other").write_bytes(b"\x7fELF nonsense")
    (folder / "other").chmod(0o755)
    return {"python": folder / "other"}


def _missing_folder(folder: Path) -> dict[str, object]:
    return {"folder": folder / "gone"}


def _missing_script(folder: Path) -> dict[str, object]:
    return {"argv": (str(folder / "gone.py"),)}


def _too_many_arguments(folder: Path) -> dict[str, object]:
    return {"argv": (__file__, "x" * 10_000_000)}


def _nul(folder: Path) -> dict[str, object]:
    return {"argv": (__file__, "a\0b")}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (_missing_interpreter, r"The interpreter '.*no python' does not exist\."),
        (_no_program, r"The interpreter '.*plain' is not a program that can be run\."),
        (_not_for_this_machine, r"It could not be started: .*Exec format error.*\."),
        (_missing_folder, r"The folder '.*gone' does not exist\."),
        (_missing_script, r"The script '.*gone\.py' does not exist\."),
        (_too_many_arguments, r"It could not be started: .*Argument list too long.*\."),
        (_nul, r"It could not be started: embedded null byte\."),
    ],
)
def test_what_keeps_a_job_from_starting_is_said_in_a_sentence(
    tmp_path: Path, spoil: Callable[[Path], Mapping[str, object]], words: str
) -> None:
    fields: dict[str, object] = {
        "python": Path(sys.executable),
        "argv": (__file__,),
        "folder": tmp_path,
        "environment": _environment(tmp_path),
        "log": tmp_path / "log.txt",
        "mark": Mark(1, str(tmp_path)),
    }
    with pytest.raises(CouldNotStartError, match=f"^{words}$"):
        launch(LaunchSpec(**{**fields, **spoil(tmp_path)}))  # type: ignore[arg-type]


# Ending

GRANDCHILDREN = """
    import os, subprocess, sys, time
    print(f"pid {os.getpid()}", flush=True)
    if sys.argv[1] != "0":
        command = [sys.executable, __file__, str(int(sys.argv[1]) - 1)]
        subprocess.Popen(command, start_new_session=sys.argv[2:] == ["apart"])
    time.sleep(600)
"""

OWN_SESSION = """
    import os, subprocess, sys
    code = "import os, time; print(f'pid {os.getpid()}', flush=True); time.sleep(600)"
    print(f"pid {os.getpid()}", flush=True)
    subprocess.Popen([sys.executable, "-c", code], start_new_session=True).wait()
"""

DAEMON = """
    import os, time
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            while os.getppid() == os.getsid(0):
                time.sleep(0.01)
        else:
            os._exit(0)
    else:
        os.wait()
    print(f"pid {os.getpid()}", flush=True)
    time.sleep(600)
"""

IGNORES_SIGTERM = """
    import os, signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.fork()
    print(f"pid {os.getpid()}", flush=True)
    while True:
        time.sleep(600)
"""

STOPPED = """
    import os, signal, time
    print(f"pid {os.getpid()}", flush=True)
    if os.fork() == 0:
        print(f"pid {os.getpid()}", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)
"""

CLEAN_ENVIRONMENT = """
    import os, subprocess, sys
    code = "import os, time; print(f'pid {os.getpid()}', flush=True); time.sleep(600)"
    print(f"pid {os.getpid()}", flush=True)
    subprocess.Popen([sys.executable, "-c", code], env={}).wait()
"""

HYDRA = """
    import os, signal, time
    def grow(*_):
        if os.fork() != 0:
            os._exit(0)
    print(f"pid {os.getpid()}", flush=True)
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, grow)
        print(f"pid {os.getpid()}", flush=True)
    while True:
        time.sleep(600)
"""


@pytest.mark.parametrize(
    ("source", "args", "count", "grace_seconds"),
    [
        pytest.param(GRANDCHILDREN, ("2",), 3, 10, id="grandchildren"),
        pytest.param(GRANDCHILDREN, ("2", "apart"), 3, 10, id="grandchildren of one session"),
        pytest.param(OWN_SESSION, (), 2, 10, id="own session"),
        pytest.param(DAEMON, (), 2, 10, id="daemon"),
        pytest.param(IGNORES_SIGTERM, (), 2, 0.4, id="ignores SIGTERM"),
        pytest.param(STOPPED, (), 2, 10, id="stopped"),
        pytest.param(CLEAN_ENVIRONMENT, (), 2, 10, id="clean environment"),
        pytest.param(HYDRA, (), 2, 0.4, id="hydra"),
    ],
)
def test_the_end_leaves_nothing(
    start: Start, source: str, args: tuple[str, ...], count: int, grace_seconds: float
) -> None:
    run = start(source, *args)
    pids = run.pids(count)
    assert all(map(lives, pids))
    ended = run.end(grace_seconds)
    assert [pid for pid in pids if lives(pid)] == []
    assert find_marked(run.mark) == []
    assert not run.leader.alive()
    assert (ended.killed > 0) == (grace_seconds < 1), "killed are those that do not obey"


@pytest.mark.parametrize("source", [OWN_SESSION, DAEMON, CLEAN_ENVIRONMENT])
def test_what_a_leader_that_died_first_left_behind_is_ended_too(start: Start, source: str) -> None:
    run = start(source)
    pids = run.pids(2)
    run.leader.tree(afresh=True)  # as a supervisor does every second
    os.kill(run.leader.id.pid, signal.SIGKILL)
    wait_until(lambda: not run.leader.alive())
    run.end()
    wait_until(lambda: not any(map(lives, pids)), 5)


def test_the_leader_is_asked_first_and_may_save_with_its_workers(start: Start) -> None:
    run = start(
        """
        import os, signal, sys, time
        here, there = os.pipe(), os.pipe()
        if os.fork() == 0:
            def asked(*_):
                os.write(1, b"worker asked\\n")
                os._exit(0)
            signal.signal(signal.SIGTERM, asked)
            print(f"pid {os.getpid()}", flush=True)
            os.read(here[0], 1)  # the saving leader asks for data
            os.write(there[1], b"data")
            time.sleep(600)
        def save(*_):
            os.write(1, b"leader asked\\n")
            time.sleep(0.3)
            os.write(here[1], b"?")
            os.write(1, b"saved " + os.read(there[0], 4) + b"\\n")
            sys.exit(0)
        signal.signal(signal.SIGTERM, save)
        print(f"pid {os.getpid()}", flush=True)
        while True:
            time.sleep(600)
        """
    )
    run.pids(2)
    ended = run.end(grace_seconds=30)
    assert ended.killed == 0
    assert run.lines()[2:] == ["leader asked", "saved data", "worker asked"]


def test_a_worker_that_the_leader_waits_for_is_asked_at_half_of_the_grace(start: Start) -> None:
    run = start(
        """
        import os, signal, sys, time
        worker = os.fork()
        if worker == 0:
            print(f"pid {os.getpid()}", flush=True)
            time.sleep(600)
        signal.signal(signal.SIGTERM, lambda *_: os.write(1, b"leader asked\\n"))
        print(f"pid {os.getpid()}", flush=True)
        os.waitpid(worker, 0)
        print("saved", flush=True)
        """
    )
    run.pids(2)
    ended = run.end(grace_seconds=2)
    assert ended.killed == 0
    assert run.lines()[2:] == ["leader asked", "saved"]


class FakeTree:
    """A leader, its script and one worker, for whom only that time passes which is waited."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, leader_dies_at: float) -> None:
        self.now = 0.0
        self.sent: list[tuple[float, int, int]] = []
        self.leader_dies_at = leader_dies_at
        self.id = ProcessId(1001, "boot:1")
        self.rows = [
            ProcessRow(self.id, 1, "S", 0),
            ProcessRow(ProcessId(1002, "boot:2"), 1001, "S", 0),  # the script: it was told
            ProcessRow(ProcessId(1003, "boot:3"), 1002, "S", 0),
            ProcessRow(ProcessId(1004, "boot:10"), 1001, "S", 0),  # an orphan: it was not
        ]
        monkeypatch.setattr(processes, "send_signal", self._send)

    def _send(self, target: ProcessId, number: int) -> bool:
        self.sent.append((round(self.now), target.pid, number))
        return True

    def alive(self) -> bool:
        return self.now < self.leader_dies_at

    def exit_code(self) -> int | None:
        return None

    def ask_to_stop(self) -> None:
        self._send(self.id, signal.SIGTERM)

    def leftovers(self) -> list[ProcessRow]:
        return [row for row in self.rows if self.alive() or row.id != self.id]

    def tree(self, afresh: bool) -> list[ProcessRow]:
        return self.leftovers()

    def know(self, ids: object) -> bool:
        return False

    def let_go(self) -> None:
        pass

    def end(self, grace_seconds: float, give_up: threading.Event = NEVER) -> Ended | None:
        tree = self

        class Wait(threading.Event):
            def wait(self, timeout: float | None = None) -> bool:
                tree.now += timeout or 0
                return give_up.is_set()

        leader: Leader = self
        return end_tree(leader, grace_seconds, Wait(), patience_seconds=10, clock=lambda: tree.now)


def test_who_is_asked_when_if_nobody_obeys(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FakeTree(monkeypatch, leader_dies_at=1e9)
    ended = tree.end(grace_seconds=20)
    assert list(dict.fromkeys(tree.sent))[:5] == [
        (0, 1001, signal.SIGTERM),
        (10, 1003, signal.SIGTERM),
        (10, 1004, signal.SIGTERM),
        (20, 1001, signal.SIGKILL),
        (20, 1002, signal.SIGKILL),
    ]
    assert ended == Ended(tuple(tree.rows), 4), "what survives even that is named"
    assert tree.now >= 30
    assert [s for s in tree.sent if s[2] == signal.SIGTERM] == tree.sent[:3], "asked once"


def test_the_rest_is_asked_as_soon_as_the_leader_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FakeTree(monkeypatch, leader_dies_at=3)
    tree.rows[1] = replace(tree.rows[1], parent=1)  # to whom orphans go
    tree.end(grace_seconds=20)
    assert tree.sent[:3] == [
        (0, 1001, signal.SIGTERM),
        (3, 1002, signal.SIGTERM),
        (3, 1003, signal.SIGTERM),
    ]


def test_an_end_can_be_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tree = FakeTree(monkeypatch, leader_dies_at=1e9)
    closing = threading.Event()
    closing.set()
    assert tree.end(20, closing) is None
    assert tree.sent == [(0, 1001, signal.SIGTERM)]


# Strangers


def test_neighbours_and_strangers_are_left_alone(
    start: Start, stranger: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    forever = "import os, time; print(f'pid {os.getpid()}', flush=True); time.sleep(600)"
    nonce = str(tmp_path)
    run = start(forever, mark=Mark(1, nonce))
    others = [
        start(forever, mark=Mark(2, nonce)),
        start(forever, mark=Mark(12, nonce)),
        start(forever, mark=Mark(1, nonce + "2")),
    ]
    pids = [pid for other in others for pid in other.pids(1)]
    mine = run.pids(1)
    assert {row.id.pid for row in find_marked(run.mark)} == {run.leader.id.pid, *mine}
    run.end()
    assert all(map(lives, pids))
    assert all(other.leader.alive() for other in others)
    assert stranger.poll() is None


@pytest.mark.parametrize("pid", [0, 1, -1, None])
def test_these_are_never_signalled(pid: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """None: this process itself."""
    pid = os.getpid() if pid is None else pid
    sent: list[object] = []
    monkeypatch.setattr(os, "kill", lambda *args: sent.append(args))
    monkeypatch.setattr(signal, "pidfd_send_signal", lambda *args: sent.append(args))
    row = processes._row(pid) if pid > 0 else None
    assert send_signal(row.id if row else ProcessId(pid, ""), signal.SIGTERM) is False
    assert sent == []


def test_the_server_is_no_member_of_a_job_whose_mark_it_carries(tmp_path: Path) -> None:
    """As when somebody starts a server from within a job."""
    code = """
import sys
from backend.processes import Mark, find_marked
print([row.id.pid for row in find_marked(Mark(1, sys.argv[1]))])
"""
    nonce = str(tmp_path)
    environment = {**os.environ, **Mark(1, nonce).variables()}
    command = [sys.executable, "-c", code, nonce]
    said = subprocess.run(command, env=environment, capture_output=True)
    assert said.stdout == b"[]\n", said.stderr


def test_what_the_server_started_is_no_member_of_the_job_that_started_the_server(
    stranger: subprocess.Popen[bytes],
) -> None:
    table = read_table()
    assert table[stranger.pid].parent == os.getpid()
    assert processes._family(table, [table[os.getpid()].id]) == []
    assert os.getpid() not in {r.id.pid for r in processes._family(table, [table[os.getppid()].id])}


@pytest.mark.parametrize("size", [2**16 - 200, 2**16, 2**17 - 10])
def test_a_mark_behind_a_huge_environment_is_found(tmp_path: Path, size: int) -> None:
    mark = Mark(7, str(tmp_path))
    environment = {"FIRST": "x" * size, "SECOND": "y" * size, **mark.variables()}
    with subprocess.Popen(["/bin/sleep", "600"], env=environment) as child:
        try:
            wait_until(lambda: [row.id.pid for row in find_marked(mark)] == [child.pid])
        finally:
            child.kill()


def test_ids_that_no_job_can_have_are_not_looked_for(tmp_path: Path) -> None:
    nonce = str(tmp_path)
    children = [
        subprocess.Popen(
            ["/bin/sleep", "600"],
            env={processes.JOB_VARIABLE: job_id, processes.NONCE_VARIABLE: nonce},
        )
        for job_id in ("99999999999999999999", "٣", "-1", "x", "", "7")
    ]
    try:
        wait_until(lambda: 7 in find_all_marked(nonce))
        assert list(find_all_marked(nonce)) == [7]
    finally:
        for child in children:
            child.kill()
            child.wait()


def test_variables_are_those_that_a_process_was_started_with() -> None:
    given = {"KEY": "käse=1\n2", "EMPTY": "", "OTHER": "x"}
    child = subprocess.Popen(SLEEP, env={**os.environ, **given})
    try:
        row = processes._row(child.pid)
        assert row is not None
        wanted = ["KEY", "EMPTY", "NOT_THERE"]
        found: dict[str, str] = {}

        def was_read() -> bool:
            found.update(variables_of(row.id, wanted))
            return bool(found)

        wait_until(was_read)
        assert found == {"KEY": "käse=1\n2", "EMPTY": ""}
        assert variables_of(ProcessId(child.pid, "another boot:1"), wanted) == {}
    finally:
        child.kill()
        child.wait()
    assert variables_of(row.id, wanted) == {}
    assert variables_of(ProcessId(0, ""), wanted) == {}


def test_a_recycled_pid_is_not_signalled(stranger: subprocess.Popen[bytes]) -> None:
    row = processes._row(stranger.pid)
    assert row is not None
    boot, _, ticks = row.id.started.rpartition(":")
    for started in (f"{boot}:{int(ticks) - 1}", f"another boot:{ticks}", ""):
        recycled = ProcessId(stranger.pid, started)
        assert send_signal(recycled, signal.SIGKILL) is False
        leader = adopt(recycled, Mark(1, "nonce of nobody"))
        assert not leader.alive()
        assert leader.tree(afresh=True) == []
        assert end_tree(leader, 1, NEVER) == Ended((), 0)
    assert stranger.poll() is None
    assert send_signal(row.id, signal.SIGTERM) is True
    assert stranger.wait(10) == -signal.SIGTERM


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="there are no pidfds here")
def test_a_kernel_without_pidfds_does_as_well(
    monkeypatch: pytest.MonkeyPatch, stranger: subprocess.Popen[bytes]
) -> None:
    def refuse(pid: int, flags: int = 0) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", refuse)
    row = processes._row(stranger.pid)
    assert row is not None
    assert send_signal(ProcessId(row.id.pid, "wrong:1"), signal.SIGTERM) is False
    assert send_signal(row.id, signal.SIGTERM) is True
    assert stranger.wait(10) == -signal.SIGTERM


def test_a_process_that_is_gone_is_no_error(stranger: subprocess.Popen[bytes]) -> None:
    row = processes._row(stranger.pid)
    assert row is not None
    stranger.kill()
    os.waitid(os.P_PID, stranger.pid, os.WEXITED | os.WNOWAIT)
    assert send_signal(row.id, signal.SIGTERM) is False, "a zombie"
    assert not adopt(row.id, Mark(1, "nonce of nobody")).alive()
    stranger.wait()
    assert send_signal(row.id, signal.SIGTERM) is False, "gone"
    assert command_line(stranger.pid) == ""


# Adopting and finding


def test_an_adopted_leader_can_be_ended(start: Start) -> None:
    run = start(GRANDCHILDREN, "1")
    pids = run.pids(2)
    leader = adopt(run.leader.id, run.mark)
    assert leader.alive()
    assert {row.id.pid for row in leader.tree(afresh=True)} == {run.leader.id.pid, *pids}
    assert end_tree(leader, 10, NEVER) == Ended((), 0)
    assert not leader.alive()
    assert leader.exit_code() == -signal.SIGTERM, "it is a child of ours, whoever launched it"
    assert not any(map(lives, pids))


def test_a_leader_is_found_by_its_mark_alone(start: Start) -> None:
    run = start(GRANDCHILDREN, "1")
    run.pids(2)
    assert find_leader(run.mark).id == run.leader.id


def test_of_what_a_dead_leader_left_the_oldest_is_found(start: Start) -> None:
    run = start(DAEMON)
    pids = run.pids(2)
    os.kill(run.leader.id.pid, signal.SIGKILL)
    wait_until(lambda: not run.leader.alive())
    wait_until(lambda: find_leader(run.mark).id.pid in pids)
    assert find_leader(run.mark).alive()


def test_where_nothing_is_left_the_leader_is_a_dead_one() -> None:
    leader = find_leader(Mark(1, "nonce of nobody"))
    assert not leader.alive()
    leader.ask_to_stop()
    assert end_tree(leader, 1, NEVER) == Ended((), 0)


# The table


def test_the_table_has_this_process(stranger: subprocess.Popen[bytes]) -> None:
    table = read_table()
    assert table[os.getpid()].parent == os.getppid()
    assert table[stranger.pid].parent == os.getpid()
    assert table[os.getpid()].memory_bytes > 2**20
    assert table[stranger.pid].alive


def test_a_name_with_brackets_and_spaces_is_no_trouble(tmp_path: Path) -> None:
    program = tmp_path / "a) S 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "600"])
    try:
        wait_until(lambda: "a) S 1 (b" in command_line(child.pid))
        row = read_table()[child.pid]
        assert row.parent == os.getpid()
        assert row.alive
    finally:
        child.kill()
        child.wait()


def test_many_ask_and_the_table_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[int] = []
    real = processes.read_table
    monkeypatch.setattr(processes, "read_table", lambda: (reads.append(1), real())[1])
    table = ProcessTable(fresh_seconds=60)
    for _ in range(20):
        assert os.getpid() in table.rows()
    assert len(reads) == 1
    table.rows(afresh=True)
    assert len(reads) == 2
