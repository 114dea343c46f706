"""progress.json in every state that a stranger's program can leave it in."""

import contextlib
import json
import math
import os
import sqlite3
import threading
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

from backend import progress
from backend.progress import (
    MAX_BYTES,
    MAX_EXTRA,
    MAX_PHASES,
    MAX_POINTS,
    MAX_TEXT,
    SAVE_AGAIN_SECONDS,
    WHOLE_BYTES,
    CurveFigures,
    History,
    NoNewsError,
    PhaseClock,
    Point,
    ProgressReader,
    Reading,
    parse,
    parse_point,
    point_as_json,
    read_figures,
    read_history,
    read_points,
    thin,
)

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.just(10**400)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    [*Reading.__dataclass_fields__, "step", "global_step", "max_steps", "epoch", "loss", "val_loss",
     "lr", "metrics_history", "timestamp"]
)  # fmt: skip
DOCUMENTS = st.dictionaries(NAMES | st.text(), VALUES, max_size=8)
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
    return tmp_path / "progress.json"


def _publish(path: Path, content: bytes | str | dict[str, Any]) -> None:
    if isinstance(content, dict):
        content = json.dumps(content)
    beside = path.with_suffix(".tmp")
    beside.write_bytes(content.encode() if isinstance(content, str) else content)
    beside.replace(path)


def _read(content: dict[str, Any] | str) -> Reading:
    return parse((content if isinstance(content, str) else json.dumps(content)).encode())


# Any content


def _is_sound(reading: Reading) -> None:
    """It can go to a page, into JSON and into the database."""
    summary = json.dumps(reading.summary(), allow_nan=False)
    sqlite3.connect(":memory:").execute("select ?", (summary,)).connection.close()
    for text in (reading.status, reading.phase, reading.updated_at, *reading.extra):
        assert text is None or ("\0" not in text and len(text.encode("utf-8")) >= len(text))
    for count in (reading.current_step, reading.total_steps, reading.best_step):
        assert count is None or (isinstance(count, int) and 0 <= count < 2**63)
    for point in reading.history:
        json.loads(point_as_json(point))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_reading_or_no_news(content: bytes) -> None:
    with contextlib.suppress(NoNewsError):
        _is_sound(parse(content))


@given(VALUES | DOCUMENTS)
def test_any_json_is_a_reading_or_no_news(document: Any) -> None:
    content = json.dumps(document).encode()
    if isinstance(document, dict):
        _is_sound(parse(content))
    else:
        with pytest.raises(NoNewsError, match="an object is expected"):
            parse(content)


@given(st.lists(DOCUMENTS | VALUES, max_size=4))
def test_any_history_is_read_as_far_as_it_makes_sense(history: list[Any]) -> None:
    _is_sound(_read({"metrics_history": history}))


@given(st.binary(max_size=100) | st.text().map(str.encode))
def test_any_line_is_a_point_or_none(line: bytes) -> None:
    point = parse_point(line)
    assert point is None or point.step >= 0


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "is empty"),
        (" \n", "is empty"),
        ('{"step": 5, "lo', "is not valid JSON"),
        ("[1]", "holds a list"),
        ('"five"', "holds a text"),
        ("5", "holds a number"),
        ("NaN", "holds a number"),
        ("true", "holds a truth value"),
        ("null", "holds nothing"),
        ("[" * 100_000, "is not valid JSON"),
        ('{"step": ' + "9" * 10_000 + "}", "is not valid JSON"),
        ("{'step': 5}", "is not valid JSON"),
    ],
)
def test_what_is_wrong_is_said_in_a_short_sentence(content: str, words: str) -> None:
    with pytest.raises(NoNewsError, match=words) as caught:
        parse(content.encode())
    assert len(str(caught.value)) < 300
    assert str(caught.value).endswith(".")


