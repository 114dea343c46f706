"""Pages while the database cannot be read or written, and once it can again."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from backend import log, runtime, service
from backend.models import FailureKind, JobStatus, RequestKind
from backend.paths import DataPaths
from backend.settings import Settings
from pages.parts import formats
from tests.pages.conftest import HOSTILE, Open, Rows, sound, words
from tests.pages.faults import FULL, UNREADABLE, full, unreadable
from tests.pages.test_pages import button


@pytest.fixture
def database(settings: Settings) -> Path:
    return DataPaths(settings.data).database


def errors(page: AppTest) -> list[str]:
    """The sentences on the page itself, without those in the sidebar."""
    return [said(error.value) for error in page.main.get("error")]


def said(text: str) -> str:
    return text.replace("\\", "").replace("\u2060", "")


def query_of(name: str, job_id: int) -> dict[str, str]:
    ids = {"job": "id", "submit": "like", "compare": "ids"}
    return {ids[name]: str(job_id)} if name in ids else {}


@pytest.mark.parametrize(
    "name", ["overview", "submit", "jobs", "job", "compare", "failures", "gpu"]
)
def test_a_page_that_cannot_be_read_says_so_and_heals(
    name: str, rows: Rows, open_page: Open, database: Path
) -> None:
    job_id = rows.failed(FailureKind.CRASHED, name="kept")
    rows.job(JobStatus.RUNNING, name="runs")
    page = open_page(name, **query_of(name, job_id))
    whole = words(page)
    with unreadable(database):
        for _ in range(2):
            sound(page.run())
            assert UNREADABLE in errors(page)
        assert UNREADABLE in errors(open_page(name, **query_of(name, job_id)))
    assert not errors(sound(page.run()))
    figures = re.compile(r"just now|[\d.]+( s ago| [KMG]?i?B)?")  # which go on meanwhile
    assert figures.sub("", words(page)) == figures.sub("", whole)


def test_a_form_needs_no_database_until_it_is_sent(
    rows: Rows, open_page: Open, database: Path
) -> None:
    with unreadable(database):
        page = open_page("submit")
        assert not errors(page)
        button(page, "Submit").click()
        assert "no such table: job" in " ".join(errors(sound(page.run())))
    button(page, "Submit").click()
    sound(page.run())
    assert page.query_params["id"] == "1"


def test_what_was_typed_and_chosen_outlives_a_database_that_cannot_be_read(
    rows: Rows, open_page: Open, database: Path
) -> None:
    rows.many(60)
    job_id = rows.failed(FailureKind.CRASHED)
    form, jobs = open_page("submit", like=str(job_id)), open_page("jobs")
    (epochs,) = [field for field in form.text_input if field.label == "Epochs"]
    epochs.set_value("7")
    jobs.text_input(key="q").set_value("number")
    sound(jobs.run())
    second = open_page("jobs", page="2")
    failures = open_page("failures", kind="crashed")
    with unreadable(database):
        for page in (form, jobs, second, failures):
            sound(page.run())
            assert UNREADABLE in errors(page)
            sound(page.run())
    for page in (form, jobs, second, failures):
        assert not errors(sound(page.run()))
    (epochs,) = [field for field in form.text_input if field.label == "Epochs"]
    assert epochs.value == "7"
    assert jobs.text_input(key="q").value == "number"
    assert "60 jobs, 1 to 50 shown" in words(jobs)
    assert "51 to 61 shown" in words(second)
    assert failures.pills[0].value == "crashed"


def test_an_upload_outlives_a_database_that_cannot_be_read(
    rows: Rows, open_page: Open, database: Path
) -> None:
    params = {"text_path": None, "steps": 7}
    page = open_page("submit", like=str(rows.job(recipe="char_lm", params=params)))
    page.file_uploader[0].upload("my text.txt", b"to be or not to be")
    with unreadable(database):
        assert UNREADABLE in errors(sound(page.run()))
    sound(page.run())
    button(page, "Submit").click()
    sound(page.run())
    path = runtime.service().job(2).params["text_path"]
    assert Path(path).read_bytes() == b"to be or not to be"


def test_a_full_disk_is_said_beside_submit_and_nothing_typed_is_lost(
    rows: Rows, open_page: Open, database: Path
) -> None:
    rows.job()
    page = open_page("submit")
    (epochs,) = [field for field in page.text_input if field.label == "Epochs"]
    epochs.set_value("7")
    with full(runtime.service(), database):
        for _ in range(2):
            button(page, "Submit").click()
            assert errors(sound(page.run())) == [FULL]
            assert page.error[0].proto.title == "Nothing was queued"
        assert errors(sound(page.run())) == [FULL]  # until the next click
    assert runtime.service().jobs().total == 1
    button(page, "Submit").click()
    sound(page.run())
    assert runtime.service().job(2).params["epochs"] == 7
    assert not errors(page)


def test_an_upload_that_cannot_be_kept_is_said_beside_its_field(
    rows: Rows, open_page: Open, settings: Settings
) -> None:
    uploads = DataPaths(settings.data).uploads
    uploads.rmdir()
    page = open_page("submit", recipe="char_lm")
    page.file_uploader[0].upload("my text.txt", b"to be or not to be")
    button(page, "Submit").click()
    sound(page.run())
    assert "The upload cannot be kept (No such file or directory)." in errors(page)
    assert runtime.service().jobs().total == 0


def broken_after_a_checkpoint(rows: Rows) -> int:
    job_id = rows.failed(FailureKind.LOST)
    rows.checkpoint(job_id, "step-00000500")
    return job_id


Make = Callable[[Rows], int]

ACTS: dict[str, tuple[str, str, str, Make]] = {
    "first run": ("overview", "Train on digits now", "It was not queued", lambda rows: 0),
    "cancel in a list": (
        *("overview", "Cancel", "It was not cancelled"),
        lambda rows: rows.job(),
    ),
    "cancel": ("job", "Cancel", "It was not cancelled", lambda rows: rows.job()),
    "retry": ("job", "Retry", "It was not queued", lambda rows: rows.failed(FailureKind.LOST)),
    "retry in a list": (
        *("failures", "Retry", "It was not queued"),
        lambda rows: rows.failed(FailureKind.LOST),
    ),
    "retry from a checkpoint": (
        *("job", "Retry from step 500", "It was not queued"),
        broken_after_a_checkpoint,
    ),
    "resume": ("job", "Resume", "It was not resumed", lambda rows: rows.job(JobStatus.PAUSED)),
    "resume in a list": (
        *("overview", "Resume", "It was not resumed"),
        lambda rows: rows.job(JobStatus.PAUSED),
    ),
}


@pytest.mark.parametrize("act", ACTS)
def test_an_act_that_a_full_disk_refuses_says_so_until_the_next(
    act: str, rows: Rows, open_page: Open, database: Path
) -> None:
    name, label, title, make = ACTS[act]
    job_id = make(rows)
    page = open_page(name, **query_of(name, job_id))
    with full(runtime.service(), database):
        button(page, label).click()
        assert errors(sound(page.run())) == [FULL]
        assert page.error[0].proto.title == title
        assert errors(sound(page.run())) == [FULL]
    before = {status: n for status, n in runtime.service().counts().items() if n}
    button(page, label).click()
    assert not errors(sound(page.run()))
    assert {status: n for status, n in runtime.service().counts().items() if n} != before


def test_a_pause_that_a_full_disk_refuses_says_so_and_asks_nothing(
    rows: Rows, open_page: Open, database: Path
) -> None:
    job_id = rows.runs({"can_pause": True})
    page = open_page("job", id=str(job_id))
    with full(runtime.service(), database):
        button(page, "Pause").click()
        assert errors(sound(page.run())) == [FULL]
        assert page.error[0].proto.title == "It was not paused"
    assert runtime.service().job(job_id).requested is None
    button(page, "Pause").click()
    assert not errors(sound(page.run()))
    assert runtime.service().job(job_id).requested == RequestKind.PAUSING


def test_an_emptied_cache_that_cannot_be_noted_is_said(
    rows: Rows, open_page: Open, database: Path
) -> None:
    page = open_page("gpu")
    button(page, "Empty cache now").click()
    assert sound(page.run()).success
    with full(runtime.service(), database):
        button(page, "Empty cache now").click()
        assert errors(sound(page.run())) == [FULL]
        assert not page.success, "That was of the click before."


def test_what_was_refused_on_one_page_is_not_said_on_the_next(
    rows: Rows, open_page: Open, database: Path
) -> None:
    rows.job()
    page = open_page("submit")
    with full(runtime.service(), database):
        button(page, "Submit").click()
        assert errors(sound(page.run())) == [FULL]
    page.switch_page("jobs.py")
    sound(page.run())
    page.switch_page("submit.py")
    assert not errors(sound(page.run()))


@pytest.mark.parametrize("name", ["overview", "submit", "jobs", "failures", "gpu"])
def test_notices_are_shown_on_every_page_until_they_are_closed(
    name: str, rows: Rows, open_page: Open
) -> None:
    runtime.service()._notices += ["The database was damaged.", f"It is {HOSTILE}"]
    page = open_page(name)
    first, second = page.warning
    assert first.value == formats.escape("The database was damaged.")
    assert "**bold**" not in second.value
    button(page, "Close", "notice-0").click()
    sound(page.run())
    assert [warning.value for warning in page.warning] == [second.value]
    page.switch_page("jobs.py")
    assert [warning.value for warning in sound(page.run()).warning] == [second.value]
    assert len(open_page(name).warning) == 2, "Another browser has not closed it."


def test_a_page_is_as_quick_over_huge_files_and_ten_thousand_jobs(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.many(10_000)
    job_id = rows.job(JobStatus.COMPLETED)
    run = rows.run(job_id)
    with run.log.open("wb") as file:
        file.truncate(3 * 2**30)  # all of it a hole
        file.seek(0, 2)
        file.write(b"\nthe end of the log\n")
    with run.progress.open("wb") as file:
        file.truncate(200 * 2**20)
    with run.metrics.open("w") as file:
        file.writelines(f'{{"step": {step}, "train_loss": 0.5}}\n' for step in range(50_000))
    asked: list[int] = []
    curves: list[Path] = []
    read_tail, read_points = log.read_tail, service.read_points

    def counted(path: Path, most_bytes: int, *mask: Any) -> bytes:
        asked.append(most_bytes)
        return read_tail(path, most_bytes, *mask)

    def noted(path: Path) -> Any:
        curves.append(path)
        return read_points(path)

    monkeypatch.setattr(log, "read_tail", counted)
    monkeypatch.setattr(service, "read_points", noted)
    page = open_page("job", id=str(job_id))
    for _ in range(3):
        page.run(timeout=10)
    assert "the end of the log" in words(page)
    assert "200 MiB large" in words(page)
    assert max(asked) == log.TAIL_BYTES
    assert not curves, "A page reads no whole curve."
    (download,) = page.get("download_button")
    assert download.proto.deferred_file_id
    assert not download.proto.url
    for name in ("overview", "jobs", "failures", "gpu"):
        open_page(name).run(timeout=10)
