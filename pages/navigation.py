"""What Streamlit runs for every session: the list of pages, and the status strip in the sidebar."""

from pathlib import Path

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from pages.parts import formats, keys, trouble
from pages.parts.live import turn

PARTS = Path(__file__).parent / "parts"
LOGO = str(PARTS / "logo.svg")
WORDMARK = str(PARTS / "wordmark.svg")
SIDEBAR = 240  # pixels


@trouble.told()
def strip() -> None:
    """What runs, what waits, and how full the memory is, on every page."""
    service = runtime.service()
    counts = service.counts()
    running, queued = counts[JobStatus.RUNNING], counts[JobStatus.QUEUED]
    with st.container(horizontal=True, gap="xsmall"):
        st.badge(
            f"{running} running", icon=":material/play_arrow:", color="blue" if running else "gray"
        )
        st.badge(f"{queued} queued", icon=":material/schedule:", color="gray")
    for device in service.machine().devices:
        if device.used_bytes is None or not device.total_bytes:
            continue
        name = "Host memory" if device.index is None else f"GPU {device.index} memory"
        st.progress(
            min(1.0, device.used_bytes / device.total_bytes),
            text=f"{name} {formats.size(device.used_bytes)} of {formats.size(device.total_bytes)}",
        )


def notices() -> None:
    """What is to be known of this start of the server, until the reader closes it."""
    closed: set[str] = st.session_state.setdefault("closed-notices", set())
    for number, sentence in enumerate(runtime.service().notices):
        if sentence in closed:
            continue
        with st.container(horizontal=True, wrap=False, key=f"notice-{number}"):
            with st.container(width="stretch"):
                st.warning(formats.escape(sentence, 1000), icon=":material/warning:")
            st.button("Close", key=f"close-notice-{number}", on_click=closed.add, args=(sentence,))


st.set_page_config(page_icon=LOGO, layout="wide", initial_sidebar_state=SIDEBAR)
st.logo(WORDMARK, size="large", icon_image=LOGO)
page = st.navigation(
    [
        st.Page(
            "overview.py",
            title="Overview",
            icon=":material/dashboard:",
            default=True,
            help="What runs, what waits and what ended lately.",
        ),
        st.Page(
            "submit.py",
            title="Submit",
            icon=":material/add_circle:",
            url_path="submit",
            help="Start a built-in training or a script of your own.",
        ),
        st.Page(
            "jobs.py",
            title="Jobs",
            icon=":material/list:",
            url_path="jobs",
            help="All jobs: search, filter, sort, cancel.",
        ),
        st.Page("job.py", title="Job", url_path="job", visibility="hidden"),
        st.Page(
            "failures.py",
            title="Failures",
            icon=":material/error:",
            url_path="failures",
            help="What went wrong, why, and what to try.",
        ),
        st.Page(
            "gpu.py",
            title="GPU",
            icon=":material/memory:",
            url_path="gpu",
            help="Memory now, and before and after each job's end.",
        ),
    ]
)
st.set_page_config(page_title=f"{page.title} · Signalbox")
turn()
keys.listen()
try:
    runtime.service()
except runtime.NotRunningError as error:
    st.error(str(error), title="Signalbox is not running")
    st.stop()
with st.sidebar:
    st.fragment(strip, run_every=2)()
    keys.button()
notices()
trouble.run_page(page.run, page.url_path)