def test_numbers_that_are_none_are_left_out() -> None:
    reading = _read(
        '{"step": 5, "loss": NaN, "eval_loss": 1e999, "lr": -Infinity, "grad_norm": "0.1",'
        ' "total_steps": -3, "best_step": 2.5, "epoch": true, "custom": NaN, "name": "x"}'
    )
    assert reading.current_step == 5
    assert (reading.train_loss, reading.eval_loss, reading.learning_rate) == (None, None, None)
    assert (reading.grad_norm, reading.total_steps, reading.best_step) == (None, None, None)
    assert reading.current_epoch is None
    assert reading.extra == {}


def test_a_float_without_fraction_is_a_step() -> None:
    assert _read({"step": 5.0}).current_step == 5


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("step", "current_step"),
        ("global_step", "current_step"),
        ("max_steps", "total_steps"),
        ("epoch", "current_epoch"),
        ("loss", "train_loss"),
        ("val_loss", "eval_loss"),
        ("lr", "learning_rate"),
    ],
)
def test_short_names_are_read_as_their_long_ones(short: str, long: str) -> None:
    assert getattr(_read({short: 3}), long) == 3
    assert getattr(_read({short: 3, long: 4}), long) == 4, "the long one counts"
    assert getattr(_read({short: 3, long: None}), long) == 3
    assert _read({short: 3}).extra == {}


def test_short_names_are_read_in_the_history_too() -> None:
    reading = _read(
        {
            "metrics_history": [
                {"global_step": 1, "loss": 0.5, "val_loss": 0.6, "lr": 0.1},
                {"step": 2, "train_loss": 0.4, "loss": 9},
                {"step": 3, "loss": 9, "train_loss": 0.3},
            ]
        }
    )
    first, second, third = reading.history
    assert first == Point(1, values={"train_loss": 0.5, "eval_loss": 0.6, "learning_rate": 0.1})
    assert second.values == {"train_loss": 0.4}, "the long one counts"
    assert third.values == {"train_loss": 0.3}, "the long one counts"


def test_entries_of_one_step_are_one_point_of_the_history() -> None:
    reading = _read(
        {"metrics_history": [{"step": 1, "loss": 3}, {"step": 1, "eval_loss": 2}, {"step": 2}]}
    )
    assert reading.history == (Point(1, values={"train_loss": 3, "eval_loss": 2}), Point(2))


def test_other_numbers_are_kept_but_not_without_bound() -> None:
    extra = _read({f"metric {n}": n for n in range(10 * MAX_EXTRA)}).extra
    assert len(extra) == MAX_EXTRA
    assert extra["metric 7"] == 7


def test_a_time_is_no_figure() -> None:
    assert _read({"step": 1, "loss": 1, "timestamp": 1.7e9}).extra == {}


def test_surrogates_nul_and_long_texts_are_made_safe() -> None:
    reading = _read(
        '{"phase": "a\\u0000b\\ud800c", "status": "' + "x" * 1000 + '", "n\\u0000\\udfff": 1}'
    )
    _is_sound(reading)
    assert reading.phase == "a\ufffdb?c"
    assert reading.status == "x" * MAX_TEXT
    assert list(reading.extra.values()) == [1]


def test_the_history_is_bounded_and_its_newest_points_stay() -> None:
    history = _read({"metrics_history": [{"step": n} for n in range(3 * MAX_POINTS)]}).history
    assert len(history) == MAX_POINTS
    assert history[-1].step == 3 * MAX_POINTS - 1


def test_a_point_that_stopped_being_a_number_is_a_gap() -> None:
    assert parse_point(b'{"step": 1, "loss": NaN}') == Point(1, values={"train_loss": None})
    assert parse_point(b'{"step": 1, "loss": null}') == Point(1, values={"train_loss": None})


@given(POINTS)
def test_a_point_survives_being_written(point: Point) -> None:
    assert parse_point(point_as_json(point)) == point


@given(DOCUMENTS)
def test_a_summary_is_the_reading_without_its_history(document: dict[str, Any]) -> None:
    reading = _read(document)
    restored = Reading.from_summary(json.loads(json.dumps(reading.summary())))
    assert restored == replace(reading, raw_history=())


