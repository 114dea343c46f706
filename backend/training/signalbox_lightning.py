"""Reports the training of a Lightning `Trainer` to Signalbox, and lets it be paused.

    from signalbox_lightning import SignalboxCallback

    callback = SignalboxCallback(every_n_steps=500)
    trainer = lightning.pytorch.Trainer(max_epochs=10, callbacks=[callback])
    trainer.fit(model, loader, ckpt_path=callback.ckpt_path)
    if not callback.stopped:
        trainer.save_checkpoint("finished.ckpt")

Outside a job it does nothing. Works with `pytorch_lightning` as well.
"""

from __future__ import annotations

import random
import shutil
import sys
import threading
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
    from pytorch_lightning import Callback
else:
    try:
        from lightning.pytorch import Callback
    except ImportError:
        from pytorch_lightning import Callback

if TYPE_CHECKING:
    from backend.training import signalbox
else:
    import signalbox

CHECKPOINT_FILE = "trainer.ckpt"


class SignalboxCallback(Callback):  # type: ignore[misc]
    """Tells a run's figures, phases and checkpoints, and stops the training when that is asked.

    A pause or a cancel saves a checkpoint and ends the training at the next step, without the
    validation with which Lightning answers an early stop. SIGTERM is such an ask while this
    trains; what Lightning does of it, to raise at the next batch, would save nothing.

    Checkpoints hold the states of the random number generators as well, so that a run of one
    process goes on as if it had never stopped. In the middle of an epoch it does if its loader
    has `state_dict` and `load_state_dict`: with any other one Lightning begins the epoch's data
    anew for the steps that are left.
    """

    def __init__(self, every_n_steps: int | None = None, keep: int = 3) -> None:
        """
        Args:
            every_n_steps: save so often, besides when asked to stop.
            keep: the newest of these checkpoints, so many of them.
        """
        if (every_n_steps is not None and every_n_steps < 1) or keep < 1:
            raise ValueError("every_n_steps and keep are 1 or more.")
        self.stopped = False
        """Whether the training ended because a pause or a cancel was asked."""
        self._run = signalbox.start()
        self._every_n_steps = every_n_steps
        self._keep = keep
        self._step = 0
        self._is_epoch_over = False
        self._saves = self._stops = False
        self._limit_val_batches: Any = None
        self._seen: dict[str, Any] = {}
        self._of_epochs: set[str] = set()
        self._restored: dict[str, Any] = {}

    @property
    def ckpt_path(self) -> str | None:
        """For `trainer.fit(ckpt_path=…)`: what to go on from, or None."""
        folder = self._run.resume_from
        path = folder / CHECKPOINT_FILE if folder else None
        return str(path) if path and path.exists() else None

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        # The order of the next epoch's data is drawn after this, that of a begun one was before.
        if self._restored.get("is_epoch_over"):
            self._restore_random_states(trainer)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        steps, epochs = trainer.estimated_stepping_batches, trainer.max_epochs
        is_known = 0 < steps < inf and len(trainer.optimizers) == 1  # each counts its own steps
        batch_size = getattr(trainer.train_dataloader, "batch_size", None)
        self._run = signalbox.start(
            int(steps) if is_known else None,
            epochs if epochs and epochs > 0 else None,
            batch_size and batch_size * trainer.accumulate_grad_batches * trainer.world_size,
        )
        self.stopped = False
        self._step = trainer.global_step
        if self._may_stop and threading.current_thread() is threading.main_thread():
            self._run.take_sigterm()
        self._run.phase("training")

    def on_train_batch_start(
        self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._restored:
            self._restore_random_states(trainer)

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._run.phase("training")  # a sign of life; the figures of each step would cost more
        self._is_epoch_over = batch_idx + 1 == trainer.num_training_batches
        step = trainer.global_step
        if step == self._step:
            return  # gradients are being accumulated, and no checkpoint holds these
        self._step = step
        self._stops = self._may_stop and _in_any_rank(trainer, self._run.should_stop)
        self._saves = bool(self._every_n_steps and step % self._every_n_steps == 0)
        if self._stops or step % trainer.log_every_n_steps == 0:
            self._log_step(trainer, outputs, batch_idx)
        if not _is_validation_due(trainer, batch_idx):
            self._save_or_stop(trainer)
            if self.stopped:  # Lightning would validate after an early stop
                self._limit_val_batches, trainer.limit_val_batches = trainer.limit_val_batches, 0

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self._of_epochs |= trainer.callback_metrics.keys() - self._seen.keys()
        news = self._news(trainer)
        if self._is_epoch_over:  # it is left early as well
            self._log(trainer, {name: news[name] for name in self._of_epochs & news.keys()})

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        self._news(trainer)  # of the step before, which was told where it was due
        self._run.phase("evaluating")

    def on_validation_batch_end(self, *_: Any, **__: Any) -> None:
        self._run.phase("evaluating")

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        news = self._news(trainer)
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        self._log(trainer, news)
        self._save_or_stop(trainer)
        self._run.phase("training")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        if self._limit_val_batches is not None:
            trainer.limit_val_batches, self._limit_val_batches = self._limit_val_batches, None
        if not self.stopped:
            self._run.finish()

    def state_dict(self) -> dict[str, Any]:
        return {"is_epoch_over": self._is_epoch_over, "random_states": _random_states()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict

    @property
    def _may_stop(self) -> bool:
        return self._run.checkpoint_dir is not None

    def _save_or_stop(self, trainer: Any) -> None:
        saves, stops = self._saves or self._stops, self._stops
        self._saves = self._stops = False
        problem = self._save(trainer) if saves else None
        if problem:
            print(f"signalbox: {problem}", file=sys.stderr)
        if stops and not (problem and self._run.decline(problem)):
            self.stopped = trainer.should_stop = True
            # A pause is no early stop: Lightning's least number of epochs and steps does not count.
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None

    def _restore_random_states(self, trainer: Any) -> None:
        restored, self._restored = self._restored, {}
        if trainer.world_size == 1:  # those of the first rank are none of the others'
            _set_random_states(restored["random_states"])

    def _save(self, trainer: Any) -> str | None:
        """Save a checkpoint; return the sentence that says why there is none."""
        root = self._run.checkpoint_dir
        if root is None:
            return None
        self._run.phase("saving")
        folder = root / f"step-{trainer.global_step:08d}"
        try:
            trainer.save_checkpoint(folder / CHECKPOINT_FILE)  # all ranks, which wait for the first
        except (OSError, RuntimeError) as error:  # torch's writer raises the second on a full disk
            if trainer.world_size > 1:
                raise  # the other ranks wait for this one
            return f"The checkpoint could not be saved: {error}"
        is_sealed = not trainer.is_global_zero or self._run.saved(folder)
        if _in_any_rank(trainer, not is_sealed):
            return "The checkpoint could not be sealed; the log says why."
        if trainer.is_global_zero:
            sealed = [path for path in root.glob("step-*") if _is_ours(path)]
            for old in sorted(sealed)[: -self._keep]:
                shutil.rmtree(old, ignore_errors=True)
        self._run.phase("training")
        return None

    def _log_step(self, trainer: Any, outputs: Any, batch_idx: int) -> None:
        news = self._news(trainer)
        figures = {
            name[: -len("_step")] if name.endswith("_step") else name: value
            for name, value in news.items()
            if name not in self._of_epochs and f"{name}_step" not in news
        }
        if isinstance(outputs, dict) and "loss" in outputs:
            # Lightning has divided it.
            figures.setdefault("train_loss", outputs["loss"] * trainer.accumulate_grad_batches)
        if trainer.optimizers:
            figures["learning_rate"] = trainer.optimizers[0].param_groups[0]["lr"]
        self._log(trainer, figures, batch_idx)

    def _log(self, trainer: Any, figures: dict[str, Any], batch_idx: int | None = None) -> None:
        epoch = None
        if batch_idx is not None:
            epoch = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
        named = {name.replace("/", "_"): value for name, value in figures.items()}
        for name in signalbox.TAKEN & named.keys():
            del named[name]
        if named:
            self._run.log(trainer.global_step, epoch, **named)

    def _news(self, trainer: Any) -> dict[str, Any]:
        """What was logged since this was asked before: Lightning keeps what is old as well."""
        metrics = dict(trainer.callback_metrics)
        news = {name: value for name, value in metrics.items() if self._seen.get(name) is not value}
        self._seen = metrics
        return news


def _is_ours(folder: Path) -> bool:
    return (folder / CHECKPOINT_FILE).exists() and (folder / signalbox.COMPLETE).exists()


def _in_any_rank(trainer: Any, answer: bool) -> bool:
    """Whether one process says yes: all of them have to leave the loop at the same step."""
    if trainer.world_size == 1:
        return answer
    return bool(trainer.strategy.reduce_boolean_decision(answer, all=False))


def _is_validation_due(trainer: Any, batch_idx: int) -> bool:
    """Whether Lightning validates after this batch, whatever is asked; by its own rule, without
    that of a `val_check_interval` in hours."""
    every_n_epochs, every_n_batches = trainer.check_val_every_n_epoch, trainer.val_check_batch
    if not trainer.enable_validation or not every_n_batches:
        return False
    if every_n_epochs is None:
        return bool((trainer.fit_loop.total_batch_idx + 1) % every_n_batches == 0)
    is_epoch = (trainer.current_epoch + 1) % every_n_epochs == 0
    return bool(is_epoch and (batch_idx + 1) % every_n_batches == 0)


def _random_states() -> dict[str, Any]:
    """Of what `torch.load` reads with `weights_only`: tensors, numbers, texts and tuples."""
    states: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        states["cuda"] = torch.cuda.get_rng_state_all()
    if numpy := sys.modules.get("numpy"):
        kind, keys, *rest = numpy.random.get_state()
        states["numpy"] = (kind, keys.tolist(), *rest)
    return states


def _set_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    torch.set_rng_state(states["torch"])
    if len(states.get("cuda", ())) == torch.cuda.device_count() > 0:
        torch.cuda.set_rng_state_all(states["cuda"])
    if "numpy" in states and (numpy := sys.modules.get("numpy")):
        numpy.random.set_state(states["numpy"])
