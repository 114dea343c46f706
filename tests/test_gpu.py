"""Readings, the measured cleanup and the emptied cache, with hand-written devices."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from backend import gpu
from backend.gpu import (
    TOLERANCE_BYTES,
    Device,
    Holder,
    HostSource,
    JobMeter,
    Measurement,
    NvmlSource,
    SourceName,
    empty_cache,
    find_source,
)
from tests.conftest import PROJECT

GIB = 2**30
NEVER = threading.Event()
OURS, STRANGER = 100, 200


@dataclass
class FakeSource:
    """Devices whose readings and holders follow a script; its last entry stays."""

    readings: dict[int, list[int | None]]
    held_by: dict[int, list[list[int]]] = field(default_factory=dict)
    name: SourceName = "nvml"

    def devices(self) -> Sequence[Device]:
        return [Device(index, f"GPU {index}", 80 * GIB) for index in self.readings]

    def used_bytes(self, index: int) -> int | None:
        return _next(self.readings[index])

    def load_percent(self, index: int) -> float | None:
        return 50.0

    def holders(self, index: int) -> Sequence[Holder]:
        pids = _next(self.held_by[index]) if index in self.held_by else []
        return [Holder(pid, f"process {pid}", GIB) for pid in pids]


def _next(script: list[Any]) -> Any:
    return script.pop(0) if len(script) > 1 else script[0]


class Clock:
    """Time that passes only by being waited for."""

    def __init__(self) -> None:
        self.now = 0.0
        self.give_up = threading.Event()
        self.give_up.wait = self._wait  # type: ignore[method-assign]

    def _wait(self, timeout: float | None = None) -> bool:
        self.now += timeout or 0
        return self.give_up.is_set()

    def __call__(self) -> float:
        return self.now


def _settle(meter: JobMeter, clock: Clock | None = None, host_left: int = 0) -> list[Measurement]:
    clock = clock or Clock()
    settled = meter.settle(OURS.__eq__, host_left, clock.give_up, clock=clock)
    assert settled is not None
    return settled


def _ran(source: FakeSource, *devices: int, readings: int = 1) -> JobMeter:
    meter = JobMeter(source, devices)
    for _ in range(readings):
        meter.read(host_bytes=0)
    return meter


# The cleanup


def test_memory_that_comes_back_to_its_baseline_is_released() -> None:
    source = FakeSource({0: [GIB, 9 * GIB, 8 * GIB, 4 * GIB, GIB + 1000]})
    meter = _ran(source, 0, readings=2)
    assert (meter.used_bytes, meter.peak_bytes) == (8 * GIB, 9 * GIB)
    (measured,) = _settle(meter)
    assert measured == Measurement(
        device="cuda:0",
        source="nvml",
        baseline_bytes=GIB,
        before_bytes=8 * GIB,
        peak_bytes=9 * GIB,
        after_bytes=GIB + 1000,
        settle_seconds=0.1,
        released=True,
        holders=(),
    )


def test_a_reading_within_the_tolerance_counts_as_the_baseline() -> None:
    near, far = GIB + TOLERANCE_BYTES, GIB + TOLERANCE_BYTES + 1
    assert _settle(_ran(FakeSource({0: [GIB, 2 * GIB, near]}), 0))[0].settle_seconds == 0
    (measured,) = _settle(_ran(FakeSource({0: [GIB, 2 * GIB, far]}), 0))
    assert measured.settle_seconds == pytest.approx(0.2), "three readings that do not move"
    assert measured.released is False


def test_what_a_stranger_took_meanwhile_is_not_held_against_the_job() -> None:
    source = FakeSource({0: [GIB, 9 * GIB, 4 * GIB, 3 * GIB, 3 * GIB]}, {0: [[STRANGER]]})
    (measured,) = _settle(_ran(source, 0))
    assert measured.after_bytes == 3 * GIB
    assert measured.released is True
    assert [holder.pid for holder in measured.holders] == [STRANGER], "but they are named"


def test_a_reading_is_not_at_rest_while_the_job_holds_memory() -> None:
    held = {0: [[OURS, STRANGER]] * 20 + [[STRANGER]]}
    clock = Clock()
    (measured,) = _settle(_ran(FakeSource({0: [GIB, 9 * GIB]}, held), 0), clock)
    assert measured.settle_seconds == pytest.approx(2.0)
    assert [holder.pid for holder in measured.holders] == [STRANGER]


def test_who_still_holds_memory_after_ten_seconds_is_named() -> None:
    source = FakeSource({0: [GIB, 9 * GIB]}, {0: [[OURS]]})
    (measured,) = _settle(_ran(source, 0))
    assert measured.settle_seconds == pytest.approx(10, abs=0.15)
    assert measured.released is False
    assert [holder.pid for holder in measured.holders] == [OURS]


def test_a_reading_that_never_rests_is_taken_after_ten_seconds() -> None:
    restless: list[int | None] = [GIB, *(n % 2 * GIB + 5 * GIB for n in range(10_000))]
    (measured,) = _settle(_ran(FakeSource({0: restless}), 0))
    assert measured.settle_seconds == pytest.approx(10, abs=0.15)
    assert measured.released is False


def test_a_server_that_closes_neither_waits_nor_takes_what_it_saw_for_the_end() -> None:
    clock = Clock()
    clock.give_up.set()
    meter = _ran(FakeSource({0: [GIB, 9 * GIB]}, {0: [[OURS]]}), 0)
    assert meter.settle(OURS.__eq__, 0, clock.give_up, clock=clock) is None
    assert clock.now < 1


def test_what_cannot_be_read_stays_empty() -> None:
    (measured,) = _settle(_ran(FakeSource({0: [None]}), 0))
    assert measured == Measurement("cuda:0", "nvml", None, None, None, None, None, None, ())


def test_a_reading_that_fails_at_the_end_keeps_the_figures_before() -> None:
    (measured,) = _settle(_ran(FakeSource({0: [GIB, 9 * GIB, None]}), 0))
    assert (measured.baseline_bytes, measured.before_bytes) == (GIB, 9 * GIB)
    assert (measured.after_bytes, measured.released) == (None, None)


def test_each_device_is_measured_by_itself() -> None:
    source = FakeSource({0: [GIB, 9 * GIB, GIB], 1: [0, 7 * GIB, 7 * GIB, 7 * GIB, 0], 2: [5]})
    meter = _ran(source, 0, 1)
    assert meter.used_bytes == 16 * GIB
    first, second = _settle(meter)
    assert (first.device, first.settle_seconds, first.released) == ("cuda:0", 0, True)
    assert (second.device, second.released) == ("cuda:1", True)
    assert second.settle_seconds == pytest.approx(0.2)


def test_of_an_adopted_job_is_known_what_was_written_down() -> None:
    state = _ran(FakeSource({0: [GIB, 9 * GIB]}), 0).state()
    assert state == {"baseline": {"0": GIB}, "peak": {"0": 9 * GIB}}
    meter = JobMeter(FakeSource({0: [5 * GIB, GIB]}), [0], state)
    meter.read(0)
    (measured,) = _settle(meter)
    assert (measured.baseline_bytes, measured.before_bytes) == (GIB, 5 * GIB)
    assert (measured.peak_bytes, measured.after_bytes, measured.released) == (9 * GIB, GIB, True)


def test_what_was_read_before_an_end_that_another_server_began_is_kept() -> None:
    state = _ran(FakeSource({0: [GIB, 9 * GIB]}), 0).state(ending=True)
    (measured,) = _settle(JobMeter(FakeSource({0: [GIB]}), [0], state))
    assert (measured.before_bytes, measured.after_bytes) == (9 * GIB, GIB)


def test_of_a_job_that_ended_between_two_servers_the_last_reading_is_not_made_up() -> None:
    state = _ran(FakeSource({0: [GIB, 9 * GIB]}), 0).state()
    (measured,) = _settle(JobMeter(FakeSource({0: [GIB]}), [0], state))
    assert measured.before_bytes is None


def test_an_adopted_job_of_which_nothing_is_known_has_no_verdict_on_what_it_gave_back() -> None:
    meter = JobMeter(FakeSource({0: [9 * GIB, GIB]}), [0], {})
    meter.read(0)
    (measured,) = _settle(meter)
    assert (measured.baseline_bytes, measured.before_bytes) == (None, 9 * GIB)
    assert measured.after_bytes == GIB
    assert measured.released is None
    held = JobMeter(FakeSource({0: [9 * GIB]}, {0: [[OURS]]}), [0], {})
    assert _settle(held)[0].released is False, "unless its own processes still hold some"


# Without a GPU


def test_without_a_gpu_the_memory_is_that_of_the_jobs_processes() -> None:
    meter = JobMeter(HostSource(), [])
    for used in (1000, 5000, 3000):
        meter.read(used)
    meter.read(0)  # its processes are gone: that is no reading of the job
    assert (meter.used_bytes, meter.peak_bytes) == (3000, 5000)
    (measured,) = _settle(meter)
    assert measured == Measurement("host", "host", 0, 3000, 5000, 0, 0, True, ())


def test_host_memory_of_survivors_is_not_released() -> None:
    meter = JobMeter(HostSource(), [])
    meter.read(3000)
    (measured,) = _settle(meter, host_left=2000)
    assert (measured.after_bytes, measured.released) == (2000, False)


def test_a_job_that_was_never_read_has_empty_figures() -> None:
    meter = JobMeter(HostSource(), [])
    assert (meter.used_bytes, meter.peak_bytes) == (None, None)
    assert _settle(meter)[0].before_bytes is None


# NVML


class NVMLError(Exception):
    pass


class FakeNvml(ModuleType):
    """As much of pynvml as is used."""

    NVMLError = NVMLError

    def __init__(self, count: int = 2, *, as_bytes: bool = False) -> None:
        super().__init__("pynvml")
        self.count = count
        self.lost = False
        self.as_bytes = as_bytes
        self.processes = {"Compute": [(11, 3 * GIB)], "Graphics": [(12, None)]}

    def _text(self, text: str) -> str | bytes:
        return text.encode() if self.as_bytes else text

    def nvmlInit(self) -> None:
        pass

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str | bytes:
        return self._text(f"GPU-{handle}{handle}{handle}-abc")

    def nvmlDeviceGetName(self, handle: int) -> str | bytes:
        return self._text(f"NVIDIA H{handle}00")

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        if self.lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(total=80 * GIB, used=(handle + 1) * GIB)

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        if self.lost:
            raise NVMLError("GPU is lost")
        return SimpleNamespace(gpu=90 + handle, memory=10)

    def _running(self, kind: str) -> list[Any]:
        if self.lost:
            raise NVMLError("GPU is lost")
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in self.processes[kind]]

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[Any]:
        return self._running("Compute")

    def nvmlDeviceGetGraphicsRunningProcesses(self, handle: int) -> list[Any]:
        return self._running("Graphics")


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is imported late: torch, or nothing."""
    names: list[str] = []
    real = gpu.importlib.import_module
    monkeypatch.setattr(
        gpu.importlib, "import_module", lambda name: (names.append(name), real(name))[1]
    )
    return names


