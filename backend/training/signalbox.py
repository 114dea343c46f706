"""Tells Signalbox how a training is getting on.

    import signalbox

    run = signalbox.start(total_steps=1000)
    for step in range(run.resume_step + 1, 1001):
        ...
        run.log(step, train_loss=loss, learning_rate=lr)
        stop = run.should_stop
        if run.checkpoint_dir and (stop or step % 100 == 0):
            save(run.checkpoint_dir / f"step-{step:08d}")
            run.saved(run.checkpoint_dir / f"step-{step:08d}")
        if stop:
            break
    else:
        run.finish()

Outside a job the same lines run and write nothing. Nothing that goes wrong in here, a full disk
or a deleted folder, stops the training. Standard library only, Python 3.8 or newer.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import hashlib
import json
import math
import os
import re
import signal
import stat
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Deque, Dict, List, NamedTuple, Optional, Set, Tuple, Union

PROGRESS_FILE = "progress.json"
METRICS_FILE = "metrics.jsonl"
STOP_FILE = "stop.json"
COMPLETE = "COMPLETE"
"""The marker, written last into a checkpoint's folder: what else is in there."""

PUBLISH_SECONDS = (0.25, 0.3)
"""Time between two publications, at least and at most."""

PUBLISH_SHARE = 0.002
"""The share of the time that publications should take; between those bounds they keep to it."""

STOP_LOOK_SECONDS = 0.25
MAX_STOP_BYTES = 64 * 1024
MAX_REASON_CHARACTERS = 300

SEALING_SIGN_SECONDS = 2.0
"""Time between two signs of life while the files of a checkpoint are read for its marker."""

CHUNK_BYTES = 1024 * 1024
MAX_POINTS = 2000
RATE_SAMPLES = 20

ALIASES = {"loss": "train_loss", "val_loss": "eval_loss", "lr": "learning_rate"}
_LOSSES = ("train_loss", "eval_loss")
_PROGRESS = "progress cannot be written"
TAKEN = frozenset(
    (
        "status", "phase", "step", "epoch", "timestamp", "current_step", "total_steps",
        "current_epoch", "total_epochs", "progress_percent", "perplexity", "best_eval_loss",
        "best_step", "samples_per_second", "steps_per_second", "elapsed_seconds",
        "remaining_seconds", "gpu_memory_allocated_gb", "gpu_memory_reserved_gb", "updated_at",
        "non_finite_count", "first_non_finite_step", "metrics_history", "phase_timeout_seconds",
        "can_pause", "stop_declined", "stop_declined_asked_at", "checkpoint",
    )
)  # fmt: skip
"""Names of progress.json that are worked out here."""


def start(
    total_steps: Optional[int] = None,
    total_epochs: Optional[float] = None,
    samples_per_step: Optional[int] = None,
) -> Run:
    """Begin to report; a second call goes on with the same run and renews what it is given.

    `total_steps` and `total_epochs` give progress and time left, `samples_per_step` (the batch
    size) the samples per second.
    """
    global _run
    if _run is None or _run.silenced:
        _run = Run(total_steps, total_epochs, samples_per_step)
    else:
        _run.restart(total_steps, total_epochs, samples_per_step)
    return _run


