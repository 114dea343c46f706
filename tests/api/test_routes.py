"""Each route of the API by real HTTP, on real jobs."""

import asyncio
import io
import json
import socket
import sqlite3
import statistics
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from backend.api import MAX_DOWNLOADS, Desk
from backend.models import Job
from backend.paths import DataPaths
from backend.refusals import BusyError
from backend.service import MAX_QUEUED
from backend.shapes import Curve, CurveMarks, Curves, Status
from backend.store import Store
from tests.api.conftest import open_client
from tests.server import Server
from tests.waiting import wait_until

HERE = {"X-Requested-With": "test"}
Started = Callable[..., int]

LOGS_POINTS = """
    import signalbox, time, sys
    run = signalbox.start(total_steps=50)
    run.phase("warming up")
    for step in range(1, 51):
        run.log(step, train_loss=99.0 if step == 17 else 1 / step, learning_rate=0.1)
    run.log(50, eval_loss=float("nan"))
    print("Grüße\\udc80".encode("utf-8", "surrogateescape").decode("latin-1"))
    sys.stdout.buffer.write("Grüße ".encode() + b"\\xff end\\n")
    run.finish()
"""


def status(client: httpx.Client, job_id: int) -> Mapping[str, Any]:
    answer = client.get(f"/api/training/status/{job_id}")
    assert answer.status_code == 200, answer.text
    found: Mapping[str, Any] = answer.json()
    return found


def wait_for(client: httpx.Client, job_id: int, *states: str) -> Mapping[str, Any]:
    wait_until(
        lambda: status(client, job_id)["status"] in states,
        60,
        lambda: json.dumps(status(client, job_id)),
    )
    return status(client, job_id)


def post(client: httpx.Client, path: str) -> httpx.Response:
    return client.post(f"/api/training/{path}", headers=HERE)


