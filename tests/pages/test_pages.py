"""Every page, empty and full, with every state, every failure and every stranger's text."""

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Button

from backend import runtime
from backend.models import FailureKind, JobStatus, RequestKind, utc_now
from backend.service import Service
from backend.submission import Submission
from backend.views import FailureView, JobFilter, JobPage, JobView
from pages.parts import bars, cards, details
from tests.conftest import PROJECT
from tests.pages.conftest import HOSTILE, Open, Rows, sound, words
from tests.waiting import wait_until

PAGES = ["overview", "submit", "jobs", "job", "compare", "failures", "gpu"]
LISTS = ["overview", "jobs"]


def button(page: AppTest, label: str, key: str = "") -> Button:
    """The one button with this label (and this part of its key)."""
    found = [b for b in page.button if b.label == label and key in (b.key or "")]
    assert len(found) == 1, [b.key for b in page.button]
    return found[0]


def listed(page: AppTest) -> list[str]:
    """The names of the jobs in the table of all jobs, in its order."""
    rows = [text.value for text in page.text if " · " in text.value]
    return [row.split(" · ")[1].split(" | ")[0] for row in rows]


def labels(page: AppTest) -> list[str]:
    return [b.label for b in page.button]


def wait_for(service: Service, job_id: int, condition: Callable[[JobView], object]) -> None:
    """Wait until a job is as wanted."""
    wait_until(lambda: condition(service.job(job_id)), 30, "The job did not come so far.")


@pytest.mark.parametrize("name", PAGES)
def test_every_page_draws_on_an_empty_data_folder(name: str, rows: Rows, open_page: Open) -> None:
    assert open_page(name).title


def test_without_a_server_the_page_says_how_to_start_one() -> None:
    page = AppTest.from_file(PROJECT / "pages" / "navigation.py", default_timeout=20).run()
    assert not page.exception
    assert "streamlit run app.py" in page.error[0].value


@pytest.mark.parametrize("name", LISTS)
def test_lists_show_jobs_in_every_state(name: str, rows: Rows, open_page: Open) -> None:
    for status in JobStatus:
        rows.job(status, name=f"is {status}")
    rows.cancelling()
    rows.failed(FailureKind.TIMEOUT)
    text = words(open_page(name))
    for status in JobStatus:
        assert f"is {status}" in text
    assert "cancelling" in text
    assert "timed out" in text


@pytest.mark.parametrize("status", list(JobStatus))
def test_the_job_page_shows_every_state(status: JobStatus, rows: Rows, open_page: Open) -> None:
    job_id = rows.job(status, name="my job")
    rows.cleanup(job_id)
    page = open_page("job", id=str(job_id))
    assert page.title[0].value == "my job"
    text = words(page)
    assert str(status) in text
    assert "44.0 GiB" in text
    began = status not in (JobStatus.QUEUED, JobStatus.CANCELLED)  # this one while it waited
    assert ("Use of the machine" in [head.value for head in page.subheader]) is began
    assert ("Cancel" in labels(page)) is not status.ended
    assert ("Retry" in labels(page)) is status.ended


@pytest.mark.parametrize("kind", list(FailureKind))
def test_every_kind_of_failure_says_what_happened_and_what_to_try(
    kind: FailureKind, rows: Rows, open_page: Open
) -> None:
    message = "Training timed out - no progress updates for 10 minutes"
    job_id = rows.failed(kind, message)
    for page in (open_page("failures"), open_page("job", id=str(job_id))):
        assert message in [text.value for text in page.text]
        text = words(page)
        assert "What to try" in text
        assert f"the stacks of {kind}" in text
    reached = "Last step 1,234 · 10 min 12 s without progress before the end · just now"
    assert reached in words(open_page("failures"))
    assert f"the log of {kind}" in words(open_page("failures"))


def test_failures_are_newest_first_and_can_be_filtered(rows: Rows, open_page: Open) -> None:
    rows.failed(FailureKind.TIMEOUT, "first")
    rows.failed(FailureKind.CRASHED, "second")
    page = open_page("failures")
    shown = [text.value for text in page.text if text.value in {"first", "second"}]
    assert shown == ["second", "first"]
    page = open_page("failures", kind="timed out")
    assert "second" not in [text.value for text in page.text]


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"metrics_history": 3}', None])
def test_a_missing_or_broken_progress_file_leaves_the_page_whole(
    text: str | None, rows: Rows, open_page: Open
) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    if text is not None:
        rows.run(job_id).progress.write_text(text)
    page = open_page("job", id=str(job_id))
    assert "no curve" in words(page)
    named = "progress.json" in words(page).split("spec.json")[0] and bool(page.warning)
    assert named is (text not in {None, '{"metrics_history": 3}'})


