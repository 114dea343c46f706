"""A stuck job, read by somebody who has never seen it."""

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.test_the_main_job import drawn_points, lamp, submit_script
from tests.waiting import wait_until

pytestmark = pytest.mark.browser

STUCK = """\
import queue
import signalbox

run = signalbox.start(total_steps=100)
batches = queue.Queue()


def next_batch():
    return batches.get()


for step in range(3):
    run.log(step, train_loss=1.0 / (step + 1))
run.phase("evaluating")
next_batch()
"""
SENTENCE = re.compile(
    r"^The main thread is waiting in queue\.get \(stuck\.py, line 9, in next_batch\)\. "
    r"The last progress was step 2, .* ago, in phase evaluating\.$"
)


def test_a_stuck_job_says_where_it_is_while_it_still_runs(
    page: Page, write_script: Callable[[str, str], str]
) -> None:
    submit_script(page, write_script("stuck.py", STUCK))
    wait_until(lambda: drawn_points(page) == 3, 30, "The training did not begin.")
    expect(page.get_by_text("phase evaluating")).to_be_visible()
    page.get_by_role("button", name="Where is it?").click()
    sentence = page.get_by_text(SENTENCE)
    expect(sentence).to_be_visible()
    page.get_by_text("Stacks", exact=True).click()
    expect(page.get_by_text(re.compile(r"stuck\.py.*line 9 in next_batch")).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"Taken [5-9] s ago"))).to_be_visible()
    expect(sentence).to_be_visible()
    page.get_by_role("button", name="Cancel", exact=True).click()
    expect(lamp(page, "cancelled")).to_be_visible()
    expect(page.get_by_role("button", name="Where is it?")).to_have_count(0)


def test_a_job_that_hung_is_explained_to_somebody_new(
    page: Page, write_script: Callable[[str, str], str]
) -> None:
    number = submit_script(
        page, write_script("stuck.py", STUCK), Name="hung", Timeout_in_minutes="0.1"
    )
    page.goto("/")
    grant = page.get_by_role("button", name="Give it 6 more seconds")
    expect(grant).to_be_visible()
    expect(page.get_by_text(re.compile(r"No progress for .*; ends in .* s\."))).to_be_visible()
    page.goto(f"/job?id={number}")
    expect(lamp(page, "timed out")).to_be_visible()
    for path in (f"/job?id={number}", "/failures"):
        page.goto(path)
        card = page.locator(f".st-key-failure-{number}")
        expect(card.get_by_text(SENTENCE)).to_be_visible()
        expect(card.get_by_text(re.compile(r"stuck\.py, line 9, in next_batch$"))).to_be_visible()
        expect(
            card.get_by_test_id("stText").get_by_text("return batches.get()", exact=True)
        ).to_be_visible()
        expect(card.get_by_text("What to try:")).to_be_visible()
        told = card.inner_text()
        order = ("main thread is waiting", "Training timed out", "return batches.get()", "What to")
        places = [told.index(words) for words in order]
        assert places == sorted(places)
