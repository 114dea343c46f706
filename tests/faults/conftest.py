"""Fixtures of the fault tests."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

from backend.models import Cleanup, Event, Failure, Job, JobStatus
from backend.paths import DataPaths, RunPaths
from backend.processes import find_all_marked, send_kill
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from tests.faults.server import ServerProcess
from tests.server import queue_job
from tests.waiting import cancel_and_close, wait_until

Serve = Callable[..., Service]
Start = Callable[..., ServerProcess]


@dataclass(frozen=True)
class Folder:
    """The data folder of a test, looked at past every server."""

    settings: Settings

    @property
    def paths(self) -> DataPaths:
        return DataPaths(self.settings.data)

    def run(self, job_id: int) -> RunPaths:
        return self.paths.run(job_id)

    @property
    def nonce(self) -> str:
        return self.paths.read_nonce() or ""

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        self.settings.data.mkdir(exist_ok=True)
        store = Store(self.paths.database)
        try:
            yield store
        finally:
            store.close()

    def queue(self, source: str, *args: object, timeout_seconds: float = 600) -> int:
        """Queue a script while no server runs; return the job's id."""
        with self.store() as store:
            number = store.find().total + 1
            script = self.settings.data / f"script{number}.py"
            script.write_text(dedent(source), encoding="utf-8")
            return queue_job(
                store,
                "script",
                "script",
                timeout_seconds=timeout_seconds,
                script=script,
                args=list(map(str, args)),
                python=sys.executable,
            )

    def job(self, job_id: int) -> Job:
        with self.store() as store:
            job = store.get(job_id)
        assert job is not None
        return job

    def failure(self, job_id: int) -> Failure | None:
        with self.store() as store:
            return store.failure(job_id)

    def timeline(self, job_id: int) -> Sequence[Event]:
        with self.store() as store:
            return store.timeline(job_id)

    def cleanups(self, job_id: int) -> Sequence[Cleanup]:
        with self.store() as store:
            return store.cleanups(job_id, 10)

    def states(self, job_id: int) -> list[JobStatus]:
        return [event.to_status for event in self.timeline(job_id) if event.to_status]

    def wait_for_line(self, job_id: int, text: str) -> None:
        """Wait until the job has printed this."""
        log = self.run(job_id).log
        wait_until(
            lambda: log.exists() and text in log.read_text(errors="replace"),
            30,
            lambda: f"Job {job_id} did not print {text!r}: {log.exists() and log.read_text()}",
        )

    def processes(self, job_id: int) -> list[int]:
        """The pids of everything that carries the job's mark."""
        return [row.id.pid for row in find_all_marked(self.nonce).get(job_id, [])]


@pytest.fixture
def folder(settings: Settings) -> Iterator[Folder]:
    """A data folder. Whatever lives of its jobs at the end is killed."""
    folder = Folder(settings)
    yield folder
    if folder.paths.nonce.exists():
        for rows in find_all_marked(folder.nonce).values():
            for row in rows:
                send_kill(row.id)


@pytest.fixture
def start(folder: Folder) -> Iterator[Start]:
    """Starts a server in a process of its own, which a test may kill."""
    with contextlib.ExitStack() as servers:

        def start(**changes: object) -> ServerProcess:
            settings = folder.settings.model_copy(update=changes)
            return servers.enter_context(ServerProcess(settings))

        yield start


@pytest.fixture
def serve(folder: Folder) -> Iterator[Serve]:
    """Starts a service in this process; at the end its jobs are cancelled and it is closed."""
    services: list[Service] = []

    def serve(**changes: object) -> Service:
        service = Service(folder.settings.model_copy(update=changes))
        service.start()
        services.append(service)
        return service

    yield serve
    for service in services:
        if not service._pool._closing.is_set():
            cancel_and_close(service)


def tiny_disk(path: Path, options: str) -> Iterator[Path]:
    """A file system of its own at `path`; the test is skipped where none can be mounted."""
    import subprocess

    path.mkdir(exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("No file system can be mounted here.")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)
