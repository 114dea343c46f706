"""The head of a job's page: its name, its state, and the buttons that act on it."""

from collections.abc import Sequence
from typing import Final

import streamlit as st

from backend import runtime, stall
from backend.models import JobStatus, RequestKind
from backend.views import JobView
from pages.parts import buttons, cards, checkpoints, formats, remarks, times, trouble
from pages.parts.overlay import compare_link

RETRIES: Final = 3
"""The newest ones have a link each."""


def heading(job: JobView) -> None:
    """Name, lamp, and the buttons that act on this job.

    Each button has a place of its own: none comes to lie where another just was, under a click.
    """
    retries = runtime.service().retries(job.job_id)
    with st.container(
        horizontal=True, vertical_alignment="center", key=f"heading-{job.job_id}", gap="small"
    ):
        with st.container(width="stretch"):
            remarks.name(job)
        with st.container(
            width="content", horizontal=True, horizontal_alignment="right", gap="small", wrap=False
        ):
            if job.status == JobStatus.PAUSED:
                buttons.resume_button(job, "job")
            elif job.status == JobStatus.RUNNING:
                buttons.pause_button(job, "job")
            if not job.status.ended:
                buttons.cancel_button(job, "job")
    with st.container(horizontal=True, vertical_alignment="center"):
        with st.container(
            horizontal=True,
            vertical_alignment="center",
            width="stretch",
            key=f"standing-{job.job_id}",
        ):
            cards.show_lamp(cards.lamp_of(job))
            times.caption(" · ".join(life(job)), width="content")
        with st.container(
            horizontal=True,
            vertical_alignment="center",
            width="content",
            wrap=False,
            key=f"next-{job.job_id}",
        ):
            if job.status.ended:
                buttons.retry_from_button(job, "job")
            compare_link(job, retries)
            buttons.like_link(job)
            with st.container(width=buttons.RETRY_WIDTH):
                if job.status.ended:
                    buttons.retry_button(job, "job")
                else:
                    st.space(1)
    trouble.said(f"job-{job.job_id}")
    remarks.line(job)
    links(job, retries)


def life(job: JobView) -> list[str]:
    """The job's number, recipe and times, each for `times.caption`."""
    parts = [f"Job {job.job_id}", formats.escape(job.recipe)]
    if job.finished_at:
        return [*parts, *cards.ran(job), f"ended {times.ago(job.finished_at)}"]
    if job.status == JobStatus.PAUSED:
        return [*parts, f"paused {times.ago(job.paused_at)}"]
    if job.started_at:
        return [*parts, f"started {times.ago(job.started_at)}"]
    return [*parts, f"submitted {times.ago(job.created_at)}"]


def links(job: JobView, retries: Sequence[int]) -> None:
    """To the job that this one retries, and to those that retry this one."""
    found = [(f"retried as job {n}", n) for n in retries[-RETRIES:]]
    if job.parent_id is not None:
        which = f" ({job.retry_number} of {job.max_retries})" if job.retry_number else ""
        kind = "automatic retry" if job.retry_number else "retry"
        origin = ", from its checkpoint" if goes_on(job) else ""
        found.insert(0, (f"{kind} of job {job.parent_id}{which}{origin}", job.parent_id))
    if not found:
        return
    with st.container(horizontal=True, key=f"links-{job.job_id}"):
        for label, job_id in found:
            st.page_link(
                "job.py",
                label=label[:1].upper() + label[1:],
                icon=":material/replay:",
                query_params={"id": str(job_id)},
            )


def goes_on(job: JobView) -> bool:
    """Whether it began, or is to begin, from a checkpoint of the job that it retries."""
    if job.continues_id is None:
        return False
    if job.status != JobStatus.QUEUED:
        return job.checkpoint is not None
    return checkpoints.newest(runtime.service().job(job.continues_id)) is not None


def under_way(job: JobView) -> str | None:
    """What was asked of it and is being done; or, before it is asked, what a pause may come to."""
    settings = runtime.service().settings
    match job.requested if job.status == JobStatus.RUNNING else None:
        case RequestKind.PAUSING:
            doing = "it is saving" if job.can_pause else "it was asked to save and to stop"
            return (
                f":material/hourglass_top: Pausing: {doing}. It has "
                f"{stall.duration(settings.pause_grace_seconds)}, and longer while its checkpoint "
                "grows; if it has not stopped then, it goes on."
            )
        case RequestKind.CANCELLING:
            return (
                ":material/hourglass_top: Cancelling: it was asked to stop, and may save for "
                f"{stall.duration(settings.cancel_grace_seconds)} at most."
            )
    if job.status != JobStatus.RUNNING or job.can_pause or cards.is_starting(job):
        return None
    newest = checkpoints.newest(job)
    lost = "It has saved no checkpoint, so Cancel would lose all of its steps."
    if newest:
        lost = f"Cancel would lose its steps after {checkpoints.words(newest)}."
    return f":material/pause: {buttons.CANNOT_PAUSE} {lost}"
