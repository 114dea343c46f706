"""What a job uses of the machine: measured, kept, thinned, and read back with no trust in it."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import usage
from backend.processes import ProcessId, ProcessRow, read_table
from backend.service import Service
from backend.submission import Submission
from backend.usage import CpuMeter, UsageLog, UsagePoint, read_usage
from tests.waiting import wait_until

CORES = float(os.cpu_count() or 1)


def row(pid: int, cpu: float, waited: float = 0.0, memory: int = 100) -> ProcessRow:
    return ProcessRow(ProcessId(pid, f"boot:{pid}"), 1, "S", memory, cpu, waited)


def no_gpu() -> tuple[int | None, float | None]:
    return None, None


def look(log: UsageLog, *moments: float, memory: int = 100) -> None:
    """A process that keeps half of a core busy, seen at these moments."""
    for now in moments:
        log.look([row(1, now / 2, memory=memory)], now, no_gpu)


def test_cores_are_the_cpu_time_of_all_processes_by_the_time_that_passed() -> None:
    meter = CpuMeter()
    assert meter.read([row(1, 10), row(2, 20)], now=0) is None, "nothing is known of before"
    assert meter.read([row(1, 10.5), row(2, 20.25)], now=1) == min(0.75, CORES)
    assert meter.read([row(1, 10.5), row(2, 20.25)], now=3) == 0


def test_a_process_that_came_and_went_counts_through_the_one_that_waited_for_it() -> None:
    meter = CpuMeter()
    meter.read([row(1, 10)], now=0)
    assert meter.read([row(1, 10, waited=0.5)], now=1) == 0.5


def test_one_that_was_counted_while_it_lived_is_not_counted_again_when_it_was_waited_for() -> None:
    """It is a zombie in between, and a zombie is not among the job's processes."""
    meter = CpuMeter()
    meter.read([row(1, 0), row(2, 1000)], now=0)
    assert meter.read([row(1, 0.25)], now=1) == 0.25
    assert meter.read([row(1, 0.5, waited=1000.25)], now=2) == 0.5, "and the quarter it went on"


def test_no_figure_is_larger_than_the_machine() -> None:
    meter = CpuMeter()
    meter.read([row(1, 0)], now=0)
    assert meter.read([row(1, 0), row(2, 1e6)], now=1) == CORES


def test_the_process_table_knows_cpu_times() -> None:
    spent = sum(os.times()[:2])
    while sum(os.times()[:2]) < spent + 0.05:
        pass
    mine = read_table()[os.getpid()]
    assert mine.cpu_seconds == pytest.approx(sum(os.times()[:2]), abs=0.1)
    assert mine.waited_seconds == pytest.approx(sum(os.times()[2:4]), abs=0.1)


def test_a_point_is_written_every_two_seconds(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    log = UsageLog(path)
    look(log, *range(100, 109))
    assert [(p.cores, p.memory_bytes) for p in read_usage(path)] == [(0.5, 100)] * 4
    log.look([], 110, no_gpu)
    assert len(read_usage(path)) == 4, "a job whose processes are gone has no use"


def test_a_gpu_is_kept_where_there_is_one(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    log = UsageLog(path)
    for now in (0.0, 2.0):
        log.look([row(1, now)], now, lambda: (2**30, 93.0))
    (point,) = read_usage(path)
    assert (point.gpu_memory_bytes, point.gpu_percent) == (2**30, 93.0)


def test_a_long_file_is_thinned_and_keeps_its_peak_and_its_pace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "MAX_POINTS", 8)
    path = tmp_path / "usage.jsonl"
    log = UsageLog(path)
    for now in range(0, 16, 2):
        look(log, now, memory=900 if now == 6 else 100)
    assert len(read_usage(path)) == 7
    look(log, 16)
    thinned = read_usage(path)
    assert [point.memory_bytes for point in thinned] == [100, 900, 100, 100]
    look(log, 18)
    assert read_usage(path) == thinned, "from here on every four seconds"
    look(log, 20)
    assert len(read_usage(path)) == 5
    assert [path.name] == [p.name for p in tmp_path.iterdir()]


def test_another_server_goes_on_in_the_same_file_at_the_same_pace(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b"".join(UsagePoint(n * 8000, 1.0, 5).as_line() for n in range(1, 30)))
    path.write_bytes(path.read_bytes() + b'{"at": 240000, "memo')  # it was killed while it wrote
    log = UsageLog(path)
    look(log, 0, 2)
    assert len(read_usage(path)) == 30, "the torn line spoils only itself"
    look(log, 4, 6, 8)
    assert len(read_usage(path)) == 30
    look(log, 10)
    assert len(read_usage(path)) == 31


def test_a_file_that_cannot_be_written_costs_nothing_but_its_points(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = UsageLog(folder / "usage.jsonl")
    look(log, 0, 2, 4)
    folder.mkdir()
    look(log, 6)
    assert len(read_usage(folder / "usage.jsonl")) == 1


def test_a_link_in_its_place_is_neither_written_nor_read(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(UsagePoint(1, 1.0, 5).as_line())
    before = secret.read_bytes()
    link = tmp_path / "usage.jsonl"
    link.symlink_to(secret)
    look(UsageLog(link), 0, 2)
    assert secret.read_bytes() == before
    assert read_usage(link) == []


@pytest.mark.parametrize(
    "line",
    [
        "[]", "3", '"text"', "{", "\x00\xff", '{"at": 1}', '{"memory_bytes": 1}',
        '{"at": NaN, "memory_bytes": 1}', '{"at": 1e999, "memory_bytes": 1}',
        '{"at": true, "memory_bytes": 1}', '{"at": -1, "memory_bytes": 1}',
        '{"at": 1, "memory_bytes": "1"}', '{"at": 1, "memory_bytes": 1' + "0" * 400 + "}",
        "[" * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_point_is_passed_over(tmp_path: Path, line: str) -> None:
    path = tmp_path / "usage.jsonl"
    good = UsagePoint(5, 1.5, 7).as_line().decode()
    path.write_text(f"{good}{line}\n{good}")
    assert read_usage(path) == [UsagePoint(5, 1.5, 7)] * 2


def test_wrong_figures_of_a_point_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_text(json.dumps({"at": 5, "memory_bytes": 7, "cores": -1, "gpu_percent": 101}))
    assert read_usage(path) == [UsagePoint(5, None, 7)]


def test_only_what_came_since_is_read(tmp_path: Path) -> None:
    path = tmp_path / "usage.jsonl"
    path.write_bytes(b"".join(UsagePoint(at, 1.0, 5).as_line() for at in (10, 20, 30)))
    assert [point.at for point in read_usage(path, since=10)] == [20, 30]
    assert [point.at for point in read_usage(path, since=30)] == []


@pytest.mark.skipif(sys.platform != "linux", reason="the table has no such figures elsewhere")
def test_what_a_real_job_uses_is_measured_while_it_runs(
    service: Service, script: Callable[..., Submission]
) -> None:
    """A child of it works: the whole tree counts."""
    worker = "import time; held = bytearray(100 * 2**20)\nwhile True: pass"
    job_id = service.submit(
        script(f"import subprocess, sys; subprocess.run([sys.executable, '-c', {worker!r}])")
    )
    wait_until(lambda: len(service.usage(job_id)) >= 2, 60)
    point = service.usage(job_id)[-1]
    assert point.cores is not None
    assert 0.05 < point.cores <= CORES
    assert 100 * 2**20 < point.memory_bytes < 2**30
    assert (point.gpu_memory_bytes, point.gpu_percent) == (None, None)
    assert service.usage(job_id, since=point.at - 1)[0].at >= point.at
