"""What several pages show of a job: lamp, track, row and card."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

import streamlit as st

from backend import runtime, stall
from backend.models import FailureKind, JobStatus, RequestKind
from backend.views import JobView
from pages.parts import bars, buttons, countdown, formats, times, trouble

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
TIMED_OUT: Final = Lamp("timed out", ":material/timer_off:", "orange")


def lamp_of(job: JobView) -> Lamp:
    """The lamp that stands for a job now."""
    if job.requested and not job.status.ended:
        return REQUESTS[job.requested]
    return kind_lamp(job.failure_kind) if job.failure_kind else LAMPS[job.status]


def changes(job: JobView) -> bool:
    """Whether a job can change without anybody's click: it waits or runs."""
    return job.status in (JobStatus.QUEUED, JobStatus.RUNNING)


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
    if countdown.stalled(job):
        return _sentence(parts or ["no progress reported yet"])  # rate and time left are past
    if job.samples_per_second:
        parts.append(f"{formats.figure(job.samples_per_second, 3)} samples/s")
    elif job.steps_per_second:
        parts.append(f"{formats.figure(job.steps_per_second, 3)} steps/s")
    if job.remaining_seconds is not None and not job.status.ended and not job.requested:
        parts.append(f"{formats.duration(job.remaining_seconds)} left")
    if parts or job.status.ended:
        return _sentence(parts) or "No progress reported"
    if is_starting(job) and not job.requested:
        return "Starting: Python and its libraries are being loaded"
    return "No step reported yet" if job.phase else "No progress reported yet"


def _sentence(parts: Sequence[str]) -> str:
    text = " · ".join(parts)
    return text[:1].upper() + text[1:]


def is_starting(job: JobView) -> bool:
    """Whether a running job began so lately that it need not have said anything yet."""
    began = job.started_at
    new = began is not None and datetime.now(UTC) - began < STARTING
    said = job.phase is not None or job.current_step is not None
    return new and not said and job.status == JobStatus.RUNNING


def track(job: JobView) -> None:
    """The progress bar of a job, with its standing in words."""
    percent = min(100.0, max(0.0, job.progress or 0.0))
    share = "" if job.progress is None else f"{percent:.0f} % · "
    with st.container(key=f"track-{job.job_id}"):
        st.progress(percent / 100, text=share + standing(job))


def phase(job: JobView) -> str:
    """What a running job says that it is doing, in Markdown."""
    if job.status != JobStatus.RUNNING or not job.phase:
        return ""
    own = job.phase_seconds_allowed
    may = f", may take {stall.duration(own)} without progress" if own else ""
    return f"phase {formats.escape(job.phase, 60)}{may}"


def waiting(job: JobView) -> str:
    """What a queued job waits for."""
    left = (job.starts_after - datetime.now(UTC)).total_seconds() if job.starts_after else 0
    if left > 0:
        number = f"automatic retry {job.retry_number} of {job.max_retries}"
        return f"{number}, starts in {formats.duration(round(left))}"
    next_one = job.queue_position in (None, 1)
    return "next in the queue" if next_one else f"place {job.queue_position} in the queue"


def outcome(job: JobView) -> str:
    """What a row says of a job beside its name, for `times.caption`."""
    moment = job.finished_at or job.started_at or job.created_at
    if job.status == JobStatus.PAUSED:
        moment = job.paused_at or moment
    return " · ".join([*_result(job), times.ago(moment)])


def _result(job: JobView) -> list[str]:
    match job.status:
        case JobStatus.RUNNING | JobStatus.PAUSED:
            share = [] if job.progress is None else [f"{job.progress:.0f} %"]
            loss = [] if job.loss is None else [f"loss {formats.figure(job.loss)}"]
            return share + loss
        case JobStatus.QUEUED:
            return [waiting(job)]
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
    """How long it ran, its pauses left out, if it ever did."""
    if not job.started_at or not job.finished_at:
        return []
    return [f"ran {formats.duration(job.elapsed_seconds)}"]


def row(job: JobView, place: str) -> None:
    """A job on one line: lamp, name, outcome, and the buttons that act on it while it lives."""
    with st.container(
        key=f"row-{place}-{job.job_id}", horizontal=True, vertical_alignment="center", gap="small"
    ):
        with st.container(width=104):
            show_lamp(lamp_of(job))
        with st.container(width="stretch"):
            job_link(job)
        with st.container(width=272, key=f"said-{place}-{job.job_id}"):
            times.caption(outcome(job))
        with st.container(
            width=188,
            horizontal=True,
            horizontal_alignment="right",
            gap="xsmall",
            wrap=False,
            key=f"acts-{place}-{job.job_id}",
        ):
            if job.status.ended:
                st.space(1)  # keeps the columns of all rows in line
            else:
                acts(job, place)
    trouble.said(f"{place}-{job.job_id}")


def acts(job: JobView, place: str) -> None:
    """The buttons of a job that lives, in a list. To pause a script that never said that it can
    takes more words than there is room for here: its own page has that button."""
    if job.status == JobStatus.PAUSED:
        buttons.resume_button(job, place)
    elif job.status == JobStatus.RUNNING and job.can_pause:
        buttons.pause_button(job, place)
    buttons.cancel_button(job, place)


def card(job: JobView, place: str) -> None:
    """A running job: name, bar, loss with its sparkline, and the buttons that act on it."""
    with st.container(border=True, key=f"{place}-{job.job_id}", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center", gap="xsmall"):
            with st.container(width="stretch"):
                show_lamp(lamp_of(job))
            acts(job, place)
        job_link(job)
        trouble.said(f"{place}-{job.job_id}")
        track(job)
        with st.container(key=f"spark-{place}-{job.job_id}"):  # as high with either, and with none
            if countdown.stalled(job):
                countdown.countdown(job, place)
            else:
                curve(job)
        held_out = "" if job.eval_loss is None else f", held-out {formats.figure(job.eval_loss)}"
        loss = (
            "The loss appears with the first point that is logged"
            if job.loss is None
            else f"Train loss {formats.figure(job.loss)}{held_out}"
        )
        st.caption(" · ".join(filter(None, (loss, phase(job)))))


def curve(job: JobView) -> None:
    """The train loss so far, as soon as it has two points."""
    losses = [p.values.get("train_loss") for p in runtime.service().history(job.job_id)]
    drawn = [loss for loss in losses if loss is not None]
    if len(drawn) > 1:
        bars.sparkline(drawn, f"Train loss so far, over {len(drawn):,} points")
