"""The queue, the leases and the recovery, with real scripts on devices of our own making."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import psutil
import pytest

from backend import processes
from backend import service as service_module
from backend import supervisor as supervisor_module
from backend.gpu import Device, Holder, SourceName
from backend.models import FailureKind, Job, JobStatus, RequestKind
from backend.paths import DataPaths
from backend.pool import Leases
from backend.processes import Ended, Mark, ProcessId, ProcessRow, find_marked
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from backend.submission import Submission
from backend.supervisor import Supervisor
from tests.waiting import cancel_and_close, wait_until, wait_until_ended

Script = Callable[..., Submission]
Serve = Callable[[Settings], Service]

WAITS_FOR_A_FILE = """
    import os, sys, time
    print("device", repr(os.environ["CUDA_VISIBLE_DEVICES"]), flush=True)
    while not os.path.exists(sys.argv[1]):
        time.sleep(0.02)
"""


class TwoDevices:
    """A machine with two GPUs that nobody else uses."""

    name: SourceName = "nvml"

    def devices(self) -> Sequence[Device]:
        return [Device(index, f"GPU {index}", 2**30) for index in range(2)]

    def used_bytes(self, index: int) -> int | None:
        return 1000

    def load_percent(self, index: int) -> float | None:
        return 50.0

    def holders(self, index: int) -> Sequence[Holder]:
        return []


@pytest.fixture
def two_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service_module, "find_source", TwoDevices)
    monkeypatch.setitem(sys.modules, "torch", ModuleType("torch"))  # the server loads it for GPUs


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Scripts wait for this file; it is there at the end, so that none is left."""
    path = tmp_path / "gate"
    yield path
    path.touch()


@pytest.fixture
def waiting(script: Script, gate: Path) -> Callable[..., Submission]:
    """A script that waits until the gate, or another file, is there."""

    def waiting(file: Path = gate, **fields: object) -> Submission:
        return script(WAITS_FOR_A_FILE, str(file), **fields)

    return waiting


Waiting = Callable[..., Submission]


@pytest.fixture
def serve(gate: Path, reaped: list[int]) -> Iterator[Serve]:
    """Starts services. What a failed test leaves open is closed, and its jobs are ended."""
    services: list[Service] = []

    def serve(settings: Settings) -> Service:
        services.append(Service(settings))
        services[-1].start()
        return services[-1]

    yield serve
    for service in services:
        if not service._pool._closing.is_set():
            cancel_and_close(service)


def _started(service: Service, submission: Submission) -> int:
    job_id = service.submit(submission)
    wait_until(lambda: "device" in service.log_tail(job_id), 30, "It did not start.")
    # A script may write its first line before its supervisor has noted whom it launched.
    wait_until(lambda: service.job(job_id).pid, 30, "Its process was not written down.")
    return job_id


def _pid(service: Service, job_id: int) -> int:
    pid = service.job(job_id).pid
    assert pid is not None
    return pid


def _statuses(service: Service, *job_ids: int) -> list[JobStatus]:
    return [service.job(job_id).status for job_id in job_ids]


# Leases


def test_a_device_is_leased_to_one_job_at_a_time() -> None:
    leases = Leases([0, 1, 3])
    assert leases.take(1, 2) == (0, 1)
    assert leases.take(2, 2) is None
    assert leases.take(2, 1) == (3,)
    assert leases.take(3, 0) == ()
    assert leases.holders() == {0: 1, 1: 1, 3: 2}
    leases.give_back(1)
    assert leases.holders() == {0: None, 1: None, 3: 2}
    assert leases.take(4, 1) == (0,)


def test_an_adopted_job_keeps_the_devices_that_still_exist() -> None:
    leases = Leases([0, 1])
    assert leases.take_these(7, [1, 5]) == (1,)
    assert leases.take(8, 2) is None
    assert leases.take(8, 1) == (0,)


# The queue


def test_each_job_has_a_device_to_itself(
    two_devices: None, settings: Settings, serve: Serve, waiting: Waiting, gate: Path
) -> None:
    settings = settings.model_copy(update={"workers": None})
    service = serve(settings)
    first, second = _started(service, waiting()), _started(service, waiting())
    third, none = service.submit(waiting()), service.submit(waiting(gpus=0))
    assert {service.log_tail(first), service.log_tail(second)} == {"device '0'", "device '1'"}
    assert [d.leased_by for d in service.machine().devices] == [first, second]
    assert _statuses(service, third, none) == [JobStatus.QUEUED] * 2, "as many as there are GPUs"
    service.cancel(second)
    wait_until(lambda: service.job(third).devices == [1])
    gate.touch()
    wait_until_ended(service, first, third, none)
    assert service.log_tail(third) == "device '1'"
    assert service.log_tail(none) == "device ''", "a job without a GPU sees none"
    wait_until(lambda: {d.leased_by for d in service.machine().devices} == {None})
    assert [c.device for c in service.cleanups(third)] == ["cuda:1"]
    assert service.close() == 0


