"""How busy the machine is now, and what is left of it: its CPU, memory, disk and GPUs."""

import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import psutil

from backend.gpu import MemorySource

FRESH_SECONDS: Final = 0.9
"""A reading serves everybody who asks so soon after it."""

STALE_SECONDS: Final = 60.0
"""The mean over a longer time says nothing of now."""

LITTLE_BYTES: Final = 5 * 2**30
LITTLE_SHARE: Final = 0.1
"""With less than both left on its disk the data folder may soon be without room: a checkpoint takes
a few gigabytes, and a small disk is never far from that."""


@dataclass(frozen=True)
class DeviceLoad:
    """One GPU."""

    index: int
    name: str
    used_bytes: int | None
    total_bytes: int
    percent: float | None  # for how much of the last moment it was at work


@dataclass(frozen=True)
class Load:
    """The machine at one moment; None where a figure cannot be read."""

    cpu_percent: float | None  # of all cores together, since the reading before
    cores: int
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int | None  # for the data folder
    disk_total_bytes: int | None
    disk_is_low: bool
    devices: Sequence[DeviceLoad]


class LoadMeter:
    """Reads the machine at most once a second, for all who ask together, and only if asked."""

    def __init__(
        self, folder: Path, source: MemorySource, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._folder = folder
        self._source = source
        self._clock = clock
        self._lock = threading.Lock()
        self._last: Load | None = None
        self._read_at = clock()
        self._cpu = _cpu_seconds()

    def read(self) -> Load:
        with self._lock:
            now = self._clock()
            if self._last is None or now - self._read_at >= FRESH_SECONDS:
                self._last = self._look(now - self._read_at)
                self._read_at = now
            return self._last

    def _look(self, passed_seconds: float) -> Load:
        before, self._cpu = self._cpu, _cpu_seconds()
        memory = psutil.virtual_memory()
        disk = self._disk()
        free, room = disk or (None, None)
        return Load(
            cpu_percent=_percent(before, self._cpu) if passed_seconds <= STALE_SECONDS else None,
            cores=os.cpu_count() or 1,
            memory_used_bytes=memory.total - memory.available,
            memory_total_bytes=memory.total,
            disk_free_bytes=free,
            disk_total_bytes=room,
            disk_is_low=disk is not None and disk[0] < min(LITTLE_BYTES, LITTLE_SHARE * disk[1]),
            devices=[
                DeviceLoad(
                    device.index,
                    device.name,
                    self._source.used_bytes(device.index),
                    device.total_bytes,
                    self._source.load_percent(device.index),
                )
                for device in self._source.devices()
            ],
        )

    def _disk(self) -> tuple[int, int] | None:
        """Bytes that are free and that there are, where the data folder is."""
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return None
        return usage.free, usage.total


def _cpu_seconds() -> tuple[float, float]:
    """Since the boot, of all cores: in which they worked, and in all.

    Not psutil.cpu_percent, which remembers its last call for each thread; here each question may
    come from another. What virtual machines took is in `user` already. Source: proc(5), /proc/stat.
    """
    times = psutil.cpu_times()._asdict()
    every = sum(times.values()) - times.get("guest", 0.0) - times.get("guest_nice", 0.0)
    return every - times["idle"] - times.get("iowait", 0.0), every


def _percent(before: tuple[float, float], after: tuple[float, float]) -> float | None:
    passed = after[1] - before[1]
    if passed <= 0:
        return None
    return round(min(100.0, max(0.0, 100 * (after[0] - before[0]) / passed)), 1)
