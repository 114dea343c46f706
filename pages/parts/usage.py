"""What a job uses of the machine over time, drawn in the browser from the API's own points."""

from pathlib import Path
from typing import Final

import streamlit as st

from backend.models import JobStatus
from backend.views import JobView

_HERE: Final = Path(__file__).parent

_draw = st.components.v2.component(
    "signalbox_usage",
    html='<div class="signalbox-use"></div>',
    css=(_HERE / "usage.css").read_text(encoding="utf-8"),
    js=(_HERE / "usage.js").read_text(encoding="utf-8"),
)


def section(job: JobView) -> None:
    """Its cores and memory, and the memory and load of its GPUs; nothing of a job that never
    ran."""
    if job.started_at is None:
        return
    st.subheader("Use of the machine", anchor=False)
    _draw(
        key=f"usage-{job.job_id}",
        data={
            "job_id": job.job_id,
            "live": job.status == JobStatus.RUNNING,
            "gpus": len(job.devices),
        },
    )
