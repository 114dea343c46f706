"""What the HTTP API gives, beside a bare FastAPI app: answers, news, a cancel while it is busy."""

import json
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Final

import psutil

from backend.models import JobStatus
from backend.paths import DataPaths
from backend.store import Store
from tests.bench.report import line, milliseconds
from tests.conftest import PROJECT
from tests.server import Server, free_port, queue_job
from tests.waiting import wait_until

JOBS: Final = 10_000
RUNNING: Final = 10
CLIENTS: Final = 16
WATCHERS: Final = 100
ASK_SECONDS: Final = 5.0
WATCH_SECONDS: Final = 20.0
CANCELS: Final = 10

LOGGING = """\
import os, sys, time, signalbox
run = signalbox.start(total_steps=int(sys.argv[1]))
for step in range(int(sys.argv[1])):
    run.log(step, train_loss=1 / (step + 1), learning_rate=1e-3, logged_at=time.time())
    if os.path.exists(sys.argv[2]):
        break
    time.sleep(0.25)
"""

COOPERATING = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
time.sleep(600)
"""

BARE = """\
import sys
import fastapi, uvicorn
app = fastapi.FastAPI()

@app.get("/health")
async def health():
    return {"status": "ok"}

uvicorn.run(app, port=int(sys.argv[1]), log_level="warning")
"""


def api() -> None:
    """A real server with 10,000 jobs, of which 10 run and log."""
    with tempfile.TemporaryDirectory() as folder, _full_server(Path(folder)) as server:
        with _bare_fastapi(Path(folder)) as bare:
            _answers(server, bare)
        _news(server)
        _cancel(server, Path(folder))


@contextmanager
def _full_server(folder: Path) -> Iterator[Server]:
    data, end = folder / "data", folder / "end"
    data.mkdir()
    script = folder / "steps.py"
    script.write_text(LOGGING, encoding="utf-8")
    store = Store(DataPaths(data).database)

    def running() -> int:
        return store.counts()[JobStatus.RUNNING]

    first = queue_job(store, "past", "script", script=script, args=["3", str(end)])
    with Server(data):
        wait_until(lambda: store.counts()[JobStatus.COMPLETED] == 1)
    copy_job(DataPaths(data).database, first, JOBS - RUNNING - 1)
    for number in range(RUNNING):
        queue_job(store, f"live {number}", "script", script=script, args=["100000", str(end)])
    try:
        with Server(data, workers=RUNNING + 1) as server:
            wait_until(lambda: running() == RUNNING)
            time.sleep(3)
            yield server
            end.touch()
            wait_until(lambda: running() == 0)
    finally:
        end.touch()
        store.close()


def copy_job(database: Path, job_id: int, copies: int) -> None:
    """In one transaction; one job after the other would take minutes."""
    with closing(sqlite3.connect(database)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(job)")]
        names = ", ".join(name for name in columns if name != "id")
        connection.execute(
            "WITH RECURSIVE copy(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM copy WHERE n < ?) "
            f"INSERT INTO job ({names}) SELECT {names} FROM copy, job WHERE job.id = ?",
            (copies, job_id),
        )


@contextmanager
def _bare_fastapi(folder: Path) -> Iterator[str]:
    """The address of a route that answers with a constant."""
    script = folder / "bare.py"
    script.write_text(BARE, encoding="utf-8")
    port = free_port()
    url = f"http://127.0.0.1:{port}/health"
    with subprocess.Popen([sys.executable, script, str(port)]) as process:
        try:
            wait_until(lambda: _answered(url))
            yield url
        finally:
            process.terminate()


def _answered(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def _clients(way: str, url: str, clients: int, seconds: float) -> Iterator["subprocess.Popen[str]"]:
    command = ["-m", "tests.bench.clients", way, url, str(clients), str(seconds)]
    with subprocess.Popen(
        [sys.executable, *command], cwd=PROJECT, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _told(way: str, url: str, clients: int, seconds: float) -> list[list[Any]]:
    with _clients(way, url, clients, seconds) as process:
        found: list[list[Any]] = json.loads(process.communicate()[0])
    return found


def _answers(server: Server, bare: str) -> None:
    newest = _get(server, "jobs?limit=1")["jobs"][0]["job_id"]
    for what, path in (
        ("status", f"status/{newest}"),
        (f"list of 100 of {JOBS:,}", "jobs?limit=100"),
    ):
        for clients in (1, CLIENTS):
            ours = _told("ask", f"{server.url}/api/training/{path}", clients, ASK_SECONDS)
            base = _told("ask", bare, clients, ASK_SECONDS)
            by = f"{what}, {clients} client{'s' if clients > 1 else ''}"
            line(f"{by}: answers a s", _rate(ours), _rate(base), "-")
            line(f"{by}: p50 / p99", _spread(_flat(ours)), _spread(_flat(base)), "-")


def _news(server: Server) -> None:
    """From a step's log to the message that tells it or a later one."""
    job = _get(server, "jobs?limit=1")["jobs"][0]["job_id"]
    process = psutil.Process(server.pid)
    url = f"{server.url.replace('http', 'ws')}/ws/training/{job}"
    alone = _cpu_share(process, lambda: time.sleep(WATCH_SECONDS))
    seen: list[list[tuple[float, int]]] = []
    watched = _cpu_share(process, lambda: seen.extend(_told("watch", url, WATCHERS, WATCH_SECONDS)))
    points = _get(server, f"metrics/{job}?max_points=10000")["points"]
    logged = {point["step"]: point["logged_at"] for point in points}
    shown: list[float] = []
    reached: list[float] = []
    for messages in seen:
        steps = [step for _, step in messages]
        shown += [at - logged[step] for at, step in messages]
        for step in range(steps[0], steps[-1] + 1):
            reached.append(messages[bisect_left(steps, step)][0] - logged[step])
    of = f"{WATCHERS} watchers, a step of 4 a s"
    line(f"{of}: shown, p50 / p99", _spread(shown), "-", "p99 under 500 ms")
    line(f"{of}: any, p50 / p99", _spread(reached), "-", "p99 under 500 ms")
    line(
        f"server CPU with {WATCHERS} watchers",
        f"{watched:.1f} %",
        f"{alone:.1f} % (none)",
        f"of a core; {RUNNING} jobs run",
    )


