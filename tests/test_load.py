"""The machine's figures: cheap, the same for all who ask together, never a guess."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from backend import load
from backend.gpu import Device, Holder, HostSource, MemorySource, SourceName
from backend.load import LoadMeter

GIB = 2**30


class OneGpu:
    name: SourceName = "nvml"

    def devices(self) -> Sequence[Device]:
        return [Device(3, "a GPU", 80 * GIB)]

    def used_bytes(self, index: int) -> int | None:
        return index * GIB

    def load_percent(self, index: int) -> float | None:
        return 90.0 + index

    def holders(self, index: int) -> Sequence[Holder]:
        raise AssertionError("To look for holders is not cheap.")


@pytest.fixture
def clock() -> SimpleNamespace:
    return SimpleNamespace(now=0.0)


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """The seconds that /proc/stat tells."""
    times = dict.fromkeys(("user", "system", "idle", "iowait", "guest", "guest_nice"), 0.0)
    told = SimpleNamespace(_asdict=lambda: dict(times))
    monkeypatch.setattr(load.psutil, "cpu_times", lambda: told)
    return times


def meter(folder: Path, clock: SimpleNamespace, source: MemorySource | None = None) -> LoadMeter:
    return LoadMeter(folder, source or HostSource(), clock=lambda: clock.now)


def test_cpu_is_what_was_worked_since_the_reading_before(
    tmp_path: Path, clock: SimpleNamespace, cpu: dict[str, float]
) -> None:
    found = meter(tmp_path, clock)
    clock.now = 2.0
    cpu |= {"user": 1.0, "system": 0.5, "guest": 0.5, "idle": 2.0, "iowait": 1.0}
    assert found.read().cpu_percent == 33.3, "what a guest took is in user already"
    clock.now = 4.0
    cpu["user"] += 4.0
    assert found.read().cpu_percent == 100


def test_all_who_ask_within_a_second_get_one_reading(
    tmp_path: Path, clock: SimpleNamespace, cpu: dict[str, float]
) -> None:
    found = meter(tmp_path, clock)
    first = found.read()
    clock.now = 0.5
    assert found.read() is first
    clock.now = 1.0
    assert found.read() is not first


def test_the_mean_of_a_long_time_is_not_told_as_now(
    tmp_path: Path, clock: SimpleNamespace, cpu: dict[str, float]
) -> None:
    found = meter(tmp_path, clock)
    clock.now, cpu["user"] = 3600.0, 9.0
    assert found.read().cpu_percent is None
    clock.now, cpu["user"] = 3601.0, 10.0
    assert found.read().cpu_percent == 100


def test_the_real_machine_is_read(tmp_path: Path, clock: SimpleNamespace) -> None:
    now = meter(tmp_path, clock).read()
    assert now.memory_total_bytes == psutil.virtual_memory().total
    assert 0 < now.memory_used_bytes < now.memory_total_bytes
    assert now.disk_total_bytes == psutil.disk_usage(str(tmp_path)).total
    assert now.devices == []


@pytest.mark.parametrize(
    ("free", "total", "is_low"),
    [(4 * GIB, 1000 * GIB, True), (6 * GIB, 1000 * GIB, False),
     (4 * GIB, 20 * GIB, False), (1 * GIB, 20 * GIB, True)],
)  # fmt: skip
def test_little_is_less_than_a_few_checkpoints_and_less_than_a_tenth(
    tmp_path: Path, clock: SimpleNamespace, monkeypatch: pytest.MonkeyPatch,
    free: int, total: int, is_low: bool,
) -> None:  # fmt: skip
    disk = SimpleNamespace(free=free, total=total)
    monkeypatch.setattr(load.shutil, "disk_usage", lambda _: disk)
    now = meter(tmp_path, clock).read()
    assert (now.disk_free_bytes, now.disk_is_low) == (free, is_low)


def test_a_folder_that_is_gone_has_no_figure(tmp_path: Path, clock: SimpleNamespace) -> None:
    now = meter(tmp_path / "gone", clock).read()
    assert (now.disk_free_bytes, now.disk_is_low) == (None, False)


def test_each_gpu_has_its_memory_and_its_load(tmp_path: Path, clock: SimpleNamespace) -> None:
    (device,) = meter(tmp_path, clock, OneGpu()).read().devices
    assert (device.index, device.used_bytes, device.total_bytes) == (3, 3 * GIB, 80 * GIB)
    assert device.percent == 93
