"""Which checkpoint a run goes on from, and the curve that it goes on with.

A checkpoint is a folder in a run's checkpoints/ that has its marker, which is written last and says
what else is in there; see `saved` in training/signalbox.py. A script may also make an empty marker:
such a checkpoint is taken at its word.
"""

import hashlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, Final

from backend.curve import Point, parse_point, point_as_json, read_points
from backend.paths import RunPaths, open_below, open_inside, publish_inside, scan_below
from backend.progress import ProgressReader, Reading

COMPLETE: Final = "COMPLETE"
"""The file that makes a folder a checkpoint, written last into it."""

MAX_LOOKED_AT: Final = 10_000
MAX_MARKER_BYTES: Final = 16 * 2**20
MAX_REASONS: Final = 5
"""Of so many checkpoints that were passed over it is said why."""

CHUNK_BYTES: Final = 2**20
_LONGEST_LINE: Final = 2**20
GiveUp = Callable[[], bool]

_STEP: Final = re.compile(r"(?<![0-9])([0-9]{1,15})\Z")
_POINT: Final = re.compile(rb'\{"step": ?([0-9]{1,15})[,}]')


class GivenUpError(Exception):
    """Nobody waits for the answer any more."""


class NotGoodError(Exception):
    """A checkpoint cannot be gone on from; the message ends the sentence "It was not used: …"."""


@dataclass(frozen=True)
class Good:
    """A checkpoint that was looked through and found whole."""

    name: str
    step: int
    folder: Path


@dataclass(frozen=True)
class Choice:
    """The newest good checkpoint, and what was newer and not good."""

    good: Good | None
    passed_over: Sequence[str]
    """A sentence each."""


