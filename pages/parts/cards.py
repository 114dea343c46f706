"""What several pages show of a job: lamp, track, row, and the buttons that act on it."""

from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

import streamlit as st

from backend import runtime
from backend.models import FailureKind, JobStatus, RequestKind
from backend.service import UnknownJobError
from backend.submission import InvalidSubmissionError
from backend.views import JobView
from pages.parts import formats, trouble
from pages.parts.live import go_to_job

Color = Literal["blue", "green", "red", "orange", "violet", "gray"]


class Lamp(NamedTuple):
    """A state is an icon and a word; the colour only helps."""

    word: str
    icon: str
    color: Color


LAMPS: Final = {
    JobStatus.QUEUED: Lamp("queued", ":material/schedule:", "gray"),
    JobStatus.RUNNING: Lamp("running", ":material/play_arrow:", "blue"),
    JobStatus.PAUSED: Lamp("paused", ":material/pause:", "violet"),
    JobStatus.COMPLETED: Lamp("completed", ":material/check:", "green"),
    JobStatus.FAILED: Lamp("failed", ":material/close:", "red"),
    JobStatus.CANCELLED: Lamp("cancelled", ":material/block:", "gray"),
}
REQUESTS: Final = {
    RequestKind.CANCELLING: Lamp("cancelling", ":material/hourglass_top:", "orange"),
    RequestKind.PAUSING: Lamp("pausing", ":material/hourglass_top:", "violet"),
}
STARTING: Final = timedelta(seconds=20)
NOT_QUEUED: Final = "It was not queued"
TIMED_OUT: Final = Lamp("timed out", ":material/timer_off:", "orange")


def lamp_of(job: JobView) -> Lamp:
    """The lamp that stands for a job now."""
    if job.requested and not job.status.ended:
        return REQUESTS[job.requested]
    return kind_lamp(job.failure_kind) if job.failure_kind else LAMPS[job.status]


def kind_lamp(kind: FailureKind) -> Lamp:
    """The lamp of a failure: timeouts stand out."""
    return TIMED_OUT if kind == FailureKind.TIMEOUT else LAMPS[JobStatus.FAILED]


def show_lamp(lamp: Lamp) -> None:
    st.badge(lamp.word, icon=lamp.icon, color=lamp.color)


def when(moment: datetime | None) -> str:
    """The exact time, in the reader's zone."""
    return formats.exact(moment, formats.zone(st.context.timezone))


def job_link(job: JobView, width: Literal["stretch", "content"] = "content") -> None:
    """A link to a job's page that begins with its number."""
    st.page_link(
        "job.py",
        label=f"{job.job_id} · {formats.escape(job.name)}",
        query_params={"id": str(job.job_id)},
        help=f"{formats.escape(job.name, 200)}, submitted {when(job.created_at)}",
        width=width,
    )


def standing(job: JobView) -> str:
    """Where a training stands: epoch, step, rate and time left, as far as they are known."""
    parts = []
    if job.current_epoch or job.total_epochs:  # not in the first of nobody knows how many
        of = f" of {job.total_epochs:,}" if job.total_epochs else ""
        parts.append(f"epoch {job.current_epoch or 0:,}{of}")
    if job.current_step is not None:
        of = f" of {job.total_steps:,}" if job.total_steps else ""
        parts.append(f"step {job.current_step:,}{of}")
    if stalled(job):
        return _sentence(parts or ["no progress reported yet"])  # rate and time left are past
    if job.samples_per_second:
        parts.append(f"{formats.figure(job.samples_per_second, 3)} samples/s")
    elif job.steps_per_second:
        parts.append(f"{formats.figure(job.steps_per_second, 3)} steps/s")
    if job.remaining_seconds is not None and not job.status.ended and not job.requested:
        parts.append(f"{formats.duration(job.remaining_seconds)} left")
    if parts or job.status.ended:
        return _sentence(parts) or "No progress reported"
    new = job.started_at is not None and datetime.now(UTC) - job.started_at < STARTING
    if new and not job.requested:
        return "Starting: Python and its libraries are being loaded"
    return "No progress reported yet"


def _sentence(parts: Sequence[str]) -> str:
    text = " · ".join(parts)
    return text[:1].upper() + text[1:]


def track(job: JobView) -> None:
    """The progress bar of a job, with its standing in words."""
    percent = min(100.0, max(0.0, job.progress or 0.0))
    share = "" if job.progress is None else f"{percent:.0f} % · "
    st.progress(percent / 100, text=share + standing(job))


