"""What stacks.txt says: reads it, and puts it as a sentence. Pure text; `backend.hang` writes it.

The file is one section for each time that somebody asked:

    === Taken at 2026-11-23T18:02:45Z
    === Process 4711: python train.py
    role: training
    state: S (sleeping)
    cpu: 0 %
    waits in: read on a pipe
    Current thread 0x00007f2 (most recent call first):
      File "/home/me/train.py", line 12 in next_batch
        source: batch = os.read(pipe, 1)
    === End

The stacks are as faulthandler writes them, the main thread's last; see Python's documentation. The
file is the job's: whatever else stands in it is only text.
"""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Final

BUSY_PERCENT: Final = 50
"""Of one core; from there on a process is said to be busy."""

MAX_SOURCES: Final = 5
"""Of each thread's own frames so many are written down with their lines."""

END: Final = "=== End"
"""What comes after it is of a process that answered too late, and nobody knows whose."""

STATES: Final[Mapping[str, str]] = {
    "R": "running",
    "S": "sleeping",
    "D": "waiting for a disk or a driver",
    "T": "stopped, as by SIGSTOP or Ctrl-Z",
    "t": "stopped by a debugger",
    "Z": "dead",
}
"""The states of proc(5) in words."""

_MAX_NAMED: Final = 3
"""How many clauses a sentence has beside the main thread's."""

_TAKEN: Final = re.compile(r"^=== Taken at (\S+)$", re.MULTILINE)
_PROCESS: Final = re.compile(r"=== Process (\d{1,10}): ?(.*)")
_FIELD: Final = re.compile(r"(role|state|cpu|waits in|died of|holds the GIL): (.*)")
_THREAD: Final = re.compile(r"(?:Current thread|Thread) 0x[0-9a-f]+ (?:\[(.*)\] )?\(most recent")
_MORE_THREADS: Final = "..."
"""faulthandler stops after 100 threads, the newest first: the main thread is not among them."""
_FRAME: Final = re.compile(r'  File "(.{1,4096})", line (\d{1,9}) in (.{1,500})')
_SOURCE: Final = re.compile(r"    source: (.+)")
_STOPPED: Final = "It is stopped, as by SIGSTOP or Ctrl-Z."
"""Of an earlier release."""
_RAISED_IN: Final = re.compile(r'  File "(.{1,4096})", line (\d{1,9})(?:, in (.{1,500}))?')
_RAISED_AT: Final = re.compile(r"    (\S.*)")
_BORN: Final = re.compile(r"[/\\]multiprocessing[/\\]process\.py$")
_UP_TO_MODULES: Final = re.compile(r"^.*[/\\](?:(?:site|dist)-packages|python3[.\d]*)[/\\]")
_NOT_THEIRS: Final = re.compile(
    r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib(?:64)?[/\\]python3|\\Lib\\"
    r"|[/\\]backend[/\\]training[/\\](?!recipes[/\\])|^<frozen"
)


@dataclass(frozen=True)
class Frame:
    """One call."""

    path: str
    line: int
    function: str
    source: str = ""
    """The line itself, where it is known."""

    @property
    def is_own(self) -> bool:
        """Whether it is the user's, neither Python's nor a library's nor Signalbox's."""
        return not _NOT_THEIRS.search(self.path)


@dataclass(frozen=True)
class Thread:
    """One thread of a process."""

    name: str
    """What Python calls it; empty where that is not known."""
    frames: tuple[Frame, ...]
    """The innermost first."""
    is_main: bool = False


@dataclass(frozen=True)
class Process:
    """One process of the job, as it was when somebody asked."""

    pid: int
    role: str
    """`training`, `DataLoader worker 0`, `rank 1`, `fork` or `child`."""
    state: str
    """As in proc(5); empty where it is not known."""
    waits_in: str
    """A system call and what it is on: `read on a pipe`; empty if it runs or is not known."""
    threads: tuple[Thread, ...]
    """The main thread last."""
    command: str = ""
    cpu_percent: float | None = None
    died_of: str = ""
    """`SIGKILL` or `exit code 1` of one that is dead and was not waited for."""
    holds_gil: bool = False
    """The main thread holds it while it waits: no other thread of the process can run."""

    @property
    def main_thread(self) -> Thread | None:
        return next((thread for thread in self.threads if thread.is_main), None)

    @property
    def is_dead(self) -> bool:
        return self.state == "Z"

    @property
    def is_stopped(self) -> bool:
        return self.state in ("T", "t")

    @property
    def is_busy(self) -> bool:
        """Whether it computes, or would if it had a processor."""
        return self.state == "R" or (self.cpu_percent or 0) >= BUSY_PERCENT


