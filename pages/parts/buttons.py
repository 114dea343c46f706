"""The buttons that act on a job. What one of them could not do is `trouble.said` at its spot,
`{place}-{job_id}`."""

import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import streamlit as st

from backend import runtime
from backend.models import JobStatus, RequestKind
from backend.service import UnknownJobError
from backend.submission import InvalidSubmissionError
from backend.views import JobView
from pages.parts import checkpoints, trouble
from pages.parts.live import go_to_job

KILL_AFTER_SECONDS: Final = 1.0
"""So long after Cancel there is no "Kill now" in its place: a double click kills nothing."""

WIDTH: Final = 84
"""Pixels, of both, so that nothing moves."""
HINT_WIDTH: Final = 108
"""The same on the job's own page, where the key for it stands in it. [style.css]"""
RETRY_WIDTH: Final = 92

WHAT_KILL_DOES: Final = "It was asked to stop and may be saving; this kills it at once"
NOT_QUEUED: Final = "It was not queued"
CANNOT_PAUSE: Final = (
    "This script has never said that it can pause: it is asked, and goes on if it does not stop by "
    "itself. Nothing is killed."
)


def cancel_button(job: JobView, place: str) -> None:
    """The first press asks, and the job may save; then another button is there, which kills."""
    cancel = runtime.service().cancel
    if is_cancelled_for_a_while(job):
        st.button(
            "Kill now",
            key=f"kill-{place}-{job.job_id}",
            help=WHAT_KILL_DOES,
            width=HINT_WIDTH if place == "job" else WIDTH,
            on_click=_acting(job, place, "It was not killed", lambda: cancel(job.job_id, now=True)),
        )
    else:
        st.button(
            "Cancel",
            key=f"cancel-{place}-{job.job_id}",
            help=f"End job {job.job_id}",
            width=HINT_WIDTH if place == "job" else WIDTH,
            on_click=_acting(job, place, "It was not cancelled", lambda: cancel(job.job_id)),
            disabled=job.requested == RequestKind.CANCELLING,
        )


def is_cancelled_for_a_while(job: JobView) -> bool:
    """Whether "Kill now" may take the place of Cancel."""
    seen = f"cancelling-{job.job_id}"
    if job.status != JobStatus.RUNNING or job.requested != RequestKind.CANCELLING:
        st.session_state.pop(seen, None)
        return False
    since: float = st.session_state.setdefault(seen, time.monotonic())
    return time.monotonic() - since >= KILL_AFTER_SECONDS


def pause_button(job: JobView, place: str) -> None:
    """Ask a running job to save and to end."""
    st.button(
        "Pause",
        key=f"pause-{place}-{job.job_id}",
        icon=":material/pause:",
        help=what_a_pause_does(job),
        on_click=_acting(
            job, place, "It was not paused", lambda: runtime.service().pause(job.job_id)
        ),
        disabled=job.requested is not None,
    )


def what_a_pause_does(job: JobView) -> str:
    """What is to be known before the click."""
    if not job.can_pause:
        return CANNOT_PAUSE
    return f"Save and free the {'GPU' if job.gpus else 'memory'}; resume later"


def resume_button(job: JobView, place: str) -> None:
    """Queue a paused job again."""
    st.button(
        "Resume",
        key=f"resume-{place}-{job.job_id}",
        icon=":material/play_arrow:",
        help=checkpoints.resuming(job),
        on_click=_acting(
            job, place, "It was not resumed", lambda: runtime.service().resume(job.job_id)
        ),
    )


def retry_button(job: JobView, place: str) -> None:
    """Queue a job like this one again and go to its page."""
    st.button(
        "Retry",
        key=f"retry-{place}-{job.job_id}",
        icon=":material/replay:",
        help=f"Queue a new job like job {job.job_id}, from the start",
        width=RETRY_WIDTH,
        on_click=_acting(job, place, NOT_QUEUED, lambda: _retry(job.job_id, place, False)),
    )


def retry_from_button(job: JobView, place: str) -> None:
    """The same from where the job had come to, if it left a checkpoint."""
    newest = checkpoints.newest(job)
    if newest is None:
        return
    st.button(
        f"Retry from {checkpoints.words(newest)}",
        key=f"retry-from-{place}-{job.job_id}",
        icon=":material/resume:",
        help=f"Queue a new job that goes on from the last checkpoint of job {job.job_id}",
        on_click=_acting(job, place, NOT_QUEUED, lambda: _retry(job.job_id, place, True)),
    )


def like_link(job: JobView) -> None:
    """To the form, filled in as for this job, where another timeout can be given."""
    st.page_link(
        "submit.py",
        label="Submit like this",
        icon=":material/content_copy:",
        query_params={"like": str(job.job_id)},
    )


def _retry(job_id: int, place: str, from_checkpoint: bool) -> None:
    try:
        new = runtime.service().retry(job_id, from_checkpoint=from_checkpoint)
    except InvalidSubmissionError as error:
        said = " ".join(problem.message for problem in error.problems)
        trouble.refuse(f"{place}-{job_id}", NOT_QUEUED, said)
    else:
        go_to_job(new)


def _acting(job: JobView, place: str, title: str, do: Callable[[], object]) -> Callable[..., None]:
    """The callback of a button; a job that is not known any more cannot be acted on, as one that
    has ended."""

    def act() -> None:
        with suppress(UnknownJobError):
            do()

    return trouble.acting(f"{place}-{job.job_id}", title, act)
