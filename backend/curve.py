"""What a curve is: the points of a metrics.jsonl, which a stranger's program writes, read and
thinned."""

import json
import math
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import reduce
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO, Final

from backend.mask import NO_MASK, Mask
from backend.paths import open_inside

MAX_POINTS: Final = 2000
MAX_EXTRA: Final = 50
MAX_TEXT: Final = 200
MAX_COUNT: Final = 2**53

WHOLE_BYTES: Final = 32 * 2**20
"""Of a larger metrics.jsonl a page gets no more than windows: it asks again every second."""

EXACT_BYTES: Final = 2**30
EXACT_LINES: Final = 20_000_000
"""Up to both `read_history` and `read_figures` read every line."""

WINDOWS: Final = 256
WINDOW_BYTES: Final = 32 * 2**10
BLOCK_BYTES: Final = 256 * 2**10
LOOK_BACK_BYTES: Final = 64 * 2**10

PACE_SECONDS: Final = 10.0
"""The peak of the steps per second is that of the fastest stretch of at least so long."""

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

_PLAIN_NAMES: Final = frozenset(
    (*LONG_NAMES.values(), "grad_norm", "perplexity", "samples_per_second", "steps_per_second")
)
"""Signalbox's own words: no secret is told by them, whatever is in a job's environment."""

_NOT_VALUES: Final = frozenset(("step", "current_step", "global_step", "epoch", "timestamp"))
_MOST_VALUES: Final = MAX_EXTRA + len(_NOT_VALUES)

_Row = tuple[int, float, float, float, Any]
"""Of one point the step, what thinning compares (the train loss where the lowest is wanted, where
the highest is, the held-out loss; infinitely bad where it is missing), and what it is made of."""

_STEP: Final = 0
_LOW: Final = 1
_HIGH: Final = 2
_BEST: Final = 3
_RAW: Final = 4

LONGEST_LINE: Final = 2**20
_SHORTEST_LINE: Final = len('{"step":0}')
_PIECE: Final = 4096
_MOST_BLOCKS: Final = 2**14
_MOST_PARTS: Final = 32


@dataclass(frozen=True, slots=True)
class Point:
    """One logged point of a curve."""

    step: int
    epoch: float | None = None
    timestamp: str | None = None  # UTC ISO 8601
    values: Mapping[str, float | None] = field(default_factory=dict)
    """By long name (`train_loss`, `eval_loss`, `learning_rate`, …); None: not a number there."""


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


def parse_point(line: bytes | str) -> Point | None:
    """One line of metrics.jsonl; None where it is no point (half-written, say)."""
    try:
        return point_of(json.loads(line))
    except (ValueError, RecursionError):
        return None


def point_of(entry: Any) -> Point | None:
    """What one entry of a history says, a point itself included; None where it is none."""
    if isinstance(entry, Point):
        return entry
    if not isinstance(entry, dict):
        return None
    raw_step = next((entry[n] for n in ("step", "current_step", "global_step") if n in entry), None)
    step = as_count(raw_step)
    if step is None:
        return None
    values: dict[str, float | None] = {}
    for name, raw in islice(entry.items(), _MOST_VALUES):
        if name in _NOT_VALUES:
            continue
        long = LONG_NAMES.get(name) or as_text(name)
        if long != name and values.get(long) is not None:
            continue  # where both names are there the long one counts
        if raw is None or is_non_finite(raw):
            values.setdefault(long, None)
        elif (value := as_figure(raw)) is not None:
            values[long] = value
    timestamp = entry.get("timestamp")
    return Point(
        step,
        as_figure(entry.get("epoch")),
        as_text(timestamp) if isinstance(timestamp, str) else None,
        values,
    )


def points_of(entries: Sequence[Any]) -> list[Point]:
    """The points of a history. Entries of the same step that follow each other are one."""
    return [_made(row) for row in _rows([entries])]


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


def merged(before: Point, after: Point) -> Point:
    """Two points of the same step as one: what came later is added, and counts."""
    values = {**before.values, **after.values}
    return Point(
        after.step,
        before.epoch if after.epoch is None else after.epoch,
        before.timestamp if after.timestamp is None else after.timestamp,
        dict(islice(values.items(), _MOST_VALUES)),
    )


def masked(points: Sequence[Point], mask: Mask) -> Sequence[Point]:
    """The points without the values of a job's variables, which may be in a name or in what is
    said to be a time; names that Signalbox itself gives stay."""
    if not mask:
        return points
    names: dict[str, str] = {}  # the same few at every point

    def shown(name: str) -> str:
        if name not in names:
            names[name] = masked_name(name, mask)
        return names[name]

    return [
        replace(
            point,
            timestamp=time if not time or is_time(time) else mask.text(time, cut_at=MAX_TEXT),
            values={shown(name): value for name, value in point.values.items()},
        )
        for point in points
        for time in (point.timestamp,)
    ]


