"""Parts of a page that keep themselves up to date."""

from collections.abc import Callable
from typing import Final

import streamlit as st

from pages.parts.trouble import told

NEXT: Final = "next-page"

_top = st.components.v2.component(
    "signalbox_top",
    js="""
const begun = new WeakSet()
export default function ({ parentElement }) {
  if (begun.has(parentElement)) return
  begun.add(parentElement)
  document.querySelector('[data-testid="stMain"]')?.scrollTo(0, 0)
}
""",
)


def live(draw: Callable[[], bool], going: bool, idle_seconds: float | None = None) -> None:
    """Draw now and again each second while something is `going`, else every `idle_seconds`.

    `draw` says whether something still is; when that changes the whole page runs once more, and
    with it the pace. None: nothing can change any more, so it is drawn once.
    """

    pace = 1 if going else idle_seconds

    def part() -> None:
        with told():
            if draw() != going:
                st.rerun()

    if pace is None:
        with st.container():  # as a fragment has one: what is in it stays the same elements
            draw()
    else:
        st.fragment(part, run_every=pace)()


def watch(read: Callable[[], object], seconds: float = 2) -> None:
    """Run the whole page again when what `read` answers is no longer what it was."""
    seen = read()

    def part() -> None:
        with told():
            if read() != seen:
                st.rerun()

    st.fragment(part, run_every=seconds)()


def go_to_job(job_id: int) -> None:
    """From a button's callback: run the whole page, which then turns to this job's page."""
    go_to("job.py", id=str(job_id))
    st.rerun()


def go_to(page: str, **query: str) -> None:
    """From a callback of what lies in no fragment: turn to another page.

    A callback runs before the list of pages is known, so `turn` goes there once it is.
    """
    st.session_state[NEXT] = page, query


def turn() -> None:
    """Go to the page that a callback asked for, if one did."""
    page, query = st.session_state.pop(NEXT, (None, {}))
    if page is not None:
        st.switch_page(page, query_params=query)


def start_at_top(place: str) -> None:
    """Show a new page from its beginning; Streamlit leaves it scrolled as the page before was."""
    _top(key=f"top-{place}", height=0)