@pytest.mark.parametrize("as_bytes", [False, True])
def test_nvml_is_read(as_bytes: bool) -> None:
    source = NvmlSource(FakeNvml(as_bytes=as_bytes))
    assert source.devices() == [
        Device(0, "NVIDIA H000", 80 * GIB),
        Device(1, "NVIDIA H100", 80 * GIB),
    ]
    assert source.used_bytes(1) == 2 * GIB
    assert [(h.pid, h.bytes) for h in source.holders(0)] == [(11, 3 * GIB), (12, None)]
    assert [source.load_percent(index) for index in (0, 1)] == [90, 91]
    assert source.used_bytes(7) is None
    assert source.load_percent(7) is None
    assert source.holders(7) == []


def test_a_device_that_is_lost_while_the_server_runs_is_no_error() -> None:
    nvml = FakeNvml()
    source = NvmlSource(nvml)
    nvml.lost = True
    assert source.used_bytes(0) is None
    assert source.load_percent(0) is None
    assert source.holders(0) == []
    assert len(source.devices()) == 2, "it is still there, and unreadable"


@pytest.mark.parametrize(
    ("setting", "visible"),
    [
        (None, [0, 1, 2]),
        ("0,2", [0, 2]),
        (" 1 ", [1]),
        ("GPU-111", [1]),
        ("GPU-222-abc,0", [0, 2]),
        ("", []),
        ("-1", []),
        ("GPU-9", []),
        ("12", []),
        ("0,-1,2", [0]),
        ("nonsense", []),
    ],
)
def test_only_those_devices_are_used_that_the_server_may_see(
    monkeypatch: pytest.MonkeyPatch, setting: str | None, visible: list[int]
) -> None:
    if setting is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    assert [d.index for d in NvmlSource(FakeNvml(3)).devices()] == visible


