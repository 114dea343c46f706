"""Why a job hangs: writes down what each of its processes waits in; `backend.stacks` reads it."""

import contextlib
import json
import logging
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from backend import kernel, stacks
from backend.paths import open_inside
from backend.processes import (
    STACKS_SIGNAL,
    TABLE,
    ProcessId,
    ProcessRow,
    catches,
    command_line,
    send_signal,
    variables_of,
)
from backend.stacks import Frame, one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

MAX_PROCESSES: Final = 64
MAX_PROCESS_BYTES: Final = 64 * 2**10
MAX_SECTION_BYTES: Final = 224 * 2**10
"""So that the newest section is whole in the last 256 KiB, which a failure keeps."""
MAX_FILE_BYTES: Final = 2**20

SOURCE_SECONDS: Final = 1.0
"""How long the source files may take: they may be on the disk that the job waits for."""

_SETTLED_SECONDS: Final = 0.1
_MAX_SOURCE_BYTES: Final = 2**20
_MAX_SOURCE_CHARACTERS: Final = 100
_MAX_FRAMES: Final = 100

_LAST_FRAME: Final = re.compile(rb'training/runner\.py", line \d+ in <module>\n\Z')
_ESCAPED: Final = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))")
_UNNAMED: Final = re.compile(r"^((?:Current thread|Thread) 0x([0-9a-f]+)) (?=\(most)", re.MULTILINE)
_NO_MAIN_THREAD: Final = "\n...\n"
"""The end of faulthandler's answer for more than 100 threads."""
_DATALOADER_WORKER: Final = "torch/utils/data/_utils/worker.py"


def capture(
    rows: Sequence[ProcessRow],
    path: Path,
    leader: ProcessId,
    *,
    source_folders: Sequence[Path] = (),
    patience_seconds: float = 2.0,
) -> bool:
    """Append a section about every process of a job's tree to `path`, its stacks.txt; whether that
    could be written.

    Nothing is stopped, woken or killed for it: only those are signalled that have the file open
    and catch the signal, and py-spy reads the rest without stopping them, where it may. Python
    begins again what a signal interrupts; a C call such as sleep(3) may come back early.

    Takes a third of a second where all answer, and at most about two seconds more than twice the
    patience. Of one job one is taken at a time.

    Args:
        rows: the processes of the tree.
        leader: the job's runner, which only waits and is left out.
        source_folders: source files below these may be quoted, some lines for each thread.
        patience_seconds: for all answers to the signal together, and as much for py-spy.
    """
    with _turn(path):
        try:
            descriptor = open_inside(path, os.O_RDWR | os.O_APPEND | os.O_CREAT)
        except OSError:
            return False
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return False
            file = _StacksFile(descriptor, patience_seconds + kernel.SAMPLE_SECONDS)
            subjects = _subjects(rows, leader)
            file.append(_section(subjects, file, source_folders, patience_seconds))
        except OSError as error:
            logger.warning("Could not write the stacks into %s: %s", path, error)
            return False
        finally:
            os.close(descriptor)
    return True


_busy: Final[set[Path]] = set()
_one_is_free: Final = threading.Condition()


@contextlib.contextmanager
def _turn(path: Path) -> Generator[None, None, None]:
    """Of one file one at a time: answers would be taken for each other's."""
    with _one_is_free:
        _one_is_free.wait_for(lambda: path not in _busy)
        _busy.add(path)
    try:
        yield
    finally:
        with _one_is_free:
            _busy.discard(path)
            _one_is_free.notify_all()


# Who is asked, and in which order.


@dataclass(frozen=True)
class _Subject:
    """A process that is asked."""

    row: ProcessRow
    name: str
    """As the kernel has it; the only thing that is left of a dead one."""
    command: str
    is_training: bool
    is_fork: bool
    rank: str | None

    @property
    def pid(self) -> int:
        return self.row.id.pid


