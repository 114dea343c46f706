"""The page of all jobs: its rows as data, what a click does, and an order that does not move."""

from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any

import pytest
import streamlit as st
from streamlit.testing.v1 import AppTest

from backend import runtime
from backend.models import FailureKind, JobStatus, utc_now
from pages.parts import job_acts, job_table
from tests.pages.conftest import HOSTILE, Open, Rows, native_table, sound, words
from tests.pages.test_pages import button, labels, listed

Do = Callable[..., AppTest]


@pytest.fixture
def do(monkeypatch: pytest.MonkeyPatch) -> Do:
    """Has the table send an event, as a click in it does."""
    events: list[dict[str, Any]] = []

    def table(data: dict[str, Any], on_act: Callable[[], None]) -> None:
        native_table(data, on_act)
        for event in events:
            st.button("send", key="send", on_click=job_acts.do, args=(event,))

    def send(drawn: AppTest, what: str, **more: Any) -> AppTest:
        events[:] = [{"do": what, **more}]
        sound(drawn.run())
        button(drawn, "send").click()
        events.clear()
        return sound(drawn.run())

    monkeypatch.setattr(job_table, "table", table)
    return send


def test_a_row_is_plain_data(rows: Rows) -> None:
    script = {"script": "/a.py", "args": ["--lr", "3e-4", "--name=x"], "python": None}
    job_id = rows.runs(
        {"progress_percent": 25.0, "train_loss": 0.5, "can_pause": True},
        name=f"one {HOSTILE}",
        recipe="script",
        params=script,
        tags=["a", "b", "c", "d", "e"],
        note="two\nlines",
        starred=True,
    )
    (row,) = job_table.rows(
        [runtime.service().job(job_id)], ["progress", "loss", "lr", "submitted"]
    )
    assert (row["id"], row["href"], row["word"], row["live"]) == (
        job_id, f"/job?id={job_id}", "running", True,
    )  # fmt: skip
    assert row["name"].startswith("one **bold** [a](https://evil.example) <img")
    assert "\n" not in row["name"]
    assert (row["tags"], row["more_tags"], row["note"]) == (["a", "b", "c", "d"], 1, "two lines")
    assert row["cells"]["progress"] == {"text": "25 %", "share": 0.25}
    assert row["cells"]["lr"] == {"text": "0.0003"}
    created = runtime.service().job(job_id).created_at
    assert row["cells"]["submitted"]["time"] == created.isoformat()
    assert row["cells"]["submitted"]["exact"].endswith("UTC")
    assert [act["do"] for act in row["acts"]] == ["pause", "cancel"]
    (row,) = job_table.rows([runtime.service().job(job_id)], [], killable={job_id}, zone=UTC)
    assert [act["do"] for act in row["acts"]] == ["pause", "kill"]


def test_columns_are_chosen_in_the_address_and_any_parameter_is_one(rows: Rows) -> None:
    job_id = rows.job(params={"learning_rate": 0.003, "device": "auto", 'odd "name"': 1})
    jobs = [runtime.service().job(job_id)]
    assert job_table.chosen("") == job_table.DEFAULT
    columns = job_table.chosen("loss,learning_rate,<b>,loss")
    assert columns == ("loss", "learning_rate")
    offered = [choice["key"] for choice in job_table.choices(jobs, columns)]
    assert offered == [*job_table.COLUMNS, "device", "learning_rate"]
    heads = job_table.heads(["note", "learning_rate"])
    assert [(head["title"], head["sort"]) for head in heads] == [
        ("Note", ""), ("learning_rate", "learning_rate"),
    ]  # fmt: skip
    (row,) = job_table.rows(jobs, ["learning_rate", "device", "absent"])
    assert [cell["text"] for cell in row["cells"].values()] == ["0.003", "auto", "–"]


def test_what_a_search_did_not_understand_is_said_and_the_rest_counts(
    rows: Rows, open_page: Open
) -> None:
    rows.job(name="apple")
    rows.job(name="pear")
    page = open_page("jobs", q="apple lr>fast")
    assert listed(page) == ["apple"]
    assert "lr>fast compares with no number; write it as lr>0.001." in words(page)
    page = open_page("jobs", q="lr>0.001 recipe:digits")
    assert listed(page) == ["pear", "apple"]


def test_the_order_stays_and_new_jobs_are_announced(rows: Rows, open_page: Open, do: Do) -> None:
    first, second = rows.job(name="first"), rows.job(name="second")
    page = open_page("jobs", sort="status")
    assert listed(page) == ["second", "first"]
    rows.store.change(first, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=utc_now())
    rows.store.change(second, JobStatus.QUEUED, JobStatus.CANCELLED, "Cancelled")
    rows.job(name="third")
    sound(page.run())
    assert listed(page) == ["second", "first"]
    assert "2 jobs, 1 new" in words(page)
    assert "running 1 · first" in words(page)
    do(page, "show")
    assert listed(page) == ["second", "third", "first"]
    assert "3 jobs, 0 new" in words(page)


