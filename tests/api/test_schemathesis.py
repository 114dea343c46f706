"""Many requests, made out of the API's own description, against a real server.

    python -m pytest -n 0 -s tests/api/test_schemathesis.py
    FUZZ_SEED=$RANDOM python -m pytest -n 0 -s tests/api/test_schemathesis.py

The seed is the same each time, so that what one machine finds another can repeat; the second
command tries another one. The summary that is printed names it.
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backend.paths import DataPaths
from backend.processes import find_all_marked
from backend.store import Store
from tests.server import Server, queue_job
from tests.waiting import wait_until

SEED = os.environ.get("FUZZ_SEED", "12")
MAX_EXAMPLES = 20
"""For each operation and phase, besides its boundaries: about 1,700 requests in all."""

SLEEPERS = 100

# What the description allows is accepted, or refused for what no schema can say: 422 where a
# script does not exist or a width is no multiple of the heads, 429 where the queue is full.
# `validate` takes what `execute` takes, whose 600 boundaries are asked for once.
CONFIG = """\
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "401", "403", "404", "409", "422", "429"]

[[operations]]
include-path = "/api/training/validate"
phases.coverage.enabled = false
"""

SLEEPER = """\
import pathlib, sys, time
for _ in range(900):
    if not pathlib.Path(sys.argv[1]).exists():
        break
    time.sleep(1)
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """Busy with jobs that only sleep, so that no training which is submitted is ever started."""
    data, gate, script = tmp_path / "data", tmp_path / "gate", tmp_path / "sleeper.py"
    data.mkdir()
    gate.touch()
    script.write_text(SLEEPER, encoding="utf-8")
    store = Store(DataPaths(data).database)
    for _ in range(SLEEPERS):
        queue_job(store, "sleeper", "script", script=script, args=[str(gate)])
    store.close()
    try:
        with Server(data, workers=1, cancel_grace_seconds=1) as server:
            yield server
    finally:
        gate.unlink()  # the one that runs outlives its server
    nonce = DataPaths(data).read_nonce()
    assert nonce
    wait_until(lambda: not find_all_marked(nonce), 30, "A job goes on running.")


@pytest.mark.timeout(400)
def test_no_request_that_the_description_allows_or_forbids_breaks_a_promise(
    server: Server, tmp_path: Path
) -> None:
    """All checks of all phases: examples, boundaries, random data, and sequences of requests."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG, encoding="utf-8")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "--config-file", config),
            *("run", f"{server.url}/api/openapi.json", "--checks", "all"),
            *("--phases", "examples,coverage,fuzzing,stateful", "--mode", "all"),
            *("--max-examples", str(MAX_EXAMPLES), "--seed", SEED, "--continue-on-failure"),
            *("--header", "X-Requested-With: tests", "--no-color"),
        ],
        cwd=tmp_path,  # it keeps a database of examples there
        timeout=360,
        capture_output=True,
        encoding="utf-8",
    )
    summary = run.stdout[run.stdout.find("= SUMMARY =") :]
    print(summary)
    assert run.returncode == 0, run.stdout + run.stderr
    tested = re.search(r"Selected: (\d+)/\1\n +Tested: \1\n", summary)
    assert tested, "Each operation is tested."
    cases = re.search(r"([\d,]+) generated, \1 passed", summary)
    assert cases, summary
    assert int(cases[1].replace(",", "")) >= 1500

    assert "Traceback" not in server.output
    assert " ERROR " not in server.output
    jobs = httpx.get(f"{server.url}/api/training/jobs?limit=1000", timeout=30).json()
    assert jobs["total"] > SLEEPERS, "It has submitted some."
    started = [job["job_id"] for job in jobs["jobs"] if job["started_at"]]
    assert max(started) <= SLEEPERS, "No training that it submitted was started."
