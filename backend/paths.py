"""The file names of the data folder and of a run folder, and how files in there are opened."""

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_CAREFULLY: Final = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
)


def open_inside(path: Path, flags: int) -> int:
    """Open a file of a run folder; return its descriptor.

    Whatever somebody put in its place is not opened in its stead: not through a link, neither of
    the file nor of its folder, and a FIFO without a reader keeps nobody waiting.

    Raises:
        OSError: it is not there, it or its folder is a link, or it may not be used.
    """
    with _opened(path.parent) as folder:
        return os.open(
            path if folder is None else path.name, flags | _CAREFULLY, 0o666, dir_fd=folder
        )


def publish_inside(path: Path, text: str) -> None:
    """Write a file of a run folder whole, so that nobody ever reads half of it.

    Raises:
        OSError: as `open_inside` does, or the disk is full; the file is as it was.
    """
    with _opened(path.parent) as folder:
        name, beside = (
            (str(path), f"{path}.tmp") if folder is None else (path.name, f"{path.name}.tmp")
        )
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | _CAREFULLY
        try:
            descriptor = os.open(beside, flags, 0o666, dir_fd=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(beside, dir_fd=folder)  # what there is of it takes room on a full disk
            raise


def open_below(folder: Path, name: str, flags: int) -> int:
    """Open a file anywhere in a run folder by its relative name ("checkpoints/step-1/model.pt");
    return its descriptor. As careful as `open_inside` is, at every folder of the name.

    Raises:
        OSError: as `open_inside` does, or the name could lead out of the folder.
    """
    *folders, last = _parts(name)
    with _opened(folder, folders) as parent:
        path = folder / name
        if parent is None and path.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), name)
        return os.open(path if parent is None else last, flags | _CAREFULLY, 0o666, dir_fd=parent)


def scan_below(folder: Path, name: str = "") -> Generator[os.DirEntry[str], None, None]:
    """What is in a folder of a run folder, by its relative name; in the run folder itself if that
    is empty. An entry can be asked for its status until the next one is taken.

    Raises:
        OSError: as `open_below` does.
    """
    with (
        _opened(folder, _parts(name) if name else ()) as descriptor,
        os.scandir(folder / name if descriptor is None else descriptor) as entries,
    ):
        yield from entries


def remove_run(runs: Path, job_id: int) -> None:
    """Remove a run folder with all that is in it; nothing where there is none.

    Nothing outside of it is touched: a link is removed, not followed, and what another disk is
    mounted on stays. The way down has any length: a folder in a folder is first moved up.

    Raises:
        OSError: something in it cannot be removed; what could be is gone.
    """
    if os.unlink not in os.supports_dir_fd:
        folder = runs / str(job_id)
        if folder.exists() and not folder.is_symlink():
            shutil.rmtree(folder)
        return
    parent = os.open(runs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _remove(parent, str(job_id))
    except FileNotFoundError:
        pass
    finally:
        os.close(parent)


def _remove(parent: int, name: str) -> None:
    """Remove a file, a link, or a folder and all that is in it, by its parent's descriptor."""
    if not stat.S_ISDIR(os.lstat(name, dir_fd=parent).st_mode):
        os.unlink(name, dir_fd=parent)
        return
    top = _open_to_empty(parent, name)
    try:
        device = os.fstat(top).st_dev
        number = 0
        while names := os.listdir(top):  # noqa: PTH208 (by its descriptor)
            for entry in names:
                if not stat.S_ISDIR(os.lstat(entry, dir_fd=top).st_mode):
                    os.unlink(entry, dir_fd=top)
                    continue
                folder = _open_to_empty(top, entry)
                try:
                    if os.fstat(folder).st_dev != device:
                        raise OSError(errno.EXDEV, "another disk is mounted there", entry)
                    for inner in os.listdir(folder):  # noqa: PTH208
                        if stat.S_ISDIR(os.lstat(inner, dir_fd=folder).st_mode):
                            number += 1
                            above = f".removed-{secrets.token_hex(8)}-{number}"
                            os.rename(inner, above, src_dir_fd=folder, dst_dir_fd=top)
                        else:
                            os.unlink(inner, dir_fd=folder)
                finally:
                    os.close(folder)
                os.rmdir(entry, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _open_to_empty(parent: int, name: str) -> int:
    """The descriptor of a folder, no link, which may be written from now on."""
    descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | _CAREFULLY, dir_fd=parent)
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, 0o700)
    return descriptor


