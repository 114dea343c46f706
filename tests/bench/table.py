"""The page of all jobs with 10,000 of them: its script's own time, and that of its searches."""

import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import insert
from streamlit.testing.v1 import AppTest

from backend import runtime
from backend.models import Job, JobStatus, utc_now
from backend.service import Service
from backend.settings import Settings
from backend.views import JobFilter
from pages.parts import trouble
from tests.bench.report import line, milliseconds
from tests.conftest import PROJECT

JOBS: Final = 10_000
ROUNDS: Final = 9
SEARCHES: Final = ("", "sweep 99", "lr>0.001", "tag:paper", "best<0.05 recipe:digits -failed")


def table() -> None:
    """All of it in this process; medians of CPU time, which others on the machine stretch less."""
    with _service_with_many() as service:
        for text in SEARCHES:
            wanted = JobFilter(text=text, limit=50)
            found = _median(lambda wanted=wanted: service.jobs(wanted))  # type: ignore[misc]
            line(f"a page of {JOBS:,} jobs, {text or 'no search'!r}", milliseconds(found), "-", "-")
        few = _page_seconds("")
        runtime.use(service)
        full = _page_seconds("jobs")
        line(f"script of the jobs page, {JOBS:,} jobs", milliseconds(full), milliseconds(few),
             "at most 150 ms (beside: the overview)")  # fmt: skip


def _median(work: Callable[[], object]) -> float:
    spent = []
    for _ in range(ROUNDS):
        begin = time.process_time()
        work()
        spent.append(time.process_time() - begin)
    return statistics.median(spent)


def _page_seconds(name: str) -> float:
    """The time of a page's own script, as Streamlit runs it."""
    spent: list[float] = []
    run_page = trouble.run_page

    def timed(run: Callable[[], None], name: str) -> None:
        begin = time.process_time()
        try:
            run_page(run, name)
        finally:
            spent.append(time.process_time() - begin)

    trouble.run_page = timed
    try:
        page = AppTest.from_file(PROJECT / "pages" / "navigation.py", default_timeout=60).run()
        if name:
            page.switch_page(f"{name}.py")
        for _ in range(ROUNDS):
            page.run()
            assert not page.exception
    finally:
        trouble.run_page = run_page
    return statistics.median(spent[-ROUNDS:])


@contextmanager
def _service_with_many() -> Iterator[Service]:
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Settings(data=Path(folder) / "data"))
        service.start(run_jobs=False)
        with service._store._write() as session:
            session.execute(insert(Job), list(_rows()))
        runtime.use(service)
        yield service
        runtime.use(None)
        service.close()


def _rows() -> Iterator[dict[str, Any]]:
    """Half of them scripts with arguments, half recipes; all with figures, some with tags."""
    chance, now = random.Random(1), utc_now()
    common = Job(
        name="", recipe="", timeout_seconds=600, gpus=0, status=JobStatus.COMPLETED
    ).model_dump(exclude={"id"})
    for number in range(JOBS):
        rate = chance.choice((1e-4, 1e-3, 3e-3))
        args = ["--lr", str(rate), "--seed", str(number % 7), "--batch-size=32"]
        began = now - timedelta(minutes=JOBS - number)
        failed = number % 8 == 0
        yield common | {
            "name": f"sweep {number}",
            "recipe": "script" if number % 2 else "digits",
            "params": {"script": "/home/me/train.py", "args": args}
            if number % 2
            else {"learning_rate": rate, "seed": number % 7, "epochs": 5, "batch_size": 32},
            "status": JobStatus.FAILED if failed else JobStatus.COMPLETED,
            "error": "RuntimeError: CUDA out of memory" if failed else None,
            "tags": ["paper"] if number % 10 == 0 else [],
            "created_at": began,
            "started_at": began,
            "finished_at": began + timedelta(seconds=30),
            "progress": {
                "train_loss": chance.random(),
                "best_eval_loss": chance.random(),
                "learning_rate": 0.0,
                "extra": {"accuracy": chance.random()},
            },
        }
