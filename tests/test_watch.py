"""Watching a job over real WebSockets: a uvicorn server as Streamlit runs it, and real clients."""

import asyncio
import json
import logging
import socket
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import anyio
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket
from websockets.asyncio import client as async_client
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from backend import watch
from backend.service import Service, UnknownJobError
from backend.store import StoreError
from backend.submission import Submission
from backend.watch import Hub, Message, as_json
from tests.waiting import wait_until

Script = Callable[..., Submission]

FIELDS = ("job_id", "status", "current_step", "loss", "elapsed_seconds", "seconds_since_progress")

GATED = """\
import sys, time, pathlib, signalbox
gates = pathlib.Path(sys.argv[1])
run = signalbox.start(total_steps=3)
for step in (1, 2, 3):
    while not (gates / str(step)).exists():
        time.sleep(0.01)
    run.log(step, train_loss=1 / step)
while not (gates / "end").exists():
    time.sleep(0.01)
"""


async def in_thread(work: Callable[..., Any], *args: Any) -> Any:
    return await anyio.to_thread.run_sync(work, *args)


class Served:
    """A hub behind a server of its own, at /ws/{job id}."""

    def __init__(self, describe: Callable[[int], Message] | Hub, **config: Any) -> None:
        self.hub = describe if isinstance(describe, Hub) else Hub(describe, in_thread)
        self.loop: asyncio.AbstractEventLoop
        app = Starlette(
            routes=[WebSocketRoute("/ws/{job_id:int}", self._serve)], lifespan=self._lifespan
        )
        config = {"ws_ping_interval": 30, "ws_ping_timeout": 30, **config}
        self._server = uvicorn.Server(
            uvicorn.Config(app, ws="websockets-sansio", log_config=None, **config)
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],))

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.loop = asyncio.get_running_loop()
        yield
        await self.hub.close()

    async def _serve(self, websocket: WebSocket) -> None:
        await self.hub.serve(websocket, websocket.path_params["job_id"])

    def __enter__(self) -> "Served":
        self._thread.start()
        wait_until(lambda: self._server.started)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive(), "The server did not stop."

    def url(self, job_id: int = 12) -> str:
        return f"ws://127.0.0.1:{self.port}/ws/{job_id}"

    def watch(self, job_id: int = 12) -> ClientConnection:
        return connect(self.url(job_id), max_size=None)

    def close_hub(self) -> None:
        asyncio.run_coroutine_threadsafe(self.hub.close(), self.loop).result(30)

    def watchers(self) -> int:
        return len(self.hub._watchers)

    def wait_until_idle(self) -> None:
        """Wait until nobody is watched or watches, and no task of it is left."""
        wait_until(lambda: not self.hub._watchers and not self.tasks())
        assert not self.hub._watches

    def tasks(self) -> list[str]:
        async def names() -> list[str]:
            return [task.get_name() for task in asyncio.all_tasks()]

        found = asyncio.run_coroutine_threadsafe(names(), self.loop).result(30)
        return [name for name in found if name.startswith("watch job")]


class Job:
    """A job whose state a test writes down."""

    def __init__(self, **state: Any) -> None:
        self.state: dict[str, Any] = {"job_id": 12, "current_step": 0, **state}
        self.complete = False
        self.error: Exception | None = None
        self.looks: list[float] = []
        self.looking = 0
        self.most_looking = 0

    def describe(self, job_id: int) -> Message:
        self.looks.append(time.monotonic())
        self.looking += 1
        self.most_looking = max(self.most_looking, self.looking)
        try:
            if self.error:
                raise self.error
            return Message(dict(self.state), self.complete)
        finally:
            self.looking -= 1


def knock(client: socket.socket, job_id: int) -> None:
    """Ask to be let in, and do not wait for the answer."""
    client.sendall(
        f"GET /ws/{job_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        "Sec-WebSocket-Version: 13\r\n\r\n".encode()
    )


