"""The server: starts the backend before the first visit, and closes it after the last.

python -m streamlit run app.py
"""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import streamlit as st
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse
from starlette.routing import Route

from backend import runtime
from backend.service import Service, StartError
from backend.settings import SettingsError, read_settings
from pages.parts import plotly_script

logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
logging.getLogger("backend").setLevel(logging.INFO)

try:
    settings = read_settings()
except SettingsError as error:
    sys.exit(f"Signalbox cannot start. {error}")


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """Start the one Service of this process; close it when the server stops."""
    service = Service(settings)
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
        runtime.use(None)
        print(_farewell(service.close()), flush=True)


def _farewell(running: int) -> str:
    if not running:
        return "Signalbox closed; no job is running."
    jobs, they = ("1 job goes on", "it") if running == 1 else (f"{running} jobs go on", "they")
    return f"Signalbox closed; {jobs} running, and {they} will be found again at the next start."


PAGES: Final = ("submit", "jobs", "job", "failures", "gpu")


def page_shell() -> str:
    """Streamlit's index.html, told where the server is.

    Without it the browser takes `/job` for a prefix that the app may be served under, asks there
    first, and shows two errors in its console before it asks at the root.
    """
    index = Path(st.__file__).parent / "static" / "index.html"
    told = '<script>window.__streamlit = { BACKEND_BASE_URL: location.origin + "/" }</script>'
    return index.read_text(encoding="utf-8").replace("<head>", f"<head>\n    {told}", 1)


async def page(_: Request) -> HTMLResponse:
    """What a new browser gets that opens a page by its address."""
    return HTMLResponse(page_shell(), headers={"Cache-Control": "no-cache"})


async def plotly(_: Request) -> FileResponse:
    """Plotly's script as its package ships it."""
    return FileResponse(
        plotly_script.SCRIPT,
        media_type="text/javascript",
        headers={"Cache-Control": "public, max-age=31536000, immutable"},
    )


app = st.App(
    "pages/navigation.py",
    lifespan=lifespan,
    routes=[Route(plotly_script.URL, plotly), *(Route(f"/{name}", page) for name in PAGES)],
    middleware=[
        # Streamlit asks for a known host on its WebSocket only. [streamlit: server.allowedHosts]
        Middleware(
            TrustedHostMiddleware, allowed_hosts=st.get_option("server.allowedHosts") or ["*"]
        )
    ],
)