def config_of(recipe: str, params: Mapping[str, Any]) -> str:
    """What a checkpoint is made with, as a word that differs where that does."""
    told = json.dumps({"recipe": recipe, "params": dict(params)}, sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def is_plain(name: str) -> bool:
    """Whether a folder of this name can be a checkpoint: one that can be shown and asked for."""
    return name.isprintable() and name[:1] not in ("", ".") and not re.search(r"[/\\]|\.\.", name)


def step_of(name: str) -> int | None:
    """500, of `step-00000500` and `checkpoint-500`."""
    found = _STEP.search(name)
    return int(found[1]) if found else None


def choose(paths: RunPaths, config: str, give_up: GiveUp = lambda: False) -> Choice:
    """The newest checkpoint of a run that is whole and of this configuration.

    Each file that a marker names is read: a byte that was flipped is found. Takes about two seconds
    for a gigabyte.

    Args:
        give_up: asked at every megabyte.

    Raises:
        GivenUpError: it said so.
    """
    passed_over: list[str] = []
    for name, step in _newest_first(paths):
        try:
            _verify(paths, name, config, give_up)
        except NotGoodError as error:
            if len(passed_over) < MAX_REASONS:
                passed_over.append(f"{name} was not used: {error}.")
        else:
            return Choice(Good(name, step, paths.checkpoints / name), passed_over)
    return Choice(None, passed_over)


def carry_curve(source: RunPaths, target: RunPaths, step: int) -> None:
    """Give a run the curve of the run that it goes on from, up to a step; its own is cut there.

    Afterwards `target` has metrics.jsonl, seen.jsonl and progress.json as if its job had just
    reached that step.

    Raises:
        OSError: something cannot be written.
    """
    reader = ProgressReader(source.progress)
    reader.look()
    before = reader.reading or Reading()
    for old, new in ((source.metrics, target.metrics), (source.seen, target.seen)):
        _cut(old, new, step)
    points = [point for point in before.history if point.step <= step]
    if not points and not target.seen.exists():
        points = read_points(target.metrics)
    publish_inside(target.progress, _progress_at(step, points, before, source == target))


def set_aside_curve(paths: RunPaths) -> None:
    """Begin a new curve: a run that goes on from no checkpoint makes its steps anew. The old
    points stay in the run folder, beside the new ones.

    Raises:
        OSError: something cannot be written.
    """
    for path in (paths.metrics, paths.seen):
        number = 1
        while os.path.lexists(kept := path.with_name(f"{path.name}.{number}")):
            number += 1
        if path.exists():
            path.rename(kept)
    paths.progress.unlink(missing_ok=True)


def size_of(paths: RunPaths) -> tuple[int, int]:
    """How many bytes are in a run's checkpoints, half-written ones among them, and when the last
    of them was written, in nanoseconds: what changes while something is being saved."""
    total, newest = 0, 0
    for _, status in _below(paths.folder, paths.checkpoints.name):
        total += status.st_size
        newest = max(newest, status.st_mtime_ns)
    return total, newest


def _newest_first(paths: RunPaths) -> list[tuple[str, int]]:
    """The names and steps of what may be a checkpoint. One without a step in its name cannot be
    told from a newer one, and is left out."""
    found = []
    for entry, status in _entries(paths.folder, paths.checkpoints.name):
        step = step_of(entry)
        if stat.S_ISDIR(status.st_mode) and step is not None and is_plain(entry):
            found.append((step, status.st_mtime_ns, entry))
    return [(name, step) for step, _, name in sorted(found, reverse=True)]


def _verify(paths: RunPaths, name: str, config: str, give_up: GiveUp) -> None:
    """Raises NotGoodError, GivenUpError."""
    below = f"{paths.checkpoints.name}/{name}"
    try:
        with _opened(paths, f"{below}/{COMPLETE}") as file:
            content = file.read(MAX_MARKER_BYTES)
    except FileNotFoundError:
        raise NotGoodError("it was not saved to its end") from None
    except OSError as error:
        raise NotGoodError(f"its marker cannot be read ({error.strerror})") from None
    marker = _marker(content)
    if marker is None:
        return
    if marker.get("config") not in (None, config):
        raise NotGoodError("it was saved with other parameters")
    files = marker["files"]
    for file_name, facts in files.items():
        _verify_file(paths, below, file_name, facts["bytes"], None, give_up)
    for file_name, facts in files.items():
        _verify_file(paths, below, file_name, facts["bytes"], facts["sha256"], give_up)


def _marker(content: bytes) -> dict[str, Any] | None:
    """What a marker says; None of one that says nothing.

    Raises:
        NotGoodError: it is half of one.
    """
    if not content.lstrip().startswith(b"{"):
        return None
    try:
        marker = json.loads(content)
        known = all(
            type(facts["bytes"]) is int and type(facts["sha256"]) is str
            for facts in marker["files"].values()
        )
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        known = False
    if not known:
        raise NotGoodError("its marker is damaged")
    return dict(marker)


def _verify_file(
    paths: RunPaths, below: str, name: str, size: int, sha256: str | None, give_up: GiveUp
) -> None:
    """Raises NotGoodError: a file is not as long as it was, or holds something else. Without its
    hash only the length is looked at."""
    shown = repr(name[:100])
    try:
        with _opened(paths, f"{below}/{name}") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                raise NotGoodError(f"{shown} has {found:,} bytes and was saved with {size:,}")
            if sha256 is not None and _hash_of(file, give_up) != sha256:
                raise NotGoodError(f"{shown} is not what was saved: its bytes have changed")
    except OSError as error:
        raise NotGoodError(f"{shown} cannot be read ({error.strerror})") from None


def _hash_of(file: FileIO, give_up: GiveUp) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        if give_up():
            raise GivenUpError
        digest.update(chunk)
    return digest.hexdigest()


def _opened(paths: RunPaths, name: str) -> FileIO:
    """A regular file of the run folder. Raises OSError."""
    # By its descriptor: a marker may name what no path can be.
    file = FileIO(open_below(paths.folder, name, os.O_RDONLY), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(0, "it is no regular file")
    return file


def _entries(folder: Path, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """What is in a folder of the run folder; nothing where it cannot be looked at."""
    try:
        with closing(scan_below(folder, name)) as entries:
            for number, entry in enumerate(entries):
                if number >= MAX_LOOKED_AT:
                    return
                try:
                    status = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # gone meanwhile
                yield entry.name, status
    except OSError:
        return


def _below(folder: Path, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """The files in a folder of the run folder and in the folders below it, two levels deep."""
    waiting = [(name, 0)]
    while waiting:
        parent, depth = waiting.pop()
        for last, status in _entries(folder, parent):
            path = f"{parent}/{last}"
            if not stat.S_ISDIR(status.st_mode):
                yield path, status
            elif depth < 2:
                waiting.append((path, depth + 1))


def _cut(source: Path, target: Path, step: int) -> None:
    """Copy the points up to a step, or cut them there where both are one file."""
    beside = target.with_name(f"{target.name}.tmp")
    try:
        with open(source, "rb", opener=lambda _, flags: open_inside(source, flags)) as lines:
            if not stat.S_ISREG(os.fstat(lines.fileno()).st_mode):
                return
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with os.fdopen(open_inside(beside, flags), "wb") as kept:
                kept.writelines(_up_to(step, lines))
    except FileNotFoundError:
        return
    except OSError:
        beside.unlink(missing_ok=True)
        raise
    beside.replace(target)


def _up_to(step: int, lines: BinaryIO) -> Iterator[bytes]:
    """The lines that are points of this step or a lower one, each with its end."""
    while line := lines.readline(_LONGEST_LINE):
        match = _POINT.match(line)
        if match:
            found: int | None = int(match[1])
        else:
            point = parse_point(line)
            found = point.step if point else None
        line = line.rstrip()
        if found is not None and found <= step and line.endswith(b"}"):
            yield line + b"\n"


def _progress_at(step: int, points: Sequence[Point], before: Reading, is_own: bool) -> str:
    """What progress.json says of a job that has come as far as a step and not begun to go on."""
    known: dict[str, Any] = {
        "current_step": step,
        "total_steps": before.total_steps,
        "total_epochs": before.total_epochs,
        "elapsed_seconds": before.elapsed_seconds if is_own else None,
    }
    if before.first_non_finite_step is not None and before.first_non_finite_step <= step:
        known["non_finite_count"] = before.non_finite_count
        known["first_non_finite_step"] = before.first_non_finite_step
    fields = json.dumps({name: value for name, value in known.items() if value is not None})
    history = ", ".join(map(point_as_json, points))
    return f'{fields[:-1]}, "metrics_history": [{history}]}}'
