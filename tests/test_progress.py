"""progress.json in every state that a stranger's program can leave it in."""

import contextlib
import json
import math
import os
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.curve import (
    MAX_EXTRA,
    MAX_POINTS,
    MAX_TEXT,
    Point,
    parse_point,
    point_as_json,
    read_history,
    read_points,
)
from backend.mask import Mask
from backend.progress import (
    MAX_BYTES,
    MAX_PHASES,
    SAVE_AGAIN_SECONDS,
    NoNewsError,
    PhaseClock,
    ProgressReader,
    Reading,
    parse,
)
from tests.spoilt import VALUES, in_time, make_empty, make_folder, make_link

NAMES = st.sampled_from(
    [*Reading.__dataclass_fields__, "step", "global_step", "max_steps", "epoch", "loss", "val_loss",
     "lr", "metrics_history", "timestamp"]
)  # fmt: skip
DOCUMENTS = st.dictionaries(NAMES | st.text(), VALUES, max_size=8)


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


@pytest.mark.parametrize(
    "spoil",
    [
        make_folder,
        make_link,
        _dangling_link,
        _two_hundred_megabytes,
        _a_little_too_large,
        _half_written,
        _not_utf8,
        _device,
        make_empty,
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
        assert not in_time(lambda closely=closely: reader.look(closely=closely))
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


@pytest.mark.parametrize("spoil", [make_folder, os.mkfifo, make_link])
def test_a_spoilt_file_of_points_stops_nothing(path: Path, spoil: Callable[[Path], None]) -> None:
    seen = path.with_name("seen.jsonl")
    spoil(seen)
    readers: list[ProgressReader] = []
    _publish(path, {"step": 1, "loss": 1})

    def follow() -> bool:
        readers.append(ProgressReader(path, seen))
        return readers[0].look()

    assert in_time(follow)
    assert [p.step for p in readers[0].points] == [1]
    if spoil is make_link:
        elsewhere = path.with_name("elsewhere.json")
        assert elsewhere.read_text() == '{"step": 99}', "no link is followed"


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


def test_values_are_masked_before_a_text_is_cut(tmp_path: Path) -> None:
    """What is left of a value would not be found any more, in seen.jsonl least of all."""
    path, seen = tmp_path / "progress.json", tmp_path / "seen.jsonl"
    mask = Mask(["hf_" + "secret" * 50])
    long = "x" * 150 + "hf_" + "secret" * 50
    times = {"updated_at": "2026-01-31T12:00:00Z", "status": long}
    _publish(path, {"step": 1, "loss": 1.0, long: 2.0, "phase": long, **times})
    reader = ProgressReader(path, seen, mask=mask)
    assert reader.look()
    assert reader.reading is not None
    assert reader.reading.phase == "x" * 150 + "*" * 50
    assert reader.reading.updated_at == "2026-01-31T12:00:00Z"
    assert "hf_" not in str(reader.reading.summary())
    assert "hf_" not in seen.read_text() + str(reader.points)


def test_a_curve_that_an_earlier_release_kept_is_masked_when_it_is_read(tmp_path: Path) -> None:
    seen = tmp_path / "seen.jsonl"
    seen.write_text(json.dumps({"step": 1, "x" * 195 + "hf_se": 1.0}) + "\n")
    reader = ProgressReader(tmp_path / "progress.json", seen, mask=Mask(["hf_secret"]))
    assert "hf_" not in str(reader.points)
    reader.look(closely=True)
    assert "hf_" not in seen.read_text()


def test_a_history_of_its_own_is_masked(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    _publish(path, {"metrics_history": [{"step": 1, "x" * 195 + "hf_secret": 1.0}]})
    reader = ProgressReader(path, mask=Mask(["hf_secret"]))
    assert reader.look()
    assert "hf_" not in str(reader.points)
    assert len(reader.points) == 1