class RawClient:
    """A client that reads only when it is told to."""

    def __init__(self, served: Served, job_id: int = 12) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", served.port))
        knock(self.socket, job_id)
        self._received = b""
        while b"\r\n\r\n" not in self._received:
            part = self.socket.recv(256)
            assert part, "The server closed."
            self._received += part
        assert b" 101 " in self._received

    def __enter__(self) -> "RawClient":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.socket.close()

    def frames(self) -> Iterator[tuple[int, bytes]]:
        """Opcode and content of what was sent, up to the end; see RFC 6455, 5.2."""
        with self.socket.makefile("rb") as file:
            first = self._received.partition(b"\r\n\r\n")[2]

            def take(count: int) -> bytes:
                nonlocal first
                taken, first = first[:count], first[count:]
                return taken + file.read(count - len(taken))

            while len(head := take(2)) == 2:
                length = head[1] & 127
                if length > 125:
                    length = int.from_bytes(take(2 if length == 126 else 8))
                yield head[0] & 15, take(length)
                if head[0] & 15 == 8:
                    self.socket.sendall(b"\x88\x80\0\0\0\0")  # the answer to a close

    def messages(self) -> list[dict[str, Any]]:
        """All whole messages up to the end."""
        texts = [content for opcode, content in self.frames() if opcode == 1]
        return [json.loads(text) for text in texts if text.endswith(b"}")]


