"""Memory readings, and the measured cleanup at the end of a job.

Readings come from NVML, which needs no CUDA context; where NVML is missing, from torch; without a
GPU they are the host memory of the job's own processes.
"""

import gc
import importlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import psutil

logger = logging.getLogger(__name__)

SourceName = Literal["nvml", "torch", "host"]

SETTLE_SECONDS: Final = 10.0
"""How long a cleanup waits at most for a device's reading to come to rest."""

SETTLE_INTERVAL_SECONDS: Final = 0.1
STEADY_READINGS: Final = 3
TOLERANCE_BYTES: Final = 64 * 2**20
"""So near to its baseline a device counts as given back: drivers keep a little for a while."""


@dataclass(frozen=True)
class Device:
    """A GPU by its index in PCI bus order."""

    index: int
    name: str
    total_bytes: int


@dataclass(frozen=True)
class Holder:
    """A process that holds memory of a device."""

    pid: int
    name: str
    bytes: int | None

    def as_json(self) -> dict[str, Any]:
        return {"pid": self.pid, "name": self.name, "bytes": self.bytes}


class MemorySource(Protocol):
    """Where readings of device memory come from."""

    @property
    def name(self) -> SourceName: ...

    def devices(self) -> Sequence[Device]: ...

    def used_bytes(self, index: int) -> int | None:
        """Memory in use on a device by anybody; None where it cannot be read."""
        ...

    def load_percent(self, index: int) -> float | None:
        """For how much of the last moment, up to a second, a kernel ran on a device, 0 to 100; None
        where it cannot be read."""
        ...

    def holders(self, index: int) -> Sequence[Holder]: ...


class NvmlSource:
    """NVIDIA's management library. Source: NVML API Reference, nvmlDeviceGetMemoryInfo and
    nvmlDeviceGetUtilizationRates."""

    name: SourceName = "nvml"

    def __init__(self, nvml: Any) -> None:
        self._nvml = nvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        self._handles: dict[int, Any] = {}
        self._devices: list[Device] = []
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            if _visible(visible, index, _as_text(nvml.nvmlDeviceGetUUID(handle))):
                self._handles[index] = handle
                name = _as_text(nvml.nvmlDeviceGetName(handle))
                total = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
                self._devices.append(Device(index, name, total))

    def devices(self) -> Sequence[Device]:
        return self._devices  # read once: a device that falls off the bus is still leased

    def used_bytes(self, index: int) -> int | None:
        try:
            return int(self._nvml.nvmlDeviceGetMemoryInfo(self._handles[index]).used)
        except (self._nvml.NVMLError, KeyError):
            return None

    def load_percent(self, index: int) -> float | None:
        try:
            return float(self._nvml.nvmlDeviceGetUtilizationRates(self._handles[index]).gpu)
        except (self._nvml.NVMLError, KeyError):
            return None  # a slice of a device (MIG) has none

    def holders(self, index: int) -> Sequence[Holder]:
        found: dict[int, Holder] = {}
        for kind in ("Compute", "Graphics"):
            try:
                read = getattr(self._nvml, f"nvmlDeviceGet{kind}RunningProcesses")
                processes = read(self._handles[index])
            except (self._nvml.NVMLError, KeyError):
                continue
            for process in processes:
                found[process.pid] = Holder(
                    process.pid, _process_name(process.pid), process.usedGpuMemory
                )
        return list(found.values())


class TorchSource:
    """torch's own view, where NVML is missing. It opens a CUDA context: there is no other way."""

    name: SourceName = "torch"

    def __init__(self, torch: Any) -> None:
        self._torch = torch

    def devices(self) -> Sequence[Device]:
        cuda = self._torch.cuda
        return [
            Device(index, cuda.get_device_name(index), int(cuda.mem_get_info(index)[1]))
            for index in range(cuda.device_count())
        ]

    def used_bytes(self, index: int) -> int | None:
        try:
            free, total = self._torch.cuda.mem_get_info(index)
        except Exception:  # noqa: BLE001 (a broken driver raises anything)
            return None
        return int(total - free)

    def load_percent(self, index: int) -> float | None:
        return None  # torch asks NVML for it, which is missing

    def holders(self, index: int) -> Sequence[Holder]:
        return []


class HostSource:
    """No GPU: there are no devices, and a job's memory is that of its processes."""

    name: SourceName = "host"

    def devices(self) -> Sequence[Device]:
        return []

    def used_bytes(self, index: int) -> int | None:
        return None

    def load_percent(self, index: int) -> float | None:
        return None

    def holders(self, index: int) -> Sequence[Holder]:
        return []


