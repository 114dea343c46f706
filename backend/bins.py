"""Rows of a curve in power-of-two bins: what is drawn of one that has more rows than a screen has
pixels.

A row is a line of metrics.jsonl that is a point, numbered from 0. A bin of level L has the rows
from k·2^L up to (k+1)·2^L; of each series in there it knows the lowest and the highest value, the
mean, and how many values were no numbers. A bin that is full never changes, so that a curve which
is drawn from them does not jitter while it grows. It is the pyramid of minima and maxima with which
audio editors draw waves.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Any, Final, NamedTuple

from backend.curve import (
    LONG_NAMES,
    MAX_COUNT,
    MAX_EXTRA,
    Point,
    as_text,
    instant,
    point_of,
)

Numbering = Callable[[str], int | None]
"""Gives a series its number; None where it is left out."""

_POSITION: Final = frozenset(("step", "epoch", "timestamp"))
_MAX_SHAPES: Final = 256


class Stretch(NamedTuple):
    """What one series came to in some rows; `low` to `last` only where `numbers` is not 0."""

    numbers: int = 0
    bad: int = 0  # values that were no numbers
    total: float = 0.0
    low: float = math.inf
    high: float = -math.inf
    low_step: int = -1
    high_step: int = -1
    last_step: int = -1
    first_bad_step: int = -1
    last: float = 0.0

    @property
    def mean(self) -> float | None:
        """None where no value was a number."""
        if not self.numbers:
            return None
        mean = self.total / self.numbers
        return mean if math.isfinite(mean) else self.low / 2 + self.high / 2

    def then(self, after: "Stretch") -> "Stretch":
        """What this one and the rows after it come to; of equal extremes the first counts."""
        low, high = after.low < self.low, after.high > self.high
        return Stretch(
            self.numbers + after.numbers,
            self.bad + after.bad,
            self.total + after.total,
            after.low if low else self.low,
            after.high if high else self.high,
            after.low_step if low else self.low_step,
            after.high_step if high else self.high_step,
            after.last_step if after.numbers else self.last_step,
            self.first_bad_step if self.bad else after.first_bad_step,
            after.last if after.numbers else self.last,
        )


@dataclass(frozen=True, slots=True)
class Bin:
    """Some rows that follow each other. Epochs and times are None where the rows have none."""

    first_step: int
    last_step: int
    first_epoch: float | None
    last_epoch: float | None
    first_time: float | None  # milliseconds since 1970
    last_time: float | None
    series: Mapping[int, Stretch]

    def then(self, after: "Bin") -> "Bin":
        """This one and the rows after it."""
        series = dict(self.series)
        for number, stretch in after.series.items():
            before = series.get(number)
            series[number] = before.then(stretch) if before else stretch
        return Bin(
            self.first_step,
            after.last_step,
            after.first_epoch if self.first_epoch is None else self.first_epoch,
            self.last_epoch if after.last_epoch is None else after.last_epoch,
            after.first_time if self.first_time is None else self.first_time,
            self.last_time if after.last_time is None else after.last_time,
            series,
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that follow each other and have the same fields, as columns of the same length."""

    steps: Sequence[int]
    epochs: Sequence[float | None]
    times: Sequence[str | None]
    values: Mapping[str, Sequence[float]]
    bad: Sequence[str] = ()  # series whose value is no number; in a batch of one row only

    def __len__(self) -> int:
        return len(self.steps)

    def part(self, first: int, beyond: int) -> "Batch":
        """Some of its rows."""
        if first <= 0 and beyond >= len(self.steps):
            return self
        return Batch(
            self.steps[first:beyond],
            self.epochs[first:beyond],
            self.times[first:beyond],
            {name: column[first:beyond] for name, column in self.values.items()},
            self.bad,
        )

    def stretches(self) -> Iterator[tuple[str, Stretch]]:
        """What each series comes to."""
        steps = self.steps
        for name, values in self.values.items():
            low, high = min(values), max(values)
            yield (
                name,
                Stretch(
                    len(values),
                    0,
                    sum(values),
                    low,
                    high,
                    steps[values.index(low)],
                    steps[values.index(high)],
                    steps[-1],
                    -1,
                    values[-1],
                ),
            )
        for name in self.bad:
            yield name, Stretch(bad=1, first_bad_step=steps[0])