@pytest.fixture(autouse=True)
def _the_server_has_no_trouble(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """An exception that a route lets out is in uvicorn's log only."""
    yield
    said = [r.getMessage() for r in caplog.get_records("call") if r.name.startswith("uvicorn")]
    assert not [text for text in said if "xception" in text or "without completing" in text]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setattr(watch, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(watch, "RETRY_SECONDS", 0.02)
    return Job()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with Served(Job().describe) as server:
        yield server


@pytest.fixture
def served(job: Job, server: Served) -> Iterator[Served]:
    """The server of all these tests, with a hub that no other test has seen."""
    server.hub = Hub(job.describe, in_thread)
    yield server
    server.wait_until_idle()


def describe_with(service: Service) -> Callable[[int], Message]:
    def describe(job_id: int) -> Message:
        view = service.job(job_id, look=True)
        return Message({name: getattr(view, name) for name in FIELDS}, view.status.ended)

    return describe


def receive(client: ClientConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(client.recv(timeout=30))
    return message


def receive_until(client: ClientConnection, **state: Any) -> list[dict[str, Any]]:
    """What comes until a message has this state, that message included."""
    found = [receive(client)]
    while any(found[-1][name] != value for name, value in state.items()):
        found.append(receive(client))
    return found


def closed_with(client: ClientConnection) -> int:
    """Read to the end; nothing but the close may come."""
    with pytest.raises(ConnectionClosed) as closed:
        client.recv(timeout=30)
    assert closed.value.rcvd
    return closed.value.rcvd.code


def refusal(served: Served, job_id: int = 12) -> tuple[int, str]:
    with pytest.raises(InvalidStatus) as refused:
        served.watch(job_id)
    answer = refused.value.response
    assert answer.headers["content-type"] == "application/json"
    return answer.status_code, json.loads(answer.body)["detail"]


# A real job


def test_a_job_is_told_from_its_first_step_to_its_last(
    service: Service, script: Script, tmp_path: Path
) -> None:
    job_id = service.submit(script(GATED, str(tmp_path)))
    with Served(describe_with(service)) as served, served.watch(job_id) as client:
        messages = [receive(client)]
        assert set(messages[0]) == {*FIELDS, "complete"}
        assert messages[0]["job_id"] == job_id
        for step in (1, 2, 3):
            (tmp_path / str(step)).touch()
            messages += receive_until(client, current_step=step)
            assert messages[-1]["loss"] == pytest.approx(1 / step)
        (tmp_path / "end").touch()
        messages += receive_until(client, complete=True)
        assert closed_with(client) == 1000
        served.wait_until_idle()
    assert [m["complete"] for m in messages] == [False] * (len(messages) - 1) + [True]
    assert messages[-1]["status"] == "completed"
    steps = [m["current_step"] or 0 for m in messages]
    assert steps == sorted(steps)


def test_a_hundred_watchers_of_a_job_cost_one_look(
    service: Service, script: Script, tmp_path: Path
) -> None:
    counted = Job()
    real = describe_with(service)

    def describe(job_id: int) -> Message:
        counted.describe(job_id)
        return real(job_id)

    encoded: list[Any] = []

    def encode(state: Any) -> str:
        encoded.append(state)
        return as_json(state)

    async def watch_it(url: str, ready: list[int]) -> list[dict[str, Any]]:
        async with async_client.connect(url) as client:
            messages = [json.loads(await client.recv())]
            ready.append(1)
            if len(ready) == 100:
                (tmp_path / "1").touch()
            async for text in client:
                messages.append(json.loads(text))
                if messages[-1]["current_step"] == 1:
                    for gate in ("2", "3", "end"):
                        (tmp_path / gate).touch()
            assert client.close_code == 1000
            return messages

    async def watch_all(url: str) -> list[list[dict[str, Any]]]:
        ready: list[int] = []
        return await asyncio.gather(*(watch_it(url, ready) for _ in range(100)))

    job_id = service.submit(script(GATED, str(tmp_path)))
    with Served(Hub(describe, in_thread, encode)) as served:
        begin = time.monotonic()
        watched = asyncio.run(watch_all(served.url(job_id)))
        seconds = time.monotonic() - begin
        served.wait_until_idle()
    assert len(watched) == 100
    for messages in watched:
        assert [m for m in messages if m["current_step"] == 1]
        assert messages[-1]["current_step"] == 3
        assert messages[-1]["complete"]
    assert counted.most_looking == 1
    assert len(encoded) == len(counted.looks)
    pauses = [b - a for a, b in zip(counted.looks, counted.looks[1:], strict=False)]
    assert min(pauses) >= 0.9 * watch.LOOK_SECONDS
    assert len(counted.looks) <= seconds / watch.LOOK_SECONDS + 2


def test_an_ended_job_is_one_message(served: Served, service: Service, script: Script) -> None:
    job_id = service.submit(script("pass"))
    wait_until(lambda: service.job(job_id).status.ended)
    served.hub = Hub(describe_with(service), in_thread)
    with served.watch(job_id) as client:
        message = receive(client)
        assert (message["status"], message["complete"]) == ("completed", True)
        assert closed_with(client) == 1000
        served.wait_until_idle()


def test_an_unknown_job_is_refused(served: Served, idle_service: Service) -> None:
    served.hub = Hub(describe_with(idle_service), in_thread)
    assert refusal(served, 99) == (404, "There is no job 99.")
    assert refusal(served, 2**70) == (404, f"There is no job {2**70}.")
    served.wait_until_idle()


# Messages


def test_time_alone_is_no_news(job: Job, served: Served) -> None:
    with served.watch() as client:
        receive(client)
        for seconds in range(1, 4):
            looks = len(job.looks)
            job.state |= dict.fromkeys(watch.TELL_TIME, seconds)
            wait_until(lambda looks=looks: len(job.looks) > looks + 1)  # type: ignore[misc]
        job.state["current_step"] = 1
        message = receive(client)
        assert (message["current_step"], message["elapsed_seconds"]) == (1, 3)


def test_who_comes_later_is_told_the_state_of_now(job: Job, served: Served) -> None:
    with served.watch() as first:
        receive(first)
        job.state["elapsed_seconds"] = 60
        looks = len(job.looks)
        wait_until(lambda: len(job.looks) > looks + 1)
        with served.watch() as second:
            assert receive(second)["elapsed_seconds"] == 60


def test_each_job_has_its_own_watchers(served: Served, job: Job) -> None:
    with served.watch(1) as one, served.watch(2) as two:
        receive(one)
        receive(two)
        assert sorted(served.tasks()) == ["watch job 1", "watch job 2"]
        one.close()
        wait_until(lambda: served.tasks() == ["watch job 2"])
        job.state["current_step"] = 1
        assert receive(two)["current_step"] == 1
    served.wait_until_idle()


def test_what_a_client_says_is_ignored(job: Job, served: Served) -> None:
    with served.watch() as client:
        receive(client)
        for _ in range(1000):
            client.send("Is there news?")
            client.send(b"\xff")
        job.state["current_step"] = 1
        assert receive(client)["current_step"] == 1


def test_where_many_jobs_are_watched_each_is_looked_at_less_often(
    job: Job, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "LOOKS_PER_SECOND", 4)
    with served.watch(1) as one, served.watch(2) as two:
        receive(one)
        receive(two)
        before = len(job.looks)
        wait_until(lambda: len(job.looks) >= before + 6)
        # Two at first may have been begun while only one was watched.
        assert job.looks[before + 5] - job.looks[before + 1] >= 0.9
        job.state["current_step"] = 1
        assert receive(one)["current_step"] == 1


def test_times_are_utc_and_numbers_are_numbers() -> None:
    noon = datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=2)))
    text = as_json({"at": noon, "then": datetime(2026, 1, 2, 3, 4, 5, 6789, UTC), "name": "\udc80"})
    assert json.loads(text.encode()) == {
        "at": "2026-11-23T10:00:00Z",
        "then": "2026-01-02T03:04:05.006789Z",
        "name": "\udc80",
    }
    with pytest.raises(ValueError, match="not JSON compliant"):
        as_json({"loss": float("nan")})
    with pytest.raises(TypeError, match="object has no place in a message"):
        as_json({"loss": object()})


