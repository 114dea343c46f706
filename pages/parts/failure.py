"""A failure as a person wants to read it: a sentence, the user's own code, then everything."""

from collections.abc import Sequence
from pathlib import PurePath
from typing import Final

import streamlit as st

from backend import runtime
from backend.diagnosis import EXPLANATIONS, Detail
from backend.models import FailureKind
from backend.stacks import Frame
from backend.views import FailureView, JobView
from pages.parts import cards, formats, times
from pages.parts.details import pairs, shown, verbatim

CALLERS: Final = 5


def of_job(job: JobView) -> None:
    """What went wrong, what it means, and what to try."""
    failed = runtime.service().failure(job.job_id)
    if failed is None:
        st.error(formats.escape(job.error or "It failed.", 2000))
        return
    with st.container(border=True, key=f"failure-{job.job_id}", gap="small"):
        if failed.kind != FailureKind.TIMEOUT:  # which the lamp above says
            lamp = cards.kind_lamp(failed.kind)
            st.badge(formats.KIND_WORDS[failed.kind], icon=lamp.icon, color=lamp.color)
        told(failed)
        if failed.stacks:
            with st.expander("Stacks of its processes", icon=":material/account_tree:"):
                verbatim(f"stacks-{job.job_id}", failed.stacks, formats.NOTHING)


def told(failed: FailureView, ended: str = "") -> None:
    """A failure from its sentence to what to try; `ended` says when, where that is wanted."""
    detail = failed.detail
    if detail.sentence:
        st.markdown(f"**{formats.prose(detail.sentence)}**")
    elif failed.where:
        st.markdown(f"**It was waiting in {formats.escape(failed.where, 300)}.**")
    verbatim(f"said-{failed.job.job_id}", failed.message, formats.NOTHING)
    if failed.kind != FailureKind.TIMEOUT:  # whose message says it
        st.text(EXPLANATIONS[failed.kind])
    frames(failed.job.job_id, detail.frames)
    if detail.allocator or detail.parameters:
        memory_and_parameters(detail)
    said = ["No step reported" if failed.last_step is None else f"Last step {failed.last_step:,}"]
    silent = failed.seconds_without_progress
    if silent is not None and silent >= 1:  # less is the time between two looks
        said.append(f"{formats.duration(silent)} without progress before the end")
    times.caption(" · ".join([*said, ended] if ended else said))
    st.markdown(f"**What to try:** {formats.prose(failed.advice)}")


def non_finite(words: str | None) -> None:
    """That the loss stopped being a number, and at which step."""
    if words:
        st.warning(formats.escape(f"{words[:1].upper()}{words[1:]}.", 300))


def frames(job_id: int, found: Sequence[Frame]) -> None:
    """Where it was in the user's own code, the innermost call first."""
    if not found:
        return
    inner, *outer = found
    with st.container(gap="xxsmall"):
        place = f"{inner.path}, line {inner.line:,}, in {inner.function}"
        st.markdown(f":small[Your code: {formats.escape(place, 400)}]")
        if inner.source:
            verbatim(f"source-{job_id}", inner.source, formats.NOTHING)
        for frame in outer[:CALLERS]:
            called = f"line {frame.line:,} of {PurePath(frame.path).name}, in {frame.function}"
            source = f" {formats.code(frame.source)}" if frame.source else ""
            st.markdown(f":small[called from {formats.escape(called, 200)}]{source}")
        if len(outer) > CALLERS:
            st.caption(f"and {formats.some(len(outer) - CALLERS, 'call')} further out")


def memory_and_parameters(detail: Detail) -> None:
    """What torch's allocator had when there was no more, and what is worth changing."""
    left, right = st.columns(2, gap="medium")
    if found := detail.allocator:
        rows = {
            "Tried to get": found.tried_bytes,
            "Free on the GPU": found.free_bytes,
            "Held by torch": found.allocated_bytes,
            "Kept by torch, unused": found.unused_bytes,
            "GPU in all": found.total_bytes,
        }
        with left:
            st.caption("GPU memory at that moment")
            pairs({name: formats.size(value) for name, value in rows.items() if value is not None})
    if detail.parameters:
        with right if detail.allocator else left:
            st.caption("Parameters worth changing")
            pairs({name: shown(value) for name, value in detail.parameters.items()})
