"""One job: its state, its curve, its log, and all that is known of it. `/job?id=12`"""

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.service import UnknownJobError
from backend.views import JobView
from pages.parts import cards, details, formats
from pages.parts.chart import live_chart
from pages.parts.live import live


def asked_for() -> JobView | None:
    """The job that the address names, or None where there is no such job."""
    text = st.query_params.get("id", "")
    try:
        return runtime.service().job(int(text)) if text.isascii() and text.isdigit() else None
    except (UnknownJobError, OverflowError):
        return None


def unknown() -> None:
    """What a wrong or missing id shows."""
    text = st.query_params.get("id")
    st.title("No such job")
    if text is None:
        st.text("This page shows one job; its address ends in its number, as in /job?id=12.")
    else:
        st.text(f"There is no job {formats.one_line(text, 40)!r} here. Jobs have numbers: 1, 2, 3.")
    st.page_link("jobs.py", label="See all jobs", icon=":material/list:")


def job_page(job_id: int) -> bool:
    """Draw the job; say whether it can still change."""
    job = runtime.service().job(job_id)
    header(job)
    if job.status == JobStatus.QUEUED:
        st.text(waiting(job))
    else:
        cards.track(job)
    cards.stall_notice(job)
    notes(job)
    if job.status == JobStatus.FAILED:
        details.failure(job)
    left, right = st.columns([13, 7], gap="medium")
    with left:
        points = runtime.service().history(job_id)
        if points or not job.status.ended:
            live_chart(job_id, points)
        else:
            st.caption("It ended without logging a point, so there is no curve.")
        st.subheader("Log", anchor=False)
        details.log(job)
        details.timeline(job)
    with right:
        details.figures(job)
        details.memory(job)
        details.parameters(job)
        details.files(job)
    return not job.status.ended


def header(job: JobView) -> None:
    """Name, lamp, and the buttons that act on this job."""
    st.title(formats.escape(job.name), anchor=False)
    with st.container(horizontal=True, vertical_alignment="center"):
        cards.show_lamp(cards.lamp_of(job))
        st.caption(" · ".join(life(job)), width="content")
        st.space("stretch")
        if cards.stalled(job):
            cards.extend_button(job)
        if not job.status.ended:
            cards.cancel_button(job, "job")
        st.page_link(
            "submit.py",
            label="Submit like this",
            icon=":material/content_copy:",
            query_params={"like": str(job.job_id)},
        )
        if job.status.ended:  # not where Cancel was: a second click there must do nothing
            cards.retry_button(job.job_id, "job")


def life(job: JobView) -> list[str]:
    """The job's number, recipe and times, in a line."""
    parts = [f"Job {job.job_id}", formats.escape(job.recipe)]
    if job.parent_id is not None:
        parts.append(f"retry of job {job.parent_id}")
    if job.finished_at:
        return [*parts, *cards.ran(job), f"ended {formats.ago(job.finished_at)}"]
    if job.started_at:
        return [*parts, f"started {formats.ago(job.started_at)}"]
    return [*parts, f"submitted {formats.ago(job.created_at)}"]


def waiting(job: JobView) -> str:
    place = "It is next" if job.queue_position == 1 else f"Place {job.queue_position}"
    return f"{place} in the queue, and starts as soon as there is room."


def notes(job: JobView) -> None:
    """What the reader should know of the figures."""
    if job.non_finite:
        st.warning(formats.escape(job.non_finite[:1].upper() + job.non_finite[1:] + ".", 300))
    if job.progress_problem:
        st.warning(
            formats.escape(job.progress_problem, 300) + " The last good reading is shown.",
            icon=":material/draft:",
        )


job = asked_for()
if job is None:
    unknown()
else:
    number = job.job_id
    live(lambda: job_page(number), not job.status.ended)
