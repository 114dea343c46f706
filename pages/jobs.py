"""All jobs: search, filter, sort, and what can be done with one or with many."""

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.search import parse
from backend.views import JobFilter
from pages.parts import buttons, cards, formats, job_acts, job_table, trouble
from pages.parts.job_question import ROWS, read, shown, wanted, write
from pages.parts.live import live

EXAMPLES = {
    "lr>0.001 failed": "failed jobs with a learning rate above 0.001",
    'recipe:digits "two words"': "a recipe, and words that stand together",
    "tag:paper is:starred -cancelled": "tagged and starred, but not the cancelled ones",
    "best<0.05 epochs>=10": "the best held-out loss, and a parameter",
    "timeout duration>1h": "jobs that timed out after more than an hour",
}


def search() -> tuple[str, frozenset[JobStatus]]:
    """The field and the states; they live in the address."""
    with st.container(horizontal=True, vertical_alignment="bottom"):
        text = st.text_input(
            "Search",
            key="q",
            bind="query-params",
            type="search",
            placeholder="Words, lr>0.001, recipe:digits, tag:paper, failed, or a job's number",
            on_change=from_the_first_page,
        )
        with st.popover("", icon=":material/help:", help="How to search"):
            for example, meaning in EXAMPLES.items():
                st.markdown(f"`{example}`  \n{meaning}")
            st.caption("Also name: note: error: and any parameter or figure with < > = or !=.")
    states = st.pills(
        "State",
        [status.value for status in JobStatus],
        selection_mode="multi",
        key="state",
        bind="query-params",
        label_visibility="collapsed",
        on_change=from_the_first_page,
    )
    for problem in parse(text or "").problems:
        st.caption(f":material/help: {formats.escape(problem, 300)}")
    return text or "", frozenset(map(JobStatus, states))


def from_the_first_page() -> None:
    write(page=None)


def listing(asked: JobFilter) -> bool:
    """Draw the table; say whether a job in it can change without a click."""
    service = runtime.service()
    deleted = service.deletions()
    job_acts.deletions(deleted)
    trouble.said(job_acts.SPOT)
    asked = wanted(asked.text, asked.statuses)  # a click in the table may have changed it
    kept, jobs = shown(asked)
    fresh = service.newer(kept.newest, asked)
    if not kept.total and not fresh:
        nothing(asked)
        return False
    pages = max(1, -(-kept.total // ROWS))
    page = min(pages, asked.offset // ROWS + 1)
    columns = job_table.chosen(read().get("cols", ""))
    killable = {job.job_id for job in jobs if buttons.is_cancelled_for_a_while(job)}
    zone = formats.zone(st.context.timezone)
    data = {
        "rows": job_table.rows(jobs, columns, killable=killable, zone=zone),
        "columns": job_table.heads(columns),
        "choices": job_table.choices(jobs, columns),
        "sort": asked.sort,
        "descending": asked.descending,
        "page": page,
        "pages": pages,
        "total": kept.total,
        "visit": st.session_state.get(trouble.VISIT, 0),
        "first": ROWS * (page - 1) + 1,
        "fresh": fresh,
        "gone": [job_id for deletion in deleted for job_id in deletion.job_ids],
    }
    job_table.table(data, job_acts.clicked)
    return any(map(cards.changes, jobs))


def nothing(asked: JobFilter) -> None:
    if asked.text or asked.statuses:
        st.info(
            "No job fits. Search for less, or choose other states; the question mark beside the "
            "field has examples.",
            icon=":material/search_off:",
        )
    else:
        st.info("No jobs yet. The first one appears here as soon as you submit it.")
        st.page_link("submit.py", label="Submit a job", icon=":material/add_circle:")


st.title("Jobs")
job_acts.turn()
asked_for = wanted(*search())
job_acts.ask()
live(lambda: listing(asked_for), any(map(cards.changes, shown(asked_for)[1])), idle_seconds=5)
