"""All jobs: search, filter, sort, and the buttons that act on those that live."""

from typing import Literal

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.views import JobFilter
from pages.parts import cards, formats
from pages.parts.live import live

ROWS = 25
Sort = tuple[Literal["id", "name", "status", "started", "finished", "duration"], bool]
SORTS: dict[str, Sort] = {
    "Newest first": ("id", True),
    "Oldest first": ("id", False),
    "Started, newest first": ("started", True),
    "Ended, newest first": ("finished", True),
    "Longest first": ("duration", True),
    "Name": ("name", False),
    "State": ("status", False),
}


def back_to_first_page() -> None:
    st.session_state["page"] = 1


def chosen() -> JobFilter:
    """The search, the filter and the order that the reader chose; they live in the address."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Search",
            key="q",
            bind="query-params",
            type="search",
            placeholder="Name, recipe, error, or a job's number",
            on_change=back_to_first_page,
        )
        sort = st.selectbox(
            "Order",
            list(SORTS),
            key="sort",
            bind="query-params",
            width=220,
            on_change=back_to_first_page,
        )
    states = st.pills(
        "State",
        [status.value for status in JobStatus],
        selection_mode="multi",
        key="state",
        bind="query-params",
        label_visibility="collapsed",
        on_change=back_to_first_page,
    )
    column, descending = SORTS[sort]
    return JobFilter(
        statuses=frozenset(map(JobStatus, states)),
        text=text or "",
        sort=column,
        descending=descending,
        limit=ROWS,
    )


def listing(wanted: JobFilter) -> bool:
    """One page of rows; says whether a job on it can change without a click."""
    service = runtime.service()
    found = service.jobs(wanted)
    if not found.total:
        nothing(wanted)
        return False
    first = wanted.offset + 1
    last = wanted.offset + len(found.jobs)
    st.caption(
        formats.some(found.total, "job")
        if found.total <= ROWS
        else f"{formats.some(found.total, 'job')}, {first:,} to {last:,} shown"
    )
    with st.container(border=True, gap="xsmall"):
        for job in found.jobs:
            cards.row(job, "jobs")
    return any(map(cards.changes, found.jobs))


def nothing(wanted: JobFilter) -> None:
    if wanted.text or wanted.statuses:
        st.info(
            "No job fits. Search for less, or choose other states.", icon=":material/search_off:"
        )
    else:
        st.info("No jobs yet. The first one appears here as soon as you submit it.")
        st.page_link("submit.py", label="Submit a job", icon=":material/add_circle:")


st.title("Jobs")
asked = chosen()
total = runtime.service().jobs(JobFilter(asked.statuses, asked.text, limit=1)).total
below = st.container()
pages = -(-total // ROWS)
number = st.pagination(pages, key="page", bind="query-params") if pages > 1 else 1
wanted = JobFilter(**{**vars(asked), "offset": ROWS * (min(number, max(1, pages)) - 1)})
with below:
    shown = runtime.service().jobs(wanted).jobs
    live(lambda: listing(wanted), any(map(cards.changes, shown)), idle_seconds=5)
