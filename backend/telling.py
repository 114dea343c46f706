"""What is said of a job to those who are not looking: a title, a few sentences, a link."""

from collections.abc import Sequence

from backend import stall
from backend.models import FailureKind, JobStatus
from backend.notify import Message
from backend.views import FailureView, JobView

MAX_TITLE = 120
MAX_BODY = 2000

_OUTCOMES = {
    FailureKind.TIMEOUT: "timed out",
    FailureKind.CRASHED: "crashed",
    FailureKind.GPU_OUT_OF_MEMORY: "ran out of GPU memory",
    FailureKind.HOST_OUT_OF_MEMORY: "ran out of memory",
    FailureKind.KILLED: "was killed",
    FailureKind.COULD_NOT_START: "could not start",
    FailureKind.LOST: "was lost",
}


def of_end(
    job: JobView, failure: FailureView | None, retry: int | None, link: str | None
) -> Message:
    """A job that has ended.

    Args:
        failure: what is known of it, where it failed.
        retry: the job that is queued by itself in its place.
    """
    said: list[str] = []
    if failure is not None:
        said += [failure.message, failure.explanation, f"What to try: {failure.advice}"]
        if failure.last_step is not None:
            said.append(f"Last step {failure.last_step:,}.")
    elif job.loss is not None:
        held_out = "" if job.eval_loss is None else f", held-out {job.eval_loss:.4g}"
        said.append(f"Train loss {job.loss:.4g}{held_out}.")
    if job.elapsed_seconds is not None:
        said.append(f"It ran for {span(job.elapsed_seconds)}.")
    if retry is not None:
        said.append(f"It is retried automatically, as job {retry}.")
    outcome = _OUTCOMES[job.failure_kind] if job.failure_kind else job.status.value
    return _message(f"{_named(job)} {outcome}", said, link)


def of_warning(job: JobView, link: str | None) -> Message | None:
    """A job that may soon time out; None where it has ended or gone on meanwhile."""
    if job.status is not JobStatus.RUNNING or job.seconds_left is None:
        return None
    said = [
        f"No progress for {span(job.seconds_since_progress or 0.0)}.",
        f"It is ended in {span(job.seconds_left)}, unless it makes progress or is given more time.",
        f"Its timeout is {stall.duration(job.phase_seconds_allowed or job.timeout_seconds)}.",
    ]
    return _message(f"{_named(job)} is about to time out", said, link)


def span(seconds: float) -> str:
    """`12 s`, `4 min`, `2 h 5 min`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min" if minutes >= 10 else f"{60 * minutes + rest} s"


def _named(job: JobView) -> str:
    return f"Job {job.job_id} {job.name[:MAX_TITLE]}"


def _message(title: str, said: Sequence[str], link: str | None) -> Message:
    # A service may refuse a message without a text.
    body = "\n".join(sentence[: MAX_BODY // 2] for sentence in said or [title])[:MAX_BODY]
    return Message(" ".join(title.split())[: 2 * MAX_TITLE], f"{body}\n{link}" if link else body)