def test_a_click_on_a_heading_sorts_and_the_address_says_so(
    rows: Rows, open_page: Open, do: Do
) -> None:
    for loss in (0.5, 0.1, 0.3):
        rows.runs({"train_loss": loss}, name=f"loss {loss}")
    page = do(open_page("jobs"), "sort", key="loss", descending=False)
    assert listed(page) == ["loss 0.1", "loss 0.3", "loss 0.5"]
    assert page.query_params["sort"] == "loss"
    do(page, "sort", key="loss", descending=True)
    assert page.query_params["sort"] == "-loss"
    assert listed(page)[0] == "loss 0.5"
    do(page, "cols", keys=["loss", "seed"])
    assert page.query_params["cols"] == "loss,seed"


def test_pages_are_turned_and_a_search_begins_at_the_first(
    rows: Rows, open_page: Open, do: Do
) -> None:
    rows.many(120)
    page = do(open_page("jobs"), "page", page=3)
    assert "101 to 120 shown" in words(page)
    assert page.query_params["page"] == "3"
    page.text_input(key="q").set_value("number")
    assert "1 to 50 shown" in words(sound(page.run()))
    assert "page" not in page.query_params


def test_many_are_starred_tagged_and_cancelled_at_once(rows: Rows, open_page: Open, do: Do) -> None:
    ids = [rows.job(), rows.job()]
    gone = rows.job(JobStatus.CANCELLED)
    page = open_page("jobs")
    do(page, "star", ids=[*ids, 999], starred=True)
    do(page, "tag", ids=ids, tag=" paper ", remove=False)
    do(page, "tag", ids=ids, tag="PAPER", remove=False)
    service = runtime.service()
    assert [(service.job(i).starred, service.job(i).tags) for i in (*ids, gone)] == [
        (True, ["PAPER"]), (True, ["PAPER"]), (False, []),
    ]  # fmt: skip
    do(page, "tag", ids=ids, tag="paper", remove=True)
    assert service.job(ids[0]).tags == []
    do(page, "tag", ids=ids, tag="x" * 51, remove=False)
    assert "at most 50 characters" in page.error[0].value
    do(page, "cancel", ids=[*ids, gone])
    assert service.counts()[JobStatus.CANCELLED] == 3


def test_a_deletion_is_asked_for_done_and_taken_back(rows: Rows, open_page: Open, do: Do) -> None:
    ended, lives = rows.job(JobStatus.COMPLETED, name="ended"), rows.runs(name="lives")
    rows.checkpoint(ended, "step-1")
    page = do(open_page("jobs"), "delete", ids=[ended, lives])
    asked = words(page)
    assert "Delete **1 job**" in asked
    assert "1 job of the selection has not ended and stays." in asked
    button(page, "Keep").click()
    sound(page.run())
    assert "Delete 1 job" not in labels(page)
    do(page, "delete", ids=[ended, lives])
    button(page, "Delete 1 job").click()
    sound(page.run())
    assert listed(page) == ["lives"]
    assert "1 job deleted." in words(page)
    assert "No such job" in [title.value for title in open_page("job", id=str(ended)).title]
    button(page, "Undo").click()
    sound(page.run())
    assert listed(page) == ["lives", "ended"]
    assert "deleted" not in words(page)


def test_a_job_is_starred_renamed_tagged_and_deleted_on_its_own_page(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.failed(FailureKind.CRASHED, name="before")
    page = open_page("job", id=str(job_id))
    button(page, "Star").click()
    sound(page.run())
    button(page, "Rename").click()
    sound(page.run())
    page.text_input(key=f"name-{job_id}").set_value("after **all**")
    sound(page.run())
    assert "after **all**" in page.title[0].value.replace("\\", "")
    page.text_input(key=f"tags-{job_id}").set_value("paper, to keep,paper")
    page.text_area(key=f"note-{job_id}").set_value("**two**\nlines")
    button(page, "Save").click()
    sound(page.run())
    job = runtime.service().job(job_id)
    assert (job.name, job.tags, job.starred) == ("after **all**", ["paper", "to keep"], True)
    assert "**two**\nlines" in [text.value for text in page.text]
    page.text_input(key=f"tags-{job_id}").set_value("x" * 60)
    button(page, "Save").click()
    assert "at most 50 characters" in sound(page.run()).error[0].value
    button(page, "Delete", "delete-").click()
    sound(page.run())
    button(page, "Delete 1 job").click()
    sound(page.run())
    assert "1 job deleted." in words(page)
    assert runtime.service().jobs().total == 0


def test_old_jobs_say_when_in_words_that_the_browser_makes(rows: Rows) -> None:
    job_id = rows.job(JobStatus.COMPLETED, created_at=utc_now() - timedelta(days=3))
    (row,) = job_table.rows([runtime.service().job(job_id)], ["ended", "submitted"])
    assert row["cells"]["ended"]["text"] == row["cells"]["submitted"]["text"] == ""