def test_what_is_wrong_with_a_running_jobs_file_is_said(
    service: Service, script: Callable[..., Submission], open_page: Open
) -> None:
    submission = script(
        """
        import os, time
        open(os.environ["SIGNALBOX_PROGRESS"], "w").write("no json")
        time.sleep(60)
        """
    )
    job_id = service.submit(submission)
    wait_for(service, job_id, lambda job: job.progress_problem)
    page = open_page("job", id=str(job_id))
    assert any("progress" in warning.value for warning in page.warning)
    button(page, "Cancel").click().run()
    wait_for(service, job_id, lambda job: job.status is JobStatus.CANCELLED)


def test_a_curve_that_is_not_written_yet_says_what_will_come(rows: Rows, open_page: Open) -> None:
    page = open_page("job", id=str(rows.job(JobStatus.RUNNING)))
    assert any("first point" in str(drawn.proto) for drawn in page.get("bidi_component"))


@pytest.mark.parametrize("name", ["overview", "jobs", "failures", "job", "submit"])
def test_strangers_texts_are_shown_as_text(name: str, rows: Rows, open_page: Open) -> None:
    job_id = rows.failed(
        FailureKind.CRASHED,
        HOSTILE,
        name=HOSTILE,
        params={"script": HOSTILE, "args": [HOSTILE]},
        recipe="script",
    )
    rows.job(JobStatus.RUNNING, name=HOSTILE)
    rows.job(name=HOSTILE)
    rows.run(job_id).log.write_text(HOSTILE)
    rows.curve(job_id, 3, **{HOSTILE: 1.0})
    rows.cleanup(job_id, device=HOSTILE, reason=HOSTILE)
    query = {"job": {"id": str(job_id)}, "submit": {"like": str(job_id)}}.get(name, {})
    page = open_page(name, **query)
    acting = ["title", "markdown", "caption", "page_link", "table", "warning", "error", "metric"]
    for kind in [*acting, "html", "button", "text_input"]:
        for element in page.get(kind):
            for part in ("label", "value", "help"):
                text = getattr(element, part, None)
                if kind == "text_input" and part == "value":
                    continue  # a field shows what it holds
                if isinstance(text, str):
                    assert not re.search(r"(?<!\\)<img(?! alt=)", text), (kind, part, text)
                    if kind == "html":
                        continue  # in which Markdown does not act
                    assert "**bold**" not in text
                    assert ":tada:" not in text
                    assert "www.evil" not in text


@pytest.mark.parametrize(
    "text", ["0", "99", "-1", "abc", "", "1.5", "९", "9" * 40, "<b>x</b>", "1; x"]
)
def test_a_wrong_id_gets_a_helpful_page(text: str, rows: Rows, open_page: Open) -> None:
    page = open_page("job", id=text)
    assert page.title[0].value == "No such job"
    assert "See all jobs" in words(page)


def test_a_missing_id_gets_a_helpful_page(rows: Rows, open_page: Open) -> None:
    page = open_page("job")
    assert page.title[0].value == "No such job"
    assert "/job?id=12" in words(page)


def test_cancel_acts_on_its_own_job_only(rows: Rows, open_page: Open) -> None:
    kept, gone = rows.job(name="kept"), rows.job(name="gone")
    page = open_page("jobs")
    button(page, "Cancel", f"-{gone}").click()
    sound(page.run())
    assert runtime.service().job(gone).status == JobStatus.CANCELLED
    assert runtime.service().job(kept).status == JobStatus.QUEUED
    assert "cancelled" in words(page)


@pytest.mark.parametrize(
    ("name", "place"), [("overview", "card"), ("jobs", "jobs"), ("job", "job")]
)
def test_cancel_of_a_running_job_shows_cancelling_at_once(
    name: str, place: str, rows: Rows, open_page: Open
) -> None:
    job_id = rows.job(JobStatus.RUNNING)
    page = open_page(name, **({"id": str(job_id)} if name == "job" else {}))
    button(page, "Cancel", f"cancel-{place}").click()
    sound(page.run())
    assert runtime.service().job(job_id).requested == RequestKind.CANCELLING
    assert "cancelling" in words(page)


def test_cancel_of_a_job_that_ended_meanwhile_is_no_error(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.RUNNING)
    page = open_page("job", id=str(job_id))
    rows.store.change(job_id, JobStatus.RUNNING, JobStatus.COMPLETED, "Ended")
    button(page, "Cancel").click()
    sound(page.run())
    assert runtime.service().job(job_id).status == JobStatus.COMPLETED