def level_for(rows: int, most: int) -> int:
    """The finest level at which so many rows have at most `most` bins."""
    return max(0, (max(1, rows) - 1) // most).bit_length()


def rows_in(batches: Iterable[Batch]) -> int:
    return sum(map(len, batches))


def between(batches: Iterable[Batch], first: int, beyond: int) -> list[Batch]:
    """Their rows from `first` up to `beyond`, counted from their first one."""
    found: list[Batch] = []
    for batch in batches:
        part = batch.part(max(0, first), max(0, beyond))
        if len(part):
            found.append(part)
        first, beyond = first - len(batch), beyond - len(batch)
    return found


def bin_of(batches: Sequence[Batch], number: Numbering) -> Bin:
    """One bin of all these rows, of which there is at least one."""
    series: dict[int, Stretch] = {}
    for batch in batches:
        for name, stretch in batch.stretches():
            key = number(name)
            if key is not None:
                before = series.get(key)
                series[key] = before.then(stretch) if before else stretch
    epochs = [batch.epochs for batch in batches]
    return Bin(
        batches[0].steps[0],
        batches[-1].steps[-1],
        next((e for column in epochs for e in column if e is not None), None),
        next((e for column in reversed(epochs) for e in reversed(column) if e is not None), None),
        next(_milliseconds(t for batch in batches for t in batch.times), None),
        next(_milliseconds(t for b in reversed(batches) for t in reversed(b.times)), None),
        series,
    )


def binned(batches: Sequence[Batch], size: int, number: Numbering) -> list[Bin]:
    """The rows in bins of `size` (1 or more); the last one has the rest."""
    made: list[Bin] = []
    begun: list[Batch] = []
    room = size
    for batch in batches:
        at = 0
        while at < len(batch):
            part = batch.part(at, at + room)
            begun.append(part)
            at += len(part)
            room -= len(part)
            if not room:
                made.append(bin_of(begun, number))
                begun, room = [], size
    if begun:
        made.append(bin_of(begun, number))
    return made


def joined(bins: Iterable[Bin]) -> Bin | None:
    """One bin of them all, which follow each other; None of none."""
    whole: Bin | None = None
    for made in bins:
        whole = whole.then(made) if whole else made
    return whole


# Lines → what they hold → batches.


def batches_of(entries: Iterable[Any]) -> Iterator[tuple[int, Batch]]:
    """The rows among some entries of a history, points themselves included; with each batch the
    number of its first entry. All of a batch follow each other."""
    at = 0
    for shape, group in groupby(entries, key=_shape):
        alike = list(group)
        batch = _batch(alike, shape) if shape else None
        if batch is not None:
            yield at, batch
        else:
            for number, entry in enumerate(alike, at):
                point = point_of(entry)
                if point is not None:
                    yield number, _batch_of(point)
        at += len(alike)


class _Plan(NamedTuple):
    """How entries with the same keys are read as columns."""

    take: Callable[[Any], Sequence[Any]]
    names: Sequence[str]  # of the columns


_plans: dict[tuple[str, ...], _Plan | None] = {}


def _shape(entry: Any) -> tuple[str, ...] | None:
    return tuple(entry) if type(entry) is dict else None


def _plan(shape: tuple[str, ...]) -> _Plan | None:
    """None where each entry has to be looked at by itself."""
    if shape not in _plans:
        if len(_plans) >= _MAX_SHAPES:
            _plans.clear()
        names = [key if key in _POSITION else LONG_NAMES.get(key, key) for key in shape]
        plain = (
            "step" in shape
            and 1 < len(shape) <= MAX_EXTRA
            and len(set(names)) == len(names)
            and not {"current_step", "global_step"} & {*shape}
            and all(as_text(name) == name for name in shape)
        )
        _plans[shape] = _Plan(itemgetter(*shape), names) if plain else None
    return _plans[shape]


def _batch(entries: Sequence[Any], shape: tuple[str, ...]) -> Batch | None:
    """Entries with the same keys; None where one of them is not as simple as most are."""
    plan = _plan(shape)
    if plan is None:
        return None
    columns = dict(zip(plan.names, zip(*map(plan.take, entries), strict=True), strict=True))
    steps = columns.pop("step")
    if {*map(type, steps)} != {int} or min(steps) < 0 or max(steps) > MAX_COUNT:
        return None
    nothing = (None,) * len(steps)
    epochs, times = columns.pop("epoch", nothing), columns.pop("timestamp", nothing)
    if epochs is not nothing and not _are_numbers(epochs):
        return None
    if times is not nothing and not {*map(type, times)} <= {str, type(None)}:
        return None
    for name, column in columns.items():
        if not _are_numbers(column):
            return None
        if {*map(type, column)} != {float}:
            columns[name] = tuple(map(float, column))
    return Batch(steps, epochs, times, columns)


def _are_numbers(column: Sequence[Any]) -> bool:
    """Whether all are finite numbers. Of some that are, whose sum is not, it says no."""
    if not {*map(type, column)} <= {float, int}:
        return False
    try:
        total = float(sum(column))
    except OverflowError:
        return False
    return total - total == 0


def _batch_of(point: Point) -> Batch:
    values = {n: (value,) for n, value in point.values.items() if value is not None}
    bad = [name for name, value in point.values.items() if value is None]
    return Batch((point.step,), (point.epoch,), (point.timestamp,), values, bad)


def _milliseconds(times: Iterable[str | None]) -> Iterator[float]:
    """Since 1970, of those that are times."""
    for text in times:
        at = instant(text) if text else None
        if at is not None:
            yield at.timestamp() * 1000


# What a whole curve comes to.


@dataclass(frozen=True)
class SeriesFigures:
    """What one series comes to; None where none of its values was a number."""

    count: int  # of numbers
    first: float | None
    last: float | None
    last_step: int | None
    minimum: float | None
    min_step: int | None
    maximum: float | None
    max_step: int | None
    bad: int  # values that were no numbers
    first_bad_step: int | None


@dataclass(frozen=True)
class CurveSummary:
    """What a whole curve comes to."""

    rows: int = 0
    first_step: int | None = None
    last_step: int | None = None
    first_at: float | None = None  # milliseconds since 1970
    last_at: float | None = None
    series: Mapping[str, SeriesFigures] = field(default_factory=dict)


def summary_of(
    whole: Bin | None, rows: int, names: Mapping[str, int], firsts: Mapping[str, float]
) -> CurveSummary:
    """What one bin with all rows comes to.

    Args:
        names: of the series, with their numbers in the bin.
        firsts: the first number of each series.
    """
    if whole is None:
        return CurveSummary()
    series: dict[str, SeriesFigures] = {}
    for name, number in names.items():
        found = whole.series.get(number)
        if found is None:
            continue
        there = found.numbers > 0
        series[name] = SeriesFigures(
            count=found.numbers,
            first=firsts.get(name) if there else None,
            last=found.last if there else None,
            last_step=found.last_step if there else None,
            minimum=found.low if there else None,
            min_step=found.low_step if there else None,
            maximum=found.high if there else None,
            max_step=found.high_step if there else None,
            bad=found.bad,
            first_bad_step=found.first_bad_step if found.bad else None,
        )
    return CurveSummary(
        rows, whole.first_step, whole.last_step, whole.first_time, whole.last_time, series
    )


def firsts_of(
    batches: Sequence[Batch], known: Mapping[str, float], names: Iterable[str]
) -> dict[str, float]:
    """The first number of each series: known already, or from these rows."""
    firsts = dict(known)
    for name in names:
        if name not in firsts:
            found = next((b.values[name][0] for b in batches if name in b.values), None)
            if found is not None:
                firsts[name] = found
    return firsts


@dataclass(frozen=True)
class Curve:
    """A curve or a stretch of it, in bins of 2^level rows."""

    rows: int  # of the whole curve
    level: int
    first_row: int  # of the first bin
    bins: Sequence[Bin]
    names: Mapping[int, str]
    """Of the series, by their number in the bins."""
    indexed: float = 1.0
    """How much of the file has been read, 0 to 1. A long one takes a while the first time."""
    live: bool = False  # there may be more


def curve_of(points: Iterable[Point], most: int) -> Curve:
    """A curve that is in no file, in at most so many bins (1 or more)."""
    batches = [batch for _, batch in batches_of(points)]
    names: dict[str, int] = {}
    rows = rows_in(batches)
    level = level_for(rows, most)
    made = binned(batches, 1 << level, lambda name: names.setdefault(name, len(names)))
    return Curve(rows, level, 0, made, {number: name for name, number in names.items()})


def summary_of_points(points: Iterable[Point]) -> CurveSummary:
    """What a curve that is in no file comes to."""
    batches = [batch for _, batch in batches_of(points)]
    names: dict[str, int] = {}
    whole = bin_of(batches, lambda name: names.setdefault(name, len(names))) if batches else None
    return summary_of(whole, rows_in(batches), names, firsts_of(batches, {}, names))
