"""Every failure: what happened, how far the job came, and what to try."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Literal

import streamlit as st

from backend import runtime
from backend.models import FailureKind, JobStatus
from backend.views import FailureView
from pages.parts import bars, buttons, cards, details, failure, formats, times, trouble
from pages.parts.live import watch

DAYS = 14
MORE = 20
KINDS = {word: kind for kind, word in formats.KIND_WORDS.items()}
COLORS = {
    FailureKind.TIMEOUT: "light-dark(#e69f00, #e9b949)",
    FailureKind.CRASHED: "light-dark(#d55e00, #f0823a)",
    FailureKind.GPU_OUT_OF_MEMORY: "light-dark(#a8569a, #c678b4)",
    FailureKind.HOST_OUT_OF_MEMORY: "light-dark(#cc79a7, #e3b3d0)",
    FailureKind.KILLED: "#5c7fa3",
    FailureKind.COULD_NOT_START: "#8a9097",
    FailureKind.LOST: "light-dark(#b5b9be, #5c636c)",
}


def figures() -> None:
    """How many of each kind in the last two weeks, in words and by day."""
    counts = runtime.service().failure_counts(DAYS)
    kinds: Counter[FailureKind] = Counter()
    for entry in counts:
        kinds[entry.kind] += entry.count
    if not kinds:
        return
    today = datetime.now(UTC).date()
    span = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    first, last = (f"{day:%d %b}" for day in (span[0], today))
    st.caption(f"Failures by day (UTC), {first} to {last}")
    bars.days(
        [f"{day:%d}" for day in span],
        [
            {formats.KIND_WORDS[entry.kind]: entry.count for entry in counts if entry.day == day}
            for day in span
        ],
        {
            formats.KIND_WORDS[kind]: (color, f"{kinds[kind]:,} {formats.KIND_WORDS[kind]}")
            for kind, color in COLORS.items()
            if kinds[kind]
        },
    )


def card(failed: FailureView) -> None:
    """One failure, all of it."""
    job = failed.job
    lamp = cards.kind_lamp(failed.kind)
    with st.container(border=True, key=f"failure-{job.job_id}", gap="small"):
        with st.container(horizontal=True, vertical_alignment="center"):
            st.badge(formats.KIND_WORDS[failed.kind], icon=lamp.icon, color=lamp.color)
            with st.container(width="stretch"):
                cards.job_link(job)
            buttons.like_link(job)
            buttons.retry_from_button(job, "failures")
            buttons.retry_button(job, "failures")
        trouble.said(f"failures-{job.job_id}")
        failure.non_finite(failed.detail.non_finite)
        failure.told(failed, times.ago(failed.at))
        with st.expander("Log tail and stacks", icon=":material/notes:", key=f"tail-{job.job_id}"):
            st.caption("The end of the log")
            long = failed.log_tail.count("\n") > details.SHORT_LOG
            height: Literal["content"] | int = 240 if long else "content"
            details.verbatim(f"tail-{job.job_id}", failed.log_tail, "The log is empty.", height)
            st.caption("Where its processes stood when it was stopped")
            details.verbatim(f"stacks-{job.job_id}", failed.stacks, "No stacks were taken.")


st.title("Failures")
watch(lambda: runtime.service().counts()[JobStatus.FAILED])
if not runtime.service().counts()[JobStatus.FAILED]:
    st.info(
        "No job has failed. One that does is kept here with its error, the end of its log and what "
        "to try; one that stops reporting is ended and listed first.",
        icon=":material/check:",
    )
    st.stop()
figures()
chosen = st.pills(
    "Kind",
    list(KINDS),
    key="kind",
    bind="query-params",
    label_visibility="collapsed",
)
shown = st.session_state.get("failures-shown", MORE)
found = runtime.service().failures(KINDS[chosen] if chosen else None, limit=shown + 1)
if not found:
    st.info("No failure of this kind.", icon=":material/search_off:")
for failed in found[:shown]:
    card(failed)
if len(found) > shown and st.button("Show older", key="older"):
    st.session_state["failures-shown"] = shown + MORE
    st.rerun()
