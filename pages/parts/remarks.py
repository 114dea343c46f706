"""What a reader writes beside a job on its page: name, star, tags and note; and deleting it."""

from collections.abc import Callable

import streamlit as st

from backend import runtime
from backend.labels import MAX_NOTE, MAX_TAG, LabelError
from backend.service import UnknownJobError
from backend.submission import MAX_NAME
from backend.views import JobView
from pages.parts import details, formats, job_acts, trouble


def name(job: JobView) -> None:
    """The job's name as the page's title, or the field in which it is changed."""
    changing = f"renaming-{job.job_id}"
    if st.session_state.get(changing):
        with st.container(horizontal=True, vertical_alignment="bottom", gap="small"):
            st.text_input(
                "Name",
                value=job.name,
                max_chars=MAX_NAME,
                key=f"name-{job.job_id}",
                on_change=_renamed,
                args=(job, changing),
            )
            st.button(
                "Save",
                key=f"rename-save-{job.job_id}",
                type="primary",
                on_click=_renamed,
                args=(job, changing),
            )
            st.button(
                "Keep as it is",
                key=f"rename-not-{job.job_id}",
                on_click=st.session_state.pop,
                args=(changing, None),
            )
    else:
        st.title(formats.escape(job.name) or f"Job {job.job_id}", anchor=False)


def line(job: JobView) -> None:
    """Star, tags, and the buttons that change what is written beside the job; then its note."""
    service = runtime.service()
    with st.container(
        horizontal=True, vertical_alignment="center", gap="medium", key=f"remarks-{job.job_id}"
    ):
        st.button(
            "Starred" if job.starred else "Star",
            key=f"star-{job.job_id}",
            icon=":material/star:",
            type="tertiary",
            on_click=_writing(job, lambda: service.label(job.job_id, starred=not job.starred)),
        )
        st.button(
            "Rename",
            key=f"rename-{job.job_id}",
            icon=":material/edit:",
            type="tertiary",
            on_click=st.session_state.update,
            args=({f"renaming-{job.job_id}": True},),
        )
        with st.popover("Tags and note", icon=":material/label:", type="tertiary"):
            editor(job)
        if job.status.ended:
            st.button(
                "Delete",
                key=f"delete-{job.job_id}",
                icon=":material/delete:",
                type="tertiary",
                on_click=_ask,
                args=(job.job_id,),
            )
        if job.tags:
            with st.container(horizontal=True, width="content", key=f"labels-{job.job_id}"):
                for tag in job.tags:
                    st.badge(formats.escape(tag, MAX_TAG), icon=":material/label:", color="gray")
    if job.note:
        details.verbatim("note", job.note, "")


def editor(job: JobView) -> None:
    """The fields for tags and a note."""
    tags_key, note_key = f"tags-{job.job_id}", f"note-{job.job_id}"
    st.text_input("Tags, separated by commas", value=", ".join(job.tags), key=tags_key)
    st.text_area("Note", value=job.note, max_chars=MAX_NOTE, key=note_key, height=160)

    def write() -> None:
        tags, note = st.session_state[tags_key], st.session_state[note_key]
        runtime.service().label(job.job_id, tags=tags.split(","), note=note)

    st.button("Save", key=f"save-remarks-{job.job_id}", on_click=_writing(job, write))


def _renamed(job: JobView, changing: str) -> None:
    typed = st.session_state[f"name-{job.job_id}"]
    _writing(job, lambda: runtime.service().label(job.job_id, name=typed))()
    st.session_state.pop(changing, None)


def _writing(job: JobView, write: Callable[[], None]) -> Callable[..., None]:
    spot, title = f"job-{job.job_id}", "It was not written"

    def act() -> None:
        try:
            write()
        except LabelError as error:
            trouble.refuse(spot, title, str(error))
        except UnknownJobError:
            pass  # deleted meanwhile, as the page will say

    return trouble.acting(spot, title, act)


def _ask(job_id: int) -> None:
    st.session_state[job_acts.DELETE] = [job_id]
    st.rerun()


def deleting() -> None:
    """Ask before a job is deleted, if its button was pressed; once it is, go to all jobs."""
    if st.session_state.pop(job_acts.DELETED, None):
        st.switch_page("jobs.py")
    job_acts.ask()