class Run:
    """What a training says about itself, and what it is asked. Made by `start`; thread-safe."""

    def __init__(
        self,
        total_steps: Optional[int] = None,
        total_epochs: Optional[float] = None,
        samples_per_step: Optional[int] = None,
    ) -> None:
        self._total_steps = total_steps
        self._total_epochs = total_epochs
        self._samples_per_step = samples_per_step
        self._progress = _path_from("SIGNALBOX_PROGRESS")
        self._folder = _path_from("SIGNALBOX_RUN_DIR")
        if self._folder is None and self._progress is not None:
            self._folder = self._progress.parent
        # All ranks start in one environment: the first speaks for all. Lightning sets no RANK.
        self._leads = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0")) == "0"
        self.silenced = self._progress is None or not self._leads

        self.resume_from = _path_from("SIGNALBOX_RESUME_FROM")
        """The checkpoint folder to go on from, or None."""
        self.resume_step = _step_of(self.resume_from) if self.resume_from else 0
        """The steps that are done already, by that folder's name (step-00000500, checkpoint-500)
        or else by its marker; or 0."""

        # Reentrant: a signal handler may log while its thread logs. Who takes both takes the lock
        # of the files first; while they are written the training goes on logging.
        self._files_lock = threading.RLock()
        self._lock = threading.RLock()
        self._status = "running"
        self._phase = "training"
        self._phase_timeout_seconds: Optional[float] = None
        self._checkpoint: Optional[str] = None
        self._step: Optional[int] = self.resume_step if self.resume_from else None
        self._epoch: Optional[float] = None
        self._latest: Dict[str, Optional[float]] = {}
        self._best: Tuple[Optional[float], Optional[int]] = (None, None)
        self._non_finite: Tuple[int, Optional[int]] = (0, None)
        self._names: Dict[str, str] = {}  # as logged → as published
        self._quoted: Dict[str, str] = {}

        self._history = History()
        self._newest: Optional[_Newest] = None
        self._lines: List[str] = []
        self._second = -1
        self._second_text = ""

        self._started = time.monotonic()
        self._rate: Deque[Tuple[float, int]] = deque(maxlen=RATE_SAMPLES)
        self._published = -math.inf
        self._interval = PUBLISH_SECONDS[0]
        self._news = threading.Event()
        self._publisher: Optional[threading.Thread] = None
        self._warned: Set[str] = set()

        self._can_pause = False
        self._stopping = False
        self._ask: Optional[_Ask] = None
        self._declined: Optional[_Ask] = None
        self._decline_reason: Optional[str] = None
        self._terminated = False
        self._next_look = -math.inf
        self._earlier_handler: Any = None
        self._handles_sigterm = False

        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)
        if not self.silenced:
            if self.resume_from:
                self._remember()
            atexit.register(self._publish_rest)
            self._publish()

    def restart(
        self,
        total_steps: Optional[int],
        total_epochs: Optional[float],
        samples_per_step: Optional[int],
    ) -> None:
        """Go on with this run after `finish`, or with other totals."""
        with self._lock:
            self._total_steps = total_steps or self._total_steps
            self._total_epochs = total_epochs or self._total_epochs
            self._samples_per_step = samples_per_step or self._samples_per_step
            self._status = "running"
            self._tell()

    def __enter__(self) -> Run:
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None and self._status == "running":
            self.finish()
        else:
            self._publish_rest()

    @property
    def checkpoint_dir(self) -> Optional[Path]:
        """Where checkpoints belong, as folders `step-00000500`; the folder is there.

        None outside a job, unless SIGNALBOX_CHECKPOINT_DIR was set by hand.
        """
        folder = _path_from("SIGNALBOX_CHECKPOINT_DIR")
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                self._warn("the folder of the checkpoints cannot be made", error)
        return folder

    def log(self, step: int, epoch: Optional[float] = None, **numbers: Any) -> None:
        """Report numbers at a step; this is also the sign of life.

        `train_loss`, `eval_loss`, `learning_rate` and `grad_norm` have places of their own, any
        other name gets a curve too; `loss`, `val_loss` and `lr` are short for the first three. A
        value is anything that `float` takes. A tensor on a GPU makes Python wait for the GPU, so
        log such a one every few steps. Calls at the same step add to the same point.

        Raises:
            TypeError: a value is no number, or a name is one that Signalbox works out itself.
        """
        if type(step) is not int:
            step = _whole_step(step)
        if epoch is not None and type(epoch) is not int:
            epoch = _number("epoch", epoch)
        values: Dict[str, Optional[float]] = {}
        lost = False
        for name, value in numbers.items():
            known = self._names.get(name) or self._admit(name)
            number = value if type(value) is float else _number(name, value)
            if math.isfinite(number):
                values[known] = number
            else:
                values[known] = None
                lost = lost or known in _LOSSES
        if self.silenced:
            return
        with self._lock:
            self._step = step
            if epoch is not None and math.isfinite(epoch):
                self._epoch = epoch
            self._latest.update(values)
            if lost:
                count, first = self._non_finite
                self._non_finite = (count + 1, step if first is None else first)
            held_out = values.get("eval_loss")
            if held_out is not None and (self._best[0] is None or held_out < self._best[0]):
                self._best = (held_out, step)
            self._keep(step, values)
            self._tell()

    def phase(self, name: str, timeout_minutes: Optional[float] = None) -> None:
        """Say what is going on ("evaluating", "saving"); also a sign of life.

        `timeout_minutes`: so long may this phase be without any other sign of life, instead of
        the job's own timeout.

        Raises:
            TypeError: the timeout is no number.
            ValueError: it is not above 0, or not finite.
        """
        seconds = None if timeout_minutes is None else _seconds(timeout_minutes)
        if not self.silenced:
            with self._lock:
                self._phase = str(name)
                self._phase_timeout_seconds = seconds
                self._tell()

    def saved(
        self, path: Union[str, "os.PathLike[str]"], eval_loss: Optional[float] = None
    ) -> bool:
        """Seal a checkpoint: from now on this run can be resumed from that folder.

        `path` is a folder directly inside `checkpoint_dir`, complete and under its final name,
        which ends with the number of its step. What was logged so far and every file in the
        folder is first brought to the disk; the marker COMPLETE, with the length and the SHA-256
        of each, comes last. `eval_loss`: the held-out loss of what was saved, if it was measured.

        Returns whether the checkpoint counts. A full disk or a link among the files is said on
        stderr and stops nothing. Outside a job, and in all ranks but the first, it does nothing.

        Raises:
            ValueError: the folder is not there, is somewhere else, hidden or empty.
            TypeError: the loss is no number.
        """
        loss = None if eval_loss is None else _number("eval_loss", eval_loss, "saved")
        root = self.checkpoint_dir
        if root is None or not self._leads:
            return False
        folder = _checkpoint_in(root, Path(path))
        try:
            files = self._seal(folder)
            if not files:
                raise ValueError("There is nothing in {}.".format(folder))
            with self._lock:
                named, reached, saved_at = _step_in(folder.name), self._step, self._timestamp()
            marker = {
                "format": 1,
                "step": named if named is not None else reached or 0,
                "files": files,
                "config": os.environ.get("SIGNALBOX_CONFIG"),
                "eval_loss": loss if loss is not None and math.isfinite(loss) else None,
                "saved_at": saved_at,
            }
            _publish_durably(folder / COMPLETE, json.dumps(marker, indent=1))
        except OSError as error:
            self._warn("{} does not count as a checkpoint".format(folder.name), error)
            return False
        if self._checkpoint is None or _step_of(folder) >= _step_of(root / self._checkpoint):
            self._checkpoint = folder.name  # the best so far may be sealed after a newer one
        if not self.silenced:
            self._publish()
        return True

    @property
    def should_stop(self) -> bool:
        """True once a pause or a cancel was asked; save what matters and end.

        A pause can be withdrawn, because it took too long, say: then this is False again, and
        whoever has not acted on it yet trains on. So act on the answer that you got: do not ask
        again to leave an outer loop.

        The first reading tells Signalbox that this script can be paused. In the main thread it
        takes over SIGTERM: a script that never looks here dies of that signal as any other
        program does.
        """
        now = time.monotonic()
        if now >= self._next_look:
            self._look(now)
        return self._stopping

    @property
    def stop_kind(self) -> Optional[str]:
        """What was asked: "pause", "cancel", or None while neither was. Reading it counts as
        reading `should_stop`."""
        stopping, ask = self.should_stop, self._ask
        if self._terminated:
            return "cancel"
        return ask.kind if stopping and ask else None

    def take_sigterm(self) -> None:
        """Let SIGTERM ask this run and nobody else, whatever a framework has made of it.

        Raises:
            ValueError: this is not the main thread.
        """
        signal.signal(signal.SIGTERM, self._on_sigterm)
        self._handles_sigterm = True
        self._earlier_handler = None

    def decline(self, reason: str) -> bool:
        """Say that a pause was asked and cannot be: no room to save, say. The training goes on,
        and `should_stop` is False until the next ask.

        `reason` is a sentence for the job's page, cut after 300 characters. Returns False, and
        does nothing, where no pause is asked: a cancel cannot be declined.
        """
        self._look(time.monotonic())
        with self._lock:
            ask = self._ask
            if self._terminated or ask is None or ask.kind != "pause":
                return False
            self._declined = ask
            self._decline_reason = str(reason)[:MAX_REASON_CHARACTERS]
            self._answer(False)
            self._tell()
        return True

    def finish(self) -> None:
        """Say that the training has reached its end. Optional; what was logged is kept anyway."""
        if not self.silenced:
            self._status = "finished"
            self._publish()

    # What is kept of a call to log.

    def _admit(self, name: str) -> str:
        known = ALIASES.get(name, name)
        if known in TAKEN:
            raise TypeError("log({}=…): this name is worked out by Signalbox itself.".format(name))
        self._quoted[known] = json.dumps(known)
        self._names[name] = known
        return known

    def _keep(self, step: int, values: Dict[str, Optional[float]]) -> None:
        text = self._text(step, values)
        self._lines.append(text)
        if self._newest and self._newest.step == step:
            values = {**self._newest.values, **values}
            text = self._text(step, values)
        elif self._newest:
            self._history.add(self._newest.point())
        self._newest = _Newest(step, values, text)

    def _text(self, step: int, values: Dict[str, Optional[float]]) -> str:
        # By hand: json.dumps takes far longer, and the repr of a finite float is valid JSON.
        parts = ['{"step": %d' % step]
        if self._epoch is not None:
            parts.append('"epoch": %r' % self._epoch)
        for name, value in values.items():
            parts.append(self._quoted[name] + ": " + ("null" if value is None else repr(value)))
        parts.append('"timestamp": "%s"}' % self._timestamp())
        return ", ".join(parts)

    def _timestamp(self) -> str:
        now = time.time()
        second = int(now)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return "%s.%03dZ" % (self._second_text, (now - second) * 1000)

    def _remember(self) -> None:
        """Take up the curve of this job's life before the pause, up to the step resumed from.

        The best held-out loss is exact in spite of the thinning: the history keeps extremes.
        """
        assert self._progress is not None
        assert self.resume_from is not None
        with contextlib.suppress(OSError):
            root = self.checkpoint_dir
            if root and self.resume_from.resolve().parent == root.resolve():
                self._checkpoint = self.resume_from.name
        # Where it is missing, or not from here, metrics.jsonl has all points in any case.
        with contextlib.suppress(Exception):
            with open(self._progress, "rb", opener=_careful) as file:
                before = json.loads(file.read())
            for point in before["metrics_history"]:
                step = point["step"]
                if step <= self.resume_step:
                    self._remember_point(step, point)
            elapsed = float(before.get("elapsed_seconds", 0))
            if 0 <= elapsed < math.inf:
                self._started -= elapsed
            count, first = before.get("non_finite_count"), before.get("first_non_finite_step")
            if type(count) is int and type(first) is int and first <= self.resume_step:
                self._non_finite = (count, first)

    def _remember_point(self, step: int, point: Dict[str, Any]) -> None:
        text = json.dumps(point, allow_nan=False)
        values = {
            name: None if value is None else float(value)
            for name, value in point.items()
            if name not in ("step", "epoch", "timestamp")
        }
        for name in values:
            self._admit(name)
        if self._newest:
            self._history.add(self._newest.point())
        self._newest = _Newest(step, values, text)
        self._latest.update(values)
        if point.get("epoch") is not None:
            self._epoch = float(point["epoch"])
        held_out = values.get("eval_loss")
        if held_out is not None and (self._best[0] is None or held_out < self._best[0]):
            self._best = (held_out, step)

    # Publication.

    def _tell(self) -> None:
        """There is news. A thread of its own writes it: a disk that is slow for a moment would
        cost the training more than all of its calls to `log`."""
        if self._news.is_set() or self.silenced:
            return
        self._news.set()
        if self._publisher is None:
            self._publisher = threading.Thread(target=self._publish_news, daemon=True)
            try:
                self._publisher.start()
            except RuntimeError:  # no more threads, or the interpreter is ending
                self._publish()

    def _publish_news(self) -> None:
        # Writes only what was logged: a beat of its own would hide a stuck training.
        while self._news.wait():
            time.sleep(max(0.0, self._published + self._interval - time.monotonic()))
            if self._news.is_set():
                self._publish()

    def _publish_rest(self) -> None:
        if self._news.is_set() and not self.silenced:
            self._publish()

    def _publish(self) -> bool:
        """Write all that there is now; False where a part of it could not be written."""
        assert self._progress is not None
        assert self._folder is not None
        with self._files_lock:
            begin = time.monotonic()
            with self._lock:
                lines, self._lines = self._lines, []
                document = self._document()
                self._news.clear()
            written = self._write(lines, document)
            self._published = time.monotonic()
            least, most = PUBLISH_SECONDS
            self._interval = min(most, max(least, (self._published - begin) / PUBLISH_SHARE))
        return written

    def _write(self, lines: List[str], document: str) -> bool:
        assert self._progress is not None
        assert self._folder is not None
        if os.path.islink(self._folder):  # it replaced the folder, and leads who knows where
            self._warn(_PROGRESS, OSError("the run folder is a link"))
            return False
        written = True
        try:
            if lines:
                with open(
                    self._folder / METRICS_FILE, "a", encoding="utf-8", opener=_careful
                ) as file:
                    file.write("\n".join(lines) + "\n")
        except OSError as error:
            self._warn(_PROGRESS, error)  # and go on: progress.json is the sign of life
            written = False
        name = "{}.{}.tmp".format(self._progress.name, os.getpid())
        temporary = self._progress.with_name(name)
        try:
            with open(temporary, "w", encoding="utf-8", opener=_careful) as file:
                file.write(document)
            os.replace(temporary, self._progress)
        except OSError as error:
            self._warn(_PROGRESS, error)
            written = False
            with contextlib.suppress(OSError):
                os.remove(temporary)  # half of it would take the last room on a full disk
        return written

    def _seal(self, folder: Path) -> Dict[str, Dict[str, Any]]:
        """Bring to the disk what a checkpoint stands for: the curve up to it, its files, and the
        folders that name them. Returns the length in bytes and the SHA-256 of each file.

        Raises:
            OSError: something could not be written, or is neither a file nor a folder.
        """
        if not self.silenced:
            assert self._folder is not None
            if not self._publish():
                raise OSError(errno.EIO, "what was logged so far cannot be written")
            with contextlib.suppress(FileNotFoundError):  # nothing was logged yet
                _sync(self._folder / METRICS_FILE)
        paths, folders = _below(folder)
        files = {}
        for path in paths:
            _sync(path)
            digest = hashlib.sha256()
            size = 0
            with open(path, "rb", opener=_careful) as file:
                for chunk in iter(lambda: file.read(CHUNK_BYTES), b""):
                    digest.update(chunk)
                    size += len(chunk)
                    silent = time.monotonic() - self._published
                    if silent > SEALING_SIGN_SECONDS and not self.silenced:
                        self._publish()
            name = path.relative_to(folder).as_posix()
            files[name] = {"bytes": size, "sha256": digest.hexdigest()}
        for below in (*folders, folder, folder.parent):
            _sync_folder(below)
        return files

    def _document(self) -> str:
        texts = self._history.texts()
        if self._newest:
            texts.append(self._newest.text)
        fields = json.dumps(self._fields(), allow_nan=False)
        return '{}, "metrics_history": [{}]}}'.format(fields[:-1], ", ".join(texts))

    def _fields(self) -> Dict[str, Any]:
        """progress.json without its history."""
        total_steps, total_epochs = self._total_steps, self._total_epochs
        now = time.monotonic()
        rate = self._steps_per_second(now)
        share = remaining = None
        if total_steps and self._step is not None:
            share = min(1.0, self._step / total_steps)
            if rate:
                remaining = max(0, total_steps - self._step) / rate
        elif total_epochs and self._epoch is not None:
            share = min(1.0, self._epoch / total_epochs)
        known = {
            "status": self._status,
            "phase": self._phase,
            "phase_timeout_seconds": self._phase_timeout_seconds,
            "can_pause": self._can_pause or None,
            "stop_declined": self._decline_reason,
            "stop_declined_asked_at": self._declined.asked_at if self._declined else None,
            "checkpoint": self._checkpoint,
            "current_step": self._step,
            "total_steps": total_steps,
            "current_epoch": self._epoch,
            "total_epochs": total_epochs,
            "progress_percent": _rounded(share, 100),
            **self._latest,
            "perplexity": _perplexity(self._latest),
            "best_eval_loss": self._best[0],
            "best_step": self._best[1],
            "samples_per_second": _rounded(rate, self._samples_per_step),
            "steps_per_second": _rounded(rate),
            "elapsed_seconds": _rounded(now - self._started),
            "remaining_seconds": _rounded(remaining),
            **_gpu_memory(),
            "updated_at": self._timestamp(),
        }
        fields = {k: v for k, v in known.items() if v is not None or k in self._latest}
        if self._non_finite[0]:
            fields["non_finite_count"], fields["first_non_finite_step"] = self._non_finite
        return fields

    def _steps_per_second(self, now: float) -> Optional[float]:
        """Over the last publications that brought a new step: a few seconds, or 20 slow steps."""
        rate = self._rate
        if self._step is not None and (not rate or rate[-1][1] != self._step):
            if rate and self._step < rate[-1][1]:
                rate.clear()
            rate.append((now, self._step))
        if len(rate) < 2:
            return None
        (since, first), (until, last) = rate[0], rate[-1]
        return (last - first) / (until - since) if until > since else None

    def _warn(self, what: str, error: OSError) -> None:
        if what not in self._warned:
            self._warned.add(what)
            print("signalbox: {}: {}".format(what, error), file=sys.stderr)

    # Asks, signals and forks.

    def _look(self, now: float) -> None:
        """See what is asked, and let Signalbox know what was answered."""
        self._next_look = now + STOP_LOOK_SECONDS
        if not self._handles_sigterm and threading.current_thread() is threading.main_thread():
            self._handles_sigterm = True
            self._earlier_handler = signal.signal(signal.SIGTERM, self._on_sigterm)
        ask = _read_ask(self._folder / STOP_FILE) if self._folder else None
        with self._lock:
            if self._ask is None or self._ask.kind != "cancel":  # which is never taken back
                self._ask = ask
            if self._ask is not None and self._ask != self._declined:
                self._declined = self._decline_reason = None
            self._answer(self._terminated or self._ask not in (None, self._declined))
            if not self._can_pause:
                self._can_pause = True
                self._tell()

    def _answer(self, stopping: bool) -> None:
        self._stopping = stopping
        before, after = ("running", "stopping") if stopping else ("stopping", "running")
        if self._status == before:
            self._status = after
            self._tell()

    def _on_sigterm(self, number: int, frame: Any) -> None:
        # A pause comes with this signal too, and is in the file. No lock is taken in here.
        if self._folder is None or _read_ask(self._folder / STOP_FILE) is None:
            self._terminated = True
        self._next_look = -math.inf
        if callable(self._earlier_handler):
            self._earlier_handler(number, frame)

    def _after_fork(self) -> None:
        """In a forked child: a data worker speaks for nobody, and dies of SIGTERM as before."""
        self.silenced = True
        self._leads = False
        self._lock = threading.RLock()  # another thread of the parent may have held them
        self._files_lock = threading.RLock()
        self._lines = []
        if self._handles_sigterm:
            signal.signal(signal.SIGTERM, self._earlier_handler or signal.SIG_DFL)


