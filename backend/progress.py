"""Reads progress.json, which a stranger's program writes, and trusts nothing in it."""

import hashlib
import json
import math
import os
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from backend.curve import (
    LONG_NAMES,
    MAX_EXTRA,
    MAX_POINTS,
    Point,
    as_count,
    as_figure,
    as_text,
    is_non_finite,
    is_time,
    masked,
    merged,
    point_as_json,
    point_of,
    points_of,
    read_points,
    thin,
)
from backend.mask import NO_MASK, Mask
from backend.paths import open_inside, publish_inside

MAX_BYTES: Final = 8 * 2**20
"""A larger file is not read: a full history of 2,000 points takes less than 1 MiB."""

SAVE_AGAIN_SECONDS: Final = 2.0
"""So long after points could not be saved (the disk is full, say) it is tried again."""

MAX_PHASES: Final = 50
OTHER_PHASES: Final = "other"

_COUNTS: Final = ("current_step", "total_steps", "best_step")
_FIGURES: Final = (
    "current_epoch", "total_epochs", "progress_percent", "train_loss", "eval_loss", "perplexity",
    "learning_rate", "grad_norm", "best_eval_loss", "samples_per_second", "steps_per_second",
    "elapsed_seconds", "remaining_seconds", "gpu_memory_allocated_gb", "gpu_memory_reserved_gb",
)  # fmt: skip
_TEXTS: Final = (
    "status", "phase", "updated_at", "stop_declined", "stop_declined_asked_at", "checkpoint",
)  # fmt: skip
_LOSSES: Final = ("train_loss", "eval_loss")
_NON_FINITE: Final = ("non_finite_count", "first_non_finite_step")
_NOT_EXTRA: Final = frozenset(
    (
        *_COUNTS, *_FIGURES, *_TEXTS, *_NON_FINITE, *LONG_NAMES, "metrics_history", "timestamp",
        "phase_timeout_seconds",
    )
)  # fmt: skip

MAX_PHASE_TIMEOUT_SECONDS: Final = 366 * 86400.0


@dataclass(frozen=True)
class Reading:
    """What one good progress.json says. Every field may be missing."""

    status: str | None = None
    phase: str | None = None
    updated_at: str | None = None
    current_step: int | None = None
    total_steps: int | None = None
    best_step: int | None = None
    current_epoch: float | None = None
    total_epochs: float | None = None
    progress_percent: float | None = None
    train_loss: float | None = None
    eval_loss: float | None = None
    perplexity: float | None = None
    learning_rate: float | None = None
    grad_norm: float | None = None
    best_eval_loss: float | None = None
    samples_per_second: float | None = None
    steps_per_second: float | None = None
    elapsed_seconds: float | None = None
    remaining_seconds: float | None = None
    gpu_memory_allocated_gb: float | None = None
    gpu_memory_reserved_gb: float | None = None
    non_finite_count: int = 0
    first_non_finite_step: int | None = None
    can_pause: bool = False
    """It has said that it looks whether it is to stop."""
    wants_sigterm: bool = False
    """It is told of a pause by SIGTERM; others look into stop.json."""
    phase_timeout_seconds: float | None = None
    """So long may its phase be silent, instead of the job's own timeout."""
    stop_declined: str | None = None
    """Why it does not do what stop.json asked for at `stop_declined_asked_at`."""
    stop_declined_asked_at: str | None = None
    checkpoint: str | None = None
    """The newest that it has sealed."""
    extra: Mapping[str, float] = field(default_factory=dict)
    phase_seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    """How long each phase lasted, as the server measured it: nothing that the file says. The time
    before the first that it named is under ""."""
    raw_history: Sequence[Any] = ()
    lost: Sequence[str] = field(default=(), compare=False)
    """The losses that are no number in the file itself: NaN or infinite, not null."""

    @property
    def non_finite(self) -> str | None:
        """`loss stopped being a number at step 812`, where it did."""
        if not self.non_finite_count:
            return None
        step = self.first_non_finite_step
        return "loss stopped being a number" + ("" if step is None else f" at step {step}")

    @cached_property
    def history(self) -> Sequence[Point]:
        """The job's own history, read when somebody asks: a supervisor never needs it."""
        return tuple(points_of(self.raw_history)[-MAX_POINTS:])

    def summary(self) -> dict[str, Any]:
        """The reading without its history and without what is missing, ready for JSON."""
        kept = {
            name: value
            for name in self.__dataclass_fields__
            if name not in ("raw_history", "lost") and (value := getattr(self, name)) is not None
        }
        return {**kept, "extra": dict(self.extra), "phase_seconds": dict(self.phase_seconds)}

    @classmethod
    def from_summary(cls, summary: Mapping[str, Any]) -> "Reading":
        """The inverse of `summary`; names that this release does not know are left out."""
        return cls(**{k: v for k, v in summary.items() if k in cls.__dataclass_fields__})


class NoNewsError(ValueError):
    """A file is no progress.json; the message is a sentence for the job's page."""