@dataclass(frozen=True)
class Report:
    """What was found when somebody asked."""

    processes: tuple[Process, ...]
    """The training first; at least one."""
    taken_at: str | None = None
    """UTC ISO 8601; None in a file of an earlier release."""

    @property
    def training(self) -> Process:
        return self.processes[0]


# Reading it.


def read(text: str) -> Report | None:
    """The newest section of a stacks.txt, of an earlier release's too; None if there is none.

    Never raises, whatever the text is.
    """
    starts = list(_TAKEN.finditer(text))
    ends = [*(match.start() for match in starts[1:]), len(text)]
    for match, end in reversed(list(zip(starts, ends, strict=False))):
        processes = _processes(text[match.end() : end])
        if processes:
            return Report(processes, match.group(1))
    processes = _processes(text)
    return Report(processes) if processes else None


def newest(text: str) -> str:
    """The newest section of a stacks.txt, as it is written; the whole text where it has none."""
    starts = [match.start() for match in _TAKEN.finditer(text)]
    return text[starts[-1] :] if starts else text


def own_frames(report: Report) -> list[Frame]:
    """The user's own frames of the training's main thread, the innermost first."""
    thread = report.training.main_thread
    return [frame for frame in thread.frames if frame.is_own] if thread else []


def where(text: str) -> str | None:
    """Where the training stood by the last stacks taken: `next_batch (train.py, line 12)`.

    The innermost frame of its main thread that is the user's own, else the innermost of all; None
    where there is none.
    """
    report = read(text)
    thread = report and report.training.main_thread
    if not thread or not thread.frames:
        return None
    frame = _innermost_own(thread) or thread.frames[0]
    return f"{_quoted(frame.function)} ({_quoted(_file_name(frame.path))}, line {frame.line})"


def traceback_frames(text: str) -> list[Frame]:
    """The user's own frames of the last exception of a traceback, the innermost first, with their
    lines of source. Never raises."""
    found: list[Frame] = []
    wants_source = False
    for line in text.split("\n"):
        if line.startswith("Traceback (most recent call last)"):
            found = []
        elif match := _RAISED_IN.fullmatch(line):
            path, number, function = match.groups()
            # A syntax error has a line, and is in no function yet.
            found.append(Frame(path, int(number), function or "<module>"))
            wants_source = True
        elif wants_source and (match := _RAISED_AT.fullmatch(line)):
            found[-1] = replace(found[-1], source=match.group(1))
            wants_source = False
    return [frame for frame in reversed(found) if frame.is_own]


def with_sources(text: str, source_of: Callable[[Frame], str]) -> str:
    """Stacks as faulthandler writes them, below the innermost of the user's own frames of each
    thread their lines of source, where there are any."""
    lines = []
    wanted = MAX_SOURCES
    for line in text.split("\n"):
        lines.append(line)
        if _THREAD.match(line):
            wanted = MAX_SOURCES
        elif wanted and (frame := _frame(line)) and frame.is_own:
            wanted -= 1
            if source := source_of(frame):
                lines.append(f"    source: {source}")
    return "\n".join(lines)


def _processes(text: str) -> tuple[Process, ...]:
    """Of each process what was written last, in the order in which they came up first."""
    blocks: dict[int, list[str]] = {}
    lines: list[str] = []
    for line in text.split("\n"):
        if line == END:
            break
        if match := _PROCESS.fullmatch(line):
            blocks[int(match.group(1))] = lines = []
        lines.append(line)
    processes = [_process(pid, lines) for pid, lines in blocks.items()]
    if processes and not processes[0].role:
        processes[0] = replace(processes[0], role="training")
    return tuple(p if p.role else replace(p, role="child") for p in processes)


