"""A job says everywhere what is in its environment, and nobody who asks is told."""

import io
import json
import os
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from backend.models import JobStatus
from backend.paths import DataPaths
from tests.api.conftest import open_client
from tests.server import Server
from tests.waiting import wait_until

Started = Callable[..., int]

PIECE = 12
"""Characters: so much of a value in a row is a leak."""

LONG = "".join(f"<{n:x}k" for n in range(1000, 1047))
"""Some 235 characters: the longest name of a folder has 255."""

QUOTED = "".join(f'"{n:x}"\\' for n in range(5000, 5040))

TALKATIVE = """
import json, os
from pathlib import Path

key, quoted = os.environ["API_KEY"], os.environ["QUOTED"]
folder = Path(os.environ["SIGNALBOX_RUN_DIR"])
values = {"step": 1, "loss": 1.0, key: 5.0, "x" * 150 + key: 6.0, quoted: 7.0, "timestamp": key}
with (folder / "metrics.jsonl").open("w") as file:
    for step in range(1, 4):
        file.write(json.dumps({**values, "step": step}) + chr(10))
progress = {**values, "phase": "x" * 120 + key, "status": key, "updated_at": key}
(folder / "progress.json").write_text(json.dumps(progress))
saved = folder / "checkpoints" / key
saved.mkdir()
(saved / "weights.txt").write_text("weights")
(saved / "COMPLETE").touch()
(folder / (key + ".txt")).write_text("a file")
print("key:", key, json.dumps({"key": quoted}), repr(quoted))
print("_" * 1989 + key)
print("_" * 1989 + quoted, flush=True)
"""


def _pieces(value: str) -> set[str]:
    texts = {value, json.dumps(value)[1:-1]}
    return {text[n : n + PIECE] for text in texts for n in range(len(text) - PIECE + 1)}


LEAKS = _pieces(LONG) | _pieces(QUOTED)


def _leaked(text: str) -> set[str]:
    decoded = text.replace("\\\\", "\\").replace('\\"', '"')
    return {piece for piece in LEAKS if piece in text or piece in decoded}


