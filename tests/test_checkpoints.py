"""Which checkpoint is gone on from, and what becomes of the curve."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import checkpoints
from backend.checkpoints import (
    COMPLETE,
    GivenUpError,
    carry_curve,
    choose,
    config_of,
    set_aside_curve,
    size_of,
    step_of,
)
from backend.paths import RunPaths
from backend.progress import ProgressReader
from backend.training import signalbox

CONFIG = config_of("digits", {"epochs": 5})


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    paths = RunPaths(tmp_path / "1")
    paths.checkpoints.mkdir(parents=True)
    return paths


Save = Callable[..., Path]


@pytest.fixture
def save(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Save:
    """Saves a checkpoint as a job does."""
    monkeypatch.setenv("SIGNALBOX_RUN_DIR", str(paths.folder))
    monkeypatch.setenv("SIGNALBOX_CHECKPOINT_DIR", str(paths.checkpoints))
    monkeypatch.delenv("SIGNALBOX_PROGRESS", raising=False)

    def save(step: int, *, name: str = "step-{:08d}", config: str | None = CONFIG) -> Path:
        if config is None:
            monkeypatch.delenv("SIGNALBOX_CONFIG", raising=False)
        else:
            monkeypatch.setenv("SIGNALBOX_CONFIG", config)
        folder = paths.checkpoints / name.format(step)
        (folder / "parts").mkdir(parents=True)
        (folder / "model.pt").write_bytes(b"weights of step %d" % step)
        (folder / "parts" / "0").write_bytes(bytes(range(256)))
        assert signalbox.Run().saved(folder)
        return folder

    return save


def chosen(paths: RunPaths) -> tuple[str | None, list[str]]:
    choice = choose(paths, CONFIG)
    return choice.good.name if choice.good else None, list(choice.passed_over)


# Choosing


def test_the_newest_by_its_step_is_chosen_whatever_its_folder_is_called(
    paths: RunPaths, save: Save
) -> None:
    save(900)
    newest = save(1000, name="checkpoint-{}")
    choice = choose(paths, CONFIG)
    assert choice.good is not None
    assert (choice.good.step, choice.good.folder) == (1000, newest)
    assert choice.passed_over == []


def test_where_nothing_was_saved_nothing_is_chosen(paths: RunPaths) -> None:
    assert chosen(paths) == (None, [])
    paths.checkpoints.rmdir()
    assert chosen(paths) == (None, [])


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.pt", 3)


def flip(folder: Path) -> None:
    content = bytearray((folder / "parts" / "0").read_bytes())
    content[17] ^= 1
    (folder / "parts" / "0").write_bytes(content)


def lose(folder: Path) -> None:
    (folder / "model.pt").unlink()


def unmark(folder: Path) -> None:
    (folder / COMPLETE).unlink()


def link(folder: Path) -> None:
    (folder / "model.pt").rename(folder.parent.parent / "elsewhere")
    (folder / "model.pt").symlink_to(folder.parent.parent / "elsewhere")


def halve(folder: Path) -> None:
    marker = folder / COMPLETE
    marker.write_text(marker.read_text()[:40])


def lead_away(folder: Path) -> None:
    marker = folder / COMPLETE
    document = json.loads(marker.read_text())
    document["files"]["../../../secret"] = {"bytes": 1, "sha256": ""}
    marker.write_text(json.dumps(document))


def name_what_no_file_can_be(folder: Path) -> None:
    marker = folder / COMPLETE
    document = json.loads(marker.read_text())
    document["files"]["a\0b"] = document["files"]["\ud800"] = {"bytes": 1, "sha256": ""}
    marker.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (truncate, "'model.pt' has 3 bytes and was saved with 20"),
        (flip, "'parts/0' is not what was saved: its bytes have changed"),
        (lose, "'model.pt' cannot be read (No such file or directory)"),
        (unmark, "it was not saved to its end"),
        (link, "'model.pt' cannot be read (Too many levels of symbolic links)"),
        (halve, "its marker is damaged"),
        (
            name_what_no_file_can_be,
            r"'a\x00b' cannot be read (no name of a file in this folder)",
        ),
        (lead_away, "'../../../secret' cannot be read (no name of a file in this folder)"),
    ],
)
def test_one_that_is_not_whole_is_passed_over_for_the_one_before(
    paths: RunPaths, save: Save, spoil: Callable[[Path], None], reason: str
) -> None:
    save(500)
    spoil(save(1000))
    assert chosen(paths) == ("step-00000500", [f"step-00001000 was not used: {reason}."])


def test_one_of_other_parameters_is_never_chosen(paths: RunPaths, save: Save) -> None:
    save(1000, config=config_of("digits", {"epochs": 6}))
    assert chosen(paths) == (
        None,
        ["step-00001000 was not used: it was saved with other parameters."],
    )


def test_one_that_was_saved_outside_a_job_may_be_of_any(paths: RunPaths, save: Save) -> None:
    save(1000, config=None)
    assert chosen(paths) == ("step-00001000", [])


@pytest.mark.parametrize("content", [b"", b"done\n", b"\xff\x00"])
def test_a_marker_that_says_nothing_is_taken_at_its_word(paths: RunPaths, content: bytes) -> None:
    folder = paths.checkpoints / "step-7"
    folder.mkdir()
    (folder / COMPLETE).write_bytes(content)
    assert chosen(paths) == ("step-7", [])


@given(content=st.binary(max_size=200) | st.from_regex(rb"\{\"files\": .{0,80}\}"))
def test_no_marker_makes_choosing_fail(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    paths = RunPaths(tmp_path_factory.mktemp("run"))
    folder = paths.checkpoints / "step-7"
    folder.mkdir(parents=True)
    (folder / COMPLETE).write_bytes(content)
    choice = choose(paths, CONFIG)
    assert (choice.good is None) == bool(choice.passed_over)


def test_what_is_being_saved_and_what_has_no_step_is_left_alone(
    paths: RunPaths, save: Save
) -> None:
    save(1)
    for name in (".step-00000009.tmp", "best", "latest"):
        (paths.checkpoints / name).mkdir()
        (paths.checkpoints / name / COMPLETE).touch()
    (paths.checkpoints / os.fsdecode(b"caf\xe9-5")).mkdir()
    (paths.checkpoints / "step-3").symlink_to(paths.checkpoints / "best")
    (paths.checkpoints / "step-4").write_text("a file")
    assert chosen(paths) == ("step-00000001", [])


def test_looking_through_a_large_checkpoint_can_be_given_up(
    paths: RunPaths, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(1000)
    monkeypatch.setattr(checkpoints, "CHUNK_BYTES", 4)
    answers = iter([False, False, True])
    with pytest.raises(GivenUpError):
        choose(paths, CONFIG, lambda: next(answers))


def test_only_of_a_few_it_is_said_why(paths: RunPaths) -> None:
    for step in range(20):
        (paths.checkpoints / f"step-{step}").mkdir()
    name, reasons = chosen(paths)
    assert name is None
    assert [reason.split()[0] for reason in reasons] == [f"step-{n}" for n in range(19, 14, -1)]


@pytest.mark.parametrize(
    ("name", "step"),
    [("step-00000500", 500), ("checkpoint-12", 12), ("7", 7), ("best", None), ("step-1-old", None)],
)
def test_the_step_is_what_the_name_ends_in(name: str, step: int | None) -> None:
    assert step_of(name) == step


def test_the_configuration_is_the_recipe_and_its_parameters() -> None:
    assert config_of("digits", {"a": 1, "b": 2}) == config_of("digits", {"b": 2, "a": 1})
    others = {
        config_of("digits", {"a": 2}),
        config_of("char_lm", {"a": 1}),
        config_of("digits", {}),
    }
    assert len({*others, config_of("digits", {"a": 1})}) == 4


def test_a_checkpoint_that_grows_is_seen(paths: RunPaths, save: Save) -> None:
    before = size_of(paths)
    (paths.checkpoints / ".step-9.tmp").mkdir()
    (paths.checkpoints / ".step-9.tmp" / "model.pt").write_bytes(b"12345")
    assert size_of(paths)[0] == before[0] + 5


# The curve


def line(step: int, loss: float = 1.0) -> str:
    return f'{{"step": {step}, "train_loss": {loss}, "timestamp": "2026-11-23T18:02:45.123Z"}}\n'


def steps_in(path: Path) -> list[int]:
    return [json.loads(text)["step"] for text in path.read_text().splitlines()]


def progress(paths: RunPaths) -> Any:
    return json.loads(paths.progress.read_text())


def test_a_curve_is_cut_where_its_run_goes_on(paths: RunPaths) -> None:
    paths.metrics.write_text(
        "".join(map(line, range(1, 8))) + '{"step": 5, "eval_loss": 2.0}\nnonsense\n{"step": 4, "tr'
    )
    history = [{"step": step, "train_loss": 1.0} for step in range(1, 8)]
    paths.progress.write_text(
        json.dumps(
            {"status": "stopping", "current_step": 7, "total_steps": 10, "elapsed_seconds": 3.5,
             "non_finite_count": 2, "first_non_finite_step": 3, "metrics_history": history}
        )
    )  # fmt: skip
    carry_curve(paths, paths, 5)
    assert steps_in(paths.metrics) == [1, 2, 3, 4, 5, 5]
    found = progress(paths)
    assert [point["step"] for point in found.pop("metrics_history")] == [1, 2, 3, 4, 5]
    assert found == {
        "current_step": 5,
        "total_steps": 10,
        "elapsed_seconds": 3.5,
        "non_finite_count": 2,
        "first_non_finite_step": 3,
    }


def test_a_retry_takes_the_curve_over_and_leaves_the_other_as_it_is(
    paths: RunPaths, tmp_path: Path
) -> None:
    child = RunPaths(tmp_path / "2")
    child.folder.mkdir()
    paths.metrics.write_text("".join(map(line, range(1, 8))))
    before = paths.metrics.read_bytes()
    carry_curve(paths, child, 4)
    assert steps_in(child.metrics) == [1, 2, 3, 4]
    assert paths.metrics.read_bytes() == before
    found = progress(child)
    assert (found["current_step"], len(found["metrics_history"])) == (4, 4)
    assert "elapsed_seconds" not in found


def test_a_job_that_keeps_no_history_goes_on_with_what_was_seen(paths: RunPaths) -> None:
    reader = ProgressReader(paths.progress, paths.seen)
    for step in range(1, 8):
        paths.progress.write_text(json.dumps({"step": step, "loss": 8.0 - step}))
        assert reader.look()
    carry_curve(paths, paths, 4)
    assert steps_in(paths.seen) == [1, 2, 3, 4]
    again = ProgressReader(paths.progress, paths.seen)
    assert again.look()
    assert [point.step for point in again.points] == [1, 2, 3, 4]


def test_the_helper_goes_on_with_the_curve_that_was_carried(
    paths: RunPaths, save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save(5)
    paths.metrics.write_text("".join(line(step, 10 - step) for step in range(1, 8)))
    carry_curve(paths, paths, 5)
    monkeypatch.setenv("SIGNALBOX_PROGRESS", str(paths.progress))
    monkeypatch.setenv("SIGNALBOX_RESUME_FROM", str(checkpoint))
    run = signalbox.Run(total_steps=8)
    assert run.resume_step == 5
    run.log(6, train_loss=0.5)
    run.finish()
    history = progress(paths)["metrics_history"]
    assert [(p["step"], p["train_loss"]) for p in history] == [
        *((step, 10.0 - step) for step in range(1, 6)),
        (6, 0.5),
    ]


def test_without_a_checkpoint_a_curve_begins_anew_and_the_old_one_is_kept(paths: RunPaths) -> None:
    for _ in range(2):
        paths.metrics.write_text(line(1))
        paths.progress.write_text('{"step": 1}')
        set_aside_curve(paths)
        assert not paths.metrics.exists()
        assert not paths.progress.exists()
    kept = [paths.folder / f"metrics.jsonl.{number}" for number in (1, 2)]
    assert [path.read_text() for path in kept] == [line(1)] * 2
