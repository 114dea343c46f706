"""The server: starts the backend before the first visit, and closes it after the last.

One process and one port for the pages, the HTTP API and its WebSockets, behind one door.

python -m streamlit run app.py
"""

import logging
import os
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final

import psutil
import streamlit as st
from anyio import to_thread
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from backend import runtime
from backend.api import make_api
from backend.door import API, Door, is_local_address
from backend.service import Service, StartError
from backend.settings import SettingsError, read_settings
from backend.store import StoreError
from pages.parts import plotly_script, shell
from pages.parts.static_files import StaticFiles

logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
logging.getLogger("backend").setLevel(logging.INFO)

try:
    settings = read_settings()
except SettingsError as error:
    sys.exit(f"Signalbox cannot start. {error}")
address = st.get_option("server.address")
token = settings.token.get_secret_value() if settings.token else None
if not token and not is_local_address(address):
    sys.exit(
        f"Signalbox cannot start. It would listen on {address or 'every address'}, where others "
        "can reach it and run programs as you: set SIGNALBOX_TOKEN, or listen on 127.0.0.1."
    )
api = make_api(asks_for_token=token is not None)


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """Start the one Service of this process; close it when the server stops."""
    tune_connections()
    service = Service(settings, page_url())
    try:
        service.start()
    except StartError as error:
        print(f"Signalbox cannot start. {error}", file=sys.stderr, flush=True)
        logging.getLogger("uvicorn.error").disabled = True  # it would print the traceback
        raise
    runtime.use(service)
    try:
        yield
    finally:
        await api.state.hub.close()
        runtime.use(None)
        print(_farewell(service.close()), flush=True)


def page_url() -> str:
    """Where a browser on this machine finds the pages."""
    scheme = "https" if st.get_option("server.sslCertFile") else "http"
    host = address if address and address not in EVERY_ADDRESS else "127.0.0.1"
    host = f"[{host}]" if ":" in host else host
    return f"{scheme}://{host}:{st.get_option('server.port')}"


EVERY_ADDRESS: Final = ("0.0.0.0", "::")  # noqa: S104 (told, not listened on)
STALLED_SECONDS: Final = 60


def tune_connections() -> None:
    """Set what all connections take from their listener (tcp(7)).

    Nagle's algorithm is switched off. asyncio does so for sockets that name their protocol, and
    Streamlit's does not: each answer, a head and a body, would wait 40 ms for the client to
    acknowledge the head. And a client that takes nothing for a minute or two is let go: it would
    keep the server from closing for as long as it likes.
    """
    with suppress(psutil.Error, OSError):  # slower is no reason not to start
        for found in psutil.Process().net_connections("tcp"):
            if found.status == psutil.CONN_LISTEN and found.fd >= 0:
                with socket.socket(fileno=os.dup(found.fd)) as listener:
                    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
                        milliseconds = 1000 * STALLED_SECONDS
                        listener.setsockopt(
                            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds
                        )


def _farewell(running: int) -> str:
    if not running:
        return "Signalbox closed; no job is running."
    jobs, they = ("1 job goes on", "it") if running == 1 else (f"{running} jobs go on", "they")
    return f"Signalbox closed; {jobs} running, and {they} will be found again at the next start."


PAGES: Final = ("", "submit", "jobs", "job", "compare", "failures", "gpu")


async def page(request: Request) -> HTMLResponse:
    """What a new browser gets that opens a page by its address."""
    first = await to_thread.run_sync(_asks_first, request)
    return HTMLResponse(shell.page_shell(first), headers={"Cache-Control": "no-cache"})


def _asks_first(request: Request) -> str | None:
    with suppress(runtime.NotRunningError, StoreError):
        return shell.asks_first(request.url.path.strip("/"), request.query_params)
    return None


async def plotly(request: Request) -> Response:
    """Plotly's script, which a browser may keep."""
    headers = {"Cache-Control": "public, max-age=31536000, immutable", "Vary": "Accept-Encoding"}
    packed = "gzip" in request.headers.get("Accept-Encoding", "")
    if packed:
        headers["Content-Encoding"] = "gzip"
    script = plotly_script.compressed if packed else plotly_script.source
    content = await to_thread.run_sync(script)
    return Response(content, media_type="text/javascript", headers=headers)


API_ALONE: Final = ("/api", "/health")


class ApiFirst:
    """Gives the API its own addresses; all others are Streamlit's."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        mine = scope["type"] != "lifespan" and (path.startswith(API) or path in API_ALONE)
        await (api if mine else self._app)(scope, receive, send)


app = st.App(
    "pages/navigation.py",
    lifespan=lifespan,
    routes=[Route(plotly_script.URL, plotly), *(Route(f"/{name}", page) for name in PAGES)],
    middleware=[
        # Streamlit asks for a known host on its WebSocket only. [streamlit: server.allowedHosts]
        Middleware(
            Door,
            token=token,
            hosts=[*st.get_option("server.allowedHosts"), address or ""],
            origins=st.get_option("server.corsAllowedOrigins"),
        ),
        Middleware(ApiFirst),
        Middleware(StaticFiles),
    ],
)
