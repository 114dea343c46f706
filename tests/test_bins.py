"""Rows become batches, and batches bins: the same whatever way they are cut."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.bins import (
    Batch,
    Bin,
    Stretch,
    batches_of,
    between,
    binned,
    curve_of,
    joined,
    level_for,
    rows_in,
    summary_of_points,
)
from backend.curve import Point, decoded, parse_point, point_of
from tests.spoilt import VALUES

NAMES = ("step", "global_step", "loss", "train_loss", "eval_loss", "lr", "epoch", "timestamp", "x")
NUMBERS = st.integers(-5, 100) | st.floats(-1e9, 1e9) | st.sampled_from([1e308, -1e308, 2**70])
ENTRIES = st.lists(
    st.dictionaries(st.sampled_from(NAMES), NUMBERS, max_size=5)
    | st.fixed_dictionaries({"step": st.integers(0, 50), "train_loss": st.floats(-9, 9)})
    | st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=4)
    | VALUES,
    max_size=30,
)


def points_of(batches: Sequence[Batch]) -> list[Point]:
    """The rows of batches as points again."""
    return [
        Point(
            batch.steps[n],
            batch.epochs[n],
            batch.times[n],
            {
                **{name: column[n] for name, column in batch.values.items()},
                **dict.fromkeys(batch.bad),
            },
        )
        for batch in batches
        for n in range(len(batch))
    ]


@given(ENTRIES)
def test_batches_say_what_each_entry_says_by_itself(entries: list[Any]) -> None:
    found = list(batches_of(entries))
    assert points_of([batch for _, batch in found]) == [
        point for entry in entries if (point := point_of(entry)) is not None
    ]
    for at, batch in found:
        first = point_of(entries[at])
        assert first is not None
        assert first.step == batch.steps[0]


@given(st.lists(st.binary(max_size=30) | VALUES.map(lambda v: json.dumps(v, default=str).encode())))
def test_lines_hold_together_what_each_holds_by_itself(lines: list[bytes]) -> None:
    clean = [line.replace(b"\n", b" ") for line in lines] or [b""]
    found = decoded(clean, b"\n".join(clean))
    assert len(found) == len(clean)
    for line, entry in zip(clean, found, strict=True):
        assert point_of(entry) == parse_point(line)


@pytest.mark.parametrize(
    "lines",
    [
        [b'{"step": 1, "x": "}', b'{", "y": 2}'],
        [b'{"step": 1},{"step": 2}', b'{"step": 3}'],
        [b'{"step": 1', b'"x": 2}'],
        [b'{"step": 1}', b"", b'{"step": 2}'],
        [b'{"step": 1}', b'{"step": 2, "x": {"y": 1}}'],
    ],
)
def test_a_text_that_goes_over_a_line_is_not_taken_for_one(lines: list[bytes]) -> None:
    found = decoded(lines, b"\n".join(lines))
    assert [point_of(entry) for entry in found] == [parse_point(line) for line in lines]


ROWS = st.lists(
    st.builds(
        Point,
        step=st.integers(0, 99),
        epoch=st.none() | st.integers(0, 9),
        timestamp=st.none() | st.sampled_from(["2026-11-23T18:02:45Z", "no time"]),
        values=st.dictionaries(st.sampled_from("ab"), st.none() | st.integers(-9, 9).map(float)),
    ),
    max_size=40,
)


def naive(points: Sequence[Point], names: Sequence[str]) -> Bin | None:
    """One bin, made by looking at each point in turn."""
    if not points:
        return None
    series: dict[int, Stretch] = {}
    for key, name in enumerate(names):
        numbers = [(p.values[name], p.step) for p in points if p.values.get(name) is not None]
        bad = [p.step for p in points if name in p.values and p.values[name] is None]
        if not numbers and not bad:
            continue
        if not numbers:
            series[key] = Stretch(bad=len(bad), first_bad_step=bad[0])
            continue
        low, high = min(v for v, _ in numbers), max(v for v, _ in numbers)
        series[key] = Stretch(
            len(numbers),
            len(bad),
            sum(v for v, _ in numbers),
            low,
            high,
            next(step for v, step in numbers if v == low),
            next(step for v, step in numbers if v == high),
            numbers[-1][1],
            bad[0] if bad else -1,
            numbers[-1][0],
        )
    epochs = [p.epoch for p in points if p.epoch is not None] or [None]
    good = [1795456965000.0 for p in points if p.timestamp and p.timestamp != "no time"] or [None]
    return Bin(points[0].step, points[-1].step, epochs[0], epochs[-1], good[0], good[-1], series)


@given(ROWS, st.integers(1, 9))
def test_bins_are_what_their_rows_come_to(points: list[Point], size: int) -> None:
    batches = [batch for _, batch in batches_of(points)]
    made = binned(batches, size, "ab".index)
    assert made == [naive(points[n : n + size], "ab") for n in range(0, len(points), size)]
    assert joined(made) == naive(points, "ab")


@given(ROWS, st.integers(-5, 45), st.integers(-5, 45))
def test_rows_between_two_are_those_of_the_points(
    points: list[Point], first: int, beyond: int
) -> None:
    batches = between([batch for _, batch in batches_of(points)], first, beyond)
    assert points_of(batches) == points[max(0, first) : max(0, beyond)]


@given(st.integers(0, 10**9), st.integers(1, 3000))
def test_the_level_is_the_finest_that_has_room(rows: int, most: int) -> None:
    level = level_for(rows, most)
    assert math.ceil(rows / 2**level) <= most
    assert level == 0 or math.ceil(rows / 2 ** (level - 1)) > most


def test_a_mean_whose_sum_is_no_number_lies_between_its_extremes() -> None:
    curve = curve_of([Point(1, values={"a": 1.5e308}), Point(2, values={"a": 1.7e308})], 1)
    mean = curve.bins[0].series[0].mean
    assert mean is not None
    assert 1.5e308 <= mean <= 1.7e308


def test_the_summary_of_points_names_extremes_and_ends() -> None:
    values = [3.0, None, 1.0, 2.0]
    summary = summary_of_points([Point(n, values={"a": v}) for n, v in enumerate(values)])
    assert (summary.rows, summary.first_step, summary.last_step) == (4, 0, 3)
    found = summary.series["a"]
    assert (found.count, found.first, found.last, found.last_step) == (3, 3.0, 2.0, 3)
    assert (found.minimum, found.min_step, found.maximum, found.max_step) == (1.0, 2, 3.0, 0)
    assert (found.bad, found.first_bad_step) == (1, 1)
    assert rows_in([]) == 0
