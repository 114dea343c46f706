"""Several jobs side by side, in a browser."""

import json
import math
import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from playwright.sync_api import Browser, Locator, Page, expect

from backend.models import Job, JobStatus, utc_now
from backend.paths import DataPaths
from backend.store import Store
from pages.parts.plotly_script import with_shared
from tests.server import Server
from tests.waiting import wait_until

FIRST = 50_001
"""The number of the first job that is written here: the others of this server are far below."""

GROWS = """\
import signalbox, sys, time
lr = float(sys.argv[2])
run = signalbox.start()
for step in range(1, 100_000):
    run.log(step, train_loss=lr + 1 / step)
    time.sleep(0.03)
"""

UIDS = "document.querySelector('.signalbox-compare .plot')?.data?.map((trace) => trace.uid) ?? []"
RANGE = "document.querySelector('.signalbox-compare .plot')._fullLayout.xaxis.range.join()"
POINTS = """document.querySelector('.signalbox-compare .plot').data
    .reduce((sum, trace) => sum + trace.x.length, 0)"""
LIT = """[...document.querySelectorAll('.signalbox-compare .scatterlayer .trace.lit')]
    .map((line) => line.getAttribute('class')).join()"""


def drawn(page: Page, *uids: str) -> None:
    """Wait until exactly these lines are drawn."""
    wait_until(
        lambda: sorted(page.evaluate(UIDS)) == sorted(uids),
        60,
        lambda: f"Drawn: {page.evaluate(UIDS)}, not {uids}",
    )


def lines(page: Page) -> int:
    return sum(uid.startswith("run-") for uid in page.evaluate(UIDS))


def address(page: Page) -> str:
    """Its query as it is now; `page.url` may lag behind what a script writes."""
    return str(page.evaluate("location.search"))


def row(page: Page, job_id: int) -> Locator:
    return page.locator(f".signalbox-compare tbody tr[data-run='{job_id}']")