def test_a_job_cannot_say_how_long_its_phases_lasted() -> None:
    reading = _read({"phase_seconds": {"training": 10**6}, "metrics_history": []})
    assert reading.phase_seconds == {}
    assert reading.summary()["phase_seconds"] == {}
    measured = replace(reading, phase_seconds={"training": 1.5})
    assert Reading.from_summary(measured.summary()).phase_seconds == {"training": 1.5}


def test_a_summary_of_a_later_release_can_be_read() -> None:
    assert Reading.from_summary({"current_step": 5, "colour": "red"}) == Reading(current_step=5)


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


# The reader


def test_no_file_is_no_news_and_no_problem(path: Path) -> None:
    reader = ProgressReader(path)
    assert not reader.look()
    assert (reader.reading, reader.problem) == (None, None)


def test_a_change_of_content_is_progress(path: Path) -> None:
    reader = ProgressReader(path)
    _publish(path, {"step": 1})
    assert reader.look()
    assert not reader.look()
    _publish(path, {"step": 2})
    assert reader.look()
    assert reader.reading == Reading(current_step=2)


def test_a_touch_without_a_change_is_no_progress(path: Path) -> None:
    reader = ProgressReader(path)
    _publish(path, {"step": 1})
    assert reader.look()
    _publish(path, {"step": 1})
    assert not reader.look()
    os.utime(path, (1, 1))
    assert not reader.look()
    assert not reader.look(closely=True)


def test_a_close_look_sees_a_change_that_size_and_time_hide(path: Path) -> None:
    reader = ProgressReader(path)
    _publish(path, {"step": 1})
    assert reader.look()
    reader._signature = _signature_after_change(path)
    assert not reader.look()
    assert reader.look(closely=True)
    assert reader.reading == Reading(current_step=2)


def test_the_same_content_in_another_file_is_no_progress(path: Path) -> None:
    reader = ProgressReader(path)
    _publish(path, {"step": 1})
    assert reader.look()
    inode = path.stat().st_ino
    _publish(path, {"step": 1})
    assert path.stat().st_ino != inode
    assert not reader.look()
    assert not reader.look(closely=True)


def test_an_older_content_is_progress_once(path: Path) -> None:
    """Whatever it says, the job has written it: it lives."""
    reader = ProgressReader(path)
    for step in (1, 2, 1):
        _publish(path, {"step": step})
        os.utime(path, (step, step))
        assert reader.look()
        assert not reader.look()
    assert reader.reading == Reading(current_step=1)


