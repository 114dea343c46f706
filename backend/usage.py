"""What a job uses of the machine over time: cores, memory, and the load of its devices.

The server measures it and keeps it in `usage.jsonl` in the run folder, a point every two seconds. A
file that has grown long is thinned to half of its points, and from there on points are taken half
as often, so that it is as small for a month as for a day.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low
from typing import Any, Final

from backend.curve import as_figure
from backend.log import read_tail
from backend.models import utc_now
from backend.paths import open_inside, publish_inside
from backend.processes import ProcessId, ProcessRow

INTERVAL_SECONDS: Final = 2.0
"""From one point to the next, in a file that was never thinned."""

LONGEST_INTERVAL_SECONDS: Final = 3600.0
MAX_POINTS: Final = 2000
"""A file with so many is thinned."""

MAX_BYTES: Final = 2**20
"""So much of a file is read, from its end: the folder is the job's, which may put anything there.
Points that are ours are some 100 bytes long."""

_LATEST: Final = 253_402_300_799_999
"""The last millisecond of the year 9999."""


@dataclass(frozen=True)
class UsagePoint:
    """What a job used up to a moment, since the point before."""

    at: int
    """Milliseconds since 1970, UTC."""
    cores: float | None
    """CPU seconds in each second, all of its processes together: 1.7 is most of two cores."""
    memory_bytes: int
    """Resident memory of its processes; what they share is counted in each."""
    gpu_memory_bytes: int | None = None
    """In use on its devices; None where it has none, or that cannot be read."""
    gpu_percent: float | None = None
    """The load of its devices, their mean."""

    def as_line(self) -> bytes:
        known = {name: value for name, value in asdict(self).items() if value is not None}
        return json.dumps(known, separators=(",", ":")).encode() + b"\n"


def read_usage(path: Path, since: int | None = None) -> list[UsagePoint]:
    """The points of a file, oldest first; none where there is no such file.

    Args:
        since: only those after this millisecond.
    """
    found: list[UsagePoint] = []
    for line in reversed(read_tail(path, MAX_BYTES).splitlines()):
        point = _parse(line)
        if point is None:
            continue
        if since is not None and point.at <= since:
            break
        found.append(point)
        if len(found) > 2 * MAX_POINTS:
            break
    return found[::-1]


class CpuMeter:
    """How many cores a tree of processes keeps busy."""

    def __init__(self) -> None:
        self._rows: Mapping[ProcessId, ProcessRow] | None = None
        self._read_at = 0.0
        self._gone_seconds = 0.0
        """CPU time that was counted of processes which have ended, and which nobody is known to
        have waited for yet: it will come once more, as that of whoever waits for them."""

    def read(self, rows: Iterable[ProcessRow], now: float) -> float | None:
        """CPU seconds in each second since the last call; None at the first.

        Processes that came and went in between count too, through those that waited for them.
        """
        before, self._rows = self._rows, {row.id: row for row in rows}
        passed, self._read_at = now - self._read_at, now
        if before is None or passed <= 0:
            return None
        taken = waited = 0.0
        for id, row in self._rows.items():
            known = before.get(id)
            taken += row.cpu_seconds - (known.cpu_seconds if known else 0.0)
            waited += row.waited_seconds - (known.waited_seconds if known else 0.0)
        gone = [row for id, row in before.items() if id not in self._rows]
        self._gone_seconds += sum(row.cpu_seconds + row.waited_seconds for row in gone)
        taken += max(0.0, waited - self._gone_seconds)
        self._gone_seconds = max(0.0, self._gone_seconds - waited)
        return min(max(0.0, taken) / passed, float(os.cpu_count() or 1))


class UsageLog:
    """Writes the points of one running job. What cannot be written is left out."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cpu = CpuMeter()
        self._written_at: float | None = None
        self._interval_seconds = INTERVAL_SECONDS
        self._points: int | None = None
        """In the file; None before that was looked at."""
        self._is_torn = False
        """The file may end in the middle of a line."""

    def look(
        self,
        rows: Sequence[ProcessRow],
        now: float,
        gpu: Callable[[], tuple[int | None, float | None]],
    ) -> None:
        """Take a point, if one is due.

        Args:
            rows: the job's processes.
            now: of the monotonic clock, in seconds.
            gpu: bytes in use on its devices, and their load in percent.
        """
        if not rows or (self._written_at is not None and not self._is_due(now)):
            return
        begins, self._written_at = self._written_at is None, now
        cores = self._cpu.read(rows, now)
        if begins:
            return  # there is no figure of the CPU before the second look
        used, load = gpu()
        self._append(
            UsagePoint(
                at=round(utc_now().timestamp() * 1000),
                cores=None if cores is None else round(cores, 3),
                memory_bytes=sum(row.memory_bytes for row in rows),
                gpu_memory_bytes=used,
                gpu_percent=None if load is None else round(load, 1),
            )
        )

    def _is_due(self, now: float) -> bool:
        # Looks are a second apart, and one may come a little early.
        return now - (self._written_at or 0.0) >= self._interval_seconds - 0.2

    def _append(self, point: UsagePoint) -> None:
        if self._points is None:
            self._begin()
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        line = b"\n" + point.as_line() if self._is_torn else point.as_line()
        try:
            with os.fdopen(open_inside(self._path, flags), "wb") as file:
                file.write(line)
        except OSError:
            self._is_torn = True  # the disk is full, or the folder is gone
            return
        self._is_torn = False
        self._points = (self._points or 0) + 1
        if self._points >= MAX_POINTS:
            self._thin()

    def _begin(self) -> None:
        """Go on where an earlier server, or an earlier life of the job, left off."""
        kept = read_usage(self._path)
        self._points = len(kept)
        self._is_torn = bool(kept) and not read_tail(self._path, 1).endswith(b"\n")
        gaps = [(b.at - a.at) / 1000 for a, b in zip(kept[-20:], kept[-19:], strict=False)]
        usual = median_low(gaps) if gaps else 0.0
        while self._interval_seconds * 1.5 < min(usual, LONGEST_INTERVAL_SECONDS):
            self._interval_seconds *= 2

    def _thin(self) -> None:
        """Make one of each two points; their highest memory stays."""
        points = read_usage(self._path)
        pairs = [_together(*points[n : n + 2]) for n in range(0, len(points), 2)]
        try:
            publish_inside(self._path, b"".join(p.as_line() for p in pairs).decode())
        except OSError:
            self._points = MAX_POINTS // 2  # there is no room for it now: tried again later
        else:
            self._points = len(pairs)
            self._interval_seconds = min(2 * self._interval_seconds, LONGEST_INTERVAL_SECONDS)


