"""The checkpoints of a job: which it would go on from, and the list of all."""

from typing import Final
from urllib.parse import quote

import streamlit as st

from backend import runtime
from backend.archive import Checkpoint
from backend.checkpoints import step_of
from backend.views import JobView
from pages.parts import formats, times

LISTED: Final = 8


def newest(job: JobView) -> str | None:
    """The name of the checkpoint that a job which does not run would go on from, if there is one.
    Whether it is whole is found out when it does."""
    complete = [
        found.name
        for found in runtime.service().checkpoints(job.job_id)
        if found.complete and found.step is not None
    ]
    return complete[-1] if complete else job.checkpoint


def words(name: str) -> str:
    """`step 500`, of step-00000500."""
    step = step_of(name)
    return formats.escape(name, 40) if step is None else f"step {step:,}"


def resuming(job: JobView) -> str:
    """Where a paused job would go on, in Markdown."""
    name = newest(job)
    if name is None:
        return "It has saved no checkpoint, so it begins anew when it is resumed"
    return f"It goes on from {words(name)} when it is resumed"


def section(job: JobView) -> None:
    """What the job has saved, the newest first, each to be downloaded."""
    found = runtime.service().checkpoints(job.job_id)
    if not found:
        return
    st.subheader("Checkpoints", anchor=False)
    with st.container(gap="xsmall"):
        for checkpoint in found[: -LISTED - 1 : -1]:
            _line(job, checkpoint)
    if len(found) > LISTED:
        st.caption(f"And {formats.some(len(found) - LISTED, 'older one')} in the run folder.")


def _line(job: JobView, checkpoint: Checkpoint) -> None:
    said = [formats.size(checkpoint.bytes), times.ago(checkpoint.created_at)]
    if checkpoint.step is not None:
        said.insert(0, f"step {checkpoint.step:,}")
    with st.container(horizontal=True, vertical_alignment="center", gap="small", wrap=False):
        with st.container(width="stretch", gap="xxsmall"):
            st.markdown(f":small[{formats.escape(checkpoint.name, 60)}]")
            times.caption(" · ".join(said))
        if checkpoint.complete:
            st.link_button(
                "Download",
                f"/api/training/{job.job_id}/download/model?checkpoint="
                + quote(checkpoint.name, safe=""),
                key=f"checkpoint-{job.job_id}-{checkpoint.name}",
                icon=":material/download:",
                type="tertiary",
            )
        else:
            st.caption("not finished", width="content")
