"""The figures that Signalbox promises, measured beside a baseline in the same run.

    python -m tests.bench            # all of them
    python -m tests.bench latency    # one: latency, cancel, tree, overhead, log, idle, start, soak,
                                    # api, checkpoint, table
    python -m tests.bench curves     # beside other tools, which it installs; see --help

Each line gives the measured figure, the baseline's, and what was aimed at. They are no tests: a
busy machine prints larger ones and nothing fails.
"""

import contextlib
import gc
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent
from typing import Any

import psutil

from backend.models import Job, JobStatus, utc_now
from backend.paths import DataPaths
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from backend.submission import Submission
from backend.views import JobFilter
from tests.bench.api import api
from tests.bench.bare_streamlit import BareStreamlit
from tests.bench.checkpoint import checkpoint
from tests.bench.curves import curves
from tests.bench.report import line, milliseconds
from tests.bench.table import table
from tests.conftest import PROJECT
from tests.server import Server, queue_job
from tests.waiting import wait_until, wait_until_ended

ROUNDS = 20
OVERHEAD_ROUNDS = 5
IDLE_SECONDS = 20.0

FIRST_LINE = "import time; print(time.monotonic_ns(), flush=True)"

STUBBORN_TREE = """\
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for _ in range(199):
    if os.fork() == 0:
        break
else:
    print("ready", flush=True)
time.sleep(600)
"""

COOPERATING = """\
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
print("ready", flush=True)
time.sleep(600)
"""

TRAINING = """\
import sys, time
sys.path.insert(0, sys.argv[1])
import torch, signalbox
from torch import nn
from backend.training.recipes.digits import build_model, load
torch.manual_seed(0)

if sys.argv[2] == "digits":
    images, _ = load()
    model, x, y = build_model(), images.pixels[:32], images.digits[:32]
else:
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 10))
    x, y = torch.randn(256, 64), torch.randint(10, (256,))
optimizer = torch.optim.AdamW(model.parameters())

def loop(log):
    begin = time.perf_counter()
    for step in range(50):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()  # both loops read it; only one logs it
        if log:
            run.log(step, train_loss=value, learning_rate=1e-3)
    return time.perf_counter() - begin

run = signalbox.start(total_steps=2000)
for _ in range(5):
    loop(False)
# In turns, so that a machine that slows down slows both; 40 x 50 = 2,000 logged steps.
pairs = [(loop(True), loop(False)) for _ in range(40)]
print("RESULT", sum(p[0] for p in pairs), sum(p[1] for p in pairs), flush=True)
"""

LOG_CALLS = """\
import time, signalbox
run = signalbox.start(total_steps=100_000)
begin = time.perf_counter()
for step in range(100_000):
    run.log(step, train_loss=1 / (step + 1), eval_loss=0.5, learning_rate=1e-3, grad_norm=0.7,
            accuracy=0.9)
print("RESULT", (time.perf_counter() - begin) / 100_000 * 1e6, flush=True)
"""


@contextmanager
def running_service(workers: int = 1, **settings: Any) -> Iterator[tuple[Service, Path]]:
    """A service of this process on a folder of its own, with the default settings."""
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Settings(data=Path(folder) / "data", workers=workers, **settings))
        service.start()
        yield service, Path(folder)
        service.close()


def write(folder: Path, source: str) -> Path:
    path = folder / "script.py"
    path.write_text(dedent(source), encoding="utf-8")
    return path


def result_of(service: Service, job_id: int) -> list[float]:
    """The numbers behind RESULT in a job's log."""
    # A look at a file costs nothing; asking the service fifty times a second would be measured too.
    exit_file = DataPaths(service.settings.data).run(job_id).exit
    wait_until(exit_file.exists, 300)
    wait_until_ended(service, job_id, deadline_seconds=300)
    log = service.log_tail(job_id)
    found = next((row for row in log.splitlines() if row.startswith("RESULT")), None)
    assert found, log
    return [float(word) for word in found.split()[1:]]


def latency() -> None:
    """From submit to the first line that the script prints, beside a bare Popen."""
    ours: list[float] = []
    bare: list[float] = []
    with running_service() as (service, folder):
        script = write(folder, FIRST_LINE)
        for _ in range(ROUNDS):
            begin = time.monotonic_ns()
            printed = subprocess.run([sys.executable, script], capture_output=True, check=True)
            bare.append((int(printed.stdout) - begin) / 1e9)
            begin = time.monotonic_ns()
            job_id = service.submit(Submission(recipe="script", params={"script": str(script)}))
            wait_until_ended(service, job_id)
            ours.append((int(service.log_tail(job_id)) - begin) / 1e9)
    more = statistics.median(ours) - statistics.median(bare)
    line(
        "submit to first line of a script",
        f"+{milliseconds(more)}",
        milliseconds(statistics.median(bare)),
        "at most +60 ms",
    )


