"""The index of a curve answers as if every line had been read, however the file came to be."""

import json
import math
import os
import random
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.bins import Curve, CurveSummary, batches_of, curve_of, summary_of_points
from backend.curve import Point, point_as_json, read_history
from backend.curve_index import BASE_ROWS, CurveIndex
from tests.spoilt import make_empty, make_folder, make_link

DAY = 1795392000000.0


def a_point(step: int, chance: random.Random) -> Point:
    values: dict[str, float | None] = {"train_loss": round(chance.uniform(0, 2), 4)}
    if step % 10 == 0:
        values["eval_loss"] = None if step % 70 == 0 else round(chance.uniform(0, 2), 4)
    at = f"2026-11-23T{step // 3600:02}:{step // 60 % 60:02}:{step % 60:02}Z"
    return Point(step, float(step // 100), at, values)


def lines_of(points: Sequence[Point]) -> bytes:
    return b"".join(point_as_json(point).encode() + b"\n" for point in points)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def some(count: int, seed: int = 0) -> list[Point]:
    chance = random.Random(seed)
    return [a_point(step, chance) for step in range(count)]


def plain(curve: Curve) -> object:
    """What a curve says, whatever numbers its series have."""
    return (
        curve.rows,
        curve.level,
        curve.first_row,
        [
            (
                *(getattr(b, n) for n in ("first_step", "last_step", "first_epoch", "last_epoch")),
                b.first_time,
                b.last_time,
                {
                    curve.names[key]: (*s[:2], round(s.total, 6), *s[3:])
                    for key, s in b.series.items()
                },
            )
            for b in curve.bins
        ],
    )


def read(index: CurveIndex) -> None:
    while not index.update(10):
        pass


@settings(max_examples=25)
@given(
    count=st.integers(0, 900) | st.sampled_from([63, 64, 65, 127, 128, 640]),
    pieces=st.lists(st.integers(1, 20_000), max_size=4),
    seed=st.integers(0, 99),
    again=st.booleans(),
)
def test_it_answers_as_if_all_had_been_read_at_once(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    pieces: list[int],
    seed: int,
    again: bool,
) -> None:
    path = tmp_path_factory.mktemp("index") / "metrics.jsonl"
    points, index = some(count, seed), CurveIndex(path)
    content = lines_of(points)
    for piece in [*pieces, len(content)]:
        with path.open("ab") as file:
            done = file.tell()
            file.write(content[done : done + piece])
        read(index)
        if again:
            index.close()
            index = CurveIndex(path)
            read(index)
    assert index.rows == count
    for most in (16, 50, 1000):
        assert plain(index.curve(most)) == plain(curve_of(points, most))
    found, expected = index.summary(), summary_of_points(points)
    assert found == expected
    index.close()


@settings(max_examples=40)
@given(begin=st.floats(-50, 2100), width=st.floats(0, 2100), most=st.sampled_from([16, 200]))
def test_a_range_has_all_that_is_in_it_and_not_much_more(
    long_index: CurveIndex, begin: float, width: float, most: int
) -> None:
    points = some(2000)
    for x, unit, zero in (("step", 1.0, 0.0), ("epoch", 0.01, 0.0), ("time", 1000.0, DAY)):
        low, high = zero + begin * unit, zero + (begin + width) * unit
        curve = long_index.curve(most, x=x, begin=low, end=high)  # type: ignore[arg-type]
        inside = [p.step for p in points if begin <= p.step <= begin + width]
        if x == "epoch":  # of which each has a hundred steps
            inside = [p.step for p in points if low <= (p.epoch or 0) <= high]
        if inside:
            assert curve.bins[0].first_step <= inside[0]
            assert curve.bins[-1].last_step >= inside[-1]
            size = max(BASE_ROWS, 2**curve.level)
            assert inside[0] - curve.bins[0].first_step < 2 * size
            assert curve.bins[-1].last_step - inside[-1] < 2 * size
        assert len(curve.bins) <= most + 1
        assert curve.first_row % 2**curve.level == 0


@pytest.fixture(scope="module")
def long_index(tmp_path_factory: pytest.TempPathFactory) -> CurveIndex:
    path = tmp_path_factory.mktemp("long") / "metrics.jsonl"
    path.write_bytes(lines_of(some(2000)))
    index = CurveIndex(path)
    read(index)
    return index


def test_an_increment_and_what_was_there_are_the_whole(path: Path) -> None:
    points, index = some(700), CurveIndex(path)
    path.write_bytes(lines_of(points[:600]))
    read(index)
    before = index.curve(400)
    with path.open("ab") as file:
        file.write(lines_of(points[600:]))
    read(index)
    last = before.first_row + (len(before.bins) - 1) * 2**before.level
    after = index.curve(400, level=before.level, after_row=last)
    assert after.first_row == last
    whole = index.curve(400)
    assert [*before.bins[:-1], *after.bins] == list(whole.bins)
    # Once it is too long for that level, all of it comes again at the next.
    with path.open("ab") as file:
        file.write(lines_of(some(900)[700:]))
    read(index)
    anew = index.curve(400, level=before.level, after_row=last)
    assert (anew.first_row, anew.level) == (0, before.level + 1)


def test_bins_that_are_full_stay_as_they_are(path: Path) -> None:
    points, index = some(1200), CurveIndex(path)
    seen: dict[tuple[int, int], object] = {}
    for count in range(0, 1201, 97):
        path.write_bytes(lines_of(points[:count]))
        read(index)
        curve = index.curve(64)
        for number, made in enumerate(curve.bins):
            if (number + 1) * 2**curve.level <= curve.rows:
                assert seen.setdefault((curve.level, number), made) == made
    assert len(seen) > 100


@pytest.mark.parametrize("kept", [0, 1, 63, 64, 65, 300, 639])
def test_a_file_that_was_cut_and_goes_on_is_read_again_from_there(path: Path, kept: int) -> None:
    index = CurveIndex(path)
    path.write_bytes(lines_of(some(640)))
    read(index)
    points = [*some(640)[:kept], *some(800, seed=1)[kept:]]
    beside = path.with_name("beside")
    beside.write_bytes(lines_of(points))
    beside.replace(path)
    read(index)
    assert plain(index.curve(1000)) == plain(curve_of(points, 1000))
    assert index.summary() == summary_of_points(points)
    path.write_bytes(lines_of(points[:kept]))  # in place
    read(index)
    assert plain(index.curve(20)) == plain(curve_of(points[:kept], 20))


def spoil_bytes(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[:200] = b"\xff" * 200
    path.write_bytes(content)


def spoil_rows(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("DELETE FROM bin WHERE number > 3")
        db.execute("DELETE FROM place WHERE number < 2")
    db.close()


def spoil_version(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def spoil_blobs(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("UPDATE bin SET series = x'00'")
    db.close()


@pytest.mark.parametrize(
    "spoil", [spoil_bytes, spoil_rows, spoil_version, spoil_blobs, make_empty, make_link]
)
def test_an_index_that_was_spoilt_is_made_anew(path: Path, spoil: Callable[[Path], object]) -> None:
    points = some(900)
    path.write_bytes(lines_of(points))
    index = CurveIndex(path)
    read(index)
    index.close()
    kept = path.with_suffix(".index")
    if spoil is make_link:
        kept.unlink()
    spoil(kept)
    index = CurveIndex(path)
    for _ in range(2):  # what is found to be wrong while it answers is mended at the next look
        read(index)
        curve = index.curve(100)
    assert plain(curve) == plain(curve_of(points, 100))
    assert index.summary() == summary_of_points(points)
    index.close()
    assert kept.is_file()
    assert not kept.is_symlink()


def test_where_no_index_can_be_written_there_is_no_harm(path: Path) -> None:
    path.write_bytes(lines_of(some(900)))
    make_folder(path.with_suffix(".index"))
    index = CurveIndex(path)
    read(index)
    assert index.curve(100).rows == 0
    assert index.summary() == CurveSummary()


def test_what_is_no_file_of_points_has_no_rows(path: Path) -> None:
    for make in (make_folder, make_link, lambda p: os.mkfifo(p), lambda p: None):
        make(path)
        index = CurveIndex(path)
        read(index)
        assert index.curve(100).rows == 0
        assert index.summary() == CurveSummary()
        assert not path.with_suffix(".index").exists()
        if path.is_symlink() or path.is_fifo():
            path.unlink()
        elif path.is_dir():
            path.rmdir()


def test_lines_that_are_no_points_are_passed_over(path: Path) -> None:
    points = some(200)
    garbage = [b"", b"{}", b"not json", b'{"step": -1}', b"\xff" * 50, b'{"step": "x"}']
    with path.open("wb") as file:
        for number, point in enumerate(points):
            file.write(lines_of([point]))
            file.write(garbage[number % len(garbage)] + b"\n")
            if number == 100:
                file.write(b"x" * 3_000_000 + b"\n")
                file.write(b'{"step": 5000, "x": "' + b"y" * 2_000_000 + b'"}\n')
    index = CurveIndex(path)
    read(index)
    assert plain(index.curve(1000)) == plain(curve_of(points, 1000))
    assert plain(index.curve(20)) == plain(curve_of(points, 20))


def test_a_last_line_counts_once_it_is_a_point(path: Path) -> None:
    path.write_bytes(lines_of(some(10)) + b'{"step": 10, "train_lo')
    index = CurveIndex(path)
    read(index)
    assert index.curve(100).rows == 10
    with path.open("ab") as file:
        file.write(b'ss": 3}')
    read(index)
    curve = index.curve(100)
    assert (curve.rows, curve.indexed) == (11, 1.0)
    with path.open("ab") as file:
        file.write(b'\n{"step": 11}\n')
    read(index)
    assert index.curve(100).rows == 12
    assert index.summary().series["train_loss"].last == 3


def test_a_file_that_is_read_bit_by_bit_says_how_far_it_is(path: Path) -> None:
    path.write_bytes(lines_of(some(20_000)))
    index = CurveIndex(path)
    assert not index.update(0)
    curve = index.curve(100)
    assert 0 < curve.indexed < 1
    assert 0 < curve.rows < 20_000
    read(index)
    assert index.curve(100).rows == 20_000
    assert index.curve(100).indexed == 1


def test_a_file_with_very_many_names_has_its_first_ones(path: Path) -> None:
    with path.open("w") as file:
        for step in range(500):
            file.write(json.dumps({"step": step, f"name{step}": 1.0}) + "\n")
    index = CurveIndex(path)
    read(index)
    assert 50 <= len(index.curve(1000).names) < 200
    assert index.rows == 500


def test_it_agrees_with_what_reads_every_line(path: Path) -> None:
    path.write_bytes(lines_of(some(1000)))
    index = CurveIndex(path)
    read(index)
    whole = read_history(path, most=10_000)
    assert index.curve(2000).rows == whole.total
    train = [p.values["train_loss"] for p in whole.points]
    found = index.summary().series["train_loss"]
    assert (found.minimum, found.maximum) == (min(train), max(train))  # type: ignore[type-var]
    assert math.isclose(
        sum(b.series[0].total for b in index.curve(16).bins),
        sum(value for value in train if value is not None),
    )
    assert list(batches_of([])) == []
