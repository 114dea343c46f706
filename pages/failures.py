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
    FailureKind.TIMEOUT: "#e0a021",
    FailureKind.CRASHED: "#d9652b",
    FailureKind.GPU_OUT_OF_MEMORY: "#a8569a",
    FailureKind.HOST_OUT_OF_MEMORY: "#c98bbd",
    FailureKind.KILLED: "#5c7fa3",
    FailureKind.COULD_NOT_START: "#8a9097",
    FailureKind.LOST: "#b5b9be",
}


def figures() -> None:
    """How many of each kind in the last two weeks, in words and by day."""
    counts = runtime.service().failure_counts(DAYS)
    kinds: Counter[FailureKind] = Counter()
    for entry in counts:
        kinds[entry.kind] += entry.count
    if not kinds:
        return
    with st.grid("auto", min_column_width=165):
        for kind, number in sorted(
            kinds.items(), key=lambda k: (k[0] != FailureKind.TIMEOUT, -k[1])
        ):
            word = formats.KIND_WORDS[kind]
            st.metric(
                word[:1].upper() + word[1:],
                f"{number:,}",
                icon=cards.kind_lamp(kind).icon,
                border=True,
                height="stretch",
            )
    today = datetime.now(UTC).date()
    span = [today - timedelta(days=back) for back in reversed(range(DAYS))]
    first, last = (f"{day:%d %b}" for day in (span[0], today))
    st.caption(f"By day (UTC) and kind, {first} to {last}")
    bars.days(
        [f"{day:%d}" for day in span],
        [
            {formats.KIND_WORDS[entry.kind]: entry.count for entry in counts if entry.day == day}
            for day in span
        ],
        {formats.KIND_WORDS[kind]: color for kind, color in COLORS.items()},
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
            buttons.retry_from_button(job, "failures")
            buttons.retry_button(job, "failures")
        trouble.said(f"failures-{job.job_id}")
        failure.non_finite(failed.detail.non_finite)
        failure.told(failed, times.ago(failed.at))
        with st.expander("Log tail and stacks", icon=":material/notes:", key=f"tail-{job.job_id}"):
            st.caption("The end of the log")
            long = failed.log_tail.count("\n") > details.SHORT_LOG
            height: Literal["content"] | int = 240 if long else "content"
            details.verbatim(failed.log_tail, "The log is empty.", height)
            st.caption("Where its processes stood when it was stopped")
            details.verbatim(failed.stacks, "No stacks were taken.")


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
