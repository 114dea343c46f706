"""One job: its state, its curve, its log, and all that is known of it. `/job?id=12`"""

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from backend import runtime
from backend.models import JobStatus
from backend.service import UnknownJobError
from backend.views import JobView
from pages.parts import (
    cards,
    checkpoints,
    countdown,
    details,
    failure,
    formats,
    heading,
    remarks,
    usage,
    whereabouts,
)
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
    """Draw the job; say whether it can change without a click."""
    job = runtime.service().job(job_id)
    with st.container():  # so that its chart keeps its place, and is not mounted anew
        asked = top(job)
    curve = runtime.service().curve_summary(job_id)
    if curve.rows or not job.status.ended:
        live_chart(job)
    else:
        st.caption("It ended without logging a point, so there is no curve.")
    left, right = st.columns([13, 7], gap="medium")
    with left:
        st.subheader("Log", anchor=False)
        details.log(job)
        details.timeline(job)
    with right:
        details.figures(job, curve)
        checkpoints.section(job)
        details.memory(job)
        details.parameters(job)
        details.files(job)
    usage.section(job)
    countdown.countdown(job, "job")  # last, and in sight at the foot of the window: nothing moves
    if asked:
        whereabouts.ask(job, asked)
    return cards.changes(job)


def top(job: JobView) -> DeltaGenerator | None:
    """What stands above the curves; where it says where the job is, if that was asked for."""
    heading.heading(job)
    asked = None
    match job.status:
        case JobStatus.QUEUED:
            words = cards.waiting(job)
            st.text(f"{words[:1].upper()}{words[1:]}.")
        case JobStatus.PAUSED:
            cards.track(job)
            st.markdown(f"{checkpoints.resuming(job)}.")
        case _:
            cards.track(job)
            asked = whereabouts.button(job)
    notes(job)
    if job.status == JobStatus.FAILED:
        failure.of_job(job)
    return asked


def notes(job: JobView) -> None:
    """What the reader should know of the job and its figures."""
    if job.notice:
        st.info(formats.escape(job.notice, 1000), icon=":material/info:")
    failure.non_finite(job.non_finite)
    if job.progress_problem:
        st.warning(
            formats.escape(job.progress_problem, 300) + " The last good reading is shown.",
            icon=":material/draft:",
        )


job = asked_for()
remarks.deleting()
if job is None:
    unknown()
else:
    number = job.job_id
    idle_seconds = None if job.status.ended else 2
    st.set_page_config(page_title=f"{formats.one_line(job.name) or number} · Signalbox")
    live(lambda: job_page(number), cards.changes(job), idle_seconds)
    start_at_top(f"job-{number}")