@pytest.mark.parametrize("closely", [False, True])
def test_a_run_folder_that_is_gone_is_said(tmp_path: Path, closely: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    reader = ProgressReader(folder / "progress.json")
    assert not reader.look(closely=closely)
    assert reader.problem is None, "the job has written nothing yet"
    _publish(folder / "progress.json", {"step": 1})
    assert reader.look(closely=closely)
    folder.rename(tmp_path / "moved")
    assert not reader.look(closely=closely)
    assert reader.problem == "The run folder is gone."
    assert reader.reading == Reading(current_step=1)
    (tmp_path / "moved").rename(folder)
    assert not reader.look(closely=closely)
    assert reader.problem is None


@pytest.mark.parametrize("closely", [False, True])
def test_a_run_folder_that_is_a_link_is_not_read_through(tmp_path: Path, closely: bool) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    _publish(folder / "progress.json", {"step": 1, "loss": 1})
    reader = ProgressReader(folder / "progress.json", folder / "seen.jsonl")
    assert reader.look(closely=closely)
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    assert not reader.look(closely=closely), "even to the very same file"
    assert reader.problem == "The run folder is a link; progress.json is not read through it."
    _publish(tmp_path / "moved" / "progress.json", {"step": 2, "loss": 2})
    assert not reader.look(closely=closely)
    assert read_points(folder / "seen.jsonl") == []
    assert ProgressReader(folder / "progress.json", folder / "seen.jsonl").points == []


def _signature_after_change(path: Path) -> tuple[int, ...]:
    """Change the file, and return what a coarse clock would have left of it."""
    path.write_text('{"step": 2}', encoding="utf-8")
    status = path.stat()
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _folder(path: Path) -> None:
    path.mkdir()


def _link(path: Path) -> None:
    target = path.with_name("elsewhere.json")
    target.write_text('{"step": 99}', encoding="utf-8")
    path.symlink_to(target)


def _dangling_link(path: Path) -> None:
    path.symlink_to(path.with_name("nowhere"))


def _two_hundred_megabytes(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(200 * 10**6)


def _a_little_too_large(path: Path) -> None:
    path.write_bytes(b'{"step": 99}' + b" " * MAX_BYTES)


def _half_written(path: Path) -> None:
    path.write_bytes(b'{"step": 99, "lo')


def _not_utf8(path: Path) -> None:
    path.write_bytes(b'{"phase": "\xff\xfe\xfa"}')


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _empty(path: Path) -> None:
    path.touch()


@pytest.mark.parametrize(
    "spoil",
    [
        _folder,
        _link,
        _dangling_link,
        _two_hundred_megabytes,
        _a_little_too_large,
        _half_written,
        _not_utf8,
        _device,
        _empty,
        pytest.param(os.mkfifo, id="_fifo"),
    ],
)
def test_a_spoilt_file_is_no_news_and_the_last_good_reading_stays(
    path: Path, spoil: Callable[[Path], None]
) -> None:
    reader = ProgressReader(path)
    _publish(path, {"step": 7})
    assert reader.look()
    path.unlink()
    spoil(path)
    for closely in (False, False, True):
        assert not _in_time(lambda closely=closely: reader.look(closely=closely))
        assert reader.problem
        assert reader.problem.startswith("progress.json ")
        assert reader.reading == Reading(current_step=7)
    path.rmdir() if path.is_dir() else path.unlink()
    _publish(path, {"step": 8})
    assert reader.look()
    assert reader.problem is None


def test_a_file_that_is_too_large_is_not_read_at_all(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _two_hundred_megabytes(path)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("It is read.")

    monkeypatch.setattr(os, "fdopen", refuse)
    monkeypatch.setattr(os, "read", refuse)
    reader = ProgressReader(path)
    assert not reader.look()
    assert reader.problem == "progress.json is 191 MiB large; at most 8 MiB are read."


def _in_time(ask: Callable[[], bool]) -> bool:
    """The answer, or a failed test where it blocks."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(ask()), daemon=True)
    thread.start()
    thread.join(20)
    assert answers, "It blocks."
    return answers[0]


def test_a_file_that_becomes_good_again_unchanged_is_no_problem_and_no_progress(
    path: Path,
) -> None:
    reader = ProgressReader(path)
    _publish(path, {"step": 7})
    reader.look()
    _publish(path, "")
    reader.look()
    assert reader.problem
    _publish(path, {"step": 7})
    assert not reader.look()
    assert reader.problem is None


@settings(deadline=None)
@given(contents=st.lists(st.binary(max_size=40) | DOCUMENTS.map(json.dumps), max_size=5))
def test_looking_never_raises(
    tmp_path_factory: pytest.TempPathFactory, contents: list[bytes | str]
) -> None:
    path = tmp_path_factory.mktemp("run") / "progress.json"
    reader = ProgressReader(path, path.with_name("seen.jsonl"))
    for content in contents:
        _publish(path, content)
        reader.look()
        assert all(isinstance(point, Point) for point in reader.points)


def test_a_reader_never_sees_half_of_what_is_published(path: Path) -> None:
    """The writer and the reader race; each document says twice what it is."""
    finished = threading.Event()

    def write() -> None:
        for n in range(2000):
            _publish(path, {"step": n, "best_step": n, "phase": "x" * (n % 100)})
        finished.set()

    reader = ProgressReader(path)
    thread = threading.Thread(target=write)
    thread.start()
    while not finished.is_set():
        if reader.look():
            assert reader.reading
            assert reader.reading.current_step == reader.reading.best_step
        assert reader.problem is None
    thread.join()
    reader.look()
    assert reader.reading
    assert reader.reading.current_step == 1999


# What stopped being a number


def test_a_loss_that_stopped_being_a_number_is_remembered(path: Path) -> None:
    reader = ProgressReader(path)
    _publish(path, '{"step": 812, "loss": NaN}')
    reader.look()
    _publish(path, {"step": 813, "loss": 0.5})
    reader.look()
    assert reader.reading
    assert reader.reading.non_finite_count == 1
    assert reader.reading.first_non_finite_step == 812


def test_each_loss_that_is_no_number_counts_and_the_first_is_named(path: Path) -> None:
    reader = ProgressReader(path)
    for content in (
        '{"step": 812, "loss": NaN}',
        '{"step": 812, "loss": NaN, "elapsed_seconds": 1}',
        '{"step": 813, "loss": 1}',
        '{"step": 814, "loss": 1e999}',
    ):
        _publish(path, content)
        assert reader.look()
    assert reader.reading
    assert (reader.reading.non_finite_count, reader.reading.first_non_finite_step) == (2, 812)


def test_the_jobs_own_count_takes_over_and_stays(path: Path) -> None:
    reader = ProgressReader(path)
    for content in (
        {"step": 5, "loss": math.nan},
        {"step": 6, "non_finite_count": 4, "first_non_finite_step": 2},
        {"step": 7},
    ):
        _publish(path, content)
        reader.look()
    assert reader.reading
    assert (reader.reading.non_finite_count, reader.reading.first_non_finite_step) == (4, 2)


@pytest.mark.parametrize("last", ['{"step": 900, "loss": 1}', '{"step": 812, "loss": NaN}'])
def test_a_new_server_too_knows_of_the_loss_that_was_no_number(path: Path, last: str) -> None:
    seen = path.with_name("seen.jsonl")
    reader = ProgressReader(path, seen)
    for content in ('{"step": 811, "loss": 1}', '{"step": 812, "loss": NaN}', last):
        _publish(path, content)
        reader.look()
    assert parse_point(seen.read_bytes().splitlines()[1]) == Point(812, values={"train_loss": None})
    reader = ProgressReader(path, seen)
    assert reader.look()
    assert reader.reading
    assert (reader.reading.non_finite_count, reader.reading.first_non_finite_step) == (1, 812)


def test_the_first_loss_that_was_no_number_outlives_the_thinning(path: Path) -> None:
    seen = path.with_name("seen.jsonl")
    reader = ProgressReader(path, seen)
    for step in range(3 * MAX_POINTS):
        reader._keep(_read({"step": step, "loss": math.nan if step == 812 else math.sin(step)}))
    reader.look()
    assert 812 in [p.step for p in read_points(seen, 10**6)]
    _publish(path, {"step": 10**6, "loss": 1})
    reader = ProgressReader(path, seen)
    reader.look()
    assert reader.reading
    assert (reader.reading.non_finite_count, reader.reading.first_non_finite_step) == (1, 812)


def test_the_jobs_own_count_goes_first() -> None:
    reading = _read('{"step": 9, "loss": null, "non_finite_count": 4, "first_non_finite_step": 2}')
    assert (reading.non_finite_count, reading.first_non_finite_step) == (4, 2)


def test_a_null_that_nobody_counted_is_only_missing() -> None:
    assert _read({"step": 9, "loss": None}).non_finite_count == 0


# Points that the server keeps


def test_a_job_without_a_history_gets_its_curve(path: Path) -> None:
    reader = ProgressReader(path, path.with_name("seen.jsonl"))
    for step in range(3):
        _publish(path, {"step": step, "loss": 1 / (step + 1), "accuracy": step})
        reader.look()
    assert [p.step for p in reader.points] == [0, 1, 2]
    assert reader.points[2].values == {"train_loss": 1 / 3, "accuracy": 2}


def test_the_points_seen_survive_the_server(path: Path) -> None:
    seen = path.with_name("seen.jsonl")
    first = ProgressReader(path, seen)
    for step in (1, 2):
        _publish(path, {"step": step, "loss": step, "epoch": 0.5, "updated_at": "then"})
        first.look()
    second = ProgressReader(path, seen)
    assert second.look(), "to a new server it is news"
    assert second.points == first.points, "but no new point"
    _publish(path, {"step": 3, "loss": 3})
    second.look()
    assert [p.step for p in read_points(seen)] == [1, 2, 3]


def test_a_step_said_twice_is_one_point(path: Path) -> None:
    reader = ProgressReader(path, path.with_name("seen.jsonl"))
    for elapsed in (1, 2, 3):
        _publish(path, {"step": 5, "loss": 0.5, "elapsed_seconds": elapsed})
        assert reader.look(), "a sign of life all the same"
    assert len(reader.points) == 1


def test_what_is_said_later_of_a_step_is_added_to_its_point(path: Path) -> None:
    seen = path.with_name("seen.jsonl")
    reader = ProgressReader(path, seen)
    for report in ({"step": 5, "loss": 0.5}, {"step": 5, "loss": 0.4, "accuracy": 0.9}):
        _publish(path, report)
        reader.look()
    assert reader.points == [Point(5, values={"train_loss": 0.4, "accuracy": 0.9})]
    assert read_points(seen) == reader.points
    assert read_history(seen).points == reader.points
    assert ProgressReader(path, seen).points == reader.points


def test_the_jobs_own_history_goes_before_the_points_seen(path: Path) -> None:
    reader = ProgressReader(path, path.with_name("seen.jsonl"))
    _publish(path, {"step": 1, "loss": 1})
    reader.look()
    _publish(path, {"step": 2, "metrics_history": [{"step": 2, "loss": 2}]})
    reader.look()
    assert [p.step for p in reader.points] == [2]


def test_a_history_without_a_point_counts_as_none(path: Path) -> None:
    reader = ProgressReader(path)
    for step in (1, 2):
        _publish(path, {"step": step, "loss": 1, "metrics_history": ["nonsense", {"loss": 3}]})
        reader.look()
    assert [p.step for p in reader.points] == [1, 2]


def test_the_points_seen_are_bounded(path: Path) -> None:
    reader = ProgressReader(path)
    for step in range(2 * MAX_POINTS + 10):
        reader._add_seen(Reading(train_loss=math.sin(step)), step)
    assert len(reader.points) <= MAX_POINTS
    assert reader.points[-1].step == 2 * MAX_POINTS + 9


def _lines_of(seen: Path) -> list[int]:
    return [json.loads(line)["step"] for line in seen.read_text().splitlines()]


def test_the_file_of_the_points_seen_is_bounded(path: Path) -> None:
    seen = path.with_name("seen.jsonl")
    reader = ProgressReader(path, seen)
    for step in range(2 * MAX_POINTS + 1):
        reader._add_seen(Reading(train_loss=math.sin(step)), step)
    reader.look()
    assert len(_lines_of(seen)) <= MAX_POINTS
    for step in (10**6, 10**6 + 1):
        _publish(path, {"step": step, "loss": 1})
        reader.look()
    assert _lines_of(seen)[-3:] == [2 * MAX_POINTS, 10**6, 10**6 + 1]
    assert len(_lines_of(seen)) <= MAX_POINTS + 2
    assert ProgressReader(path, seen).points == reader.points


def test_a_long_file_of_an_earlier_release_is_made_short(path: Path) -> None:
    seen = path.with_name("seen.jsonl")
    seen.write_text("".join(f'{{"step": {n}, "loss": 1}}\n' for n in range(40_000)) + '{"step": 9')
    reader = ProgressReader(path, seen)
    reader.look()
    assert len(_lines_of(seen)) <= 2 * MAX_POINTS
    assert _lines_of(seen)[-1] == 39_999, "and half a line is gone"


def test_points_that_could_not_be_saved_are_saved_later(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    now = 0.0
    seen = folder / "seen.jsonl"
    reader = ProgressReader(folder / "progress.json", seen, lambda: now)
    seen.mkdir()  # it cannot be written, as on a full disk
    for step in (1, 2, 3):
        _publish(folder / "progress.json", {"step": step, "loss": step})
        reader.look()
    seen.rmdir()
    reader.look()
    assert not seen.exists(), "it was tried just now"
    now += SAVE_AGAIN_SECONDS
    reader.look()
    assert _lines_of(seen) == [1, 2, 3]
    _publish(folder / "progress.json", {"step": 4, "loss": 4})
    reader.look()
    assert _lines_of(seen) == [1, 2, 3, 4]


def test_a_close_look_saves_the_points_without_waiting(path: Path) -> None:
    seen = path.with_name("seen.jsonl")
    reader = ProgressReader(path, seen, lambda: 0.0)
    seen.mkdir()
    _publish(path, {"step": 1, "loss": 1})
    reader.look()
    seen.rmdir()
    reader.look(closely=True)
    assert _lines_of(seen) == [1]


@pytest.mark.parametrize("spoil", [_folder, os.mkfifo, _link])
def test_a_spoilt_file_of_points_stops_nothing(path: Path, spoil: Callable[[Path], None]) -> None:
    seen = path.with_name("seen.jsonl")
    spoil(seen)
    readers: list[ProgressReader] = []
    _publish(path, {"step": 1, "loss": 1})

    def follow() -> bool:
        readers.append(ProgressReader(path, seen))
        return readers[0].look()

    assert _in_time(follow)
    assert [p.step for p in readers[0].points] == [1]
    if spoil is _link:
        elsewhere = path.with_name("elsewhere.json")
        assert elsewhere.read_text() == '{"step": 99}', "no link is followed"


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
        [b'{"step": 1},{"step": 2}', b'{"step": 3, "step": 4}', b'{"st\\u0065p": 2}',
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
    decoded = progress._decoded

    def counted(block: bytes) -> Any:
        read.append(len(block))
        return decoded(block)

    monkeypatch.setattr(progress, "_decoded", counted)
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
    monkeypatch.setattr(progress, "EXACT_BYTES", path.stat().st_size - 1)
    history = read_history(path)
    assert 1000 < history.total < lines
    assert (history.points[0].step, history.points[-1].step) == (0, lines - 1)
    assert read_history(path, since_step=lines - 101).total == 100, "the end is read whole"


@pytest.mark.parametrize("spoil", [_folder, os.mkfifo, _link, _empty])
def test_a_spoilt_curve_is_no_points(path: Path, spoil: Callable[[Path], None]) -> None:
    spoil(path)
    assert _in_time(lambda: bool(read_history(path).points)) is False
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


# Phases


def test_the_time_between_two_looks_is_that_of_the_phase() -> None:
    clock = PhaseClock({}, longest_tick=2)
    for now, phase in ((0, None), (1, None), (2.5, "training"), (3, "evaluating"), (5, "training")):
        clock.tick(now, phase)
    assert clock.seconds == {"": 1, "training": 3.5, "evaluating": 0.5}


def test_time_in_which_nobody_looked_belongs_to_no_phase() -> None:
    clock = PhaseClock({"training": 10.0}, longest_tick=2)
    for now in (100, 101, 5000, 4000):
        clock.tick(now, "training")
    assert clock.seconds == {"training": 13}


def test_phases_are_bounded() -> None:
    clock = PhaseClock({}, longest_tick=2)
    for now in range(1001):
        clock.tick(now, f"phase {now}")
    assert len(clock.seconds) == MAX_PHASES + 1
    assert clock.seconds["phase 1"] == 1
    assert clock.seconds["other"] == 1000 - MAX_PHASES
