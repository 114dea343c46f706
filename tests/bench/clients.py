"""Many clients of a server, in a process of their own so that they are not measured with another.

    python -m tests.bench.clients ask URL CLIENTS SECONDS
    python -m tests.bench.clients watch URL CLIENTS SECONDS

The first asks for the URL again and again over connections that are kept, and prints the seconds
that each answer took. The second watches a WebSocket and prints, of each message, when it came
(`time.time()`) and which step it tells. Both print a list for each client, as JSON.
"""

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

from websockets.asyncio.client import connect


def ask(url: str, clients: int, seconds: float) -> list[list[float]]:
    took: list[list[float]] = [[] for _ in range(clients)]
    until = time.monotonic() + seconds
    threads = [threading.Thread(target=_ask_until, args=(url, until, t)) for t in took]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return took


def _ask_until(url: str, until: float, took: list[float]) -> None:
    parts = urlsplit(url)
    path = url.partition(parts.netloc)[2]
    request = f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n".encode()
    # Less work than http.client does, which with 16 threads would be the bottleneck.
    with socket.create_connection((parts.hostname, parts.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while time.monotonic() < until:
            begin = time.perf_counter()
            connection.sendall(request)
            _read_answer(connection)
            took.append(time.perf_counter() - begin)


def _read_answer(connection: socket.socket) -> None:
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += _receive(connection)
    head, _, body = bytes(received).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
    left = length - len(body)
    while left > 0:
        left -= len(_receive(connection))


def _receive(connection: socket.socket) -> bytes:
    part = connection.recv(2**18)
    assert part, "The server closed the connection."
    return part


def watch(url: str, clients: int, seconds: float) -> list[list[tuple[float, int | None]]]:
    async def watch_all() -> list[list[tuple[float, int | None]]]:
        return await asyncio.gather(*(_watch_for(url, seconds) for _ in range(clients)))

    return asyncio.run(watch_all())


async def _watch_for(url: str, seconds: float) -> list[tuple[float, int | None]]:
    seen: list[tuple[float, int | None]] = []
    async with connect(url) as socket:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                async for message in socket:
                    seen.append((time.time(), json.loads(message)["current_step"]))
    return seen[1:]  # the first tells of a step that was logged before anybody watched


WAYS: Final[Mapping[str, Callable[[str, int, float], Any]]] = {"ask": ask, "watch": watch}

if __name__ == "__main__":
    way, url, clients, seconds = sys.argv[1:]
    print(json.dumps(WAYS[way](url, int(clients), float(seconds))))
