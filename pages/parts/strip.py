"""The strip in the sidebar, and what is told on every page of jobs that end. Both ask the server
from the browser, so no script runs for them."""

from pathlib import Path
from typing import Any, Final

import streamlit as st

from backend import runtime
from pages.parts.live import go_to
from pages.parts.scripts import joined

KEY: Final = "strip"

_HERE: Final = Path(__file__).parent

_strip = st.components.v2.component(
    "signalbox_strip",
    html='<div class="signalbox-strip"></div>',
    css=(_HERE / "strip.css").read_text(encoding="utf-8"),
    js=joined("telling.js", "strip.js"),
    isolate_styles=False,  # toasts lie outside of the sidebar, which may be closed
)


def strip() -> None:
    """What runs, what waits, and how full the machine is, on every page."""
    devices = runtime.service().load().devices
    _strip(
        key=KEY,
        data={"devices": [{"index": d.index, "name": d.name} for d in devices]},
        on_go_change=_go,
    )


def _go() -> None:
    """To what was clicked: `{"job": 12}`, or `{"jobs": "running"}` for all in that state."""
    target: Any = st.session_state[KEY].go
    if not isinstance(target, dict):
        return
    if isinstance(job_id := target.get("job"), int):
        go_to("job.py", id=str(job_id))
    elif isinstance(state := target.get("jobs"), str):
        go_to("jobs.py", state=state)
    else:
        go_to("jobs.py")