def _unzipped(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def _assert_silent(client: httpx.Client, server: Server, job_id: int) -> None:
    """No page of the API tells a piece of a value, nor does a log that can be downloaded."""
    routes = (
        f"status/{job_id}",
        "jobs",
        f"metrics/{job_id}",
        f"metrics/{job_id}?since_step=1",
        f"logs/{job_id}",
        f"{job_id}/errors",
        f"{job_id}/analytics",
        f"analytics/compare?job_ids={job_id}",
        "analytics/summary",
        f"checkpoints/{job_id}",
        f"{job_id}/spec",
    )
    for route in routes:
        answer = client.get(f"/api/training/{route}")
        assert answer.status_code == 200, route
        assert not _leaked(json.dumps(answer.json(), ensure_ascii=False)), route
        assert not _leaked(answer.text), route
    for name, text in _unzipped(client.get(f"/api/training/{job_id}/download/logs")).items():
        assert not _leaked(text), name
    for text in _unzipped(client.get(f"/api/training/{job_id}/download/model")).values():
        assert not _leaked(text)
    assert not _leaked(server.output)


def _wait_for(client: httpx.Client, job_id: int, status: str) -> None:
    def has_it() -> bool:
        return bool(client.get(f"/api/training/status/{job_id}").json()["status"] == status)

    wait_until(has_it, 60, f"job {job_id} is not {status}")


ENV = {"API_KEY": LONG, "QUOTED": QUOTED}


@pytest.mark.parametrize("failing", ["message", "end"])
def test_no_piece_of_a_long_value_is_shown_of_a_job_that_failed(
    client: httpx.Client, started: Started, server: Server, failing: str
) -> None:
    """The message is cut within the value, by whoever keeps it."""
    raises = {
        "message": 'raise ValueError("_" * 1966 + key + quoted)',
        "end": 'raise ValueError("refused: " + key + json.dumps(quoted))',
    }
    job_id = started(TALKATIVE + raises[failing], env=ENV)
    _wait_for(client, job_id, "failed")
    _assert_silent(client, server, job_id)
    paths = DataPaths(server.data).run(job_id)
    assert LONG in paths.log.read_text(), "The job itself wrote it; else this test shows nothing."
    assert LONG in paths.exit.read_text()
    error = client.get(f"/api/training/status/{job_id}").json()["error"]
    assert "*" * 12 in error
    assert len(client.get(f"/api/training/metrics/{job_id}").json()["points"]) == 3
    assert len(client.get(f"/api/training/checkpoints/{job_id}").json()["checkpoints"]) == 1


def test_no_piece_of_a_long_value_is_shown_of_a_job_that_runs(
    client: httpx.Client, started: Started, server: Server
) -> None:
    job_id = started(TALKATIVE + "import time; time.sleep(600)", env=ENV)
    _wait_for(client, job_id, "running")

    def has_spoken() -> bool:
        return bool(client.get(f"/api/training/status/{job_id}").json()["current_step"])

    wait_until(has_spoken, 60, "no progress")
    _assert_silent(client, server, job_id)


def test_what_the_server_saw_is_kept_without_values(
    client: httpx.Client, started: Started, server: Server
) -> None:
    """Of a job that keeps no metrics.jsonl, whose names are cut when they are kept."""
    keeps_none = '(folder / "metrics.jsonl").unlink()\n'
    wait = "import time; time.sleep(600)"
    job_id = started(TALKATIVE + keeps_none + wait, env=ENV)
    seen = DataPaths(server.data).run(job_id).seen
    wait_until(lambda: seen.exists() and b"\n" in seen.read_bytes(), 60, "nothing was kept")
    assert not _leaked(seen.read_text())
    _assert_silent(client, server, job_id)


def test_a_time_in_a_curve_stays_though_a_variable_holds_the_day(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(
        """
        import os
        with open(os.environ["SIGNALBOX_RUN_DIR"] + "/metrics.jsonl", "w") as file:
            file.write('{"step": 1, "eval_loss": 2.0, "timestamp": "2026-01-31T12:00:00Z"}')
        """,
        env={"DAY": "2026-01-31", "METRIC": "eval_loss"},
    )
    _wait_for(client, job_id, "completed")
    (point,) = client.get(f"/api/training/metrics/{job_id}").json()["points"]
    assert point["timestamp"] == "2026-01-31T12:00:00Z"
    assert "eval_loss" in str(point)


def test_a_job_of_a_lost_database_keeps_its_secrets(tmp_path: Path) -> None:
    """It is taken up by what its processes carry, and so are the values."""
    script = tmp_path / "talkative.py"
    script.write_text(TALKATIVE + "import time; time.sleep(600)")
    server = Server(tmp_path / "data", poll_seconds=0.05, cancel_grace_seconds=2)
    body = {"script": str(script), "env": ENV}
    with server, open_client(server) as client:
        job_id = client.post("/api/training/execute", json=body).json()["job_id"]
        paths = DataPaths(server.data)
        log = paths.run(job_id).log
        wait_until(lambda: log.exists() and b"____" in log.read_bytes(), 60, "it prints nothing")
        os.kill(server.pid, signal.SIGKILL)
        server.stop(signal.SIGKILL)
    for file in paths.folder.glob(f"{paths.database.name}*"):
        file.unlink()
    with server, open_client(server) as client:
        _wait_for(client, job_id, JobStatus.RUNNING)
        try:
            assert client.get(f"/api/training/{job_id}/spec").json()["env_names"] == sorted(ENV)
            _assert_silent(client, server, job_id)
        finally:
            asks = {"X-Requested-With": "test"}
            client.post(f"/api/training/cancel/{job_id}", headers=asks)
            _wait_for(client, job_id, JobStatus.CANCELLED)
