"""Recipes that are paused, killed and starved of room, and go on from their checkpoints."""

import hashlib
import json
import os
import pickle
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.paths import RunPaths
from tests.faults.conftest import tiny_disk
from tests.training.conftest import Forks

DIGITS = {"epochs": 3, "batch_size": 64, "save_every": 2}
CHAR_LM = {
    "layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4, "sample_bytes": 8,
    "dropout": 0.1, "steps": 20, "warmup_steps": 5, "eval_every": 6, "save_every": 4,
}  # fmt: skip
STEPS = {"digits": 15, "char_lm": 20}
COMPLETE = "COMPLETE"
NO_ROOM = "checkpoints.RESERVE_BYTES = 10**15\n"
NO_LOOK_AT_THE_ROOM = "checkpoints.RESERVE_BYTES = -(10**15)\n"
KILLED = -9

pytestmark = pytest.mark.timeout(300)


class Left:
    """What a training has left in its run folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = RunPaths(folder)
        self.checkpoints = self.paths.checkpoints

    def good(self) -> list[Path]:
        """The checkpoints whose marker fits their files."""
        return [folder for folder in sorted(self.checkpoints.glob("step-*")) if _is_good(folder)]

    @property
    def steps(self) -> list[int]:
        """Of everything in there, which is nothing but good checkpoints."""
        if not self.checkpoints.exists():
            return []
        assert sorted(self.checkpoints.iterdir()) == self.good()
        return [int(folder.name[5:]) for folder in self.good()]

    @property
    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.paths.progress.read_text())
        return found

    @property
    def log(self) -> str:
        return self.paths.log.read_text()

    def points(self) -> list[dict[str, Any]]:
        if not self.paths.metrics.exists():  # it had no step to do
            return []
        return list(map(_timeless, map(json.loads, self.paths.metrics.read_text().splitlines())))

    def outcome(self) -> dict[str, Any]:
        """All that a pause must not change: every point, the best loss, the last weights and the
        state beside them, to the last bit."""
        last = self.good()[-1]
        progress = self.progress
        return {
            "points": self.points(),
            "history": list(map(_timeless, progress["metrics_history"])),
            "best": (progress["best_eval_loss"], progress["best_step"]),
            "status": progress["status"],
            "weights": _marker(last)["files"]["model.pt"],
            "state": _plain(torch.load(last / "training.pt", weights_only=True)),
        }

    def cut_back(self) -> Path | None:
        """The newest good checkpoint, to which the curve is cut back; nothing is asked."""
        newest = self.good()[-1] if self.good() else None
        step = int(newest.name[5:]) if newest else 0
        self.paths.stop.unlink(missing_ok=True)
        if self.paths.metrics.exists():
            lines = self.paths.metrics.read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            self.paths.metrics.write_text("".join(kept))
        return newest


class Job(Left):
    """A training whose lives are forks."""

    def __init__(self, forks: Forks, recipe: str, params: dict[str, Any], folder: Path) -> None:
        super().__init__(folder)
        folder.mkdir()
        self.forks = forks
        self.recipe = recipe
        self.params = params

    def run(self, first: str = "", resume_from: Path | None = None, **params: Any) -> int:
        """Live until the end; returns the exit code. `first` is in the words of forks.py."""
        return self.forks.run(
            {
                "recipe": self.recipe,
                "params": {**self.params, **params, "device": "cpu"},
                "environment": {
                    "SIGNALBOX_RUN_DIR": str(self.folder),
                    "SIGNALBOX_PROGRESS": str(self.paths.progress),
                    "SIGNALBOX_CHECKPOINT_DIR": str(self.checkpoints),
                    "SIGNALBOX_RESUME_FROM": str(resume_from or ""),
                },
                "log": str(self.paths.log),
                "first": first,
            }
        )

    def resume(self, first: str = "", **params: Any) -> int:
        """Live on, as the server would have it."""
        return self.run(first, self.cut_back(), **params)


def _timeless(point: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name != "timestamp"}


def _plain(value: Any) -> Any:
    """With tensors as what they hold, to be compared."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.tolist()
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return value