def _subjects(rows: Sequence[ProcessRow], leader: ProcessId) -> list[_Subject]:
    """The processes to ask, the training first, the others as they were started, the dead ones
    that nobody has waited for among them."""
    living = {row.id.pid: row for row in rows if row.id != leader}
    parents = {leader.pid, *living}
    dead = [
        row
        for row in TABLE.rows(afresh=True).values()
        if not row.alive and row.parent in parents and row.id.pid not in living
    ]
    ordered = sorted([*living.values(), *dead], key=lambda row: (row.id.age_rank, row.id.pid))
    scripts = [row for row in ordered if row.parent == leader.pid and row.alive]
    training = scripts[0] if scripts else next(iter(ordered), None)
    if training is not None:
        ordered.remove(training)
        ordered.insert(0, training)
    ranks = {row.id.pid: variables_of(row.id, ["RANK"]).get("RANK", "") for row in ordered}
    found: list[_Subject] = []
    for row in ordered:
        pid, rank = row.id.pid, ranks[row.id.pid]
        name = kernel.name_of(pid)
        command = one_line(command_line(pid)) or name
        found.append(
            _Subject(
                row,
                name,
                command,
                is_training=row is training,
                is_fork=bool(found) and command == found[0].command,
                # What a rank starts inherits its number, and is no rank.
                rank=rank if rank.isdecimal() and rank != ranks.get(row.parent) else None,
            )
        )
    return found


# What is written of them.


def _section(
    subjects: Sequence[_Subject],
    file: "_StacksFile",
    source_folders: Sequence[Path],
    patience_seconds: float,
) -> str:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    shown = subjects[:MAX_PROCESSES]
    # The sample comes before any signal: a child on its way from fork to exec still has our
    # handler, and is something else by the end of it.
    shares = kernel.cpu_shares([subject.pid for subject in shown])
    spy = _Spy(patience_seconds)
    workers: dict[int, int] = {}
    blocks = [_block(subject, shares.get(subject.pid), file, spy, workers) for subject in shown]
    blocks = _within(SOURCE_SECONDS, lambda: _with_sources(blocks, source_folders)) or blocks
    text = f"\n=== Taken at {now}\n"
    room = MAX_SECTION_BYTES - 1024
    for block in blocks:
        block = _cut(block, min(room, MAX_PROCESS_BYTES))
        room -= len(block.encode())
        text += block
    if len(subjects) > len(shown):
        text += f"And {len(subjects) - len(shown)} more processes.\n"
    return f"{text}{stacks.END}\n"


def _block(
    subject: _Subject,
    cpu_share: float | None,
    file: "_StacksFile",
    spy: "_Spy",
    workers: dict[int, int],
) -> str:
    """What is found out about one process."""
    pid = subject.pid
    state = kernel.state_of(pid) or subject.row.state
    facts = [f"state: {state} ({stacks.STATES.get(state, 'unknown')})"]
    calls = ""
    if state == "Z":
        facts += [f"died of: {kernel.death_of(pid)}"]
    else:
        waits_in = kernel.waits_in(pid)
        facts += [f"cpu: {cpu_share:.0f} %"] if cpu_share is not None else []
        facts += [f"waits in: {waits_in}"] if waits_in else []
        calls, holds_gil = _calls(subject, state, file, spy)
        facts += ["holds the GIL: main thread"] if waits_in and holds_gil else []
    head = [f"=== Process {pid}: {subject.command}", f"role: {_role(subject, calls, workers)}"]
    return "\n".join(head + facts) + f"\n{calls}\n"


def _role(subject: _Subject, calls: str, workers: dict[int, int]) -> str:
    if subject.is_training:
        return "training"
    if _DATALOADER_WORKER in calls or subject.name == "pt_data_worker":
        parent = subject.row.parent
        workers[parent] = number = workers.get(parent, -1) + 1
        return f"DataLoader worker {number}"
    if subject.rank is not None:
        return f"rank {subject.rank}"
    return "fork" if subject.is_fork else "child"


def _calls(subject: _Subject, state: str, file: "_StacksFile", spy: "_Spy") -> tuple[str, bool]:
    """The stacks of a process, or in a line why there are none; and whether its main thread holds
    the GIL."""
    # Before the signal, which makes some calls of native code come back.
    spied = spy.threads(subject.pid) if subject.is_training else None
    answer = "" if state in ("T", "t", "D") else file.ask(subject.row)
    is_whole = bool(answer) and not answer.endswith(_NO_MAIN_THREAD)
    if spied is None and not is_whole:
        spied = spy.threads(subject.pid)
    if spied is None or isinstance(spied, str):
        return answer or spied or "", False
    holds_gil = any(thread.holds_gil and thread.is_main for thread in spied)
    if is_whole:
        return _with_names(answer, spied), holds_gil
    return "".join(thread.text for thread in spied), holds_gil


