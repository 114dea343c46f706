"""A real server and a real browser."""

import os
import shutil
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Page, expect, sync_playwright

from tests.server import Server

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
PATIENCE_MILLISECONDS = 30_000
TIMEOUT_SECONDS = 400
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def pytest_itemcollected(item: pytest.Item) -> None:
    """A browser, a server and a training on a busy machine take their time."""
    if item.get_closest_marker("timeout") is None:
        item.add_marker(pytest.mark.timeout(TIMEOUT_SECONDS))


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if CHROMIUM is None:
        assert os.environ.get("SIGNALBOX_TEST_BROWSER") != "required", "Chromium is not installed"
        pytest.skip("Chromium is not installed (Debian: apt-get install chromium)")
    expect.set_options(timeout=PATIENCE_MILLISECONDS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data = tmp_path_factory.mktemp("e2e") / "data"
    with Server(data, workers=3, stall_grace_seconds=1, cancel_grace_seconds=5) as server:
        yield server


@pytest.fixture
def server(one_server: Server) -> Iterator[Server]:
    """One for all tests of this folder; each looks at its own jobs, and leaves none running."""
    yield one_server
    one_server.kill_all()


@pytest.fixture(scope="session")
def windows(browser: Browser) -> Iterator[MutableMapping[str, Page]]:
    """The window at each server, by its address, to be used by one test after the other.

    A new one has to compile Streamlit's scripts, which takes three times as long as all the rest
    of drawing a page.
    """
    windows: dict[str, Page] = {}
    yield windows
    for window in windows.values():
        window.context.close()


@contextmanager
def quiet_console(page: Page) -> Iterator[None]:
    """Its console must stay free of errors."""
    problems: list[str] = []

    def note(message: ConsoleMessage) -> None:
        if message.type == "error":
            problems.append(f"{message.text} ({message.location})")

    def note_error(error: Error) -> None:
        problems.append(str(error))

    page.on("console", note)
    page.on("pageerror", note_error)
    yield
    page.remove_listener("console", note)
    page.remove_listener("pageerror", note_error)
    assert not problems, "\n".join(problems)


@pytest.fixture
def page(browser: Browser, server: Server, windows: MutableMapping[str, Page]) -> Iterator[Page]:
    """A browser window that remembers nothing, and whose console must stay free of errors."""
    if server.url not in windows or windows[server.url].is_closed():
        context = browser.new_context(base_url=server.url, locale="en-GB")
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        windows[server.url] = context.new_page()
    page = windows[server.url]
    page.bring_to_front()  # Chromium slows down what lies behind
    page.set_viewport_size({"width": 1280, "height": 800})
    page.emulate_media(color_scheme="light")
    with quiet_console(page):
        yield page
    if not page.is_closed():
        with suppress(Error):  # it may be on its way to another page
            page.evaluate("sessionStorage.clear()")
        page.goto("about:blank")
        page.unroute_all()
        forget = page.context.new_cdp_session(page)
        stored = {"origin": server.url, "storageTypes": "cookies,local_storage,indexeddb"}
        forget.send("Storage.clearDataForOrigin", stored)
        forget.detach()


@pytest.fixture
def own_page(browser: Browser, server: Server) -> Iterator[Page]:
    """A window of its own, for a test that puts scripts into every page of it."""
    with browser.new_context(
        base_url=server.url, viewport={"width": 1280, "height": 800}, locale="en-GB"
    ) as context:
        context.set_default_timeout(PATIENCE_MILLISECONDS)
        page = context.new_page()
        with quiet_console(page):
            yield page


@pytest.fixture
def write_script(tmp_path: Path) -> Callable[[str, str], str]:
    """Writes a script for a test to submit; returns its path."""

    def write(name: str, source: str) -> str:
        path = tmp_path / name
        path.write_text(source, encoding="utf-8")
        return str(path)

    return write