def test_a_job_that_waits_for_devices_is_not_overtaken(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    tmp_path: Path,
) -> None:
    service = serve(settings.model_copy(update={"workers": 3}))
    first = _started(service, waiting(tmp_path / "first"))
    wide, behind = service.submit(waiting(gpus=2)), service.submit(waiting(gpus=1))
    assert _statuses(service, wide, behind) == [JobStatus.QUEUED] * 2
    (tmp_path / "first").touch()
    wait_until(lambda: service.job(wide).devices == [0, 1])
    assert _statuses(service, first, behind) == [JobStatus.COMPLETED, JobStatus.QUEUED]
    gate.touch()
    wait_until_ended(service, wide, behind)
    assert service.close() == 0


def test_a_job_that_asks_for_more_than_there_is_does_not_block_the_queue(
    two_devices: None, settings: Settings, serve: Serve, script: Script
) -> None:
    """As after a restart on a machine that has lost a GPU."""
    store = Store(_made(settings).database)
    command = {"argv": ["x.py"], "folder": "/"}
    wide = store.add(Job(name="wide", recipe="script", timeout_seconds=9, gpus=3, command=command))
    store.close()
    service = serve(settings)
    behind = service.submit(script("print('hello')"))
    wait_until_ended(service, wide, behind)
    assert service.job(wide).failure_kind is FailureKind.COULD_NOT_START
    assert service.job(behind).status is JobStatus.COMPLETED
    assert service.close() == 0


def _made(settings: Settings) -> DataPaths:
    settings.data.mkdir()
    return DataPaths(settings.data)


def test_the_queue_survives_the_server(
    idle_service: Service, settings: Settings, serve: Serve, script: Script
) -> None:
    ids = [idle_service.submit(script("print('hello')")) for _ in range(3)]
    assert [idle_service.job(i).queue_position for i in ids] == [1, 2, 3]
    idle_service.close()
    service = serve(settings)
    wait_until_ended(service, *ids)
    assert service.close() == 0
    idle_service.start(run_jobs=False)
    assert _statuses(idle_service, *ids) == [JobStatus.COMPLETED] * 3


