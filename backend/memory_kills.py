"""Whether it was the kernel that killed a process because memory ran out.

The kernel counts such kills as `oom_kill`, for the machine in /proc/vmstat (see proc(5)) and for
each control group in memory.events (see cgroup-v2.rst) or memory.oom_control (see
cgroup-v1/memory.rst), and names each in its log. Which of these may be read differs from one
machine to the next.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

VMSTAT: Final = Path("/proc/vmstat")
OWN_GROUPS: Final = Path("/proc/self/cgroup")
GROUPS: Final = Path("/sys/fs/cgroup")
KERNEL_LOG: Final = Path("/dev/kmsg")

HOLD_SECONDS: Final = 30.0

LITTLE_BYTES: Final = 512 * 2**20
LITTLE_SHARE: Final = 0.1
"""So much of what the job used, or less, was little to be left: it grows between two readings."""

_PID_NAMESPACE: Final = Path("/proc/self/ns/pid")
_FIRST_NAMESPACE: Final = "pid:[4026531836]"  # PROC_PID_INIT_INO of linux/proc_ns.h
_COUNT: Final = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
_MAX_COUNTS_BYTES: Final = 2**16  # vmstat has about 4 KiB
_MAX_RECORDS: Final = 50_000
_MAX_RECORD_BYTES: Final = 8192  # the kernel refuses to read a record into less than it needs
_KILLED: Final = re.compile(rb"[Oo]ut of memory\b.*\b[Kk]ill(?:ed)? process (\d+)\b")
_FIRST_OF_PROGRAMS: Final = 8
"""Lower levels are of records of the kernel itself."""
_CLOCK_SLACK_SECONDS: Final = 300.0
"""The log's clock is not set right as the monotonic one is."""


class MemoryKill(StrEnum):
    """Whether a SIGKILL was the kernel's because memory ran out."""

    CERTAIN = "certain"
    PROBABLE = "probable"
    NO = "no"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class KillCounts:
    """How many processes the kernel had killed at an instant because memory ran out."""

    machine: int | None
    """Since the machine started; None where that may not be read."""
    group: int | None
    """Of this process's control group, which a job is born into."""
    group_file: str | None
    """Where the group's count was read: a server that is started again may be in another."""
    at_seconds: float
    """On the monotonic clock, which begins anew with the machine."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "KillCounts | None":
        """What `as_json` gave; None of anything else."""
        if not isinstance(value, Mapping):
            return None
        machine, group = value.get("machine"), value.get("group")
        file, at = value.get("group_file"), value.get("at_seconds")
        if not (_is_count(machine) and _is_count(group) and isinstance(file, str | None)):
            return None
        return cls(machine, group, file, at) if isinstance(at, float) else None


def _is_count(value: Any) -> bool:
    return value is None or (type(value) is int and 0 <= value < 2**64)


def snapshot(
    vmstat: Path = VMSTAT, own_groups: Path = OWN_GROUPS, groups: Path = GROUPS
) -> KillCounts:
    """The counts of this instant. Cheap: three small files. Never raises."""
    file, group = None, None
    for candidate in _group_files(own_groups, groups):
        group = _count(candidate)
        if group is not None:
            file = str(candidate)
            break
    return KillCounts(_count(vmstat), group, file, time.monotonic())


class KillWatch:
    """Keeps the counts of half a minute to a minute ago, while a job lives.

    Not those of just now: the kernel counts a kill at once, and a process that used many gigabytes
    takes seconds to be gone. Not those of its start: other jobs' kills are counted as well.
    """

    def __init__(
        self,
        before: KillCounts | None = None,
        *,
        take: Callable[[], KillCounts] = snapshot,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`before`: what the server that launched the job has kept of it."""
        self._older = self._newer = before
        self._take = take
        self._clock = clock

    def look(self) -> None:
        """The job is known to live. Cheap: most of the time nothing is read."""
        if self._newer is None or self._clock() - self._newer.at_seconds >= HOLD_SECONDS:
            counts = self._take()
            self._older, self._newer = self._newer or counts, counts

    @property
    def before(self) -> KillCounts | None:
        """What to judge a death by."""
        return self._older


