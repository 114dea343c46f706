"""Reads progress.json, which a stranger's program writes, and trusts nothing in it."""

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO, Final

from backend.paths import open_inside, publish_inside

MAX_BYTES: Final = 8 * 2**20
"""A larger file is not read: a full history of 2,000 points takes less than 1 MiB."""

MAX_POINTS: Final = 2000
MAX_EXTRA: Final = 50
MAX_TEXT: Final = 200
MAX_COUNT: Final = 2**53

SAVE_AGAIN_SECONDS: Final = 2.0
"""So long after points could not be saved (the disk is full, say) it is tried again."""

WHOLE_BYTES: Final = 32 * 2**20
WINDOWS: Final = 256
WINDOW_BYTES: Final = 32 * 2**10
"""A metrics.jsonl larger than `WHOLE_BYTES` is read in so many windows of this size."""

LONG_NAMES: Final[Mapping[str, str]] = {
    "step": "current_step",
    "global_step": "current_step",
    "max_steps": "total_steps",
    "epoch": "current_epoch",
    "loss": "train_loss",
    "val_loss": "eval_loss",
    "lr": "learning_rate",
}
"""The short names that a script may use. Where both are there the long one counts."""

_COUNTS: Final = ("current_step", "total_steps", "best_step")
_FIGURES: Final = (
    "current_epoch", "total_epochs", "progress_percent", "train_loss", "eval_loss", "perplexity",
    "learning_rate", "grad_norm", "best_eval_loss", "samples_per_second", "steps_per_second",
    "elapsed_seconds", "remaining_seconds", "gpu_memory_allocated_gb", "gpu_memory_reserved_gb",
)  # fmt: skip
_LONGEST_LINE: Final = 2**20
_TEXTS: Final = ("status", "phase", "updated_at")
_LOSSES: Final = ("train_loss", "eval_loss")
_NON_FINITE: Final = ("non_finite_count", "first_non_finite_step")
_NOT_EXTRA: Final = frozenset(
    (*_COUNTS, *_FIGURES, *_TEXTS, *_NON_FINITE, *LONG_NAMES, "metrics_history", "timestamp")
)
_NOT_VALUES: Final = frozenset(("step", "current_step", "global_step", "epoch", "timestamp"))


@dataclass(frozen=True, slots=True)
class Point:
    """One logged point of a curve."""

    step: int
    epoch: float | None = None
    timestamp: str | None = None  # UTC ISO 8601
    values: Mapping[str, float | None] = field(default_factory=dict)
    """By long name (`train_loss`, `eval_loss`, `learning_rate`, …); None: not a number there."""


@dataclass(frozen=True)
class Reading:
    """What one good progress.json says. Every field may be missing."""

    status: str | None = None
    phase: str | None = None
    updated_at: str | None = None
    current_step: int | None = None
    total_steps: int | None = None
    best_step: int | None = None
    current_epoch: float | None = None
    total_epochs: float | None = None
    progress_percent: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    perplexity: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    best_eval_loss: float | None = None
    samples_per_second: float | None = None
    steps_per_second: float | None = None
    elapsed_seconds: float | None = None
    remaining_seconds: float | None = None
    gpu_memory_allocated_gb: float | None = None
    gpu_memory_reserved_gb: float | None = None
    non_finite_count: int = 0
    first_non_finite_step: int | None = None
    extra: Mapping[str, float] = field(default_factory=dict)
    raw_history: Sequence[Any] = ()
    lost: Sequence[str] = field(default=(), compare=False)
    """The losses that are no number in the file itself: NaN or infinite, not null."""

    @cached_property
    def history(self) -> Sequence[Point]:
        """The job's own history, read when somebody asks: a supervisor never needs it."""
        points = [p for p in map(_point, self.raw_history) if p]
        return tuple(points[-MAX_POINTS:])

    def summary(self) -> dict[str, Any]:
        """The reading without its history and without what is missing, ready for JSON."""
        kept = {
            name: value
            for name in self.__dataclass_fields__
            if name not in ("raw_history", "lost") and (value := getattr(self, name)) is not None
        }
        return {**kept, "extra": dict(self.extra)}

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Reading":
        """The inverse of `summary`; names that this release does not know are left out."""
        return cls(**{k: v for k, v in summary.items() if k in cls.__dataclass_fields__})


