"""Deleted jobs: how much they free, until when they can be taken back, and how they go."""

import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import groupby
from pathlib import Path
from typing import Final

from backend.models import utc_now
from backend.paths import DataPaths, remove_run, scan_below
from backend.store import FOR_GOOD, Store, StoreError

logger = logging.getLogger(__name__)

UNDO_SECONDS: Final = 600.0
LOOK_SECONDS: Final = 5.0
MEASURE_SECONDS: Final = 2.0
"""So long may it take at most to add up what files take."""

BLOCK_BYTES: Final = 512
"""Of `st_blocks`; see stat(2)."""


@dataclass(frozen=True)
class Measured:
    """What files take on the disk."""

    bytes: int = 0
    whole: bool = True  # False: there are so many that not all of them were looked at


@dataclass(frozen=True)
class Deletion:
    """Jobs that were deleted together, and what their files take."""

    job_ids: Sequence[int]
    bytes: int
    whole: bool
    at: datetime
    left_out: Mapping[int, str] = field(default_factory=dict)  # why, by job

    @property
    def seconds_left(self) -> float:
        """In which it can be taken back."""
        return UNDO_SECONDS - (utc_now() - self.at).total_seconds()


def measure(folders: Collection[Path], seconds: float = MEASURE_SECONDS) -> Measured:
    """What would be free if these run folders were gone. No link is followed.

    A file of several names counts once, and only if all its names are in these folders.
    """
    deadline = time.monotonic() + seconds
    total = 0
    names: Counter[tuple[int, int]] = Counter()
    for folder in folders:
        waiting = [""]
        while waiting:
            below = waiting.pop()
            try:
                for entry in scan_below(folder, below):
                    if time.monotonic() > deadline:
                        return Measured(total, whole=False)
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(f"{below}/{entry.name}" if below else entry.name)
                    elif status.st_nlink > 1:
                        file = (status.st_dev, status.st_ino)
                        names[file] += 1
                        total += _bytes(status) if names[file] == status.st_nlink else 0
                    else:
                        total += _bytes(status)
            except OSError:
                continue  # gone meanwhile, or not to be read
    return Measured(total)


def _bytes(status: os.stat_result) -> int:
    return getattr(status, "st_blocks", -(-status.st_size // BLOCK_BYTES)) * BLOCK_BYTES


class Wastebasket:
    """Holds deleted jobs until nobody can take them back, then removes rows and run folders.

    All that it has to know is in the database, so a restart changes nothing.
    """

    def __init__(
        self,
        store: Store,
        paths: DataPaths,
        lives: Callable[[int], bool] = lambda _: False,
        let_go: Callable[[int], None] = lambda _: None,
    ) -> None:
        """Hold the deleted jobs of a data folder.

        Args:
            lives: whether a process of a job, which has ended, is still there.
            let_go: closes what is open of a run folder that is about to go.
        """
        self._store = store
        self._paths = paths
        self._lives = lives
        self._let_go = let_go
        self._measured: dict[datetime, Measured] = {}
        self._told: set[int] = set()
        self._closing = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="wastebasket", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop; what is half gone goes on at the next start."""
        self._closing.set()
        self._wake.set()
        if self._thread.ident:
            self._thread.join(LOOK_SECONDS)

    def delete(self, job_ids: Collection[int]) -> Deletion:
        """Delete those of these jobs that have ended and that no live one needs.

        Raises StoreError.
        """
        needed = self._store.continued_by()
        left_out: dict[int, str] = {}
        for job_id in job_ids:
            if job_id in needed:
                left_out[job_id] = f"job {needed[job_id]} goes on from its checkpoint"
            elif self._lives(job_id):
                left_out[job_id] = "its processes or its memory are not gone yet"
        at = utc_now()
        chosen = [job_id for job_id in job_ids if job_id not in left_out]
        measured = self.measure(chosen)
        deleted = set(self._store.delete(chosen, at))
        for job_id in chosen:
            if job_id not in deleted:
                left_out[job_id] = "it has not ended"
        if deleted != set(chosen):
            measured = self.measure(deleted)
        self._measured[at] = measured
        return Deletion(sorted(deleted), measured.bytes, measured.whole, at, left_out)

    def undelete(self, job_ids: Collection[int]) -> Sequence[int]:
        """Take back what is not too late; returns which jobs are there again. Raises StoreError."""
        return self._store.undelete(job_ids, utc_now() - timedelta(seconds=UNDO_SECONDS))

    def delete_for_good(self, job_ids: Collection[int]) -> None:
        """Let deleted jobs go now. Raises StoreError."""
        self._store.give_up(job_ids)
        self._wake.set()

    def deletions(self) -> Sequence[Deletion]:
        """What can be taken back, newest first. Raises StoreError."""
        found = []
        for at, group in groupby(self._store.deleted(), lambda row: row[1]):
            ids = [job_id for job_id, _ in group]
            if at == FOR_GOOD or (utc_now() - at).total_seconds() >= UNDO_SECONDS:
                continue
            measured = self._measured.get(at)
            if measured is None:  # another server deleted them
                measured = self._measured[at] = self.measure(ids)
            found.append(Deletion(ids, measured.bytes, measured.whole, at))
        return found

    def measure(self, job_ids: Collection[int]) -> Measured:
        """What the run folders of these jobs take."""
        return measure([self._paths.run(job_id).folder for job_id in job_ids])

    def tick(self, now: datetime) -> None:
        """Remove what nobody can take back any more. Raises StoreError."""
        deleted = self._store.deleted()
        late = [
            job_id
            for job_id, at in deleted
            if at != FOR_GOOD and (now - at).total_seconds() >= UNDO_SECONDS
        ]
        if late:  # from now on nobody takes them back, so the files may go
            self._store.give_up(late)
        for job_id in [*late, *(job_id for job_id, at in deleted if at == FOR_GOOD)]:
            if self._closing.is_set():
                return
            self._remove(job_id)
        kept = {at for _, at in deleted}
        self._measured = {at: m for at, m in self._measured.items() if at in kept}

    def _remove(self, job_id: int) -> None:
        """The files first: a row without a folder is looked at again, a folder alone never."""
        if self._lives(job_id):
            return
        self._let_go(job_id)
        try:
            remove_run(self._paths.runs, job_id)
        except OSError as error:
            if job_id not in self._told:
                self._told.add(job_id)
                logger.warning("The run folder of job %s cannot be removed yet. %s", job_id, error)
            return
        self._store.forget(job_id)
        logger.info("Job %s was deleted, with its run folder", job_id)

    def _keep(self) -> None:
        while not self._closing.is_set():
            self._wake.clear()
            if self._closing.is_set():  # between the look and the clear
                return
            try:
                self.tick(utc_now())
            except StoreError as error:
                logger.warning("Deleted jobs wait. %s", error)
            except Exception:
                logger.exception("Deleted jobs could not be removed; it will be tried again")
            self._wake.wait(LOOK_SECONDS)