_run: Optional[Run] = None


class _Ask(NamedTuple):
    kind: str
    asked_at: Optional[str]


class Point(NamedTuple):
    """A point of the curve as the history keeps it: serialised once, weighed by its losses."""

    train_loss: Optional[float]
    eval_loss: Optional[float]
    text: str


class _Newest(NamedTuple):
    step: int
    values: Dict[str, Optional[float]]
    text: str

    def point(self) -> Point:
        return Point(self.values.get("train_loss"), self.values.get("eval_loss"), self.text)


class History:
    """A curve of any length in a bounded number of points.

    The curve is cut into blocks of equally many points. Of each block stay the lowest and the
    highest training loss and the lowest held-out loss, so a spike is never thinned away, and
    the best held-out loss of all is the lowest of its block. Whenever the points become too
    many, neighbouring blocks are merged, which keeps the resolution even over the whole curve.

    `most` is at least 11: three points of a block, seven that wait for the next, and one to spare.
    """

    def __init__(self, most: int = MAX_POINTS - 1) -> None:
        self._most = most
        self._blocks: List[List[Point]] = []
        self._kept = 0
        self._open: List[Point] = []
        self._open_points = 0
        self._block_points = 1

    def add(self, point: Point) -> None:
        """Append the next point; constant time on average."""
        self._open.append(point)
        self._open_points += 1
        if self._open_points == self._block_points:
            self._close_block()
        elif len(self._open) == 8:
            self._open = _extremes(self._open)

    def texts(self) -> List[str]:
        """The kept points in their order, serialised."""
        return [p.text for block in (*self._blocks, self._open) for p in block]

    def _close_block(self) -> None:
        block = _extremes(self._open)
        self._blocks.append(block)
        self._kept += len(block)
        self._open, self._open_points = [], 0
        if self._kept + 8 <= self._most:
            return
        # What is open grows to seven points until the next block is closed.
        while self._kept > min(self._most * 3 // 4, self._most - 8):
            blocks = self._blocks
            pairs = (blocks[i : i + 2] for i in range(0, len(blocks), 2))
            self._blocks = [_extremes([p for block in pair for p in block]) for pair in pairs]
            self._block_points *= 2
            self._kept = sum(map(len, self._blocks))


def _extremes(points: List[Point]) -> List[Point]:
    """Of a stretch of points those that its picture needs, in order: at most three."""
    if len(points) == 1:
        return points
    trained = [i for i, p in enumerate(points) if p.train_loss is not None]
    measured = [i for i, p in enumerate(points) if p.eval_loss is not None]
    kept = set()
    if trained:
        kept.add(min(trained, key=lambda i: points[i].train_loss or 0.0))
        kept.add(max(trained, key=lambda i: points[i].train_loss or 0.0))
    if measured:
        kept.add(min(measured, key=lambda i: points[i].eval_loss or 0.0))
    return [points[i] for i in sorted(kept)] or points[-1:]


def _number(name: str, value: Any, call: str = "log") -> float:
    if not isinstance(value, (str, bytes)):  # float would take "0.5"
        with contextlib.suppress(Exception):  # each array library raises its own
            # torch warns at the float of a loss that still carries its graph.
            return float(value.detach() if hasattr(value, "detach") else value)
    raise TypeError("{}({}=…) takes one number, not {}.".format(call, name, _shown(value)))


def _seconds(minutes: Any) -> float:
    seconds = 60 * _number("timeout_minutes", minutes, "phase")
    if isinstance(minutes, bool) or not 0 < seconds < math.inf:
        raise ValueError(
            "phase(timeout_minutes=…) takes a number above 0, not {}.".format(_shown(minutes))
        )
    return seconds


def _whole_step(value: Any) -> int:
    number = _number("step", value)
    if not number.is_integer():
        raise TypeError("log(step=…) takes a whole number, not {}.".format(_shown(value)))
    return int(value)


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else "a {} ({}…)".format(type(value).__name__, text[:60])


def _rounded(value: Optional[float], factor: Optional[float] = 1.0) -> Optional[float]:
    return None if value is None or factor is None else round(value * factor, 3)


def _perplexity(latest: Dict[str, Optional[float]]) -> Optional[float]:
    """e to the held-out loss, or to the training loss of a run that never evaluated."""
    loss = latest["eval_loss"] if "eval_loss" in latest else latest.get("train_loss")
    try:
        return None if loss is None else math.exp(loss)
    except OverflowError:
        return None


def _gpu_memory() -> Dict[str, float]:
    """What torch's allocator holds on all GPUs, in 10^9 bytes; never what starts CUDA."""
    torch = sys.modules.get("torch")
    try:
        if torch is None or not torch.cuda.is_initialized():
            return {}
        devices = range(torch.cuda.device_count())
        return {
            "gpu_memory_allocated_gb": sum(map(torch.cuda.memory_allocated, devices)) / 1e9,
            "gpu_memory_reserved_gb": sum(map(torch.cuda.memory_reserved, devices)) / 1e9,
        }
    except Exception:  # noqa: BLE001 - half-imported, or a broken driver: no news of it from here
        return {}


def _checkpoint_in(root: Path, folder: Path) -> Path:
    """Raises ValueError, with a sentence that says why that folder cannot be a checkpoint."""
    if folder.name.startswith(".") or folder.parent.resolve() != root.resolve():
        raise ValueError(
            "A checkpoint is a folder directly inside {}, whose name begins with no dot; {} "
            "is none.".format(root, folder)
        )
    if folder.is_symlink():
        raise ValueError("{} is a link; a checkpoint is a folder of its own.".format(folder))
    if not folder.is_dir():
        raise ValueError("There is no folder {}.".format(folder))
    return folder


def _step_in(name: str) -> Optional[int]:
    found = re.search(r"(?<![0-9])([0-9]{1,15})\Z", name)
    return int(found.group(1)) if found else None


def _step_of(checkpoint: Path) -> int:
    step = _step_in(checkpoint.name)
    if step is None:
        try:
            step = json.loads((checkpoint / COMPLETE).read_bytes())["step"]
        except (OSError, ValueError, LookupError, TypeError):
            step = None
    return step if type(step) is int and step >= 0 else 0


def _read_ask(path: Path) -> Optional[_Ask]:
    """What stop.json asks for; None where nothing is asked, or what is there is no such file."""
    try:
        with open(path, "rb", opener=_careful) as file:
            found = json.loads(file.read(MAX_STOP_BYTES))
    except (OSError, ValueError, TypeError, RecursionError):  # None is read of an idle FIFO
        return None
    if not isinstance(found, dict):
        return None
    is_pause = found.get("pause") is True and found.get("ending") is None
    asked_at = found.get("asked_at")
    return _Ask("pause" if is_pause else "cancel", asked_at if isinstance(asked_at, str) else None)


def _below(folder: Path) -> Tuple[List[Path], List[Path]]:
    """The files of a checkpoint, its marker left out, and its folders, the innermost first.

    Raises:
        OSError: something in there is neither, or cannot be looked at.
    """
    files: List[Path] = []
    folders: List[Path] = []
    waiting = [folder]
    while waiting:
        parent = waiting.pop()
        for path in sorted(parent.iterdir()):
            mode = path.lstat().st_mode
            if stat.S_ISDIR(mode):
                waiting.append(path)
                folders.insert(0, path)
            elif not stat.S_ISREG(mode):
                raise OSError(errno.ELOOP, "this is a link, or no file", str(path))
            elif parent != folder or path.name not in (COMPLETE, _beside(COMPLETE)):
                files.append(path)
    return files, folders


def _beside(name: str) -> str:
    return ".{}.tmp".format(name)


def _publish_durably(path: Path, text: str) -> None:
    """Write a file whole, or not at all. Raises OSError."""
    temporary = path.with_name(_beside(path.name))
    try:
        with open(temporary, "w", encoding="utf-8", opener=_careful) as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise
    _sync_folder(path.parent)


def _sync(path: Path) -> None:
    writing = os.name == "nt"  # only there does it need the right to write
    descriptor = _careful(str(path), os.O_RDWR if writing else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_folder(path: Path) -> None:
    if hasattr(os, "O_DIRECTORY"):  # Windows opens none
        try:
            _sync(path)
        except OSError as error:
            if error.errno != errno.EINVAL:  # not every file system can
                raise


def _careful(path: str, flags: int) -> int:
    """Opens a file, but not what a link leads to, and waits for no reader of a FIFO."""
    careful = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    return os.open(path, flags | careful, 0o666)


def _path_from(variable: str) -> Optional[Path]:
    value = os.environ.get(variable)
    return Path(value) if value else None