def _together(first: UsagePoint, second: UsagePoint | None = None) -> UsagePoint:
    if second is None:
        return first
    both = (first, second)
    cores = [point.cores for point in both if point.cores is not None]
    loads = [point.gpu_percent for point in both if point.gpu_percent is not None]
    used = [point.gpu_memory_bytes for point in both if point.gpu_memory_bytes is not None]
    return UsagePoint(
        at=second.at,
        cores=round(sum(cores) / len(cores), 3) if cores else None,
        memory_bytes=max(point.memory_bytes for point in both),
        gpu_memory_bytes=max(used, default=None),
        gpu_percent=round(sum(loads) / len(loads), 1) if loads else None,
    )


def _parse(line: bytes) -> UsagePoint | None:
    """A point out of its line; None where it is none."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    at, memory = _number(fields.get("at"), _LATEST), _number(fields.get("memory_bytes"))
    if at is None or memory is None:
        return None
    used = _number(fields.get("gpu_memory_bytes"))
    return UsagePoint(
        at=int(at),
        cores=_number(fields.get("cores"), 1e6),
        memory_bytes=int(memory),
        gpu_memory_bytes=None if used is None else int(used),
        gpu_percent=_number(fields.get("gpu_percent"), 100.0),
    )


def _number(value: Any, most: float = 2.0**62) -> float | None:
    number = as_figure(value)
    return number if number is not None and 0 <= number <= most else None
