"""The sections of a job's page: figures, parameters, memory, timeline, files, log, failure."""

from collections.abc import Mapping
from typing import Any, Final, Literal

import streamlit as st

from backend import runtime, stall
from backend.models import FailureKind
from backend.views import JobView
from pages.parts import cards, formats

LOG_LINES: Final = 200
SHORT_LOG: Final = 12  # lines


def pairs(rows: Mapping[str, Any]) -> None:
    """Names and values in two columns; strangers' texts show as typed."""
    st.table(
        {formats.escape(k): formats.escape(v, 300) for k, v in rows.items()}, border="horizontal"
    )


def figures(job: JobView) -> None:
    """The latest numbers."""
    best = formats.figure(job.best_eval_loss)
    if job.best_eval_loss is not None and job.best_step is not None:
        best += f" at step {job.best_step:,}"
    rows = {
        "Phase": job.phase or formats.NOTHING,
        "Train loss": formats.figure(job.loss),
        "Held-out": formats.figure(job.eval_loss),
        "Best held-out": best,
        "Learning rate": formats.figure(job.learning_rate),
        "Running for": formats.duration(job.elapsed_seconds),
    }
    if job.memory_bytes is not None or job.peak_memory_bytes is not None:
        rows["Memory now"] = formats.size(job.memory_bytes)
        rows["Memory peak"] = formats.size(job.peak_memory_bytes)
    rows |= {name.replace("_", " "): formats.figure(value) for name, value in job.extra.items()}
    rows["Timeout"] = f"{stall.duration(job.timeout_seconds)} without progress"
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
        return " ".join(map(str, value)) or formats.NOTHING
    return formats.NOTHING if value is None or value == "" else str(value)


def memory(job: JobView) -> None:
    """Before and after, for each device that the job used."""
    cleanups = runtime.service().cleanups(job.job_id)
    if not cleanups:
        return
    st.subheader("Memory", anchor=False)
    for cleanup in cleanups:
        named = "Host memory" if cleanup.device == "host" else cleanup.device
        st.caption(formats.escape(f"{named}, {cleanup.reason}"))
        rows = {
            "Baseline": formats.size(cleanup.baseline_bytes),
            "Before the end": formats.size(cleanup.before_bytes),
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
        pairs(rows)


def timeline(job: JobView) -> None:
    st.subheader("Timeline", anchor=False)
    for event in runtime.service().timeline(job.job_id):
        with st.container(horizontal=True, gap="small"):
            st.caption(cards.when(event.at), width=190)
            with st.container(width="stretch"):
                st.text(formats.one_line(event.message, 300))


def files(job: JobView) -> None:
    st.subheader("Files", anchor=False)
    found = runtime.service().files(job.job_id)
    if found:
        pairs({file.name: formats.size(file.bytes) for file in found})
    else:
        st.caption("The run folder is made when the job starts.")
    st.code(job.folder, language=None, wrap_lines=True)


def log(job: JobView) -> None:
    """The end of the log, which follows what is written, and a way to keep all of it."""
    tail = runtime.service().log_tail(job.job_id, LOG_LINES)
    # While it grows the box keeps its height, so that nothing below it moves.
    long = not job.status.ended or tail.count("\n") > SHORT_LOG
    height: Literal["content"] | int = 300 if long else "content"
    with st.container(height=height, border=False, autoscroll=True, key=f"log-{job.job_id}"):
        st.code(tail or "Nothing has been written yet.", language=None, wrap_lines=True)
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


def failure(job: JobView) -> None:
    """What went wrong, what it means, and what to try."""
    failed = runtime.service().failure(job.job_id)
    if failed is None:
        st.error(formats.escape(job.error or "It failed.", 2000))
        return
    with st.container(border=True, key=f"failure-{job.job_id}", gap="small"):
        if failed.kind != FailureKind.TIMEOUT:  # which the lamp above says
            lamp = cards.kind_lamp(failed.kind)
            st.badge(formats.KIND_WORDS[failed.kind], icon=lamp.icon, color=lamp.color)
        st.code(failed.message or formats.NOTHING, language=None, wrap_lines=True)
        if failed.kind == FailureKind.TIMEOUT and failed.seconds_without_progress is not None:
            silent = formats.duration(failed.seconds_without_progress)
            step = "no step" if failed.last_step is None else f"step {failed.last_step:,}"
            st.text(f"Silent for {silent}, after {step}.")
        st.text(failed.explanation)
        st.markdown(f"**What to try:** {formats.escape(failed.advice, 500)}")
        if failed.stacks:
            with st.expander("Stacks of the process", icon=":material/account_tree:"):
                st.code(failed.stacks, language=None, wrap_lines=True)