class _StacksFile:
    """A stacks.txt while a section is made: the processes that are asked write into it as well."""

    def __init__(self, descriptor: int, patience_seconds: float) -> None:
        self._descriptor = descriptor
        self._deadline = time.monotonic() + patience_seconds
        self._drop_old_sections()
        self._end = self._size()
        self._owes_an_answer = False

    def append(self, text: str) -> None:
        """Raises OSError: it cannot be written, and is as it was."""
        os.ftruncate(self._descriptor, self._end)  # without what came too late
        content = text.encode("utf-8", "replace")
        try:
            while content:
                content = content[os.write(self._descriptor, content) :]
        except OSError:
            os.ftruncate(self._descriptor, self._end)
            raise

    def ask(self, row: ProcessRow) -> str:
        """What a process writes when it is signalled; taken out of the file again. Empty where it
        cannot be asked, or does not answer."""
        if (
            STACKS_SIGNAL is None
            or self._owes_an_answer  # one that comes late would be taken for the next one's
            or not catches(row.id.pid, STACKS_SIGNAL)
            or kernel.blocks(row.id.pid, STACKS_SIGNAL)
            or not kernel.has_open(row.id.pid, self._descriptor)
            or not send_signal(row.id, STACKS_SIGNAL, wake=False)
        ):
            return ""
        if not self._wait_for_answer():
            self._owes_an_answer = True
            return ""
        size = self._size()
        kept = min(size - self._end, MAX_FILE_BYTES)
        answer = os.pread(self._descriptor, kept, size - kept)
        os.ftruncate(self._descriptor, self._end)
        return _unescaped(answer.decode("utf-8", "replace"))

    def _wait_for_answer(self) -> bool:
        size, changed = self._end, time.monotonic()
        while (now := time.monotonic()) < self._deadline:
            before, size = size, self._size()
            if size != before:
                changed = now
            if size > self._end and (now - changed >= _SETTLED_SECONDS or self._is_complete(size)):
                return True
            time.sleep(0.01)
        return size > self._end

    def _is_complete(self, size: int) -> bool:
        end = os.pread(self._descriptor, 512, max(self._end, size - 512))
        return _LAST_FRAME.search(end) is not None

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _drop_old_sections(self) -> None:
        """Make room for one more section. The file stays the same one: the job has it open."""
        size = self._size()
        most = MAX_FILE_BYTES - MAX_SECTION_BYTES
        if size <= most:
            return
        kept = os.pread(self._descriptor, most, size - most)
        first = kept.find(b"\n=== Taken at ")
        self._end = 0
        self.append(kept[first:].decode("utf-8", "replace") if first >= 0 else "")


@dataclass(frozen=True)
class _SpiedThread:
    """A thread as py-spy has it."""

    identity: int
    """What `threading.get_ident` says, and faulthandler writes."""
    name: str
    is_main: bool
    holds_gil: bool
    text: str
    """Its stack in faulthandler's words."""

    @classmethod
    def of(cls, pid: int, thread: Mapping[str, Any]) -> "_SpiedThread":
        identity = int(thread["thread_id"])
        name = one_line(str(thread.get("thread_name") or "")).replace("]", ")")
        text = f"Thread 0x{identity:016x} [{name}] (most recent call first):\n"
        for frame in thread["frames"][:_MAX_FRAMES]:
            path, function = (one_line(str(frame[key]), 500) for key in ("filename", "name"))
            text += f'  File "{path}", line {int(frame["line"])} in {function}\n'
        is_main = thread.get("os_thread_id") == pid
        return cls(identity, name, is_main, thread.get("owns_gil") is True, text + "\n")


