"""The built-in trainings, run as jobs are: their figures, their repeatability, what they leave."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from backend.paths import RunPaths
from backend.recipes import RECIPES, CharLmParams, DigitsParams, Params, command_for
from backend.training.recipes import char_lm, digits
from tests.training.conftest import Forks

PROJECT = Path(__file__).parents[2]
TINY = {"layers": 1, "heads": 2, "width": 16, "context": 16, "batch_size": 4, "sample_bytes": 8}

pytestmark = pytest.mark.timeout(400)
RUN_SECONDS = 300
"""Trainings take seconds here; a slow and busy machine has so long."""


@dataclass
class Ended:
    code: int
    log: str
    paths: RunPaths

    @property
    def progress(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.paths.progress.read_text())
        return found

    def curve(self, name: str) -> list[float]:
        points = map(json.loads, self.paths.metrics.read_text().splitlines())
        return [point[name] for point in points if name in point]


def run(arguments: list[str], folder: Path) -> Ended:
    """`python *arguments` as a job with this run folder."""
    folder.mkdir(exist_ok=True)
    paths = RunPaths(folder)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=PROJECT,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(PROJECT), str(PROJECT / "backend" / "training")]),
            "SIGNALBOX_RUN_DIR": str(folder),
            "SIGNALBOX_PROGRESS": str(paths.progress),
            "SIGNALBOX_CHECKPOINT_DIR": str(paths.checkpoints),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=RUN_SECONDS,
    )
    return Ended(done.returncode, done.stdout, paths)


def train(params: Params, folder: Path) -> Ended:
    key = next(key for key, recipe in RECIPES.items() if recipe.params is type(params))
    return run([*command_for(key, params).argv], folder)


def train_in_a_fork(forks: Forks, params: Params, folder: Path) -> Ended:
    """Where it is not about the process: to import torch takes longer than what is tested."""
    folder.mkdir(exist_ok=True)
    paths = RunPaths(folder)
    order = {
        "recipe": next(key for key, recipe in RECIPES.items() if recipe.params is type(params)),
        "params": params.model_dump(mode="json"),
        "environment": {
            "SIGNALBOX_RUN_DIR": str(folder),
            "SIGNALBOX_PROGRESS": str(paths.progress),
            "SIGNALBOX_CHECKPOINT_DIR": str(paths.checkpoints),
        },
        "log": str(paths.log),
        "first": "",
    }
    return Ended(forks.run(order), paths.log.read_text(), paths)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog. " * 100)
    return path


def test_digits_reaches_97_percent_with_its_defaults(tmp_path: Path) -> None:
    job = train(DigitsParams(device="cpu"), tmp_path)
    assert job.code == 0, job.log
    assert job.progress["eval_accuracy"] >= 0.97
    assert job.progress["progress_percent"] == 100
    assert job.progress["status"] == "finished"
    losses = job.curve("eval_loss")
    assert len(losses) == DigitsParams().epochs
    assert losses[-1] < losses[0] / 4


def test_digits_logs_and_leaves_what_it_should(tmp_path: Path) -> None:
    job = train(DigitsParams(epochs=1, batch_size=128, device="cpu"), tmp_path)
    assert job.code == 0, job.log
    assert job.log.count("epoch ") == 1
    expected = {"current_step": 12, "total_steps": 12, "current_epoch": 1, "total_epochs": 1}
    assert job.progress.items() >= expected.items()
    assert {"train_loss", "eval_loss", "learning_rate", "grad_norm"} <= job.progress.keys()
    assert "Warning" not in job.log
    folder = job.paths.checkpoints / "step-00000012"
    assert sorted(p.name for p in folder.iterdir()) == [
        "COMPLETE", "model.pt", "params.json", "training.pt",
    ]  # fmt: skip
    assert list(job.paths.checkpoints.iterdir()) == [folder]
    params = DigitsParams.model_validate_json((folder / "params.json").read_text())
    assert params.batch_size == 128
    model = digits.build_model()
    model.load_state_dict(torch.load(folder / "model.pt", weights_only=True))
    assert digits.evaluate(model, digits.load()[1])[0] == pytest.approx(job.progress["eval_loss"])


def test_the_digits_are_split_once_for_all() -> None:
    train_images, held_out = digits.load()
    assert (len(train_images), len(held_out)) == (1437, 360)
    assert held_out.pixels.shape == (360, 1, 8, 8)
    assert (held_out.pixels.min().item(), held_out.pixels.max().item()) == (0, 1)
    assert set(held_out.digits.tolist()) == set(range(10))


def test_char_lm_learns_and_writes(tmp_path: Path, text: Path) -> None:
    params = CharLmParams(**TINY, text_path=text, steps=60, warmup_steps=5, eval_every=20, seed=3)
    job = train(params, tmp_path / "run")
    assert job.code == 0, job.log
    assert "Warning" not in job.log
    assert job.log.count("    | ") >= 3
    losses = job.curve("eval_loss")
    assert len(losses) == 3
    assert losses[0] > losses[-1]
    assert job.curve("train_loss")[0] == pytest.approx(5.545, abs=0.3)  # log 256: knows nothing
    assert (job.paths.checkpoints / "step-00000060" / "COMPLETE").exists()


def test_attention_never_sees_what_comes_later() -> None:
    torch.manual_seed(0)
    model = char_lm.Gpt(CharLmParams(**TINY)).eval()
    tokens = torch.randint(256, (1, 16))
    changed = tokens.clone()
    changed[0, 10:] = 0
    torch.testing.assert_close(model(tokens)[0, :10], model(changed)[0, :10])
    assert not torch.allclose(model(tokens)[0, 10:], model(changed)[0, 10:])


def test_the_learning_rate_warms_up_and_falls_to_a_tenth() -> None:
    params = CharLmParams(steps=1000, warmup_steps=100, learning_rate=1e-2)
    rates = [char_lm.learning_rate_at(step, params) for step in range(1, 1001)]
    assert rates[0] == pytest.approx(1e-4)
    assert max(rates) == rates[99] == pytest.approx(1e-2)
    assert rates[-1] == pytest.approx(1e-3)
    assert char_lm.learning_rate_at(1, params.model_copy(update={"warmup_steps": 0})) <= 1e-2


def test_only_matrices_decay() -> None:
    optimizer = char_lm.build_optimizer(char_lm.Gpt(CharLmParams(**TINY)), CharLmParams())
    decayed, free = optimizer.param_groups
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in free["params"]} == {1}


def test_the_default_text_is_python_and_stays_the_same() -> None:
    text = char_lm.read_text(None)
    assert text == char_lm.read_text(None)
    assert 2**20 < len(text) <= char_lm.MAX_TEXT_BYTES
    assert b"\nclass " in text


def test_a_text_that_is_too_short_is_said(forks: Forks, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("hello")
    params = CharLmParams(text_path=tmp_path / "short.txt")
    job = train_in_a_fork(forks, params, tmp_path / "run")
    assert job.code == 1
    assert job.log.splitlines()[-1].startswith("The text is too short: it has 5 bytes")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_missing_gpu_is_said(forks: Forks, tmp_path: Path) -> None:
    job = train_in_a_fork(forks, DigitsParams(device="cuda"), tmp_path)
    assert job.code == 1
    assert job.log.startswith("This job asks for a GPU")


def test_a_wrong_option_is_named() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "backend.training.recipes.digits", "--epochs", "0"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "--epochs: Input should be greater than or equal to 1\n"


def test_a_request_to_stop_ends_a_recipe_cleanly(forks: Forks, tmp_path: Path, text: Path) -> None:
    for name, params in {
        "digits": DigitsParams(device="cpu"),
        "char_lm": CharLmParams(**TINY, text_path=text, device="cpu"),
    }.items():
        (tmp_path / name).mkdir()
        RunPaths(tmp_path / name).stop.write_text("{}")
        job = train_in_a_fork(forks, params, tmp_path / name)
        assert job.code == 0, job.log
        assert "Asked to stop" in job.log
        assert job.progress["status"] == "stopping"
        assert job.progress["can_pause"] is True


def test_a_recipe_runs_outside_a_job_and_says_that_it_saves_nothing(
    forks: Forks, tmp_path: Path
) -> None:
    log = tmp_path / "log.txt"
    params = {"epochs": 2, "device": "cpu"}
    order = {"recipe": "digits", "params": params, "environment": {}, "log": str(log), "first": ""}
    assert forks.run(order) == 0, log.read_text()
    said = "Nothing is saved: SIGNALBOX_CHECKPOINT_DIR names no folder"
    assert log.read_text().count(said) == 1


@pytest.mark.parametrize("example", ["polynomial", "no_import"])
def test_the_examples_of_the_docs_run(tmp_path: Path, example: str) -> None:
    script = PROJECT / "docs" / "examples" / f"{example}.py"
    job = run([str(script), "--steps", "200", "--sleep", "0"], tmp_path)
    assert job.code == 0, job.log
    assert job.progress.get("current_step", job.progress.get("step")) == 200