class NoNewsError(ValueError):
    """A file is no progress.json; the message is a sentence for the job's page."""


def parse(content: bytes) -> Reading:
    """Read the bytes of a progress.json.

    Raises:
        NoNewsError: it is not a JSON object, or not one that can be read.
    """
    if not content.strip():
        raise NoNewsError("progress.json is empty.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise NoNewsError(f"progress.json is not valid JSON: {_text(str(error))}.") from None
    if not isinstance(document, dict):
        kind = {list: "a list", str: "a text", bool: "a truth value"}.get(
            type(document), "nothing" if document is None else "a number"
        )
        raise NoNewsError(f"progress.json holds {kind} where an object is expected.")
    for short, long in LONG_NAMES.items():
        if document.get(long) is None and short in document:
            document[long] = document[short]

    found: dict[str, Any] = {}
    for name in _COUNTS:
        found[name] = _count(document.get(name))
    for name in _FIGURES:
        found[name] = _figure(document.get(name))
    for name in _TEXTS:
        value = document.get(name)
        found[name] = _text(value) if isinstance(value, str) else None
    extra = {
        _text(name): value
        for name, raw in document.items()
        if name not in _NOT_EXTRA and (value := _figure(raw)) is not None
    }
    found["extra"] = dict(list(extra.items())[:MAX_EXTRA])

    history = document.get("metrics_history")
    found["raw_history"] = history if isinstance(history, list) else ()

    found["non_finite_count"] = _count(document.get("non_finite_count")) or 0
    found["first_non_finite_step"] = _count(document.get("first_non_finite_step"))
    found["lost"] = tuple(n for n in _LOSSES if _is_non_finite(document.get(n)))
    if found["non_finite_count"] == 0 and found["lost"]:
        found["non_finite_count"] = 1
        found["first_non_finite_step"] = found["current_step"]
    return Reading(**found)


def parse_point(line: bytes | str) -> Point | None:
    """One line of metrics.jsonl; None where it is no point (half-written, say)."""
    try:
        return _point(json.loads(line))
    except (ValueError, RecursionError):
        return None


def point_as_json(point: Point) -> str:
    """One line of metrics.jsonl, without its newline; strictly valid JSON."""
    return json.dumps(
        {
            "step": point.step,
            "epoch": point.epoch,
            **point.values,
            "timestamp": point.timestamp,
        },
        allow_nan=False,
    )


def thin(points: Sequence[Point], most: int = MAX_POINTS) -> list[Point]:
    """At most `most` (4 or more) of the points, in order: of each stretch its lowest and highest
    train loss and its lowest held-out loss, and the newest point of all.

    The min/max decimation that plotting libraries use: a spike is never thinned away.
    """
    if len(points) <= most:
        return list(points)
    stretches = (most - 1) // 3
    body = points[:-1]
    kept: list[Point] = []
    for number in range(stretches):
        low = number * len(body) // stretches
        high = (number + 1) * len(body) // stretches
        stretch = range(low, high)
        if not stretch:
            continue
        lowest = min(stretch, key=lambda i: _height(points[i], "train_loss", math.inf))
        highest = max(stretch, key=lambda i: _height(points[i], "train_loss", -math.inf))
        best = min(stretch, key=lambda i: _height(points[i], "eval_loss", math.inf))
        kept += [points[i] for i in sorted({lowest, highest, best})]
    return [*kept, points[-1]]


class ProgressReader:
    """Follows one job's progress.json.

    `look` never raises. The last good reading stays in `reading`; `problem` says what is wrong
    with the file as it is now, or is None.
    """

    def __init__(
        self,
        path: Path,
        seen: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seen` is where points are kept of a job that keeps no history itself."""
        self._path = path
        self._folder = path.parent
        self._seen = seen
        self._clock = clock
        self._signature: tuple[int, ...] | None = None
        self._digest: bytes | None = None
        self._points: list[Point] = read_points(seen, 2 * MAX_POINTS) if seen else []
        self._values = self._points[-1].values if self._points else {}
        # Its last line may be half a one, and the file of an earlier release has no bound.
        self._is_behind = bool(self._points)
        self._save_again_at = -math.inf
        self.reading: Reading | None = None
        self.problem: str | None = None

        lost = [point for point in self._points if _is_lost(point)]
        self._non_finite = (len(lost), lost[0].step if lost else None)

    @property
    def points(self) -> Sequence[Point]:
        """The curve so far: the job's own history, or the points that were seen here."""
        if self.reading and self.reading.history:
            return self.reading.history
        return thin(tuple(self._points))

    def look(self, *, closely: bool = False) -> bool:
        """Read the file if it changed; say whether its content did (the job's sign of life).

        `closely` reads it even if size and times are as before.
        """
        changed = self._look(closely)
        if self._is_behind and (closely or self._clock() >= self._save_again_at):
            self._save_all()
        return changed

    def _look(self, closely: bool) -> bool:
        try:
            content = self._content(closely)
        except NoNewsError as error:
            self._signature = None
            self.problem = str(error)
            return False
        except OSError as error:
            self._signature = None
            self.problem = (
                None
                if isinstance(error, FileNotFoundError)
                else f"progress.json cannot be read: {error.strerror}."
            )
            return False
        if content is None:
            return False
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest == self._digest:
            self.problem = None
            return False
        try:
            reading = parse(content)
        except NoNewsError as error:
            self.problem = str(error)
            return False
        self._digest = digest
        self._keep(reading)
        self.problem = None
        return True

    def _content(self, closely: bool) -> bytes | None:
        """The bytes of the file, or None where it has not changed since the last look."""
        try:
            folder = os.lstat(self._folder)
        except FileNotFoundError:
            raise NoNewsError("The run folder is gone.") from None
        if stat.S_ISLNK(folder.st_mode):
            raise NoNewsError("The run folder is a link; progress.json is not read through it.")
        status = os.lstat(self._path)
        if not closely and _signature(status) == self._signature:
            return None
        if stat.S_ISLNK(status.st_mode):
            raise NoNewsError("progress.json is a link; it must be a file of its own.")
        descriptor = open_inside(self._path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
                raise NoNewsError(f"progress.json is {kind}; it must be a file.")
            if status.st_size > MAX_BYTES:
                raise NoNewsError(
                    f"progress.json is {status.st_size / 2**20:,.0f} MiB large; "
                    f"at most {MAX_BYTES // 2**20} MiB are read."
                )
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_BYTES)
        finally:
            os.close(descriptor)
        self._signature = _signature(status)
        return content

    def _keep(self, reading: Reading) -> None:
        # A script that writes NaN itself forgets it with its next write; the page does not.
        count, first = self._non_finite
        if reading.lost and not self._has_counted(reading):
            count, first = count + 1, first if count else reading.current_step
        if reading.non_finite_count > count:  # the job counts for itself
            count, first = reading.non_finite_count, reading.first_non_finite_step
        self._non_finite = count, first
        reading = replace(reading, non_finite_count=count, first_non_finite_step=first)
        self.reading = reading
        keeps_its_own = any(map(_point, reading.raw_history))  # stops at the first that is one
        if not keeps_its_own and reading.current_step is not None:
            self._add_seen(reading, reading.current_step)

    def _has_counted(self, reading: Reading) -> bool:
        """Whether this is still the loss that was no number at the look before, or to the server
        before."""
        if self.reading:
            before = self.reading.current_step, self.reading.lost
            return before == (reading.current_step, reading.lost)
        newest = self._points[-1] if self._points else None
        return newest is not None and newest.step == reading.current_step and _is_lost(newest)

    def _add_seen(self, reading: Reading, step: int) -> None:
        values: dict[str, float | None] = {
            name: value
            for name in ("train_loss", "eval_loss", "learning_rate", "grad_norm")
            if (value := getattr(reading, name)) is not None
        }
        values.update(dict.fromkeys(reading.lost))
        values.update(reading.extra)
        if not values or (self._points and self._points[-1].step == step
                          and values == self._values):  # fmt: skip
            return
        self._values = values
        point = Point(step, reading.current_epoch, reading.updated_at, values)
        self._points.append(point)
        if len(self._points) > 2 * MAX_POINTS:
            self._points = _thin_seen(self._points)
            self._is_behind = self._seen is not None  # so that the file too is bounded
        elif self._seen and not self._is_behind:
            self._save(self._seen, point)

    def _save(self, seen: Path, point: Point) -> None:
        try:
            with os.fdopen(open_inside(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "wb") as file:
                file.write(point_as_json(point).encode() + b"\n")
        except OSError:
            self._is_behind = True  # the folder is gone or full; the points stay in memory
            self._save_again_at = self._clock() + SAVE_AGAIN_SECONDS

    def _save_all(self) -> None:
        assert self._seen is not None
        try:
            publish_inside(self._seen, "".join(point_as_json(p) + "\n" for p in self._points))
        except OSError:
            self._save_again_at = self._clock() + SAVE_AGAIN_SECONDS
        else:
            self._is_behind = False


def read_points(path: Path, most: int = MAX_POINTS) -> list[Point]:
    """The points of a metrics.jsonl, thinned to `most`; empty where it cannot be read.

    Reads line by line and thins on the way, so that a file of any length takes little memory. Of a
    file larger than 32 MiB only the lines in 256 windows of 32 KiB are read, evenly spread, the
    first and the last of the file among them: one of any length takes a moment.
    """
    points: list[Point] = []
    try:
        with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return []
            for line in _lines(file, status.st_size):
                point = parse_point(line)
                if point:
                    points.append(point)
                    if len(points) >= 8 * most:
                        points = thin(points, 4 * most)
    except OSError:
        return []
    return thin(points, most)


def _lines(file: BinaryIO, size: int) -> Iterable[bytes]:
    window, windows = (size, 1) if size <= WHOLE_BYTES else (WINDOW_BYTES, WINDOWS)
    for number in range(windows):
        begin = (size - window) * number // max(1, windows - 1)
        if begin > file.tell():  # else a long line reached into this window
            file.seek(begin - 1)
            file.readline(_LONGEST_LINE)  # the rest of a line that began before
        while file.tell() < begin + window and (line := file.readline(_LONGEST_LINE)):
            yield line


def _thin_seen(points: Sequence[Point]) -> list[Point]:
    """As `thin`, but the first loss that was no number stays: a later server tells of it too."""
    kept = {id(point) for point in thin(points, MAX_POINTS - 1)}
    kept.update([id(point) for point in points if _is_lost(point)][:1])
    return [point for point in points if id(point) in kept]


def _is_lost(point: Point) -> bool:
    return any(point.values.get(name, 0.0) is None for name in _LOSSES)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _height(point: Point, name: str, missing: float) -> float:
    value = point.values.get(name)
    return missing if value is None else value


def _point(entry: Any) -> Point | None:
    if not isinstance(entry, dict):
        return None
    raw_step = next((entry[n] for n in ("step", "current_step", "global_step") if n in entry), None)
    step = _count(raw_step)
    if step is None:
        return None
    values: dict[str, float | None] = {}
    for name, raw in list(entry.items())[: MAX_EXTRA + len(_NOT_VALUES)]:
        if name in _NOT_VALUES:
            continue
        long = LONG_NAMES.get(name) or _text(name)
        if long != name and values.get(long) is not None:
            continue  # where both names are there the long one counts
        if raw is None or _is_non_finite(raw):
            values.setdefault(long, None)
        elif (value := _figure(raw)) is not None:
            values[long] = value
    timestamp = entry.get("timestamp")
    return Point(
        step,
        _figure(entry.get("epoch")),
        _text(timestamp) if isinstance(timestamp, str) else None,
        values,
    )


def _figure(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _count(value: Any) -> int | None:
    number = _figure(value)
    if number is None or not 0 <= number <= MAX_COUNT or number != int(number):
        return None
    return int(number)


def _text(value: str) -> str:
    """At most 200 characters that any database and any browser can take."""
    return value[:MAX_TEXT].encode("utf-8", "replace").decode().replace("\0", "�")
