"""Every page by keyboard alone, for a screen reader, in both themes, and without a jump."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import axe_playwright_python
import pytest
from playwright.sync_api import Page, expect

from backend.paths import DataPaths
from tests.e2e.test_the_main_job import job_number, lamp
from tests.server import Server
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

AXE: Final = Path(axe_playwright_python.__file__).with_name("axe.min.js")
RUN_AXE: Final = """async () => {
    const found = await axe.run(document, { resultTypes: ["violations"] })
    return found.violations
        .filter((rule) => ["serious", "critical"].includes(rule.impact))
        .flatMap((rule) => rule.nodes.map((node) => [rule.id, node.target.flat().join(" "),
            node.html.slice(0, 200), node.failureSummary]))
}"""
DRAWN: Final = """() => !document.querySelector(
    "[data-testid=stSkeleton], [data-stale=true], [data-test-script-state=running]")"""

KNOWN: Final = {
    ("nested-interactive", ".js-plotly-plot"): "Plotly's own buttons lie in the picture that has "
    "the curve's text; all that they do is also done by other means",
}
"""Findings that stay, by rule and a part of the selector, each with its reason."""

WATCH: Final = """
const listeners = []
const listen = document.addEventListener
document.addEventListener = function (kind, act, options) {
    if (kind === "keydown" && options?.signal) listeners.push(options.signal)
    return listen.apply(this, arguments)
}
globalThis.keyListeners = () => listeners.filter((signal) => !signal.aborted).length
globalThis.shifts = []
new PerformanceObserver((list) => {
    for (const shift of list.getEntries()) {
        if (!shift.hadRecentInput) shifts.push([shift.value, ...shift.sources.map(
            (s) => (s.node?.outerHTML ?? s.node?.textContent ?? "").slice(0, 160))])
    }
}).observe({ type: "layout-shift", buffered: true })
"""

LOGS: Final = """\
import signalbox, sys, time
from pathlib import Path

run = signalbox.start(total_steps=100_000)
goes_on = sys.argv[1] == "goes on"
for step in range(100_000 if goes_on else 40):
    run.log(step, train_loss=2 / (step + 1), eval_loss=3 / (step + 1), learning_rate=1e-3)
    if goes_on and (run.should_stop or Path(sys.argv[2]).exists()):
        break
    time.sleep(0.02 if goes_on else 0)
if sys.argv[1] == "ends badly":
    raise KeyError("labels")
"""


@pytest.fixture
def release(tmp_path: Path) -> Iterator[Path]:
    """The jobs here end at the latest when this file is there."""
    path = tmp_path / "release"
    yield path
    path.touch()


@pytest.fixture
def execute(
    server: Server, release: Path, write_script: Callable[[str, str], str]
) -> Callable[[str], int]:
    """Queues a script that ends, fails or goes on; answers with the job's number."""
    script = write_script("logs.py", LOGS)

    return lambda how: server.submit(script=script, args=[how, str(release)])


def findings(page: Page) -> list[Any]:
    """What axe calls serious or critical, but for what is known."""
    found = page.evaluate(RUN_AXE)
    return [f for f in found if not any(f[0] == rule and part in f[1] for rule, part in KNOWN)]


def test_axe_finds_nothing_serious_on_any_page_in_either_theme(
    page: Page, server: Server, execute: Callable[[str], int]
) -> None:
    fails, ends, runs = execute("ends badly"), execute("ends"), execute("goes on")
    wait_until(lambda: server.status(runs) == "running", 60)
    wait_until(lambda: {server.status(n) for n in (fails, ends)} == {"failed", "completed"}, 90)
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    for path in (
        "/",
        "/submit?recipe=digits",
        f"/submit?like={ends}",
        "/jobs",
        f"/job?id={runs}",
        f"/job?id={ends}",
        f"/job?id={fails}",
        "/job?id=999999",
        f"/compare?ids={ends},{runs},999999",
        "/failures",
        "/gpu",
    ):
        page.goto(path)
        expect(page.get_by_test_id("stMain").get_by_role("heading").first).to_be_visible()
        expect(page).to_have_title(re.compile(".+ · Signalbox$"))
        page.wait_for_function(DRAWN)
        page.add_script_tag(path=AXE)
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            expect(page.get_by_test_id("stApp")).to_have_css("color-scheme", theme)
            wait_until(
                lambda: not findings(page),
                20,
                lambda where=f"{path}, {theme}": f"{where}: {findings(page)}",  # type: ignore[misc]
            )


