"""The head of a job's page: its name, its state, and the buttons that act on it."""

import streamlit as st

from backend.views import JobView
from pages.parts import cards, formats, trouble


def heading(job: JobView) -> None:
    """Name, lamp, and the buttons that act on this job.

    Each button has a place of its own: none comes to lie where another just was, under a click.
    """
    with st.container(horizontal=True, vertical_alignment="center", wrap=False):
        with st.container(width="stretch"):
            st.title(formats.escape(job.name) or f"Job {job.job_id}", anchor=False)
        with st.container(width=84, horizontal_alignment="right"):
            if job.status.ended:
                st.space(1)
            else:
                cards.cancel_button(job, "job")
    with st.container(horizontal=True, vertical_alignment="center"):
        cards.show_lamp(cards.lamp_of(job))
        st.caption(" · ".join(life(job)), width="content")
        if job.parent_id is not None:
            st.page_link(
                "job.py",
                label=f"retry of job {job.parent_id}",
                query_params={"id": str(job.parent_id)},
            )
        st.space("stretch")
        if cards.stalled(job):
            cards.extend_button(job, "job")
        st.page_link(
            "submit.py",
            label="Submit like this",
            icon=":material/content_copy:",
            query_params={"like": str(job.job_id)},
        )
        with st.container(width=92, horizontal_alignment="right"):
            if job.status.ended:
                cards.retry_button(job.job_id, "job")
            else:
                st.space(1)
    trouble.said(f"job-{job.job_id}")


def life(job: JobView) -> list[str]:
    """The job's number, recipe and times, in a line."""
    parts = [f"Job {job.job_id}", formats.escape(job.recipe)]
    if job.finished_at:
        return [*parts, *cards.ran(job), f"ended {formats.ago(job.finished_at)}"]
    if job.started_at:
        return [*parts, f"started {formats.ago(job.started_at)}"]
    return [*parts, f"submitted {formats.ago(job.created_at)}"]