def parse(content: bytes, mask: Mask = NO_MASK) -> Reading:
    """Read the bytes of a progress.json; what the mask hides is in none of the texts and names,
    but in `raw_history`.

    Raises:
        NoNewsError: it is not a JSON object, or not one that can be read.
    """
    if not content.strip():
        raise NoNewsError("progress.json is empty.")
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError
        raise NoNewsError(
            f"progress.json is not valid JSON: {as_text(str(error), mask)}."
        ) from None
    if not isinstance(document, dict):
        kind = {list: "a list", str: "a text", bool: "a truth value"}.get(
            type(document), "nothing" if document is None else "a number"
        )
        raise NoNewsError(f"progress.json holds {kind} where an object is expected.")
    for short, long in LONG_NAMES.items():
        if document.get(long) is None and short in document:
            document[long] = document[short]

    found: dict[str, Any] = {}
    for name in _COUNTS:
        found[name] = as_count(document.get(name))
    for name in _FIGURES:
        found[name] = as_figure(document.get(name))
    for name in _TEXTS:
        value = document.get(name)
        found[name] = as_text(value, mask) if isinstance(value, str) else None
    if isinstance(at := document.get("updated_at"), str) and is_time(at):
        found["updated_at"] = as_text(at)
    found["can_pause"] = document.get("can_pause") in (True, "sigterm")
    found["wants_sigterm"] = document.get("can_pause") == "sigterm"
    allowed = as_figure(document.get("phase_timeout_seconds"))
    if allowed is not None and 0 < allowed <= MAX_PHASE_TIMEOUT_SECONDS:
        found["phase_timeout_seconds"] = allowed
    extra = {
        as_text(name, mask): value
        for name, raw in document.items()
        if name not in _NOT_EXTRA and (value := as_figure(raw)) is not None
    }
    found["extra"] = dict(list(extra.items())[:MAX_EXTRA])

    history = document.get("metrics_history")
    found["raw_history"] = history if isinstance(history, list) else ()

    found["non_finite_count"] = as_count(document.get("non_finite_count")) or 0
    found["first_non_finite_step"] = as_count(document.get("first_non_finite_step"))
    found["lost"] = tuple(n for n in _LOSSES if is_non_finite(document.get(n)))
    if found["non_finite_count"] == 0 and found["lost"]:
        found["non_finite_count"] = 1
        found["first_non_finite_step"] = found["current_step"]
    return Reading(**found)


class PhaseClock:
    """Counts the seconds of each phase in which somebody was looking.

    As with the stall clock a tick counts at most `longest_tick` seconds. Of more than 50 names the
    further ones are counted together, as "other".
    """

    def __init__(self, spent: Mapping[str, float], longest_tick: float) -> None:
        """`spent` is what an earlier server had counted."""
        self._seconds = dict(spent)
        self._longest_tick = longest_tick
        self._last: float | None = None

    @property
    def seconds(self) -> Mapping[str, float]:
        """By phase."""
        return {name: round(seconds, 3) for name, seconds in self._seconds.copy().items()}

    def tick(self, now: float, phase: str | None) -> None:
        """Since the last look it was this phase, None being one without a name."""
        name = phase or ""
        if name not in self._seconds and len(self._seconds) >= MAX_PHASES:
            name = OTHER_PHASES
        elapsed = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        if elapsed:
            spent = self._seconds.get(name, 0.0)
            self._seconds[name] = spent + min(elapsed, self._longest_tick)


