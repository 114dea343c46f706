"""A real server, asked as a script asks it."""

from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx
import pytest

from tests.server import Server

ENDLESS = "import time\nprint('started', flush=True)\ntime.sleep(600)\n"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests of this folder; each test looks at its own jobs."""
    data = tmp_path_factory.mktemp("api") / "data"
    with Server(data, workers=4, poll_seconds=0.05, cancel_grace_seconds=2) as server:
        yield server


def open_client(server: Server, **options: Any) -> httpx.Client:
    """A client of this server. It looks for no certificates: to load them takes longer than most
    tests, and none is asked for here."""
    return httpx.Client(base_url=server.url, timeout=30, verify=False, **options)


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    with open_client(server) as client:
        yield client


@pytest.fixture
def started(client: httpx.Client, tmp_path: Path) -> Iterator[Callable[..., int]]:
    """Submits a script by the API and returns the job's number; cancels it after the test."""
    ids: list[int] = []

    def submit(source: str = ENDLESS, **fields: object) -> int:
        script = tmp_path / f"script{len(ids)}.py"
        script.write_text(dedent(source), encoding="utf-8")
        answer = client.post("/api/training/execute", json={"script": str(script), **fields})
        assert answer.status_code == 201, answer.text
        assert answer.json()["status"] == "queued"
        ids.append(answer.json()["job_id"])
        return ids[-1]

    yield submit
    for job_id in ids:
        client.post(f"/api/training/cancel/{job_id}", headers={"X-Requested-With": "test"})
