"""The live chart in a browser: what it computes, holds while points arrive, and lets one choose."""

import csv
import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from pages.parts.plotly_script import with_shared
from tests.server import Server
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

MAIN = ".signalbox-main .js-plotly-plot"

STEADY = """\
import signalbox, time
run = signalbox.start()
for step in range(1_000_000):
    run.log(step, train_loss=2.0 / (step + 1), grad_norm=1.0 + step % 7)
    time.sleep(0.008)
"""

SHORT = """\
import math, signalbox
run = signalbox.start()
for step in range(1, 1501):
    values = {"eval_loss": abs(step - 1000) / 1000 + 0.5} if step % 100 == 0 else {}
    loss = math.nan if step == 700 else 50.0 if step == 3 else 2.0 / step + 0.01 * (step % 5)
    run.log(step, epoch=step // 300, train_loss=loss, learning_rate=1e-3, accuracy=0.5, **values)
folder = run.checkpoint_dir / "step-00000500"
folder.mkdir()
(folder / "weights.bin").write_bytes(bytes(10))
run.saved(folder)
"""

STATE = """() => [document.hidden, Boolean(globalThis.Plotly),
document.querySelector(".signalbox-curve")?.innerText]"""

SHIFTS = """
globalThis.shifts = []
new PerformanceObserver((list) => {
  const unasked = list.getEntries().filter((entry) => !entry.hadRecentInput)
  globalThis.shifts.push(...unasked.map((entry) => entry.value))
}).observe({ type: "layout-shift", buffered: false })
"""


def visit(page: Page, address: str) -> None:
    """Go to a page; what is waited for next may take its time on a busy machine."""
    page.goto(address, wait_until="commit")


def read(page: Page, script: str) -> Any:
    """A value of the large chart, where `plot` is its element."""
    return page.evaluate(
        f"() => {{ const plot = document.querySelector('{MAIN}'); return {script} }}"
    )


def x_range(page: Page) -> list[float]:
    return [float(end) for end in read(page, "plot._fullLayout.xaxis.range")]


def newest(page: Page) -> float:
    """The last step that is drawn."""
    return float(read(page, "plot?.data ? Math.max(...plot.data[0].x) : -1"))


def chosen(page: Page, key: str) -> str | None:
    """A parameter of the address."""
    value = page.evaluate("(key) => new URLSearchParams(location.search).get(key)", key)
    assert value is None or isinstance(value, str)
    return value


def follow(page: Page) -> Locator:
    return page.get_by_role("button", name="Follow latest")


def test_averages_and_bins_are_as_worked_out_by_hand(browser: Browser) -> None:
    page = browser.new_page()
    names = "ema, extent, curve, grown, refined, extremes, scale, figure, duration, title"
    page.evaluate(
        "(text) => { globalThis.plot = new Function(text + `; return { " + names + " }`)() }",
        with_shared(),
    )

    def call(expression: str, *arguments: Any) -> Any:
        return page.evaluate(
            f"(given) => {{ const [a, b, c] = given; return {expression} }}", arguments
        )

    # TensorBoard's, by hand: sums 0.5, 1.25, 2.625 over 1 - 0.5^n; what is missing does not count.
    smoothed = call("plot.ema(a, b)", [1, 2, None, 4], 0.5)
    assert smoothed == [1.0, pytest.approx(1.25 / 0.75), None, pytest.approx(2.625 / 0.875)]
    assert call("plot.ema(a, b)", [3, 1, 2], 0) == [3, 1, 2]

    low, high = call("plot.extent(a, { outliers: false })", [*range(100), 1e9])
    assert -30 < low < 5
    assert 95 <= high < 130
    assert call("plot.figure(a)", 0.0003) == "3e−04"
    assert call("plot.duration(a)", 7500) == "2 h 5 min"
    assert call("plot.title(a)", "val_\u202eaccuracy") == "Val accuracy"

    def answer(level: int, first_row: int, rows: int, values: list[float]) -> dict[str, Any]:
        size = 2**level
        steps = list(range(first_row, rows, size))
        last = [min(step + size, rows) - 1 for step in steps]
        series: dict[str, Any] = {"mean": values}
        bins: dict[str, Any] = {"step": steps, "epoch": [None] * len(steps), "time": steps}
        if level:
            bins |= {"last_step": last, "last_epoch": bins["epoch"], "last_time": last}
            series |= {"min": [v - 1 for v in values], "max": [v + 1 for v in values]}
            series |= {"min_step": last, "max_step": steps}
        return {
            "job_id": 1, "rows": rows, "indexed": 1, "live": True, "level": level,
            "first_row": first_row, "bins": bins, "series": {"train_loss": series},
        }  # fmt: skip

    whole, more = answer(1, 0, 5, [10, 20, 30]), answer(1, 4, 8, [31, 40])
    grown = "plot.grown(plot.curve(a), plot.curve(b))"
    assert call(f"{grown}.series.train_loss.mean", whole, more) == [10, 20, 31, 40]
    assert call(f"{grown}.bins.last_step", whole, more) == [1, 3, 5, 7]
    assert call(f"{grown}.rows", whole, more) == 8
    coarser = answer(2, 0, 9, [1, 2, 3])
    assert call(f"{grown}.series.train_loss.mean", whole, coarser) == [1, 2, 3], "All of it anew."

    fine = answer(0, 3, 5, [7, 8])
    refined = "plot.refined(plot.curve(a), plot.curve(b))"
    once = answer(1, 0, 8, [10, 20, 31, 40])
    assert call(f"{refined}.bins.step", once, fine) == [0, 3, 4, 6]
    assert call(f"{refined}.series.train_loss.mean", once, fine) == [10, 7, 8, 40]

    # Each bin's extremes, in the order of their steps.
    line = call(
        "plot.extremes(plot.curve(a), 'train_loss', plot.scale(plot.curve(a), 'step'))", once
    )
    assert line["x"] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert line["y"] == [11, 9, 21, 19, 32, 30, 41, 39]
    page.close()


