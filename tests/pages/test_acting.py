"""Pause, resume, cancel, kill and retry: what the buttons say, and what they do."""

from datetime import datetime, timedelta, tzinfo

import pytest
from streamlit.testing.v1 import AppTest

from backend import runtime
from backend.models import FailureKind, JobStatus, RequestKind, utc_now
from pages.parts import buttons, cards
from tests.pages.conftest import Open, Rows, sound, words
from tests.pages.test_pages import button, labels, table

CAN_PAUSE = {"can_pause": True, "current_step": 5, "total_steps": 50}


def job_page(open_page: Open, job_id: int) -> AppTest:
    return open_page("job", id=str(job_id))


@pytest.mark.parametrize(
    ("name", "place"), [("overview", "card"), ("jobs", "jobs"), ("job", "job")]
)
def test_pause_says_what_it_does_and_shows_pausing_at_once(
    name: str, place: str, rows: Rows, open_page: Open
) -> None:
    job_id = rows.runs(CAN_PAUSE)
    page = open_page(name, **({"id": str(job_id)} if name == "job" else {}))
    pause = button(page, "Pause", f"pause-{place}")
    assert pause.help == "Save and free the memory; resume later"
    pause.click()
    sound(page.run())
    assert runtime.service().job(job_id).requested == RequestKind.PAUSING
    assert "pausing" in words(page)
    assert button(page, "Pause").disabled
    assert not button(page, "Cancel").disabled


def test_a_pause_of_a_job_with_a_gpu_frees_the_gpu(rows: Rows, open_page: Open) -> None:
    page = job_page(open_page, rows.runs(CAN_PAUSE, gpus=1))
    assert button(page, "Pause").help == "Save and free the GPU; resume later"