@pytest.mark.parametrize("name", ["failures", "job"])
def test_retry_queues_a_job_like_it_and_goes_there(name: str, rows: Rows, open_page: Open) -> None:
    job_id = rows.failed(FailureKind.CRASHED, name="once more")
    page = open_page(name, **({"id": str(job_id)} if name == "job" else {}))
    button(page, "Retry").click()
    sound(page.run())
    (new,) = runtime.service().jobs(JobFilter(statuses=frozenset({JobStatus.QUEUED}))).jobs
    assert (new.parent_id, new.name) == (job_id, "once more")
    assert page.query_params["id"] == str(new.job_id)
    assert f"Retry of job {job_id}" in words(page)


def test_a_retry_that_cannot_be_says_why(rows: Rows, open_page: Open) -> None:
    params = {"script": "/nowhere/gone.py", "args": []}
    job_id = rows.failed(FailureKind.CRASHED, recipe="script", params=params)
    page = open_page("failures")
    button(page, "Retry").click()
    sound(page.run())
    assert "gone" in page.error[0].value
    assert runtime.service().jobs().total == job_id


def test_empty_cache_now_shows_its_own_figure(rows: Rows, open_page: Open) -> None:
    page = open_page("gpu")
    button(page, "Empty cache now").click()
    sound(page.run())
    assert "no CUDA cache" in page.success[0].value or "gave back" in page.success[0].value
    assert len(runtime.service().cleanups()) == 1


def test_the_gpu_page_shows_each_cleanup_as_bars_and_as_a_row(rows: Rows, open_page: Open) -> None:
    rows.cleanup(rows.job(JobStatus.CANCELLED))
    rows.cleanup(None, released=False, holders=[{"pid": 7, "name": "python", "bytes": 2**30}])
    rows.cleanup(None, before_bytes=None, after_bytes=None, peak_bytes=None)
    page = open_page("gpu")
    assert len(page.dataframe[0].value) == 3
    assert "python (pid 7) holds 1.0 GiB" in page.dataframe[0].value["Held by"].tolist()
    assert words(page).count("before 41.0 GiB") == 2


def test_without_a_gpu_the_page_says_so(rows: Rows, open_page: Open) -> None:
    if runtime.service().gpu_count:
        pytest.skip("there is a GPU")
    assert "No GPU" in open_page("gpu").caption[0].value


def test_jobs_can_be_searched_filtered_and_sorted(rows: Rows, open_page: Open) -> None:
    rows.job(name="apple")
    rows.job(JobStatus.COMPLETED, name="banana")
    rows.job(JobStatus.COMPLETED, name="apricot")
    page = open_page("jobs", q="ap", state="completed")
    text = words(page)
    assert "apricot" in text
    assert "banana" not in text
    assert "apple" not in text
    page.text_input(key="q").set_value("no such")
    assert "No job fits" in sound(page.run()).info[0].value
    assert listed(open_page("jobs", sort="name")) == ["apple", "apricot", "banana"]
    assert listed(open_page("jobs", sort="-name")) == ["banana", "apricot", "apple"]
    assert listed(open_page("jobs", sort="No such")) == ["apricot", "banana", "apple"]