def cancel() -> None:
    """From cancel to the last process gone, beside a bare terminate of the same process."""
    ours: list[float] = []
    bare: list[float] = []
    with running_service() as (service, folder):
        script = write(folder, COOPERATING)
        for _ in range(ROUNDS):
            with subprocess.Popen(
                [sys.executable, script], stdout=subprocess.PIPE, text=True
            ) as process:
                assert process.stdout
                process.stdout.readline()
                begin = time.monotonic()
                process.terminate()
                process.wait()
                bare.append(time.monotonic() - begin)
            job_id = service.submit(Submission(recipe="script", params={"script": str(script)}))
            wait_until(lambda job_id=job_id: "ready" in service.log_tail(job_id))  # type: ignore[misc]
            leader = psutil.Process(service.job(job_id).pid)
            tree = [leader, *leader.children(recursive=True)]
            begin = time.monotonic()
            service.cancel(job_id)
            while any(_alive(process) for process in tree):
                time.sleep(0.0005)
            ours.append(time.monotonic() - begin)
            wait_until_ended(service, job_id)
    more = statistics.median(ours) - statistics.median(bare)
    line(
        "cancel to tree gone",
        f"+{milliseconds(more)}",
        milliseconds(statistics.median(bare)),
        "at most +50 ms",
    )


def tree() -> None:
    """From cancel to the last of 200 processes that ignore SIGTERM, beside killing them bare."""
    ours: list[float] = []
    bare: list[float] = []
    grace = 1.0
    with running_service(cancel_grace_seconds=grace) as (service, folder):
        script = write(folder, STUBBORN_TREE)
        for _ in range(5):
            with subprocess.Popen(
                [sys.executable, script], stdout=subprocess.PIPE, text=True, start_new_session=True
            ) as process:
                assert process.stdout
                process.stdout.readline()
                begin = time.monotonic()
                os.killpg(process.pid, signal.SIGKILL)
                while _session(process.pid):
                    time.sleep(0.0005)
                bare.append(time.monotonic() - begin)
            job_id = service.submit(Submission(recipe="script", params={"script": str(script)}))
            wait_until(lambda job_id=job_id: "ready" in service.log_tail(job_id))  # type: ignore[misc]
            session = service.job(job_id).pid
            assert session is not None
            assert len(_session(session)) == 201, "200, and their runner"
            begin = time.monotonic()
            service.cancel(job_id)
            while _session(session):
                time.sleep(0.0005)
            ours.append(time.monotonic() - begin)
            wait_until_ended(service, job_id)
    line(
        "200 stubborn processes gone beyond the grace",
        f"+{milliseconds(statistics.median(ours) - grace)}",
        milliseconds(statistics.median(bare)),
        "at most +1000 ms",
    )


def _session(leader: int) -> list[int]:
    """The live processes of a session; see proc(5)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def overhead() -> None:
    """A training with a log at each step, beside the same loop without."""
    for model in ("digits", "tiny"):
        ratios: list[float] = []
        for _ in range(OVERHEAD_ROUNDS):
            with running_service() as (service, folder):
                params = {
                    "script": str(write(folder, TRAINING)),
                    "args": [str(PROJECT), model],
                }
                job_id = service.submit(Submission(recipe="script", params=params))
                logged, plain = result_of(service, job_id)
                ratios.append(logged / plain)
        line(
            f"2,000 logged steps of {plain / 2000 * 1000:.1f} ms ({model})",
            f"{statistics.median(ratios):.3f} x",
            f"{plain:.2f} s",
            f"{'at most 1.02 x' if model == 'digits' else '-'} "
            f"({min(ratios):.3f} to {max(ratios):.3f} x)",
        )


def log() -> None:
    """One log call with five numbers, all its publications included, beside a bare json.dumps."""
    with running_service() as (service, folder):
        script = write(folder, LOG_CALLS)
        job_id = service.submit(Submission(recipe="script", params={"script": str(script)}))
        (microseconds,) = result_of(service, job_id)
    import json
    import timeit

    point = {"step": 1, "a": 1.0, "b": 0.5, "c": 1e-3, "d": 0.7, "e": 0.9}
    bare = timeit.timeit(lambda: json.dumps(point), number=100_000) / 100_000 * 1e6
    line("one log call with five numbers", f"{microseconds:.1f} µs", f"{bare:.1f} µs", "20 µs")


def idle() -> None:
    """A real server: time to ready, memory at rest, and CPU with idle running jobs."""
    for jobs in (0, 1, 20):
        with tempfile.TemporaryDirectory() as folder:
            data = Path(folder) / "data"
            ids = _queue_sleepers(data, Path(folder), jobs)
            with Server(data, workers=20) as server:
                if jobs == 0:
                    empty = _bare_streamlit_ready(Path(folder))
                    line(
                        "server ready",
                        f"{server.ready_seconds:.2f} s",
                        f"{empty:.2f} s",
                        "at most 5 s",
                    )
                process = psutil.Process(server.pid)
                store = Store(DataPaths(data).database)
                wait_until(
                    lambda store=store, jobs=jobs: store.counts()[JobStatus.RUNNING] == jobs  # type: ignore[misc]
                )
                time.sleep(3)
                begin = process.cpu_times()
                time.sleep(IDLE_SECONDS)
                end = process.cpu_times()
                used = (end.user + end.system) - (begin.user + begin.system)
                share = 100 * used / IDLE_SECONDS
                if jobs == 0:
                    rss = process.memory_info().rss / 2**20
                    line("server memory at rest", f"{rss:.0f} MiB", "-", "-")
                    resting = share
                else:
                    goal = "2 %" if jobs == 1 else "5 %"
                    line(
                        f"server CPU with {jobs} idle running job(s)",
                        f"{share:.1f} %",
                        f"{resting:.1f} % (none)",
                        f"at most {goal} of a core",
                    )
            _end_sleepers(store, ids)
            store.close()


def _queue_sleepers(data: Path, folder: Path, jobs: int) -> list[int]:
    data.mkdir()
    script = write(folder, "import time; time.sleep(600)")
    store = Store(DataPaths(data).database)
    ids = [queue_job(store, f"sleeper {number}", "script", script=script) for number in range(jobs)]
    store.close()
    return ids


def _bare_streamlit_ready(folder: Path) -> float:
    """The same wait for an empty Streamlit script."""
    (folder / "bare").mkdir()
    with BareStreamlit(folder / "bare") as server:
        return server.ready_seconds


def start() -> None:
    """A real server's start with 1,000 past and 20 live jobs, beside an empty start."""
    empty: list[float] = []
    full: list[float] = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as folder, Server(Path(folder) / "data") as server:
            empty.append(server.ready_seconds)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        live = _queue_sleepers(data, Path(folder), 20)
        store = Store(DataPaths(data).database)
        with Server(data, workers=20):
            wait_until(lambda: store.counts()[JobStatus.RUNNING] == 20)
        _add_past_jobs(store, 1000)
        for _ in range(3):
            with Server(data, workers=20) as server:
                full.append(server.ready_seconds)
                # Adopted is who has a new line in its timeline; all of them before it was ready.
                assert all("Found" in store.timeline(job_id)[-1].message for job_id in live)
        _end_sleepers(store, live)
        store.close()
    more = statistics.median(full) - statistics.median(empty)
    line(
        "start with 1,000 past and 20 live jobs",
        f"+{more:.2f} s",
        f"{statistics.median(empty):.2f} s",
        "at most +2 s",
    )


