"""One job: its state, its curve, its log, and all that is known of it. `/job?id=12`"""

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.service import UnknownJobError
from backend.views import JobView
from pages.parts import cards, details, formats, heading
from pages.parts.chart import live_chart
from pages.parts.live import live, start_at_top


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
        st.text(f"There is no job {formats.one_line(text, 40)} here.")
    st.page_link("jobs.py", label="See all jobs", icon=":material/list:")


def job_page(job_id: int) -> bool:
    """Draw the job; say whether it can still change."""
    job = runtime.service().job(job_id)
    heading.heading(job)
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
        points = details.curve(job)
        if points or not job.status.ended:
            live_chart(job_id, points)
        else:
            st.caption("It ended without logging a point, so there is no curve.")
        st.subheader("Log", anchor=False)
        details.log(job)
        details.timeline(job)
    with right:
        details.figures(job, points)
        details.memory(job)
        details.parameters(job)
        details.files(job)
    return not job.status.ended


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
    start_at_top(f"job-{number}")
