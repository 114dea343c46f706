"""Kills the server at random moments, starts it again, and looks at what became of the jobs.

    python -m tests.faults.rounds 500           # rounds; one server lives and dies in each
    python -m tests.faults.rounds 500 --seed 7

In each round a server is started on the same data folder, submits a few jobs of mixed kinds,
cancels some, and is killed by SIGKILL after a random time. The last server is left alone until
every job has ended. Then each job must have the one verdict that is true of its kind, must have
run once, with a legal history, and no process of any job may be left.
"""

import argparse
import contextlib
import functools
import itertools
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from backend.models import TRANSITIONS, FailureKind, Job, JobStatus
from backend.paths import DataPaths
from backend.processes import find_all_marked
from backend.service import Service
from backend.settings import Settings
from backend.store import Store
from backend.submission import Submission
from tests.waiting import live_jobs, wait_until_ended

JOB = '''\
"""A job of the kind that its first argument names."""
import json, os, random, signal, subprocess, sys, time

kind = sys.argv[1]
folder = os.environ["SIGNALBOX_RUN_DIR"]

def write(name, text, mode="a"):
    with open(os.path.join(folder, name), mode) as file:
        file.write(text)

def tell():
    """Write down who this is, so that it can be seen whether it has gone."""
    with open("/proc/self/stat") as file:
        write("pids", f"{os.getpid()} {file.read().rpartition(')')[2].split()[19]}\\n")

def work(seconds):
    for step in range(int(seconds * 20)):
        write("progress.json.tmp", json.dumps({"step": step, "loss": 1 / (step + 1)}), "w")
        os.replace(os.path.join(folder, "progress.json.tmp"), os.environ["SIGNALBOX_PROGRESS"])
        time.sleep(0.05)

def daemon():
    """Born of a parent that ends at once, with nothing in its environment to know it by."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            tell()
            os.execve("/bin/sleep", ["sleep", "600"], {})
        os._exit(0)
    os.wait()

def save(*_):
    time.sleep(0.1)
    sys.exit(0)

write("begun", "once\\n")
tell()
if kind == "ends":
    work(random.random())
elif kind == "raises":
    work(random.random() / 2)
    raise ValueError("its own")
elif kind == "dies":
    work(random.random() / 2)
    os.kill(os.getpid(), signal.SIGKILL)
elif kind == "hangs":
    time.sleep(600)
elif kind == "leaves a daemon":
    daemon()
    work(random.random())
elif kind == "saves":
    signal.signal(signal.SIGTERM, save)
    work(600)
elif kind == "refuses":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        tell()
        time.sleep(600)
    work(600)
'''


@dataclass(frozen=True)
class Truth:
    """What may be said of a job of some kind in the end."""

    status: JobStatus
    kind: FailureKind | None = None
    error: str | None = None


TIMEOUT_SECONDS = 0.8
COMPLETED = Truth(JobStatus.COMPLETED)
CANCELLED = Truth(JobStatus.CANCELLED)
TRUTHS: Mapping[str, Truth] = {
    "ends": COMPLETED,
    "raises": Truth(JobStatus.FAILED, FailureKind.CRASHED, "ValueError: its own"),
    "dies": Truth(JobStatus.FAILED, FailureKind.KILLED, "The process was killed by SIGKILL."),
    "hangs": Truth(
        JobStatus.FAILED,
        FailureKind.TIMEOUT,
        "Training timed out - no progress updates for 0.8 seconds",
    ),
    "leaves a daemon": COMPLETED,
    "saves": CANCELLED,
    "refuses": CANCELLED,
}
ENDLESS = frozenset({"saves", "refuses"})


def settings_of(data: Path) -> Settings:
    return Settings(
        data=data, workers=4, poll_seconds=0.05, cancel_grace_seconds=0.6, stall_grace_seconds=0.4
    )


def submit(service: Service, script: Path, kind: str) -> int:
    params = {"script": str(script), "args": [kind], "python": sys.executable}
    minutes = TIMEOUT_SECONDS / 60 if kind == "hangs" else 10
    return service.submit(
        Submission(recipe="script", name=kind, params=params, timeout_minutes=minutes)
    )


def a_servers_life(data: Path, script: Path, choose: random.Random, started: int) -> None:
    """Start, say so on the pipe, submit a few jobs, cancel some; it ends when it is killed."""
    service = Service(settings_of(data))
    service.start()
    os.write(started, b"!")
    while True:
        waiting = service.counts()[JobStatus.QUEUED]
        if waiting < 6:
            submit(service, script, choose.choice(list(TRUTHS)))
        for job_id in live_jobs(service):
            if service.job(job_id).name in ENDLESS and choose.random() < 0.2:
                service.cancel(job_id)
        time.sleep(choose.random() / 4)


def the_last_server(data: Path) -> None:
    """Start, cancel what would go on for ever, and wait until all have ended."""
    service = Service(settings_of(data))
    service.start()
    for job_id in live_jobs(service):
        if service.job(job_id).name in ENDLESS:
            service.cancel(job_id)
    wait_until_ended(service, *live_jobs(service), deadline_seconds=120)
    service.close()


