"""Launch, adopt, find and end a tree of processes. POSIX and Windows differ in this file only."""

import contextlib
import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import psutil

from backend.paths import open_inside

logger = logging.getLogger(__name__)

JOB_VARIABLE: Final = "SIGNALBOX_JOB_ID"
NONCE_VARIABLE: Final = "SIGNALBOX_NONCE"
STACKS_VARIABLE: Final = "SIGNALBOX_STACKS_SIGNAL"

STACKS_SIGNAL: Final[int | None] = (
    signal.SIGRTMIN + 7 if sys.platform == "linux" else getattr(signal, "SIGUSR2", None)
)
"""What asks a job's Python for its stacks. A real-time signal, because trainers use the others."""

KILL_PATIENCE_SECONDS: Final = 10.0
"""How long a process may take to die of SIGKILL before it is called a survivor."""

_APPEND: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT
_RUNNER: Final = Path(__file__).parent / "training" / "runner.py"
_PROC: Final = Path("/proc")


@dataclass(frozen=True)
class Mark:
    """What every process of a job carries in its environment."""

    job_id: int
    nonce: str

    def variables(self) -> dict[str, str]:
        return {JOB_VARIABLE: str(self.job_id), NONCE_VARIABLE: self.nonce}


@dataclass(frozen=True)
class ProcessId:
    """A process that no other can be mistaken for: a pid is used again, a pid with its start is
    not. `started` is the boot's id and the start in clock ticks since it."""

    pid: int
    started: str

    @property
    def age_rank(self) -> float:
        """Smaller for one that was started earlier since the boot."""
        return float(self.started.rpartition(":")[2] or 0)


@dataclass(frozen=True)
class ProcessRow:
    """One line of the machine's process table."""

    id: ProcessId
    parent: int
    state: str
    """As in proc(5): R, S, D, T (stopped), Z (zombie), …"""
    memory_bytes: int
    """Resident memory; what processes share is counted in each."""
    cpu_seconds: float = 0.0
    """Of CPU time that it has taken itself."""
    waited_seconds: float = 0.0
    """Of CPU time that those of its descendants took that have ended and been waited for."""

    @property
    def alive(self) -> bool:
        return self.state not in "ZX"


@dataclass(frozen=True)
class LaunchSpec:
    """All that is needed to start a job's leader."""

    python: Path
    argv: tuple[str, ...]
    folder: Path
    environment: Mapping[str, str]
    log: Path
    mark: Mark


class CouldNotStartError(Exception):
    """The operating system refused to start the process; the message says why."""


@dataclass(frozen=True)
class Ended:
    """How the end of a tree went."""

    survivors: Sequence[ProcessRow]
    """What lives on in spite of SIGKILL."""
    killed: int
    """How many had to be killed because asking did not help."""


class Leader(Protocol):
    """The process that a job was started as, and everything that came of it.

    The one thing that another launcher has to offer.
    """

    @property
    def id(self) -> ProcessId: ...

    def alive(self) -> bool:
        """Whether the leader itself runs. Cheap: asked several times a second."""
        ...

    def exit_code(self) -> int | None:
        """Its exit code, minus the signal's number if it died of one; None where unknown."""
        ...

    def ask_to_stop(self) -> None: ...

    def leftovers(self) -> list[ProcessRow]:
        """Every live process of the job, wherever in the process table it may be."""
        ...

    def tree(self, afresh: bool) -> list[ProcessRow]:
        """The leader, its descendants, and those that were so at an earlier call and have lost
        their parents since; read afresh or up to a second ago. Cheap."""
        ...

    def know(self, ids: Iterable[ProcessId]) -> bool:
        """Told of processes that are the job's as well; whether one is alive that is news."""
        ...

    def let_go(self) -> None:
        """Nobody here will wait for it any more; it goes on by itself."""
        ...