def test_a_zoom_is_held_while_500_points_arrive_and_nothing_moves(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    job_id = server.submit(script=write_script("steady.py", STEADY), gpus=0)
    visit(page, f"/job?id={job_id}")
    wait_until(lambda: newest(page) >= 60, 120, "No curve was drawn.")
    expect(follow(page)).to_have_attribute("aria-pressed", "true")
    page.evaluate(SHIFTS)
    first = newest(page)
    wait_until(lambda: x_range(page)[1] > first + 20, 60, "It does not follow the latest.")

    box = page.locator(f"{MAIN} .nsewdrag").first.bounding_box()
    assert box
    page.mouse.move(box["x"] + 60, box["y"] + 40)
    page.mouse.down()
    page.mouse.move(box["x"] + 200, box["y"] + 160, steps=5)
    page.mouse.up()
    expect(follow(page)).to_have_attribute("aria-pressed", "false")
    wait_until(lambda: chosen(page, "cz"), 30, "The zoom is not in the address.")
    zoomed, before = x_range(page), newest(page)
    height = read(page, "plot._fullLayout.yaxis.range")
    scrolled = page.evaluate("document.querySelector('[data-testid=stMain]').scrollTo(0, 90)")
    scrolled = page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop")
    wait_until(lambda: newest(page) > before + 500, 180, "No new points arrived.")
    assert x_range(page) == pytest.approx(zoomed)
    assert read(page, "plot._fullLayout.yaxis.range") == pytest.approx(height)
    assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollTop") == scrolled

    # A second tab of the same job, by the address of the first, has its zoom and the same points.
    other = page.context.new_page()
    visit(other, page.url)
    wait_until(
        lambda: newest(other) > before + 500,
        120,
        lambda: f"The second tab has no curve: {other.evaluate(STATE)}",
    )
    assert x_range(other) == pytest.approx(zoomed)
    follow(other).click()
    wait_until(lambda: x_range(other)[1] >= before + 500, 30, "One click brings the latest back.")
    latest = x_range(other)[1]
    wait_until(lambda: x_range(other)[1] > latest, 60, "The second tab does not follow.")
    assert chosen(other, "cz") is None
    assert x_range(page) == pytest.approx(zoomed), "The first tab's is its own."
    other.close()
    assert sum(page.evaluate("globalThis.shifts")) < 0.01

    page.evaluate("document.querySelector('.signalbox-curve').dataset.same = 'yes'")
    server.kill(job_id)
    ended = page.locator(".stMarkdownBadge").filter(has_text=re.compile("cancelled$")).first
    expect(ended).to_be_visible()
    same = page.locator(".signalbox-curve")
    expect(same).to_have_attribute("data-same", "yes")  # it was not mounted anew
    last = httpx.get(f"{server.url}/api/training/curve/{job_id}?bins=16", timeout=60).json()
    wait_until(
        lambda: newest(page) >= last["bins"].get("last_step", last["bins"]["step"])[-1] - 1,
        30,
        "The last points are missing.",
    )


def test_every_control_and_what_the_address_keeps(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    job_id = server.submit(script=write_script("short.py", SHORT), gpus=0)
    visit(page, f"/job?id={job_id}")
    wait_until(lambda: newest(page) >= 1500, 120, "The curve was not drawn to its end.")
    said = page.locator(".signalbox-said")
    expect(said).to_contain_text("best held-out 0.5 at step 1,000. Last step 1,500.")
    expect(page.locator(MAIN)).to_have_attribute("aria-label", re.compile("best held-out 0.5"))
    wait_until(
        lambda: (
            {"star", "x", "diamond"}
            <= set(read(page, "plot.data.flatMap((line) => line.marker?.symbol ?? [])"))
        ),
        60,
        "Best held-out, a loss that was no number, and a checkpoint are marked.",
    )
    titles = page.locator(".signalbox-panel figcaption span")
    expect(titles).to_have_text(["Learning rate", "Accuracy"])

    assert max(v for v in read(page, "plot.data[0].y") if v is not None) == 50, "No peak is lost."
    assert read(page, "plot._fullLayout.yaxis.range[1]") > 50
    page.get_by_label("Ignore outliers").check()
    wait_until(lambda: read(page, "plot._fullLayout.yaxis.range[1]") < 10, 60)
    page.get_by_label("Log y").check()
    wait_until(lambda: read(page, "plot._fullLayout.yaxis.type") == "log", 60)
    lines = len(read(page, "plot.data.map((line) => line.name)"))
    page.get_by_label("Smoothing").fill("0")
    wait_until(lambda: len(read(page, "plot.data.map((line) => line.name)")) == lines - 1, 60)
    page.get_by_label("Smoothing").fill("0.9")
    wait_until(lambda: chosen(page, "cs") == "0.9", 60)
    for axis, end in {"Epoch": 6, "Time since start": 600, "Clock": None, "Step": 1600}.items():
        page.get_by_label("X axis").select_option(axis)
        kind = "date" if end is None else "linear"
        wait_until(lambda kind=kind: read(page, "plot._fullLayout.xaxis.type") == kind, 60)  # type: ignore[misc]
        if end is not None:
            wait_until(
                lambda end=end: x_range(page)[1] < end,  # type: ignore[misc]
                60,
                lambda axis=axis: f"{axis}: {x_range(page)}",  # type: ignore[misc]
            )
    page.get_by_label("X axis").select_option("Epoch")
    legend = page.get_by_role("group", name="Show and hide")
    legend.get_by_role("button", name="Held-out loss").click()
    wait_until(lambda: "Best held-out" not in read(page, "plot.data.map((line) => line.name)"), 60)
    whole = x_range(page)
    zoom = page.get_by_role("button", name="Zoom in")
    zoom.focus()
    page.keyboard.press("Enter")
    expect(follow(page)).to_have_attribute("aria-pressed", "false")
    wait_until(lambda: chosen(page, "cz") and x_range(page) != whole, 60)
    kept = {key: chosen(page, key) for key in ("cx", "cs", "cl", "co", "cz", "ch")}
    assert kept["cx"] == "epoch"
    assert kept["ch"] == "eval_loss"
    zoomed = x_range(page)

    # Another page and back: this tab remembers. A new browser: the address does, on a phone too.
    address = page.url
    page.get_by_role("link", name="Jobs", exact=True).click()
    expect(page.get_by_role("heading", name="Jobs")).to_be_visible()
    visit(page, f"/job?id={job_id}")
    wait_until(lambda: newest(page) > 0, 60)
    wait_until(lambda: {key: chosen(page, key) for key in kept} == kept, 60)
    browser = page.context.browser
    assert browser
    phone = browser.new_context(
        viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True
    )
    small = phone.new_page()
    visit(small, address)
    wait_until(lambda: newest(small) > 0, 120, "The curve was not drawn on a phone.")
    wait_until(
        lambda: x_range(small) == pytest.approx(zoomed),
        60,
        lambda: f"The phone shows {x_range(small)}, not {zoomed}.",
    )
    expect(small.get_by_label("X axis")).to_have_value("epoch")
    expect(small.get_by_label("Log y")).to_be_checked()
    assert small.evaluate("document.documentElement.scrollWidth") <= 360
    for part in (".signalbox-controls", ".signalbox-main"):
        assert small.locator(part).evaluate("(part) => part.scrollWidth") <= 360
    strip = small.locator(".signalbox-side")
    assert strip.evaluate("(side) => side.scrollHeight <= side.clientHeight + 1")
    follow(small).tap()
    expect(follow(small)).to_have_attribute("aria-pressed", "true")
    phone.close()

    contents = {}
    for item, name in {
        "Picture (PNG)": "loss.png", "Drawing (SVG)": "loss.svg",
        "All points (CSV)": "metrics.csv", "All points (JSON lines)": "metrics.jsonl",
    }.items():  # fmt: skip
        page.locator("summary", has_text="Download").click()
        with page.expect_download() as download:
            page.locator(".signalbox-menu").get_by_text(item).click()
        assert download.value.suggested_filename == f"job-{job_id}-{name}"
        contents[name] = download.value.path().read_bytes()
    assert contents["loss.png"].startswith(b"\x89PNG")
    assert b"<svg" in contents["loss.svg"]
    table = list(csv.DictReader(contents["metrics.csv"].decode().splitlines()))
    assert [int(row["step"]) for row in table] == list(range(1, 1501))
    assert (table[2]["train_loss"], table[699]["train_loss"]) == ("50.0", "")
    points = [json.loads(line) for line in contents["metrics.jsonl"].splitlines()]
    assert len(points) == 1500
    assert points[999]["eval_loss"] == 0.5


TICKS = """(plot) => {
  const place = plot.getBoundingClientRect()
  const at = (element) => {
    const box = element.getBoundingClientRect()
    return [box.x + box.width / 2 - place.x, box.y + box.height / 2 - place.y]
  }
  const texts = plot.querySelectorAll(".signalbox-sketch text, .xtick text, .ytick text")
  const lines = plot.querySelectorAll(".signalbox-sketch [clip-path] path, .scatterlayer .js-line")
  return [
    Object.fromEntries([...texts].map((text) => [text.textContent, at(text)])),
    [...lines].map((line) => {
      const box = line.getBoundingClientRect()
      return [box.x - place.x, box.y - place.y, box.width, box.height]
    }),
  ]
}"""


@pytest.mark.parametrize("choices", ["", "&cl=1", "&cz=200~900~~", "&cx=epoch&co=1"])
def test_a_curve_is_sketched_where_plotly_then_draws_it(
    choices: str, page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    job_id = server.submit(script=write_script("short.py", SHORT), gpus=0)
    curve = f"{server.url}/api/training/curve/{job_id}?bins=1000"
    wait_until(lambda: httpx.get(curve).json().get("rows") == 1500, 60)
    held: list[Route] = []
    page.route("**/vendor/*", lambda route: held.append(route))
    visit(page, f"/job?id={job_id}{choices}")
    plot = page.locator(".signalbox-main .signalbox-plot")
    expect(plot.locator(".signalbox-sketch")).to_be_attached()
    texts, lines = plot.evaluate(TICKS)
    wait_until(lambda: page.evaluate("1") and held, 60, "Plotly was not asked for.")
    for request in held:
        request.continue_()
    held.clear()
    page.unroute("**/vendor/*")
    expect(plot.locator(".scatterlayer .js-line").first).to_be_attached()
    expect(plot.locator(".signalbox-sketch")).not_to_be_attached()
    drawn_texts, drawn_lines = plot.evaluate(TICKS)
    texts.pop("step", None)
    texts.pop("epoch", None)
    assert len(texts) > 6
    for text, (x, y) in texts.items():
        assert drawn_texts[text] == [pytest.approx(x, abs=2), pytest.approx(y, abs=2)], text
    if "cz" in choices or "co" in choices:
        return  # Plotly is given more of the points there, or draws less of those out of sight
    assert len(lines) == len(drawn_lines) == 3
    for line, drawn in zip(sorted(lines), sorted(drawn_lines), strict=True):
        assert line == [pytest.approx(edge, abs=1.5) for edge in drawn]


PLACES = """
globalThis.places = new Set()
const look = () => {
  const plot = document.querySelector(".signalbox-main .signalbox-plot")
  if (plot) {
    const { x, y, width, height } = plot.getBoundingClientRect()
    globalThis.places.add(`${[x, y, width, height].map(Math.round)}`)
  }
  requestAnimationFrame(look)
}
look()
"""


def test_a_chart_keeps_its_place_while_the_rest_of_a_new_window_comes(
    browser: Browser, server: Server, write_script: Callable[[str, str], str]
) -> None:
    """On a screen and on a phone; grey bars stand for the buttons above it until they are there."""
    script = write_script("a_script_of_some_length.py", SHORT)
    job_id = server.submit(script=script, gpus=0)
    wait_until(lambda: server.status(job_id) == "completed", 60)
    whole = {"indexed": 1, "live": False}  # else it is asked for again
    curve = f"{server.url}/api/training/curve/{job_id}?bins=1000"
    wait_until(lambda: whole.items() <= httpx.get(curve).json().items(), 60)
    for width in (1280, 360):
        page = browser.new_page(viewport={"width": width, "height": 800})
        page.add_init_script(PLACES)
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))  # type: ignore[misc]
        visit(page, f"{server.url}/job?id={job_id}")
        expect(page.locator(f"{MAIN} .js-line").first).to_be_attached()
        expect(page.get_by_test_id("stSkeleton")).to_have_count(0)
        places = [json.loads(f"[{place}]") for place in page.evaluate("[...globalThis.places]")]
        for edge in zip(*places, strict=True):
            assert max(edge) - min(edge) <= 1, places  # which they are rounded to
        curves = [url for url in asked if "/api/training/curve/" in url]
        assert len(curves) == 1, "The shell has asked for what the page wanted then."
        page.close()
