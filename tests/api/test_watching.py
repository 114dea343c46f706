"""Watching a job through the real server: Streamlit's, with the door and the API behind it."""

import json
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.server import Server
from tests.waiting import wait_until

Started = Callable[..., int]

GATED = """
    import pathlib, sys, time, signalbox
    run = signalbox.start(total_steps=2)
    for step in (1, 2):
        while not (pathlib.Path(sys.argv[1]) / str(step)).exists():
            time.sleep(0.02)
        run.log(step, train_loss=1 / step)
    while not (pathlib.Path(sys.argv[1]) / "end").exists():
        time.sleep(0.02)
"""

few = hypothesis_settings(
    max_examples=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True, scope="module")
def _the_server_has_no_trouble(server: Server) -> Iterator[None]:
    begin = len(server.output)
    yield
    assert httpx.get(f"{server.url}/health").status_code == 200
    said = server.output[begin:]
    assert "Traceback" not in said, said
    assert " ERROR " not in said
    assert "ERROR:" not in said, "uvicorn's own"


@pytest.fixture
def running(client: httpx.Client, started: Started) -> int:
    """A job that runs until the test has ended."""
    job_id = started()
    wait_until_running(client, job_id)
    return job_id


def wait_until_running(client: httpx.Client, job_id: int) -> None:
    path = f"/api/training/status/{job_id}"
    wait_until(lambda: client.get(path).json()["status"] == "running")


def watch(server: Server, job: object) -> ClientConnection:
    return connect(f"{server.url.replace('http', 'ws')}/ws/training/{quote(str(job), safe='')}")


def receive(watcher: ClientConnection, seconds: float = 30) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(watcher.recv(timeout=seconds))
    return message


def rest_of(watcher: ClientConnection) -> tuple[list[dict[str, Any]], int]:
    """The messages that still come, and the code that the socket is closed with; 1006: none."""
    found = []
    while True:
        try:
            found.append(receive(watcher))
        except ConnectionClosed as closed:
            return found, closed.rcvd.code if closed.rcvd else 1006


def test_a_job_is_told_at_once_at_each_change_and_to_its_end(
    server: Server, client: httpx.Client, started: Started, tmp_path: Path
) -> None:
    job_id = started(GATED, args=[str(tmp_path)])
    wait_until_running(client, job_id)
    with watch(server, job_id) as watcher:
        first = receive(watcher)
        assert (first["status"], first["current_step"], first["complete"]) == (
            "running", None, False,
        )  # fmt: skip
        for step in (1, 2):
            (tmp_path / str(step)).touch()
            message = first
            while message["current_step"] != step:
                message = receive(watcher, 10)  # a goal of 0.5 s, on a busy machine
                assert not message["complete"]
        assert message["loss"] == 0.5
        (tmp_path / "end").touch()
        messages, code = rest_of(watcher)
    assert [m["complete"] for m in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1]["status"] == "completed"
    assert code == 1000
    answer = client.get(f"/api/training/status/{job_id}").json()
    assert {**messages[-1], "complete": None} == {**answer, "complete": None}


@few
@given(job=st.integers(min_value=10**6) | st.integers(max_value=0))
def test_a_job_that_is_not_there_is_refused_with_404(server: Server, job: int) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        watch(server, job).close()
    assert refusal.value.response.status_code == 404
    detail = json.loads(refusal.value.response.body)["detail"]
    assert detail.startswith("There is no job ")


@few
@given(
    job=st.text(st.characters(exclude_categories=["N", "Cs"]))
    | st.floats().filter(lambda number: number % 1 != 0)
)
def test_what_is_no_whole_number_is_refused(server: Server, job: object) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        watch(server, job).close()
    assert refusal.value.response.status_code in (403, 404)


def test_what_a_client_says_is_ignored(server: Server, client: httpx.Client, running: int) -> None:
    @few
    @given(frames=st.lists(st.text() | st.binary(), min_size=1, max_size=20))
    def say(frames: list[str | bytes]) -> None:
        for frame in frames:
            watcher.send(frame)
        assert watcher.ping().wait(30), "It has read all of them."

    with watch(server, running) as watcher:
        assert receive(watcher)["status"] == "running"
        say()
        client.post(f"/api/training/cancel/{running}", headers={"X-Requested-With": "test"})
        messages, code = rest_of(watcher)
    assert code == 1000
    assert messages[-1]["complete"]
    assert {m["job_id"] for m in messages} == {running}


@pytest.mark.parametrize("large", ["x" * 2**20, bytes(2**20), ["x" * 2**19, "y" * 2**19]])
def test_a_client_that_says_a_megabyte_is_let_go_alone(
    server: Server, running: int, large: str | bytes | list[str]
) -> None:
    with watch(server, running) as other, watch(server, running) as watcher:
        assert receive(other)["status"] == "running"
        watcher.send(large)
        assert rest_of(watcher)[1] == 1009
        assert other.ping().wait(30)


def test_bytes_that_are_no_websocket_end_that_client_alone(server: Server, running: int) -> None:
    address = urlsplit(server.url)
    handshake = (
        f"GET /ws/training/{running} HTTP/1.1\r\nHost: {address.netloc}\r\n"
        "Upgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    ).encode()

    @few
    @given(noise=st.binary(min_size=1, max_size=200), before=st.booleans())
    def make(noise: bytes, before: bool) -> None:
        with socket.create_connection((address.hostname, address.port), 30) as client:
            if before:  # it need not wait until it was let in
                client.sendall(handshake + noise)
                assert client.recv(2**16).startswith(b"HTTP/1.1 ")
            else:
                client.sendall(handshake)
                assert client.recv(2**16).startswith(b"HTTP/1.1 101 ")
                client.sendall(noise)

    with watch(server, running) as watcher:
        assert receive(watcher)["status"] == "running"
        make()
        assert watcher.ping().wait(30)
        with watch(server, running) as another:
            assert receive(another)["status"] == "running"


def test_a_server_with_twenty_watchers_stops_at_once(tmp_path: Path) -> None:
    """The job goes on, and each of them is told that no more will come."""
    gate = tmp_path / "gate"
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\nwhile not pathlib.Path(sys.argv[1]).exists(): time.sleep(0.05)"
    )
    with ExitStack() as stack:
        stack.callback(gate.touch)
        server = stack.enter_context(Server(tmp_path / "data"))
        body = {"script": str(script), "args": [str(gate)]}
        answer = httpx.post(f"{server.url}/api/training/execute", json=body, timeout=30)
        job_id = answer.json()["job_id"]
        watchers = [stack.enter_context(watch(server, job_id)) for _ in range(20)]
        for watcher in watchers:
            assert receive(watcher)["job_id"] == job_id
        server.stop()
        # "Going away" from the hub, or "service restart" from uvicorn: who comes first.
        assert {rest_of(watcher)[1] for watcher in watchers} <= {1001, 1012}
        assert "Traceback" not in server.output
        assert "1 job goes on running" in server.output
