"""Streamlit's own scripts, styles and fonts, from memory.

A page needs ninety of them, and Streamlit opens each in a thread, which takes some milliseconds: on
a slow machine that is a quarter of the time until a page is there.
"""

import mimetypes
from functools import cache
from pathlib import Path
from typing import Final

import streamlit as st
from anyio import to_thread
from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

PREFIX: Final = "/static/"
FOLDER: Final = Path(st.__file__).parent / "static" / "static"
FOR_EVER: Final = {"Cache-Control": "public, immutable, max-age=31536000"}
"""As Streamlit says it: each name has its content's hash in it."""
PARTLY: Final = frozenset({"range", "if-none-match", "if-modified-since"})
"""Headers of a request for less than all of a file."""


class StaticFiles:
    """Answers for what lies in that folder; whatever else is asked is the app's to answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._kept: dict[str, Response] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or scope["method"] != "GET" or not path.startswith(PREFIX):
            return await self._app(scope, receive, send)
        found = self._kept.get(path)
        if found is None and path in _names():
            found = self._kept[path] = await to_thread.run_sync(_answer, path)
        if found is None or PARTLY.intersection(Headers(scope=scope).keys()):
            return await self._app(scope, receive, send)
        return await found(scope, receive, send)


@cache
def _names() -> frozenset[str]:
    """The paths that there are: nothing else is ever opened."""
    found = (path.relative_to(FOLDER) for path in FOLDER.rglob("*") if path.is_file())
    return frozenset(PREFIX + path.as_posix() for path in found)


def _answer(path: str) -> Response:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    content = (FOLDER / path.removeprefix(PREFIX)).read_bytes()
    return Response(content, media_type=kind, headers=FOR_EVER)