def metrics(client: httpx.Client, job_id: int, **query: int) -> Mapping[str, Any]:
    answer = client.get(f"/api/training/metrics/{job_id}", params=query)
    assert answer.status_code == 200, answer.text

    def no_number(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    found: Mapping[str, Any] = json.loads(answer.text, parse_constant=no_number)
    return found


# Submitting


def test_a_recipe_is_submitted_with_its_parameters(client: httpx.Client) -> None:
    body = {"recipe": "digits", "params": {"epochs": 1, "seed": 7}, "name": "by hand"}
    answer = client.post("/api/training/execute", json=body)
    assert answer.status_code == 201
    job_id = answer.json()["job_id"]
    assert answer.json() == {"job_id": job_id, "status": "queued"}
    assert status(client, job_id)["name"] == "by hand"
    assert status(client, job_id)["timeout_seconds"] == 600
    post(client, f"cancel/{job_id}")


def test_a_script_runs_with_its_arguments_environment_folder_and_timeout(
    client: httpx.Client, started: Started, tmp_path: Path
) -> None:
    job_id = started(
        "import os, sys; print(sys.argv[1:], os.environ['MARK'], os.getcwd())",
        args=["--lr", "3e-4"],
        env={"MARK": "set"},
        python=sys.executable,
        working_dir=str(tmp_path),
        timeout_minutes=0.5,
        gpus=0,
    )
    found = wait_for(client, job_id, "completed")
    assert found["timeout_seconds"] == 30
    text = client.get(f"/api/training/logs/{job_id}").json()["text"]
    assert f"['--lr', '3e-4'] set {tmp_path}" in text


WRONG: list[tuple[object, set[str]]] = [
    ({"recipe": "digits", "params": {"epochs": 0, "batch_size": "x", "colour": 1},
      "name": "x" * 201, "timeout_minutes": 0, "gpus": -1, "surprise": 1, "env": {"A B": "c"}},
     {"params.epochs", "params.batch_size", "params.colour", "name", "timeout_minutes", "gpus",
      "surprise", "env"}),
    ({"recipe": "digits", "params": {"device": "cuda"}, "name": 3}, {"params.device", "name"}),
    ({"recipe": "digits", "params": [1]}, {"params"}),
    ({"recipe": "digits", "epochs": 5}, {"epochs"}),
    ({"recipe": "digits", "params": {"epochs": True}}, {"params.epochs"}),
    ({"recipe": "digits", "gpus": 7}, {"gpus"}),
    ({"recipe": "digits", "params": {"epochs": 0, "device": "cuda"}},
     {"params.epochs", "params.device"}),
    ({"recipe": "digits", "env": {"A B": "", "OK": "y" * 40_000}}, {"env", "env.OK"}),
    ({"recipe": "nothing"}, {"recipe"}),
    ({"recipe": "nothing", "name": 5, "timeout_minutes": -1, "zzz": 1},
     {"recipe", "name", "timeout_minutes", "zzz"}),
    ({"recipe": "digits", "params": {f"p{i}": 0 for i in range(3000)}}, {"body"}),
    ({"script": "/" + "a" * 300}, {"script"}),
    ({"script": "~nobody-of-this-name/x.py"}, {"script"}),
    ({"recipe": "char_lm", "params": {"text_path": "/" + "a" * 5000}}, {"params.text_path"}),
    ({"recipe": 7}, {"recipe"}),
    ({}, {"recipe"}),
    ([], {"body"}),
    ("digits", {"body"}),
    (None, {"body"}),
    ({"script": "train.py", "args": "--lr", "python": "/nowhere", "working_dir": "/nowhere"},
     {"script", "args", "python", "working_dir"}),
    ({"script": "/nowhere/train.py"}, {"script"}),
    ({"script": "/tmp"}, {"script"}),
    ({"script": "/tmp/\0.py"}, {"script"}),
    ({"script": __file__, "args": ["a", 3]}, {"args.1"}),
    ({"script": __file__, "args": ["\0"]}, {"args"}),
    ({"script": __file__, "recipe": "digits"}, {"script"}),
    ({"script": __file__, "params": {}}, {"params"}),
    ({"script": __file__, "env": {"SIGNALBOX_JOB_ID": "1"}}, {"env"}),
    ({"script": __file__, "env": {"A": "\0"}}, {"env"}),
    ({"script": __file__, "env": {"A": 1}}, {"env.A"}),
    ({"script": __file__, "env": {f"V{i}": "" for i in range(201)}}, {"env"}),
    ({"script": __file__, "args": ["x"] * 1001}, {"args"}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "fields"),
    WRONG,
    ids=[f"{number}-{body!s:.40}" for number, (body, _) in enumerate(WRONG)],
)
def test_everything_that_is_wrong_is_named_at_once_and_nothing_is_queued(
    client: httpx.Client, body: object, fields: set[str]
) -> None:
    before = client.get("/api/training/jobs").json()["total"]
    for path in ("execute", "validate"):
        answer = client.post(
            f"/api/training/{path}",
            content=json.dumps(body),
            headers={"Content-Type": "application/json"},
        )
        assert answer.status_code == 422, answer.text
        found = answer.json()
        assert {problem["field"] for problem in found["problems"]} == fields, answer.text
        assert all(problem["message"].endswith(".") for problem in found["problems"])
        assert all(field in found["detail"] for field in fields)
        assert found["valid"] is False
    assert client.get("/api/training/jobs").json()["total"] == before


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff", b'{"name": "\\ud800"}', b"[" * 10_000, b"NaNs"], ids=range(6)
)
def test_what_is_no_json_is_refused_with_a_sentence(client: httpx.Client, content: bytes) -> None:
    answer = client.post(
        "/api/training/execute", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400
    assert "JSON" in answer.json()["detail"]


def test_a_good_description_is_valid_and_queues_nothing(client: httpx.Client) -> None:
    before = client.get("/api/training/jobs").json()["total"]
    answer = client.post("/api/training/validate", json={"recipe": "char_lm"})
    assert (answer.status_code, answer.json()) == (200, {"valid": True, "problems": []})
    assert client.get("/api/training/jobs").json()["total"] == before


def test_a_full_queue_is_refused_and_the_bound_is_named(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    script = tmp_path / "script.py"
    script.write_text("import time; time.sleep(600)")
    store = Store(DataPaths(data).database)
    with store._write() as session:  # a thousand transactions would take their time
        for number in range(MAX_QUEUED + 1):
            session.add(
                Job(
                    name=f"{number}",
                    recipe="script",
                    timeout_seconds=600,
                    gpus=0,
                    params={"script": str(script)},
                    command={"argv": [str(script)]},
                )
            )
    store.close()
    with (
        Server(data, workers=1, cancel_grace_seconds=1) as server,
        open_client(server) as client,
    ):
        wait_for(client, 1, "running")
        body = {"script": str(script)}
        answer = client.post("/api/training/execute", json=body)
        assert answer.status_code == 429
        assert "The queue is full: 1,000 jobs wait." in answer.json()["detail"]
        assert client.post("/api/training/validate", json=body).status_code == 200
        assert post(client, "cancel/500").status_code == 200
        assert client.post("/api/training/execute", json=body).status_code == 201
        with closing(sqlite3.connect(DataPaths(data).database)) as database, database:
            database.execute("UPDATE job SET status = 'cancelled' WHERE status = 'queued'")
        post(client, "cancel/1")
        wait_for(client, 1, "cancelled")


# Looking


def test_a_status_has_what_the_contract_names_and_true_figures(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(LOGS_POINTS, name="points")
    found = wait_for(client, job_id, "completed")
    assert list(found) == list(Status.model_fields)
    assert (found["current_step"], found["total_steps"], found["progress"]) == (50, 50, 100.0)
    assert found["loss"] == pytest.approx(1 / 50)
    assert found["created_at"].endswith("Z")
    assert found["created_at"] <= found["started_at"] <= found["finished_at"]
    assert found["requested"] is None
    assert found["error"] is None


def test_what_was_asked_for_is_told_without_the_values_of_variables(
    client: httpx.Client, started: Started, tmp_path: Path
) -> None:
    job_id = started("pass", args=["--lr", "1"], env={"KEY": SECRET}, timeout_minutes=2)
    found = client.get(f"/api/training/{job_id}/spec").json()
    assert found["recipe"] == "script"
    assert found["params"] == {
        "script": str(tmp_path / "script0.py"),
        "args": ["--lr", "1"],
        "python": None,
        "working_dir": None,
    }
    assert (found["env_names"], found["timeout_seconds"]) == (["KEY"], 120)
    assert SECRET not in str(found)


def test_jobs_are_filtered_and_paged(client: httpx.Client, started: Started) -> None:
    first, second = started(), started()
    wait_for(client, first, "running")
    wait_for(client, second, "running")
    everything = client.get("/api/training/jobs", params={"limit": 1000}).json()
    ids = [job["job_id"] for job in everything["jobs"]]
    assert ids == sorted(ids, reverse=True)
    assert everything["total"] == len(ids)
    page = client.get("/api/training/jobs", params={"limit": 1, "offset": 1}).json()
    assert [job["job_id"] for job in page["jobs"]] == ids[1:2]
    running = client.get("/api/training/jobs", params={"status": ["running", "queued"]}).json()
    assert {first, second} <= {job["job_id"] for job in running["jobs"]}
    assert {job["status"] for job in running["jobs"]} <= {"running", "queued"}


def test_jobs_are_searched_and_sorted(client: httpx.Client, started: Started) -> None:
    ids = [started("pass", args=["--lr", lr], name=f"searched {lr}") for lr in ("0.1", "3e-4")]
    wait_for(client, ids[1], "completed", "failed")
    found = client.get("/api/training/jobs", params={"q": "searched lr>0.001 -nothing what>x"})
    assert [job["job_id"] for job in found.json()["jobs"]] == [ids[0]]
    assert found.json()["problems"] == ["what>x compares with no number; write it as what>0.001."]
    for descending in (True, False):
        query = {"q": "searched", "sort": "lr", "descending": descending}
        listed = client.get("/api/training/jobs", params=query).json()["jobs"]
        assert [job["job_id"] for job in listed] == (ids if descending else ids[::-1])


def test_jobs_are_labelled(client: httpx.Client, started: Started) -> None:
    job_id = started("pass")
    body = {"name": "named", "tags": ["paper", "Paper"], "note": "why", "starred": True}
    answer = client.patch(f"/api/training/{job_id}", json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert (found["name"], found["tags"], found["note"], found["starred"]) == (
        "named", ["paper"], "why", True,
    )  # fmt: skip
    found = client.patch(f"/api/training/{job_id}", json={"note": ""}).json()
    assert (found["name"], found["note"], found["starred"]) == ("named", "", True)
    answer = client.patch(f"/api/training/{job_id}", json={"tags": [1], "colour": "red"})
    assert answer.status_code == 422
    assert {problem["field"] for problem in answer.json()["problems"]} == {"tags.0", "colour"}
    assert client.patch(f"/api/training/{job_id}", json={"name": "  "}).status_code == 422
    assert client.patch("/api/training/999999", json={"starred": True}).status_code == 404
    assert client.patch(f"/api/training/{job_id}", content=b"{").status_code == 415


def test_jobs_are_deleted_and_taken_back(client: httpx.Client, started: Started) -> None:
    ended, lives = started("print('done')"), started()
    wait_for(client, ended, "completed")
    wait_for(client, lives, "running")
    answer = client.post("/api/training/delete", json={"job_ids": [ended, lives]})
    assert answer.status_code == 200, answer.text
    done = answer.json()
    assert done["job_ids"] == [ended]
    assert done["left_out"] == {str(lives): "it has not ended"}
    assert done["bytes"] > 0
    assert 0 < done["seconds_left"] <= 600
    assert client.get(f"/api/training/status/{ended}").status_code == 404
    assert client.post("/api/training/delete", json={"job_ids": [ended]}).status_code == 404
    assert client.post("/api/training/delete", json={"job_ids": []}).status_code == 422
    answer = client.post("/api/training/undelete", json={"job_ids": [ended, lives]})
    assert answer.json() == {"job_ids": [ended]}
    assert status(client, ended)["status"] == "completed"


@pytest.mark.parametrize(
    ("query", "field"),
    [("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("offset=-1", "offset"),
     ("status=broken", "status"), (f"offset={2**63}", "offset")],
)  # fmt: skip
def test_a_wrong_query_is_named(client: httpx.Client, query: str, field: str) -> None:
    answer = client.get(f"/api/training/jobs?{query}")
    assert answer.status_code == 422
    assert [problem["field"] for problem in answer.json()["problems"]] == [field]
    assert "Must be" in answer.json()["detail"]


def test_the_queue_is_told_in_its_order(client: httpx.Client, started: Started) -> None:
    ids = [started() for _ in range(7)]  # four run at once
    wait_until(lambda: len(client.get("/api/training/queue").json()["running"]) == 4)
    found = client.get("/api/training/queue").json()
    mine = [job_id for job_id in found["queued"] if job_id in ids]
    assert len(mine) >= 3
    assert mine == sorted(mine)
    places = [status(client, job_id)["queue_position"] for job_id in mine]
    assert places == sorted(places)


ROUTES = [
    ("GET", "status/{}"), ("GET", "metrics/{}"), ("GET", "logs/{}"), ("GET", "{}/errors"),
    ("GET", "curve/{}"), ("GET", "marks/{}"),
    ("GET", "{}/spec"), ("GET", "checkpoints/{}"), ("GET", "{}/download/model"),
    ("GET", "{}/download/logs"), ("GET", "{}/download/metrics"),
    ("GET", "{}/analytics"), ("POST", "cancel/{}"), ("POST", "pause/{}"), ("POST", "resume/{}"),
    ("POST", "retry/{}"), ("POST", "extend/{}"), ("POST", "where/{}"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_a_job_that_is_not_there_is_404_and_what_is_no_number_422(
    client: httpx.Client, method: str, path: str
) -> None:
    for unknown in ("99999", "0", "-1", str(2**63), str(10**40)):
        answer = client.request(method, f"/api/training/{path.format(unknown)}", headers=HERE)
        assert answer.status_code == 404, answer.text
        assert answer.json() == {"detail": f"There is no job {int(unknown)}."}
    for wrong in (
        "x",
        "1.0",
        "+1",
        "%201",
        "1_0",
        "1%0a",
        "1.5",
        "1e3",
        "%00",
        "1%2f..",
        "9" * 5000,
    ):
        answer = client.request(method, f"/api/training/{path.format(wrong)}", headers=HERE)
        assert answer.status_code in (404, 422), answer.text
        assert "detail" in answer.json()


def test_what_is_not_there_is_404_and_a_wrong_method_405(client: httpx.Client) -> None:
    for path in ("/api", "/api/"):
        assert client.get(path, follow_redirects=True).url.path == "/api/docs"
    for path in ("/api/nothing", "/api/training", "/api/training/jobs/"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "/api/docs" in answer.json()["detail"]
    answer = client.delete("/api/training/jobs", headers=HERE)
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert "DELETE" in answer.json()["detail"]


def test_metrics_are_whole_thinned_or_only_what_is_new(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(LOGS_POINTS)
    wait_for(client, job_id, "completed")
    found = metrics(client, job_id)
    assert [point["step"] for point in found["points"]] == list(range(1, 51))
    assert (found["job_id"], found["total"]) == (job_id, 50)
    assert found["points"][0]["train_loss"] == 1.0
    assert found["points"][-1]["eval_loss"] is None
    assert found["points"][-1]["timestamp"].endswith("Z")
    thinned = metrics(client, job_id, max_points=8)
    assert thinned["total"] == 50
    assert len(thinned["points"]) <= 8
    assert {17, 50} <= {point["step"] for point in thinned["points"]}
    new = metrics(client, job_id, since_step=47)
    assert [point["step"] for point in new["points"]] == [48, 49, 50]
    assert metrics(client, job_id, since_step=50) == {"job_id": job_id, "points": [], "total": 0}


def test_a_curve_comes_in_bins_whole_in_pieces_or_with_others(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(LOGS_POINTS)
    wait_for(client, job_id, "completed")

    def curve(**query: object) -> Curve:
        answer = client.get(f"/api/training/curve/{job_id}", params=query)  # type: ignore[arg-type]
        assert answer.status_code == 200, answer.text
        return Curve.model_validate_json(answer.content, strict=False)

    whole = curve()
    assert (whole.job_id, whole.rows, whole.level, whole.first_row) == (job_id, 51, 0, 0)
    assert (whole.indexed, whole.live) == (1, False)
    assert list(whole.bins.step) == [*range(1, 51), 50]
    assert whole.bins.last_step is None
    assert whole.bins.time[0]
    train, held_out = whole.series["train_loss"], whole.series["eval_loss"]
    assert (train.bin, train.mean[16], train.min) == (list(range(50)), 99, None)
    assert (held_out.bin, held_out.mean, held_out.bad) == ([50], [None], [[50, 1]])

    coarse = curve(bins=16, name="train_loss")
    assert (coarse.level, len(coarse.bins.step)) == (2, 13)
    assert list(coarse.bins.last_step or ())[:2] == [4, 8]
    assert set(coarse.series) == {"train_loss"}
    train = coarse.series["train_loss"]
    assert (train.max or ())[4] == 99
    assert (train.max_step or ())[4] == 17
    assert (train.mean or ())[0] == round((1 + 1 / 2 + 1 / 3 + 1 / 4) / 4, 6)

    news = curve(bins=16, level=2, after_row=48)
    assert (news.first_row, list(news.bins.step)) == (48, [49])
    assert curve(bins=16, level=1, after_row=48).first_row == 0
    assert list(curve(begin=20, end=22).bins.step) == [*range(1, 51), 50]  # of one kept bin
    assert list(curve(begin=60, end=70).bins.step) == []

    for path, told in {
        f"curve/{job_id}?begin=3": "begin and end",
        f"curve/{job_id}?bins=3": "bins",
        f"curve/{job_id}?begin=nan&end=3": "begin",
        f"curve/{job_id}?x=loss": "x",
        "curves?job_ids=1,,2": "commas",
        f"curves?job_ids={','.join(map(str, range(1, 102)))}": "At most 100",
    }.items():
        answer = client.get(f"/api/training/{path}")
        assert answer.status_code == 422, path
        assert told in answer.json()["detail"], path
    for path in ("curve/99999", f"curves?job_ids={job_id},99999", "marks/99999"):
        assert client.get(f"/api/training/{path}").status_code == 404

    other = started("raise SystemExit")
    answer = client.get(f"/api/training/curves?job_ids={other},{job_id}&name=train_loss&bins=16")
    both = Curves.model_validate_json(answer.content).curves
    assert [(c.job_id, c.rows, len(c.series)) for c in both] == [(other, 0, 0), (job_id, 51, 1)]

    marks = CurveMarks.model_validate_json(client.get(f"/api/training/marks/{job_id}").content)
    assert [(mark.kind, mark.step) for mark in marks.marks] == [("end", None)]


def test_a_script_that_keeps_no_history_has_metrics_too(
    client: httpx.Client, started: Started
) -> None:
    job_id = started("""
        import json, os, time
        for step in range(3):
            path = os.environ["SIGNALBOX_PROGRESS"]
            with open(path + ".tmp", "w") as file:
                json.dump({"step": step, "loss": 1.0 - step / 10}, file)
            os.replace(path + ".tmp", path)
            time.sleep(0.4)
    """)
    wait_for(client, job_id, "completed")
    found = metrics(client, job_id)
    assert [point["step"] for point in found["points"]] == [0, 1, 2]
    assert [point["train_loss"] for point in found["points"]] == [1.0, 0.9, 0.8]
    assert [p["step"] for p in metrics(client, job_id, since_step=1)["points"]] == [2]


def test_a_metrics_file_of_another_format_hides_no_curve(
    client: httpx.Client, started: Started
) -> None:
    job_id = started("""
        import json, os
        open(os.environ["SIGNALBOX_RUN_DIR"] + "/metrics.jsonl", "w").write('{"epoch_loss": 3}')
        path = os.environ["SIGNALBOX_PROGRESS"]
        history = [{"step": step, "loss": 1 / (1 + step)} for step in range(5)]
        json.dump({"step": 4, "metrics_history": history}, open(path + ".tmp", "w"))
        os.replace(path + ".tmp", path)
    """)
    wait_for(client, job_id, "completed")
    assert [point["step"] for point in metrics(client, job_id)["points"]] == [0, 1, 2, 3, 4]


def test_a_log_is_followed_by_its_bytes(client: httpx.Client, started: Started) -> None:
    job_id = started(LOGS_POINTS)
    wait_for(client, job_id, "completed")
    whole = client.get(f"/api/training/logs/{job_id}").json()
    assert "Grüße � end" in whole["text"]
    assert (whole["offset"], whole["next_offset"]) == (0, whole["size"])
    text, offset = "", 0
    while offset < whole["size"]:
        query = {"offset": offset, "limit": 7}
        piece = client.get(f"/api/training/logs/{job_id}", params=query).json()
        assert offset < piece["next_offset"] <= offset + 7
        text, offset = text + piece["text"], piece["next_offset"]
    assert text == whole["text"]
    beyond = client.get(f"/api/training/logs/{job_id}", params={"offset": 10**9}).json()
    assert beyond == {"text": "", **dict.fromkeys(("offset", "next_offset", "size"), whole["size"])}


def test_errors_say_what_happened_and_what_to_try(client: httpx.Client, started: Started) -> None:
    job_id = started("print('almost'); raise ValueError('no such thing')")
    assert wait_for(client, job_id, "failed")["failure_kind"] == "crashed"
    found = client.get(f"/api/training/{job_id}/errors").json()
    assert list(found) == [
        "error", "failure_kind", "explanation", "advice", "stacks", "log_tail"
    ]  # fmt: skip
    assert found["error"] == "ValueError: no such thing"
    assert "almost" in found["log_tail"]
    assert found["explanation"]
    assert found["advice"]
    assert found["stacks"] is None


def test_a_job_that_did_not_fail_has_no_errors_and_a_log(
    client: httpx.Client, started: Started
) -> None:
    job_id = started("print('fine')")
    wait_for(client, job_id, "completed")
    found = client.get(f"/api/training/{job_id}/errors").json()
    assert found.pop("log_tail") == "fine"
    assert set(found.values()) == {None}


# Acting


def test_a_cancel_ends_a_running_job_and_is_safe_to_repeat(
    client: httpx.Client, started: Started
) -> None:
    job_id = started("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("ready", flush=True)
        time.sleep(600)
    """)
    wait_until(lambda: "ready" in client.get(f"/api/training/logs/{job_id}").json()["text"])
    for _ in range(3):
        answer = post(client, f"cancel/{job_id}")
        assert answer.status_code == 200
        assert (answer.json()["status"], answer.json()["requested"]) == ("running", "cancelling")
    wait_for(client, job_id, "cancelled")
    again = post(client, f"cancel/{job_id}")
    assert again.status_code == 409
    assert again.json() == {
        "detail": f"Job {job_id} is cancelled; it has ended already.",
        "status": "cancelled",
    }
    cleanups = client.get("/api/training/cleanups", params={"job_id": job_id}).json()["cleanups"]
    assert [(row["job_id"], row["reason"], row["device"]) for row in cleanups] == [
        (job_id, "cancelled", "host")
    ]
    assert cleanups[0]["before_bytes"] > cleanups[0]["after_bytes"] == 0


def test_a_queued_job_is_cancelled_at_once(client: httpx.Client, started: Started) -> None:
    ids = [started() for _ in range(5)]
    wait_until(lambda: len(client.get("/api/training/queue").json()["running"]) == 4)
    waiting = [job_id for job_id in ids if status(client, job_id)["status"] == "queued"][-1]
    answer = post(client, f"cancel/{waiting}")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")


PAUSES = """
    import signalbox, time
    with signalbox.start(total_steps=3) as run:
        run.log(run.resume_step + 1, train_loss=1)
        while not run.should_stop and run.resume_from is None:
            time.sleep(0.01)
        folder = run.checkpoint_dir / f"step-{run.resume_step + 1}"
        folder.mkdir()
        (folder / "model.pt").write_bytes(b"weights")
        run.saved(folder)
"""


def test_a_job_is_paused_and_resumed(client: httpx.Client, started: Started) -> None:
    job_id = started(PAUSES)
    wait_until(lambda: status(client, job_id)["current_step"] == 1)
    for _ in range(2):
        answer = post(client, f"pause/{job_id}")
        assert answer.status_code == 200
        found = answer.json()
        assert found["status"] == "paused" or found["requested"] == "pausing"
        assert found["can_pause"] is True
    wait_for(client, job_id, "paused")
    assert post(client, f"pause/{job_id}").json()["status"] == "paused", "safe to repeat"
    assert status(client, job_id)["checkpoint"] == "step-1"
    answer = post(client, f"resume/{job_id}")
    assert (answer.status_code, answer.json()["job_id"]) == (200, job_id)
    assert answer.json()["status"] in ("queued", "running")
    wait_for(client, job_id, "completed")
    points = client.get(f"/api/training/metrics/{job_id}").json()["points"]
    assert [point["step"] for point in points] == [1, 2]
    for verb, reason in (
        ("pause", "only a running job can be paused"),
        ("resume", "only a paused job can be resumed"),
    ):
        answer = post(client, f"{verb}/{job_id}")
        assert answer.status_code == 409
        assert answer.json() == {
            "detail": f"Job {job_id} is completed; {reason}.",
            "status": "completed",
        }
    answer = post(client, f"retry/{job_id}?from_checkpoint=true")
    assert answer.status_code == 201
    retry = answer.json()["job_id"]
    wait_for(client, retry, "completed")
    points = client.get(f"/api/training/metrics/{retry}").json()["points"]
    assert [point["step"] for point in points] == [1, 2, 3]


def test_a_job_that_is_being_cancelled_cannot_be_paused_and_is_killed_at_once(
    client: httpx.Client, started: Started
) -> None:
    job_id = started("""
        import signal, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        print("began", flush=True)
        time.sleep(600)
    """)
    wait_until(lambda: "began" in client.get(f"/api/training/logs/{job_id}").json()["text"])
    post(client, f"cancel/{job_id}")
    answer = post(client, f"pause/{job_id}")
    assert (answer.status_code, answer.json()["status"]) == (409, "running")
    assert "it is being cancelled" in answer.json()["detail"]
    assert post(client, f"cancel/{job_id}?now=true").status_code == 200
    wait_for(client, job_id, "cancelled")


def test_a_running_job_is_asked_where_it_is(client: httpx.Client, started: Started) -> None:
    job_id = started("""
        import threading
        def wait_for_ever():
            print("began", flush=True)
            threading.Event().wait()
        wait_for_ever()
    """)
    wait_until(lambda: "began" in client.get(f"/api/training/logs/{job_id}").json()["text"])
    answer = post(client, f"where/{job_id}")
    assert answer.status_code == 200
    assert "in wait_for_ever" in answer.json()["sentence"]
    assert "wait_for_ever" in answer.json()["stacks"]
    post(client, f"cancel/{job_id}")
    wait_for(client, job_id, "cancelled")
    answer = post(client, f"where/{job_id}")
    assert (answer.status_code, answer.json()["status"]) == (409, "cancelled")


def test_more_time_is_given_to_a_running_job_alone(client: httpx.Client, started: Started) -> None:
    job_id = started()
    wait_for(client, job_id, "running")
    for _ in range(2):
        answer = post(client, f"extend/{job_id}")
        assert answer.status_code == 200
        assert 590 < answer.json()["seconds_left"] <= 600
    post(client, f"cancel/{job_id}")
    wait_for(client, job_id, "cancelled")
    answer = post(client, f"extend/{job_id}")
    assert (answer.status_code, answer.json()["status"]) == (409, "cancelled")


def test_a_retry_is_a_new_job_and_asking_twice_makes_one(
    client: httpx.Client, started: Started, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    job_id = started(f"""
        import pathlib, time
        while not pathlib.Path({str(gate)!r}).exists(): time.sleep(0.02)
    """)
    running = post(client, f"retry/{job_id}")
    assert running.status_code == 409
    assert running.json()["status"] in ("queued", "running")
    gate.touch()
    wait_for(client, job_id, "completed")
    gate.unlink()
    first = post(client, f"retry/{job_id}")
    assert first.status_code == 201
    child = first.json()["job_id"]
    assert status(client, child)["parent_id"] == job_id
    again = post(client, f"retry/{job_id}")
    assert (again.status_code, again.json()["job_id"]) == (200, child)
    with ThreadPoolExecutor(8) as pool:
        at_once = list(pool.map(lambda _: post(client, f"retry/{child}").status_code, range(8)))
    assert set(at_once) == {409}
    gate.touch()
    wait_for(client, child, "completed")
    gate.unlink()
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: post(client, f"retry/{child}"), range(8)))
    assert sorted(answer.status_code for answer in answers) == [200] * 7 + [201]
    assert len({answer.json()["job_id"] for answer in answers}) == 1
    gate.touch()
    other = post(client, f"retry/{job_id}")
    assert other.status_code == 201
    assert other.json()["job_id"] > child


def test_a_retry_of_a_script_that_is_gone_is_refused(
    client: httpx.Client, started: Started, tmp_path: Path
) -> None:
    job_id = started("pass")
    wait_for(client, job_id, "completed")
    (tmp_path / "script0.py").unlink()
    answer = post(client, f"retry/{job_id}")
    assert answer.status_code == 422
    assert "There is no file at" in answer.json()["detail"]


# Files

SAVES = """
    import os, pathlib
    folder = pathlib.Path(os.environ["SIGNALBOX_CHECKPOINT_DIR"])
    for name in ("step-00000002", "step-00000010", "step-00000020"):
        (folder / name).mkdir()
        (folder / name / "model.pt").write_bytes(name.encode() * 1000)
        if name != "step-00000020":
            (folder / name / "COMPLETE").touch()
    run = pathlib.Path(os.environ["SIGNALBOX_RUN_DIR"])
    (run / "report.txt").write_text("well done")
    (run / "hosts").symlink_to("/etc/hosts")
    (run / "etc").symlink_to("/etc")
    (folder / "step-00000030").symlink_to("/etc")
    (folder / "step-00000002" / "hosts").symlink_to("/etc/hosts")
    print("saved")
"""


def unzipped(answer: httpx.Response) -> dict[str, bytes]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as file:
        assert file.testzip() is None
        return {name: file.read(name) for name in file.namelist()}


def test_checkpoints_and_models_are_listed_and_downloaded_and_no_link_is_followed(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(SAVES)
    wait_for(client, job_id, "completed")
    listed = client.get(f"/api/training/checkpoints/{job_id}").json()["checkpoints"]
    assert [(row["name"], row["step"], row["complete"]) for row in listed] == [
        ("step-00000002", 2, True),
        ("step-00000010", 10, True),
        ("step-00000020", 20, False),
    ]
    assert listed[0]["bytes"] == 13_000
    answer = client.get(f"/api/training/{job_id}/download/model")
    assert answer.headers["content-disposition"] == f'attachment; filename="job-{job_id}-model.zip"'
    root = f"job-{job_id}"
    assert set(unzipped(answer)) == {
        f"{root}/report.txt",
        *(f"{root}/checkpoints/{name}/{file}" for name in ("step-00000002", "step-00000010")
          for file in ("model.pt", "COMPLETE")),
    }  # fmt: skip
    one = client.get(
        f"/api/training/{job_id}/download/model", params={"checkpoint": "step-00000010"}
    )
    files = unzipped(one)
    assert files[f"{root}/checkpoints/step-00000010/model.pt"] == b"step-00000010" * 1000
    assert len(files) == 2


NO_CHECKPOINTS = [
    "..", ".", "", "/", "../../../etc", "/etc", "step-00000002/..", "step-00000030",
    "step-00000020", "nothing", "a\0b", "..\\..", "é" * 100, ".hidden", "checkpoints",
]  # fmt: skip


def test_a_checkpoint_is_a_plain_name_of_a_complete_one(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(SAVES)
    wait_for(client, job_id, "completed")
    for name in NO_CHECKPOINTS:
        answer = client.get(f"/api/training/{job_id}/download/model", params={"checkpoint": name})
        assert answer.status_code == 404, (name, answer.text)
        assert "detail" in answer.json()


def test_where_nothing_was_saved_there_is_nothing_to_download(
    client: httpx.Client, started: Started
) -> None:
    job_id = started("pass")
    wait_for(client, job_id, "completed")
    answer = client.get(f"/api/training/{job_id}/download/model")
    assert (answer.status_code, answer.json()["detail"]) == (
        404,
        f"Job {job_id} has saved nothing: what a job saves into SIGNALBOX_CHECKPOINT_DIR, or "
        "beside it into SIGNALBOX_RUN_DIR, can be downloaded.",
    )


def test_logs_are_downloaded_with_progress_metrics_and_spec(
    client: httpx.Client, started: Started
) -> None:
    job_id = started(LOGS_POINTS)
    wait_for(client, job_id, "completed")
    files = unzipped(client.get(f"/api/training/{job_id}/download/logs"))
    root = f"job-{job_id}"
    assert {f"{root}/{n}" for n in ("log.txt", "progress.json", "metrics.jsonl", "spec.json")} <= (
        set(files)
    )
    assert b"\xff end" in files[f"{root}/log.txt"]
    assert len(files[f"{root}/metrics.jsonl"].splitlines()) == 51


def test_every_point_is_downloaded_as_a_table_or_as_lines_without_secrets(
    client: httpx.Client, started: Started
) -> None:
    source = """
        import os, signalbox
        run = signalbox.start()
        for step in range(1, 3001):
            run.log(step, train_loss=1 / step, **{os.environ["HIDDEN"]: 1.0})
    """
    job_id = started(source, env={"HIDDEN": "sesame-open"})
    wait_for(client, job_id, "completed")
    path = f"/api/training/{job_id}/download/metrics"
    table = client.get(path)
    assert table.headers["content-type"].startswith("text/csv")
    assert f"job-{job_id}-metrics.csv" in table.headers["content-disposition"]
    header, *rows = table.text.splitlines()
    assert header == "step,epoch,timestamp,train_loss,***********"
    assert [row.split(",")[0] for row in rows] == [str(step) for step in range(1, 3001)]
    assert rows[1].endswith(",0.5,1.0")
    lines = client.get(path, params={"format": "jsonl"}).text.splitlines()
    assert len(lines) == 3000
    assert json.loads(lines[1])["train_loss"] == 0.5
    assert "sesame" not in table.text + "".join(lines)
    assert client.get(path, params={"format": "xml"}).status_code == 422
    silent = started("pass")
    wait_for(client, silent, "completed")
    assert (
        "has logged no point" in client.get(path.replace(str(job_id), str(silent))).json()["detail"]
    )


def test_a_download_is_bounded_in_number_and_leaves_nothing_behind_when_its_client_goes(
    client: httpx.Client, started: Started, server: Server
) -> None:
    job_id = started("""
        import os
        folder = os.environ["SIGNALBOX_CHECKPOINT_DIR"] + "/step-1"
        os.mkdir(folder)
        with open(folder + "/model.pt", "wb") as file:
            file.truncate(3 * 2**26)
        open(folder + "/COMPLETE", "w").close()
    """)
    wait_for(client, job_id, "completed")
    process = psutil.Process(server.pid)

    def open_models() -> int:
        return sum(file.path.endswith("model.pt") for file in process.open_files())

    request = f"GET /api/training/{job_id}/download/model HTTP/1.1\r\nHost: localhost\r\n\r\n"
    stalled = []
    for _ in range(MAX_DOWNLOADS):
        stalled.append(socket.create_connection(("127.0.0.1", server.port)))
        stalled[-1].sendall(request.encode())
    for connection in stalled:
        assert b"200 OK" in connection.recv(100)
    refused = client.get(f"/api/training/{job_id}/download/model")
    assert refused.status_code == 429
    assert "16 downloads run already" in refused.json()["detail"]
    assert client.get("/health").status_code == 200
    wait_until(lambda: open_models() == MAX_DOWNLOADS)
    for connection in stalled:
        connection.close()
    wait_until(lambda: open_models() == 0)
    before = process.memory_info().rss
    with client.stream("GET", f"/api/training/{job_id}/download/model") as answer:
        size = sum(map(len, answer.iter_raw()))
    assert size > 3 * 2**26
    assert process.memory_info().rss - before < 2**26, "A third of it."


def test_a_run_folder_that_became_a_link_gives_nothing_away(
    client: httpx.Client, started: Started, server: Server, tmp_path: Path
) -> None:
    job_id = started("pass")
    wait_for(client, job_id, "completed")
    folder = DataPaths(server.data).run(job_id).folder
    folder.rename(tmp_path / "moved")
    secret = tmp_path / "elsewhere"
    secret.mkdir()
    for name in ("log.txt", "metrics.jsonl", "report.txt"):
        (secret / name).write_text('{"step": 1, "train_loss": 0.5, "k": "not yours"}\n')
    folder.symlink_to(secret)
    assert client.get(f"/api/training/logs/{job_id}").json()["text"] == ""
    assert metrics(client, job_id)["points"] == []
    assert client.get(f"/api/training/{job_id}/download/logs").status_code == 404
    assert client.get(f"/api/training/{job_id}/download/model").status_code == 404
    assert client.get(f"/api/training/checkpoints/{job_id}").json() == {"checkpoints": []}


# Secrets

SECRET = "sk-4f9a1c77e2b84d6f"


def test_the_value_of_an_environment_variable_is_never_shown_again(
    client: httpx.Client, started: Started, server: Server
) -> None:
    job_id = started(
        """
        import json, os, signalbox, warnings
        key = os.environ["API_KEY"]
        run = signalbox.start()
        run.phase("using " + key)
        run.log(1, train_loss=1.0)
        print("key:", key, json.dumps({"key": key}), flush=True)
        raise ValueError("refused: " + key)
        """,
        env={"API_KEY": SECRET},
    )
    wait_for(client, job_id, "failed")
    told = ["status/{}", "logs/{}", "{}/errors", "metrics/{}", "{}/analytics", "checkpoints/{}"]
    for path in told:
        answer = client.get(f"/api/training/{path.format(job_id)}")
        assert answer.status_code == 200
        assert SECRET not in answer.text, path
    assert "key: ***" in client.get(f"/api/training/logs/{job_id}").json()["text"]
    assert status(client, job_id)["error"] == "ValueError: refused: " + "*" * len(SECRET)
    for name, content in unzipped(client.get(f"/api/training/{job_id}/download/logs")).items():
        assert SECRET.encode() not in content, name
    for path in ("jobs", "analytics/summary", f"analytics/compare?job_ids={job_id}"):
        assert SECRET not in client.get(f"/api/training/{path}").text
    assert SECRET not in server.output
    log = DataPaths(server.data).run(job_id).log.read_text()
    assert SECRET in log, "The job itself wrote it; else this test shows nothing."


# Figures


def test_one_job_in_figures(client: httpx.Client, started: Started) -> None:
    job_id = started("""
        import signalbox, time
        run = signalbox.start()
        for step in range(1, 21):
            run.phase("evaluating" if step > 10 else "training")
            run.log(step, train_loss=3.0 if step == 20 else 2.0 - step / 20, eval_loss=1 + 1 / step)
            time.sleep(0.05)
    """)
    ended = wait_for(client, job_id, "completed")
    found = client.get(f"/api/training/{job_id}/analytics").json()
    assert found["job_id"] == job_id
    assert found["duration_seconds"] == pytest.approx(ended["elapsed_seconds"], abs=0.1)
    assert (found["best_train_loss"], found["best_train_step"]) == (pytest.approx(1.05), 19)
    assert (found["last_train_loss"], found["last_train_step"]) == (3.0, 20)
    assert (found["best_eval_loss"], found["best_eval_step"]) == (pytest.approx(1.05), 20)
    assert 0 < found["mean_steps_per_second"] <= found["peak_steps_per_second"]
    assert found["peak_memory_bytes"] > 0
    shares = {row["phase"]: row["share"] for row in found["phases"]}
    assert {"training", "evaluating"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)


def test_all_jobs_in_figures(client: httpx.Client, started: Started) -> None:
    job_id = started("raise SystemExit(3)")
    wait_for(client, job_id, "failed")
    found = client.get("/api/training/analytics/summary").json()
    assert found["jobs"] == client.get("/api/training/jobs").json()["total"]
    assert found["by_status"]["failed"] >= 1
    assert found["by_recipe"]["script"] >= 1
    assert found["failures_by_kind"]["crashed"] >= 1
    assert found["total_run_seconds"] > 0
    assert 0 <= found["success_share"] <= 1


def test_several_jobs_side_by_side(client: httpx.Client, started: Started) -> None:
    source = """
        import signalbox, sys
        run = signalbox.start()
        run.log(1, train_loss=float(sys.argv[1]), eval_loss=float(sys.argv[1]))
    """
    ids = [started(source, args=[value]) for value in ("0.5", "0.25")]
    for job_id in ids:
        wait_for(client, job_id, "completed")
    query = {"job_ids": ",".join(map(str, ids))}
    found = client.get("/api/training/analytics/compare", params=query).json()
    assert [row["job_id"] for row in found["jobs"]] == ids
    assert set(found["differing_params"]) == {"args", "script"}
    assert found["differing_params"]["args"] == {str(ids[0]): ["0.5"], str(ids[1]): ["0.25"]}
    assert found["best"]["best_eval_loss"] == {"job_id": ids[1], "value": 0.25}


@pytest.mark.parametrize(
    ("job_ids", "code"), [("", 422), ("1,x", 422), ("1,,2", 422), ("99999", 404), ("-1", 422)]
)
def test_a_comparison_needs_numbers_of_jobs(client: httpx.Client, job_ids: str, code: int) -> None:
    answer = client.get("/api/training/analytics/compare", params={"job_ids": job_ids})
    assert answer.status_code == code
    many = ",".join(map(str, range(1, 102)))
    answer = client.get("/api/training/analytics/compare", params={"job_ids": many})
    assert "At most 100" in answer.json()["detail"]


# The machine


def test_memory_is_told_and_the_cache_emptied(client: httpx.Client) -> None:
    found = client.get("/api/gpu").json()
    assert set(found) == {"devices", "source"}
    assert all(
        set(device) == {"index", "name", "total_bytes", "used_bytes", "leased_by"}
        for device in found["devices"]
    )
    emptied = client.post("/api/gpu/empty-cache", headers=HERE).json()
    assert (emptied["reason"], emptied["job_id"]) == ("button", None)
    newest = client.get("/api/training/cleanups", params={"limit": 1}).json()["cleanups"]
    assert newest[0]["created_at"] == emptied["created_at"]
    assert client.get("/api/training/cleanups", params={"job_id": 10**9}).json() == {"cleanups": []}


def test_health_is_told(client: httpx.Client) -> None:
    assert client.get("/health").json() == {"status": "ok"}


def test_the_description_is_whole_and_its_page_needs_no_network(client: httpx.Client) -> None:
    described = client.get("/api/openapi.json").json()
    for path, methods in described["paths"].items():
        for operation in methods.values():
            assert operation["summary"], path
            assert operation["description"], path
    page = client.get("/api/docs").text
    assert "http://" not in page
    assert "https://" not in page
    for file in ("swagger-ui-bundle.js", "swagger-ui.css"):
        assert client.get(f"/api/docs/files/{file}").status_code == 200


def test_more_work_than_can_wait_is_refused_and_the_bound_is_named() -> None:
    async def ask() -> None:
        release = threading.Event()
        desk = Desk(1, 2)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):  # one is worked on, two wait
                group.create_task(desk.do(release.wait, 30))
            while desk._limiter.statistics().tasks_waiting < 2:
                await asyncio.sleep(0.01)
            try:
                with pytest.raises(BusyError, match="2 such requests wait already"):
                    await desk.do(str)
            finally:
                release.set()

    asyncio.run(ask())


def test_while_long_files_are_read_others_are_answered(
    server: Server, client: httpx.Client, started: Started
) -> None:
    job_id = started("""
        import os, json
        with open(os.environ["SIGNALBOX_RUN_DIR"] + "/metrics.jsonl", "w") as file:
            for step in range(60_000):
                file.write(json.dumps({"step": step, "train_loss": 1.0}) + "\\n")
    """)
    wait_for(client, job_id, "completed")

    async def ask() -> list[float]:
        async with httpx.AsyncClient(base_url=server.url, timeout=100) as many:
            path = f"/api/training/metrics/{job_id}"
            asked = [asyncio.create_task(many.get(path)) for _ in range(20)]
            health = []
            while not all(task.done() for task in asked):
                begin = time.monotonic()
                assert (await many.get("/health")).status_code == 200
                health.append(time.monotonic() - begin)
                acted = await many.post(f"/api/training/cancel/{job_id}", headers=HERE)
                assert acted.status_code == 409, "Who reads keeps nobody from acting."
                await asyncio.sleep(0.05)
            assert {task.result().status_code for task in asked} == {200}
            return health

    health = asyncio.run(ask())
    assert statistics.median(health) < 5, "They would wait for all the others."


def test_the_use_of_the_machine_is_told_while_a_job_runs_and_kept_in_its_logs(
    client: httpx.Client, started: Started
) -> None:
    job_id = started()
    path = f"/api/training/usage/{job_id}"
    wait_until(lambda: len(client.get(path).json()["points"]) >= 2, 60)
    found = client.get(path).json()
    assert (found["job_id"], found["live"]) == (job_id, True)
    first, *_, last = found["points"]
    assert first["at"] < last["at"]
    assert last["memory_bytes"] > 2**20
    assert last["cores"] is not None
    assert last["gpu_memory_bytes"] is None
    newer = client.get(path, params={"since": first["at"]}).json()["points"]
    assert newer[0]["at"] > first["at"]
    before = client.get("/api/machine").json()
    assert before["running"] >= 1
    assert before["endings"] == []
    assert before["load"]["memory_total_bytes"] > before["load"]["memory_used_bytes"] > 0
    client.post(f"/api/training/cancel/{job_id}", headers=HERE)
    wait_for(client, job_id, "cancelled")
    assert client.get(path).json()["live"] is False
    number = before["last_ending"]
    after = client.get("/api/machine", params={"ended_after": number}).json()
    assert after["last_ending"] > number
    assert [e["status"] for e in after["endings"] if e["job_id"] == job_id] == ["cancelled"]
    zipped = client.get(f"/api/training/{job_id}/download/logs").content
    with zipfile.ZipFile(io.BytesIO(zipped)) as archive:
        assert f"job-{job_id}/usage.jsonl" in archive.namelist()
    assert client.get("/api/training/usage/999999").status_code == 404
