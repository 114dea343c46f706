"""The countdown of the stall clock: how long a job has been silent, and what is left."""

from contextlib import suppress

import streamlit as st

from backend import runtime
from backend.models import JobStatus, RequestKind
from backend.service import UnknownJobError
from backend.views import JobView
from pages.parts import formats, trouble


def allowed_seconds(job: JobView) -> float:
    """How long it may be silent: its phase may have a timeout of its own."""
    return job.phase_seconds_allowed or job.timeout_seconds


def stalled(job: JobView) -> bool:
    """Whether a running job has used up half of its time without a sign of life."""
    lives = job.status == JobStatus.RUNNING and job.requested != RequestKind.CANCELLING
    return lives and job.seconds_left is not None and job.seconds_left <= allowed_seconds(job) / 2


def countdown(job: JobView, place: str) -> None:
    """From half of the time on: how long is left, and a button that grants all of it again."""
    silent, left = job.seconds_since_progress, job.seconds_left
    if not stalled(job) or silent is None or left is None:
        return
    phase = " in this phase" if job.phase_seconds_allowed else ""
    stacks = " The stacks of the process have been taken." if job.stacks_taken else ""
    with st.container(
        horizontal=True, vertical_alignment="center", key=f"countdown-{place}-{job.job_id}"
    ):
        with st.container(width="stretch"):
            st.warning(
                f"No progress for {formats.roughly(silent)}{phase}; "
                f"ends in {formats.duration(round(left))}.{stacks}",
                icon=":material/timer:",
            )
        st.button(
            f"Give it {formats.more(allowed_seconds(job))}",
            key=f"extend-{place}-{job.job_id}",
            icon=":material/more_time:",
            on_click=trouble.acting(f"{place}-{job.job_id}", "It was not granted", _extend),
            args=(job.job_id,),
        )


def _extend(job_id: int) -> None:
    with suppress(UnknownJobError):
        runtime.service().extend(job_id)
