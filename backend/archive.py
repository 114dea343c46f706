"""What is sent out of a run folder: its checkpoints, and zips of its files, written while they are
sent.

The job may be writing in there meanwhile, and may have left anything: no link is followed, and
only regular files count.
"""

import contextlib
import io
import os
import re
import stat
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from urllib.parse import quote

from backend.checkpoints import COMPLETE, is_plain, step_of
from backend.mask import Mask
from backend.paths import RunPaths, open_below, scan_below

MAX_CHECKPOINTS: Final = 1000
MAX_FILES: Final = 100_000
"""So many entries of folders are looked at; what a job left beyond them is not seen."""
MAX_DEPTH: Final = 32
"""Folders inside each other; a zip has room for the name of any file in there."""
CHUNK_BYTES: Final = 256 * 2**10
ZIP64_BYTES: Final = 2**30
"""A larger file gets the long form of its sizes, which old programs cannot read; without it, it
would have to stay below 2 GiB after compression, which can also make it larger."""

_LOGS: Final = (
    "log.txt",
    "progress.json",
    "metrics.jsonl",
    "seen.jsonl",
    "usage.jsonl",
    "spec.json",
    "exit.json",
    "stacks.txt",
)
_OWN: Final = re.compile(
    rf"(?:{'|'.join(map(re.escape, (*_LOGS, 'stop.json')))})(?:\.tmp)?"
    r"|(?:metrics|seen)\.index(?:-journal)?"
    r"|(?:progress|exit)\.json\.[0-9]+(?:\.tmp)?|exit\.json\.room"
)
"""Signalbox's own files, and what they are called while they are being written."""

_EARLIEST: Final = datetime(1980, 1, 2, tzinfo=UTC).timestamp()
_LATEST: Final = datetime(2107, 12, 30, tzinfo=UTC).timestamp()
"""The years that a zip can say, less a day for the time zone. Source: APPNOTE.TXT, 4.4.6."""


class NotSavedError(LookupError):
    """There is nothing of that kind in the run folder; the message is a sentence that says so."""


@dataclass(frozen=True)
class Checkpoint:
    """A folder in checkpoints/. `bytes` is what its files hold, as far as MAX_FILES goes."""

    name: str
    step: int | None
    bytes: int
    complete: bool
    created_at: datetime


def checkpoints(paths: RunPaths) -> list[Checkpoint]:
    """The checkpoints of a run, oldest step first, those without a step last; complete or not.

    Of more than MAX_CHECKPOINTS the last ones.
    """
    folder = paths.checkpoints.name
    names = [
        name
        for name, status in _entries(paths.folder, folder)
        if stat.S_ISDIR(status.st_mode) and is_plain(name)
    ]
    names.sort(key=lambda name: ((step := step_of(name)) is None, step or 0, name))
    sizes: Counter[str] = Counter()
    for path, status in _walk(paths.folder, folder):
        sizes[path.split("/")[1]] += status.st_size
    listed = []
    for name in names[-MAX_CHECKPOINTS:]:
        marker = _marker(paths, name)
        with contextlib.suppress(OSError):  # gone meanwhile
            status = marker or (paths.checkpoints / name).lstat()
            created_at = datetime.fromtimestamp(_moment(status), UTC)
            complete = marker is not None
            listed.append(Checkpoint(name, step_of(name), sizes[name], complete, created_at))
    return listed


def model_names(paths: RunPaths, checkpoint: str | None) -> list[str]:
    """The relative names of what a model's download holds.

    With a checkpoint's name its files. Without, those of every complete checkpoint, and whatever
    else the job left in its run folder.

    Raises:
        NotSavedError: there is no complete checkpoint of this name.
    """
    folder = paths.checkpoints.name
    if checkpoint is not None:
        if not is_plain(checkpoint) or _marker(paths, checkpoint) is None:
            raise NotSavedError(
                f"Job {paths.folder.name} has no complete checkpoint named {checkpoint[:100]!r}."
            )
        return sorted(name for name, _ in _walk(paths.folder, f"{folder}/{checkpoint}"))

    def wanted(name: str, is_folder: bool) -> bool:
        parent, _, last = name.rpartition("/")
        if parent == folder and is_folder:
            return is_plain(last) and _marker(paths, last) is not None
        return bool(parent) or not _OWN.fullmatch(last)

    return sorted(name for name, _ in _walk(paths.folder, "", wanted))


def log_names(paths: RunPaths) -> list[str]:
    """The names of what a log's download holds: Signalbox's own files, as far as they are there."""
    return [name for name in _LOGS if _status(paths.folder, name)]


