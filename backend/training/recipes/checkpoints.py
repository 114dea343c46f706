"""Checkpoints of the built-in trainings: what is in one, when one is written, which are kept.

    training = Training(model, optimizer, data=...)
    checkpoints = Checkpoints(run, params, training)
    step = checkpoints.resume()
    while step < params.steps:
        if run.should_stop and checkpoints.stop():
            return
        step += 1
        ...
        checkpoints.after(step, eval_loss)
    checkpoints.finish()

A folder holds `model.pt`, the weights; `training.pt`, everything else that the next step depends
on; and `params.json`. A save that fails costs that checkpoint, and the training goes on.
"""

import contextlib
import copy
import hashlib
import json
import math
import os
import pickle
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from backend.recipes import TorchParams
from backend.training import signalbox
from backend.training.recipes.lifecycle import random_states, restore_random_states

WEIGHTS = "model.pt"
STATE = "training.pt"
PARAMS = "params.json"

RESERVE_BYTES = 64 * 2**20
"""So much of the disk stays free: the log, the curve and the verdict of the job need it more."""

BEST_SHARE = 0.01
"""While all writing has taken less than this of the time so far, a best is written at once."""

REASON_CHARACTERS = 160

_STEP = re.compile(r"step-([0-9]{8,18})")
_LEFTOVER = re.compile(r"\.step-[0-9]{8,18}\.[0-9]+\.(?:new|old)")


@dataclass(frozen=True)
class Training:
    """All that changes from step to step."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: str
    """The SHA-256 of what is learned, in hex."""
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    generators: Mapping[str, torch.Generator] = field(default_factory=dict)
    place: dict[str, Tensor] = field(default_factory=dict)
    """Where in the data it is, as far as the step does not say it."""

    def state(self) -> dict[str, Any]:
        """All but the weights: plain containers, and the live tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict() if self.schedule else None,
            "generators": {name: g.get_state() for name, g in self.generators.items()},
            "place": self.place,
            "random": random_states(),
            "data": self.data,
        }

    def restore(self, weights: dict[str, Any], state: dict[str, Any]) -> None:
        """Be again what `state` was taken of."""
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule:
            self.schedule.load_state_dict(state["schedule"])
        for name, generator in self.generators.items():
            generator.set_state(state["generators"][name])
        self.place.update(state["place"])
        restore_random_states(state["random"])


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint holds."""

    weights: dict[str, Any]
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def eval_loss(self) -> float | None:
        """Measured after this very step, or None."""
        loss: float | None = self.state["eval_loss"]
        return loss

    @property
    def bytes(self) -> int:
        return _bytes(self.weights) + _bytes(self.state)

    def copy(self) -> "Snapshot":
        """One that stays as it is while the training goes on; in the host's memory."""
        return Snapshot(_copy(self.weights), _copy(self.state))