def _marker(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / COMPLETE).read_text())
    return found


def _is_good(folder: Path) -> bool:
    try:
        return bool(_marker(folder)["files"] == _files(folder))
    except FileNotFoundError:  # unsealed, or being removed
        return False


def _files(folder: Path) -> dict[str, dict[str, Any]]:
    return {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in folder.iterdir()
        if path.name != COMPLETE
    }


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return path


NewJob = Callable[..., Job]


@pytest.fixture
def job(forks: Forks, text: Path, tmp_path: Path) -> NewJob:
    """Makes a job; by its recipe and what its parameters have otherwise."""

    def job(recipe: str = "digits", **params: Any) -> Job:
        few = DIGITS if recipe == "digits" else {**CHAR_LM, "text_path": str(text)}
        number = len(list(tmp_path.glob("run-*")))
        return Job(forks, recipe, {**few, **params}, tmp_path / f"run-{number}")

    return job


@pytest.fixture(scope="module")
def whole(forks: Forks, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Job]:
    """Each recipe, never interrupted."""
    jobs = {
        "digits": Job(forks, "digits", DIGITS, tmp_path_factory.mktemp("whole") / "digits"),
        "char_lm": Job(
            forks,
            "char_lm",
            {**CHAR_LM, "text_path": str(text)},
            tmp_path_factory.mktemp("whole") / "char_lm",
        ),
    }
    for job in jobs.values():
        assert job.run() == 0, job.log
    return jobs


# Nothing shows that a training was paused or killed.


@pytest.mark.parametrize("recipe", ["digits", "char_lm"])
def test_a_training_paused_after_every_single_step_is_the_same_to_the_last_bit(
    job: NewJob, whole: dict[str, Job], recipe: str
) -> None:
    paused = job(recipe)
    assert paused.run("ask()") == 0, paused.log  # during the import: before the first step
    assert paused.steps == [0]
    for step in range(1, STEPS[recipe]):
        assert paused.resume(f"ask_after_step({step})") == 0, paused.log
        assert paused.progress["status"] == "stopping"
        assert int(paused.good()[-1].name[5:]) == step
    assert paused.resume() == 0, paused.log
    assert paused.outcome() == whole[recipe].outcome()
    points = [point["step"] for point in paused.outcome()["points"] if "train_loss" in point]
    assert points == list(range(1, STEPS[recipe] + 1))


@pytest.mark.parametrize("recipe", ["digits", "char_lm"])
def test_two_pauses_at_random_steps_change_nothing(
    job: NewJob, whole: dict[str, Job], recipe: str
) -> None:
    choose = random.Random(2024)
    for _ in range(3):
        first, second = sorted(choose.sample(range(1, STEPS[recipe]), 2))
        paused = job(recipe)
        assert paused.run(f"ask_after_step({first})") == 0, paused.log
        assert paused.resume(f"ask_after_step({second})") == 0, paused.log
        assert paused.resume() == 0, paused.log
        assert paused.outcome() == whole[recipe].outcome(), (first, second)


@pytest.mark.parametrize("recipe", ["digits", "char_lm"])
def test_a_training_killed_at_a_random_moment_goes_on_from_its_newest_checkpoint(
    job: NewJob, whole: dict[str, Job], recipe: str
) -> None:
    choose = random.Random(2025)
    for _ in range(4):
        where = choose.choice(
            [
                "signalbox.Run, 'log'",
                "torch.optim.AdamW, 'step'",
                "checkpoints.Checkpoints, 'after'",
            ]
        )
        call = choose.randint(2, STEPS[recipe] - 1)
        killed = job(recipe)
        assert killed.run(f"before({where}, {call}, die)") == KILLED, killed.log
        assert killed.resume() == 0, killed.log
        assert killed.outcome() == whole[recipe].outcome(), (where, call)
        assert killed.steps == whole[recipe].steps