@contextlib.contextmanager
def forked(life: Callable[[], None], log: Path) -> Iterator[int]:
    """A process that lives this life. Forked, because an import costs more than many a round."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            output = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            os.dup2(output, 1)
            os.dup2(output, 2)
            logging.basicConfig(level=logging.INFO, stream=sys.stderr)
            life()
            code = 0
        except BaseException:
            logging.exception("The server failed")
        finally:
            os._exit(code)
    yield pid


def kill_servers(data: Path, rounds: int, seed: int) -> int:
    """Run the rounds; return how many of them left jobs running without a server."""
    choose = random.Random(seed)
    data.mkdir(parents=True, exist_ok=True)
    script, log = data / "job.py", data / "server.log"
    script.write_text(JOB, encoding="utf-8")
    alone = 0
    for _ in range(rounds):
        life = random.Random(choose.random())
        has_started, started = os.pipe()
        with forked(functools.partial(a_servers_life, data, script, life, started), log) as pid:
            os.close(started)
            if choose.random() < 0.3:
                time.sleep(choose.uniform(0, 0.12))  # while it starts, or soon after
            else:
                os.read(has_started, 1)  # or it has ended, which the status tells below
                time.sleep(choose.uniform(0, 0.9))
            os.kill(pid, signal.SIGKILL)
            os.close(has_started)
            _, status = os.waitpid(pid, 0)
            assert os.WIFSIGNALED(status), f"The server ended by itself: {log.read_text()[-3000:]}"
        if nonce(data) and find_all_marked(nonce(data)):
            alone += 1
    with forked(lambda: the_last_server(data), log) as pid:
        _, status = os.waitpid(pid, 0)
        assert status == 0, f"The last server failed: {log.read_text()[-3000:]}"
    return alone


def nonce(data: Path) -> str:
    return DataPaths(data).read_nonce() or ""


def findings(data: Path) -> tuple[Counter[str], list[str]]:
    """What the jobs ended as, and everything that is not as it should be."""
    store = Store(DataPaths(data).database)
    jobs = store.find(limit=100_000, descending=False).jobs
    ends: Counter[str] = Counter()
    wrong: list[str] = []
    for job in jobs:
        ends[f"{job.name}: {job.status}"] += 1
        wrong += [f"Job {job.id} ({job.name}): {what}" for what in _wrong_with(store, data, job)]
    store.close()
    for job_id, rows in find_all_marked(nonce(data)).items():
        wrong.append(f"Job {job_id} has left {rows}")
    return ends, wrong


def _wrong_with(store: Store, data: Path, job: Job) -> Iterator[str]:
    assert job.id is not None
    paths = DataPaths(data).run(job.id)
    found = Truth(job.status, job.failure_kind, job.error)
    if found != TRUTHS[job.name]:
        yield f"it ended as {found}"
    changes = [event for event in store.timeline(job.id) if event.to_status is not None]
    states = [event.to_status for event in changes if event.to_status]
    legal = all(new in TRANSITIONS[old] for old, new in itertools.pairwise(states))
    if states[0] is not JobStatus.QUEUED or not legal or states[-1] is not job.status:
        yield f"its history is {states}"
    if (store.failure(job.id) is not None) != (job.status is JobStatus.FAILED):
        yield "its failure is missing, or should not be there"
    launched = paths.log.exists()
    once = paths.folder / "begun"
    begun = once.read_text().count("once") if once.exists() else 0
    if begun > 1 or (begun == 0 and found != CANCELLED):
        yield f"it was begun {begun} times"
    if launched and len(store.cleanups(job.id, 10)) != 1:
        yield f"it has {len(store.cleanups(job.id, 10))} cleanups"
    if job.ending is not None:
        yield f"an end is still intended: {job.ending}"
    if paths.exit.exists() and found == COMPLETED:
        said = datetime.fromisoformat(json.loads(paths.exit.read_text())["finished_at"])
        if job.finished_at != said:
            yield f"it ended at {said}, not at {job.finished_at}"
    for pid, started in _who(paths.folder / "pids"):
        if _start_of(pid) == started:
            yield f"process {pid} of it is left"


def _who(pids: Path) -> list[tuple[int, str]]:
    lines = pids.read_text().splitlines() if pids.exists() else []
    return [(int(pid), started) for pid, started in (line.split() for line in lines)]


def _start_of(pid: int) -> str | None:
    """When a live process began, in clock ticks since the boot; see proc(5)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("rounds", type=int)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        begin = time.monotonic()
        alone = kill_servers(data, chosen.rounds, chosen.seed)
        ends, wrong = findings(data)
        log = (data / "server.log").read_text(errors="replace")
        print(
            f"{chosen.rounds} servers killed (seed {chosen.seed}) in "
            f"{time.monotonic() - begin:.0f} s; {alone} of them left jobs running. "
            f"{sum(ends.values())} jobs:"
        )
        for end, count in sorted(ends.items()):
            print(f"  {count:5} {end}")
        for line in wrong:
            print(line)
        if wrong:
            sys.exit(f"{len(wrong)} things are wrong. The servers' log ends:\n{log[-5000:]}")
        print("Every verdict is true, every history legal, and no process is left.")


if __name__ == "__main__":
    main()