def test_ten_thousand_jobs_are_asked_for_a_page_at_a_time(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows.many(10_000)
    service = runtime.service()
    limits: list[int] = []
    ask = service.jobs

    def jobs(wanted: JobFilter) -> JobPage:
        limits.append(wanted.limit)
        return ask(wanted)

    monkeypatch.setattr(service, "jobs", jobs)
    assert "10,000 jobs, 1 to 50 shown" in words(open_page("jobs"))
    for number in ("200", "99999"):
        last = words(open_page("jobs", page=number))
        assert "9,951 to 10,000 shown" in last
        assert "number 1 |" in last
    assert max(limits) <= 50


def test_the_first_visit_runs_digits_with_one_click(rows: Rows, open_page: Open) -> None:
    page = open_page()
    button(page, "Train on digits now").click()
    sound(page.run())
    (job,) = runtime.service().jobs().jobs
    assert job.recipe == "digits"
    assert page.query_params["id"] == str(job.job_id)


def test_the_stall_clock_is_counted_down_and_can_be_extended(
    service: Service, script: Callable[..., Submission], open_page: Open
) -> None:
    submission = script("import time; time.sleep(60)", timeout_minutes=0.1)
    job_id = service.submit(submission)
    wait_for(service, job_id, lambda job: (job.seconds_since_progress or 0) >= 3)
    page = open_page("job", id=str(job_id))
    assert re.search(r"No progress for [345] s; ends in [\d.]+ s\.", page.warning[0].value)
    button(page, "Give it 6 more seconds").click()
    sound(page.run())
    assert not page.warning
    messages = [event.message for event in service.timeline(job_id)]
    assert any("granted" in message for message in messages)


def test_numbers_that_are_none_are_told(rows: Rows, open_page: Open) -> None:
    progress = {"non_finite_count": 3, "first_non_finite_step": 812, "extra": {}}
    job_id = rows.job(JobStatus.RUNNING)
    rows.store.update_running(job_id, progress=progress)
    page = open_page("job", id=str(job_id))
    assert "oss stopped being a number at step 812" in page.warning[0].value


def test_a_log_is_shown_and_can_be_downloaded(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    rows.run(job_id).log.write_text("10%\r50%\r100%\nend of it\n")
    page = open_page("job", id=str(job_id))
    (log,) = [text.value for text in page.text if "end of it" in text.value]
    assert "50%" not in log
    assert page.get("download_button")
    assert "log.txt" in words(page)


def test_pages_are_short_and_touch_no_sql_threads_or_paths() -> None:
    for path in (PROJECT / "pages").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        assert "import threading" not in source
        assert "sqlalchemy" not in source
        assert "sqlmodel" not in source
        if path.parent.name == "pages":
            assert len(source.splitlines()) <= 120, path


def test_arguments_are_shown_as_they_would_be_typed(rows: Rows, open_page: Open) -> None:
    params = {"script": "/a.py", "args": ["--name", "two words"]}
    page = open_page("job", id=str(rows.job(JobStatus.COMPLETED, recipe="script", params=params)))
    assert "--name 'two words'" in table(page, "args")


def table(page: AppTest, name: str) -> str:
    """What stands beside this name in the tables of names and values."""
    row = re.search(rf'<th scope="row">{re.escape(name)}</th><td>(.*?)</td>', words(page))
    return unescape(row.group(1)) if row else ""


@pytest.mark.parametrize(
    ("status", "shown", "hidden"),
    [(JobStatus.RUNNING, "Running for", "Ran for"), (JobStatus.COMPLETED, "Ran for", "Phase")],
)
def test_the_figures_of_an_ended_job_are_in_the_past(
    status: JobStatus, shown: str, hidden: str, rows: Rows, open_page: Open
) -> None:
    page = open_page("job", id=str(rows.job(status)))
    assert table(page, shown)
    assert not table(page, hidden)


def test_held_out_figures_that_are_not_reported_are_read_from_the_curve(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    rows.curve(job_id, 20)
    page = open_page("job", id=str(job_id))
    assert table(page, "Held-out") == "0.15"
    assert table(page, "Best held-out") == "0.15 at step 20"


def test_lists_call_the_best_held_out_loss_the_best(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.RUNNING)
    progress = {"eval_loss": 0.04, "best_eval_loss": 0.0298, "best_step": 7}
    rows.store.change(job_id, JobStatus.RUNNING, JobStatus.COMPLETED, "Ended", progress=progress)
    assert "| 0.0298 |" in words(open_page("jobs"))
    assert table(open_page("job", id=str(job_id)), "Best held-out") == "0.0298 at step 7"


def test_a_job_that_is_being_cancelled_has_no_time_left(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.RUNNING)
    rows.store.update_running(job_id, progress={"current_step": 5, "remaining_seconds": 90})
    assert "1 min 30 s left" in words(open_page("job", id=str(job_id)))
    rows.store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
    assert " left" not in words(open_page("job", id=str(job_id)))


@pytest.mark.parametrize(
    ("seconds", "said"), [(3, "Starting: Python"), (60, "No progress reported yet")]
)
def test_a_job_that_just_started_is_said_to_start(
    seconds: int, said: str, rows: Rows, open_page: Open
) -> None:
    job_id = rows.job()
    started = utc_now() - timedelta(seconds=seconds)
    rows.store.change(
        job_id, JobStatus.QUEUED, JobStatus.RUNNING, "Started", started_at=started, pid=4242
    )
    assert said in words(open_page("job", id=str(job_id)))


def test_the_timeline_says_that_it_failed(rows: Rows, open_page: Open) -> None:
    job_id = rows.failed(FailureKind.CRASHED, "KeyError: 3")
    assert "Failed: KeyError: 3" in words(open_page("job", id=str(job_id)))


def test_a_failure_says_where_it_waited(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rows.failed(FailureKind.TIMEOUT)
    ask = Service._failure

    def failure(self: Service, *both: Any) -> FailureView:
        return replace(ask(self, *both), where="wait (hang.py, line 6)")

    monkeypatch.setattr(Service, "_failure", failure)
    for page in (open_page("failures"), open_page("job", id=str(job_id))):
        assert "It was waiting in wait (hang.py, line 6)." in words(page)


def test_a_retry_links_to_its_parent(rows: Rows, open_page: Open) -> None:
    parent = rows.job(JobStatus.CANCELLED)
    page = open_page("job", id=str(rows.job(JobStatus.CANCELLED, parent_id=parent)))
    (link,) = [link for link in page.page_link if link.label == f"Retry of job {parent}"]
    assert link.query_string == f"id={parent}"


def test_an_unknown_job_is_named(rows: Rows, open_page: Open) -> None:
    assert "There is no job 999 here." in words(open_page("job", id="999"))


def test_the_gpu_page_shows_what_running_jobs_use(
    rows: Rows, open_page: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = rows.job(JobStatus.RUNNING, name="eater")
    service = runtime.service()
    ask = service.jobs

    def jobs(wanted: JobFilter) -> JobPage:
        used = {"memory_bytes": 2**30, "peak_memory_bytes": 3 * 2**30}
        found = ask(wanted)
        return JobPage([replace(job, **used) for job in found.jobs], found.total)

    monkeypatch.setattr(service, "jobs", jobs)
    text = words(open_page("gpu"))
    assert f"{job_id} · eater" in text
    assert "uses 1.0 GiB now, 3.0 GiB at its peak" in text


def test_the_words_of_the_memory_figures_are_explained(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.CANCELLED)
    rows.cleanup(job_id)
    page = open_page("job", id=str(job_id))
    for name, meaning in details.MEMORY_HELP.items():
        assert f'<abbr title="{meaning}">{name}</abbr>' in unescape(words(page))


def test_jobs_in_every_state_can_be_filtered(rows: Rows, open_page: Open) -> None:
    for status in JobStatus:
        rows.job(status, name=f"is {status}")
    page = open_page("jobs", state="paused")
    (states,) = [group for group in page.pills if group.key == "state"]
    assert states.options == list(JobStatus)
    assert listed(page) == ["is paused"]


def test_a_new_job_page_starts_at_its_top(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    page = open_page("job", id=str(job_id))
    assert any(f"top-job-{job_id}" in str(drawn.proto) for drawn in page.get("bidi_component"))


def test_a_small_curve_is_of_the_whole_run() -> None:
    values = [float(n) for n in range(1000, 0, -1)]
    drawn = bars.thinned(values)
    assert (len(drawn), drawn[0], drawn[-1]) == (bars.SPARK_POINTS, 1000, 1)
    assert list(drawn) == sorted(drawn, reverse=True)
    assert bars.thinned([2.0, 1.0]) == [2.0, 1.0]


def test_files_whose_names_look_alike_have_a_row_each(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(JobStatus.COMPLETED)
    folder = rows.run(job_id).folder
    for number, name in enumerate(("same", "same\u200b", "x" * 150, "x" * 150 + "y", "\u200b"), 1):
        (folder / name).write_bytes(b"." * number)
    said = words(open_page("job", id=str(job_id)))
    assert all(f"{number} B" in said for number in range(1, 6))


def test_an_error_in_hebrew_does_not_turn_what_stands_beside_it(rows: Rows) -> None:
    job_id = rows.failed(FailureKind.CRASHED, "\u05e9\u05dc\u05d5\u05dd (1)")
    said = cards.outcome(runtime.service().job(job_id))
    assert said.startswith("\u2068\u05e9\u05dc\u05d5\u05dd \\(1\\)\u2069 · <time ")


def test_a_name_that_shows_as_nothing_is_still_a_heading(rows: Rows, open_page: Open) -> None:
    job_id = rows.job(name="\u3164\u200b")
    assert open_page("job", id=str(job_id)).title[0].value == f"Job {job_id}"


def test_what_a_failure_says_is_shown_without_what_would_hide_a_part_of_it(
    rows: Rows, open_page: Open
) -> None:
    job_id = rows.failed(FailureKind.CRASHED, "first\rsecond \x1b[31mred\x1b[0m \u202eturned")
    for page in (open_page("failures"), open_page("job", id=str(job_id))):
        assert "first\nsecond red turned" in [text.value for text in page.text]