def find_source() -> MemorySource:
    """The best source that works on this machine. Torch is imported only where there is a device
    that NVML cannot read."""
    try:
        import pynvml

        pynvml.nvmlInit()
        source = NvmlSource(pynvml)
        return source if source.devices() else HostSource()  # all of them hidden, or none there
    except Exception as error:  # noqa: BLE001 (no library, no driver, a broken one: all the same)
        logger.info("NVML cannot be used: %s", error)
    if not device_nodes():
        return HostSource()
    try:
        torch = importlib.import_module("torch")
        if torch.cuda.is_available():
            return TorchSource(torch)
    except Exception:
        logger.exception("There is a GPU, but torch cannot use it")
    return HostSource()


def device_nodes() -> list[str]:
    """The device files that a GPU driver has made; none on a machine without a GPU."""
    return sorted(str(p) for p in Path("/dev").glob("nvidia[0-9]*")) + [
        str(p) for p in (Path("/dev/kfd"),) if p.exists()
    ]


@dataclass(frozen=True)
class CacheCleanup:
    """What emptying the server's own allocator did."""

    freed_bytes: int | None
    """None where there is no allocator: no torch, no CUDA, or none used by this process."""
    note: str


_cache_lock = threading.Lock()


def empty_cache(import_torch: bool) -> CacheCleanup:
    """Collect garbage, and empty the CUDA cache of this process; never raises.

    Args:
        import_torch: load torch for it if it is not there; else a process without torch, which
            has no CUDA cache either, is left without.
    """
    with _cache_lock:
        gc.collect()
        if not import_torch and "torch" not in sys.modules:
            return CacheCleanup(None, "The server has not loaded torch: it has no CUDA cache.")
        try:
            torch = importlib.import_module("torch")
            if not torch.cuda.is_available():
                return CacheCleanup(
                    None, "Garbage was collected. There is no CUDA device, so there is no cache."
                )
            if not torch.cuda.is_initialized():
                return CacheCleanup(
                    0, "The server holds no GPU memory: it never opened a CUDA context."
                )
            before = sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))
            torch.cuda.empty_cache()
            after = sum(torch.cuda.memory_reserved(i) for i in range(torch.cuda.device_count()))
            return CacheCleanup(before - after, "The server's own CUDA cache was emptied.")
        except Exception as error:  # noqa: BLE001 (a broken torch or driver raises anything)
            logger.warning("The CUDA cache could not be emptied: %s", error)
            return CacheCleanup(None, f"The CUDA cache could not be emptied: {error}")


@dataclass(frozen=True)
class Measurement:
    """Memory of one device over one job's life, in bytes; None where it could not be measured."""

    device: str
    source: SourceName
    baseline_bytes: int | None
    before_bytes: int | None
    peak_bytes: int | None
    after_bytes: int | None
    settle_seconds: float | None
    released: bool | None
    holders: Sequence[Holder]