class Checkpoints:
    """Writes, keeps and reads the checkpoints of one run, in `run.checkpoint_dir`."""

    def __init__(self, run: signalbox.Run, params: TorchParams, training: Training) -> None:
        self._run = run
        self._training = training
        self._params = params.model_dump(mode="json")
        self._save_every = params.save_every
        self._keep = params.keep_checkpoints
        self._step = 0
        self._eval_loss: float | None = None
        self._best_loss = math.inf
        self._pending: Snapshot | None = None
        """The best so far, where it could not be written at once."""
        self._sealed: set[int] = set()
        """The steps that this run has saved and can read again."""
        self._began = time.monotonic()
        self._writing_seconds = 0.0
        self._last_seconds = 0.0
        self._said: set[str] = set()

    def resume(self) -> int:
        """Go on from SIGNALBOX_RESUME_FROM, if there is one; returns the steps that are done.

        Ends the process with a sentence if that checkpoint cannot be read or is of another
        training.
        """
        folder = self._run.resume_from
        if folder is None:
            return 0
        try:
            _verify(folder)
            params = json.loads((folder / PARAMS).read_text(encoding="utf-8"))
            weights, state = (_load(folder / name) for name in (WEIGHTS, STATE))
            self._refuse_another(folder, params, state)
            self._training.restore(weights, state)
            self._step = int(state["step"])
            self._eval_loss, self._best_loss = state["eval_loss"], state["best_eval_loss"]
        except Exception as error:  # noqa: BLE001 - torch raises anything over a damaged file
            sys.exit(f"The checkpoint {folder} cannot be loaded: {_reason(error)}.")
        root = self._run.checkpoint_dir
        if root and folder.resolve().parent == root.resolve():
            self._sealed.add(self._step)
        print(f"Goes on after step {self._step}, from {folder}.", flush=True)
        return self._step

    def after(self, step: int, eval_loss: float | None = None) -> None:
        """A step is done, its evaluation included if it had one: save what is due.

        The best so far is saved too, at the latest with the next regular checkpoint.
        """
        self._step, self._eval_loss = step, eval_loss
        is_best = False
        if eval_loss is not None and eval_loss < self._best_loss:
            is_best, self._best_loss, self._pending = True, eval_loss, None
        if step % self._save_every == 0:
            self._save()
        elif is_best and self._writing_is_cheap():
            self._write(self._snapshot())
        elif is_best:
            # At first each evaluation finds a new best, and writing a large state takes longer
            # than many steps. A copy in memory costs little, and most are soon outdone.
            self._put_off()
        elif self._pending and self._writing_is_cheap():
            self._write_pending()
        else:
            return
        self._run.phase("training")

    def stop(self) -> bool:
        """Save because a stop was asked; returns whether to end now.

        A pause that cannot be saved is declined, and the training goes on. On a cancel it ends.
        """
        problem = self._save()
        if problem is None:
            print(f"Asked to stop: saved after step {self._step}.", flush=True)
            return True
        self._run.phase("training")
        if self._run.decline(problem):
            print("Asked to pause; it goes on, because nothing can be saved.", flush=True)
        cancelled = self._run.stop_kind == "cancel"
        if cancelled:
            print(f"Asked to stop after step {self._step}; nothing is saved.", flush=True)
        return cancelled

    def finish(self) -> None:
        """Save what was learned, after the last step.

        Ends the process with a sentence where that fails: a training whose result is lost has
        not ended well, and can be done again from its last checkpoint.
        """
        problem = self._save()
        if problem and self._run.checkpoint_dir:
            sys.exit(problem)

    # What a checkpoint is made of.

    def _snapshot(self) -> Snapshot:
        state = {
            "step": self._step,
            "eval_loss": self._eval_loss,
            "best_eval_loss": self._best_loss,
            **self._training.state(),
        }
        return Snapshot(self._training.model.state_dict(), state)

    def _refuse_another(self, folder: Path, params: dict[str, Any], state: dict[str, Any]) -> None:
        if params != self._params:
            names = sorted(params.keys() | self._params.keys())
            other = [n for n in names if params.get(n, ...) != self._params.get(n, ...)]
            sys.exit(
                f"The checkpoint {folder} was made with other parameters ({', '.join(other)}), and "
                f"a training goes on only with the same."
            )
        if state["data"] != self._training.data:
            sys.exit(
                f"The checkpoint {folder} has learned other data than what is there now, and a "
                f"training goes on only with the same."
            )
        if state["step"] != self._run.resume_step:
            raise ValueError(f"its name says another step than it holds ({state['step']})")

    # Writing.

    def _writing_is_cheap(self) -> bool:
        seconds = self._writing_seconds + self._last_seconds
        return seconds <= BEST_SHARE * (time.monotonic() - self._began)

    def _put_off(self) -> None:
        begin = time.monotonic()
        try:
            self._pending = self._snapshot().copy()
        except (RuntimeError, MemoryError) as error:  # torch says the former
            self._say(f"The best state has no room in memory: {_reason(error)}.")
        self._writing_seconds += time.monotonic() - begin

    def _save(self) -> str | None:
        """Write the newest, and the best if that was put off; returns why the newest could not."""
        problem = self._write(self._snapshot())
        if problem is None:
            self._write_pending()
        return problem

    def _write_pending(self) -> None:
        pending, self._pending = self._pending, None
        if pending:
            self._write(pending)

    def _write(self, snapshot: Snapshot) -> str | None:
        """Write and seal a checkpoint, unless there is one of that step; returns a sentence that
        says why it could not."""
        if snapshot.step in self._sealed:
            return None
        root = self._run.checkpoint_dir
        if root is None:
            return self._say("Nothing is saved: SIGNALBOX_CHECKPOINT_DIR names no folder for it.")
        self._run.phase("saving")
        begin = time.monotonic()
        try:
            self._remove_leftovers(root)
            problem = _no_room(root, snapshot.bytes) or self._publish(root, snapshot)
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            problem = f"A checkpoint could not be written: {_reason(error)}."
        if problem is None:
            self._sealed.add(snapshot.step)
            with contextlib.suppress(OSError):
                self._remove_superseded(root)
        seconds = time.monotonic() - begin
        self._writing_seconds += seconds
        if problem:
            return self._say(problem)
        self._last_seconds = seconds
        self._said.clear()
        measured = "" if snapshot.eval_loss is None else f", held-out loss {snapshot.eval_loss:.4f}"
        print(f"Saved {_name(snapshot.step)}{measured}, in {seconds:.3f} s.", flush=True)
        return None

    def _publish(self, root: Path, snapshot: Snapshot) -> str | None:
        folder = root / _name(snapshot.step)
        new = _beside(folder, "new")
        params = json.dumps(self._params, indent=2).encode()
        try:
            new.mkdir()
            _write_durably(new / WEIGHTS, lambda file: torch.save(snapshot.weights, file))
            _write_durably(new / STATE, lambda file: torch.save(snapshot.state, file))
            _write_durably(new / PARAMS, lambda file: file.write(params))
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        old = _beside(folder, "old")
        if folder.exists():  # of a life of this run that could not be gone on from
            folder.rename(old)
        new.rename(folder)
        if not self._run.saved(folder, snapshot.eval_loss):
            _remove(folder)
            return "A checkpoint could not be sealed; the log says why."
        _remove(old)
        return None

    def _say(self, problem: str) -> str:
        """Into the log, once until a checkpoint is saved, however the figures in it change."""
        what = problem.partition(":")[0]
        if what not in self._said:
            self._said.add(what)
            print(problem, flush=True)
        return problem

    # Which are kept.

    def _remove_leftovers(self, root: Path) -> None:
        """What a process that was killed while it saved has left of its checkpoint."""
        for folder in root.iterdir():
            unsealed = _STEP.fullmatch(folder.name) and not (folder / signalbox.COMPLETE).exists()
            if _LEFTOVER.fullmatch(folder.name) or (unsealed and self._is_ours(folder)):
                _remove(folder)

    def _remove_superseded(self, root: Path) -> None:
        """All but the newest and the best; and those of later steps, which are of a life of this
        run that could not be gone on from, and that the curve does not lead to any more."""
        losses = {
            int(found.group(1)): _sealed_loss(folder)
            for folder in root.iterdir()
            if (found := _STEP.fullmatch(folder.name))
            and (folder / signalbox.COMPLETE).exists()
            and self._is_ours(folder)
        }
        past = sorted(step for step in losses if step <= self._step)
        measured = [step for step in past if losses[step] < math.inf]
        best = sorted(measured, key=losses.__getitem__)[:1]  # of equal ones the earliest
        kept = {*past[-self._keep :], *best}
        for step in losses.keys() - kept:
            _remove(root / _name(step))

    def _is_ours(self, folder: Path) -> bool:
        """Whether a folder is of a training with these parameters, not of another one that
        somebody keeps in the same place."""
        try:
            found = json.loads((folder / PARAMS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(found == self._params) and not folder.is_symlink()


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _verify(folder: Path) -> None:
    """Raises OSError or ValueError where the files are not those that the marker was written for;
    torch.load would take a weight with a flipped bit for a weight."""
    marker = folder / signalbox.COMPLETE
    if not marker.exists():
        raise ValueError("it is not complete")
    for name, expected in json.loads(marker.read_bytes())["files"].items():
        with (folder / name).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise ValueError(f"{name} is not what was saved")


def _load(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return loaded


def _no_room(root: Path, needed_bytes: int) -> str | None:
    free_bytes = shutil.disk_usage(root).free
    if free_bytes >= needed_bytes + RESERVE_BYTES:
        return None
    return (
        f"There is no room for a checkpoint: it takes {_mib(needed_bytes)}, and of the "
        f"{_mib(free_bytes)} that are free {_mib(RESERVE_BYTES)} stay free."
    )


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f} MiB"


def _write_durably(path: Path, write: Callable[[BinaryIO], object]) -> None:
    with path.open("xb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())


def _beside(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{os.getpid()}.{kind}")


def _remove(folder: Path) -> None:
    """As far as it goes; under a hidden name first, because half a checkpoint is none."""
    hidden = folder
    if not folder.name.startswith("."):
        hidden = _beside(folder, "old")
        try:
            folder.rename(hidden)
        except OSError:
            return
    shutil.rmtree(hidden, ignore_errors=True)


def _sealed_loss(folder: Path) -> float:
    try:
        loss = json.loads((folder / signalbox.COMPLETE).read_bytes())["eval_loss"]
        return math.inf if loss is None else float(loss)
    except (OSError, ValueError, LookupError, TypeError):
        return math.inf


def _reason(error: BaseException) -> str:
    """Why, in a line without its full stop."""
    cause: BaseException | None = error
    while cause and not isinstance(cause, OSError):
        cause = cause.__context__  # torch calls a full disk a position that it did not expect
    if isinstance(cause, OSError) and cause.strerror:
        return (
            f"{cause.strerror} ({Path(cause.filename).name})" if cause.filename else cause.strerror
        )
    if isinstance(error, LookupError | TypeError | AttributeError | pickle.UnpicklingError):
        return "it holds something else"  # torch would advise to load it unsafely
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:REASON_CHARACTERS].rstrip(".")


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        copied = copy.copy(value)  # with what a state_dict carries beside its items
        copied.update((key, _copy(part)) for key, part in value.items())
        return copied
    if isinstance(value, list | tuple):
        return type(value)(map(_copy, value))
    return value


def _bytes(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(_bytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(_bytes, value))
    return 0