class _Spy:
    """py-spy, which reads a Python process from outside, where the system allows it."""

    def __init__(self, patience_seconds: float) -> None:
        self._seconds_left = patience_seconds
        folders = (str(Path(sys.executable).parent), sysconfig.get_path("scripts"))
        self._program = shutil.which("py-spy", path=os.pathsep.join(folders))

    def threads(self, pid: int) -> list[_SpiedThread] | str:
        """The threads of a process, the main one last; or why not, in a line."""
        if not kernel.may_be_python(pid):
            return "It is no Python process.\n"
        if self._program is None:
            return "Its stacks cannot be read: py-spy is not installed beside Python.\n"
        if self._seconds_left <= 0:
            return "Its stacks were not read: there was no time left.\n"
        began = time.monotonic()
        options = ["dump", "--nonblocking", "--full-filenames", "--json", "--pid", str(pid)]
        try:
            code, output, errors = _run_briefly([self._program, *options], self._seconds_left)
            if code:
                return f"Its stacks cannot be read by py-spy: {_reason(errors)}\n"
            found = [_SpiedThread.of(pid, thread) for thread in json.loads(output)]
            return sorted(found, key=lambda thread: thread.is_main)
        except subprocess.TimeoutExpired:
            return "Its stacks cannot be read: py-spy took too long.\n"
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            return f"Its stacks cannot be read by py-spy: {one_line(str(error))}\n"
        finally:
            self._seconds_left -= time.monotonic() - began


def _run_briefly(command: Sequence[str], seconds: float) -> tuple[int, bytes, bytes]:
    """The exit code and both outputs of a program.

    Raises:
        subprocess.TimeoutExpired: it took longer, and was killed.
        OSError: it could not be started.
    """
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        # Where the other hangs in the kernel this one may hang as well, so it is not waited for
        # longer than a moment.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=0.5)
        if process.returncode is None:
            process.returncode = -1  # or its destructor warns
        raise
    return process.returncode, output, errors


def _reason(errors: bytes) -> str:
    """The first line of what py-spy says."""
    line = errors.decode("utf-8", "replace").strip().partition("\n")[0]
    return one_line(line.removeprefix("Error: ")) or "it does not say why"


def _with_names(answer: str, threads: Sequence[_SpiedThread]) -> str:
    """faulthandler's answer with the names that py-spy knows."""
    names = {thread.identity: thread.name for thread in threads if thread.name}

    def named(match: re.Match[str]) -> str:
        name = names.get(int(match.group(2), 16))
        return f"{match.group(1)} [{name}] " if name else match.group()

    return _UNNAMED.sub(named, answer)


def _unescaped(text: str) -> str:
    """The file names as they are: faulthandler writes `ä` as a backslash and `xe4`."""

    def character(match: re.Match[str]) -> str:
        number = int(next(filter(None, match.groups())), 16)
        readable = number < 0x110000 and chr(number).isprintable()
        return chr(number) if readable else match.group()

    return _ESCAPED.sub(character, text)


def _cut(text: str, most_bytes: int) -> str:
    """What is said of a process, and of its stacks the end, where the main thread is."""
    content = text.encode("utf-8", "replace")
    if len(content) <= most_bytes:
        return text
    head, _, calls = content.partition(b"\nThread 0x")
    note = b"\n(The stacks of its first threads are left out.)\n"
    room = most_bytes - len(head) - len(note)
    tail = calls[-room:].partition(b"\n")[2] if room > 0 else b""
    return (head + note + tail)[:most_bytes].decode("utf-8", "replace")


# The lines of source.


def _within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What a question to a file system comes to, if it answers in time."""
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else None


def _with_sources(blocks: Sequence[str], folders: Sequence[Path]) -> list[str]:
    sources = _Sources(folders)
    return [stacks.with_sources(block, sources.line_of) for block in blocks]


class _Sources:
    """Python files below some folders."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = [Path(os.path.realpath(folder)) for folder in folders]
        self._files: dict[str, Sequence[bytes]] = {}

    def line_of(self, frame: Frame) -> str:
        """The line of a frame; empty where it is not to be had."""
        if frame.path not in self._files:
            self._files[frame.path] = self._read(Path(frame.path))
        lines = self._files[frame.path]
        if not 0 < frame.line <= len(lines):
            return ""
        return one_line(lines[frame.line - 1].decode("utf-8", "replace"), _MAX_SOURCE_CHARACTERS)

    def _read(self, path: Path) -> Sequence[bytes]:
        if path.suffix != ".py" or not path.is_absolute():
            return ()
        try:
            path = path.resolve(strict=True)
            if not any(path.is_relative_to(folder) for folder in self._folders):
                return ()
            with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
                status = os.fstat(file.fileno())
                if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_SOURCE_BYTES:
                    return ()
                return file.read(_MAX_SOURCE_BYTES).split(b"\n")
        except (OSError, ValueError, RuntimeError):  # not there, a NUL in it, a loop of links
            return ()
