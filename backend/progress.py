"""Reads progress.json, which a stranger's program writes, and trusts nothing in it."""

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property, reduce
from itertools import islice
from operator import itemgetter
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
"""Of a larger metrics.jsonl a page gets no more than windows: it asks again every second."""

EXACT_BYTES: Final = 2**30
"""Up to here `read_history` and `read_figures` read every line."""

WINDOWS: Final = 256
WINDOW_BYTES: Final = 32 * 2**10
BLOCK_BYTES: Final = 256 * 2**10
LOOK_BACK_BYTES: Final = 64 * 2**10

PACE_SECONDS: Final = 10.0
"""The peak of the steps per second is that of the fastest stretch of at least so long."""

MAX_PHASES: Final = 50
OTHER_PHASES: Final = "other"

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
_MOST_VALUES: Final = MAX_EXTRA + len(_NOT_VALUES)


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
    phase_seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """How long each phase lasted, as the server measured it: nothing that the file says. The time
    before the first that it named is under ""."""
    raw_history: Sequence[Any] = ()
    lost: Sequence[str] = field(default=(), compare=False)
    """The losses that are no number in the file itself: NaN or infinite, not null."""

    @cached_property
    def history(self) -> Sequence[Point]:
        """The job's own history, read when somebody asks: a supervisor never needs it."""
        points = [_made(row) for row in _rows([self.raw_history])]
        return tuple(points[-MAX_POINTS:])

    def summary(self) -> dict[str, Any]:
        """The reading without its history and without what is missing, ready for JSON."""
        kept = {
            name: value
            for name in self.__dataclass_fields__
            if name not in ("raw_history", "lost") and (value := getattr(self, name)) is not None
        }
        return {**kept, "extra": dict(self.extra), "phase_seconds": dict(self.phase_seconds)}

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Reading":
        """The inverse of `summary`; names that this release does not know are left out."""
        return cls(**{k: v for k, v in summary.items() if k in cls.__dataclass_fields__})


@dataclass(frozen=True, slots=True)
class History:
    """A curve, or what came after a step of it."""

    points: Sequence[Point]  # oldest first, thinned
    total: int  # how many there were before that


@dataclass(frozen=True, slots=True)
class CurveFigures:
    """What a whole curve comes to; None where it does not tell."""

    points: int = 0
    first_step: int | None = None
    last_step: int | None = None
    first_at: datetime | None = None  # UTC, of the first point that has a time
    last_at: datetime | None = None
    best_train_loss: float | None = None
    best_train_step: int | None = None
    last_train_loss: float | None = None
    last_train_step: int | None = None
    best_eval_loss: float | None = None
    best_eval_step: int | None = None
    last_eval_loss: float | None = None
    last_eval_step: int | None = None
    mean_steps_per_second: float | None = None
    peak_steps_per_second: float | None = None


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
    """At most `most` (1 or more) of the points, in order: of each stretch its lowest and highest
    train loss and its lowest held-out loss, and the newest point of all.

    The min/max decimation that plotting libraries use: a spike is never thinned away. Of fewer than
    4 there is one stretch, and the newest goes first.
    """
    if len(points) <= most:
        return list(points)
    rows = [_row_of(point) for point in points]
    return [row[_RAW] for row in _picked([[row] for row in rows], rows[-1], most)]