class LocalLeader:
    """A leader on this machine: launched here (then it is our child) or adopted."""

    def __init__(
        self, id: ProcessId, mark: Mark, child: "subprocess.Popen[bytes] | None" = None
    ) -> None:
        self._id = id
        self._mark = mark
        self._child = child
        # A child that was given a clean environment is known by its parents as long as they live,
        # and afterwards only by having been seen.
        self._seen: frozenset[ProcessId] = frozenset()
        self._seeing = threading.Lock()
        self._code: int | None = None

    @property
    def id(self) -> ProcessId:
        return self._id

    def alive(self) -> bool:
        if self._child is not None:
            return self._child.poll() is None
        row = _row(self._id.pid)
        if row is None or row.id != self._id:
            return False
        if not row.alive and row.parent == os.getpid():
            self._reap()
        return row.alive

    def exit_code(self) -> int | None:
        return self._child.poll() if self._child is not None else self._code

    def ask_to_stop(self) -> None:
        if self.alive():
            self.tree(afresh=True)
            send_signal(self._id, signal.SIGTERM)

    def leftovers(self) -> list[ProcessRow]:
        with self._seeing:
            return self._remember(find_marked(self._mark, self._seen, since=self._id))

    def tree(self, afresh: bool) -> list[ProcessRow]:
        with self._seeing:
            return self._remember(_family(TABLE.rows(afresh=afresh), {self._id, *self._seen}))

    def know(self, ids: Iterable[ProcessId]) -> bool:
        ids = tuple(ids)
        table = read_table() if ids else {}
        alive = {id for id in ids if id.pid in table and table[id.pid].id == id}
        with self._seeing:
            news = alive - self._seen
            self._seen |= news
        return any(table[id.pid].alive for id in news)

    def _reap(self) -> None:
        """Wait for a child of this process that somebody here has let go."""
        with contextlib.suppress(OSError):
            pid, status = os.waitpid(self._id.pid, os.WNOHANG)
            if pid:
                self._code = os.waitstatus_to_exitcode(status)

    def _remember(self, rows: list[ProcessRow]) -> list[ProcessRow]:
        self._seen = frozenset(row.id for row in rows)
        return rows

    def let_go(self) -> None:
        if self._child is not None and self._child.returncode is None:
            self._child.returncode = 0  # or its destructor warns that it was not waited for