def test_a_training_killed_by_the_clock_goes_on_too(job: NewJob, whole: dict[str, Job]) -> None:
    killed = job()
    lives = 0

    def clock() -> str:
        seconds = 0.02 * (1 + lives)  # more each time: a busy machine comes to the end as well
        alarm = f"signal.setitimer(signal.ITIMER_REAL, {seconds})"
        return f"after(signalbox.Run, 'log', {1 + lives % 3}, lambda: {alarm})"

    while (code := killed.resume(clock())) != 0:
        assert code == -14, killed.log
        lives += 1
        assert lives < 100
    assert killed.outcome() == whole["digits"].outcome()
    assert killed.steps == whole["digits"].steps


# Killed while saving.

KILLED_WHILE_SAVING = {
    "the folder was made": ("before(checkpoints, '_write_durably', 4, die)", 2),
    "the weights are written": ("before(checkpoints.torch, 'save', 3, die)", 2),
    "the weights were written": ("after(checkpoints, '_write_durably', 4, die)", 2),
    "the state was written": ("after(checkpoints, '_write_durably', 5, die)", 2),
    "the parameters were written": ("after(checkpoints, '_write_durably', 6, die)", 2),
    "it was renamed": ("before(signalbox.Run, 'saved', 2, die)", 2),
    "its files were synced": ("before(signalbox, '_publish_durably', 2, die)", 2),
    "the marker is written": ("before(os, 'replace', 1, die, 'step-00000004/COMPLETE')", 2),
    "the marker was written": ("after(signalbox, '_publish_durably', 2, die)", 4),
    "the one before is hidden": ("after(checkpoints.Path, 'rename', 3, die)", 4),
    "the one before is removed": ("before(os, 'unlink', 1, die, 'training.pt')", 4),
}  # fmt: skip


@pytest.mark.parametrize("stage", KILLED_WHILE_SAVING)
def test_killed_while_saving_costs_that_checkpoint_alone(
    job: NewJob, whole: dict[str, Job], stage: str
) -> None:
    first, good = KILLED_WHILE_SAVING[stage]
    killed = job(keep_checkpoints=1)
    assert killed.run(first) == KILLED, killed.log
    assert killed.good()[-1].name == f"step-{good:08d}"
    assert killed.resume("ask_after_step(5)") == 0, killed.log
    assert killed.steps == [5], "what was left is gone with the next save"
    assert killed.resume() == 0, killed.log
    assert killed.outcome() == whole["digits"].outcome()


# The disk.

FULL = "def full(): raise OSError(28, 'No space left on device')\n"


@pytest.mark.parametrize(
    "where",
    [
        "checkpoints, '_write_durably', 4",
        "checkpoints.torch, 'save', 4",
        "checkpoints, '_write_durably', 6",
        "signalbox, '_publish_durably', 2",
        "checkpoints.Checkpoints, '_remove_superseded', 2",
        "checkpoints.Checkpoints, '_remove_leftovers', 2",
    ],
)
def test_a_disk_that_is_full_for_a_moment_costs_at_most_one_checkpoint(
    job: NewJob, whole: dict[str, Job], where: str
) -> None:
    full = job()
    assert full.run(f"{FULL}before({where}, full)\nask_after_step(5)") == 0, full.log
    assert full.steps == [2, 5] if "_superseded" not in where else [2, 4, 5]
    assert full.resume() == 0, full.log
    assert full.outcome() == whole["digits"].outcome()


def test_a_disk_that_fills_while_saving_leaves_the_checkpoints_before(
    job: NewJob, whole: dict[str, Job]
) -> None:
    """A real one, with room for one checkpoint, and later for more."""
    full = job(keep_checkpoints=1)
    disk = tiny_disk(full.checkpoints, "size=1200k")
    next(disk)
    try:
        assert full.run(NO_LOOK_AT_THE_ROOM) == 1
        assert full.steps == [2]
        assert [p["step"] for p in full.points() if "train_loss" in p] == list(range(1, 16))
        sentence = "A checkpoint could not be written: No space left on device."
        assert full.log.count(sentence) == 2, "once in its course, and as the reason of its end"
        assert full.log.splitlines()[-1] == sentence
        more = ["mount", "-o", "remount,size=100m", str(full.checkpoints)]
        subprocess.run(more, check=True)
        assert full.resume() == 0, full.log
        assert full.outcome() == whole["digits"].outcome()
    finally:
        next(disk, None)


