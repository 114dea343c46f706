"""What a researcher does: submit, watch, cancel, find what hung, find what crashed."""

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlparse

import pytest
from playwright.sync_api import Locator, Page, expect

from backend.paths import DataPaths
from backend.processes import Mark, find_marked
from tests.server import Server
from tests.waiting import lives, wait_until

MINUTE = 60_000

pytestmark = pytest.mark.browser


def job_number(page: Page) -> int:
    """The job that the address names."""
    page.wait_for_url(re.compile(r"/job\?id=\d+"))
    return int(parse_qs(urlparse(page.url).query)["id"][0])


def lamp(page: Page, word: str) -> Locator:
    """The state of the job whose page this is."""
    return page.locator(".stMarkdownBadge").filter(has_text=re.compile(f"{word}$")).first


def drawn_points(page: Page) -> int:
    """How many points of train loss the chart has drawn, read back from Plotly."""
    return int(
        page.evaluate(
            """() => {
                const plot = document.querySelector(".signalbox-main .js-plotly-plot")
                return plot ? plot.data[0].x.length : 0
            }"""
        )
    )


def submit_script(page: Page, path: str, **fields: str) -> int:
    """Fill in the form for a script of one's own and press Submit."""
    page.goto("/submit")
    page.get_by_role("radio", name="Your own script").click()
    page.get_by_label("Script", exact=True).fill(path)
    for label, value in fields.items():
        page.get_by_label(label.replace("_", " ")).fill(value)
    page.get_by_role("button", name="Submit", exact=True).click()
    return job_number(page)


def marked(server: Server, number: int) -> list[int]:
    """The pids of a job's processes, found as the server finds them."""
    nonce = DataPaths(server.data).read_nonce() or ""
    return [row.id.pid for row in find_marked(Mark(number, nonce))]


def test_digits_is_submitted_and_its_curve_grows_until_it_is_completed(page: Page) -> None:
    page.goto("/submit")
    page.get_by_role("radio", name="Handwritten digits").click()
    page.get_by_label("Epochs").fill("12")
    page.get_by_role("button", name="Submit", exact=True).click()
    job_number(page)
    expect(lamp(page, "running")).to_be_visible()

    wait_until(lambda: drawn_points(page) >= 2, 60, "No curve was drawn.")
    first = drawn_points(page)
    wait_until(lambda: drawn_points(page) > first, 60, "The curve does not grow.")
    expect(lamp(page, "running")).to_be_visible()

    expect(lamp(page, "completed")).to_be_visible(timeout=2 * MINUTE)
    losses = page.evaluate(
        """() => document.querySelector(".signalbox-main .js-plotly-plot").data[0].y"""
    )
    numbers = [loss for loss in losses if loss is not None]
    assert numbers[-1] < numbers[0] / 2, "The train loss fell."
    legend = page.get_by_role("group", name="Show and hide")
    expect(legend.get_by_role("button", name="Held-out loss")).to_be_visible()


def test_char_lm_is_cancelled_with_one_click_and_its_whole_tree_is_gone(
    page: Page, server: Server
) -> None:
    page.goto("/submit")
    page.get_by_role("radio", name="Character language model").click()
    page.get_by_role("button", name="Submit", exact=True).click()
    number = job_number(page)
    wait_until(lambda: drawn_points(page) >= 1, 90, "The training did not begin.")
    pids = marked(server, number)
    assert len(pids) >= 2, "The runner and the training."

    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(lamp(page, "cancelled")).to_be_visible()
    assert not any(map(lives, pids))
    assert not marked(server, number)
    expect(page.get_by_role("button", name="Cancel", exact=True)).to_have_count(0)

    page.get_by_role("link", name="GPU").click()
    expect(page.get_by_role("heading", name="Cleanups")).to_be_visible()
    pair = re.compile(rf"job {number} · host.*?before\s*[\d.]+ (MiB|GiB)\s*after\s*0 B", re.DOTALL)
    expect(page.get_by_test_id("stMain")).to_contain_text(pair)


def test_a_script_that_stops_reporting_is_found_on_the_failures_page(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    path = write_script(
        "stuck.py",
        "import signalbox, threading\n"
        "run = signalbox.start(total_steps=100)\n"
        "for step in range(3):\n"
        "    run.log(step, train_loss=1.0 / (step + 1))\n"
        "print('waiting for a lock that nobody releases', flush=True)\n"
        "lock = threading.Lock()\n"
        "lock.acquire()\n"
        "lock.acquire()\n",
    )
    number = submit_script(page, path, Timeout_in_minutes="0.1")
    expect(page.get_by_text(re.compile(r"No progress for .*; ends in"))).to_be_visible()
    expect(lamp(page, "timed out")).to_be_visible()
    assert not marked(server, number)

    page.get_by_role("link", name="Failures").click()
    message = "Training timed out - no progress updates for 6 seconds"
    failure = page.locator(".st-key-failures, [data-testid=stMain]").first
    expect(failure.get_by_text(message, exact=True).first).to_be_visible()
    expect(
        failure.get_by_text(re.compile(r"waiting .* \(stuck\.py, line 8\)")).first
    ).to_be_visible()
    last = failure.get_by_text(re.compile("Last step 2 · .* without progress")).first
    expect(last).to_be_visible()
    expect(failure.get_by_text("waiting for a lock that nobody releases").first).to_be_attached()
    expect(failure.get_by_text(re.compile(r"stuck\.py.*line 8")).first).to_be_attached()


def test_a_script_that_raises_is_shown_with_its_error(
    page: Page, write_script: Callable[[str, str], str]
) -> None:
    path = write_script("raises.py", "raise RuntimeError('the data is <b>upside down</b>')\n")
    submit_script(page, path)
    expect(lamp(page, "failed")).to_be_visible()
    error = "RuntimeError: the data is <b>upside down</b>"
    expect(page.get_by_test_id("stText").filter(has_text=error).first).to_be_visible()
    page.get_by_role("link", name="Failures").click()
    expect(page.get_by_test_id("stText").filter(has_text=error).first).to_be_visible()

    page.get_by_role("button", name="Retry", exact=True).first.click()
    assert job_number(page)
    expect(page.get_by_text(re.compile("Retry of job"))).to_be_visible()


def test_a_wrong_value_is_named_beside_its_field_and_nothing_is_queued(page: Page) -> None:
    page.goto("/submit")
    page.get_by_role("radio", name="Handwritten digits").click()
    page.get_by_label("Epochs").fill("-3")
    page.get_by_role("button", name="Submit", exact=True).click()
    expect(page.get_by_text("Must be at least 1.")).to_be_visible()
    expect(page.get_by_label("Epochs")).to_have_value("-3")
    assert "/submit" in page.url


def test_each_link_works_as_the_first_page_of_a_new_browser(page: Page) -> None:
    for path, words in {
        "/": "Overview",
        "/submit": "Submit",
        "/jobs": "Jobs",
        "/failures": "Failures",
        "/compare": "Compare",
        "/compare?ids=999999,x": "Job 999999 is not here.",
        "/gpu": "Cleanups",
        "/job?id=999999": "No such job",
        "/job?id=x": "No such job",
        "/job": "No such job",
    }.items():
        page.goto(path)
        said = page.get_by_test_id("stMain").get_by_text(words)  # also in the list of keys, hidden
        expect(said.locator("visible=true").first).to_be_visible()
