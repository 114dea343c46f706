"""Ten thousand jobs: found, sorted, selected, cancelled and deleted, by mouse and by keyboard."""

import random
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect
from sqlalchemy import insert

from backend.models import Job, JobStatus, utc_now
from backend.paths import DataPaths
from backend.processes import find_all_marked
from backend.store import Store
from tests.server import Server, queue_job
from tests.waiting import wait_until

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600)]

JOBS = 10_000
SLEEPER = "import time\nprint('asleep', flush=True)\ntime.sleep(600)\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of this module's own server."""
    data = tmp_path_factory.mktemp("scale") / "data"
    data.mkdir()
    return data


@pytest.fixture(scope="module")
def store(data: Path) -> Iterator[Store]:
    store = Store(DataPaths(data).database)
    yield store
    store.close()


@pytest.fixture(scope="module")
def server(data: Path, store: Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    chance = random.Random(12)
    common = Job(
        name="", recipe="digits", timeout_seconds=600, gpus=0, status=JobStatus.COMPLETED
    ).model_dump(exclude={"id"})
    now = utc_now()

    def row(number: int) -> dict[str, Any]:
        began = now - timedelta(minutes=2 * (JOBS - number))
        return common | {
            "name": f"sweep {number + 1}",
            "params": {"learning_rate": (1e-4, 1e-3, 3e-3)[number % 3], "seed": number % 7},
            "progress": {"best_eval_loss": chance.random(), "progress_percent": 100.0},
            "created_at": began,
            "started_at": began,
            "finished_at": began + timedelta(minutes=1),
        }

    with store._write() as session:
        session.execute(insert(Job), [row(number) for number in range(JOBS)])
    script = tmp_path_factory.mktemp("scripts") / "sleeper.py"
    script.write_text(SLEEPER, encoding="utf-8")
    for number in (1, 2):
        queue_job(store, f"sleeper {number}", "script", script=script)
    with Server(data, workers=2, cancel_grace_seconds=2) as server:
        yield server
        server.kill_all()  # each test may be the only one at its server
    nonce = DataPaths(data).read_nonce() or ""
    wait_until(lambda: not find_all_marked(nonce), 30, "A job outlived its test.")


def shown(page: Page) -> list[int]:
    """The numbers of the jobs in the table, in its order."""
    found: list[int] = page.eval_on_selector_all(
        ".signalbox-jobs tbody a", "links => links.map(a => parseInt(a.textContent))"
    )
    return found


def search(page: Page, text: str, count: str) -> None:
    """Type a search, and wait until the page says so many jobs."""
    page.get_by_label("Search").fill(text)
    page.get_by_label("Search").press("Enter")
    expect(page.locator(".sb-count").first).to_contain_text(count)


def box(page: Page, job_id: int) -> Any:
    return page.get_by_role("checkbox", name=f"Select job {job_id}", exact=True)


def best(store: Store, text: str) -> list[int]:
    found = store.find(text=text, sort="best", descending=False, limit=50)
    return [job.id or 0 for job in found.jobs]


def test_jobs_are_found_sorted_deleted_and_taken_back(page: Page, store: Store, data: Path) -> None:
    text = "lr>0.001 sweep"
    wanted = best(store, text)
    for job_id in wanted[1:4]:
        folder = DataPaths(data).run(job_id).folder
        folder.mkdir(parents=True)
        (folder / "model.pt").write_bytes(b"x" * 2**20)
    page.goto("/jobs")
    search(page, text, "3,333 jobs, 1 to 50 shown")
    heading = page.get_by_role("columnheader", name="Best")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "descending")
    heading.get_by_role("button").click()
    expect(heading).to_have_attribute("aria-sort", "ascending")
    wait_until(lambda: shown(page) == wanted, 30, lambda: f"{shown(page)} {wanted}")

    other = page.context.new_page()
    other.goto(page.url)
    expect(other.get_by_label("Search")).to_have_value(text)
    expect(other.get_by_role("columnheader", name="Best")).to_have_attribute(
        "aria-sort", "ascending"
    )
    wait_until(lambda: shown(other) == wanted, 30, "The address does not tell the order.")
    other.close()

    # Selected by a range, which stays while the pages are turned.
    box(page, wanted[1]).click()
    box(page, wanted[3]).click(modifiers=["Shift"])
    bulk = page.get_by_role("group", name="Selected jobs")
    expect(bulk).to_contain_text("3 selected")
    page.get_by_role("button", name="Next").click()
    expect(page.get_by_text("Page 2 of 67")).to_be_visible()
    expect(bulk).to_contain_text("3 selected")
    page.get_by_role("button", name="Previous").click()
    expect(box(page, wanted[2])).to_be_checked()

    folders = [DataPaths(data).run(job_id).folder for job_id in wanted[1:4]]
    for round_ in ("taken back", "gone"):
        bulk.get_by_role("button", name="Delete").click()
        dialog = page.get_by_role("dialog")
        expect(dialog).to_contain_text("Delete 3 jobs and 3.0 MiB of files?")
        dialog.get_by_role("button", name="Delete 3 jobs").click()
        expect(
            page.get_by_text(re.compile("3 jobs deleted. 3.0 MiB will be freed in"))
        ).to_be_visible()
        expect(page.locator(".sb-count").first).to_contain_text("3,330 jobs")
        assert all(folder.exists() for folder in folders)
        if round_ == "taken back":
            page.get_by_role("button", name="Undo").click()
            expect(page.locator(".sb-count").first).to_contain_text("3,333 jobs")
            wait_until(lambda: shown(page) == wanted, 30, "They are not back.")
            box(page, wanted[1]).click()
            box(page, wanted[3]).click(modifiers=["Shift"])
    page.get_by_role("button", name="Free it now").click()
    wait_until(lambda: not any(folder.exists() for folder in folders), 60, "Folders are left.")
    wait_until(lambda: store.get(wanted[1]) is None, 60, "A row is left.")
    expect(page.get_by_text("jobs deleted")).to_have_count(0)
    assert len(list(DataPaths(data).runs.iterdir())) == 2, "Those of the sleepers."