def test_without_room_nothing_is_written_and_that_is_said_once(job: NewJob) -> None:
    full = job()
    assert full.run(NO_ROOM) == 1
    assert full.steps == []
    *course, last = full.log.splitlines()
    sentence = "There is no room for a checkpoint: it takes 0.7 MiB, and of the "
    assert last.startswith(sentence)
    assert sum(line.startswith(sentence) for line in course) == 1
    assert full.points()[-1]["step"] == 15


def test_a_pause_without_room_is_declined_and_the_training_goes_on(
    job: NewJob, whole: dict[str, Job]
) -> None:
    full = job()
    room_again = (
        "after(signalbox.Run, 'decline', 1, lambda: setattr(checkpoints, 'RESERVE_BYTES', 0))"
    )
    assert full.run(f"{NO_ROOM}ask_after_step(3)\n{room_again}") == 0, full.log
    assert full.progress["stop_declined"].startswith("There is no room for a checkpoint")
    assert full.outcome() == whole["digits"].outcome()


def test_a_pause_that_is_withdrawn_while_it_cannot_be_saved_leaves_no_trace(
    job: NewJob, whole: dict[str, Job]
) -> None:
    full = job()
    room_again = "(withdraw(), setattr(checkpoints, 'RESERVE_BYTES', 0))"
    first = f"{NO_ROOM}ask_after_step(3)\nafter(checkpoints, '_no_room', 2, lambda: {room_again})"
    assert full.run(first) == 0, full.log
    assert "stop_declined" not in full.progress
    assert full.outcome() == whole["digits"].outcome()


def test_a_pause_that_is_withdrawn_while_it_is_saved_ends_the_process_all_the_same(
    job: NewJob, whole: dict[str, Job]
) -> None:
    paused = job()
    assert paused.run("ask_after_step(3)\nafter(signalbox.Run, 'saved', 2, withdraw)") == 0
    assert paused.progress["status"] == "stopping"
    assert paused.steps == [2, 3]
    assert paused.resume() == 0, paused.log
    assert paused.outcome() == whole["digits"].outcome()


def test_a_cancel_saves_and_without_room_ends_unsaved(job: NewJob) -> None:
    saved, unsaved = job(), job()
    assert saved.run("ask_after_step(3, pause=False)") == 0, saved.log
    assert saved.steps == [2, 3]
    assert unsaved.run(f"{NO_ROOM}ask_after_step(3, pause=False)") == 0, unsaved.log
    assert unsaved.steps == []
    assert unsaved.log.splitlines()[-1] == "Asked to stop after step 3; nothing is saved."
    for cancelled in (saved, unsaved):
        assert cancelled.progress["status"] == "stopping"
        assert cancelled.points()[-1]["step"] == 3


# Which are kept.

BEST_IN_THE_MIDDLE = {"learning_rate": 0.1, "epochs": 5, "seed": 1}


def test_the_newest_and_the_best_are_kept(job: NewJob) -> None:
    kept = job(**BEST_IN_THE_MIDDLE, keep_checkpoints=3)
    assert kept.run() == 0, kept.log
    losses = {p["step"]: p["eval_loss"] for p in kept.points() if "eval_loss" in p}
    best = min(losses, key=losses.__getitem__)
    assert best < 20, "else this shows nothing"
    assert kept.steps == [best, 22, 24, 25]
    assert _marker(kept.good()[0])["eval_loss"] == losses[best] == kept.progress["best_eval_loss"]
    assert _marker(kept.good()[1])["eval_loss"] is None


def test_a_best_that_would_cost_too_much_is_written_later_as_it_was(job: NewJob) -> None:
    at_once = job(**BEST_IN_THE_MIDDLE, save_every=1000)
    assert at_once.run() == 0, at_once.log
    best = at_once.steps[0]
    weights = _marker(at_once.good()[0])["files"]["model.pt"]
    dear = "checkpoints.BEST_SHARE = -1\n"
    cheap_again = "lambda: setattr(checkpoints, 'BEST_SHARE', math.inf)"
    for first, steps in (
        (dear, [best, 25]),
        (f"{dear}ask_after_step({best + 2})", [best, best + 2]),
        (
            f"{dear}after(checkpoints.Checkpoints, 'after', {best + 1}, {cheap_again})\n"
            f"before(torch.optim.AdamW, 'step', {best + 3}, die)",
            [best],
        ),
    ):
        late = job(**BEST_IN_THE_MIDDLE, save_every=1000)
        late.run(first)
        assert late.steps == steps, late.log
        assert _marker(late.good()[0])["files"]["model.pt"] == weights


