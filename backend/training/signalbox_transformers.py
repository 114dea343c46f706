"""Reports the training of a Hugging Face `Trainer` to Signalbox, and lets it be paused.

    import signalbox
    from signalbox_transformers import SignalboxCallback

    run = signalbox.start()
    callback = SignalboxCallback()
    arguments = TrainingArguments(output_dir=run.checkpoint_dir or "out", save_steps=500)
    trainer = Trainer(model, arguments, train_dataset=dataset, callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.resume_from)
    if not callback.stopped:
        trainer.save_model("finished")

Outside a job it does nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch.distributed
from transformers import TrainerCallback

if TYPE_CHECKING:
    from backend.training import signalbox
else:
    import signalbox

_NO_CURVES = ("_runtime", "_per_second", "_time", "_flos")
_NOT_SEALED = "The checkpoint could not be sealed; the log says why."


class SignalboxCallback(TrainerCallback):  # type: ignore[misc]
    """Tells a run's figures, phases and checkpoints, and stops the training when that is asked.

    A pause or a cancel makes the trainer save its checkpoint, whatever its `save_strategy`, and
    end. For that `output_dir` has to be the run's `checkpoint_dir`; with another one the training
    is only reported.
    """

    def __init__(self) -> None:
        self.stopped = False
        """Whether the training ended because a pause or a cancel was asked."""
        self._run = signalbox.start()
        self._is_training = False
        self._may_stop = False
        self._evaluated: tuple[int, float] | None = None

    @property
    def resume_from(self) -> str | None:
        """For `trainer.train(resume_from_checkpoint=…)`: where to go on from, or None."""
        return str(self._run.resume_from) if self._run.resume_from else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        samples = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        self._run = signalbox.start(state.max_steps, state.num_train_epochs, samples)
        self.stopped = False
        self._is_training = True
        problem = self._why_it_cannot_stop(args)
        self._may_stop = self._run.checkpoint_dir is not None and problem is None
        if problem and state.is_world_process_zero:
            print(
                f"signalbox: this training cannot be paused or resumed, because {problem}.",
                file=sys.stderr,
            )
        self._tell_phase(control)

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        logs = logs or {}
        if "train_runtime" in logs and "train_loss" in logs:
            return  # the summary at the end: its train_loss is the mean of all steps
        figures = {
            name: value
            for name, value in logs.items()
            if isinstance(value, (int, float))
            and name not in signalbox.TAKEN
            and not name.endswith(_NO_CURVES)
        }
        self._run.log(state.global_step, logs.get("epoch"), **figures)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if (
            self._may_stop
            and state.global_step < state.max_steps
            and not _is_save_undecided(args, state, control)
            and _in_any_rank(self._run.should_stop, args.device)
        ):
            self.stopped = True
            control.should_log = control.should_training_stop = True
            control.should_save = control.should_save or not _is_epoch_over(state)
        self._tell_phase(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.stopped:
            # An epoch that was left is not over. One that is over is saved after its evaluation,
            # which draws random numbers and belongs to this side of the pause.
            control.should_save = _is_epoch_over(state)
            control.should_evaluate = control.should_evaluate and control.should_save
        self._tell_phase(control)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._run.phase("evaluating")

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, Any] | None = None, **_: Any
    ) -> None:
        if metrics and "eval_loss" in metrics:
            self._evaluated = (state.global_step, metrics["eval_loss"])
        self._tell_phase(control)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._may_stop:
            if _is_distributed():
                torch.distributed.barrier()  # each rank writes a file of its own
            is_sealed = not state.is_world_process_zero or self._seal(args, state)
            is_bad = _in_any_rank(not is_sealed, args.device)
            if is_bad and self.stopped and self._run.decline(_NOT_SEALED):
                self.stopped = control.should_training_stop = False
        if self._is_training:
            self._run.phase("training")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._is_training = False
        if not self.stopped:
            self._run.finish()

    def _seal(self, args: Any, state: Any) -> bool:
        step, eval_loss = self._evaluated or (None, None)
        return self._run.saved(
            Path(args.output_dir, f"checkpoint-{state.global_step}"),
            eval_loss if step == state.global_step else None,
        )

    def _why_it_cannot_stop(self, args: Any) -> str | None:
        root = self._run.checkpoint_dir
        if root is None:
            return None
        if Path(args.output_dir).resolve() != root.resolve():
            return (
                f"its output_dir is {args.output_dir}, and checkpoints are looked for in {root}: "
                "pass output_dir=signalbox.start().checkpoint_dir"
            )
        if getattr(args, "save_only_model", False):
            return "with save_only_model=True a checkpoint has no optimizer to go on with"
        return None

    def _tell_phase(self, control: Any) -> None:
        """Of what comes next; that evaluation has begun is only known from its first batch."""
        if self._is_training:
            self._run.phase("saving" if control.should_save else "training")


def _is_epoch_over(state: Any) -> bool:
    return float(state.epoch).is_integer()


def _is_save_undecided(args: Any, state: Any, control: Any) -> bool:
    """Whether the trainer saves only if the evaluation after this step is the best so far."""
    return args.save_strategy == "best" and (control.should_evaluate or _is_epoch_over(state))


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _in_any_rank(answer: bool, device: torch.device) -> bool:
    """Whether one process says yes: all of them have to leave the loop at the same step."""
    if not _is_distributed():
        return answer
    answers = torch.tensor([int(answer)], device=device)
    torch.distributed.all_reduce(answers, torch.distributed.ReduceOp.MAX)
    return bool(answers.item())
