"""Fixtures that several test modules share."""

import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import hypothesis
import pytest

from backend import runtime
from backend.service import Service
from backend.settings import Settings
from backend.submission import Submission
from tests.waiting import cancel_and_close

PROJECT = Path(__file__).resolve().parent.parent

# Three tests run at a time: a training that takes every core only gets in the way of the other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A busy machine may take its time over an example.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


@pytest.fixture(scope="module", autouse=True)
def _what_is_loaded_is_no_garbage() -> None:
    """Each job's cleanup collects garbage in this process, and would look through torch, pytest and
    all else that a test has imported: half a second, in which nothing else runs."""
    gc.freeze()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A data folder of its own, quick looks and short graces."""
    return Settings(
        data=tmp_path / "data",
        workers=2,
        poll_seconds=0.05,
        cancel_grace_seconds=5,
        stall_grace_seconds=1,
    )


@pytest.fixture
def service(settings: Settings) -> Iterator[Service]:
    """A running service, which the pages find too. What still runs at the end is cancelled."""
    service = Service(settings)
    service.start()
    runtime.use(service)
    yield service
    closed = cancel_and_close(service)
    runtime.use(None)
    assert closed == 0


@pytest.fixture
def idle_service(settings: Settings) -> Iterator[Service]:
    """A service that queues and answers, but runs nothing."""
    service = Service(settings)
    service.start(run_jobs=False)
    runtime.use(service)
    yield service
    runtime.use(None)
    service.close()


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., Submission]:
    """Writes a script and makes the submission of it."""
    count = 0

    def write(source: str, *args: str, **fields: object) -> Submission:
        nonlocal count
        count += 1
        path = tmp_path / f"script{count}.py"
        path.write_text(dedent(source), encoding="utf-8")
        params = {"script": str(path), "args": list(args), "python": sys.executable}
        return Submission(recipe="script", params=params, **fields)

    return write