def test_the_best_before_a_pause_is_still_the_best_after_it(job: NewJob) -> None:
    never, paused = job(**BEST_IN_THE_MIDDLE), job(**BEST_IN_THE_MIDDLE)
    assert never.run() == 0, never.log
    assert paused.run("ask_after_step(13)") == 0, paused.log
    assert paused.resume() == 0, paused.log
    assert paused.outcome() == never.outcome()
    assert paused.steps == never.steps


def test_no_step_is_written_twice(job: NewJob) -> None:
    once = job(save_every=5)
    assert once.run() == 0, once.log
    saved = [line.split()[1] for line in once.log.splitlines() if line.startswith("Saved ")]
    assert [name.rstrip(",") for name in saved] == [f"step-{n:08d}" for n in (5, 10, 15)]


def test_what_could_not_be_gone_on_from_is_replaced(job: NewJob, whole: dict[str, Job]) -> None:
    """Nobody resumes from a step that the curve, cut back, does not lead to."""
    damaged = job(keep_checkpoints=3)
    assert damaged.run() == 0, damaged.log
    assert damaged.steps[-3:] == [12, 14, 15]
    for folder in damaged.good()[-2:]:
        (folder / "training.pt").write_bytes(b"")
    assert damaged.resume("ask_after_step(13)") == 0, damaged.log
    assert damaged.steps[-2:] == [12, 13]
    assert damaged.resume() == 0, damaged.log
    assert damaged.outcome() == whole["digits"].outcome()


def test_a_damaged_checkpoint_of_the_same_step_is_replaced(
    job: NewJob, whole: dict[str, Job]
) -> None:
    damaged = job()
    assert damaged.run("ask_after_step(4)") == 0, damaged.log
    (damaged.good()[-1] / "params.json").write_bytes(b"{")
    assert [folder.name for folder in damaged.good()] == ["step-00000002"]
    assert damaged.resume() == 0, damaged.log
    assert damaged.outcome() == whole["digits"].outcome()


def test_what_others_keep_in_the_same_place_is_left_alone(job: NewJob) -> None:
    other = job(seed=2, epochs=1)
    assert other.run() == 0, other.log
    (other.checkpoints / "notes").mkdir()
    (other.checkpoints / ".hidden").mkdir()
    (other.checkpoints / "step-00000004" / COMPLETE).unlink()
    before = {path: path.stat().st_mtime_ns for path in other.checkpoints.rglob("*")}
    ours = job(keep_checkpoints=1)
    ours.checkpoints = other.checkpoints
    assert ours.run("ask_after_step(3)") == 0, ours.log
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert (ours.checkpoints / "step-00000003" / COMPLETE).exists()


# What is not gone on from.


def test_a_checkpoint_of_other_parameters_is_refused_before_the_first_step(job: NewJob) -> None:
    paused = job()
    assert paused.run("ask_after_step(3)") == 0, paused.log
    assert paused.resume(learning_rate=0.01, seed=2) == 1
    assert paused.log.splitlines()[-1] == (
        f"The checkpoint {paused.good()[-1]} was made with other parameters (learning_rate, seed), "
        "and a training goes on only with the same."
    )
    assert paused.points()[-1]["step"] == 3