def _process(pid: int, lines: Sequence[str]) -> Process:
    header = _PROCESS.fullmatch(lines[0])
    fields: dict[str, str] = {}
    names: list[str] = []
    stacks: list[list[Frame]] = []
    has_main = True
    for line in lines[1:]:
        if match := _THREAD.match(line):
            names.append(match.group(1) or "")
            stacks.append([])
        elif frame := _frame(line):
            if not stacks:
                names.append("")
                stacks.append([])
            stacks[-1].append(frame)
        elif (match := _SOURCE.fullmatch(line)) and stacks and stacks[-1]:
            stacks[-1][-1] = replace(stacks[-1][-1], source=match.group(1))
        elif match := _FIELD.fullmatch(line):
            fields.setdefault(match.group(1), match.group(2))
        elif line == _STOPPED:
            fields["state"] = "T"
        elif line == _MORE_THREADS:
            has_main = False
    threads = [Thread(n, _since_fork(stack)) for n, stack in zip(names, stacks, strict=True)]
    if threads and has_main:
        threads[-1] = replace(threads[-1], is_main=True)
    cpu = fields.get("cpu", "").removesuffix(" %")
    return Process(
        pid=pid,
        role=fields.get("role", ""),
        state=fields.get("state", "")[:1],
        waits_in=fields.get("waits in", ""),
        threads=tuple(threads),
        command=header.group(2) if header else "",
        cpu_percent=float(cpu) if cpu.isascii() and cpu.isdecimal() and len(cpu) < 9 else None,
        died_of=fields.get("died of", ""),
        holds_gil="holds the GIL" in fields,
    )


def _since_fork(stack: Sequence[Frame]) -> tuple[Frame, ...]:
    """Without what a child of multiprocessing has of its parent's stack."""
    for number, frame in enumerate(stack, 1):
        if _last(frame.function) == "_bootstrap" and _BORN.search(frame.path):
            return tuple(stack[:number])
    return tuple(stack)


def _frame(line: str) -> Frame | None:
    match = _FRAME.fullmatch(line)
    return Frame(match.group(1), int(match.group(2)), match.group(3)) if match else None


def _innermost_own(thread: Thread) -> Frame | None:
    return next((frame for frame in thread.frames if frame.is_own), None)


# Saying it.

_BATCH: Final = "the next batch of its DataLoader"
_OTHER_THREADS: Final = "the end of its other threads"
_WAITS: Final[Sequence[tuple[re.Pattern[str], str]]] = tuple(
    (re.compile(rf"(?:^|[/\\]){path} {function}$"), name)
    for path, function, name in (
        (r"queue\.py", "(get|put|join)", r"queue.\1"),
        (r"threading\.py", "(?:acquire|__enter__)", "Lock.acquire"),
        (r"threading\.py", "wait_for", "Condition.wait_for"),
        (r"threading\.py", "wait", "Condition.wait"),
        (r"threading\.py", "join", "Thread.join"),
        (r"threading\.py", "_shutdown", _OTHER_THREADS),
        (
            r"multiprocessing/connection\.py",
            "(recv|recv_bytes|send|send_bytes|poll)",
            r"Connection.\1",
        ),
        (r"multiprocessing/connection\.py", "accept", "Listener.accept"),
        (r"multiprocessing/connection\.py", "wait", "multiprocessing.connection.wait"),
        (r"multiprocessing/queues\.py", "(get|put|join)", r"queue.\1"),
        (r"multiprocessing/process\.py", "join", "Process.join"),
        (r"multiprocessing/pool\.py", "((?:star)?map|apply|join|get|wait|next)", r"Pool.\1"),
        (r"multiprocessing/synchronize\.py", "(wait|wait_for)", r"Condition.\1"),
        (r"multiprocessing/synchronize\.py", "__enter__", "Lock.acquire"),
        (r"subprocess\.py", "(wait|communicate)", r"Popen.\1"),
        (r"subprocess\.py", "(run|call|check_call|check_output|getoutput)", r"subprocess.\1"),
        (r"concurrent/futures/_base\.py", "(result|exception)", r"Future.\1"),
        (r"concurrent/futures/_base\.py", "(wait|as_completed|result_iterator)", r"futures.\1"),
        (r"concurrent/futures/(?:thread|process)\.py", "shutdown", "Executor.shutdown"),
        (r"socket\.py", "(accept|create_connection)", r"socket.\1"),
        (r"socket\.py", "readinto", "socket.recv"),
        (r"ssl\.py", "(recv|read|send|write|connect|do_handshake)", r"SSLSocket.\1"),
        (r"urllib/request\.py", "(urlopen|urlretrieve)", r"\1"),
        (r"http/client\.py", "(getresponse|request|connect)", r"HTTPConnection.\1"),
        (r"selectors\.py", "select", "select"),
        (
            r"asyncio/(?:runners|base_events)\.py",
            "(?:run|run_until_complete|run_forever)",
            "asyncio.run",
        ),
        (r"torch/utils/data/dataloader\.py", r"\w+", _BATCH),
        (r"torch/distributed/distributed_c10d\.py", r"(\w+)", r"torch.distributed.\1"),
        (r"torch/_tensor\.py", "backward", "Tensor.backward"),
        (r"torch/multiprocessing/spawn\.py", r"\w+", "torch.multiprocessing.spawn"),
    )
)
"""The file and the function of a library, and what its caller knows it as."""

