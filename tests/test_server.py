"""The real server, started by the README's command, without a browser."""

import gzip
import http.client
import statistics
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from backend.models import Job, JobStatus
from backend.paths import DataPaths
from backend.processes import Mark, find_marked
from backend.store import Store
from pages.parts import plotly_script
from pages.parts.static_files import FOLDER
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


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One for all tests that only look at it: to start it takes longer than all of them."""
    with Server(tmp_path_factory.mktemp("server") / "data") as server:
        yield server


def get(server: Server, path: str, **headers: str) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def test_it_is_ready_soon_without_torch_and_only_for_this_machine(server: Server) -> None:
    assert server.ready_seconds < 20, "A goal of 5 s, on a slow and busy machine."
    process = psutil.Process(server.pid)
    assert not [m.path for m in process.memory_maps() if "torch" in m.path]
    listening = [c.laddr for c in process.net_connections() if c.status == "LISTEN"]
    assert [(a.ip, a.port) for a in listening] == [("127.0.0.1", server.port)]


def test_an_answer_does_not_wait_for_its_head_to_be_acknowledged(server: Server) -> None:
    """Which takes 40 ms each time where Nagle's algorithm meets delayed acknowledgements."""
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


def test_each_page_is_told_where_the_server_is(server: Server) -> None:
    for page in ("submit", "jobs", "job?id=12", "compare?ids=1", "failures", "gpu"):
        status, _, body = get(server, f"/{page}")
        assert status == 200
        assert b"BACKEND_BASE_URL" in body
    assert get(server, "/")[0] == 200
    assert get(server, "/", Host="evil.example")[0] == 400
    assert get(server, "/", Host="localhost:1")[0] == 200


def test_the_charts_script_is_served_by_the_server_itself(server: Server) -> None:
    status, headers, body = get(server, plotly_script.URL)
    assert status == 200
    assert headers["content-type"].startswith("text/javascript")
    assert "immutable" in headers["cache-control"]
    assert b"plotly.js" in body[:1000]
    hint, _, script = body.partition(b"\n")
    assert hint == b"//# allFunctionsCalledOnLoad"
    assert script == plotly_script.SCRIPT.read_bytes()
    status, headers, packed = get(server, plotly_script.URL, **{"Accept-Encoding": "br, gzip"})
    assert (status, headers["content-encoding"]) == (200, "gzip")
    assert gzip.decompress(packed) == body


def test_streamlits_own_files_are_served_as_they_are(server: Server) -> None:
    files = sorted((FOLDER / "js").glob("index.*.js")) + sorted(FOLDER.glob("*/*.woff2"))
    assert len(files) > 3
    for _ in range(2):
        for file in files:
            path = f"/static/{file.relative_to(FOLDER).as_posix()}"
            status, headers, body = get(server, path)
            assert (status, body) == (200, file.read_bytes())
            assert "immutable" in headers["cache-control"]
            kind = "javascript" if file.suffix == ".js" else "font/woff2"
            assert kind in headers["content-type"]
    status, headers, body = get(server, path, Range="bytes=0-9")
    assert (status, len(body)) == (206, 10)
    for strange in ("/static/js/none.js", "/static/../app.py", "/static/%2e%2e/%2e%2e/app.py"):
        assert b"lifespan" not in get(server, strange)[2]


def test_a_second_server_on_the_same_folder_is_refused_and_the_first_goes_on(
    server: Server,
) -> None:
    second = Server(server.data)
    assert second.launch().wait(60) != 0
    assert "Another Signalbox runs on" in server.output
    assert urllib.request.urlopen(f"{server.url}/_stcore/health").status == 200


def test_a_job_outlives_its_server_and_is_found_by_the_next(tmp_path: Path) -> None:
    """A queued job is started, goes on and ends with no browser open."""
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
    with Server(data) as server:
        gate.touch()
        ended = wait_for_status(data, job_id, JobStatus.COMPLETED)
        assert ended.pid == job.pid or job.pid is None
    assert "Signalbox closed; no job is running." in server.output
    assert "Traceback" not in server.output


@pytest.mark.parametrize(
    ("name", "value"), [("WORKERS", "zero"), ("DATA", "/dev/null/data")], ids=["read", "used"]
)
def test_a_setting_that_makes_no_sense_stops_the_start_with_one_line(
    tmp_path: Path, name: str, value: str
) -> None:
    """One that is wrong as it is read, and one as it is used; test_settings.py has the others."""
    server = Server(Path(value) if name == "DATA" else tmp_path / "data")
    server.log = tmp_path / "log"
    server.settings = {name: value}
    assert server.launch().wait(60) != 0
    assert "Traceback" not in server.output
    # Streamlit says where the app can be seen before it has looked at it; the rest is ours.
    ours = server.output.partition(f"{server.port}")[2].split("\n\n", 1)[-1].strip()
    assert ours.startswith("Signalbox cannot start.")
    assert f"SIGNALBOX_{name}" in ours
    assert value in ours
    assert "\n" not in ours