def test_a_cancel_between_a_claim_and_its_supervisor_is_not_lost(
    service: Service, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = service._pool
    supervise = pool._supervise
    cancels: list[threading.Thread] = []

    def cancelled_first(supervisor: Supervisor) -> None:
        job_id = supervisor.job_id
        cancels.append(threading.Thread(target=service.cancel, args=(job_id,)))
        cancels[0].start()
        wait_until(lambda: service.job(job_id).requested is RequestKind.CANCELLING)
        supervise(supervisor)

    monkeypatch.setattr(pool, "_supervise", cancelled_first)
    job_id = service.submit(waiting())
    wait_until_ended(service, job_id)
    cancels[0].join(30)
    assert service.job(job_id).status is JobStatus.CANCELLED


# What goes wrong


def test_a_torch_that_cannot_be_loaded_stops_no_server(
    two_devices: None, settings: Settings, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    service = serve(settings)
    wait_until(lambda: "torch" not in {thread.name for thread in threading.enumerate()})
    assert service.empty_cache().cache_freed_bytes is None
    assert service.close() == 0


def test_a_job_whose_supervisor_failed_is_taken_up_again_with_its_device(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    service = serve(settings)
    failing = threading.Event()
    tick = Supervisor.tick

    def fails_once(supervisor: Supervisor, now: float) -> bool:
        if supervisor.job_id == 1 and failing.is_set():
            failing.clear()
            raise RuntimeError("a bug")
        return tick(supervisor, now)

    monkeypatch.setattr(Supervisor, "tick", fails_once)
    job_id = _started(service, waiting())
    failing.set()
    wait_until(lambda: service._pool.supervisor(job_id) is None)
    assert service.job(job_id).status is JobStatus.RUNNING
    assert service.machine().devices[0].leased_by == job_id, "it runs on, and on its device"
    other = _started(service, waiting())
    assert service.job(other).devices == [1]
    service._pool.tick()
    assert service._pool.supervisor(job_id) is not None
    gate.touch()
    wait_until_ended(service, job_id, other)
    assert _statuses(service, job_id, other) == [JobStatus.COMPLETED] * 2
    assert service.close() == 0


def test_what_survives_even_sigkill_keeps_its_device_until_it_is_gone(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    survivor = ProcessRow(ProcessId(4_000_000, "boot:1"), 1, "D", 1000)
    left: list[ProcessRow] = [survivor]
    monkeypatch.setattr(supervisor_module, "end_tree", lambda *_, **__: Ended((survivor,), 1))
    monkeypatch.setattr(
        supervisor_module, "find_marked", lambda mark, _: left if mark.job_id == 1 else []
    )
    service = serve(settings)
    first = _started(service, waiting())
    gate.touch()
    wait_until_ended(service, first)
    wait_until(lambda: service._pool.supervisor(first) is None)
    second = _started(service, waiting())
    assert service.job(second).devices == [1], "other jobs go on"
    wait_until_ended(service, second)
    assert service.machine().devices[0].leased_by == first
    service._pool.tick()
    assert service.machine().devices[0].leased_by == first
    left.clear()
    service._pool.tick()
    assert service.machine().devices[0].leased_by is None
    assert service.close() == 0


def test_a_device_comes_back_though_the_supervisor_failed_after_the_verdict(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write = Supervisor._write

    def fails_after(supervisor: Supervisor, *args: Any) -> None:
        write(supervisor, *args)
        raise RuntimeError("a bug")

    monkeypatch.setattr(Supervisor, "_write", fails_after)
    service = serve(settings)
    job_id = _started(service, waiting())
    gate.touch()
    wait_until_ended(service, job_id)
    wait_until(lambda: service._pool.supervisor(job_id) is None)
    service._pool.tick()
    assert {d.leased_by for d in service.machine().devices} == {None}
    assert service.close() == 0


def test_a_survivor_keeps_its_device_across_servers(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = serve(settings)
    job_id = _started(first, waiting())
    gate.touch()
    wait_until_ended(first, job_id)
    assert first.close() == 0
    nonce = DataPaths(settings.data).read_nonce() or ""
    environment = {**os.environ, **Mark(job_id, nonce).variables()}
    with subprocess.Popen(["/bin/sleep", "600"], env=environment) as survivor:
        send = processes._send

        def refuse(target: ProcessId, number: int, wake: bool) -> bool:
            if target.pid == survivor.pid:
                raise PermissionError(1, "Operation not permitted")
            return send(target, number, wake)

        with monkeypatch.context() as patched:
            patched.setattr(processes, "_send", refuse)
            second = serve(settings)
            assert second.machine().devices[0].leased_by == job_id
            other = _started(second, waiting())
            assert second.job(other).devices == [1]
            second._pool.tick()
            assert second.machine().devices[0].leased_by == job_id
        second._pool.tick()
        survivor.wait(30)
        second._pool.tick()
        assert second.machine().devices[0].leased_by is None
    wait_until_ended(second, other)
    assert second.close() == 0


def test_a_device_whose_memory_does_not_come_back_waits_for_it(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used = {0: 1000, 1: 1000}
    monkeypatch.setattr(TwoDevices, "used_bytes", lambda _, index: used[index])
    service = serve(settings)
    first = _started(service, waiting())
    used[0] = 2**30  # of a driver that does not give it back, with nobody who holds it
    gate.touch()
    wait_until_ended(service, first)
    (cleanup,) = service.cleanups(first)
    assert cleanup.released is False
    wait_until(lambda: service._pool.supervisor(first) is None)
    service._pool.tick()
    assert service.machine().devices[0].leased_by == first
    second = service.submit(waiting())
    wait_until_ended(service, second)
    assert service.job(second).devices == [1], "Other jobs go on."
    used[0] = 1000
    service._pool.tick()
    assert service.machine().devices[0].leased_by is None


# Across servers


@pytest.fixture
def reaped() -> Iterator[list[int]]:
    """Pids of children whose server was closed; nobody else would wait for them."""
    pids: list[int] = []
    yield pids
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, 0)


def test_more_jobs_than_workers_are_adopted(
    settings: Settings, serve: Serve, waiting: Waiting, gate: Path, reaped: list[int]
) -> None:
    first = serve(settings.model_copy(update={"workers": 3}))
    ids = [_started(first, waiting()) for _ in range(3)]
    reaped += [_pid(first, i) for i in ids]
    queued = first.submit(waiting())
    assert first.close() == 3
    second = serve(settings.model_copy(update={"workers": 1}))
    assert all(second._pool.supervisor(i) for i in ids)
    assert second.job(queued).status is JobStatus.QUEUED
    assert "Found running, and supervised again" in [e.message for e in second.timeline(ids[0])]
    second.cancel(ids[2])
    wait_until_ended(second, ids[2])
    assert _statuses(second, *ids) == [
        *(JobStatus.RUNNING, JobStatus.RUNNING),
        JobStatus.CANCELLED,
    ], "each has a thread of its own"
    gate.touch()
    wait_until_ended(second, *ids, queued)
    assert second.job(queued).status is JobStatus.COMPLETED
    assert second.close() == 0


def test_an_adopted_job_keeps_its_device(
    two_devices: None,
    settings: Settings,
    serve: Serve,
    waiting: Waiting,
    gate: Path,
    reaped: list[int],
) -> None:
    first = serve(settings)
    ids = [_started(first, waiting()) for _ in range(2)]
    reaped += [_pid(first, i) for i in ids]
    assert first.close() == 2
    second = serve(settings)
    assert [d.leased_by for d in second.machine().devices] == ids
    gate.touch()
    wait_until_ended(second, *ids)
    assert second.close() == 0


@pytest.mark.parametrize(
    ("then", "status", "error"),
    [
        ("", JobStatus.COMPLETED, None),
        ("raise ValueError('late')", JobStatus.FAILED, "ValueError: late"),
        ("os.kill(os.getpid(), 11)", JobStatus.FAILED, "The process was killed by SIGSEGV."),
    ],
)
def test_a_job_that_ended_without_a_server_gets_the_verdict_that_it_left(
    settings: Settings,
    serve: Serve,
    script: Script,
    gate: Path,
    reaped: list[int],
    then: str,
    status: JobStatus,
    error: str | None,
) -> None:
    source = (
        "import os, sys, time\n"
        "print('device', flush=True)\n"
        "while not os.path.exists(sys.argv[1]): time.sleep(0.02)\n"
        f"{then}\n"
    )
    first = serve(settings)
    job_id = _started(first, script(source, str(gate)))
    reaped.append(_pid(first, job_id))
    assert first.close() == 1
    gate.touch()
    run = DataPaths(settings.data).run(job_id)
    wait_until(run.exit.exists)
    wait_until(lambda: psutil.Process(reaped[0]).status() == psutil.STATUS_ZOMBIE)
    second = serve(settings)
    wait_until_ended(second, job_id)
    job = second.job(job_id)
    assert (job.status, job.error) == (status, error)
    said = json.loads(run.exit.read_text())["finished_at"]
    assert job.finished_at == datetime.fromisoformat(said), "it ended then, not when it was found"
    assert second.close() == 0


def test_a_job_whose_pid_was_not_yet_written_down_is_found_by_its_mark(
    settings: Settings, serve: Serve, waiting: Waiting, gate: Path, reaped: list[int]
) -> None:
    """The server died between the launch and writing down whom it had launched."""
    first = serve(settings)
    job_id = _started(first, waiting())
    pid = first.job(job_id).pid
    assert pid is not None
    reaped.append(pid)
    first.close()
    _forget_process(settings, job_id)
    second = serve(settings)
    assert second.job(job_id).pid == pid
    second.cancel(job_id)
    wait_until_ended(second, job_id)
    assert second.job(job_id).status is JobStatus.CANCELLED
    assert find_marked(Mark(job_id, DataPaths(settings.data).read_nonce() or "")) == []
    assert second.close() == 0


def _forget_process(settings: Settings, job_id: int) -> None:
    store = Store(DataPaths(settings.data).database)
    store.update_running(job_id, pid=None, process_start=None)
    store.close()


def test_a_strangers_process_with_the_pid_of_a_job_is_not_adopted(
    settings: Settings, serve: Serve, idle_service: Service, script: Script
) -> None:
    """The machine was started anew meanwhile, and pids begin from small numbers."""
    job_id = idle_service.submit(script("print('hello')"))
    store = Store(DataPaths(settings.data).database)
    values: dict[str, Any] = {"pid": os.getppid(), "process_start": "another boot:1"}
    store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", **values)
    store.close()
    idle_service.close()
    service = serve(settings)
    wait_until_ended(service, job_id)
    assert service.job(job_id).failure_kind is FailureKind.LOST
    assert service.close() == 0
    idle_service.start(run_jobs=False)
