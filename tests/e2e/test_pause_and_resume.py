"""Stop and save, go on tomorrow: pause, resume, retry from a checkpoint, and kill at once."""

import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from playwright.sync_api import Page, expect

from tests.e2e.test_the_main_job import drawn_points, job_number, lamp, marked, submit_script
from tests.server import Server
from tests.waiting import wait_until

MINUTE = 60_000
CANCEL_GRACE_SECONDS = 60
MEMORY_CAME_BACK = re.compile(
    r"Host memory, paused.*?Before\s*[\d.]+ (MiB|GiB).*?After\s*0 B.*?Released\s*yes, all of it",
    re.DOTALL,
)
EPOCHS, BATCH_SIZE = 8, 8
STEPS = EPOCHS * 180  # about 1,440 images

pytestmark = pytest.mark.browser

SAVES_AND_BREAKS = """\
import pathlib, signalbox
run = signalbox.start(total_steps=100)
for step in range(run.resume_step + 1, 101):
    run.log(step, train_loss=1.0 / step)
    if step == 60:
        folder = run.checkpoint_dir / f"step-{step:08d}"
        folder.mkdir()
        (folder / "weights.bin").write_bytes(bytes(1000))
        run.saved(folder)
    if step == 80 and not run.resume_from:
        raise RuntimeError("the disk of the data went away")
"""

DEAF = """\
import signal, time, signalbox
signal.signal(signal.SIGTERM, signal.SIG_IGN)
run = signalbox.start()
for step in range(100_000):
    run.log(step, train_loss=1.0)
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a grace that nobody wants to wait for. Its jobs do not fight for the cores."""
    data = tmp_path_factory.mktemp("pausing") / "data"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        with Server(data, workers=2, cancel_grace_seconds=CANCEL_GRACE_SECONDS) as server:
            yield server


def steps(server: Server, number: int) -> list[int]:
    """The step of each point of a job's whole curve."""
    query = {"max_points": 5000}
    answer = httpx.get(f"{server.url}/api/training/metrics/{number}", params=query).json()
    return [point["step"] for point in answer["points"]]


def drawn_steps(page: Page) -> Any:
    """The step of each point of train loss that the chart has drawn."""
    return page.evaluate("document.querySelector('.signalbox-main .js-plotly-plot').data[0].x")


def test_digits_is_paused_gives_its_memory_back_and_goes_on_in_one_curve(
    page: Page, server: Server
) -> None:
    page.goto("/submit")
    page.get_by_role("radio", name="Handwritten digits").click()
    page.get_by_label("Epochs").fill(f"{EPOCHS}")
    page.get_by_label("Batch size").fill(f"{BATCH_SIZE}")
    page.get_by_role("button", name="Submit", exact=True).click()
    number = job_number(page)
    wait_until(lambda: drawn_points(page) >= 1, 60, "The training did not begin.")
    pids = marked(server, number)

    page.get_by_role("button", name="Pause").click()
    expect(lamp(page, "paused")).to_be_visible()
    assert len(pids) >= 2
    assert not marked(server, number)
    main = page.get_by_test_id("stMain")
    expect(main).to_contain_text(MEMORY_CAME_BACK)
    reached = steps(server, number)[-1]
    assert 0 < reached < STEPS
    goes_on = f"It goes on from step {reached} when it is resumed."
    expect(main.get_by_text(goes_on).first).to_be_visible()

    page.goto("/")
    expect(page.get_by_role("heading", name="Paused")).to_be_visible()
    page.get_by_role("button", name="Resume").click()
    expect(page.get_by_role("heading", name="Paused")).to_have_count(0)
    page.goto(f"/job?id={number}")
    expect(lamp(page, "completed")).to_be_visible(timeout=2 * MINUTE)
    expect(main.get_by_text(f"Goes on from step-{reached:08d}").first).to_be_visible()
    once = list(range(1, STEPS + 1))
    assert steps(server, number) == once
    wait_until(lambda: drawn_steps(page) == once, 30, lambda: f"Drawn: {drawn_steps(page)}")


def test_a_job_that_broke_goes_on_from_its_checkpoint_in_a_new_one(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    first = submit_script(page, write_script("breaks.py", SAVES_AND_BREAKS))
    expect(lamp(page, "failed")).to_be_visible()
    link = page.get_by_role("link", name="Download", exact=True)
    expect(link).to_have_count(1)  # once what was drawn while it ran is gone
    with page.expect_download() as download:
        link.click()
    assert download.value.suggested_filename == f"job-{first}-model.zip"
    assert download.value.failure() is None

    page.get_by_role("button", name="Retry from step 60").click()
    page.wait_for_url(lambda address: not address.endswith(f"id={first}"))
    second = job_number(page)
    expect(lamp(page, "completed")).to_be_visible()
    assert steps(server, second) == list(range(1, 101))
    page.get_by_role("link", name=f"Retry of job {first}, from its checkpoint").click()
    page.get_by_role("link", name=f"Retried as job {second}").click()
    page.wait_for_url(f"**/job?id={second}")


def test_a_double_click_on_cancel_asks_and_the_next_press_kills_at_once(
    page: Page, server: Server, write_script: Callable[[str, str], str]
) -> None:
    number = submit_script(page, write_script("deaf.py", DEAF))
    wait_until(lambda: drawn_points(page) >= 1, 30, "The training did not begin.")
    begin = time.monotonic()
    page.get_by_role("button", name="Cancel", exact=True).dblclick()
    expect(lamp(page, "cancelling")).to_be_visible()
    kill = page.get_by_role("button", name="Kill now")
    expect(kill).to_be_visible()
    assert marked(server, number), "It was only asked so far."
    kill.click()
    expect(lamp(page, "cancelled")).to_be_visible()
    assert not marked(server, number)
    assert time.monotonic() - begin < CANCEL_GRACE_SECONDS / 2
