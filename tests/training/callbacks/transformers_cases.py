"""SignalboxCallback in a Hugging Face Trainer that trains a tiny GPT-2 of 2 epochs of 6 steps."""

import signal
from pathlib import Path
from typing import Any

import pytest
import signalbox
import torch
import transformers
from signalbox_transformers import SignalboxCallback, _in_any_rank
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from tests.training.callbacks.job import CANCEL, PAUSE, Job, job, leave

__all__ = ["job"]

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

TEXTS = [torch.arange(n, n + 8) * (n + 1) % 32 for n in range(24)]
DATA = [{"input_ids": text, "labels": text} for text in TEXTS]


class AskAt(TrainerCallback):
    def __init__(self, job: Job, step: int, wanted: dict[str, Any]) -> None:
        self.job, self.step, self.wanted = job, step, wanted

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step + 1 == self.step:
            self.job.ask(self.wanted)


def train(
    job: Job, ask_at: int | None = None, wanted: dict[str, Any] = PAUSE, **options: Any
) -> tuple[SignalboxCallback, Trainer]:
    """Train as a job would; options are TrainingArguments'."""
    run = signalbox.start()
    callback = SignalboxCallback()
    transformers.set_seed(1)
    config = GPT2Config(
        vocab_size=32, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    given: dict[str, Any] = {
        "output_dir": run.checkpoint_dir or str(job.folder / "out"), "num_train_epochs": 2,
        "per_device_train_batch_size": 4, "logging_steps": 1, "eval_strategy": "epoch",
        "save_strategy": "no", "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }  # fmt: skip
    trainer = Trainer(
        GPT2LMHeadModel(config),
        TrainingArguments(**{**given, **options}),
        train_dataset=DATA,
        eval_dataset=DATA[:4],
        callbacks=[callback, *([AskAt(job, ask_at, wanted)] if ask_at else [])],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=callback.resume_from)
    return callback, trainer


def weights(trainer: Trainer) -> list[Any]:
    return [parameter.tolist() for parameter in trainer.model.parameters()]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[int, Any], list[Any]]:
    job = Job(tmp_path_factory.mktemp("uninterrupted"))
    job.launch()
    _, trainer = train(job)
    curve = job.curve
    leave()
    return curve, weights(trainer)


def test_what_the_trainer_logs_arrives(job: Job) -> None:
    callback, trainer = train(job, save_strategy="steps", save_steps=4)
    assert not callback.stopped
    logged = trainer.state.log_history
    assert [point["train_loss"] for point in job.curve.values()] == [
        entry["loss"] for entry in logged if "loss" in entry
    ]
    assert {
        step: point["eval_loss"] for step, point in job.curve.items() if "eval_loss" in point
    } == {entry["step"]: entry["eval_loss"] for entry in logged if "eval_loss" in entry}
    assert job.curve[12].keys() == {
        "epoch", "train_loss", "grad_norm", "learning_rate", "eval_loss",
    }  # fmt: skip
    found = job.progress
    assert (found["current_step"], found["total_steps"], found["total_epochs"]) == (12, 12, 2)
    assert (found["can_pause"], found["checkpoint"]) == (True, "checkpoint-12")


@pytest.mark.parametrize("step", [1, 4, 6, 8])
def test_a_paused_and_resumed_run_is_bit_identical(
    job: Job, uninterrupted: tuple[Any, Any], step: int
) -> None:
    """At step 6 the epoch ends, and its evaluation belongs to the run that is paused."""
    callback, _ = train(job, ask_at=step)
    assert callback.stopped
    assert list(job.curve) == list(range(1, step + 1))
    assert ("eval_loss" in job.curve[step]) == (step == 6)
    assert job.newest.name == f"checkpoint-{step}"
    job.launch(resume_from=job.newest)
    callback, trainer = train(job)
    assert not callback.stopped
    assert (job.curve, weights(trainer)) == uninterrupted


def test_a_retry_goes_on_in_a_folder_of_its_own(
    job: Job, uninterrupted: tuple[Any, Any], tmp_path: Path
) -> None:
    train(job, ask_at=3, wanted=CANCEL)
    retry = Job(tmp_path / "retry")
    retry.launch(resume_from=job.newest)
    _, trainer = train(retry, save_strategy="steps", save_steps=5, save_total_limit=1)
    assert weights(trainer) == uninterrupted[1]
    assert list(retry.curve) == list(range(4, 13))
    assert [path.name for path in retry.checkpoints.iterdir()] == [retry.newest.name]


def test_phases_are_told_before_they_begin(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(signalbox.Run, "phase", lambda self, name: told.append(name))
    train(
        job, max_steps=2, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=2
    )
    assert [name for n, name in enumerate(told) if told[n - 1 : n] != [name]] == [
        "training", "saving", "evaluating", "saving", "training",
    ]  # fmt: skip


def test_a_checkpoint_carries_the_loss_of_its_own_evaluation_only(job: Job) -> None:
    train(
        job, max_steps=4, eval_strategy="steps", eval_steps=2, save_strategy="steps", save_steps=1
    )
    told = {
        path.parent.name: signalbox.json.loads(path.read_text())["eval_loss"]
        for path in job.checkpoints.glob("*/COMPLETE")
    }
    assert told == {
        "checkpoint-1": None,
        "checkpoint-2": job.curve[2]["eval_loss"],
        "checkpoint-3": None,
        "checkpoint-4": job.curve[4]["eval_loss"],
    }


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (
            {"output_dir": "elsewhere"},
            "its output_dir is elsewhere, and checkpoints are looked for",
        ),
        ({"save_only_model": True}, "with save_only_model=True a checkpoint has no optimizer"),
    ],
)
def test_a_training_that_could_not_be_resumed_is_only_reported(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    options: dict[str, Any], sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)
    callback, _ = train(job, ask_at=1, max_steps=2, **options)
    said = capsys.readouterr().err
    assert said.startswith("signalbox: this training cannot be paused or resumed, because ")
    assert sentence in said
    assert (callback.stopped, list(job.curve)) == (False, [1, 2])
    assert "can_pause" not in job.progress
    assert signal.getsignal(signal.SIGTERM) is handler, "so that a cancel still ends it"