def _add_past_jobs(store: Store, count: int) -> None:
    for number in range(count):
        job_id = store.add(Job(name=f"past {number}", recipe="script", timeout_seconds=600, gpus=0))
        store.change(job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=utc_now())
        store.change(job_id, JobStatus.RUNNING, JobStatus.COMPLETED, "Completed")


def _end_sleepers(store: Store, ids: list[int]) -> None:
    """They outlive every server, as they should."""
    for job in map(store.get, ids):
        if job and job.pid and psutil.pid_exists(job.pid):
            for child in psutil.Process(job.pid).children(recursive=True):
                child.kill()


def soak() -> None:
    """1,000 short jobs through 4 workers: what the server is left with, beside what it began."""
    with running_service(workers=4) as (service, folder):
        script = write(folder, "print('short')")
        process = psutil.Process()

        def run(count: int) -> float:
            begin = time.monotonic()
            ids = []
            for _ in range(count):
                ids.append(
                    service.submit(Submission(recipe="script", params={"script": str(script)}))
                )
                # A page is open, as it would be.
                service.jobs(JobFilter(limit=25))
            wait_until(lambda: service.counts()[JobStatus.COMPLETED] >= ids[-1], 900)
            return time.monotonic() - begin

        def state() -> tuple[int, int, int, int]:
            gc.collect()
            return (
                threading.active_count(),
                process.num_fds(),
                len(process.children(recursive=True)),
                process.memory_info().rss,
            )

        run(200)  # what is made once (threads, connections, compiled queries) is there now
        before = state()
        seconds = run(1000)
        after = state()
        for what, old, new in zip(
            ("threads", "file descriptors", "child processes"), before, after, strict=False
        ):
            line(f"{what} after 1,000 jobs", str(new), str(old), "as before")
        line(
            "memory after 1,000 jobs",
            f"{after[3] / 2**20:.1f} MiB",
            f"{before[3] / 2**20:.1f} MiB",
            f"within 10 % ({(after[3] / before[3] - 1) * 100:+.1f} %)",
        )
        line("1,000 short jobs through 4 workers", f"{1000 / seconds:.1f} a s", "-", "-")


BENCHMARKS: dict[str, Callable[[], None]] = {
    f.__name__: f
    for f in (latency, cancel, tree, overhead, log, idle, start, soak, api, checkpoint, table)
}


def main() -> None:
    if sys.argv[1:2] == ["curves"]:
        curves(sys.argv[2:])
        return
    names = sys.argv[1:] or list(BENCHMARKS)
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown:
        sys.exit(
            f"There is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}, curves."
        )
    for name in names:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
