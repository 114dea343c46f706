"""The sections of a job's page: figures, parameters, memory, timeline, files, log."""

import shlex
from collections.abc import Mapping
from typing import Any, Final, Literal

import streamlit as st

from backend import runtime, stall
from backend.bins import CurveSummary
from backend.models import Event, JobStatus
from backend.views import JobView
from pages.parts import cards, cleanups, formats

LOG_LINES: Final = 200
SHORT_LOG: Final = 12  # lines

MEMORY_HELP: Final = {
    "Baseline": "In use just before the job was started",
    "Before": "In use just before the job's processes were ended, or as the last reading of a job "
    "that ended by itself",
    "Peak": "The most that was seen; a reading is taken each second",
    "After": "In use once the job's processes were gone and the reading had settled",
    "Settled in": "From the end of the processes until the reading no longer fell",
    "Released": "Whether the reading came back to the baseline",
}


def pairs(rows: Mapping[str, Any]) -> None:
    """Names and values in two columns; strangers' texts show as typed."""
    shown: dict[str, str] = {}
    for name, value in rows.items():
        label = formats.escape(name) or formats.NOTHING
        while label in shown:  # names that look alike have a row each
            label += "\u2060"
        shown[label] = formats.escape(value, 300)
    st.table(shown, border="horizontal")


def verbatim(text: str, empty: str, height: Literal["content"] | int = "content") -> None:
    """A stranger's text of many lines as it is; `empty` says that there is none."""
    st.code(formats.lines(text) or empty, language=None, wrap_lines=True, height=height)


def figures(job: JobView, curve: CurveSummary) -> None:
    """The latest numbers; what the job does not report of its held-out loss is its curve's."""
    held_out = curve.series.get("eval_loss")
    last = job.eval_loss
    best, step = job.best_eval_loss, job.best_step
    if held_out is not None:
        last = held_out.last if last is None else last
        if best is None:
            best, step = held_out.minimum, held_out.min_step
    at = "" if best is None or step is None else f" at step {step:,}"
    runs = job.status == JobStatus.RUNNING
    rows = {
        "Train loss": formats.figure(job.loss),
        "Held-out": formats.figure(last),
        "Best held-out": formats.figure(best) + at,
        "Learning rate": formats.figure(job.learning_rate),
        "Running for" if runs else "Ran for": formats.duration(job.elapsed_seconds),
    }
    if job.memory_bytes is not None or job.peak_memory_bytes is not None:
        rows["Memory now"] = formats.size(job.memory_bytes)
        rows["Memory peak"] = formats.size(job.peak_memory_bytes)
    rows |= {name.replace("_", " "): formats.figure(value) for name, value in job.extra.items()}
    rows["Timeout"] = f"{stall.duration(job.timeout_seconds)} without progress"
    if job.max_retries:
        rows["Automatic retries"] = f"{job.retry_number} of {job.max_retries} used"
    st.subheader("Figures", anchor=False)
    pairs(rows)


def parameters(job: JobView) -> None:
    st.subheader("Parameters", anchor=False)
    rows = {name: shown(value) for name, value in job.params.items()}
    if job.env_names:
        rows["environment"] = ", ".join(job.env_names)
    if job.devices:
        rows["GPUs"] = ", ".join(map(str, job.devices))
    if rows:
        pairs(rows)
    else:
        st.caption("None were given.")


def shown(value: Any) -> str:
    if isinstance(value, list):
        return shlex.join(map(str, value)) or formats.NOTHING
    return formats.NOTHING if value is None or value == "" else str(value)


def memory(job: JobView) -> None:
    """Before and after, for each device that the job used."""
    found = runtime.service().cleanups(job.job_id)
    if not found:
        return
    st.subheader("Memory", anchor=False)
    for cleanup in found:
        named = "Host memory" if cleanup.device == "host" else cleanup.device
        st.caption(formats.escape(f"{named}, {cleanups.reason_of(cleanup)}"))
        rows = {
            "Baseline": formats.size(cleanup.baseline_bytes),
            "Before": formats.size(cleanup.before_bytes),
            "Peak": formats.size(cleanup.peak_bytes),
            "After": formats.size(cleanup.after_bytes),
            "Settled in": formats.duration(cleanup.settle_seconds),
        }
        if cleanup.cache_freed_bytes is not None:
            rows["Server's cache gave back"] = formats.size(cleanup.cache_freed_bytes)
        if cleanup.released is not None:
            rows["Released"] = "yes, all of it" if cleanup.released else "not all of it"
        if cleanup.holders:
            rows["Still held by"] = ", ".join(
                f"{h.get('name') or 'a process'} (pid {h.get('pid')})" for h in cleanup.holders
            )
        with st.container(gap="xxsmall"):
            for name, value in rows.items():
                with st.container(horizontal=True, gap="small", wrap=False):
                    st.markdown(f":small[{name}]", help=MEMORY_HELP.get(name), width=120)
                    with st.container(width="stretch"):
                        st.markdown(f":small[{formats.escape(value, 300)}]")


def timeline(job: JobView) -> None:
    st.subheader("Timeline", anchor=False)
    for event in runtime.service().timeline(job.job_id):
        with st.container(horizontal=True, gap="small"):
            st.caption(cards.when(event.at), width=190)
            with st.container(width="stretch"):
                st.text(formats.one_line(said(event), 300))


def said(event: Event) -> str:
    failed = event.to_status == JobStatus.FAILED
    return f"Failed: {event.message}" if failed else event.message


def files(job: JobView) -> None:
    st.subheader("Files", anchor=False)
    found = runtime.service().files(job.job_id)
    if found:
        pairs({file.name: formats.size(file.bytes) for file in found})
    else:
        st.caption("The run folder is made when the job starts.")
    verbatim(job.folder, formats.NOTHING)


def log(job: JobView) -> None:
    """The end of the log, which follows what is written, and a way to keep all of it."""
    tail = runtime.service().log_tail(job.job_id, LOG_LINES)
    # While it grows the box keeps its height, so that nothing below it moves.
    long = not job.status.ended or tail.count("\n") > SHORT_LOG
    height: Literal["content"] | int = 300 if long else "content"
    with st.container(height=height, border=False, autoscroll=True, key=f"log-{job.job_id}"):
        verbatim(tail, "Nothing has been written yet.")
    st.download_button(
        "Download log",
        data=lambda: runtime.service().log_bytes(job.job_id),
        file_name=f"job-{job.job_id}-log.txt",
        mime="text/plain",
        icon=":material/download:",
        key=f"download-{job.job_id}",
        on_click="ignore",
        disabled=not tail,
    )
