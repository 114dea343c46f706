"""The server itself: how it starts, what it serves beside the pages, and how it stops."""

import http.client
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pages.parts import plotly_script
from tests.conftest import PROJECT
from tests.server import Server


def start_wrongly(**settings: str) -> "subprocess.CompletedProcess[str]":
    """Start a server that cannot start; what it printed and how it ended."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")}
    return subprocess.run(
        [sys.executable, "-m", "streamlit", "run", "app.py", "--server.port", "0"],
        cwd=PROJECT,
        env={**clean, **settings},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.mark.parametrize(
    ("variable", "value"), [("SIGNALBOX_WORKERS", "zero"), ("SIGNALBOX_TIMEOUT_MINUTES", "-1")]
)
def test_a_bad_setting_stops_the_start_with_one_line(variable: str, value: str) -> None:
    ended = start_wrongly(**{variable: value})
    assert ended.returncode != 0
    (line,) = ended.stderr.strip().splitlines()
    assert variable in line
    assert value in line


def test_a_data_folder_that_cannot_be_used_stops_the_start_with_one_line(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("in the way")
    ended = start_wrongly(SIGNALBOX_DATA=str(tmp_path / "a-file"))
    assert ended.returncode != 0
    (line,) = ended.stderr.strip().splitlines()
    assert "SIGNALBOX_DATA" in line


def get(server: Server, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_what_a_server_serves_and_how_it_closes(tmp_path: Path) -> None:
    server = Server(tmp_path / "data", workers=1)
    with server:
        status, headers, body = get(server, plotly_script.URL)
        assert status == 200
        assert "immutable" in headers["cache-control"]
        assert body == plotly_script.SCRIPT.read_bytes()
        for page in ("submit", "jobs", "job?id=12", "failures", "gpu"):
            status, _, body = get(server, f"/{page}")
            assert status == 200
            assert b"BACKEND_BASE_URL" in body
        assert get(server, "/")[0] == 200
        assert get(server, "/", Host="evil.example")[0] == 400
        assert get(server, "/", Host="localhost:1")[0] == 200
    assert "Signalbox closed; no job is running." in server.output
    assert "Traceback" not in server.output