def test_a_job_is_submitted_watched_and_cancelled_by_keyboard_alone(
    own_page: Page, server: Server, release: Path, write_script: Callable[[str, str], str]
) -> None:
    page = own_page
    press, dialog = page.keyboard.press, page.get_by_role("dialog", name="Keys")
    page.add_init_script(WATCH)

    page.goto("/")
    expect(page.get_by_role("button", name="Keys")).to_be_visible()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    wait_until(lambda: page.evaluate("keyListeners()") == 1, 30)
    press("Control+?")
    press("?")
    expect(dialog).to_contain_text("Cancel the job that this page shows")
    for _ in range(3):
        press("Tab")
        inside = "document.activeElement.matches('body, dialog, dialog *')"
        assert page.evaluate(inside), "The keyboard leaves the dialog."
    press("Escape")
    expect(dialog).to_be_hidden()
    page.get_by_role("button", name="Keys").click()
    expect(dialog).to_be_visible()
    press("Enter")  # on its button
    expect(dialog).to_be_hidden()

    press("/")
    page.wait_for_url("**/jobs")
    field = page.get_by_label("Search", exact=True)
    expect(field).to_be_focused()
    page.keyboard.type("c?/gs")
    expect(field).to_have_value("c?/gs")
    expect(dialog).to_be_hidden()
    field.press("Enter")
    page.evaluate("document.activeElement.blur()")
    press("g")
    press("s")
    page.wait_for_url("**/submit**")
    assert page.evaluate("keyListeners()") == 1, "One, after two pages and a search."

    page.goto("/submit?recipe=script")
    script = page.get_by_label("Script", exact=True)
    expect(script).to_be_visible()
    tab_to(page, "Script")
    page.keyboard.type(write_script("logs.py", LOGS))
    tab_to(page, "Arguments")
    page.keyboard.type(f"'goes on' {release}")
    tab_to(page, "Submit")
    press("Enter")
    number = job_number(page)
    expect(lamp(page, "running")).to_be_visible()

    metrics = DataPaths(server.data).run(number).metrics

    def points() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    def log_more(count: int) -> None:
        now = points()
        wait_until(lambda: points() > now + count, 60, "It does not log.")

    log_more(20)
    for path in (page.url, "/"):  # no jump while it runs, once the page is there
        page.goto(path)
        expect(lamp(page, "running")).to_be_visible()
        page.wait_for_function(DRAWN)
        log_more(40)
        page.evaluate("shifts.length = 0")
        log_more(60)
        jumped = page.evaluate("shifts")
        assert sum(shift[0] for shift in jumped) < 0.01, f"{path}: {jumped}"

    press("c")  # two or more jobs may be on this page, and none of them is meant
    page.goto(f"/job?id={number}")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
    wait_until(lambda: page.evaluate("keyListeners()") == 1, 30)
    press("g")
    press("c")  # to the comparison, and nothing else
    page.wait_for_url("**/compare")
    page.goto(f"/job?id={number}")
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_be_visible()
    wait_until(lambda: page.evaluate("keyListeners()") == 1, 30)
    assert server.status(number) == "running"
    press("Control+c")
    press("c")
    expect(lamp(page, "cancelled")).to_be_visible()


def tab_to(page: Page, name: str) -> None:
    """Press Tab until what has this name has the focus."""
    for _ in range(60):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            """() => { const e = document.activeElement
                return e.ariaLabel || e.labels?.[0]?.innerText || e.innerText || "" }"""
        )
        if focused.strip() == name:
            return
    raise AssertionError(f"Tab does not come to {name!r}.")