def test_what_a_script_that_never_said_it_can_pause_would_lose_is_said_before_the_click(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.runs({"current_step": 5})
    page = job_page(open_page, job_id)
    assert "never said that it can pause" in button(page, "Pause").help
    assert "never said that it can pause" in words(page)
    assert "It has saved no checkpoint, so Cancel would lose all of its steps." in words(page)
    rows.checkpoint(job_id, "step-00000004")
    rows.checkpoint(job_id, "step-00000005", complete=False)
    assert "Cancel would lose its steps after step 4." in words(sound(page.run()))
    assert "Pause" not in labels(open_page("jobs")), "There is no room for these words."


def test_of_a_job_that_only_starts_nothing_is_said_of_pausing(rows: Rows, open_page: Open) -> None:
    job_id = rows.job()
    rows.store.change(
        job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=utc_now(), pid=4242
    )
    page = job_page(open_page, job_id)
    assert "never said" not in words(page)
    assert "never said" in button(page, "Pause").help


def test_why_a_job_was_not_paused_is_shown(rows: Rows, open_page: Open) -> None:
    job_id = rows.runs(CAN_PAUSE)
    rows.store.update_running(job_id, notice="It was not paused: **no room** to save.")
    (info,) = job_page(open_page, job_id).info
    assert "**" not in info.value
    assert "It was not paused: **no room** to save." in words(job_page(open_page, job_id))


def test_a_paused_job_says_where_it_goes_on_and_is_resumed(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.PAUSED)
    page = job_page(open_page, job_id)
    assert "It has saved no checkpoint, so it begins anew when it is resumed." in words(page)
    rows.checkpoint(job_id, "step-00001500")
    rows.checkpoint(job_id, "no step in its name")
    sound(page.run())
    assert "It goes on from step 1,500 when it is resumed." in words(page)
    assert not table(page, "Running for")
    button(page, "Resume").click()
    sound(page.run())
    assert runtime.service().job(job_id).status == JobStatus.QUEUED
    assert "Next in the queue." in words(page)


def test_the_overview_lists_paused_jobs_and_resumes_them(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.PAUSED, name="sleeper")
    page = open_page()
    assert "**1** :small[paused]" in words(page)
    assert "Paused" in [header.value for header in page.header]
    button(page, "Resume", "resume-paused").click()
    sound(page.run())
    assert runtime.service().job(job_id).status == JobStatus.QUEUED
    assert "Paused" not in [header.value for header in page.header]


@pytest.mark.parametrize("name", ["overview", "jobs", "job"])
def test_a_paused_job_can_be_cancelled(name: str, rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.PAUSED)
    page = open_page(name, **({"id": str(job_id)} if name == "job" else {}))
    button(page, "Cancel").click()
    sound(page.run())
    assert runtime.service().job(job_id).status == JobStatus.CANCELLED


@pytest.fixture
def cancels(rows: Rows, monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each cancel that the service was asked for was one at once."""
    service = runtime.service()
    asked: list[bool] = []
    cancel = service.cancel

    def noted(job_id: int, *, now: bool = False) -> bool:
        asked.append(now)
        return cancel(job_id, now=now)

    monkeypatch.setattr(service, "cancel", noted)
    return asked


@pytest.mark.parametrize("name", ["overview", "jobs", "job"])
def test_the_second_click_of_a_double_click_on_cancel_kills_nothing(
    name: str, rows: Rows, open_page: Open, cancels: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buttons, "KILL_AFTER_SECONDS", 600)
    job_id = rows.runs()
    page = open_page(name, **({"id": str(job_id)} if name == "job" else {}))
    button(page, "Cancel").click()
    sound(page.run())
    assert button(page, "Cancel").disabled
    assert "Kill now" not in labels(page)
    assert cancels == [False]


@pytest.mark.parametrize("name", ["overview", "jobs", "job"])
def test_a_job_that_is_cancelled_for_a_while_can_be_killed(
    name: str, rows: Rows, open_page: Open, cancels: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buttons, "KILL_AFTER_SECONDS", 0)
    job_id = rows.runs()
    page = open_page(name, **({"id": str(job_id)} if name == "job" else {}))
    button(page, "Cancel").click()
    sound(page.run())
    kill = button(page, "Kill now")
    assert kill.help == "It was asked to stop and may be saving; this kills it at once"
    assert "Cancel" not in labels(page)
    kill.click()
    sound(page.run())
    assert cancels == [False, True]


def test_a_cancel_says_how_long_the_job_may_take_to_save(rows: Rows, open_page: Open) -> None:
    page = job_page(open_page, rows.cancelling())
    assert "it was asked to stop, and may save for 5 seconds at most" in words(page)


def retried(page: AppTest, label: str) -> int:
    """Press it; the number of the job whose page one then is on."""
    button(page, label).click()
    sound(page.run())
    return int(page.query_params["id"])


@pytest.mark.parametrize("name", ["failures", "job"])
def test_a_job_that_left_a_checkpoint_is_retried_from_it_or_from_the_start(
    name: str, rows: Rows, open_page: Open
) -> None:
    job_id = rows.failed(FailureKind.CRASHED, max_retries=2)
    query = {"id": str(job_id)} if name == "job" else {}
    assert not [label for label in labels(open_page(name, **query)) if "from" in label]
    rows.checkpoint(job_id, "step-00000500")
    new = runtime.service().job(retried(open_page(name, **query), "Retry from step 500"))
    assert (new.parent_id, new.continues_id, new.max_retries) == (job_id, job_id, 2)
    new = runtime.service().job(retried(open_page(name, **query), "Retry"))
    assert (new.parent_id, new.continues_id) == (job_id, None)


@pytest.mark.parametrize("status", [s for s in JobStatus if s.ended])
def test_any_job_that_ended_can_go_on_from_what_it_went_on_from_itself(
    status: JobStatus, rows: Rows, open_page: Open
) -> None:
    job_id = rows.job(status, checkpoint="step-00000120")
    assert "Retry from step 120" in labels(job_page(open_page, job_id))


def test_retries_are_linked_both_ways(rows: Rows, open_page: Open) -> None:
    first = rows.failed(FailureKind.LOST)
    rows.checkpoint(first, "step-00000500")
    second = retried(job_page(open_page, first), "Retry from step 500")
    page = job_page(open_page, first)
    (link,) = [link for link in page.page_link if link.label == f"Retried as job {second}"]
    assert link.query_string == f"id={second}"
    page = job_page(open_page, second)
    origin = f"Retry of job {first}, from its checkpoint"
    (link,) = [link for link in page.page_link if link.label == origin]
    assert link.query_string == f"id={first}"


def test_an_automatic_retry_says_which_and_when_it_starts(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = utc_now()

    class Clock(datetime):
        """A page takes its time to be drawn."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return now

    monkeypatch.setattr(cards, "datetime", Clock)
    first = rows.failed(FailureKind.CRASHED, max_retries=3)
    fields = {"parent_id": first, "continues_id": first, "max_retries": 3, "retry_number": 1}
    waits = rows.job(starts_after=now + timedelta(seconds=3600), **fields)
    page = job_page(open_page, waits)
    assert "Automatic retry 1 of 3, starts in 1 h 0 min." in words(page)
    assert f"Automatic retry of job {first} (1 of 3)" in words(page)
    assert "from its checkpoint" not in words(page), "There is none."
    assert "automatic retry 1 of 3, starts in" in words(open_page("jobs"))
    assert table(page, "Automatic retries") == "1 of 3 used"
    due = rows.job(starts_after=now - timedelta(seconds=1), **fields)
    assert "Next in the queue." in words(job_page(open_page, due))


def test_the_time_that_a_job_was_paused_is_not_counted(rows: Rows, open_page: Open) -> None:
    job_id = rows.runs(paused_seconds=60)
    rows.store.change(job_id, JobStatus.RUNNING, JobStatus.COMPLETED, "Ended")
    assert "ran 1 min 0 s" in words(job_page(open_page, job_id))
    assert "| 1 min 0 s |" in words(open_page("jobs"))


def test_checkpoints_are_listed_newest_first_and_can_be_downloaded(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.runs(CAN_PAUSE)
    assert "Checkpoints" not in words(job_page(open_page, job_id))
    rows.checkpoint(job_id, "step-00000004")
    rows.checkpoint(job_id, "best & <b>7")
    rows.checkpoint(job_id, "step-00000005", complete=False)
    page = job_page(open_page, job_id)
    text = words(page)
    assert text.index("step-00000005") < text.index("step-00000004")
    assert "step 4 · 3 B · just now" in text
    assert text.count("not finished") == 1
    urls = [link.proto.url for link in page.get("link_button")]
    base = f"/api/training/{job_id}/download/model?checkpoint="
    assert urls == [f"{base}best%20%26%20%3Cb%3E7", f"{base}step-00000004"]


def test_of_many_checkpoints_the_newest_are_listed(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    for step in range(11):
        rows.checkpoint(job_id, f"step-{step:08d}")
    page = job_page(open_page, job_id)
    assert len(page.get("link_button")) == 8
    assert "And 3 older ones in the run folder." in words(page)