def test_a_checkpoint_of_another_text_is_refused_before_the_first_step(
    job: NewJob, text: Path, tmp_path: Path
) -> None:
    changing = tmp_path / "changing.txt"
    changing.write_bytes(text.read_bytes())
    paused = job("char_lm", text_path=str(changing))
    assert paused.run("ask_after_step(3)") == 0, paused.log
    changing.write_bytes(text.read_bytes().replace(b"fox", b"dog", 1))
    assert paused.resume() == 1
    assert paused.log.splitlines()[-1].startswith(
        f"The checkpoint {paused.good()[-1]} has learned other data than what is there now"
    )
    assert paused.points()[-1]["step"] == 3
    changing.write_bytes(text.read_bytes())
    assert paused.resume() == 0, paused.log


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _seal(folder: Path) -> None:
    """Anew, so that it is not the marker that gives the content away."""
    (folder / COMPLETE).write_text(json.dumps({**_marker(folder), "files": _files(folder)}))


def _other_content(path: Path) -> None:
    torch.save({"step": 3}, path)
    _seal(path.parent)


class Evil:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (os.system, ("echo It was run.",))


def _evil(path: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(), protocol=2))
    _seal(path.parent)


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.pt", _truncate),
        ("model.pt", _flip),
        ("model.pt", Path.unlink),
        ("training.pt", _truncate),
        ("training.pt", _flip),
        ("training.pt", _other_content),
        ("training.pt", _evil),
        ("params.json", _truncate),
        (COMPLETE, Path.unlink),
    ],
)
def test_a_damaged_checkpoint_ends_the_job_with_a_sentence(
    job: NewJob, name: str, damage: Callable[[Path], None]
) -> None:
    paused = job()
    assert paused.run("ask_after_step(3)") == 0, paused.log
    folder = paused.good()[-1]
    damage(folder / name)
    printed = len(paused.log.splitlines())
    assert paused.run(resume_from=folder) == 1
    images, sentence = paused.log.splitlines()[printed:]
    assert images.startswith("300 images")  # and no step
    assert sentence.startswith(f"The checkpoint {folder} cannot be loaded: ")
    assert len(sentence) < len(str(folder)) + 250
    assert sentence[-2:].strip(".") == sentence[-2], "one full stop"


def test_a_checkpoint_under_another_step_s_name_is_refused(job: NewJob) -> None:
    paused = job()
    assert paused.run("ask_after_step(3)") == 0, paused.log
    renamed = paused.good()[-1].rename(paused.checkpoints / "step-00000007")
    assert paused.run(resume_from=renamed) == 1
    assert "its name says another step than it holds (3)." in paused.log


# The end, and other folders.


@pytest.mark.parametrize("recipe", ["digits", "char_lm"])
def test_a_training_that_is_resumed_at_its_last_step_finishes(
    job: NewJob, whole: dict[str, Job], recipe: str
) -> None:
    done = job(recipe)
    assert done.run() == 0, done.log
    before = {path: path.stat().st_mtime_ns for path in done.checkpoints.rglob("*")}
    assert done.resume() == 0, done.log
    assert done.outcome() == whole[recipe].outcome()
    assert {path: path.stat().st_mtime_ns for path in done.checkpoints.rglob("*")} == before


@pytest.mark.parametrize("back", [1, 2])
def test_another_job_goes_on_from_a_checkpoint_and_leaves_it_alone(
    job: NewJob, whole: dict[str, Job], back: int
) -> None:
    """The last one too: the new job's folder then holds what was learned."""
    parent = whole["digits"].good()[-back]
    before = {path: path.stat().st_mtime_ns for path in parent.parent.rglob("*")}
    retry = job()
    retry.paths.progress.write_bytes(whole["digits"].paths.progress.read_bytes())
    assert retry.run(resume_from=parent) == 0, retry.log
    expected = whole["digits"].outcome()
    outcome = retry.outcome()
    assert {**outcome, "points": []} == {**expected, "points": []}
    step = int(parent.name[5:])
    assert outcome["points"] == [p for p in expected["points"] if p["step"] > step]
    assert {path: path.stat().st_mtime_ns for path in parent.parent.rglob("*")} == before


def test_the_marker_says_the_held_out_loss_of_that_very_step(whole: dict[str, Job]) -> None:
    for done in whole.values():
        losses = {p["step"]: p["eval_loss"] for p in done.points() if "eval_loss" in p}
        for folder in done.good():
            marker = _marker(folder)
            assert marker["eval_loss"] == losses.get(marker["step"])
            assert marker["step"] == int(folder.name[5:])
