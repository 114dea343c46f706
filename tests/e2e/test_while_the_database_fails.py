"""A database that fails under an open page, and one that was found damaged at the start."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from backend.models import Job, JobStatus
from backend.paths import DataPaths
from backend.store import Store
from tests.e2e.conftest import PATIENCE_MILLISECONDS
from tests.pages.faults import UNREADABLE, unreadable
from tests.server import Server

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with one job that has ended."""
    data = tmp_path_factory.mktemp("failing") / "data"
    data.mkdir()
    store = Store(DataPaths(data).database)
    ended = Job(
        id=1, name="ended", recipe="digits", timeout_seconds=60, gpus=0, status=JobStatus.CANCELLED
    )
    store.restore(ended, "Cancelled")
    store.close()
    return data


@pytest.fixture(scope="module")
def server(data: Path) -> Iterator[Server]:
    """A server of these tests' own, which is the same after each fault."""
    with Server(data, workers=1) as server:
        yield server


@pytest.fixture(scope="module")
def window(browser: Browser, server: Server) -> Iterator[Page]:
    """A browser window at that server."""
    page = browser.new_page(base_url=server.url)
    page.set_default_timeout(PATIENCE_MILLISECONDS)
    yield page
    page.close()


@pytest.fixture
def failing(window: Page) -> Iterator[Page]:
    """That window, which shows no exception."""
    window.bring_to_front()
    yield window
    expect(window.get_by_test_id("stException")).to_have_count(0)
    window.goto("about:blank")


def sentence(page: Page) -> Locator:
    """What the page itself says of the fault, beside the sidebar that says it too."""
    return page.get_by_test_id("stMain").get_by_text(UNREADABLE)


@pytest.mark.parametrize("path", ["/gpu", "/submit?like=1"])
def test_an_open_page_says_what_is_wrong_and_heals_by_itself(
    path: str, failing: Page, data: Path
) -> None:
    main, beside = failing.get_by_test_id("stMain"), failing.get_by_test_id("stSidebar")
    drawn = main.get_by_label("Epochs") if "submit" in path else main.get_by_text("No cleanup yet")
    failing.goto(path)
    expect(drawn).to_be_visible()
    if "submit" in path:
        drawn.fill("7")
    with unreadable(DataPaths(data).database):
        if "submit" in path:  # which looks at the database when it is drawn
            main.get_by_role("radio", name="Your own script").click()
        expect(sentence(failing).first).to_be_visible()
        expect(beside.get_by_text(UNREADABLE)).to_be_visible()
    expect(sentence(failing)).to_have_count(0)
    expect(beside.get_by_text(UNREADABLE)).to_have_count(0)
    if "submit" in path:
        main.get_by_role("radio", name="Handwritten digits").click()
        expect(drawn).to_have_value("7")
    expect(drawn).to_be_visible()


def test_a_click_that_finds_the_database_failing_is_answered_beside_its_button(
    failing: Page, data: Path
) -> None:
    failing.goto("/job?id=1")
    retry = failing.get_by_role("button", name="Retry", exact=True)
    expect(retry).to_be_visible()
    with unreadable(DataPaths(data).database):
        retry.click()
        expect(sentence(failing).first).to_be_visible()
    expect(retry).to_be_visible()
    expect(failing.get_by_text("It was not queued")).to_be_visible()
    expect(sentence(failing)).to_have_count(1)


def test_what_became_of_a_damaged_database_is_said_until_it_is_closed(
    browser: Browser, tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    DataPaths(data).database.write_bytes(b"no database " * 1000)
    with Server(data, workers=1) as server:
        page = browser.new_page(base_url=server.url)
        notice = page.get_by_text("The database was damaged. It was set aside")
        page.goto("/jobs")
        expect(notice).to_be_visible()
        expect(notice).to_contain_text(f"{DataPaths(data).database}.damaged-")
        page.get_by_role("button", name="Close", exact=True).click()
        expect(notice).to_have_count(0)
        page.get_by_role("link", name="GPU").click()
        expect(page.get_by_role("heading", name="Cleanups")).to_be_visible()
        expect(notice).to_have_count(0)
        page.close()
        page = browser.new_page(base_url=server.url)
        page.goto("/")
        expect(page.get_by_text("The database was damaged.")).to_be_visible()
        page.close()
