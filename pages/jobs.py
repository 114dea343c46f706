"""All jobs: search, filter, sort, and what can be done with one or with many."""

from dataclasses import dataclass, replace

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.search import NAME, parse
from backend.views import JobFilter, JobView
from pages.parts import buttons, cards, formats, job_acts, job_table, trouble
from pages.parts.live import live

ROWS = 50
SHOWN = "jobs-shown"
EXAMPLES = {
    "lr>0.001 failed": "failed jobs with a learning rate above 0.001",
    'recipe:digits "two words"': "a recipe, and words that stand together",
    "tag:paper is:starred -cancelled": "a tag, a star, and what is left out",
    "best<0.05 epochs>=10": "the best held-out loss, and a parameter",
    "timeout duration>1h": "jobs that timed out after more than an hour",
}


@dataclass(frozen=True)
class Shown:
    """Which jobs are on the page, in which order: they stay until the reader asks for others."""

    asked: tuple[object, ...]
    ids: tuple[int, ...]
    total: int
    newest: int


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
    st.query_params.pop("page", None)


def wanted(text: str, states: frozenset[JobStatus]) -> JobFilter:
    """What the address asks for; what makes no sense in it is as if it were not there."""
    sort = st.query_params.get("sort", "-id")
    key = sort.removeprefix("-")
    if not NAME.fullmatch(key):
        sort, key = "-id", "id"
    page = st.query_params.get("page", "1")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < 9 else 1
    return JobFilter(states, text, key, sort.startswith("-"), ROWS, ROWS * (max(1, number) - 1))


def shown(asked: JobFilter) -> tuple[Shown, list[JobView]]:
    """The jobs on the page as they are now; asked for anew when the reader did something."""
    service = runtime.service()
    question = (*vars(asked).values(), st.session_state.get(trouble.VISIT))
    kept: Shown | None = st.session_state.get(SHOWN)
    anew = st.session_state.pop(job_acts.ASK, False)
    if kept is not None and kept.asked == question and not anew:
        return kept, list(service.these(kept.ids))
    newest = service.newest_id()
    found = service.jobs(asked)
    if found.total and not found.jobs:  # a page behind the last one
        last = ROWS * ((found.total - 1) // ROWS)
        found = service.jobs(replace(asked, offset=last))
    kept = Shown(question, tuple(job.job_id for job in found.jobs), found.total, newest)
    st.session_state[SHOWN] = kept
    return kept, list(found.jobs)


def listing(asked: JobFilter) -> bool:
    """Draw the table; say whether a job in it can change without a click."""
    service = runtime.service()
    job_acts.deletions()
    trouble.said(job_acts.SPOT)
    asked = wanted(asked.text, asked.statuses)  # a click in the table may have changed it
    kept, jobs = shown(asked)
    fresh = service.newer(kept.newest, asked)
    if not kept.total and not fresh:
        nothing(asked)
        return False
    pages = max(1, -(-kept.total // ROWS))
    page = min(pages, asked.offset // ROWS + 1)
    columns = job_table.chosen(st.query_params.get("cols", ""))
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
        "first": ROWS * (page - 1) + 1,
        "fresh": fresh,
        "gone": [job_id for deletion in service.deletions() for job_id in deletion.job_ids],
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
