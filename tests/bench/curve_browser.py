"""Times in a page, taken by the page's own clock.

A look at the page in each frame says whether the curve is drawn; what counts is the frame after
that, which shows it. The look costs the page the same whichever tool drew it.

The browser is spoken to in the DevTools protocol itself, and told no more than it takes to open a
page and read a number from it. Playwright switches on the domain `Runtime`, with which V8 writes
down where it is at each exception: Plotly's start, which throws some, takes 0.8 s longer then, and
what a page costs its reader would not be what is measured.

Protocol: https://chromedevtools.github.io/devtools-protocol/
"""

import base64
import itertools
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import psutil
from websockets.sync.client import ClientConnection, connect

from tests.bench.curve_tools import INK, Drawing
from tests.e2e.conftest import ARGUMENTS, CHROMIUM
from tests.waiting import wait_until

MOST_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.1
READING_SECONDS: Final = 1.5
QUIET_PERCENT: Final = 10
AWAKE: Final = (
    "--disable-backgrounding-occluded-windows",
    "--disable-background-timer-throttling",
    "--disable-renderer-backgrounding",
)
"""So that a window behind another goes on as if somebody looked at it."""

SIZE: Final = {"width": 1280, "height": 800}

WATCH: Final = """
(() => {
  if (window !== top) return
  INK
  const drawn = () => { try { return DRAWN } catch { return false } }
  const look = () => {
    if (drawn()) requestAnimationFrame(() => { window.__drawnAt = performance.now() })
    else requestAnimationFrame(look)
  }
  BEGIN
})()
"""
AT_ONCE: Final = "look()"
AT_PRESS: Final = """
const pressed = () => { window.__pressedAt = performance.now(); look() }
addEventListener("pointerdown", pressed, {once: true, capture: true})
"""
PLACE: Final = """
(() => {
  const area = document.querySelector(LINK)?.getBoundingClientRect()
  return area?.width ? [area.x + area.width / 2, area.y + area.height / 2] : null
})()
"""


