"""Live news of jobs over WebSockets: one look at a job serves all who watch it."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

import anyio
from starlette.responses import JSONResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from backend.service import UnknownJobError

logger = logging.getLogger(__name__)

LOOK_SECONDS: Final = 0.1
"""From one look at a watched job to the next."""

LOOKS_PER_SECOND: Final = 100
"""At all watched jobs together: where more than ten are watched, each is looked at less often."""

LONGEST_LOOK_SECONDS: Final = 0.8
RETRY_SECONDS: Final = 1.0
SEND_SECONDS: Final = 10.0
"""A client that takes no message for so long is dropped."""

CLOSE_SECONDS: Final = 1.0
MAX_WATCHERS: Final = 500
MOST_HEARD: Final = 2**16
"""A client whose message is longer is let go: nothing that it could say is of use here."""

TELL_TIME: Final = frozenset(("elapsed_seconds", "remaining_seconds", "seconds_since_progress"))
"""These change while nothing happens; no message is sent for them alone."""

NORMAL, GOING_AWAY, TOO_BIG, WENT_WRONG, NO_SUCH_JOB = 1000, 1001, 1009, 1011, 4404
"""Why a socket is closed: RFC 6455, 7.4; its own codes begin at 4000."""


@dataclass(frozen=True)
class Message:
    """What is known of a job now."""

    state: Mapping[str, Any]
    complete: bool  # it has ended, and no other message follows


@dataclass(frozen=True)
class News:
    """A message, ready to be sent."""

    text: str
    complete: bool
    essence: Mapping[str, Any]  # what of the state is compared with the next look's


class Watcher:
    """One client: the newest message that it has not got yet, and whether that is the last.

    A client that is slower than the job gets fewer messages; they never queue up.
    """

    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self._text: str | None = None
        self._farewell: tuple[int, str] | None = None
        self._news = asyncio.Event()

    def give(self, text: str) -> None:
        self._text = text
        self._news.set()

    def part(self, code: int, reason: str = "") -> None:
        """Close the socket once the newest message is sent; the first reason counts."""
        self._farewell = self._farewell or (code, reason)
        self._news.set()

    @property
    def has_news(self) -> bool:
        return self._news.is_set()

    async def take(self) -> tuple[str | None, tuple[int, str] | None]:
        """Wait for news: a text to be sent, and with which code and reason to close then."""
        await self._news.wait()
        self._news.clear()
        text, self._text = self._text, None
        return text, self._farewell


class Watch:
    """One job that is watched."""

    def __init__(self, job_id: int) -> None:
        self.job_id = job_id
        self.watchers: set[Watcher] = set()
        self.looked = asyncio.Event()
        """Set once the first look was taken; then there is news, or a refusal."""
        self.news: News | None = None
        self.refusal: tuple[int, str] = 503, f"Job {job_id} cannot be read now; try again."
        self.in_trouble = False

    def end(self, code: int, reason: str = "") -> None:
        self.looked.set()
        for watcher in self.watchers:
            watcher.part(code, reason)


class Hub:
    """All watchers of all jobs, in one event loop at a time."""

    def __init__(
        self,
        describe: Callable[[int], Message],
        run: Callable[..., Awaitable[Any]],
        encode: Callable[[Mapping[str, Any]], str] | None = None,
    ) -> None:
        """Nothing happens before the first client comes.

        Args:
            describe: looks at a job; may block; raises UnknownJobError.
            run: `await run(function, *args)` calls a function in a thread, in how many at once is
                its own affair.
            encode: makes the text of a message; `as_json` unless given.
        """
        self._describe = describe
        self._run = run
        self._encode = encode or as_json
        self._watchers: set[Watcher] = set()
        self._watches: dict[int, Watch] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, websocket: WebSocket, job_id: int) -> None:
        """Tell a client the job's state now, and at each change until the job ends.

        Refuses with 404 where there is no such job, with 429 beyond `MAX_WATCHERS`, and with 503
        while the job cannot be read.
        """
        if len(self._watchers) >= MAX_WATCHERS:
            await refuse(websocket, 429, f"{MAX_WATCHERS} clients watch already; close one first.")
            return
        watcher = Watcher()
        self._watchers.add(watcher)
        watch = self._watches.get(job_id) or self._begin(job_id)
        watch.watchers.add(watcher)
        try:
            with watcher.scope:
                await watch.looked.wait()
                if watch.news is None:
                    await refuse(websocket, *watch.refusal)
                    return
                await websocket.accept()
                if not watcher.has_news:  # of the look that it waited for, or of a newer one
                    watcher.give(watch.news.text)
                async with anyio.create_task_group() as group:
                    group.start_soon(_read, websocket, watcher)
                    await _write(websocket, watcher)
        except OSError:
            pass  # it left before it was let in
        finally:
            watch.watchers.discard(watcher)
            self._watchers.discard(watcher)

    async def close(self) -> None:
        """Part from all clients and end all looking; a client that is stuck is left behind."""
        for watcher in self._watchers:
            watcher.part(GOING_AWAY, "The server stops.")
            watcher.scope.deadline = anyio.current_time() + CLOSE_SECONDS
        with anyio.move_on_after(2 * CLOSE_SECONDS):
            while self._watchers or self._tasks:
                await asyncio.sleep(LOOK_SECONDS / 10)
        for task in self._tasks:
            task.cancel()

    def _begin(self, job_id: int) -> Watch:
        watch = self._watches[job_id] = Watch(job_id)
        task = asyncio.create_task(self._follow(watch), name=f"watch job {job_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return watch

    async def _follow(self, watch: Watch) -> None:
        """Look at a job as long as it has watchers."""
        try:
            while watch.watchers and (pause := await self._look(watch)):
                await asyncio.sleep(pause)
        finally:
            # In this order and without a pause: who comes now begins a new watch.
            del self._watches[watch.job_id]
            watch.end(WENT_WRONG)

    async def _look(self, watch: Watch) -> float | None:
        """Take one look and pass on what has changed; the seconds until the next, None after the
        last."""
        try:
            news: News = await self._run(self._read_news, watch.job_id)
        except UnknownJobError as error:
            watch.refusal = 404, str(error)
            watch.end(NO_SUCH_JOB, str(error))
            return None
        except Exception:  # the database is locked for a moment, say
            if not watch.in_trouble:  # said once, not each second
                logger.exception("Job %s is watched, and cannot be read now", watch.job_id)
            watch.in_trouble = True
            return RETRY_SECONDS if watch.news else None
        watch.in_trouble = False
        before, watch.news = watch.news, news
        if before is None or (before.essence, before.complete) != (news.essence, news.complete):
            for watcher in watch.watchers:
                watcher.give(news.text)
        if news.complete:
            watch.end(NORMAL)
            return None
        watch.looked.set()
        pace = len(self._watches) / LOOKS_PER_SECOND
        return max(LOOK_SECONDS, min(pace, LONGEST_LOOK_SECONDS))

    def _read_news(self, job_id: int) -> News:
        message = self._describe(job_id)
        return News(
            self._encode({**message.state, "complete": message.complete}),
            message.complete,
            {name: value for name, value in message.state.items() if name not in TELL_TIME},
        )


async def _write(websocket: WebSocket, watcher: Watcher) -> None:
    """Send what there is, until the last of it, or until the client is gone or stuck."""
    farewell = None
    try:
        while farewell is None:
            text, farewell = await watcher.take()
            with anyio.fail_after(SEND_SECONDS):
                if text is not None:
                    await websocket.send_text(text)
                if farewell is not None:
                    await websocket.close(*farewell)
    except TimeoutError:
        logger.info("A watcher took no message for %g s and was dropped", SEND_SECONDS)
    except (WebSocketDisconnect, RuntimeError):
        pass  # it is gone; uvicorn raises the second where it has closed the socket by itself
    watcher.scope.cancel()


async def _read(websocket: WebSocket, watcher: Watcher) -> None:
    """Read and forget what the client says, until it leaves, or says far too much."""
    while (message := await websocket.receive())["type"] != "websocket.disconnect":
        if len(message.get("text") or message.get("bytes") or "") > MOST_HEARD:
            with suppress(RuntimeError):
                await websocket.close(TOO_BIG)
            break
    watcher.scope.cancel()


async def refuse(websocket: WebSocket, status: int, sentence: str) -> None:
    """Answer the handshake as HTTP does."""
    await websocket.send_denial_response(JSONResponse({"detail": sentence}, status))
    # uvicorn 0.54 logs an error where the application returns before the connection is closed.
    await asyncio.sleep(0)


def as_json(state: Mapping[str, Any]) -> str:
    """Strictly valid JSON, times in UTC ISO 8601.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    return json.dumps(state, allow_nan=False, default=_instant)


def _instant(value: Any) -> str:
    if not isinstance(value, datetime):
        raise TypeError(f"{type(value).__name__} has no place in a message.")
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
