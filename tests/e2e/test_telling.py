"""A job that ends is told of wherever the reader is; the sidebar and its page show figures."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

BUSY = """
import pathlib, sys, time, signalbox
run, end = signalbox.start(), pathlib.Path(sys.argv[1])
held, step = bytearray(64 * 2**20), 0
while not end.exists():
    step += 1
    run.log(step, train_loss=1 / step)
    sum(range(300_000))
    time.sleep(0.02)
"""

STAND_IN = """
globalThis.shown = []
globalThis.Notification = class {
    static permission = "default"
    static async requestPermission() { return (Notification.permission = "granted") }
    constructor(title, options) { shown.push(`${title} (${options.tag})`) }
}
globalThis.hiddenNow = false
Object.defineProperty(document, "hidden", { get: () => hiddenNow })
const state = () => (hiddenNow ? "hidden" : "visible")
Object.defineProperty(document, "visibilityState", { get: state })
"""
"""No page of a headless browser is hidden, and it has nowhere to show a notification."""


def test_a_job_is_seen_in_the_sidebar_and_told_of_when_it_ends(
    own_page: Page, server: Server, write_script: Callable[[str, str], str], tmp_path: Path
) -> None:
    page = own_page

    page.add_init_script(STAND_IN)
    page.goto("/gpu")
    strip = page.locator(".signalbox-strip")
    expect(strip).to_contain_text(
        re.compile(r"CPU\d+ %Memory[\d.]+ of [\d.]+ GiBDisk[\d.]+ \w+ left")
    )
    height = strip.bounding_box()
    assert height
    hostile = "digits <img src=x onerror=alert(1)>"
    busy = write_script("busy.py", BUSY)
    number = server.submit(name=hostile, script=busy, args=[str(tmp_path / "end")])
    running = strip.get_by_role("link", name=re.compile(r"[1-9]\d* running"))
    expect(running).to_be_visible()
    expect(page).to_have_title(re.compile(r"^▶ [1-9]\d* running · GPU · Signalbox$"))
    assert strip.bounding_box() == height, "Nothing in it moves."

    # Its own use of the machine, on its page
    page.goto(f"/job?id={number}")
    use = page.locator(".signalbox-use")
    charts = use.locator("figure")
    expect(charts).to_have_count(2)
    first = [box["height"] for box in (use.bounding_box(), charts.last.bounding_box()) if box]
    lines = use.locator("path:not([class])")
    expect(lines.first).to_have_attribute("d", re.compile(r"^M.+L.+L"))
    expect(lines.last).to_have_attribute("d", re.compile(r"^M.+L.+L"))
    expect(use).to_contain_text(re.compile(r"[\d.]+ cores?, [\d.]+ MiB now; peak [\d.]+ MiB\."))
    drawn = lines.first.get_attribute("d") or ""
    wait_until(lambda: (lines.first.get_attribute("d") or "").count("L") > drawn.count("L"), 60)
    boxes = (use.bounding_box(), charts.last.bounding_box())
    assert [box["height"] for box in boxes if box] == first, "It has its place from the beginning."

    # Told on another page, with a way to it
    running.click()
    page.wait_for_url("**/jobs?*state=running*")
    strip.get_by_role("link", name="queued").click()
    page.wait_for_url("**/jobs?*state=queued*")
    expect(running).to_be_visible()
    (tmp_path / "end").touch()
    toast = page.locator(".signalbox-toast")
    expect(toast).to_contain_text(f"Job {number} {hostile} completed")
    expect(page).to_have_title("Jobs · Signalbox")
    toast.get_by_role("link").click()
    page.wait_for_url(f"**/job?id={number}")
    expect(use).to_contain_text(re.compile(r"[\d.]+ cores? on average, at most [\d.]+ MiB\."))

    # Told to somebody who does not look
    wish = page.get_by_role("switch", name="Notify me in this browser")
    expect(wish).to_have_attribute("aria-checked", "false")
    wish.click()
    expect(wish).to_have_attribute("aria-checked", "true")
    page.evaluate("hiddenNow = true")
    broken = write_script("broken.py", "raise ValueError('upside down')")
    crashed = server.submit(name="broken", script=broken)
    expect(page).to_have_title(re.compile(f"^✕ Job {crashed} crashed · .*Signalbox$"))
    assert page.evaluate("shown") == [f"Job {crashed} broken crashed (signalbox-{crashed})"]
    expect(toast).to_contain_text("ValueError: upside down")
    page.evaluate("hiddenNow = false; document.dispatchEvent(new Event('visibilitychange'))")
    expect(page).to_have_title(re.compile("^[^✕]*Signalbox$"))
