"""Several jobs side by side: what the page says and what it gives the browser to draw."""

import json
from typing import Any

from streamlit.testing.v1 import AppTest

from backend.models import JobStatus
from tests.pages.conftest import HOSTILE, Open, Rows, words


def drawn(page: AppTest) -> dict[str, Any]:
    """What the comparison's component was given."""
    (found,) = (
        json.loads(element.proto.json)
        for element in page.get("bidi_component")
        if "signalbox_compare" in element.proto.component_name
    )
    assert isinstance(found, dict)
    return found


def logged(rows: Rows, job_id: int, losses: list[float | None], **values: float) -> int:
    """Write the curve of a job, a point a second."""
    lines = [
        json.dumps(
            {"step": n, "train_loss": loss, "timestamp": f"2026-11-20T10:00:{n:02d}Z"} | values
        )
        for n, loss in enumerate(losses, 1)
    ]
    rows.run(job_id).metrics.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return job_id


def run(rows: Rows, losses: list[float | None], lr: float, **fields: Any) -> int:
    job_id = rows.job(
        JobStatus.COMPLETED, recipe="script", params={"args": ["--lr", str(lr)]}, **fields
    )
    return logged(rows, job_id, losses)


def test_jobs_are_compared_and_what_is_not_here_is_said(rows: Rows, open_page: Open) -> None:
    one = run(rows, [3.0, 1.0, 2.0], 0.1, name="wide")
    two = run(rows, [3.0, 2.5, 1.5, 1.25], 0.01, name=HOSTILE)
    page = open_page("compare", ids=f"{two},{one},99,x")
    assert "Job 99 is not here." in words(page)
    assert "“x” is no job's number." in words(page)
    data = drawn(page)
    assert data["ids"] == [two, one]
    assert [entry["name"] for entry in data["metrics"]] == ["train_loss"]
    assert data["summary"] == f"Lowest train loss: 1, job {one} (wide) at step 2."
    columns = {column["title"]: column for column in data["columns"]}
    assert columns["Lowest train loss"]["values"] == [1.25, 1.0]
    assert columns["Lowest train loss"]["best"] == [one]
    assert columns["Last train loss"]["values"] == [1.25, 2.0]
    assert columns["Last train loss"]["best"] == [two]
    assert columns["Steps"]["values"] == [4, 3]
    assert columns["Steps per second"]["values"] == [1.0, 1.0]
    (lr,) = data["differing"]
    assert lr["name"] == "lr"
    assert lr["groups"] == [{"label": "0.01", "ids": [two]}, {"label": "0.1", "ids": [one]}]
    assert ["recipe", "script"] in data["same"]
    assert "\n" not in data["runs"][0]["name"]


def test_jobs_of_one_name_are_told_apart_by_what_differs(rows: Rows, open_page: Open) -> None:
    ids = [run(rows, [1.0], lr, name="reg") for lr in (0.1, 0.01)]
    ids.append(run(rows, [1.0], 0.1, name="other"))
    data = drawn(open_page("compare", ids=",".join(map(str, ids))))
    assert [r["name"] for r in data["runs"]] == ["reg, lr 0.1", "reg, lr 0.01", "other"]


def test_a_metric_of_which_more_is_better_and_one_that_is_no_number(
    rows: Rows, open_page: Open
) -> None:
    one = logged(rows, rows.job(JobStatus.COMPLETED), [1.0, None], val_accuracy=0.5)
    two = logged(rows, rows.job(JobStatus.COMPLETED), [1.0, 2.0], val_accuracy=0.75)
    columns = drawn(open_page("compare", ids=f"{one},{two}", metric="val_accuracy"))["columns"]
    assert columns[0]["title"] == "Highest val accuracy"
    assert columns[0]["best"] == [two]
    columns = drawn(open_page("compare", ids=f"{one},{two}"))["columns"]
    assert columns[1]["notes"] == ["1 not finite", ""]


def test_jobs_that_have_logged_nothing_and_those_that_live(rows: Rows, open_page: Open) -> None:
    queued, running = rows.job(), rows.job(JobStatus.RUNNING)
    data = drawn(open_page("compare", ids=f"{queued},{running}"))
    assert data["metrics"] == data["columns"] == []
    assert [entry["live"] for entry in data["runs"]] == [True, True]
    assert data["summary"] == ""


def test_an_empty_page_offers_the_newest_jobs_of_a_recipe(rows: Rows, open_page: Open) -> None:
    assert "no two jobs" in words(open_page("compare"))
    ids = [rows.job(JobStatus.CANCELLED) for _ in range(7)]
    rows.job(JobStatus.CANCELLED, recipe="script")
    page = open_page("compare")
    newest = ", ".join(map(str, ids[:1:-1]))
    assert f"Handwritten digits: jobs {newest}" in words(page)
    assert "Your own script" not in words(page)
    assert drawn(page)["ids"] == []


def test_what_the_reader_picks_and_looks_for_comes_from_the_browser(
    rows: Rows, open_page: Open
) -> None:
    one, two = rows.job(name="first"), rows.job(name="second")
    page = open_page("compare", ids=str(one))
    page.session_state[f"compare-{one}"] = {"picked": f"{one},{two}", "search": "fir"}
    data = drawn(page.run())
    assert data["ids"] == [one, two]
    assert data["found"] == []
    page.session_state[f"compare-{one}"] = {"picked": str(two), "search": "fir"}
    (found,) = drawn(page.run())["found"]
    assert (found["id"], found["name"]) == (one, "first")


def test_a_job_s_page_leads_to_its_comparison_with_its_retries(rows: Rows, open_page: Open) -> None:
    one = rows.job(JobStatus.CANCELLED)
    two = rows.job(JobStatus.CANCELLED, parent_id=one)
    three = rows.job(JobStatus.CANCELLED, parent_id=two)
    page = open_page("job", id=str(two))
    (link,) = (found for found in page.get("page_link") if found.proto.label == "Compare")
    assert link.proto.query_string == f"ids={two}%2C{one}%2C{three}"
