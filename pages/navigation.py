"""What Streamlit runs for every session: the list of pages, and the strip in the sidebar."""

from pathlib import Path

import streamlit as st

from backend import runtime
from pages.parts import formats, keys, trouble
from pages.parts.live import turn
from pages.parts.strip import strip

PARTS = Path(__file__).parent / "parts"
LOGO = str(PARTS / "logo.svg")
WORDMARK = str(PARTS / "wordmark.svg")
SIDEBAR = 240  # pixels


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
            "compare.py",
            title="Compare",
            icon=":material/stacked_line_chart:",
            url_path="compare",
            help="The curves, figures and parameters of several jobs side by side.",
        ),
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
    strip()
    keys.button()
notices()
trouble.run_page(page.run, page.url_path)