def _parts(name: str) -> list[str]:
    """The folders of a relative name and its last part."""
    parts = name.split("/")
    wrong = not {"", ".", ".."}.isdisjoint(parts) or "\0" in name
    if os.sep != "/":
        wrong = wrong or os.sep in name or ":" in name  # a drive, or a second stream of a file
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        wrong = True
    if wrong:
        raise OSError(errno.EINVAL, "no name of a file in this folder", name)
    return parts


@contextlib.contextmanager
def _opened(folder: Path, below: Sequence[str] = ()) -> Iterator[int | None]:
    """The descriptor of a folder, or of one below it, the names of the folders on the way being
    given; None where the system opens no files by one."""
    if os.open not in os.supports_dir_fd:
        for number in range(1, len(below) + 1):
            path = folder.joinpath(*below[:number])
            if path.is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
        yield None
        return
    flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _CAREFULLY
    descriptor = os.open(folder, flags)
    try:
        for name in below:
            parent, descriptor = descriptor, os.open(name, flags, dir_fd=descriptor)
            os.close(parent)
        yield descriptor
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class RunPaths:
    """The files of one run; `backend.training` writes those that belong to the job."""

    folder: Path

    @property
    def spec(self) -> Path:
        return self.folder / "spec.json"

    @property
    def progress(self) -> Path:
        return self.folder / "progress.json"

    @property
    def metrics(self) -> Path:
        return self.folder / "metrics.jsonl"

    @property
    def seen(self) -> Path:
        """The points that the server saw of a job that keeps no history itself."""
        return self.folder / "seen.jsonl"

    @property
    def usage(self) -> Path:
        """What the server measured of the job's use of the machine while it ran."""
        return self.folder / "usage.jsonl"

    @property
    def log(self) -> Path:
        return self.folder / "log.txt"

    @property
    def exit(self) -> Path:
        return self.folder / "exit.json"

    @property
    def stacks(self) -> Path:
        return self.folder / "stacks.txt"

    @property
    def stop(self) -> Path:
        """Written by the server when the job is to stop, for jobs that cannot catch a signal."""
        return self.folder / "stop.json"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


def _identity(path: Path) -> str:
    """Stays when a file is renamed or its folder moved; a copy has another."""
    status = path.stat()
    return f"{status.st_dev:x}:{status.st_ino:x}"


@dataclass(frozen=True)
class DataPaths:
    """The files of the data folder."""

    folder: Path

    @property
    def database(self) -> Path:
        return self.folder / "signalbox.db"

    @property
    def lock(self) -> Path:
        """Held by the one server that runs on this folder."""
        return self.folder / "signalbox.lock"

    @property
    def nonce(self) -> Path:
        return self.folder / "nonce"

    def read_nonce(self) -> str | None:
        """The random word that marks the processes of this folder's jobs; None where there is none.

        The file says which file it was written as. One that was copied with its folder is none:
        two servers must not take each other's processes for their own.
        """
        try:
            nonce, *file = self.nonce.read_text(encoding="ascii").split()
        except (OSError, ValueError):
            return None
        # The first release wrote nothing but the word.
        return nonce if file in ([], [_identity(self.nonce)]) else None

    def make_nonce(self) -> str:
        """The nonce of this folder, a new one if there is none yet; it is on the disk before it is
        used, because without it no process of a job is found again.

        Raises:
            OSError: it cannot be written.
        """
        known = self.read_nonce()
        if known and len(self.nonce.read_text(encoding="ascii").split()) == 2:
            return known
        nonce = known or secrets.token_hex(8)
        beside = self.nonce.with_suffix(".tmp")
        try:
            with beside.open("w", encoding="ascii") as file:
                file.write(f"{nonce} {_identity(beside)}\n")
                file.flush()
                os.fsync(file.fileno())
            beside.replace(self.nonce)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink(missing_ok=True)
            if known is None:
                raise
        return nonce

    @property
    def uploads(self) -> Path:
        return self.folder / "uploads"

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    def run(self, job_id: int) -> RunPaths:
        return RunPaths(self.runs / str(job_id))

    def highest_run(self) -> int:
        """The largest id that a run folder has; 0 where there is none."""
        names = os.listdir(self.runs) if self.runs.is_dir() else []  # noqa: PTH208
        return max(
            (int(n) for n in names if n.isascii() and n.isdecimal() and len(n) < 16), default=0
        )