def test_the_order_stays_while_jobs_come_and_many_are_cancelled_at_once(
    page: Page, store: Store, server: Server
) -> None:
    wait_until(lambda: store.counts()[JobStatus.RUNNING] == 2, 60)
    page.goto("/jobs")
    expect(page.locator(".sb-count").first).to_contain_text("1 to 50 shown")
    before = shown(page)
    new = server.submit(recipe="digits")
    fresh = page.get_by_role("button", name="1 new job · Show")
    expect(fresh).to_be_visible()
    assert shown(page) == before
    fresh.click()
    expect(box(page, new)).to_be_visible()
    assert shown(page) == [new, *before[:-1]]

    live = [job_id for job_id in before if job_id > JOBS]
    for job_id in (*live, new):
        box(page, job_id).click()
    bulk = page.get_by_role("group", name="Selected jobs")
    bulk.get_by_role("button", name="Cancel").click()
    wait_until(lambda: store.counts()[JobStatus.CANCELLED] == 3, 60, "They are not cancelled.")
    rows = page.locator(".signalbox-jobs tbody tr")
    for place in range(3):
        expect(rows.nth(place)).to_contain_text("cancelled")
    assert shown(page) == [new, *before[:-1]]


def test_all_of_it_by_keyboard(page: Page) -> None:
    def tab_to(name: str) -> None:
        focused = """() => {
            const e = document.activeElement
            return e.getAttribute("aria-label") || e.innerText || ""
        }"""
        for _ in range(40):
            page.keyboard.press("Tab")
            if re.search(name, str(page.evaluate(focused))):
                return
        raise AssertionError(f"{name!r} was not reached by Tab.")

    page.goto("/jobs")
    expect(page.locator(".sb-count").first).to_contain_text("shown")
    page.get_by_label("Search").focus()
    page.keyboard.type("sweep seed=3")
    page.keyboard.press("Enter")
    expect(page.locator(".sb-count").first).to_contain_text("1,42")
    tab_to("^Job")
    page.keyboard.press("Enter")
    expect(page.get_by_role("columnheader", name="Job")).to_have_attribute("aria-sort", "ascending")
    tab_to("Select job")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    bulk = page.get_by_role("group", name="Selected jobs")
    expect(bulk).to_contain_text("2 selected")
    page.keyboard.press("Escape")
    expect(bulk).to_be_hidden()
    first = shown(page)[1]
    tab_to("^Star job")
    page.keyboard.press("Enter")
    star = page.get_by_role("button", name=f"Star job {first}", exact=True)
    expect(star).to_have_attribute("aria-pressed", "true")
    tab_to("sweep")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(rf"/job\?id={first}$"))
    expect(page.get_by_role("button", name="Starred")).to_be_visible()