class PhaseClock:
    """Counts the seconds of each phase in which somebody was looking.

    As with the stall clock a tick counts at most `longest_tick` seconds. Of more than 50 names the
    further ones are counted together, as "other".
    """

    def __init__(self, spent: Mapping[str, float], longest_tick: float) -> None:
        """`spent` is what an earlier server had counted."""
        self._seconds = dict(spent)
        self._longest_tick = longest_tick
        self._last: float | None = None

    @property
    def seconds(self) -> Mapping[str, float]:
        """By phase."""
        return {name: round(seconds, 3) for name, seconds in self._seconds.copy().items()}

    def tick(self, now: float, phase: str | None) -> None:
        """Since the last look it was this phase, None being one without a name."""
        name = phase or ""
        if name not in self._seconds and len(self._seconds) >= MAX_PHASES:
            name = OTHER_PHASES
        elapsed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        if elapsed:
            spent = self._seconds.get(name, 0.0)
            self._seconds[name] = spent + min(elapsed, self._longest_tick)


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
        if self._points and self._points[-1].step == step:
            self._points[-1] = _merged(self._points[-1], point)
        else:
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

    Reads and thins block by block, so that a file of any length takes little memory. Of a file
    larger than 32 MiB only the lines in 256 windows of 32 KiB are read, evenly spread, the first
    and the last of the file among them: one of any length takes a moment.
    """
    rows, _ = _thinned(_rows(_entries(path, WHOLE_BYTES)), most)
    return [_made(row) for row in rows]


def read_history(path: Path, *, since_step: int | None = None, most: int = MAX_POINTS) -> History:
    """The points of a metrics.jsonl, thinned to `most` (1 or more); none where it cannot be read.

    Lines of the same step that follow each other are one point. Every line counts, up to 1 GiB;
    of a larger file the windows of `read_points`, and `total` is then what was in these.

    Args:
        since_step: Only what came after the last point of this step or a lower one. The end of
            the file is read first, so that following a long run costs little.
    """
    after = -1 if since_step is None else since_step
    rows, total = _thinned(_rows(_entries(path, EXACT_BYTES, after)), most, after)
    return History([_made(row) for row in rows], total)


def read_figures(path: Path) -> CurveFigures:
    """What the curve of a metrics.jsonl comes to, every line counted as in `read_history`.

    Steps per second are those of the points' timestamps: the mean over the time from the first
    point to the last, the peak in the fastest 10 seconds or more (of a shorter run it is the mean).
    Where the step or the time goes back, after a pause or a change of the clock, it is counted
    anew from there.
    """
    points = 0
    first = last = best_train = last_train = best_eval = last_eval = None
    pace = _Pace()
    for row in _rows(_entries(path, EXACT_BYTES)):
        step, train, _, held_out, raw = row
        points += 1
        first, last = first or row, row
        if train < math.inf:
            last_train = row
            if best_train is None or train < best_train[_LOW]:
                best_train = row
        if held_out < math.inf:
            last_eval = row
            if best_eval is None or held_out < best_eval[_BEST]:
                best_eval = row
        pace.add(step, _timestamp(raw))
    return CurveFigures(
        points,
        _of(first, _STEP),
        _of(last, _STEP),
        pace.first_at,
        pace.last_at,
        _of(best_train, _LOW),
        _of(best_train, _STEP),
        _of(last_train, _LOW),
        _of(last_train, _STEP),
        _of(best_eval, _BEST),
        _of(best_eval, _STEP),
        _of(last_eval, _BEST),
        _of(last_eval, _STEP),
        pace.mean,
        pace.peak,
    )


class _Pace:
    """How fast a run went, by the times of its points."""

    def __init__(self) -> None:
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None
        self._last_step = 0
        self._begin: tuple[int, datetime] | None = None  # of the stretch that is timed now
        self._steps = 0
        self._seconds = 0.0
        self._peak = 0.0

    def add(self, step: int, text: str | None) -> None:
        at = _instant(text)
        if at is None:
            return
        if self._begin is None or self.last_at is None:
            self.first_at = at
            self._begin = step, at
        elif step < self._last_step or at < self.last_at:
            self._begin = step, at
        else:
            self._steps += step - self._last_step
            self._seconds += (at - self.last_at).total_seconds()
            took = (at - self._begin[1]).total_seconds()
            if took >= PACE_SECONDS:
                self._peak = max(self._peak, (step - self._begin[0]) / took)
                self._begin = step, at
        self._last_step, self.last_at = step, at

    @property
    def mean(self) -> float | None:
        return self._steps / self._seconds if self._steps and self._seconds else None

    @property
    def peak(self) -> float | None:
        mean = self.mean
        return None if mean is None else max(self._peak, mean)


# Reading metrics.jsonl: blocks of lines → what they hold → a row for each point → thinned rows.

_Row = tuple[int, float, float, float, Any]
"""Of one point the step, what thinning compares (the train loss where the lowest is wanted, where
the highest is, the held-out loss; infinitely bad where it is missing), and what it is made of."""

_STEP: Final = 0
_LOW: Final = 1
_HIGH: Final = 2
_BEST: Final = 3
_RAW: Final = 4
_PIECE: Final = 4096
_MOST_BLOCKS: Final = 2**14
_MOST_PARTS: Final = 32


def _entries(path: Path, whole_bytes: int, after: int = -1) -> Iterator[Sequence[Any]]:
    """What the lines hold, block by block: objects, or points where a block has other lines too;
    at least all that come after the last line of the step `after` or a lower one."""
    try:
        with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return
            begin, end = 0, status.st_size
            if after >= 0:
                begin = _begin_of_news(file, end, after)
            blocks = _blocks if end - begin <= whole_bytes else _windows
            yield from map(_decoded, blocks(file, begin, end))
    except OSError:
        return


def _begin_of_news(file: BinaryIO, size: int, after: int) -> int:
    """Where to begin to read, so that the last line of this step or a lower one is still read.

    Looks for it no further back than an eighth of a long file; 0 where it is not in there.
    """
    earliest = size - max(64 * LOOK_BACK_BYTES, size // 8)
    end, length = size, LOOK_BACK_BYTES
    while end > max(0, earliest):
        begin = max(0, end - length)
        length *= 2
        file.seek(max(0, begin - 1))
        if begin:
            file.readline(_LONGEST_LINE)  # the rest of a line that began before
            begin = file.tell()
        if begin < end:
            if any(row[_STEP] <= after for row in _rows(map(_decoded, _blocks(file, begin, end)))):
                return begin
            end = begin
    return 0


def _blocks(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """The lines from a byte to another, many at a time; one longer than 1 MiB is left out."""
    file.seek(begin)
    rest, too_long = b"", False
    while begin < end and (more := file.read(min(BLOCK_BYTES, end - begin))):
        begin += len(more)
        lines, newline, rest = (rest + more).rpartition(b"\n")
        if newline:
            yield lines.partition(b"\n")[2] if too_long else lines
            too_long = False
        if len(rest) > _LONGEST_LINE:
            rest, too_long = b"", True
    yield rest


def _windows(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """The lines that begin in each of 256 windows."""
    read_to = begin
    for number in range(WINDOWS):
        window = begin + (end - begin - WINDOW_BYTES) * number // (WINDOWS - 1)
        if window > read_to:  # else a long line reached into this window
            file.seek(window - 1)
            file.readline(_LONGEST_LINE)  # the rest of a line that began before
        else:
            file.seek(read_to)
        missing = window + WINDOW_BYTES - file.tell()
        if missing > 0:
            yield file.read(missing) + file.readline(_LONGEST_LINE)
        read_to = file.tell()


def _decoded(block: bytes) -> Sequence[Any]:
    # One call for all lines takes half the time of a call for each. It comes to the same where each
    # can be but one object: its only brace opens where it begins, and no text goes over its end.
    block = block.rstrip(b"\n")
    others = block.count(b"\n")
    if (
        block.startswith(b"{")
        and block.endswith(b"}")
        and block.count(b"}\n{") == others
        and block.count(b"{") == others + 1
    ):
        try:
            return list(json.loads(b"[" + block.replace(b"\n", b",\n") + b"]"))
        except (ValueError, RecursionError):
            pass
    return [parse_point(line) for line in block.split(b"\n") if b"{" in line]


def _rows(batches: Iterable[Sequence[Any]]) -> Iterator[_Row]:
    """One for each point; entries of the same step that follow each other are one point."""
    pending: _Row | None = None
    for entries in batches:
        for entry in entries:
            row = _row(entry)
            if row is None:
                continue
            if pending is None:
                pending = row
            elif pending[_STEP] == row[_STEP]:
                pending = _joined(pending, row)
            else:
                yield pending
                pending = row
    if pending is not None:
        yield pending


def _row(entry: Any) -> _Row | None:
    # A point costs ten times as much as this, and few lines become one.
    if (
        type(entry) is not dict
        or type(step := entry.get("step")) is not int
        or not 0 <= step <= MAX_COUNT
        or len(entry) > _MOST_VALUES
    ):
        point = entry if isinstance(entry, Point) else _point(entry)
        return _row_of(point) if point else None
    train, held_out = entry.get("train_loss"), entry.get("eval_loss")
    if type(train) is not float or not -math.inf < train < math.inf:
        train = _figure(train)
        if train is None and "loss" in entry:
            train = _figure(entry["loss"])
    if type(held_out) is not float or not -math.inf < held_out < math.inf:
        held_out = _figure(held_out)
        if held_out is None and "val_loss" in entry:
            held_out = _figure(entry["val_loss"])
    return (
        step,
        math.inf if train is None else train,
        -math.inf if train is None else train,
        math.inf if held_out is None else held_out,
        entry,
    )


def _row_of(point: Point) -> _Row:
    train, held_out = point.values.get("train_loss"), point.values.get("eval_loss")
    return (
        point.step,
        math.inf if train is None else train,
        -math.inf if train is None else train,
        math.inf if held_out is None else held_out,
        point,
    )


def _joined(before: _Row, after: _Row) -> _Row:
    """Two rows of the same step as one. What it is made of is a list then."""
    new = after[_RAW]
    parts = before[_RAW] if isinstance(before[_RAW], list) else [before[_RAW]]
    if isinstance(new, Point) or len(parts) >= _MOST_PARTS or _takes_back(after):
        return _row_of(reduce(_merged, map(_as_point, [*parts, new])))
    parts.append(new)
    trained, measured = after[_LOW] < math.inf, after[_BEST] < math.inf
    return (
        after[_STEP],
        after[_LOW] if trained else before[_LOW],
        after[_HIGH] if trained else before[_HIGH],
        after[_BEST] if measured else before[_BEST],
        parts,
    )


def _takes_back(row: _Row) -> bool:
    """Whether a loss of this entry is there, but is no number."""
    entry = row[_RAW]
    return (row[_LOW] == math.inf and ("train_loss" in entry or "loss" in entry)) or (
        row[_BEST] == math.inf and ("eval_loss" in entry or "val_loss" in entry)
    )


def _made(row: _Row) -> Point:
    raw = row[_RAW]
    return reduce(_merged, map(_as_point, raw if isinstance(raw, list) else [raw]))


def _as_point(entry: Any) -> Point:
    point = entry if isinstance(entry, Point) else _point(entry)
    assert point is not None, "no row is made of it"
    return point


def _merged(before: Point, after: Point) -> Point:
    """Two points of the same step as one: what came later is added, and counts."""
    values = {**before.values, **after.values}
    return Point(
        after.step,
        before.epoch if after.epoch is None else after.epoch,
        before.timestamp if after.timestamp is None else after.timestamp,
        dict(islice(values.items(), _MOST_VALUES)),
    )


def _thinned(rows: Iterator[_Row], most: int, after: int = -1) -> tuple[list[_Row], int]:
    """At most `most` of the rows, as `thin` has it, and how many there were; both of what comes
    after the last one that has the step `after` or a lower one.

    In little memory: whenever the blocks become too many, of each two neighbours one is made.
    """
    most_blocks = max(most + 2, min(3 * most + 8, _MOST_BLOCKS))
    blocks: list[list[_Row]] = []
    block: list[_Row] = []
    block_points, size, total = 0, 1, 0
    newest: _Row | None = None
    while piece := list(islice(rows, _PIECE if size == 1 else min(size - block_points, _PIECE))):
        newest = piece[-1]
        old = [n for n, row in enumerate(piece) if row[_STEP] <= after] if after >= 0 else []
        if old:
            piece = piece[old[-1] + 1 :]
            blocks, block, block_points, size, total = [], [], 0, 1, 0
        total += len(piece)
        if size == 1:
            blocks += [[row] for row in piece]
        else:
            block = _extremes(block + piece)
            block_points += len(piece)
        if block_points == size:
            blocks.append(block)
            block, block_points = [], 0
        while len(blocks) >= most_blocks:
            pairs = (blocks[n : n + 2] for n in range(0, len(blocks), 2))
            blocks = [_extremes([row for half in pair for row in half]) for pair in pairs]
            size *= 2
    if block:
        blocks.append(block)
    return (_picked(blocks, newest, most) if blocks and newest else []), total


def _picked(blocks: list[list[_Row]], newest: _Row, most: int) -> list[_Row]:
    *body, last = blocks
    body = [*body, [row for row in last if row is not newest]]
    if sum(map(len, body)) < most:
        return [*(row for block in body for row in block), newest]
    stretches = (most - 1) // 3
    if not stretches:
        rows = [row for block in body for row in block]
        return [*_foremost(rows, most - 1), newest]
    kept: list[_Row] = []
    for number in range(stretches):
        low, high = (n * len(body) // stretches for n in (number, number + 1))
        kept += _extremes([row for block in body[low:high] for row in block])
    return [*kept, newest]


def _extremes(rows: list[_Row]) -> list[_Row]:
    """Of a stretch the rows with the lowest and the highest train loss and the lowest held-out
    loss, in order; the first where it has none of these."""
    if len(rows) < 2:
        return rows
    lowest = min(rows, key=itemgetter(_LOW))
    highest = max(rows, key=itemgetter(_HIGH))
    best = min(rows, key=itemgetter(_BEST))
    return [rows[n] for n in sorted({rows.index(row) for row in (lowest, highest, best)})]


def _foremost(rows: list[_Row], most: int) -> list[_Row]:
    """At most two of the rows, in order: those that `_extremes` names first."""
    lowest = min(rows, key=itemgetter(_LOW))
    highest = max(rows, key=itemgetter(_HIGH))
    best = min(rows, key=itemgetter(_BEST))
    chosen = [highest, lowest] if lowest[_LOW] < math.inf else []
    chosen += [best] if best[_BEST] < math.inf else []
    places = list(dict.fromkeys(rows.index(row) for row in [*chosen, rows[0]]))
    return [rows[n] for n in sorted(places[:most])]


def _of(row: _Row | None, figure: int) -> Any:
    return None if row is None else row[figure]


def _timestamp(raw: Any) -> str | None:
    if isinstance(raw, Point):
        return raw.timestamp
    parts = reversed(raw) if isinstance(raw, list) else (raw,)
    return next((text for part in parts if (text := _time_of(part)) is not None), None)


def _time_of(part: Any) -> str | None:
    text = part.timestamp if isinstance(part, Point) else part.get("timestamp")
    return text if isinstance(text, str) else None


def _instant(text: str | None) -> datetime | None:
    try:
        at = datetime.fromisoformat(text or "")
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _thin_seen(points: Sequence[Point]) -> list[Point]:
    """As `thin`, but the first loss that was no number stays: a later server tells of it too."""
    kept = {id(point) for point in thin(points, MAX_POINTS - 1)}
    kept.update([id(point) for point in points if _is_lost(point)][:1])
    return [point for point in points if id(point) in kept]


def _is_lost(point: Point) -> bool:
    return any(point.values.get(name, 0.0) is None for name in _LOSSES)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _point(entry: Any) -> Point | None:
    if not isinstance(entry, dict):
        return None
    raw_step = next((entry[n] for n in ("step", "current_step", "global_step") if n in entry), None)
    step = _count(raw_step)
    if step is None:
        return None
    values: dict[str, float | None] = {}
    for name, raw in islice(entry.items(), _MOST_VALUES):
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