# Finding a source


def test_nvml_goes_first(monkeypatch: pytest.MonkeyPatch, imported: list[str]) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    source = find_source()
    assert (source.name, len(source.devices())) == ("nvml", 2)
    assert imported == []


def test_devices_that_are_hidden_from_the_server_are_none(
    monkeypatch: pytest.MonkeyPatch, imported: list[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpu, "device_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setitem(sys.modules, "torch", FakeTorch())
    assert find_source().name == "host"
    assert imported == []


@pytest.mark.parametrize("broken", [None, ModuleType("pynvml")])
def test_without_nvml_and_without_a_device_there_is_the_host(
    monkeypatch: pytest.MonkeyPatch, imported: list[str], broken: ModuleType | None
) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", broken)
    monkeypatch.setattr(gpu, "device_nodes", list)
    assert find_source().name == "host"
    assert imported == []


def test_without_nvml_torch_reads_a_device_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpu, "device_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setitem(sys.modules, "torch", FakeTorch())
    source = find_source()
    assert source.name == "torch"
    assert source.devices() == [Device(0, "Fake 0", 80 * GIB)]
    assert source.used_bytes(0) == 10 * GIB
    assert source.used_bytes(1) is None
    assert source.holders(0) == []


@pytest.mark.parametrize("what", ["none", "broken", "blind"])
def test_a_torch_that_cannot_read_it_either_leaves_the_host(
    monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    torch: Any = {"none": None, "broken": BrokenTorch(), "blind": FakeTorch(available=False)}[what]
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpu, "device_nodes", lambda: ["/dev/nvidia0"])
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert find_source().name == "host"


def test_a_source_is_found_and_the_cache_emptied_without_importing_torch() -> None:
    code = """
import sys
from backend.gpu import device_nodes, empty_cache, find_source
source = find_source()
done = empty_cache(import_torch=False)
print(source.name if not device_nodes() else "host", done.freed_bytes, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "host None False\n"


# Emptying the cache


class FakeTorch(ModuleType):
    """As much of torch.cuda as is used; the server's own allocator holds 5 GiB."""

    def __init__(self, *, available: bool = True, initialized: bool = True) -> None:
        super().__init__("torch")
        self.cuda = self
        self._available = available
        self._initialized = initialized
        self.reserved = 5 * GIB

    def is_available(self) -> bool:
        return self._available

    def is_initialized(self) -> bool:
        return self._initialized

    def device_count(self) -> int:
        return 1

    def get_device_name(self, index: int) -> str:
        return f"Fake {index}"

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if index > 0:
            raise RuntimeError("CUDA error: invalid device ordinal")
        return 70 * GIB, 80 * GIB

    def memory_reserved(self, index: int) -> int:
        assert self._initialized, "this would open a CUDA context"
        return self.reserved

    def empty_cache(self) -> None:
        assert self._initialized, "this would open a CUDA context"
        self.reserved = GIB


class BrokenTorch(ModuleType):
    """A torch whose every use fails, as with a driver that does not fit."""

    def __init__(self) -> None:
        super().__init__("torch")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise RuntimeError("CUDA driver initialization failed")


def test_what_emptying_the_cache_gave_back_is_its_own_figure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = FakeTorch()
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert empty_cache(import_torch=False).freed_bytes == 4 * GIB
    assert torch.reserved == GIB
    assert empty_cache(import_torch=True).freed_bytes == 0


def test_a_server_without_a_cuda_context_gets_none_by_emptying(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "torch", FakeTorch(initialized=False))
    done = empty_cache(import_torch=True)
    assert done.freed_bytes == 0
    assert "never opened a CUDA context" in done.note


def test_without_torch_there_is_nothing_to_empty(
    monkeypatch: pytest.MonkeyPatch, imported: list[str]
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    done = empty_cache(import_torch=False)
    assert imported == []
    assert done.freed_bytes is None
    assert "not loaded torch" in done.note


@pytest.mark.parametrize("import_torch", [False, True])
@pytest.mark.parametrize("torch", [None, BrokenTorch(), FakeTorch(available=False)], ids=str)
def test_emptying_is_safe_with_a_torch_that_is_not_there_broken_or_blind(
    monkeypatch: pytest.MonkeyPatch, torch: ModuleType | None, import_torch: bool
) -> None:
    monkeypatch.setitem(sys.modules, "torch", torch)
    done = empty_cache(import_torch)
    assert done.freed_bytes is None
    assert done.note.strip()


def test_garbage_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)

    class Node:
        collected = False

        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            Node.collected = True

    Node()
    empty_cache(import_torch=False)
    assert Node.collected