class ProgressReader:
    """Follows one job's progress.json.

    `look` never raises. The last good reading stays in `reading`; `problem` says what is wrong
    with the file as it is now, or is None.
    """

    def __init__(
        self,
        path: Path,
        seen: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
        *,
        mask: Mask = NO_MASK,
    ) -> None:
        """`seen` is where points are kept of a job that keeps no history itself; what the mask
        hides is neither told nor kept."""
        self._path = path
        self._folder = path.parent
        self._seen = seen
        self._clock = clock
        self._signature: tuple[int, ...] | None = None
        self._digest: bytes | None = None
        self._mask = mask
        kept = read_points(seen, 2 * MAX_POINTS) if seen else []
        self._points: list[Point] = list(masked(kept, mask))
        self._values = self._points[-1].values if self._points else {}
        # Its last line may be half a one, and the file of an earlier release has no bound.
        self._is_behind = bool(self._points)
        self._save_again_at = -math.inf
        self.reading: Reading | None = None
        self.problem: str | None = None

        lost = [point for point in self._points if _is_lost(point)]
        self._non_finite = (len(lost), lost[0].step if lost else None)

    @property
    def points(self) -> Sequence[Point]:
        """The curve so far: the job's own history, or the points that were seen here."""
        if self.reading and self.reading.history:
            return masked(self.reading.history, self._mask)
        return thin(tuple(self._points))

    def look(self, *, closely: bool = False) -> bool:
        """Read the file if it changed; say whether its content did (the job's sign of life).

        `closely` reads it even if size and times are as before.
        """
        changed = self._look(closely)
        if self._is_behind and (closely or self._clock() >= self._save_again_at):
            self._save_all()
        return changed

    def _look(self, closely: bool) -> bool:
        try:
            content = self._content(closely)
        except NoNewsError as error:
            self._signature = None
            self.problem = str(error)
            return False
        except OSError as error:
            self._signature = None
            self.problem = (
                None
                if isinstance(error, FileNotFoundError)
                else f"progress.json cannot be read: {error.strerror}."
            )
            return False
        if content is None:
            return False
        digest = hashlib.blake2b(content, digest_size=16).digest()
        if digest == self._digest:
            self.problem = None
            return False
        try:
            reading = parse(content, self._mask)
        except NoNewsError as error:
            self.problem = str(error)
            return False
        self._digest = digest
        self._keep(reading)
        self.problem = None
        return True

    def _content(self, closely: bool) -> bytes | None:
        """The bytes of the file, or None where it has not changed since the last look."""
        try:
            folder = os.lstat(self._folder)
        except FileNotFoundError:
            raise NoNewsError("The run folder is gone.") from None
        if stat.S_ISLNK(folder.st_mode):
            raise NoNewsError("The run folder is a link; progress.json is not read through it.")
        status = os.lstat(self._path)
        if not closely and _signature(status) == self._signature:
            return None
        if stat.S_ISLNK(status.st_mode):
            raise NoNewsError("progress.json is a link; it must be a file of its own.")
        descriptor = open_inside(self._path, os.O_RDONLY)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                kind = "a folder" if stat.S_ISDIR(status.st_mode) else "no ordinary file"
                raise NoNewsError(f"progress.json is {kind}; it must be a file.")
            if status.st_size > MAX_BYTES:
                raise NoNewsError(
                    f"progress.json is {status.st_size / 2**20:,.0f} MiB large; "
                    f"at most {MAX_BYTES // 2**20} MiB are read."
                )
            with os.fdopen(descriptor, "rb", closefd=False) as file:
                content = file.read(MAX_BYTES)
        finally:
            os.close(descriptor)
        self._signature = _signature(status)
        return content

    def _keep(self, reading: Reading) -> None:
        # A script that writes NaN itself forgets it with its next write; the page does not.
        count, first = self._non_finite
        if reading.lost and not self._has_counted(reading):
            count, first = count + 1, first if count else reading.current_step
        if reading.non_finite_count > count:  # the job counts for itself
            count, first = reading.non_finite_count, reading.first_non_finite_step
        self._non_finite = count, first
        reading = replace(reading, non_finite_count=count, first_non_finite_step=first)
        self.reading = reading
        keeps_its_own = any(map(point_of, reading.raw_history))  # stops at the first that is one
        if not keeps_its_own and reading.current_step is not None:
            self._add_seen(reading, reading.current_step)

    def _has_counted(self, reading: Reading) -> bool:
        """Whether this is still the loss that was no number at the look before, or to the server
        before."""
        if self.reading:
            before = self.reading.current_step, self.reading.lost
            return before == (reading.current_step, reading.lost)
        newest = self._points[-1] if self._points else None
        return newest is not None and newest.step == reading.current_step and _is_lost(newest)

    def _add_seen(self, reading: Reading, step: int) -> None:
        values: dict[str, float | None] = {
            name: value
            for name in ("train_loss", "eval_loss", "learning_rate", "grad_norm")
            if (value := getattr(reading, name)) is not None
        }
        values.update(dict.fromkeys(reading.lost))
        values.update(reading.extra)
        if not values or (self._points and self._points[-1].step == step
                          and values == self._values):  # fmt: skip
            return
        self._values = values
        point = Point(step, reading.current_epoch, reading.updated_at, values)
        if self._points and self._points[-1].step == step:
            self._points[-1] = merged(self._points[-1], point)
        else:
            self._points.append(point)
        if len(self._points) > 2 * MAX_POINTS:
            self._points = _thin_seen(self._points)
            self._is_behind = self._seen is not None  # so that the file too is bounded
        elif self._seen and not self._is_behind:
            self._save(self._seen, point)

    def _save(self, seen: Path, point: Point) -> None:
        try:
            with os.fdopen(open_inside(seen, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "wb") as file:
                file.write(point_as_json(point).encode() + b"\n")
        except OSError:
            self._is_behind = True  # the folder is gone or full; the points stay in memory
            self._save_again_at = self._clock() + SAVE_AGAIN_SECONDS

    def _save_all(self) -> None:
        assert self._seen is not None
        try:
            publish_inside(self._seen, "".join(point_as_json(p) + "\n" for p in self._points))
        except OSError:
            self._save_again_at = self._clock() + SAVE_AGAIN_SECONDS
        else:
            self._is_behind = False


def _thin_seen(points: Sequence[Point]) -> list[Point]:
    """As `thin`, but the first loss that was no number stays: a later server tells of it too."""
    kept = {id(point) for point in thin(points, MAX_POINTS - 1)}
    kept.update([id(point) for point in points if _is_lost(point)][:1])
    return [point for point in points if id(point) in kept]


def _is_lost(point: Point) -> bool:
    return any(point.values.get(name, 0.0) is None for name in _LOSSES)


def _signature(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
