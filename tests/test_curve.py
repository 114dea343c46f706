"""Curves that a stranger's program writes, line by line."""

import json
import math
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from backend import curve
from backend.curve import (
    MAX_POINTS,
    WHOLE_BYTES,
    CurveFigures,
    History,
    Point,
    figures_of,
    masked,
    parse_point,
    point_as_json,
    read_figures,
    read_history,
    read_points,
    thin,
)
from backend.mask import NO_MASK, Mask
from tests.spoilt import VALUES, in_time, make_empty, make_folder, make_link

POINTS = st.builds(
    Point,
    step=st.integers(0, 10**6),
    values=st.dictionaries(
        st.sampled_from(["train_loss", "eval_loss", "accuracy"]),
        st.none() | st.floats(allow_nan=False, allow_infinity=False),
        max_size=3,
    ),
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


@given(st.binary(max_size=100) | st.text().map(str.encode))
def test_any_line_is_a_point_or_none(line: bytes) -> None:
    point = parse_point(line)
    assert point is None or point.step >= 0


def test_a_point_that_stopped_being_a_number_is_a_gap() -> None:
    assert parse_point(b'{"step": 1, "loss": NaN}') == Point(1, values={"train_loss": None})
    assert parse_point(b'{"step": 1, "loss": null}') == Point(1, values={"train_loss": None})


@given(POINTS)
def test_a_point_survives_being_written(point: Point) -> None:
    assert parse_point(point_as_json(point)) == point


def test_names_and_times_of_points_are_masked() -> None:
    mask = Mask(["hf_secret", "eval_loss", "2026-01-31"])
    values = {"hf_secret": 1.0, "eval_loss": 2.0, "x" * 195 + "hf_se": 3.0, "hf_se": 4.0}
    points = [
        Point(1, timestamp="hf_secret", values=values),
        Point(2, timestamp="2026-01-31T12:00:00Z"),
        Point(3, 0.5),
    ]
    shown = {"*" * 9: 1.0, "eval_loss": 2.0, "x" * 195 + "*" * 5: 3.0, "hf_se": 4.0}
    assert masked(points, mask) == [Point(1, timestamp="*" * 9, values=shown), *points[1:]]
    assert masked(points, NO_MASK) is points


# Thinning


@given(st.lists(POINTS, max_size=120), st.integers(4, 60))
def test_thinning_keeps_bound_order_extremes_and_the_newest(points: list[Point], most: int) -> None:
    points = [replace(point, step=n) for n, point in enumerate(points)]
    kept = thin(points, most)
    assert len(kept) <= most
    assert kept == sorted(kept, key=lambda p: p.step)
    assert {p.step for p in kept} <= {p.step for p in points}
    assert kept[-1:] == points[-1:]
    for name, extremes in (("train_loss", (min, max)), ("eval_loss", (min,))):
        heights = [v for p in points if (v := p.values.get(name)) is not None]
        left = [v for p in kept if (v := p.values.get(name)) is not None]
        for extreme in extremes:
            assert not heights or extreme(left) == extreme(heights)


def test_a_spike_and_the_best_held_out_loss_are_not_thinned_away() -> None:
    points = [
        Point(n, values={"train_loss": 1.0} if n % 2 else {"eval_loss": 5.0}) for n in range(50_000)
    ]
    points[20_001] = Point(20_001, values={"train_loss": 99.0})
    points[30_000] = Point(30_000, values={"eval_loss": 4.0})
    steps = {p.step for p in thin(points)}
    assert {20_001, 30_000, 49_999} <= steps


def test_few_points_stay_as_they_are() -> None:
    points = [Point(n) for n in range(10)]
    assert thin(points, 10) == points


@given(st.lists(POINTS, min_size=1, max_size=40))
def test_of_very_few_points_the_newest_and_then_the_extremes_are_kept(points: list[Point]) -> None:
    points = [replace(point, step=n) for n, point in enumerate(points)]
    *earlier, newest = points
    trained = [p for p in earlier if p.values.get("train_loss") is not None]
    measured = [p for p in earlier if p.values.get("eval_loss") is not None]
    extremes = [
        *([max(trained, key=lambda p: p.values["train_loss"])] if trained else []),
        *([min(trained, key=lambda p: p.values["train_loss"])] if trained else []),
        *([min(measured, key=lambda p: p.values["eval_loss"])] if measured else []),
        *earlier[:1],
    ]
    steps = list(dict.fromkeys(p.step for p in extremes))
    for most in (1, 2, 3):
        if len(points) > most:
            wanted = sorted({newest.step, *steps[: most - 1]})
            assert [p.step for p in thin(points, most)] == wanted
        else:
            assert thin(points, most) == points


# A page's points


def test_points_are_read_past_lines_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\nnull\n\n[1]\n{"step": 2}\n{"step": 3, "lo')
    assert [p.step for p in read_points(path)] == [1, 2]


def test_a_long_file_of_points_is_thinned_as_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        file.writelines(
            f'{{"step": {n}, "loss": {99 if n == 5000 else 1}}}\n' for n in range(40_000)
        )
    points = read_points(path, 100)
    assert len(points) <= 100
    assert points[-1].step == 39_999
    assert 5000 in [p.step for p in points]


def test_a_huge_file_of_points_is_read_in_windows(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = '{"step": %9d, "loss": %9d, "padding": "' + "x" * 400 + '"}\n'
    count = 2 * WHOLE_BYTES // len(line % (0, 0))
    with path.open("w") as file:
        file.writelines(line % (n, n) for n in range(count))
    points = read_points(path)
    steps = [p.step for p in points]
    assert 500 < len(points) <= MAX_POINTS
    assert (steps[0], steps[-1]) == (0, count - 1)
    assert steps == sorted(set(steps)), "no line is read twice"
    assert all(p.values["train_loss"] == p.step for p in points), "no line is read in part"
    gaps = [after - before for before, after in pairwise(steps)]
    assert max(gaps) < count / 200


def test_a_huge_file_without_lines_is_no_points(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("wb") as file:
        file.truncate(2**30)
    begin = time.monotonic()
    assert read_points(path) == []
    assert time.monotonic() - begin < 20


def test_long_lines_of_a_huge_file_are_not_read_twice(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = '{"step": %d, "padding": "' + "x" * 900_000 + '"}\n'
    with path.open("w") as file:
        file.writelines(line % n for n in range(60))
    steps = [p.step for p in read_points(path)]
    assert len(steps) > 10
    assert steps == sorted(set(steps))


def test_no_file_of_points_is_no_points(tmp_path: Path) -> None:
    assert read_points(tmp_path / "metrics.jsonl") == []


# The whole curve

_NUMBERS = st.one_of(
    st.floats(), st.integers(-5, 5), st.none(), st.booleans(), st.text(max_size=2), st.just(10**400)
)
_ENTRIES = st.dictionaries(
    st.sampled_from(
        ["train_loss", "loss", "eval_loss", "val_loss", "epoch", "accuracy", "global_step", "{"]
    ),
    _NUMBERS,
    max_size=4,
).flatmap(
    lambda entry: st.one_of(st.integers(0, 4), _NUMBERS).map(lambda step: {"step": step, **entry})
)
_GOOD_LINES = st.builds(
    lambda step, train, held_out: json.dumps(
        {"step": step, "train_loss": train, **({} if held_out is None else {"val_loss": held_out})}
    ),
    st.integers(0, 4),
    st.floats(),
    st.none() | st.floats(),
).map(str.encode)
_OBJECTS = st.one_of(
    _ENTRIES.map(json.dumps).map(str.encode),
    st.sampled_from(
        [b'{"step":0}', b'{"step": 1},{"step": 2}', b'{"step": 3, "step": 4}', b'{"st\\u0065p": 2}',
         b'{"step": 2, "a": [1], "loss": 3}', b'{"step": 3}}', b'{"step": 3,}', b'{"step": 3},}',
         b'{"step": 3, "a}', b'{"step": 2, "a": ' + b"[" * 5000 + b"]" * 5000 + b"}"]
    ),
)  # fmt: skip
_LINES = st.one_of(
    _OBJECTS,
    _GOOD_LINES,
    VALUES.map(json.dumps).map(str.encode),
    st.binary(max_size=10),
    st.sampled_from(
        [b"", b"{", b"}", b'{"step": 1, "a": [1', b"2]}", b"[1", b"2]", b'{"step": 3, "loss": 1}\r',
         b'\xef\xbb\xbf{"step": 3}', b'{"step": 2, "n\xff": 1}']
    ),
)  # fmt: skip


def _one_by_one(lines: Iterable[bytes]) -> list[Point]:
    """The points of lines, in the plainest way that there is."""
    points: list[Point] = []
    for line in lines:
        new = parse_point(line)
        if new and points and points[-1].step == new.step:
            old = points[-1]
            points[-1] = Point(
                new.step,
                old.epoch if new.epoch is None else new.epoch,
                old.timestamp if new.timestamp is None else new.timestamp,
                {**old.values, **new.values},
            )
        elif new:
            points.append(new)
    return points


@settings(deadline=None)
@example([b'{"step": 1},{"step": 2}', b"5", b'{"step": 3}'], True, None, 1)
@example([b'{"step": 1, "a": ' + b"[" * 5000 + b"]" * 5000 + b"}"], False, None, 1)
@given(
    lines=st.lists(_LINES, max_size=30)
    | st.lists(_GOOD_LINES, max_size=30)
    | st.lists(_OBJECTS, max_size=30),
    ends=st.booleans(),
    since=st.none() | st.integers(-1, 4),
    most=st.integers(1, 9),
)
def test_a_history_is_that_of_its_lines_one_by_one(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes],
    ends: bool,
    since: int | None,
    most: int,
) -> None:
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    content = b"\n".join(lines) + (b"\n" if ends else b"")
    path.write_bytes(content)
    points = _one_by_one(content.split(b"\n"))
    old = [n for n, point in enumerate(points) if since is not None and point.step <= since]
    points = points[old[-1] + 1 :] if old else points
    assert read_history(path, since_step=since, most=100) == History(points, len(points))
    history = read_history(path, since_step=since, most=most)
    assert history.total == len(points)
    if len(points) < 3 * most:
        assert history.points == thin(points, most)
    for point in history.points:
        json.loads(point_as_json(point))
    if since is None:
        assert read_points(path, 100) == points


_LOSSES = st.dictionaries(
    st.sampled_from(["train_loss", "loss", "eval_loss", "val_loss"]),
    st.sampled_from([1.0, 2, 3.0, 99.0, None, math.nan, "x"]),
    max_size=3,
)


@settings(deadline=None)
@given(st.lists(_LOSSES, min_size=30, max_size=60), st.integers(1, 3))
def test_what_is_thinned_are_the_points_not_the_lines(
    tmp_path_factory: pytest.TempPathFactory, losses: list[dict[str, Any]], lines_a_step: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "losses.jsonl"
    lines = [json.dumps({"step": n // lines_a_step, **values}) for n, values in enumerate(losses)]
    path.write_text("\n".join(lines))
    points = _one_by_one(path.read_bytes().split(b"\n"))
    for most in (len(points) // 2, len(points) // 3 + 1):
        assert read_history(path, most=most).points == thin(points, most)


@given(st.lists(POINTS, max_size=150), st.integers(1, 20))
def test_a_thinned_history_keeps_the_extremes(
    tmp_path_factory: pytest.TempPathFactory, points: list[Point], most: int
) -> None:
    """Also where there are far more points than are held while it is read."""
    path = tmp_path_factory.getbasetemp() / "points.jsonl"
    points = [replace(point, step=n) for n, point in enumerate(points)]
    path.write_text("".join(point_as_json(p) + "\n" for p in points))
    history = read_history(path, most=most)
    kept = list(history.points)
    assert history.total == len(points)
    assert len(kept) <= most
    assert [p.step for p in kept] == sorted({p.step for p in kept})
    assert all(points[p.step] == p for p in kept)
    assert kept[-1:] == points[-1:]
    if most < 4:
        return
    for name, extreme in (("train_loss", min), ("train_loss", max), ("eval_loss", min)):
        heights = [v for p in points if (v := p.values.get(name)) is not None]
        left = [v for p in kept if (v := p.values.get(name)) is not None]
        assert not heights or extreme(left) == extreme(heights)


def _long_file(path: Path, lines: int) -> int:
    """A curve of lines that are all equally long; how long each is."""
    line = '{"step": %7d, "train_loss": %6.4f, "timestamp": "2026-11-23T%02d:%02d:%02d.000Z"}\n'
    with path.open("w") as file:
        file.writelines(
            line % (n, 2 + math.sin(n / 1000), n // 3600 % 24, n // 60 % 60, n % 60)
            for n in range(lines)
        )
    return len(line % (0, 0, 0, 0, 0))


def test_a_spike_at_any_line_of_a_long_file_survives(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = 60_000
    length = _long_file(path, lines)
    for spiked in (0, 1, 31_234, lines - 2, lines - 1):
        with path.open("r+b") as file:
            file.seek(spiked * length)
            before = file.read(length)
            file.seek(spiked * length)
            start = before.index(b"train_loss") + 13
            file.write(before[:start] + b"9999.0" + before[start + 6 :])
            file.seek(0, os.SEEK_END)
        history = read_history(path, most=200)
        assert history.total == lines
        assert 100 < len(history.points) <= 200
        assert [p.step for p in history.points if p.values["train_loss"] == 9999.0] == [spiked]
        assert history.points[-1].step == lines - 1
        gaps = [b.step - a.step for a, b in pairwise(history.points)]
        assert max(gaps) < 4 * lines / 66, "no part of the curve is left out"
        with path.open("r+b") as file:
            file.seek(spiked * length)
            file.write(before)


def test_a_file_larger_than_a_page_reads_whole_is_exact_in_the_history(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    line = '{"step": %6d, "loss": 1.0, "padding": "' + "x" * 400 + '"}\n'
    lines = WHOLE_BYTES // len(line % 0) + 1000
    with path.open("w") as file:
        file.writelines(line % n for n in range(lines))
    history = read_history(path, most=100)
    assert (history.total, len(history.points) <= 100) == (lines, True)
    assert read_figures(path).points == lines


def test_what_is_new_is_read_from_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = 150_000
    length = _long_file(path, lines)
    read: list[int] = []
    decoded = curve._decoded

    def counted(block: bytes) -> Any:
        read.append(len(block))
        return decoded(block)

    monkeypatch.setattr(curve, "_decoded", counted)
    for new in (0, 1, 10, 3000):
        read.clear()
        history = read_history(path, since_step=lines - 1 - new)
        assert history.total == new
        assert [p.step for p in history.points][-1:] == ([lines - 1] if new else [])
        assert sum(read) < 8 * (new * length + 2**16)
    for since in (-1, lines // 2, lines - 40_000):
        read.clear()
        history = read_history(path, since_step=since)
        assert history.total == lines - 1 - since
        assert history.points[0].step > since
        assert sum(read) < 1.6 * path.stat().st_size + 2**23


def test_of_a_run_that_went_back_what_came_last_is_new(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [*range(1, 101), *range(51, 121)]
    path.write_text("".join(f'{{"step": {n}, "loss": 1}}\n' for n in steps))
    found = read_history(path, since_step=80)
    assert [p.step for p in found.points] == [*range(81, 121)]
    assert read_history(path, since_step=110).total == 10
    assert read_history(path, since_step=120) == History([], 0)
    assert read_history(path).total == 170


def test_a_line_that_is_being_written_is_not_yet_a_point(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": 1')
    history = read_history(path)
    assert history.points == [
        Point(1, values={"train_loss": 1}),
        Point(2, values={"train_loss": None}),
    ]
    assert read_history(path, since_step=2) == History([], 0)
    with path.open("a") as file:
        file.write(".5}\n")
    assert read_history(path, since_step=2).points == [Point(3, values={"train_loss": 1.5})]


def test_a_line_of_more_than_a_mebibyte_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    long = b'{"step": 2, "padding": "' + b"x" * 3 * 2**20 + b'"}'
    path.write_bytes(b'{"step": 1}\n' + long + b'\n{"step": 3}\n' + long + b'\n{"step": 4}')
    assert [p.step for p in read_history(path).points] == [1, 3, 4]
    assert [p.step for p in read_history(path, since_step=3).points] == [4]
    assert [p.step for p in read_history(path, since_step=1).points] == [3, 4]


def test_a_step_that_never_ends_is_one_point_of_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"step": 1, "metric {n}": {n}}}\n' for n in range(5000)))
    (point,) = read_history(path).points
    assert len(point.values) < 100
    assert point.values["metric 7"] == 7


def test_beyond_the_bound_a_history_is_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = 200_000
    _long_file(path, lines)
    monkeypatch.setattr(curve, "EXACT_BYTES", path.stat().st_size - 1)
    history = read_history(path)
    assert 1000 < history.total < lines
    assert (history.points[0].step, history.points[-1].step) == (0, lines - 1)
    assert read_history(path, since_step=lines - 101).total == 100, "the end is read whole"


@pytest.mark.parametrize("line", ['{"step":%d}\n', '{"step":%d,}\n{"step":%d}\n'])
def test_beyond_very_many_lines_too_a_history_is_read_in_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str
) -> None:
    path = tmp_path / "metrics.jsonl"
    points = 50_000
    with path.open("w") as file:
        file.writelines(line.replace("%d", str(n)) for n in range(points))
    lines = points * line.count("\n")
    read: list[int] = []
    decoded = curve._decoded

    def counted(block: bytes) -> Any:
        read.append(block.count(b"\n"))
        return decoded(block)

    monkeypatch.setattr(curve, "_decoded", counted)
    monkeypatch.setattr(curve, "WINDOW_BYTES", 1024)
    monkeypatch.setattr(curve, "EXACT_LINES", lines)
    assert read_figures(path).points == points, "as many are still exact"
    monkeypatch.setattr(curve, "EXACT_LINES", lines - 1)
    read.clear()
    history = read_history(path)
    assert 1000 < history.total < points
    assert (history.points[0].step, history.points[-1].step) == (0, points - 1)
    assert sum(read) < lines
    assert read_history(path, since_step=points - 11).total == 10, "the end is read whole"
    monkeypatch.setattr(curve, "EXACT_LINES", 8 * 1000)
    read.clear()
    assert read_history(path, since_step=0).total < points, "it is looked for in few lines"
    assert sum(read) < lines


@pytest.mark.parametrize("line", [b"\n", b"{\n", b"{}\n", b'{"":0}\n'])
def test_lines_too_short_for_a_point_are_not_decoded(
    path: Path, monkeypatch: pytest.MonkeyPatch, line: bytes
) -> None:
    path.write_bytes(b'{"step":1}\n' + line * 10_000 + b'{"step":2}\n')
    asked: list[bytes] = []

    def counted(line: bytes) -> Point | None:
        asked.append(line)
        return parse_point(line)

    monkeypatch.setattr(curve, "parse_point", counted)
    assert [p.step for p in read_history(path).points] == [1, 2]
    assert asked == [b'{"step":1}', b'{"step":2}']


@pytest.mark.parametrize("spoil", [make_folder, os.mkfifo, make_link, make_empty])
def test_a_spoilt_curve_is_no_points(path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)
    assert in_time(lambda: bool(read_history(path).points)) is False
    assert read_history(path, since_step=3) == History([], 0)
    assert read_figures(path) == CurveFigures()


# Figures of the whole curve


@given(st.lists(POINTS, max_size=40))
def test_best_and_last_are_exact(
    tmp_path_factory: pytest.TempPathFactory, points: list[Point]
) -> None:
    path = tmp_path_factory.getbasetemp() / "figures.jsonl"
    points = [replace(point, step=n) for n, point in enumerate(points)]
    path.write_text("".join(point_as_json(p) + "\n" for p in points))
    figures = read_figures(path)
    assert figures.points == len(points)
    assert figures.first_step == (0 if points else None)
    assert figures.last_step == (len(points) - 1 if points else None)
    for name in ("train_loss", "eval_loss"):
        known = [(v, p.step) for p in points if (v := p.values.get(name)) is not None]
        best = min(known, default=(None, None), key=lambda pair: pair[0])
        short = name.removesuffix("_loss")
        assert (getattr(figures, f"best_{name}"), getattr(figures, f"best_{short}_step")) == best
        last = known[-1] if known else (None, None)
        assert (getattr(figures, f"last_{name}"), getattr(figures, f"last_{short}_step")) == last


@given(st.lists(POINTS, max_size=40))
def test_a_curve_without_a_file_comes_to_the_same(
    tmp_path_factory: pytest.TempPathFactory, points: list[Point]
) -> None:
    path = tmp_path_factory.getbasetemp() / "same.jsonl"
    points = [
        replace(point, timestamp=f"2026-11-23T12:00:{n:02}.000Z") for n, point in enumerate(points)
    ]
    path.write_text("".join(point_as_json(p) + "\n" for p in points))
    assert figures_of(points) == read_figures(path)


def _paced(path: Path, *points: tuple[int, str | float | None]) -> CurveFigures:
    """Figures of points whose times are seconds, or any text."""
    with path.open("w") as file:
        for step, at in points:
            text = at
            if isinstance(at, int | float):
                text = datetime.fromtimestamp(1.8e9 + at, UTC).isoformat()
            file.write(json.dumps({"step": step, "loss": 1, "timestamp": text}) + "\n")
    return read_figures(path)


def test_the_peak_is_the_fastest_stretch_of_ten_seconds(path: Path) -> None:
    """Half a step a second, with 30 of them at two a second."""
    steps = [*range(0, 60, 2), *(60 + n / 2 for n in range(60)), *range(90, 150, 2)]
    figures = _paced(path, *enumerate(steps))
    assert figures.mean_steps_per_second == pytest.approx(119 / 148)
    assert figures.peak_steps_per_second == pytest.approx(2, rel=0.1)
    assert figures.first_at == datetime.fromtimestamp(1.8e9, UTC)
    assert figures.last_at == datetime.fromtimestamp(1.8e9 + 148, UTC)


def test_the_peak_of_a_short_run_is_its_mean(path: Path) -> None:
    figures = _paced(path, (0, 0), (1, 0.01), (5, 5))
    assert (figures.mean_steps_per_second, figures.peak_steps_per_second) == (1, 1)


def test_times_that_are_missing_or_wrong_are_left_out(path: Path) -> None:
    figures = _paced(path, (0, None), (1, 0), (2, "yesterday"), (3, "\ud800\0"), (21, 10), (30, ""))
    assert (figures.mean_steps_per_second, figures.peak_steps_per_second) == (2, 2)
    zones = ("2026-11-23T12:00:00", "2026-11-23T13:00:10+01:00", "0001-01-01T00:00:00+23:59")
    assert _paced(path, *zip((0, 20, 30), zones, strict=True)).mean_steps_per_second == 2


def test_time_that_stands_still_is_no_rate(path: Path) -> None:
    figures = _paced(path, (0, 5), (1, 5), (2, 5))
    assert (figures.mean_steps_per_second, figures.peak_steps_per_second) == (None, None)
    figures = _paced(path, (7, 5))
    assert (figures.mean_steps_per_second, figures.peak_steps_per_second) == (None, None)


def test_a_clock_that_was_set_back_or_a_resumed_run_is_counted_anew(path: Path) -> None:
    back = _paced(path, (0, 1000), (10, 1010), (11, 0), (21, 10))
    assert (back.mean_steps_per_second, back.peak_steps_per_second) == (1, 1)
    resumed = _paced(path, (0, 0), (10, 10), (5, 5000), (15, 5010))
    assert (resumed.mean_steps_per_second, resumed.peak_steps_per_second) == (1, 1)


@settings(deadline=None)
@given(st.lists(_LINES, max_size=20))
def test_figures_of_any_lines_can_go_into_json(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_bytes(b"\n".join(lines))
    figures = read_figures(path)
    assert figures.points == len(_one_by_one(path.read_bytes().split(b"\n")))
    rest = [getattr(figures, n) for n in CurveFigures.__dataclass_fields__ if "_at" not in n]
    json.dumps(rest, allow_nan=False)