# Clients that are slow, gone or too many


def test_a_slow_client_gets_fewer_messages_and_the_last_one(job: Job, served: Served) -> None:
    job.state["filling"] = "x" * 100_000
    with RawClient(served) as slow, served.watch() as quick:
        receive(quick)
        for step in range(1, 31):
            job.state["current_step"] = step
            receive_until(quick, current_step=step)
        job.complete = True
        receive_until(quick, complete=True)
        assert closed_with(quick) == 1000
        assert served.watchers() == 1
        frames = list(slow.frames())
        messages = [json.loads(content) for opcode, content in frames if opcode == 1]
        assert frames[-1] == (8, struct.pack("!H", 1000))
    steps = [m["current_step"] for m in messages]
    assert len(steps) < 10
    assert steps == sorted(steps)
    assert (steps[-1], messages[-1]["complete"]) == (30, True)
    served.wait_until_idle()


def test_a_client_that_takes_nothing_is_dropped(
    job: Job, served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "SEND_SECONDS", 0.2)
    job.state["filling"] = "x" * 100_000
    caplog.set_level(logging.INFO)
    with RawClient(served) as stuck, served.watch() as quick:
        step = 0
        while served.watchers() == 2:
            step += 1
            job.state["current_step"] = step
            receive_until(quick, current_step=step)
        assert "A watcher took no message for 0.2 s and was dropped" in caplog.text
        job.state["current_step"] = -1
        receive_until(quick, current_step=-1)
        assert len(stuck.messages()) < step, "and then the socket was closed"


def test_a_client_that_is_gone_without_a_word_is_forgotten(job: Job, served: Served) -> None:
    for linger in (b"", struct.pack("ii", 1, 0)):  # FIN, and RST
        with RawClient(served) as gone:
            wait_until(lambda: served.watchers() == 1)
            if linger:
                gone.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        served.wait_until_idle()


def test_a_client_whose_network_stalls_is_forgotten(job: Job) -> None:
    """It answers no ping; nothing is to be sent to it, so nothing else would tell."""
    with (
        Served(job.describe, ws_ping_interval=0.1, ws_ping_timeout=0.1) as served,
        RawClient(served),
        served.watch() as quick,
    ):
        receive(quick)
        wait_until(lambda: served.watchers() == 1)
        job.state["current_step"] = 1
        assert receive(quick)["current_step"] == 1


