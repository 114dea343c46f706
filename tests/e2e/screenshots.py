"""Takes the pictures of the README from the running app: each page light and dark, wide and narrow.

It takes a few minutes, most of them for the trainings that are shown.

python -m tests.e2e.screenshots
"""

import shutil
import sys
import tempfile
from io import BytesIO
from pathlib import Path

import httpx
from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from backend.models import JobStatus
from backend.paths import DataPaths
from backend.store import Store
from tests.conftest import PROJECT
from tests.e2e.conftest import ARGUMENTS, CHROMIUM
from tests.server import Server, queue_job
from tests.waiting import wait_until

FOLDER = PROJECT / "docs" / "screenshots"
SETTLE_MILLISECONDS = 2500
SCALE = 1.5
HOME = Path(tempfile.gettempdir()) / "signalbox"
"""The pictures show this path; a reader takes it for one of their own."""

STUCK = """\
import queue
import signalbox

run = signalbox.start(total_steps=400)
batches = queue.Queue()


def next_batch():
    return batches.get()


for step in range(60):
    run.log(step, train_loss=2.3 * 0.97**step, learning_rate=1e-3)
print("epoch 1 done, waiting for the loader", flush=True)
run.phase("evaluating")
next_batch()
"""

RAISES = """\
import signalbox

run = signalbox.start(total_steps=400)
for step in range(12):
    run.log(step, train_loss=2.3 * 0.9**step, learning_rate=1e-3)
raise KeyError("labels")
"""


def shoot(browser: Browser, url: str, path: str, name: str) -> None:
    """One page in its four looks."""
    for narrow, size in enumerate(({"width": 1280, "height": 800}, {"width": 390, "height": 844})):
        context = browser.new_context(
            viewport=size,  # type: ignore[arg-type]
            device_scale_factor=SCALE,
            locale="en-GB",
            has_touch=bool(narrow),
        )
        page: Page = context.new_page()
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            page.goto(url + path)
            heading = page.get_by_test_id("stMain").get_by_role("heading").first
            expect(heading).to_be_visible(timeout=30_000)
            if name in {"job", "compare"}:
                drawn = page.locator(".scatterlayer .js-line").first
                drawn.wait_for(state="attached", timeout=60_000)
            page.wait_for_timeout(SETTLE_MILLISECONDS)  # what fades in has faded in
            taken = Image.open(BytesIO(page.screenshot()))
            # A palette: a third of the bytes, and what a page has of colours fits into it.
            small = taken.convert("RGB").quantize(256, dither=Image.Dither.NONE)
            look = theme + ("-narrow" if narrow else "")
            small.save(FOLDER / f"{name}-{look}.png", optimize=True)
        context.close()


def main() -> None:
    if CHROMIUM is None:
        sys.exit("Chromium is not installed (Debian: apt-get install chromium).")
    FOLDER.mkdir(exist_ok=True)
    HOME.mkdir()  # fails where somebody else has something there
    try:
        take(HOME)
    finally:
        shutil.rmtree(HOME)


def take(home: Path) -> None:
    """Run some trainings in a folder, and take the pictures."""
    with sync_playwright() as playwright:
        data = home / "data"
        data.mkdir()
        scripts = {}
        for name, source in (("finetune", STUCK), ("evaluate", RAISES)):
            scripts[name] = home / f"{name}.py"
            scripts[name].write_text(source, encoding="utf-8")
        store = Store(DataPaths(data).database)
        stuck = queue_job(store, "fine-tune, 8 workers", "script", 6, script=scripts["finetune"])
        queue_job(store, "evaluate", "script", 600, script=scripts["evaluate"])
        digits = queue_job(store, "digits, baseline", "digits", 600, epochs=12)
        letters = queue_job(store, "GPT on the standard library", "char_lm", 600)
        later = queue_job(store, "digits, goes on tomorrow", "digits", 600, epochs=400)
        queue_job(store, "digits, twice the rate", "digits", 600, learning_rate=0.002)
        queue_job(store, "digits, seed 2", "digits", 600, seed=2)
        with Server(data, workers=2) as server:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)

            def status(job_id: int) -> JobStatus:
                job = store.get(job_id)
                assert job
                return job.status

            def points(job_id: int) -> int:
                metrics = DataPaths(data).run(job_id).metrics
                return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

            wait_until(lambda: status(digits).ended and status(stuck).ended, 180)
            wait_until(lambda: status(letters) is JobStatus.RUNNING, 60)
            wait_until(lambda: points(later) > 300, 180)
            httpx.post(
                f"{server.url}/api/training/pause/{later}", headers={"X-Requested-With": "us"}
            ).raise_for_status()
            wait_until(lambda: points(letters) > 320 and status(later) is JobStatus.PAUSED, 300)
            pages = {
                "job": f"/job?id={letters}",
                "overview": "/",
                "jobs": "/jobs",
                "compare": f"/compare?ids={digits},{letters},{later}",
                "failures": "/failures",
                "gpu": "/gpu",
                "submit": "/submit",
            }
            for name, path in pages.items():
                shoot(browser, server.url, path, name)
            server.kill_all()
            browser.close()
        store.close()


if __name__ == "__main__":
    main()