def stream(
    paths: RunPaths, names: Iterable[str], prefix: str, mask: Mask | None, *, compress: bool
) -> Generator[bytes, None, None]:
    """A zip of files of the run folder, by their relative names, in pieces of some 256 KiB.

    The entries are called `prefix`, which is the name of one folder, "/" and the file's name; what
    could act when they are unpacked, on any system, is written %5C there. A file is opened when
    its turn comes, and read as far as it went then. One that is gone by then is not in the zip,
    one that cannot be read further is as long as it could be read.

    Closing the generator closes the file.
    """
    # Not zipstream-ng: it follows links of a path that it opens, and dates any other data today.
    sink = _Sink()
    method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(sink, "w", method) as archive:
        for name in names:
            try:
                file = _open(paths.folder, name)
            except OSError:
                continue
            with file:
                status = os.fstat(file.fileno())
                moment = time.localtime(_moment(status))
                entry = zipfile.ZipInfo(_as_entry(f"{prefix}/{name}"), moment[:6])
                entry.compress_type = method
                chunks = _chunks(file, status.st_size)
                large = status.st_size > ZIP64_BYTES
                with archive.open(entry, "w", force_zip64=large) as target:
                    for chunk in mask.chunks(chunks) if mask else chunks:
                        target.write(chunk)
                        yield from sink.taken(CHUNK_BYTES)
            yield from sink.taken(CHUNK_BYTES)
    yield from sink.taken()


class _Sink:
    """What a zip is written to, and taken from soon. It cannot seek, so the zip says behind an
    entry how long that is."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._length = 0

    def write(self, piece: bytes, /) -> int:
        self._pieces.append(piece)
        self._length += len(piece)
        return len(piece)

    def flush(self) -> None:
        """Nothing: it is taken."""

    def close(self) -> None:
        """Nothing: nobody else has it."""

    def taken(self, least: int = 1) -> Iterator[bytes]:
        """What was written since the last time; nothing where that is less than so many bytes."""
        if self._length >= least:
            content = b"".join(self._pieces)
            self._pieces, self._length = [], 0
            yield content


def _open(folder: Path, name: str) -> io.FileIO:
    """A regular file of the run folder, for reading. Raises OSError."""
    file = io.FileIO(str(folder), "rb", opener=lambda _, flags: open_below(folder, name, flags))
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(f"{name!r} is no regular file")
    return file


def _chunks(file: io.FileIO, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a file, or as many as can be read."""
    left = size
    with contextlib.suppress(OSError):
        while left > 0 and (chunk := file.read(min(CHUNK_BYTES, left))):
            left -= len(chunk)
            yield chunk


def _status(folder: Path, name: str) -> os.stat_result | None:
    """Of a regular file that can be read; None where there is none."""
    try:
        with _open(folder, name) as file:
            return os.fstat(file.fileno())
    except OSError:
        return None


def _marker(paths: RunPaths, checkpoint: str) -> os.stat_result | None:
    return _status(paths.folder, f"{paths.checkpoints.name}/{checkpoint}/{COMPLETE}")


def _entries(folder: Path, name: str) -> Iterator[tuple[str, os.stat_result]]:
    """What is in a folder of the run folder, links as links; nothing where it is not there."""
    with contextlib.suppress(OSError), contextlib.closing(scan_below(folder, name)) as entries:
        for number, entry in enumerate(entries):
            if number >= MAX_FILES:
                return
            with contextlib.suppress(OSError):  # gone meanwhile
                yield entry.name, entry.stat(follow_symlinks=False)


def _walk(
    folder: Path,
    name: str,
    wanted: Callable[[str, bool], bool] = lambda name, is_folder: True,
) -> Iterator[tuple[str, os.stat_result]]:
    """The regular files in a folder of the run folder and below it, by their relative names.

    `wanted` is asked with a name, and whether that is a folder's.
    """
    waiting = [name]
    looked_at = 0
    while waiting:
        parent = waiting.pop()
        for last, status in _entries(folder, parent):
            if looked_at >= MAX_FILES:
                return
            looked_at += 1
            below = f"{parent}/{last}" if parent else last
            is_folder = stat.S_ISDIR(status.st_mode)
            if not (is_folder or stat.S_ISREG(status.st_mode)) or not wanted(below, is_folder):
                continue
            if not is_folder:
                yield below, status
            elif below.count("/") < MAX_DEPTH - 1:
                waiting.append(below)


def _moment(status: os.stat_result) -> float:
    """When a file was written, in seconds since 1970; a job can give it any date at all."""
    return min(max(status.st_mtime, _EARLIEST), _LATEST)


def _as_entry(name: str) -> str:
    """A name that is text on every system, and that leads nowhere else; two never become one."""
    return "".join(
        character
        if character == "/" or (character.isprintable() and character not in '\\:*?"<>|')
        else quote(character, safe="", errors="surrogateescape")
        for character in re.sub(r"%(?=[0-9A-Fa-f]{2})", "%25", name)
    )