@pytest.mark.parametrize(("asked", "stopped"), [(2, 3), (6, 7)])
def test_a_trainer_that_saves_only_what_is_best_stops_where_it_surely_saves(
    job: Job, asked: int, stopped: int
) -> None:
    """At step 2 it evaluates and would keep the checkpoint only if it is the best."""
    strategy = "steps" if asked == 2 else "epoch"
    callback, trainer = train(
        job, ask_at=asked, eval_strategy=strategy, eval_steps=2, save_strategy="best",
        metric_for_best_model="loss",
    )  # fmt: skip
    assert callback.stopped
    assert (trainer.state.global_step, job.newest.name) == (stopped, f"checkpoint-{stopped}")


@pytest.mark.parametrize("step", [2, 6])
def test_a_pause_whose_checkpoint_does_not_count_is_declined(
    job: Job, uninterrupted: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(signalbox.Run, "saved", lambda *_: False)
    callback, trainer = train(job, ask_at=step)
    assert not callback.stopped
    assert job.progress["stop_declined"].startswith("The checkpoint could not be sealed")
    assert (job.curve, weights(trainer)) == uninterrupted, "it went on"


def test_an_ask_at_the_last_step_changes_nothing(job: Job) -> None:
    callback, _ = train(job, ask_at=2, max_steps=2)
    assert not callback.stopped


def test_what_is_no_figure_is_left_out(job: Job) -> None:
    callback = SignalboxCallback()
    state = transformers.TrainerState(global_step=5)
    logs = {"loss": 1.0, "perplexity": 2.7, "best_step": 1, "note": "x", "epoch": 0.5}
    callback.on_log(None, state, None, logs=logs)
    assert job.curve == {5: {"epoch": 0.5, "train_loss": 1.0}}


def test_one_rank_is_enough_to_stop_all(tmp_path: Path) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        assert _in_any_rank(True, torch.device("cpu")) is True
        assert _in_any_rank(False, torch.device("cpu")) is False
    finally:
        torch.distributed.destroy_process_group()


def test_outside_a_job_it_does_nothing(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    leave()
    handler = signal.getsignal(signal.SIGTERM)
    callback, _ = train(job, max_steps=1)
    assert (callback.stopped, callback.resume_from) == (False, None)
    assert signal.getsignal(signal.SIGTERM) is handler
    assert "signalbox" not in capsys.readouterr().err
    assert not (job.folder / "progress.json").exists()