def test_a_client_that_leaves_at_the_door_is_forgotten(job: Job, served: Served) -> None:
    gate = threading.Event()
    describe = job.describe
    served.hub._describe = lambda job_id: (gate.wait(30), describe(job_id))[1]
    with socket.create_connection(("127.0.0.1", served.port)) as client:
        knock(client, 12)
        wait_until(lambda: served.watchers() == 1)
    gate.set()
    served.wait_until_idle()


def test_more_than_the_most_are_refused(
    job: Job, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "MAX_WATCHERS", 2)
    with served.watch() as first, served.watch() as second:
        receive(first)
        receive(second)
        assert refusal(served) == (429, "2 clients watch already; close one first.")
        second.close()
        wait_until(lambda: served.watchers() == 1)
        with served.watch() as third:
            receive(third)


# Trouble


def test_a_database_that_is_locked_for_a_moment_ends_no_watching(
    job: Job, served: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with served.watch() as client:
        receive(client)
        for step in (1, 2):
            job.error = StoreError("The database is locked.", passing=True)
            looks = len(job.looks)
            wait_until(lambda looks=looks: len(job.looks) > looks + 5)  # type: ignore[misc]
            job.state["current_step"] = step
            job.error = None
            assert receive(client)["current_step"] == step
        said = [r for r in caplog.records if "cannot be read" in r.message]
        assert len(said) == 2, "once each time"


def test_a_state_that_is_no_json_ends_no_watching(job: Job, served: Served) -> None:
    with served.watch() as client:
        receive(client)
        job.state |= {"loss": float("inf"), "current_step": 1}
        looks = len(job.looks)
        wait_until(lambda: len(job.looks) > looks + 2)
        job.state["loss"] = 1.0
        assert receive(client)["loss"] == 1.0


def test_a_job_that_cannot_be_read_at_first_is_refused(job: Job, served: Served) -> None:
    for error in (StoreError("locked", passing=True), KeyError("a mistake, and no unknown job")):
        job.error = error
        assert refusal(served) == (503, "Job 12 cannot be read now; try again.")
        served.wait_until_idle()
    job.error = None
    with served.watch() as client:
        receive(client)


def test_a_job_that_is_removed_is_parted_from(job: Job, served: Served) -> None:
    with served.watch() as client:
        receive(client)
        job.error = UnknownJobError("There is no job 12.")
        assert closed_with(client) == 4404
        assert client.close_reason == "There is no job 12."
    served.wait_until_idle()


# Closing


def test_closing_parts_from_all_clients_even_from_a_stuck_one(job: Job, served: Served) -> None:
    job.state["filling"] = "x" * 100_000
    with RawClient(served) as stuck, served.watch() as one, served.watch(2) as two:
        for step in range(1, 11):
            job.state["current_step"] = step
            receive_until(one, current_step=step)
            receive_until(two, current_step=step)
        served.close_hub()
        assert (served.watchers(), served.tasks()) == (0, [])
        assert closed_with(one) == closed_with(two) == 1001
        assert stuck.messages()


def test_a_server_stops_with_watchers_and_one_at_the_door(job: Job) -> None:
    gate = threading.Event()
    describe = job.describe
    served = Served(lambda job_id: (job_id == 3 and gate.wait(30), describe(job_id))[1])
    with (
        served,
        served.watch(1) as one,
        served.watch(2) as two,
        RawClient(served, 1),
        socket.create_connection(("127.0.0.1", served.port)) as late,
    ):
        receive(one)
        receive(two)
        knock(late, 3)
        wait_until(lambda: served.watchers() == 4)
        stopping = threading.Thread(target=served.stop)
        stopping.start()
        assert closed_with(one) == closed_with(two) == 1012
        gate.set()
        stopping.join()
    assert not served.hub._watches


def test_a_hub_that_was_closed_can_serve_in_another_loop(job: Job) -> None:
    hub = Hub(job.describe, in_thread)
    for _ in range(2):
        with Served(hub) as served, served.watch() as client:
            receive(client)
