"""The live chart of a job: its losses, and each other number that it logs in a small one beside.

The page mounts it once, with the job's number; it asks the HTTP API for points by itself. Smoothing
is the debiased exponential moving average that TensorBoard draws
(tensorboard/components/vz_line_chart2/line-chart.ts, `resmoothDataset`), over the means of bins.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import streamlit as st

from backend.views import JobView
from pages.parts import plotly_script

TITLES: Final[Mapping[str, str]] = {
    "train_loss": "Train loss",
    "eval_loss": "Held-out loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}
EMPTY: Final = (
    "The curve appears here with the first point that the job logs: "
    "train and held-out loss over its steps."
)

_HERE: Final = Path(__file__).parent

_draw = st.components.v2.component(
    "signalbox_chart",
    html=(_HERE / "chart.html").read_text(encoding="utf-8"),
    css=(_HERE / "chart.css").read_text(encoding="utf-8"),
    js=plotly_script.with_shared("feed.js", "chart.js"),
    isolate_styles=False,  # Plotly puts its styles into the document
)


def live_chart(job: JobView) -> None:
    """Draw the curves of a job, which keep themselves up to date while it lives."""
    with st.container(key=f"curve-{job.job_id}"):
        _draw(
            key=f"chart-{job.job_id}",
            data={
                "script": plotly_script.URL,
                "job_id": job.job_id,
                "live": not job.status.ended,
                "titles": TITLES,
                "empty": EMPTY,
            },
        )