def launch(spec: LaunchSpec) -> LocalLeader:
    """Start a job's leader in a session of its own, its output straight into its log.

    Raises:
        CouldNotStartError: the script, the interpreter or the folder is not there or may not be
            used.
    """
    if spec.argv[:1] != ("-m",) and not Path(spec.argv[0]).is_file():
        raise CouldNotStartError(f"The script {spec.argv[0]!r} does not exist.")
    environment = {**spec.environment, **spec.mark.variables()}
    if STACKS_SIGNAL is not None:
        environment[STACKS_VARIABLE] = str(STACKS_SIGNAL)
    try:
        with os.fdopen(open_inside(spec.log, _APPEND), "ab") as log:
            child = subprocess.Popen(
                [str(spec.python), str(_RUNNER), *spec.argv],
                cwd=spec.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except (OSError, ValueError) as error:
        raise CouldNotStartError(_launch_problem(error, spec)) from error
    row = _row(child.pid)
    # A child that has ended already has a row until it is waited for, which only we can do.
    started = row.id.started if row else f"{_boot()}:0"
    return LocalLeader(ProcessId(child.pid, started), spec.mark, child)


def adopt(id: ProcessId, mark: Mark) -> LocalLeader:
    """Take over a leader that another server process launched; it may be gone by now.

    A process without the mark is not the job's, whatever its pid and its start: the data folder may
    be the copy of another, whose server supervises it.
    """
    if is_alive(id) and not _carries(id.pid, mark):
        return LocalLeader(ProcessId(0, ""), mark)
    return LocalLeader(id, mark)


def find_leader(mark: Mark) -> LocalLeader:
    """The leader of a job of which only the mark is known: the first of its processes."""
    rows = {row.id.pid: row for row in find_marked(mark)}
    first = [row for row in rows.values() if row.parent not in rows]
    if not first:
        return LocalLeader(ProcessId(0, ""), mark)
    return LocalLeader(min(first, key=lambda row: row.id.age_rank).id, mark)


def find_marked(
    mark: Mark, seen: Collection[ProcessId] = (), since: ProcessId | None = None
) -> list[ProcessRow]:
    """Every live process whose environment carries the mark or that is among those seen before,
    and their live descendants, whatever these have in their environments.

    Args:
        since: the leader, where it is known: nothing that is older is looked at, because each
            look at an environment is three system calls, at each of which others get the GIL.
    """
    table = read_table()
    oldest = since.age_rank if since else 0
    marked = (
        row.id
        for pid, row in table.items()
        if row.alive and row.id.age_rank >= oldest and _carries(pid, mark)
    )
    return _family(table, {*marked, *seen})


def find_all_marked(nonce: str) -> dict[int, list[ProcessRow]]:
    """Every live process that carries a mark with this nonce, by the id of its job."""
    found: dict[int, list[ProcessRow]] = {}
    for pid, row in read_table().items():
        if row.alive and pid != os.getpid():
            variables = _variables(pid)
            job_id = variables.get(JOB_VARIABLE, "")
            is_id = job_id.isascii() and job_id.isdecimal() and len(job_id) < 16
            if is_id and variables.get(NONCE_VARIABLE) == nonce:
                found.setdefault(int(job_id), []).append(row)
    return found


def variables_of(id: ProcessId, names: Iterable[str]) -> dict[str, str]:
    """The variables of these names, as far as a process was started with them; none of one that is
    gone, or whose environment may not be read."""
    found = _environment(id.pid)
    return {n: found[n] for n in names if n in found} if is_alive(id) else {}


def end_tree(
    leader: Leader,
    grace_seconds: float,
    give_up: threading.Event,
    *,
    at_once: threading.Event | None = None,
    patience_seconds: float = KILL_PATIENCE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> Ended | None:
    """End every process of a job: ask the leader, then the rest, then kill, until none is left.

    The leader alone is asked first, so that a training that wants to save still has its data
    workers (`KillMode=mixed` of systemd.kill(5)). The rest is asked as soon as the leader is gone
    or half of the grace is over; at the end of the grace what is left is killed.

    Returns None where `give_up` was set before the end was reached.
    """
    begin = clock()
    leader.ask_to_stop()
    asked = {leader.id}
    killed: set[ProcessId] = set()
    interval = 0.002
    while True:
        waited = clock() - begin
        if at_once is not None and at_once.is_set() and waited < grace_seconds:
            grace_seconds = waited
        leader_alive = leader.alive()
        if not leader_alive or waited >= grace_seconds / 2:
            left = leader.leftovers()
            if not left and not leader_alive:
                # Whoever was born, of a parent that died, while the table was read is not in it.
                left = leader.leftovers()
                if not left:
                    return Ended((), len(killed))
            if waited >= grace_seconds + patience_seconds:
                return Ended(tuple(left), len(killed))
            told = script_of(leader, left)
            for row in left:
                if waited >= grace_seconds:
                    if send_kill(row.id):
                        killed.add(row.id)
                elif row.id not in asked and row is not told:
                    send_signal(row.id, signal.SIGTERM)
                    asked.add(row.id)
        if give_up.wait(interval):
            return None
        interval = min(interval * 1.5, 0.05)


def script_of(leader: Leader, rows: Sequence[ProcessRow]) -> ProcessRow | None:
    """The script, to which the runner passes on what it is asked: the first of its children, for
    the later ones are orphans. Many a training takes a second SIGTERM for impatience and stops
    saving. None where it is stopped: it has not heard the first."""
    children = [row for row in rows if row.parent == leader.id.pid]
    script = min(children, key=lambda row: row.id.age_rank, default=None)
    return None if script is None or script.state == "T" else script


def send_signal(target: ProcessId, number: int, *, wake: bool = True) -> bool:
    """Send a signal to exactly this process; False if it is gone or may not be signalled.

    Never to pid 0, 1, -1 or this process. A stopped process is woken, so that it can obey; without
    `wake` it is not signalled at all.
    """
    if target.pid <= 1 or target.pid == os.getpid():
        logger.error("Refused to send signal %s to pid %s", number, target.pid)
        return False
    try:
        return _send(target, number, wake)
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False
    except (PermissionError, psutil.AccessDenied):
        logger.warning("May not send signal %s to pid %s", number, target.pid)
        return False


def send_kill(target: ProcessId) -> bool:
    """`send_signal` with the signal that nothing can catch."""
    return send_signal(target, _KILL)


def is_alive(id: ProcessId) -> bool:
    """Whether exactly this process runs, whoever's it is."""
    row = _row(id.pid)
    return row is not None and row.id == id and row.alive


def is_of_this_boot(id: ProcessId) -> bool:
    """Whether the machine has not been started anew since this process began, if one is known."""
    return id.started.partition(":")[0] in ("", _boot())


def command_line(pid: int, longest: int = 120) -> str:
    """What a process was started as, for a person to read; empty if it is gone."""
    try:
        words = psutil.Process(pid).cmdline()
    except psutil.Error:
        return ""
    text = " ".join(words)
    return text if len(text) <= longest else text[: longest - 1] + "…"


class ProcessTable:
    """The machine's process table, read at most once a second for all supervisors together."""

    def __init__(self, fresh_seconds: float = 0.9) -> None:
        self._fresh_seconds = fresh_seconds
        self._lock = threading.Lock()
        self._rows: Mapping[int, ProcessRow] = {}
        self._read_at = -1e9

    def rows(self, *, afresh: bool = False) -> Mapping[int, ProcessRow]:
        """Every process by its pid."""
        with self._lock:
            now = time.monotonic()
            if afresh or now - self._read_at >= self._fresh_seconds:
                self._rows = read_table()
                self._read_at = now
            return self._rows


TABLE: Final = ProcessTable()


def _family(table: Mapping[int, ProcessRow], ids: Collection[ProcessId]) -> list[ProcessRow]:
    """Those of these processes that live, and their live descendants; never this process, nor what
    is only its descendant: a server that a job started has jobs of its own."""
    me = os.getpid()
    pids = {id.pid for id in ids if id.pid != me and id.pid in table and table[id.pid].id == id}
    pids |= _descendants({pid: row for pid, row in table.items() if pid != me}, pids)
    return [table[pid] for pid in sorted(pids) if table[pid].alive]


def _descendants(table: Mapping[int, ProcessRow], roots: set[int]) -> set[int]:
    children: dict[int, list[int]] = {}
    for pid, row in table.items():
        children.setdefault(row.parent, []).append(pid)
    found: set[int] = set()
    waiting = list(roots)
    while waiting:
        for pid in children.get(waiting.pop(), ()):
            if pid not in found and pid not in roots:
                found.add(pid)
                waiting.append(pid)
    return found


def _launch_problem(error: OSError | ValueError, spec: LaunchSpec) -> str:
    if not spec.folder.is_dir():
        return f"The folder {str(spec.folder)!r} does not exist."
    if not spec.python.exists():
        return f"The interpreter {str(spec.python)!r} does not exist."
    if not os.access(spec.python, os.X_OK):
        return f"The interpreter {str(spec.python)!r} is not a program that can be run."
    return f"It could not be started: {error}."


if sys.platform == "linux":
    _KILL: Final = signal.SIGKILL
    _PAGE: Final = os.sysconf("SC_PAGE_SIZE")
    _TICKS: Final = os.sysconf("SC_CLK_TCK")  # in a second
    _CHUNK_BYTES: Final = 2**16
    _boot_id: list[str] = []

    def _boot() -> str:
        if not _boot_id:
            _boot_id.append((_PROC / "sys/kernel/random/boot_id").read_text().strip())
        return _boot_id[0]

    def _read_at_once(path: str) -> bytes:
        """In three system calls, not six: at each another thread may take the GIL, and a table has
        hundreds of files."""
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = chunk = os.read(descriptor, _CHUNK_BYTES)
            while len(chunk) == _CHUNK_BYTES:
                chunk = os.read(descriptor, _CHUNK_BYTES)
                content += chunk
            return content
        finally:
            os.close(descriptor)

    def _row(pid: int) -> ProcessRow | None:
        try:
            stat = _read_at_once(f"/proc/{pid}/stat")
        except OSError:
            return None
        # proc(5): the name, field 2, may hold spaces and brackets, so count from its last bracket.
        fields = stat[stat.rindex(b")") + 2 :].split()
        return ProcessRow(
            ProcessId(pid, f"{_boot()}:{int(fields[19])}"),
            parent=int(fields[1]),
            state=fields[0].decode(),
            memory_bytes=int(fields[21]) * _PAGE,
            cpu_seconds=(int(fields[11]) + int(fields[12])) / _TICKS,
            waited_seconds=(int(fields[13]) + int(fields[14])) / _TICKS,
        )

    def read_table() -> dict[int, ProcessRow]:
        """Every process of the machine by its pid."""
        pids = (int(name) for name in os.listdir("/proc") if name.isdecimal())  # noqa: PTH208
        return {row.id.pid: row for row in map(_row, pids) if row is not None}

    def _environ(pid: int) -> list[bytes]:
        try:
            return _read_at_once(f"/proc/{pid}/environ").split(b"\0")
        except OSError:
            return []

    def _carries(pid: int, mark: Mark) -> bool:
        variables = _environ(pid)
        return all(f"{n}={v}".encode() in variables for n, v in mark.variables().items())

    def _environment(pid: int) -> dict[str, str]:
        variables = map(os.fsdecode, _environ(pid))
        return dict(variable.split("=", 1) for variable in variables if "=" in variable)

    def _variables(pid: int) -> dict[str, str]:
        """Those of its variables that are ours."""
        ours = (v.decode("utf-8", "replace") for v in _environ(pid) if v.startswith(b"SIGNALBOX_"))
        return dict(variable.split("=", 1) for variable in ours if "=" in variable)

    def catches(pid: int, number: int) -> bool:
        """Whether a process has a handler for a signal, so that it does not die of it."""
        try:
            status = (_PROC / str(pid) / "status").read_text()
        except OSError:
            return False
        caught = next(
            (line for line in status.splitlines() if line.startswith("SigCgt:")), "SigCgt: 0"
        )
        return bool(int(caught.split()[1], 16) >> (number - 1) & 1)

    def _send(target: ProcessId, number: int, wake: bool) -> bool:
        # A pidfd is bound to one process: between the check and the signal no pid can be reused.
        try:
            descriptor = os.pidfd_open(target.pid)
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            descriptor = None  # a kernel before 5.3, or a sandbox that leaves it out
        try:
            row = _row(target.pid)
            if row is None or row.id != target or not row.alive:
                return False
            if row.state == "T" and not wake:
                return False
            for each in (number, signal.SIGCONT) if row.state == "T" else (number,):
                if descriptor is None:
                    os.kill(target.pid, each)
                else:
                    signal.pidfd_send_signal(descriptor, each)
        finally:
            if descriptor is not None:
                os.close(descriptor)
        return True

else:
    _KILL = getattr(signal, "SIGKILL", signal.SIGTERM)

    def _boot() -> str:
        return str(int(psutil.boot_time()))

    def _psutil_row(process: psutil.Process) -> ProcessRow | None:
        try:
            with process.oneshot():
                zombie = process.status() == psutil.STATUS_ZOMBIE
                times = process.cpu_times()
                return ProcessRow(
                    ProcessId(process.pid, f"{_boot()}:{process.create_time():.3f}"),
                    parent=process.ppid(),
                    state="Z" if zombie else "S",
                    memory_bytes=0 if zombie else process.memory_info().rss,
                    cpu_seconds=times.user + times.system,
                    waited_seconds=times.children_user + times.children_system,
                )
        except psutil.Error:
            return None

    def _row(pid: int) -> ProcessRow | None:
        try:
            return _psutil_row(psutil.Process(pid))
        except psutil.Error:
            return None

    def read_table() -> dict[int, ProcessRow]:
        """Every process of the machine by its pid."""
        rows = map(_psutil_row, psutil.process_iter())
        return {row.id.pid: row for row in rows if row is not None}

    def _environment(pid: int) -> dict[str, str]:
        return _variables(pid)

    def _variables(pid: int) -> dict[str, str]:
        try:
            return dict(psutil.Process(pid).environ())
        except (psutil.Error, OSError):
            return {}

    def _carries(pid: int, mark: Mark) -> bool:
        variables = _variables(pid)
        return all(variables.get(n) == v for n, v in mark.variables().items())

    def catches(pid: int, number: int) -> bool:
        return False  # there is no way to know, and a process that does not catch it would die

    def _send(target: ProcessId, number: int, wake: bool) -> bool:
        process = psutil.Process(target.pid)
        row = _psutil_row(process)
        if row is None or row.id != target or not row.alive:
            return False
        process.send_signal(number)
        return True