def stalled(job: JobView) -> bool:
    """Whether a running job has used up half of its timeout without a sign of life."""
    running = job.status == JobStatus.RUNNING and not job.requested
    return running and job.seconds_left is not None and job.seconds_left <= job.timeout_seconds / 2


def stall_notice(job: JobView) -> None:
    """The countdown of the stall clock, from half of the timeout on."""
    silent, left = job.seconds_since_progress, job.seconds_left
    if not stalled(job) or silent is None or left is None:
        return
    stacks = " The stacks of the process have been taken." if job.stacks_taken else ""
    st.warning(
        f"No progress for {formats.roughly(silent)}; ends in {formats.duration(round(left))}."
        + stacks,
        icon=":material/timer:",
    )


def outcome(job: JobView) -> str:
    """What a row says of a job beside its name, in Markdown."""
    moment = job.finished_at or job.started_at or job.created_at
    return " · ".join([*_result(job), formats.ago(moment)])


def _result(job: JobView) -> list[str]:
    match job.status:
        case JobStatus.RUNNING:
            share = [] if job.progress is None else [f"{job.progress:.0f} %"]
            loss = [] if job.loss is None else [f"loss {formats.figure(job.loss)}"]
            return share + loss
        case JobStatus.QUEUED:
            next_one = job.queue_position in (None, 1)
            return ["next in the queue" if next_one else f"place {job.queue_position} in the queue"]
        case JobStatus.FAILED:
            return [formats.escape(job.error or "", 64)]
        case _:
            if job.best_eval_loss is not None:
                return [f"best held-out {formats.figure(job.best_eval_loss)}", *ran(job)]
            held_out = (
                [] if job.eval_loss is None else [f"held-out {formats.figure(job.eval_loss)}"]
            )
            return held_out + ran(job)


def ran(job: JobView) -> list[str]:
    """How long it ran, if it ever did."""
    if not job.started_at or not job.finished_at:
        return []
    return [f"ran {formats.duration((job.finished_at - job.started_at).total_seconds())}"]


def row(job: JobView, place: str) -> None:
    """A job on one line: lamp, name, outcome, and Cancel while it lives."""
    with st.container(
        key=f"row-{place}-{job.job_id}", horizontal=True, vertical_alignment="center", gap="small"
    ):
        with st.container(width=104):
            show_lamp(lamp_of(job))
        with st.container(width="stretch"):
            job_link(job)
        with st.container(width=290, key=f"said-{place}-{job.job_id}"):
            st.caption(outcome(job))
        with st.container(width=72):
            if job.status.ended:
                st.space(1)  # keeps the columns of all rows in line
            else:
                cancel_button(job, place)
    trouble.said(f"{place}-{job.job_id}")


def cancel_button(job: JobView, place: str) -> None:
    """One click ends a job; the answer is seen at once.

    Of each of these buttons, what it could not do is `trouble.said` at `{place}-{job_id}`.
    """
    st.button(
        "Cancel",
        key=f"cancel-{place}-{job.job_id}",
        help=f"End job {job.job_id}",
        on_click=trouble.acting(f"{place}-{job.job_id}", "It was not cancelled", _cancel),
        args=(job.job_id,),
        disabled=job.requested == RequestKind.CANCELLING,
    )


def _cancel(job_id: int) -> None:
    with suppress(UnknownJobError):
        runtime.service().cancel(job_id)


def retry_button(job_id: int, place: str) -> None:
    """Queue a job like this one again and go to its page."""
    st.button(
        "Retry",
        key=f"retry-{place}-{job_id}",
        icon=":material/replay:",
        help=f"Queue a new job like job {job_id}",
        on_click=trouble.acting(f"{place}-{job_id}", NOT_QUEUED, _retry),
        args=(job_id, f"{place}-{job_id}"),
    )


def _retry(job_id: int, spot: str) -> None:
    try:
        new = runtime.service().retry(job_id)
    except InvalidSubmissionError as error:
        trouble.refuse(spot, NOT_QUEUED, " ".join(p.message for p in error.problems))
    except UnknownJobError:
        trouble.refuse(spot, NOT_QUEUED, f"There is no job {job_id} any more.")
    else:
        go_to_job(new)


def extend_button(job: JobView, place: str) -> None:
    """Grant a silent job another full timeout."""
    st.button(
        f"Give it {formats.more(job.timeout_seconds)}",
        key=f"extend-{place}-{job.job_id}",
        icon=":material/more_time:",
        on_click=trouble.acting(f"{place}-{job.job_id}", "It was not granted", _extend),
        args=(job.job_id,),
    )


def _extend(job_id: int) -> None:
    with suppress(UnknownJobError):
        runtime.service().extend(job_id)