_SLEEPS: Final = frozenset({"nanosleep", "clock_nanosleep"})
_WORDS: Final[Mapping[str, str]] = {
    "futex": "a lock",
    "wait4": "a process that it started",
    "waitid": "a process that it started",
}
_ON: Final = re.compile(r"(\w+) on (.+)")
_DEFINITION: Final = re.compile(r"(?:def|class|async def)\b")
_WORKER_LOOPS: Final = ("_worker_loop", "worker", "_process_worker")
"""Of DataLoader, of Pool and of ProcessPoolExecutor."""
_IDLE_COMMANDS: Final = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


def sentence(
    report: Report,
    *,
    last_step: int | None,
    silent_seconds: float | None,
    phase: str | None,
) -> str:
    """What a person wants to know first: who waits for what, and since when."""
    training = report.training
    subject = "main thread" if training.role == "training" else _name_of(training)
    clauses = [f"The {subject} {_doing(training, training.main_thread)}"]
    doing_so: dict[str, list[str]] = {}
    for name, doing in _others(report):
        doing_so.setdefault(doing, []).append(name)
    for doing, names in itertools.islice(doing_so.items(), _MAX_NAMED):
        more = len(names) - 1
        so_do = f" (and so {'is 1 other' if more == 1 else f'are {more} others'})" if more else ""
        clauses.append(f"{names[0]} {doing}{so_do}")
    return "; ".join(clauses) + "." + _progress(last_step, silent_seconds, phase)


