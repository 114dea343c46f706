"""The sections of a job's page: figures, parameters, memory, timeline, files, log."""

import shlex
from collections.abc import Iterable, Mapping
from html import escape
from types import MappingProxyType
from typing import Any, Final, Literal

import streamlit as st

from backend import runtime, stall
from backend.bins import CurveSummary
from backend.models import Event, JobStatus
from backend.views import JobView
from pages.parts import cards, cleanups, formats

LOG_LINES: Final = 200
SHORT_LOG: Final = 12  # lines

COPY: Final = (
    '<button type="button" class="box-copy">'
    '<span class="box-icon" aria-hidden="true">content_copy</span><span>Copy</span></button>'
)
"""Copies the text that it stands on (copying.js)."""

MEMORY_HELP: Final = {
    "Baseline": "In use just before the job was started",
    "Before": "In use just before the job's processes were ended, or as the last reading of a job "
    "that ended by itself",
    "Peak": "The most that was seen; a reading is taken each second",
    "After": "In use once the job's processes were gone and the reading had settled",
    "Settled in": "From the end of the processes until the reading no longer fell",
    "Released": "Whether the reading came back to the baseline",
}


def _html(text: Any) -> str:
    return escape(formats.one_line(text, 300))


def pairs(rows: Mapping[str, Any], meanings: Mapping[str, str] = MappingProxyType({})) -> None:
    """Names and values in two columns; strangers' texts show as typed.

    `st.table` would do, but has the browser load 750 kB of scripts before it draws.

    Args:
        rows: Each name with its value.
        meanings: What a name stands for, to be shown on hover.
    """
    named = []  # two names may show alike
    for name, value in rows.items():
        label = _html(name) or formats.NOTHING
        if name in meanings:
            label = f'<abbr title="{escape(meanings[name])}">{label}</abbr>'
        named.append((label, _html(value)))
    _table(named, "box-pairs")


def _table(rows: Iterable[tuple[str, str]], css: str) -> None:
    """Rows of a heading and a cell, both HTML."""
    cells = (f'<tr><th scope="row">{head}</th><td>{cell}</td></tr>' for head, cell in rows)
    st.html(f'<table class="{css}">{"".join(cells)}</table>')


def verbatim(
    key: str,
    text: str,
    empty: str,
    height: Literal["content"] | int = "content",
    follows: bool = False,
) -> None:
    """A stranger's text of many lines as it is, with a button that copies it.

    `st.code` would do, but has the browser load 1.6 MB of scripts before it draws.

    Args:
        key: Tells it from the others of the page.
        text: What is shown.
        empty: Says that there is none.
        height: Its pixels, where a longer text scrolls.
        follows: Whether its end stays in sight while it grows.
    """
    shown = formats.lines(text)
    with st.container(key=f"verbatim-{key}", gap=None):
        if shown:
            st.html(COPY)
        with st.container(height=height, border=False, autoscroll=follows):
            st.text(shown or empty)


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
        pairs(rows, MEMORY_HELP)


def timeline(job: JobView) -> None:
    st.subheader("Timeline", anchor=False)
    happened = runtime.service().timeline(job.job_id)
    rows = ((cards.when(event.at), _html(said(event))) for event in happened)
    _table(rows, "box-pairs box-happened")


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
    verbatim("folder", job.folder, formats.NOTHING)


def log(job: JobView) -> None:
    """The end of the log, which follows what is written, and a way to keep all of it."""
    tail = runtime.service().log_tail(job.job_id, LOG_LINES)
    # While it grows the box keeps its height, so that nothing below it moves.
    long = not job.status.ended or tail.count("\n") > SHORT_LOG
    height: Literal["content"] | int = 300 if long else "content"
    empty = "It wrote nothing." if job.status.ended else "Nothing has been written yet."
    verbatim(f"log-{job.job_id}", tail, empty, height, follows=True)
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
