"""The curves of all jobs: an index each, of which few are open, and a thread that keeps those of
running jobs up to date."""

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from backend.curve_index import CurveIndex
from backend.paths import DataPaths

logger = logging.getLogger(__name__)

MAX_OPEN: Final = 64
"""Each has a file open and at most 1 MB of it in memory."""

EVERY_SECONDS: Final = 1.0
ANSWER_SECONDS: Final = 0.02
"""So long whoever asks waits for new lines to be read; the thread reads the rest."""

SLICE_SECONDS: Final = 0.02
"""So long the thread reads before it lets other threads go first for as long again."""

CLOSE_SECONDS: Final = 5.0


class Curves:
    """Safe to use from every thread."""

    def __init__(self, paths: DataPaths, running: Callable[[], Collection[int]]) -> None:
        """Args:
        running: the jobs whose curves grow.
        """
        self._paths = paths
        self._running = running
        self._lock = threading.Lock()
        self._open: OrderedDict[Path, CurveIndex] = OrderedDict()
        self._behind: OrderedDict[Path, None] = OrderedDict()
        self._wake = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._keep_up, name="curves", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing = True
        self._wake.set()
        if self._thread.ident:
            self._thread.join(CLOSE_SECONDS)
        self.forget()

    def of(self, job_id: int) -> CurveIndex:
        """The index of a job's curve, which has read what it could in a moment.

        That of metrics.jsonl; of seen.jsonl where there is no point in it.
        """
        paths = self._paths.run(job_id)
        index = self._up_to_date(paths.metrics)
        if not index.rows:
            seen = self._up_to_date(paths.seen)
            if seen.rows:
                return seen
        return index

    def forget(self, job_id: int | None = None) -> None:
        """Close the indexes of a job, whose folder is about to go; of all without one."""
        folder = None if job_id is None else self._paths.run(job_id).folder
        with self._lock:
            gone = [path for path in self._open if folder in (None, path.parent)]
            closing = [self._open.pop(path) for path in gone]
            for path in gone:
                self._behind.pop(path, None)
        for index in closing:
            index.close()

    def _up_to_date(self, source: Path) -> CurveIndex:
        index = self._index(source)
        if not index.update(ANSWER_SECONDS):
            with self._lock:
                self._behind[source] = None
            self._wake.set()
        return index

    def _index(self, source: Path) -> CurveIndex:
        evicted: list[CurveIndex] = []
        with self._lock:
            index = self._open.get(source)
            if index is None:
                index = self._open[source] = CurveIndex(source)
            self._open.move_to_end(source)
            while len(self._open) > MAX_OPEN:
                evicted.append(self._open.popitem(last=False)[1])
        for old in evicted:
            old.close()
        return index

    def _keep_up(self) -> None:
        while not self._closing:
            self._wake.wait(EVERY_SECONDS)
            self._wake.clear()
            try:
                for job_id in self._running():
                    paths = self._paths.run(job_id)
                    self._read(paths.metrics)
                    self._read(paths.seen)
                while not self._closing and (source := self._next_behind()):
                    self._read(source)
            except Exception:
                logger.exception("The curves could not be kept up to date")

    def _next_behind(self) -> Path | None:
        with self._lock:
            return self._behind.popitem(last=False)[0] if self._behind else None

    def _read(self, source: Path) -> None:
        """Read all that was appended to a file, letting others go first again and again."""
        index = self._index(source)
        while not self._closing and not index.update(SLICE_SECONDS):
            time.sleep(SLICE_SECONDS)