def test_three_jobs_are_compared_while_they_run(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    path = write_script("grows.py", GROWS)
    ids = [
        server.submit(name=f"growing {number}", script=path, args=["--lr", str(lr)])
        for number, lr in enumerate((0.1, 0.2, 0.1), 1)
    ]
    one, two, three = ids
    page.goto(f"/job?id={one}")
    page.get_by_test_id("stMain").get_by_role("link", name="Compare").click()
    expect(page.get_by_role("heading", name="Compare")).to_be_visible()
    drawn(page, f"run-{one}", f"raw-{one}")

    # By name with the keyboard, and by number with the pointer.
    box = page.get_by_role("combobox", name="Add a job")
    box.click()
    box.press_sequentially("growing 2")
    offered = page.get_by_role("listbox", name="Jobs that can be added").get_by_role("option")
    expect(offered).to_have_count(1)
    box.press("Enter")
    expect(row(page, two)).to_be_visible()
    box.fill(str(three))
    offered.filter(has_text=f"{three} · growing 3").click()
    drawn(page, *(f"{kind}-{n}" for kind in ("run", "raw") for n in ids))
    assert f"ids={one}%2C{two}%2C{three}" in address(page)
    box.press("Escape")

    # The zoom is held while points arrive, and one click leads back.
    area = page.locator(".signalbox-compare .nsewdrag").first.bounding_box()
    assert area
    page.mouse.move(area["x"] + 60, area["y"] + 40)
    page.mouse.down()
    page.mouse.move(area["x"] + 200, area["y"] + 160, steps=4)
    page.mouse.up()
    wait_until(lambda: "cz=" in address(page), message="The zoom is not in the address.")
    zoomed, before = page.evaluate(RANGE), page.evaluate(POINTS)
    wait_until(lambda: page.evaluate(POINTS) > before + 60, 60, "No new points arrived.")
    assert page.evaluate(RANGE) == zoomed
    page.get_by_role("button", name="Whole curves").click()
    wait_until(lambda: page.evaluate(RANGE) != zoomed, message="It stayed zoomed.")
    assert "cz=" not in address(page)

    # A row lights its line, and a place in the list lights the row.
    row(page, two).hover()
    assert f"run-{two}" in page.evaluate(LIT)
    page.locator(f".legend [data-run='{three}'] label").hover()
    expect(row(page, three)).to_have_class(re.compile(r"\blit\b"))
    assert f"run-{two}" not in page.evaluate(LIT)

    # The runs of the same rate as their mean, with a band.
    page.get_by_label("Group by").select_option("lr")
    drawn(page, "group-0", "low-0", "band-0", "group-1")
    page.get_by_label("Group by").select_option("nothing")

    page.get_by_role("button", name=f"Remove job {two} from the comparison").click()
    drawn(page, *(f"{kind}-{n}" for kind in ("run", "raw") for n in (one, three)))
    assert f"ids={one}%2C{three}" in address(page)
    expect(page.get_by_text(re.compile("Lowest train loss: .*growing"))).to_be_visible()
    for job_id in ids:
        page.request.post(
            f"/api/training/cancel/{job_id}", headers={"X-Requested-With": "XMLHttpRequest"}
        )
    expect(row(page, one).get_by_text("cancelled")).to_be_visible()
    row(page, one).get_by_role("link").click()
    expect(page.get_by_role("heading", name="growing 1")).to_be_visible()


def write_runs(data: Path, number: int, points: int) -> list[int]:
    """Completed jobs with three learning rates, as if they had been run; returns their ids."""
    paths = DataPaths(data)
    store = Store(paths.database)
    ids = list(range(FIRST, FIRST + number))
    for place, job_id in enumerate(ids):
        rate = (0.1, 0.01, 0.001)[place % 3]
        began = utc_now() - timedelta(minutes=5)
        store.restore(
            Job(
                id=job_id,
                name=f"written {place + 1}",
                recipe="script",
                params={"args": ["--lr", str(rate), "--seed", str(place // 3), "--depth", "4"]},
                timeout_seconds=60,
                gpus=0,
                status=JobStatus.COMPLETED,
                started_at=began,
                finished_at=began + timedelta(minutes=4),
            ),
            "Written by a test",
        )
        run = paths.run(job_id)
        run.folder.mkdir(parents=True)
        with run.metrics.open("w", encoding="utf-8") as file:
            for step in range(1, points + 1):
                loss = rate + math.exp(-9 * step / points)
                row = {"step": step, "epoch": step / points, "train_loss": loss + place / 1000}
                row["timestamp"] = (began + timedelta(seconds=step / 10)).isoformat()
                if step % (points // 10) == 0:
                    row["val_accuracy"] = 1 - loss - place / 1000
                file.write(json.dumps(row) + "\n")
    store.close()
    return ids


def test_a_groups_mean_has_points_where_something_was_logged(browser: Browser) -> None:
    page = browser.new_page()
    blended = "(text) => { globalThis.blended = new Function(text + '; return blended')() }"
    page.evaluate(blended, with_shared("overlay_lines.js"))
    few = "blended([{ x: [50, 100, 150], y: [2, 1, 0.5] }, { x: [50, 150], y: [4, 1.5] }], 'range')"
    expected = {"x": [50, 100, 150], "y": [3, 1.875, 1], "low": [2, 1, 0.5], "high": [4, 2.75, 1.5]}
    assert page.evaluate(few) == expected
    many = "blended([{ x: [...Array(5000).keys()], y: Array(5000).fill(1) }], 'sd').x.length"
    assert page.evaluate(many) == 300
    page.close()


def test_fifty_runs_are_drawn_chosen_from_grouped_and_shared(page: Page, server: Server) -> None:
    ids = write_runs(server.data, 50, 2000)
    page.goto(f"/compare?ids={','.join(map(str, ids))}")
    drawn(page, *(f"run-{n}" for n in ids))
    assert page.evaluate(POINTS) <= 30_000
    looks = page.evaluate(
        "document.querySelector('.signalbox-compare .plot').data"
        ".map((trace) => trace.line.color + trace.line.dash)"
    )
    assert len(set(looks)) == 50
    expect(
        page.get_by_text(f"Lowest train loss: 0.003123, job {ids[2]} (written 3)")
    ).to_be_visible()

    # By the list, by the filter, and by a group.
    page.get_by_role("checkbox", name=f"{ids[0]} · written 1", exact=True).uncheck()
    drawn(page, *(f"run-{n}" for n in ids[1:]))
    page.get_by_role("searchbox", name="Show only runs").fill("lr=0.1")
    tenths = [n for place, n in enumerate(ids) if place % 3 == 0]
    drawn(page, *(f"run-{n}" for n in tenths[1:]))
    expect(page.get_by_text(f"{len(tenths) - 1} of 50 shown")).to_be_visible()
    page.get_by_role("searchbox", name="Show only runs").fill("")
    page.get_by_label("Metric").select_option("val_accuracy")
    expect(page.get_by_role("button", name="Highest val accuracy")).to_be_visible()
    page.get_by_label("Group by").select_option("lr")
    page.get_by_label("Band").select_option("sd")
    page.get_by_role("radio", name="Time since start").check(force=True)
    groups = [f"{kind}-{n}" for n in range(3) for kind in ("group", "low", "band")]
    drawn(page, *groups)

    # Mean and deviation are those of the runs: 0.1 has 16, as one of the 17 is hidden.
    found = page.evaluate(
        "document.querySelector('.signalbox-compare .plot').data"
        ".filter((trace) => /-2$/.test(trace.uid)).map((trace) => [trace.uid, trace.y.at(-1)])"
    )
    places = [place for place in range(1, 50) if place % 3 == 0]
    values = [1 - (0.1 + math.exp(-9)) - place / 1000 for place in places]
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values))
    expected = {"group-2": mean, "low-2": mean - deviation, "band-2": mean + deviation}
    for uid, value in found:
        assert math.isclose(value, expected[uid], abs_tol=1e-5), uid

    # Sorted by a heading; the same in a new tab.
    page.get_by_role("button", name="Highest val accuracy").click()
    page.get_by_role("button", name="Highest val accuracy").click()
    expect(page.locator(".signalbox-compare tbody tr").first).to_contain_text("best")
    with page.expect_download() as download:
        page.get_by_role("button", name="CSV").click()
    table = download.value.path().read_text(encoding="utf-8").splitlines()
    assert table[0].startswith("Job,Name,State,Highest val accuracy,")
    assert len(table) == 51
    with page.expect_download() as download:
        page.get_by_role("button", name="SVG").click()
    assert "lr 0.001" in download.value.path().read_text(encoding="utf-8")
    tab = page.context.new_page()
    asked: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto(f"/compare{address(page)}")
    drawn(tab, *groups)
    expect(tab.get_by_label("Metric")).to_have_value("val_accuracy")
    expect(tab.get_by_label("Band")).to_have_value("sd")
    expect(tab.get_by_role("radio", name="Time since start")).to_be_checked()
    expect(tab.get_by_text("49 of 50 shown")).to_be_visible()
    curves = [url for url in asked if "/api/training/curves?" in url]
    assert len(curves) == 1, "The shell has asked for what the page wanted then."
    tab.close()
