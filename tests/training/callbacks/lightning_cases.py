"""SignalboxCallback in a Lightning Trainer that trains a linear module of 3 epochs of 6 batches."""

import importlib
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import signalbox
import torch
from torch.utils.data import DataLoader

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of Lightning's own imports
    import lightning.pytorch as lightning
    import signalbox_lightning
    from signalbox_lightning import SignalboxCallback

from tests.training.callbacks.job import CANCEL, PAUSE, Job, job, leave

__all__ = ["job"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec"),
]

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
DATA = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))


def module_of(library: Any) -> Any:
    class Module(library.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.linear = torch.nn.Linear(4, 1)
            self.dropout = torch.nn.Dropout(0.5)
            self.losses: list[float] = []

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            loss = self.linear(self.dropout(batch)).square().mean()
            self.losses.append(loss.item())
            self.log("train/noise", random.random())
            self.log("loss", loss, on_step=True, on_epoch=True)
            self.log("spread", batch.std(), on_step=False, on_epoch=True)
            return loss

        def validation_step(self, batch: torch.Tensor, batch_idx: int) -> None:
            self.log("val/loss", self.linear(batch).square().mean())
            self.log("perplexity", 1.0)  # a name that Signalbox works out itself

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.Adam(self.parameters(), 0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]

    return Module()


class Stateful:
    """A loader that shuffles and knows its place."""

    batch_size = 4

    def __init__(self) -> None:
        self.place, self.order = 0, torch.arange(24)

    def __len__(self) -> int:
        return 6

    def __iter__(self) -> Iterator[torch.Tensor]:
        if self.place == 0:
            self.order = torch.randperm(24)
        for number in range(self.place, 6):
            self.place = (number + 1) % 6
            yield DATA[self.order[4 * number : 4 * number + 4]]

    def state_dict(self) -> dict[str, Any]:
        return {"place": self.place, "order": self.order}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.place, self.order = state["place"], state["order"]


def shuffled() -> Any:
    return DataLoader(DATA, 4, shuffle=True)


def train(
    job: Job, ask_at: int | None = None, wanted: Any = PAUSE, loader: Any = Stateful,
    callback: SignalboxCallback | None = None, library: Any = lightning, **options: Any,
) -> tuple[SignalboxCallback, Any]:  # fmt: skip
    """Train as a job would; options are the Trainer's. `wanted` may be a signal."""

    class Ask(library.Callback):  # type: ignore[misc]
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step + 1 == ask_at:
                os.kill(os.getpid(), wanted) if isinstance(wanted, int) else job.ask(wanted)

    callback = callback or SignalboxCallback()
    random.seed(1)
    torch.manual_seed(1)
    given: dict[str, Any] = {
        "max_epochs": 3, "accelerator": "cpu", "log_every_n_steps": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False,
    }  # fmt: skip
    trainer = library.Trainer(callbacks=[callback, Ask()], **{**given, **options})
    trainer.fit(module_of(library), loader(), DataLoader(DATA[:4], 4), ckpt_path=callback.ckpt_path)
    return callback, trainer


def weights(trainer: Any) -> list[Any]:
    return [parameter.tolist() for parameter in trainer.model.parameters()]


def test_what_a_module_logs_arrives_once(job: Job) -> None:
    callback, _ = train(job)
    assert not callback.stopped
    curve = job.curve
    assert list(curve) == list(range(1, 19))
    for step, point in curve.items():
        of_the_epoch = {"loss_epoch", "spread", "eval_loss"} if step % 6 == 0 else set()
        assert point.keys() - {"epoch"} == (
            {"train_loss", "train_noise", "learning_rate"} | of_the_epoch
        ), step
    assert curve[6]["loss_epoch"] == pytest.approx(
        sum(curve[step]["train_loss"] for step in range(1, 7)) / 6
    )
    assert curve[9]["epoch"] == 1.5
    assert (curve[6]["learning_rate"], curve[7]["learning_rate"]) == (0.05, 0.05)
    found = job.progress
    assert (found["total_steps"], found["total_epochs"], found["can_pause"]) == (18, 3, True)


@pytest.mark.parametrize("step", [1, 5, 6, 7, 18])
def test_with_a_loader_that_knows_its_place_a_resumed_run_is_bit_identical(
    job: Job, tmp_path: Path, step: int
) -> None:
    """But for the means over the epoch that it was resumed in: Lightning counts its rest only."""
    uninterrupted = Job(tmp_path / "uninterrupted")
    uninterrupted.launch()
    _, trainer = train(uninterrupted, val_check_interval=3)
    expected, expected_weights = uninterrupted.curve, weights(trainer)

    job.launch()
    callback, trainer = train(job, ask_at=step, val_check_interval=3)
    assert callback.stopped
    assert trainer.limit_val_batches == 1.0, "as it was given"
    assert list(job.curve) == list(range(1, step + 1))
    assert ("eval_loss" in job.curve[step]) == (step % 3 == 0)
    assert job.newest.name == f"step-{step:08d}"
    job.launch(resume_from=job.newest)
    callback, trainer = train(job, val_check_interval=3)
    assert not callback.stopped
    found = job.curve
    if step % 6:
        end = step // 6 * 6 + 6
        for mean in ("loss_epoch", "spread"):
            assert found[end].pop(mean) != expected[end].pop(mean)
    assert (found, weights(trainer)) == (expected, expected_weights)


def test_with_any_loader_a_run_resumed_between_epochs_is_bit_identical(
    job: Job, tmp_path: Path
) -> None:
    uninterrupted = Job(tmp_path / "uninterrupted")
    uninterrupted.launch()
    _, trainer = train(uninterrupted, loader=shuffled)
    expected = uninterrupted.curve, weights(trainer)
    job.launch()
    train(job, ask_at=6, loader=shuffled)
    job.launch(resume_from=job.newest)
    _, trainer = train(job, loader=shuffled)
    assert (job.curve, weights(trainer)) == expected


def test_with_any_loader_a_resumed_run_makes_each_step_once(job: Job) -> None:
    train(job, ask_at=8, loader=shuffled)
    before = job.curve
    job.launch(resume_from=job.newest)
    with pytest.warns(UserWarning, match="your dataloader is not resumable"):
        train(job, loader=shuffled)
    assert list(job.curve) == list(range(1, 19))
    assert {step: job.curve[step] for step in before} == before


def test_a_step_of_several_batches_is_one(job: Job) -> None:
    options = {"accumulate_grad_batches": 2, "log_every_n_steps": 2}
    callback, _ = train(job, ask_at=5, **options)
    assert callback.stopped
    assert list(job.curve) == [2, 3, 4, 5]
    assert job.newest.name == "step-00000005"
    job.launch(resume_from=job.newest)
    train(job, **options)
    assert list(job.curve) == [2, 3, 4, 5, 6, 8, 9], "every second, and where an epoch ends"


def test_the_loss_needs_no_call_to_log(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lightning.LightningModule, "log", lambda *_, **__: None)
    _, trainer = train(job, max_epochs=1, accumulate_grad_batches=2)
    told = [point["train_loss"] for point in job.curve.values()]
    assert told == trainer.model.losses[1::2], "and it is not divided by the batches"


@pytest.mark.parametrize("wanted", [CANCEL, signal.SIGTERM])
def test_a_cancel_saves_and_ends_without_an_exception(job: Job, wanted: Any) -> None:
    """Lightning itself raises at the next batch after SIGTERM."""
    callback, trainer = train(job, ask_at=4, wanted=wanted)
    assert (callback.stopped, trainer.global_step) == (True, 4)
    assert job.newest.name == "step-00000004"


def test_a_least_number_of_epochs_holds_no_pause_back(job: Job) -> None:
    callback, trainer = train(job, ask_at=2, min_epochs=3)
    assert (callback.stopped, trainer.global_step) == (True, 2)


def test_the_newest_checkpoints_are_kept(job: Job) -> None:
    (job.checkpoints / "mine").mkdir(parents=True)
    train(job, callback=SignalboxCallback(every_n_steps=4, keep=2))
    assert sorted(path.name for path in job.checkpoints.iterdir()) == [
        "mine", "step-00000012", "step-00000016",
    ]  # fmt: skip


def test_a_pause_that_cannot_be_saved_is_declined_and_a_cancel_ends_all_the_same(
    job: Job, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lightning.Trainer, "save_checkpoint", fail)
    callback, _ = train(job, ask_at=2)
    reason = "The checkpoint could not be saved: [Errno 28] No space left on device"
    assert (callback.stopped, list(job.curve)) == (False, list(range(1, 19)))
    assert (job.progress["stop_declined"], job.progress["status"]) == (reason, "running")
    assert reason in capsys.readouterr().err
    job.launch()
    callback, trainer = train(job, ask_at=2, wanted=CANCEL)
    assert (callback.stopped, trainer.global_step) == (True, 2)


def test_a_pause_whose_checkpoint_does_not_count_is_declined(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signalbox.Run, "saved", lambda *_: False)
    callback, trainer = train(job, ask_at=3, val_check_interval=3)
    assert (callback.stopped, trainer.global_step) == (False, 18)
    assert job.progress["stop_declined"].startswith("The checkpoint could not be sealed")


def test_phases_are_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(signalbox.Run, "phase", lambda self, name: told.append(name))
    train(job, max_epochs=1, callback=SignalboxCallback(every_n_steps=4))
    assert [name for n, name in enumerate(told) if told[n - 1 : n] != [name]] == [
        "evaluating", "training", "saving", "training", "evaluating", "training",
    ]  # fmt: skip


@pytest.mark.parametrize("wrong", [{"every_n_steps": 0}, {"keep": 0}])
def test_a_number_that_makes_no_sense_is_refused(job: Job, wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="1 or more"):
        SignalboxCallback(**wrong)


def test_outside_a_job_it_does_nothing(job: Job) -> None:
    leave()
    callback, trainer = train(job, max_steps=1, callback=SignalboxCallback(every_n_steps=1))
    assert (callback.stopped, callback.ckpt_path, trainer.global_step) == (False, None, 1)
    assert not (job.folder / "progress.json").exists()


def test_the_library_may_have_its_older_name(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pytorch_lightning
    for name in [name for name in sys.modules if name.split(".")[0] == "lightning"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lightning", None)
    monkeypatch.delitem(sys.modules, signalbox_lightning.__name__)
    again = importlib.import_module(signalbox_lightning.__name__)
    assert issubclass(again.SignalboxCallback, pytorch_lightning.Callback)
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    callback, _ = train(
        job, ask_at=2, callback=again.SignalboxCallback(), library=pytorch_lightning
    )
    assert (callback.stopped, list(job.curve)) == (True, [1, 2])
    assert job.newest.name == "step-00000002"
