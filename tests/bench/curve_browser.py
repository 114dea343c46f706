"""Times in a page, taken by the page's own clock.

A look at the page in each frame says whether the curve is drawn; what counts is the frame after
that, which shows it. The look costs the page the same whichever tool drew it.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Page, TimeoutError, ViewportSize, sync_playwright

from tests.bench.curve_tools import INK, Drawing
from tests.e2e.conftest import ARGUMENTS, CHROMIUM

MOST_SECONDS = 120.0
POLL_MILLISECONDS = 100
SIZE: ViewportSize = {"width": 1280, "height": 800}

WATCH = """
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
AT_ONCE = "look()"
AT_PRESS = """
const pressed = () => { window.__pressedAt = performance.now(); look() }
addEventListener("pointerdown", pressed, {once: true, capture: true})
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    assert CHROMIUM is not None, "Chromium is not installed (Debian: apt-get install chromium)."
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def new_window(browser: Browser) -> Iterator[Page]:
    """One that has nothing in its cache."""
    context = browser.new_context(viewport=SIZE, locale="en-GB")
    try:
        yield context.new_page()
    finally:
        context.close()


def cold_seconds(browser: Browser, drawing: Drawing) -> float | None:
    """From navigation to the drawn curve in a new window; None where it takes too long."""
    with new_window(browser) as page:
        page.add_init_script(_watch(drawing.drawn, AT_ONCE))
        page.goto(drawing.url, wait_until="commit", timeout=1000 * MOST_SECONDS)
        drawn_at = _drawn_at(page)
        return None if drawn_at is None else drawn_at / 1000


def click_seconds(browser: Browser, url: str, link: str, drawing: Drawing) -> float | None:
    """From the press on a link, a CSS selector, of an open page to the drawn curve."""
    with new_window(browser) as page:
        page.goto(url)
        page.locator(link).first.wait_for(timeout=1000 * MOST_SECONDS)
        page.wait_for_timeout(1500)  # who reads a table and finds a job takes longer
        page.evaluate(_watch(drawing.drawn, AT_PRESS))
        page.locator(link).first.click()
        drawn_at = _drawn_at(page)
        if drawn_at is None:
            return None
        return float(drawn_at - page.evaluate("window.__pressedAt")) / 1000


def _watch(drawn: str, begin: str) -> str:
    return WATCH.replace("INK", INK).replace("DRAWN", drawn.strip()).replace("BEGIN", begin)


def _drawn_at(page: Page) -> float | None:
    try:
        page.wait_for_function(
            "window.__drawnAt", polling=POLL_MILLISECONDS, timeout=1000 * MOST_SECONDS
        )
    except TimeoutError:
        return None
    return float(page.evaluate("window.__drawnAt"))