class JobMeter:
    """Measures the memory of one job: on its devices, or without a GPU in its processes."""

    def __init__(
        self,
        source: MemorySource,
        devices: Sequence[int],
        measured: Mapping[str, Mapping[str, int]] | None = None,
    ) -> None:
        """Take the baseline; call just before the launch.

        Args:
            measured: of an adopted job, the `state` of the meter that it had before; nothing
                that is not in there can be known any more.
        """
        self._source = source
        self._devices = tuple(devices)
        self._baseline: dict[int, int] = {}
        self._last: dict[int, int] = {}
        self._peak: dict[int, int] = {}
        if measured is not None:
            self._baseline, self._last, self._peak = (
                {int(index): used for index, used in measured.get(name, {}).items()}
                for name in ("baseline", "before", "peak")
            )
        elif self._devices:
            readings = ((i, source.used_bytes(i)) for i in self._devices)
            self._baseline = {index: used for index, used in readings if used is not None}
        else:
            self._baseline = {-1: 0}

    def state(self, *, ending: bool = False) -> dict[str, dict[str, int]]:
        """What a later meter has to know of this job, ready for JSON: bytes by device index.

        Args:
            ending: the last reading is the one before the end, and is kept as that.
        """
        kept = {"baseline": self._baseline, "peak": self._peak}
        if ending:
            kept["before"] = self._last
        return {
            name: {str(index): used for index, used in readings.items()}
            for name, readings in kept.items()
        }

    @property
    def used_bytes(self) -> int | None:
        """The last reading, all devices together."""
        return sum(self._last.values()) if self._last else None

    @property
    def peak_bytes(self) -> int | None:
        return sum(self._peak.values()) if self._peak else None

    def read(self, host_bytes: int) -> None:
        """Take a reading while the job runs; `host_bytes` is the memory of its processes."""
        for index in self._devices or (-1,):
            used = host_bytes if index == -1 else self._source.used_bytes(index)
            if used is None or (index == -1 and used == 0):
                continue  # its processes are gone already: the last reading while it ran stays
            self._last[index] = used
            self._peak[index] = max(used, self._peak.get(index, 0))

    def settle(
        self,
        is_ours: Callable[[int], bool],
        host_left_bytes: int,
        give_up: threading.Event,
        *,
        clock: Callable[[], float] = time.monotonic,
        most_seconds: float = SETTLE_SECONDS,
    ) -> list[Measurement] | None:
        """Wait until each device's reading has come to rest, and say what came back.

        Call it once the job's processes are gone. A reading is at rest when it is back at its
        baseline, or when it has not moved for three readings and no process of the job holds
        memory.

        Args:
            is_ours: whether a pid belongs to the job that has just ended.
            host_left_bytes: host memory of those of its processes that could not be ended.
            give_up: once set, nobody waits any more.

        Returns None where `give_up` was set before the readings had come to rest.
        """
        begin = clock()
        after: dict[int, int | None] = {}
        took: dict[int, float] = {}
        holders: dict[int, Sequence[Holder]] = {}
        pending = list(self._devices or (-1,))
        trail: dict[int, list[int]] = {index: [] for index in pending}
        while pending:
            late = clock() - begin >= most_seconds
            for index in tuple(pending):
                used = host_left_bytes if index == -1 else self._source.used_bytes(index)
                after[index], took[index] = used, clock() - begin
                holders[index] = self._source.holders(index) if index >= 0 else ()
                if used is not None:
                    trail[index].append(used)
                if used is None or late or self._at_rest(index, trail[index], holders, is_ours):
                    pending.remove(index)
            if pending and give_up.wait(SETTLE_INTERVAL_SECONDS):
                return None
        return [self._measurement(i, after[i], took[i], holders[i], is_ours) for i in after]

    def back(self, is_ours: Callable[[int], bool]) -> bool:
        """Whether every device that did not give its memory back at the end has done so since."""
        return not any(
            self._released(i, self._source.used_bytes(i), self._source.holders(i), is_ours) is False
            for i in self._devices
        )

    def _at_rest(
        self,
        index: int,
        trail: Sequence[int],
        holders: Mapping[int, Sequence[Holder]],
        is_ours: Callable[[int], bool],
    ) -> bool:
        if any(is_ours(holder.pid) for holder in holders[index]):
            return False
        if index == -1:
            return True  # its processes have been waited for already
        baseline = self._baseline.get(index)
        if baseline is not None and trail[-1] <= baseline + TOLERANCE_BYTES:
            return True
        last = trail[-STEADY_READINGS:]
        return len(last) == STEADY_READINGS and max(last) - min(last) < 2**20

    def _measurement(
        self,
        index: int,
        after: int | None,
        took: float,
        holders: Sequence[Holder],
        is_ours: Callable[[int], bool],
    ) -> Measurement:
        baseline = self._baseline.get(index)
        return Measurement(
            device="host" if index == -1 else f"cuda:{index}",
            source=self._source.name if index >= 0 else "host",
            baseline_bytes=baseline,
            before_bytes=self._last.get(index),
            peak_bytes=self._peak.get(index),
            after_bytes=after,
            settle_seconds=round(took, 3) if after is not None else None,
            released=self._released(index, after, holders, is_ours),
            holders=tuple(holders),
        )

    def _released(
        self,
        index: int,
        used: int | None,
        holders: Sequence[Holder],
        is_ours: Callable[[int], bool],
    ) -> bool | None:
        """Whether the job's memory came back; None where that cannot be told."""
        if used is None:
            return None
        if index == -1:
            return used == 0
        if any(is_ours(holder.pid) for holder in holders):
            return False
        baseline = self._baseline.get(index)
        if baseline is None:
            return None
        # What is left above the baseline may be a stranger's, who came while the job ran.
        return used <= baseline + TOLERANCE_BYTES or bool(holders)


def _visible(setting: str | None, index: int, uuid: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES lets this process use a device (CUDA C++ Programming Guide,
    "CUDA environment variables"): indices or beginnings of UUIDs, as far as the first that is
    none."""
    if setting is None:
        return True
    words = takewhile(lambda word: word != "-1", map(str.strip, setting.split(",")))
    return any(word == str(index) or (len(word) > 3 and uuid.startswith(word)) for word in words)


def _process_name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return ""


def _as_text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