def one_line(text: str, longest: int = 200) -> str:
    """A text of anybody's as one line of characters that can be printed."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _others(report: Report) -> list[tuple[str, str]]:
    """Everybody else of whom there is something to say, and what; the most telling first."""
    training, *processes = report.processes
    found: list[tuple[_Urgency, str, str]] = []
    for thread in training.threads:
        if not thread.is_main and not training.is_stopped and _innermost_own(thread):
            name = f"thread `{_quoted(thread.name)}`" if thread.name else "another thread"
            found.append((_Urgency.RUNNING, name, _doing(training, thread)))
    for process in processes:
        if not _is_idle(process):
            doing = _doing(process, process.main_thread)
            found.append((_urgency(process), _name_of(process), doing))
    return [(name, doing) for _, name, doing in sorted(found, key=lambda entry: entry[0])]


def _name_of(process: Process) -> str:
    if process.role == "fork":
        return f"child {process.pid} (a fork)"
    if process.role != "child":
        return process.role
    program, *arguments = process.command.split(" ") if process.command else [""]
    command = _quoted(" ".join([_file_name(program), *arguments]), 40)
    return f"child {process.pid}" + (f" (`{command}`)" if command else "")


class _Urgency(IntEnum):
    """How much a process may have to do with it."""

    DEAD = 0
    STOPPED = 1
    RUNNING = 2
    NO_PYTHON = 3


def _urgency(process: Process) -> _Urgency:
    if process.is_dead:
        return _Urgency.DEAD
    if process.is_stopped:
        return _Urgency.STOPPED
    is_python = process.role != "child" or process.threads
    return _Urgency.RUNNING if is_python else _Urgency.NO_PYTHON


def _is_idle(process: Process) -> bool:
    """Whether a process waits for work, as it does most of its life."""
    if any(words in process.command for words in _IDLE_COMMANDS):
        return True
    thread = process.main_thread
    if process.is_dead or process.is_stopped or thread is None:
        return False
    for inner, frame in itertools.pairwise(thread.frames):
        if inner.is_own:
            return False
        if _last(frame.function) in _WORKER_LOOPS:
            return _last(inner.function) == "get" and inner.path.endswith("queues.py")
    return False


def _doing(process: Process, thread: Thread | None) -> str:
    """What a thread does, from the verb on."""
    frames = thread.frames if thread else ()
    own = thread and _innermost_own(thread)
    library = frames[: frames.index(own)] if own else frames
    place = own or next(iter(frames), None)
    at = f" ({_place(place)})" if place else ""
    if process.is_dead:
        return _death(process)
    if process.is_stopped:
        return f"is {STATES[process.state]}{at}"
    if thread is not process.main_thread:
        process = replace(process, state="", waits_in="", cpu_percent=None, holds_gil=False)
    if place is None:
        return _by_the_kernel(process)
    name = _wait_of(library)
    if name == _OTHER_THREADS:
        return f"is waiting for {name}"
    if name == _BATCH:
        return f"is waiting for {name}{at}"
    if name:
        return f"is waiting in `{name}`{at}{_blocked(process)}"
    verb = _verb(process, is_call=bool(library))
    source = own.source if own and not _DEFINITION.match(own.source) else ""
    called = f"`{_quoted(source or place.function)}`"
    if own and library:
        called = f"{_call(library[0])}, called from {called}"
    elif library:
        return f"is {verb}in {_call(place)}{_blocked(process)}"
    elif not source and place.function == "<module>":
        return f"is {verb}at {_place(place)}{_blocked(process)}"
    return f"is {verb}in {called}{at}{_blocked(process)}"


def _call(frame: Frame) -> str:
    """`linear` of torch/nn/functional.py."""
    return f"`{_quoted(frame.function)}` of {_quoted(_module(frame))}"


def _death(process: Process) -> str:
    how = f" of {process.died_of}" if process.died_of.startswith("SIG") else ""
    code = f", with {process.died_of}" if process.died_of.startswith("exit") else ""
    return f"is dead: it died{how}{code}, and nobody has waited for it"


def _verb(process: Process, *, is_call: bool) -> str:
    """`busy `, as far as the kernel knows. A call of a library that keeps cores busy may itself
    wait for its threads."""
    if process.is_busy and (is_call or not process.waits_in):
        return "busy "
    if process.waits_in in _SLEEPS:
        return "sleeping "
    if process.waits_in == "futex" and not is_call:
        return "waiting for a lock "
    return "waiting " if process.waits_in or process.state in tuple("SD") else ""


def _by_the_kernel(process: Process) -> str:
    """What a process does whose calls are not known."""
    if process.waits_in in _SLEEPS:
        return "is sleeping"
    if process.waits_in in _WORDS:
        return f"is waiting for {_WORDS[process.waits_in]}"
    if blocked := _blocked(process):
        return f"is{blocked.removeprefix(',')}"
    if process.waits_in:
        return f"is waiting in `{_quoted(process.waits_in)}`"
    return "is busy" if process.is_busy else "does not say more"


def _blocked(process: Process) -> str:
    """What the kernel adds to the calls."""
    match = _ON.fullmatch(process.waits_in)
    disk = f", {STATES['D']}" if process.state == "D" else ""
    call = f", blocked in `{_quoted(match.group(1))}` on {_quoted(match.group(2))}" if match else ""
    gil = ", while it holds the GIL, so no other thread can run" if process.holds_gil else ""
    return disk + call + gil


def _wait_of(frames: Sequence[Frame]) -> str | None:
    """The wait that frames of libraries are, as the caller knows it: the outermost that has a
    name."""
    for number, frame in reversed(list(enumerate(frames))):
        call = f"{frame.path} {_last(frame.function)}".replace("\\", "/")
        for pattern, name in _WAITS:
            if match := pattern.search(call):
                inner = frames[number - 1].function if number else ""
                if name == "Condition.wait" and _last(inner) == "wait":
                    return "Event.wait"  # of which a condition's wait is a part
                return match.expand(name)
    return None


def _last(name: str) -> str:
    """`wait` of `Event.wait`: py-spy names the class, faulthandler does not."""
    return name.rpartition(".")[2]


def _place(frame: Frame) -> str:
    function = "" if frame.function == "<module>" else f", in {_quoted(frame.function)}"
    return f"{_quoted(_file_name(frame.path))}, line {frame.line}{function}"


def _file_name(path: str) -> str:
    return re.split(r"[/\\]", path)[-1]


def _module(frame: Frame) -> str:
    """`torch/nn/functional.py` of a path somewhere in the file system."""
    return _UP_TO_MODULES.sub("", frame.path)


def _quoted(text: str, longest: int = 60) -> str:
    return one_line(text.replace("`", "'"), longest)


def _progress(last_step: int | None, silent_seconds: float | None, phase: str | None) -> str:
    within = f", in phase `{_quoted(phase)}`" if phase and phase.strip() else ""
    since = None if silent_seconds is None else _about(silent_seconds)
    if last_step is not None:
        ago = f", {since} ago" if since else ""
        return f" The last progress was step {last_step}{ago}{within}."
    if since:
        return f" It has reported no progress for {since}{within}."
    return f" It is{within.removeprefix(',')}." if within else ""


def _about(seconds: float) -> str:
    """Whole minutes from two minutes on, and whole hours from two hours on."""
    units = (("hour", 3600), ("minute", 60), ("second", 1))
    unit, size = next((unit for unit in units if seconds >= 2 * unit[1]), units[-1])
    number = max(1, round(seconds / size))
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"
