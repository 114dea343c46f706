"""What has happened to jobs, for those who want to be told."""

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from backend.models import utc_now

MAX_ENDINGS: Final = 200
"""Whoever asks more seldom than so many jobs end hears of the last ones."""


class NewsKind(StrEnum):
    """What a supervisor tells of its job."""

    ENDED = "ended"
    ABOUT_TO_TIME_OUT = "about_to_time_out"


@dataclass(frozen=True)
class Ending:
    number: int  # larger than that of every ending before it
    job_id: int


class Endings:
    """The jobs that ended since the server was started, numbered in their order.

    Numbers begin with the milliseconds of the start, so those of a later server are larger: who
    knows a number of an earlier one hears of all that this one found.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._last = round(utc_now().timestamp() * 1000)
        self._kept: deque[Ending] = deque(maxlen=MAX_ENDINGS)

    @property
    def last(self) -> int:
        """The newest number."""
        return self._last

    def add(self, job_id: int) -> None:
        with self._lock:
            self._last += 1
            self._kept.append(Ending(self._last, job_id))

    def after(self, number: int) -> Sequence[Ending]:
        """Those with larger numbers, oldest first."""
        with self._lock:
            return [ending for ending in self._kept if ending.number > number]