class Browser:
    """A Chromium of its own, over its one WebSocket."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self.received: Counter[str] = Counter()
        """Bytes, by the session of a window that counts them."""
        self.version = str(self.send("Browser.getVersion")["product"])

    def send(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        """Ask for something, and wait for its answer."""
        asked = {"id": next(self._numbers), "method": method, "params": params}
        self._socket.send(json.dumps(asked | ({"sessionId": session} if session else {})))
        while True:
            answer = json.loads(self._socket.recv(timeout=MOST_SECONDS))
            if answer.get("id") == asked["id"]:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return cast("dict[str, Any]", answer["result"])
            self._hear(answer)

    def listen(self, seconds: float) -> float:
        """Let time pass, and hear what happens meanwhile; returns how many seconds passed."""
        begin = time.monotonic()
        with suppress(TimeoutError):
            while (left := begin + seconds - time.monotonic()) > 0:
                self._hear(json.loads(self._socket.recv(timeout=left)))
        return time.monotonic() - begin

    def _hear(self, event: Mapping[str, Any]) -> None:
        """Count bytes: heads and bodies as they come over the wire, and what WebSockets say."""
        size = 0.0
        if event.get("method") == "Network.loadingFinished":
            size = event["params"]["encodedDataLength"]
        elif event.get("method") == "Network.webSocketFrameReceived":
            frame = event["params"]["response"]
            text = frame["payloadData"]
            size = len(base64.b64decode(text) if frame["opcode"] == 2 else text.encode())
        if size:
            self.received[event["sessionId"]] += int(size)


class Window:
    """One page in a browser context that has nothing in its cache."""

    def __init__(self, browser: Browser, context: str) -> None:
        self._browser = browser
        target = browser.send(
            "Target.createTarget", url="about:blank", browserContextId=context, newWindow=True
        )
        attached = browser.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = str(attached["sessionId"])
        self._send("Emulation.setDeviceMetricsOverride", deviceScaleFactor=1, mobile=False, **SIZE)
        self._send("Emulation.setFocusEmulationEnabled", enabled=True)
        self._send("Page.enable")

    def count_bytes(self) -> None:
        """Add what it receives from now on to `received`."""
        self._send("Network.enable")

    def begin_with(self, script: str) -> None:
        """Run this in each new document, before anything of its own."""
        self._send("Page.addScriptToEvaluateOnNewDocument", source=script)

    def go(self, url: str) -> None:
        """Returns once the server has answered."""
        assert "errorText" not in self._send("Page.navigate", url=url), url

    def read(self, expression: str) -> Any:
        """What this JavaScript says; None for what is undefined."""
        said = self._send("Runtime.evaluate", expression=expression, returnByValue=True)
        return said["result"].get("value")

    def wait_for(self, expression: str) -> Any:
        """What it says once that is true of it, or None where that takes too long."""
        begin = time.monotonic()
        while not (said := self.read(expression)):
            if time.monotonic() - begin > MOST_SECONDS:
                return None
            time.sleep(POLL_SECONDS)
        return said

    def press(self, x: float, y: float) -> None:
        """Move the mouse there, and click."""
        self._send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        for what in ("mousePressed", "mouseReleased"):
            self._send("Input.dispatchMouseEvent", type=what, x=x, y=y, button="left", clickCount=1)

    def _send(self, method: str, **params: object) -> dict[str, Any]:
        return self._browser.send(method, self._session, **params)


@contextmanager
def chromium() -> Iterator[Browser]:
    """One without a screen."""
    assert CHROMIUM is not None, "Chromium is not installed (Debian: apt-get install chromium)."
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        told = Path(folder) / "DevToolsActivePort"
        command = [CHROMIUM, "--headless", "--no-first-run", "--lang=en-GB", *ARGUMENTS, *AWAKE]
        process = subprocess.Popen(
            [*command, "--remote-debugging-port=0", f"--user-data-dir={folder}"],
            env={**os.environ, "TMPDIR": folder},  # it leaves folders behind there
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_until(lambda: told.exists() and told.read_text().count("\n"), MOST_SECONDS)
            port, path = told.read_text().split()
            with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
                yield Browser(socket)
        finally:
            process.terminate()
            process.wait()


@contextmanager
def new_window(browser: Browser) -> Iterator[Window]:
    """One that has nothing in its cache."""
    context = browser.send("Target.createBrowserContext")["browserContextId"]
    try:
        yield Window(browser, context)
    finally:
        browser.send("Target.disposeBrowserContext", browserContextId=context)


def rest() -> None:
    """Wait until the machine is quiet: a server may go on with what it was asked for after its page
    was closed, and would take a core from the next."""
    begin = time.monotonic()
    while psutil.cpu_percent(0.5) > QUIET_PERCENT and time.monotonic() - begin < MOST_SECONDS:
        pass


def cold_seconds(browser: Browser, drawing: Drawing) -> float | None:
    """From navigation to the drawn curve in a new window; None where it takes too long."""
    rest()
    with new_window(browser) as window:
        window.begin_with(watch(drawing.drawn, AT_ONCE))
        window.go(drawing.url)
        drawn_at = window.wait_for("window.__drawnAt")
        return None if drawn_at is None else drawn_at / 1000


def click_seconds(browser: Browser, url: str, link: str, drawing: Drawing) -> float | None:
    """From the press on a link, a CSS selector, of an open page to the drawn curve."""
    rest()
    with new_window(browser) as window:
        window.go(url)
        place = PLACE.replace("LINK", json.dumps(link))
        assert window.wait_for(place), f"There is no {link} on {url}."
        time.sleep(READING_SECONDS)  # who reads a table and finds a job takes longer
        window.read(watch(drawing.drawn, AT_PRESS))
        window.press(*window.read(place))
        drawn_at = window.wait_for("window.__drawnAt")
        if drawn_at is None:
            return None
        return float(drawn_at - window.read("window.__pressedAt")) / 1000


def watch(drawn: str, begin: str) -> str:
    """JavaScript that keeps in `__drawnAt` when the curve was drawn, in ms since the navigation."""
    return WATCH.replace("INK", INK).replace("DRAWN", drawn.strip()).replace("BEGIN", begin)