def _cancel(server: Server, folder: Path) -> None:
    """From the request to the last process gone."""
    script = folder / "cooperating.py"
    script.write_text(COOPERATING, encoding="utf-8")
    alone = [_cancel_seconds(server, script) for _ in range(CANCELS)]
    for what, path in (("status", "status/1"), ("list", "jobs?limit=100")):
        url = f"{server.url}/api/training/{path}"
        with _clients("ask", url, CLIENTS, 600) as clients:
            time.sleep(1)
            busy = [_cancel_seconds(server, script) for _ in range(CANCELS)]
            assert clients.poll() is None
        for name, figure in (("p50", statistics.median), ("max", max)):
            line(
                f"cancel to tree gone, {CLIENTS} clients ask: {what}, {name}",
                milliseconds(figure(busy)),
                milliseconds(figure(alone)),
                "-",
            )


def _cancel_seconds(server: Server, script: Path) -> float:
    job_id = _post(server, "execute", {"script": str(script)})["job_id"]
    log = DataPaths(server.data).run(job_id).log  # a look at a file, which asks nobody
    wait_until(lambda: log.exists() and "ready" in log.read_text(encoding="utf-8"), 60)
    # It may be up before its pid is in the database.
    wait_until(lambda: _get(server, f"status/{job_id}")["pid"] is not None)
    leader = psutil.Process(_get(server, f"status/{job_id}")["pid"])
    tree = [leader, *leader.children(recursive=True)]
    begin = time.monotonic()
    _post(server, f"cancel/{job_id}")
    psutil.wait_procs(tree)
    seconds = time.monotonic() - begin
    wait_until(lambda: _get(server, f"status/{job_id}")["status"] == "cancelled", 60)
    return seconds


def _get(server: Server, path: str) -> Any:
    with urllib.request.urlopen(f"{server.url}/api/training/{path}") as answer:
        return json.load(answer)


def _post(server: Server, path: str, body: object = None) -> Any:
    request = urllib.request.Request(
        f"{server.url}/api/training/{path}",
        b"" if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


def _cpu_share(process: psutil.Process, work: Callable[[], object]) -> float:
    """How much of a core a process uses meanwhile, in percent."""
    begin, since = process.cpu_times(), time.monotonic()
    work()
    end, seconds = process.cpu_times(), time.monotonic() - since
    return float(100 * (end.user + end.system - begin.user - begin.system) / seconds)


def _flat(lists: Sequence[Sequence[float]]) -> list[float]:
    return [value for values in lists for value in values]


def _rate(took: Sequence[Sequence[float]]) -> str:
    return f"{len(_flat(took)) / ASK_SECONDS:.0f}"


def _spread(seconds: Sequence[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100)
    return f"{cuts[49] * 1000:.1f} / {cuts[98] * 1000:.1f} ms"
