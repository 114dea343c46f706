"""A real server for tests and benchmarks: the README's command, on a data folder of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

import httpx

from backend.models import Job
from backend.recipes import RECIPES, command_for
from backend.store import Store
from tests.conftest import PROJECT
from tests.waiting import wait_until

STOP_SECONDS = 20
PATIENCE_SECONDS = 60


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def queue_job(
    store: Store, name: str, recipe: str, timeout_seconds: float = 600, **params: object
) -> int:
    """Put a job into the database of a server that is not running; return its id."""
    valid = RECIPES[recipe].params.model_validate(params)
    return store.add(
        Job(
            name=name,
            recipe=recipe,
            params=valid.model_dump(mode="json"),
            command=asdict(command_for(recipe, valid)),
            timeout_seconds=timeout_seconds,
            gpus=0,
        )
    )


class Server:
    """`python -m streamlit run app.py`, started and stopped as a context."""

    def __init__(self, data: Path, project: Path = PROJECT, **settings: object) -> None:
        """`settings` are environment variables without their prefix, in small letters."""
        self.data = data
        self.project = project
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.ready_seconds = 0.0
        self.settings = settings
        self.program: Sequence[str] = (
            "streamlit",
            "run",
            "app.py",
            "--server.port",
            str(self.port),
        )
        self.options: Sequence[str] = ()
        self.log = data.with_name(data.name + "-server.log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def output(self) -> str:
        """What the server printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def __enter__(self) -> "Server":
        begin = time.monotonic()
        self._process = self.launch()
        wait_until(self._answers, 60, lambda: f"The server did not come up:\n{self.output}")
        self.ready_seconds = time.monotonic() - begin
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def launch(self) -> "subprocess.Popen[bytes]":
        """Start the process and do not wait for it."""
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", *self.program, *self.options],
                cwd=self.project,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def submit(self, **body: object) -> int:
        """Queue a job over HTTP, as it is described there; return its number."""
        answer = httpx.post(f"{self.url}/api/training/execute", json=body, timeout=PATIENCE_SECONDS)
        return int(answer.raise_for_status().json()["job_id"])

    def status(self, job_id: int) -> str:
        """A job's state, as the API tells it."""
        address = f"{self.url}/api/training/status/{job_id}"
        return str(httpx.get(address, timeout=PATIENCE_SECONDS).json()["status"])

    def kill(self, job_id: int) -> None:
        """Cancel a job over HTTP, without the time to save."""
        address = f"{self.url}/api/training/cancel/{job_id}?now=true"
        httpx.post(address, headers={"X-Requested-With": "tests"}, timeout=PATIENCE_SECONDS)

    def kill_all(self) -> None:
        """End what a test may have left, and wait until it is gone."""
        live = {"status": ["queued", "paused", "running"]}

        def left() -> list[int]:
            answer = httpx.get(
                f"{self.url}/api/training/jobs", params=live, timeout=PATIENCE_SECONDS
            )
            return [job["job_id"] for job in answer.json()["jobs"]]

        for job_id in left():
            self.kill(job_id)
        wait_until(lambda: not left(), PATIENCE_SECONDS, lambda: f"These jobs go on: {left()}")

    def stop(self, number: int = signal.SIGINT) -> None:
        """End the server as Ctrl-C does, or with another signal."""
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            spy = [Path(sys.executable).with_name("py-spy"), "dump", "--pid", str(process.pid)]
            stacks = subprocess.run(spy, capture_output=True, text=True, check=False).stdout
            process.kill()
            process.wait()
            raise AssertionError(f"The server did not stop:\n{self.output}\n{stacks}") from None

    def _environment(self) -> Mapping[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")}
        own = {f"SIGNALBOX_{k.upper()}": str(v) for k, v in self.settings.items()}
        return {**inherited, "SIGNALBOX_DATA": str(self.data), **own}

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"The server ended:\n{self.output}"
        try:
            with urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False
