"""The first page: figures at a glance, running jobs, the queue, and what ended lately."""

from collections.abc import Mapping, Sequence

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.recipes import RECIPES
from backend.submission import Submission
from backend.views import JobFilter, JobView
from pages.parts import cards, trouble
from pages.parts.live import go_to_job, live

SHOWN = (
    JobStatus.RUNNING,
    JobStatus.QUEUED,
    JobStatus.PAUSED,
    JobStatus.COMPLETED,
    JobStatus.FAILED,
    JobStatus.CANCELLED,
)
ENDED = frozenset(status for status in JobStatus if status.ended)


def overview() -> bool:
    """Draw the page; say whether anything runs or waits."""
    service = runtime.service()
    counts = service.counts()
    if not any(counts.values()):
        first_visit()
        return False
    panel(counts)
    running = service.jobs(JobFilter(statuses=frozenset({JobStatus.RUNNING}), limit=20)).jobs
    if running:
        st.header("Running")
        with st.grid(2, min_column_width=380):
            for job in running:
                cards.card(job, "card")
    queued = service.jobs(
        JobFilter(statuses=frozenset({JobStatus.QUEUED}), descending=False, limit=10)
    )
    if queued.total:
        st.header("Queue")
        listing(queued.jobs, "queue")
        rest(queued.total - len(queued.jobs), "queued")
    paused = service.jobs(JobFilter(statuses=frozenset({JobStatus.PAUSED}), limit=10))
    if paused.total:
        st.header("Paused")
        listing(paused.jobs, "paused")
        rest(paused.total - len(paused.jobs), "paused")
    ended = service.jobs(JobFilter(statuses=ENDED, sort="finished", limit=8))
    if ended.total:
        st.header("Ended lately")
        listing(ended.jobs, "ended")
        rest(ended.total - len(ended.jobs), "ended")
    return bool(counts[JobStatus.RUNNING] or counts[JobStatus.QUEUED])


def panel(counts: Mapping[JobStatus, int]) -> None:
    """A lamp for each state, lit where a job is, with how many; each leads to those jobs."""
    with st.container(horizontal=True, key="panel"):
        for status in SHOWN:
            lamp = cards.LAMPS[status]
            color = lamp.color if counts[status] else "gray"
            st.page_link(
                "jobs.py",
                label=f":{color}-badge[{lamp.icon}] **{counts[status]:,}** :small[{lamp.word}]",
                query_params={"state": status.value},
            )


def listing(jobs: Sequence[JobView], place: str) -> None:
    with st.container(border=True, gap="xsmall", key=f"list-{place}"):
        for job in jobs:
            cards.row(job, place)


def rest(number: int, state: str) -> None:
    if number > 0:
        st.page_link("jobs.py", label=f"{number:,} more {state}", icon=":material/arrow_forward:")


def first_visit() -> None:
    """What an empty data folder shows: what this is, and one button that shows it at work."""
    with st.container(border=True, gap="small", key="first-visit"):
        st.header("See a training run")
        st.text(
            "Signalbox runs PyTorch trainings on this machine and watches them: a job that stops "
            "reporting is ended and explained, a cancelled one gives its memory back, and "
            "closing the browser or the server loses nothing."
        )
        st.text(f"{RECIPES['digits'].sentence} Watch its loss fall on the next page.")
        with st.container(horizontal=True, vertical_alignment="center"):
            st.button(
                "Train on digits now",
                type="primary",
                icon=":material/play_arrow:",
                key="first-run",
                on_click=trouble.acting("first-run", "It was not queued", run_digits),
            )
            st.page_link("submit.py", label="Or submit your own", icon=":material/add_circle:")
        trouble.said("first-run")


def run_digits() -> None:
    job_id = runtime.service().submit(Submission(recipe="digits", name="First digits"))
    go_to_job(job_id)


st.title("Overview")
counts = runtime.service().counts()
live(overview, bool(counts[JobStatus.RUNNING] or counts[JobStatus.QUEUED]), idle_seconds=5)
