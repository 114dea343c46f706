"""Where is it? A running job is asked, and says in a sentence what it does at this moment."""

from datetime import UTC, datetime
from typing import Final, NamedTuple

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from backend import runtime
from backend.models import JobStatus
from backend.views import JobView
from pages.parts import cards, details, formats, heading, times

STACKS_HEIGHT: Final = 320  # pixels


class Answer(NamedTuple):
    """What a job said when it was asked."""

    sentence: str
    stacks: str
    at: datetime


def button(job: JobView) -> DeltaGenerator | None:
    """What a running job says that it is doing and what is done with it, the button that finds out
    more, and the last answer.

    Returns the place for a new answer where the button was pressed, for `ask`.
    """
    if job.status != JobStatus.RUNNING:
        return None
    with st.container(horizontal=True, vertical_alignment="center", key=f"doing-{job.job_id}"):
        with st.container(width="stretch", gap="xxsmall"):
            if words := cards.phase(job):
                # No st.badge: it escapes brackets a second time.
                st.markdown(f":gray-badge[:material/flag: {words}]")
            if note := heading.under_way(job):
                st.caption(note)
        pressed = st.button(
            "Where is it?",
            key=f"where-{job.job_id}",
            icon=":material/location_searching:",
            help="Looks what each of its processes does, and says it in a sentence; the job goes "
            "on meanwhile",
        )
    place = st.container()
    if pressed:
        return place
    with place:
        _show(job.job_id)
    return None


def ask(job: JobView, place: DeltaGenerator) -> None:
    """Find out. It takes seconds, so it comes last: by then all the rest of the page is drawn."""
    with place:
        with st.spinner("Looking at its processes"):
            sentence = runtime.service().where(job.job_id)
        if sentence is None:
            st.info("It has no process that could be asked at this moment.")
            return
        taken = runtime.service().stacks(job.job_id)
        st.session_state[_key(job.job_id)] = Answer(sentence, taken, datetime.now(UTC))
        _show(job.job_id)


def _show(job_id: int) -> None:
    answer: Answer | None = st.session_state.get(_key(job_id))
    if answer is None:
        return
    with st.container(border=True, gap="small", key=f"whereabouts-{job_id}"):
        st.markdown(f"**{formats.prose(answer.sentence)}**")
        times.caption(f"Taken {times.ago(answer.at)}")
        with st.expander("Stacks", icon=":material/account_tree:"):
            details.verbatim(
                f"where-{job_id}", answer.stacks, "No stacks were taken.", STACKS_HEIGHT
            )


def _key(job_id: int) -> str:
    return f"where-answer-{job_id}"