def masked_name(name: str, mask: Mask) -> str:
    """The name of a series without the values of a job's variables."""
    return name if name in _PLAIN_NAMES else mask.text(name, cut_at=MAX_TEXT)


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

    Lines of the same step that follow each other are one point. Every line counts, up to 1 GiB and
    20 million lines; beyond either those in the windows of `read_points`, and `total` is then what
    was in these.

    Args:
        since_step: Only what came after the last point of this step or a lower one. The end of
            the file is read first, so that following a long run costs little.
    """
    after = -1 if since_step is None else since_step
    rows, total = _thinned(_rows(_entries(path, EXACT_BYTES, after)), most, after)
    return History([_made(row) for row in rows], total)


def each_point(path: Path) -> Iterator[Sequence[Point]]:
    """Every line of a metrics.jsonl that is a point, in order, block by block, however long it is;
    nothing where it cannot be read."""
    for entries in _entries(path, None):
        yield [point for entry in entries if (point := point_of(entry)) is not None]


def read_figures(path: Path) -> CurveFigures:
    """What the curve of a metrics.jsonl comes to, every line counted as in `read_history`.

    Steps per second are those of the points' timestamps: the mean over the time from the first
    point to the last, the peak in the fastest 10 seconds or more (of a shorter run it is the mean).
    Where the step or the time goes back, after a pause or a change of the clock, it is counted
    anew from there.
    """
    return _figures(_rows(_entries(path, EXACT_BYTES)))


def figures_of(points: Sequence[Point]) -> CurveFigures:
    """As `read_figures`, of a curve that is in no metrics.jsonl."""
    return _figures(_rows([points]))


def _figures(rows: Iterable[_Row]) -> CurveFigures:
    points = 0
    first = last = best_train = last_train = best_eval = last_eval = None
    pace = _Pace()
    for row in rows:
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
        at = instant(text)
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


def _entries(path: Path, whole_bytes: int | None, after: int = -1) -> Iterator[Sequence[Any]]:
    """What the lines hold, block by block: objects, or points where a block has other lines too;
    at least all that come after the last line of the step `after` or a lower one. Of a file that is
    longer than `whole_bytes` only windows; None: never."""
    try:
        with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return
            begin, end = 0, status.st_size
            if after >= 0:
                begin = _begin_of_news(file, end, after)
            whole = whole_bytes is None or (
                end - begin <= whole_bytes and not _exceeds(file, begin, end, EXACT_LINES)
            )
            blocks = _blocks if whole else _windows
            yield from map(_decoded, blocks(file, begin, end))
    except OSError:
        return


def _begin_of_news(file: BinaryIO, size: int, after: int) -> int:
    """Where to begin to read, so that the last line of this step or a lower one is still read.

    Looks for it no further back than an eighth of a long file, nor in very many lines; 0 where it
    is not in there.
    """
    earliest = size - max(64 * LOOK_BACK_BYTES, size // 8)
    end, length = size, LOOK_BACK_BYTES
    while end > max(0, earliest):
        begin = max(0, end - length)
        length *= 2
        file.seek(max(0, begin - 1))
        if begin:
            file.readline(LONGEST_LINE)  # the rest of a line that began before
            begin = file.tell()
        if begin < end:
            if _exceeds(file, begin, end, EXACT_LINES // 8):
                return 0
            if any(row[_STEP] <= after for row in _rows(map(_decoded, _blocks(file, begin, end)))):
                return begin
            end = begin
    return 0


def _exceeds(file: BinaryIO, begin: int, end: int, most: int) -> bool:
    """Whether more lines than that, long enough for a point, may be between two bytes."""
    if end - begin <= most * _SHORTEST_LINE:
        return False  # an honest file is not read twice for this
    file.seek(begin)
    while most >= 0 and begin < end and (more := file.read(min(BLOCK_BYTES, end - begin))):
        begin += len(more)
        most -= more.count(b"\n")
    return most < 0


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
        if len(rest) > LONGEST_LINE:
            rest, too_long = b"", True
    yield rest


def _windows(file: BinaryIO, begin: int, end: int) -> Iterator[bytes]:
    """The lines that begin in each of 256 windows."""
    read_to = begin
    for number in range(WINDOWS):
        window = begin + (end - begin - WINDOW_BYTES) * number // (WINDOWS - 1)
        if window > read_to:  # else a long line reached into this window
            file.seek(window - 1)
            file.readline(LONGEST_LINE)  # the rest of a line that began before
        else:
            file.seek(read_to)
        missing = window + WINDOW_BYTES - file.tell()
        if missing > 0:
            yield file.read(missing) + file.readline(LONGEST_LINE)
        read_to = file.tell()


def _decoded(block: bytes) -> Sequence[Any]:
    block = block.rstrip(b"\n")
    return [entry for entry in decoded(block.split(b"\n"), block) if entry is not None]


def decoded(lines: Sequence[bytes], text: bytes) -> Sequence[Any]:
    """What each of the lines holds, None where it can be no point or is longer than 1 MiB.

    Args:
        text: the lines as they were read, with one newline between each two.
    """
    # One call for all lines takes half the time of a call for each. It comes to the same where each
    # can be but one object: its only brace opens where it begins, and no text goes over its end.
    others = len(lines) - 1
    if (
        text.startswith(b"{")
        and text.endswith(b"}")
        and text.count(b"}\n{") == others
        and text.count(b"{") == others + 1
        and len(text) > others * _SHORTEST_LINE
        and max(map(len, lines)) <= LONGEST_LINE
    ):
        try:
            found = json.loads(b"[" + text.replace(b"\n", b",\n") + b"]")
        except (ValueError, RecursionError):
            found = []
        if len(found) == len(lines):
            return list(found)
    return [
        parse_point(line) if _SHORTEST_LINE <= len(line) <= LONGEST_LINE and b"{" in line else None
        for line in lines
    ]


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
        point = point_of(entry)
        return _row_of(point) if point else None
    train, held_out = entry.get("train_loss"), entry.get("eval_loss")
    if type(train) is not float or not -math.inf < train < math.inf:
        train = as_figure(train)
        if train is None and "loss" in entry:
            train = as_figure(entry["loss"])
    if type(held_out) is not float or not -math.inf < held_out < math.inf:
        held_out = as_figure(held_out)
        if held_out is None and "val_loss" in entry:
            held_out = as_figure(entry["val_loss"])
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
        return _row_of(reduce(merged, map(_as_point, [*parts, new])))
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
    return reduce(merged, map(_as_point, raw if isinstance(raw, list) else [raw]))


def _as_point(entry: Any) -> Point:
    point = point_of(entry)
    assert point is not None, "no row is made of it"
    return point


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
    return [rows[n] for n in sorted({rows.index(row) for row in _peaks(rows)})]


def _foremost(rows: list[_Row], most: int) -> list[_Row]:
    """At most two of the rows, in order: those that `_extremes` names first."""
    highest, lowest, best = _peaks(rows)
    chosen = [highest, lowest] if lowest[_LOW] < math.inf else []
    chosen += [best] if best[_BEST] < math.inf else []
    places = list(dict.fromkeys(rows.index(row) for row in [*chosen, rows[0]]))
    return [rows[n] for n in sorted(places[:most])]


def _peaks(rows: list[_Row]) -> tuple[_Row, _Row, _Row]:
    """Those with the highest and the lowest train loss and the lowest held-out loss."""
    return (
        max(rows, key=itemgetter(_HIGH)),
        min(rows, key=itemgetter(_LOW)),
        min(rows, key=itemgetter(_BEST)),
    )


def _of(row: _Row | None, figure: int) -> Any:
    return None if row is None else row[figure]


def _timestamp(raw: Any) -> str | None:
    parts = reversed(raw) if isinstance(raw, list) else (raw,)
    return next((text for part in parts if (text := _time_of(part)) is not None), None)


def _time_of(part: Any) -> str | None:
    text = part.timestamp if isinstance(part, Point) else part.get("timestamp")
    return text if isinstance(text, str) else None


def instant(text: str | None) -> datetime | None:
    """An ISO 8601 time, in UTC where it names no zone; None where it is none."""
    try:
        at = datetime.fromisoformat(text or "")
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def as_figure(value: Any) -> float | None:
    """The number, if it is one: not a truth value, NaN or infinity, nor too large."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def is_non_finite(value: Any) -> bool:
    """Whether it is NaN or infinite."""
    return isinstance(value, float) and not math.isfinite(value)


def as_count(value: Any) -> int | None:
    """The whole number from 0 to 2^53, if it is one; 5.0 is 5."""
    number = as_figure(value)
    if number is None or not 0 <= number <= MAX_COUNT or number != int(number):
        return None
    return int(number)


def is_time(text: str) -> bool:
    """Whether it is an ISO 8601 time. That is no secret, though a variable may hold a day."""
    return instant(text) is not None


def as_text(value: str, mask: Mask = NO_MASK) -> str:
    """At most 200 characters that any database and any browser can take; masked before it is cut,
    because what is left of a value is not found any more."""
    return mask.text(value)[:MAX_TEXT].encode("utf-8", "replace").decode().replace("\0", "�")
