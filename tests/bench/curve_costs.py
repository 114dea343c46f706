"""What the curves cost the server: the first data, an open page while a job logs, a long table."""

import http.client
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import psutil

from backend.models import JobStatus
from backend.paths import DataPaths
from backend.store import Store
from tests.bench.api import copy_job
from tests.bench.bare_streamlit import BareStreamlit
from tests.bench.curve_browser import new_window
from tests.bench.curve_report import NOTHING, Bench, Seconds, head, judged, note, row
from tests.bench.curve_work import Case, finished_job
from tests.bench.page_script import script_seconds
from tests.server import Server, queue_job
from tests.waiting import wait_until

INDEX_SECONDS: Final = 900
FIRST_SECONDS: Final = 0.05
STARTS: Final = 3

JOBS: Final = 10_000
SCRIPT_SECONDS: Final = 0.15

TABS: Final = (0, 1, 10)
PLOTTED: Final = "document.querySelectorAll('.js-plotly-plot').length"
SETTLE_SECONDS: Final = 5.0
LIVE_SECONDS: Final = 20.0
LOGGING: Final = """\
import os, sys, time, signalbox
run = signalbox.start()
begin, step = time.monotonic(), 0
while not os.path.exists(sys.argv[1]):
    step += 1
    run.log(step, train_loss=2 / (step + 1), learning_rate=1e-3, grad_norm=0.5)
    time.sleep(max(0, begin + step / 100 - time.monotonic()))
"""


def index_curves(bench: Bench, server: Server) -> None:
    """Have the server read every curve once, as it does when one is first opened; a job that it
    has watched itself is read already."""
    for case in bench.cases:
        begin = time.monotonic()
        for job_id in bench.runs.ids(case):
            wait_until(lambda job_id=job_id: _indexed(server, job_id), INDEX_SECONDS)  # type: ignore[misc]
        seconds = time.monotonic() - begin
        if seconds > 1:
            note(f"{case.name}: read by Signalbox in {seconds:.1f} s, once")


def _indexed(server: Server, job_id: int) -> bool:
    with _connection(server) as connection:
        connection.request("GET", _path(job_id))
        answer = connection.getresponse()
        told = json.loads(answer.read())
        return answer.status == 404 or bool(told["indexed"] >= 1)


def first(bench: Bench) -> None:
    """The curve's first data over HTTP, over one connection, of a warm server and a new one."""
    head("GET /api/training/curve, 1,000 bins", "first byte", "whole", "/health", "goal: met")
    for case in (case for case in bench.cases if case.runs == 1):
        (job_id,) = bench.runs.ids(case)
        with Server(bench.runs.data) as server:
            wait_until(lambda: _indexed(server, job_id), INDEX_SECONDS)  # noqa: B023
            with _connection(server) as connection:
                warm = [_asked(connection, _path(job_id)) for _ in range(4 * bench.repeat)]
                health = [_asked(connection, "/health") for _ in range(4 * bench.repeat)]
        _tell(f"{case.name}, warm", warm, health)
        started: list[tuple[float, float]] = []
        health = []
        for _ in range(STARTS):
            with Server(bench.runs.data) as server, _connection(server) as connection:
                started.append(_asked(connection, _path(job_id)))
            with Server(bench.runs.data) as server, _connection(server) as connection:
                health.append(_asked(connection, "/health"))
        _tell(f"{case.name}, server just started", started, health)


def _tell(what: str, took: list[tuple[float, float]], health: list[tuple[float, float]]) -> None:
    first_byte = Seconds([begin for begin, _ in took])
    row(
        what,
        first_byte,
        Seconds([whole for _, whole in took]),
        Seconds([whole for _, whole in health]),
        judged("at most 50 ms", first_byte.median, FIRST_SECONDS),
    )


def _path(job_id: int) -> str:
    return f"/api/training/curve/{job_id}?bins=1000"


@contextmanager
def _connection(server: Server) -> Iterator[http.client.HTTPConnection]:
    with closing(http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=60)) as connection:
        yield connection


def _asked(connection: http.client.HTTPConnection, path: str) -> tuple[float, float]:
    """Seconds to the first byte of the answer and to its last."""
    begin = time.perf_counter()
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read(1)
    came = time.perf_counter() - begin
    answer.read()
    return came, time.perf_counter() - begin


def live(bench: Bench) -> None:
    """Bytes and CPU while a job logs 100 points a second and its page is open so many times."""
    head("a job logs 100 points a second", "received a tab", "server CPU")
    with tempfile.TemporaryDirectory(dir=bench.work.folder) as name:
        folder = Path(name)
        end = folder / "end"
        with _logging_server(folder, end) as (server, job_id):
            process = psutil.Process(server.pid)
            for tabs in TABS:
                with ExitStack() as stack:
                    for _ in range(tabs):
                        window = stack.enter_context(new_window(bench.browser))
                        window.count_bytes()
                        window.go(f"{server.url}/job?id={job_id}")
                        assert window.wait_for(PLOTTED)
                    bench.browser.listen(SETTLE_SECONDS)
                    before, used = bench.browser.received.total(), process.cpu_times()
                    seconds = bench.browser.listen(LIVE_SECONDS)
                    after, now = bench.browser.received.total(), process.cpu_times()
                    cpu = now.user + now.system - used.user - used.system
                    rate = (after - before) / seconds / tabs / 1000 if tabs else 0
                    row(
                        f"{tabs} open tab{'' if tabs == 1 else 's'}",
                        f"{rate:.1f} kB a second" if tabs else NOTHING,
                        f"{100 * cpu / seconds:.1f} % of a core",
                    )


@contextmanager
def _logging_server(folder: Path, end: Path) -> Iterator[tuple[Server, int]]:
    data, script = folder / "data", folder / "logging.py"
    data.mkdir()
    script.write_text(LOGGING, encoding="utf-8")
    store = Store(DataPaths(data).database)
    job_id = queue_job(store, "logs 100 a second", "script", script=script, args=[str(end)])
    with closing(store), Server(data) as server:
        try:
            metrics = DataPaths(data).run(job_id).metrics
            wait_until(lambda: metrics.exists() and metrics.stat().st_size > 10_000, 60)
            yield server, job_id
        finally:
            end.touch()
            wait_until(lambda: store.counts()[JobStatus.RUNNING] == 0, 60)


def jobs(bench: Bench) -> None:
    """The script of the jobs page with 10,000 jobs, beside that of an empty page."""
    head(f"the page's script with {JOBS:,} jobs", "jobs", "an empty page's", "goal: met")
    with tempfile.TemporaryDirectory(dir=bench.work.folder) as name:
        folder = Path(name)
        data, script = folder / "data", folder / "nothing.py"
        data.mkdir()
        script.write_text("", encoding="utf-8")
        with closing(Store(DataPaths(data).database)) as store:
            case = Case(1000)
            job_id = finished_job(store, data, "one of many", script, bench.work, case.steps, 0)
            copy_job(DataPaths(data).database, job_id, JOBS - 1)
        with Server(data) as server, BareStreamlit(folder) as bare:
            ours = Seconds(script_seconds(server.url, "jobs", 4 * bench.repeat))
            empty = Seconds(script_seconds(bare.url, "", 4 * bench.repeat))
            row("", ours, empty, judged("at most 150 ms", ours.median, SCRIPT_SECONDS))