def judge(
    before: KillCounts | None,
    after: KillCounts,
    *,
    pids: Collection[int],
    used_bytes: int | None,
    available_bytes: int | None,
    kernel_log: Path = KERNEL_LOG,
) -> MemoryKill:
    """Whether a process of a job that died of SIGKILL was killed because memory ran out.

    Certain where the kernel's log names one of its processes, or the count of its control group
    rose; probable where only the machine's count rose, or where nothing can be read and little
    memory was left. Never raises.

    Args:
        before: taken while the job was known to live, as `KillWatch` keeps it; None where that was
            not done.
        after: taken once its death was known.
        pids: of the job's processes.
        used_bytes: of the job's processes, by the last reading.
        available_bytes: of the machine, by the last reading.
        kernel_log: in the format of /dev/kmsg; see the kernel's ABI/testing/dev-kmsg.
    """
    if before is not None and before.at_seconds > after.at_seconds:
        before = None  # the machine was started in between
    since = before.at_seconds - _CLOCK_SLACK_SECONDS if before else 0.0
    if pids and _is_first_namespace() and any(p in pids for p in _logged(kernel_log, since)):
        return MemoryKill.CERTAIN
    group = machine = None
    if before is not None:
        same_group = before.group_file == after.group_file
        group = _rose(before.group, after.group) if same_group else None
        machine = _rose(before.machine, after.machine)
    if group:
        return MemoryKill.CERTAIN
    if machine:
        return MemoryKill.PROBABLE
    if machine is False or group is False:
        return MemoryKill.NO
    if used_bytes is None or available_bytes is None:
        return MemoryKill.UNKNOWN
    was_little = available_bytes <= max(LITTLE_BYTES, used_bytes * LITTLE_SHARE)
    return MemoryKill.PROBABLE if was_little else MemoryKill.UNKNOWN


def _rose(before: int | None, after: int | None) -> bool | None:
    """None where that is not known."""
    return None if before is None or after is None else after > before


def _group_files(own_groups: Path, groups: Path) -> Iterator[Path]:
    """Where this process's control group may have its count; the second version's first."""
    lines = (_read(own_groups) or b"").decode("utf-8", "replace").splitlines()
    for line in sorted(lines, key=lambda line: not line.startswith("0::")):
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        inside = path.lstrip("/")
        # A container may see its own group as the root of the tree, and its path from outside.
        if not controllers:
            yield groups / inside / "memory.events"
            yield groups / "unified" / inside / "memory.events"
            yield groups / "memory.events"
        elif "memory" in controllers.split(","):
            yield groups / "memory" / inside / "memory.oom_control"
            yield groups / "memory" / "memory.oom_control"


def _count(path: Path) -> int | None:
    match = _COUNT.search((_read(path) or b"").decode("ascii", "replace"))
    return int(match.group(1)) if match else None


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_COUNTS_BYTES)
    except (OSError, ValueError):
        return None


def _is_first_namespace() -> bool:
    """Whether pids are the same here as in the kernel's log."""
    try:
        return str(_PID_NAMESPACE.readlink()) == _FIRST_NAMESPACE
    except OSError:
        return False


def _logged(kernel_log: Path, since_seconds: float) -> Iterator[int]:
    """The pid of each process that the kernel says in its log to have killed since then."""
    for line in _lines(kernel_log):
        head, _, message = line.partition(b";")
        level, seconds = _level_and_seconds(head)
        match = _KILLED.search(message)
        if match and level < _FIRST_OF_PROGRAMS and seconds >= since_seconds:
            yield int(match.group(1))


def _level_and_seconds(head: bytes) -> tuple[int, float]:
    """Of a record, by what stands before its text; a program's level where it makes no sense."""
    try:
        level, _, microseconds = map(int, head.split(b",")[:3])
    except ValueError:
        return _FIRST_OF_PROGRAMS, 0.0
    return level, microseconds / 1e6


def _lines(kernel_log: Path) -> Iterator[bytes]:
    """The first line of each record of the log; nothing where it may not be read."""
    try:
        descriptor = os.open(kernel_log, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return
    try:
        for _ in range(_MAX_RECORDS):
            try:
                content = os.read(descriptor, _MAX_RECORD_BYTES)
            except BrokenPipeError:
                continue  # what was to be read has been written over; the next read goes on
            if not content:
                return
            yield from content.splitlines()
    except OSError:  # BlockingIOError: that was the last
        return
    finally:
        os.close(descriptor)
