"""The real server, started by the README's command, without a browser."""

import http.client
import statistics
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from backend.models import Job, JobStatus
from backend.paths import DataPaths
from backend.processes import Mark, find_marked
from backend.store import Store
from pages.parts import plotly_script
from tests.server import Server, queue_job
from tests.waiting import wait_until


def queue_script(data: Path, source: str) -> int:
    """Write a queued job into the database of a server that does not run."""
    data.mkdir(exist_ok=True)
    script = data.with_name("script.py")
    script.write_text(source, encoding="utf-8")
    store = Store(DataPaths(data).database)
    job_id = queue_job(store, "script", "script", script=script)
    store.close()
    return job_id


def wait_for_status(data: Path, job_id: int, status: JobStatus) -> Job:
    store = Store(DataPaths(data).database)

    def job() -> Job:
        found = store.get(job_id)
        assert found
        return found

    wait_until(lambda: job().status == status, 30, lambda: repr(job()))
    found = job()
    store.close()
    return found


def test_it_is_ready_soon_without_torch_and_only_for_this_machine(tmp_path: Path) -> None:
    with Server(tmp_path / "data") as server:
        assert server.ready_seconds < 20, "A goal of 5 s, on a slow and busy machine."
        process = psutil.Process(server.pid)
        assert not [m.path for m in process.memory_maps() if "torch" in m.path]
        listening = [c.laddr for c in process.net_connections() if c.status == "LISTEN"]
        assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", server.port)]


def test_an_answer_does_not_wait_for_its_head_to_be_acknowledged(tmp_path: Path) -> None:
    """Which takes 40 ms each time where Nagle's algorithm meets delayed acknowledgements."""
    with Server(tmp_path / "data") as server:
        connection = http.client.HTTPConnection("127.0.0.1", server.port)

        def usual_seconds() -> float:
            seconds = []
            for _ in range(100):
                begin = time.monotonic()
                connection.request("GET", "/health")
                connection.getresponse().read()
                seconds.append(time.monotonic() - begin)
            return statistics.median(seconds)

        quickest = min(usual_seconds() for _ in range(3))
        connection.close()
    assert quickest < 0.035, "An answer takes 1 ms; a busy machine gets three tries."


def test_queued_jobs_run_with_no_browser_open(tmp_path: Path) -> None:
    job_id = queue_script(tmp_path / "data", "print('done')")
    with Server(tmp_path / "data"):
        wait_for_status(tmp_path / "data", job_id, JobStatus.COMPLETED)


def test_a_job_outlives_its_server_and_is_found_by_the_next(tmp_path: Path) -> None:
    data = tmp_path / "data"
    gate = tmp_path / "gate"
    job_id = queue_script(
        data,
        "import pathlib, time\n"
        "print('started', flush=True)\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)\n",
    )
    with Server(data) as server:
        job = wait_for_status(data, job_id, JobStatus.RUNNING)
        log = DataPaths(data).run(job_id).log  # a job is running before it has one
        wait_until(lambda: log.exists() and "started" in log.read_text())
    assert "1 job goes on running" in server.output
    mark = Mark(job_id, DataPaths(data).read_nonce() or "")
    assert find_marked(mark)
    with Server(data):
        gate.touch()
        ended = wait_for_status(data, job_id, JobStatus.COMPLETED)
        assert ended.pid == job.pid or job.pid is None


def test_a_job_that_ended_while_no_server_ran_gets_its_true_verdict(tmp_path: Path) -> None:
    data = tmp_path / "data"
    gate = tmp_path / "gate"
    job_id = queue_script(
        data,
        "import pathlib, time\n"
        "print('started', flush=True)\n"
        f"while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)\n"
        "raise ValueError('while nobody looked')\n",
    )
    paths = DataPaths(data).run(job_id)
    with Server(data) as server:
        wait_until(lambda: paths.log.exists() and "started" in paths.log.read_text())
        server.stop(9)
    gate.touch()
    wait_until(paths.exit.exists)
    with Server(data):
        job = wait_for_status(data, job_id, JobStatus.FAILED)
    assert job.error == "ValueError: while nobody looked"


@pytest.mark.parametrize(
    ("name", "value"), [("WORKERS", "0"), ("TIMEOUT_MINUTES", "soon"), ("DATA", "/dev/null/data")]
)
def test_a_setting_that_makes_no_sense_stops_the_start_with_one_line(
    tmp_path: Path, name: str, value: str
) -> None:
    server = Server(Path(value) if name == "DATA" else tmp_path / "data")
    server.log = tmp_path / "log"
    server.settings = {name: value}
    assert server.launch().wait(60) != 0
    assert "Traceback" not in server.output
    # Streamlit says where the app can be seen before it has looked at it; the rest is ours.
    ours = server.output.partition(f"{server.port}")[2].split("\n\n", 1)[-1].strip()
    assert ours.startswith("Signalbox cannot start.")
    assert f"SIGNALBOX_{name}" in ours
    assert "\n" not in ours


def test_a_second_server_on_the_same_folder_is_refused_and_the_first_goes_on(
    tmp_path: Path,
) -> None:
    with Server(tmp_path / "data") as first:
        second = Server(tmp_path / "data")
        assert second.launch().wait(60) != 0
        assert "Another Signalbox runs on" in first.output
        assert urllib.request.urlopen(f"{first.url}/_stcore/health").status == 200


def test_the_charts_script_is_served_by_the_server_itself(tmp_path: Path) -> None:
    with (
        Server(tmp_path / "data") as server,
        urllib.request.urlopen(server.url + plotly_script.URL) as answer,
    ):
        assert answer.headers["Content-Type"].startswith("text/javascript")
        assert b"plotly.js" in answer.read(1000)
