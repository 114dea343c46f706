"""What is done by a click in the table of jobs, and what is asked and said of it."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import streamlit as st
from streamlit.errors import StreamlitAPIException

from backend import runtime
from backend.deletion import Deletion
from backend.labels import LabelError
from backend.search import NAME
from backend.service import UnknownJobError
from pages.parts import formats, job_question, job_table, trouble

SPOT: Final = "jobs"
DELETE: Final = "jobs-to-delete"
DELETED: Final = "jobs-were-deleted"
COMPARE: Final = "jobs-to-compare"
LEFT_OUT: Final = "jobs-left-out"
MAX_ACTED: Final = 1000
MAX_COMPARED: Final = 100


def clicked() -> None:
    """The callback of the table."""
    event = st.session_state[job_table.KEY].get("act")
    if isinstance(event, Mapping):
        do(event)


def do(event: Mapping[str, Any]) -> None:
    """Do what a click asks for: `{"do": "star", "ids": [12], "starred": true}`."""
    raw = event.get("ids") or [event.get("id")]
    ids = [int(i) for i in raw if isinstance(i, int | float)][:MAX_ACTED]
    st.session_state.pop(LEFT_OUT, None)
    match event.get("do"):
        case "sort" if NAME.fullmatch(str(event.get("key"))):
            job_question.write(
                sort=f"{'-' if event.get('descending') else ''}{event['key']}", page=None
            )
        case "page":
            job_question.write(page=str(int(event.get("page") or 1)))
        case "cols":
            keys = [key for key in event.get("keys") or () if NAME.fullmatch(str(key))]
            usual = tuple(keys) == job_table.DEFAULT
            job_question.write(cols=None if usual else ",".join(keys) or "recipe")
        case "show":
            job_question.ask_anew()
            job_question.write(page=None)
        case "delete":
            st.session_state[DELETE] = ids
            st.rerun()
        case "compare":
            st.session_state[COMPARE] = ids[:MAX_COMPARED]
            st.rerun()
        case "star":
            starred = bool(event.get("starred"))
            _each(
                ids, "Not all got their star", lambda i: runtime.service().label(i, starred=starred)
            )
        case "tag":
            _each(ids, "Not all were tagged", _tagging(event))
        case "cancel" | "kill" | "pause" | "resume" as verb:
            title, act = _ACTS[verb]
            _each(ids, title, act)


_ACTS: Final[Mapping[str, tuple[str, Callable[[int], object]]]] = {
    "cancel": ("It was not cancelled", lambda i: runtime.service().cancel(i)),
    "kill": ("It was not killed", lambda i: runtime.service().cancel(i, now=True)),
    "pause": ("It was not paused", lambda i: runtime.service().pause(i)),
    "resume": ("It was not resumed", lambda i: runtime.service().resume(i)),
}


def _each(ids: Sequence[int], title: str, act: Callable[[int], object]) -> None:
    def all_of_them() -> None:
        for job_id in ids:
            with suppress(UnknownJobError):
                act(job_id)

    try:
        trouble.acting(SPOT, title, all_of_them)()
    except LabelError as error:
        trouble.refuse(SPOT, title, str(error))


def _tagging(event: Mapping[str, Any]) -> Callable[[int], None]:
    tag, remove = str(event.get("tag") or ""), bool(event.get("remove"))

    def act(job_id: int) -> None:
        service = runtime.service()
        kept = [t for t in service.job(job_id).tags if t.casefold() != tag.strip().casefold()]
        service.label(job_id, tags=kept if remove else [*kept, tag])

    return act


# What needs the whole page


def turn() -> None:
    """Go to the comparison that a click asked for, if one did."""
    st.session_state.pop(DELETED, None)
    ids = st.session_state.pop(COMPARE, None)
    if ids:
        with suppress(StreamlitAPIException):
            st.switch_page("compare.py", query_params={"ids": ",".join(map(str, ids))})
        trouble.refuse(SPOT, "They cannot be compared here", "This server has no such page.")


def ask() -> None:
    """The question before a deletion, if one was asked for."""
    ids = st.session_state.get(DELETE)
    if ids:
        _sure(ids)


def _answered() -> None:
    st.session_state.pop(DELETE, None)


@st.dialog("Delete jobs", icon=":material/delete:", on_dismiss=_answered)
def _sure(ids: Sequence[int]) -> None:
    service = runtime.service()
    ended = [job.job_id for job in service.these(ids) if job.status.ended]
    measured = service.bytes_of(ended)
    size = ("" if measured.whole else "at least ") + formats.size(measured.bytes)
    if not ended:
        st.text("None of them has ended. Cancel them first.")
    else:
        st.markdown(f"Delete **{formats.some(len(ended), 'job')}** and **{size}** of files?")
        st.caption(
            "Their rows, logs, curves and checkpoints go. For 10 minutes they can be taken back; "
            "after that the disk space is free."
        )
    left = len(set(ids)) - len(ended)
    if ended and left:
        st.caption(f"{formats.some(left, 'job')} of the selection has not ended and stays.")
    with st.container(horizontal=True, horizontal_alignment="right"):
        st.button("Keep", key="delete-no", on_click=_answer, args=((),))
        if ended:
            st.button(
                f"Delete {formats.some(len(ended), 'job')}",
                key="delete-yes",
                type="primary",
                on_click=_answer,
                args=(ended,),
            )


def _answer(ids: Sequence[int]) -> None:
    """From a button of the question: do it, and run the whole page without the question."""
    _answered()
    if ids:
        trouble.acting(SPOT, "Nothing was deleted", lambda: delete(ids))()
        st.session_state[DELETED] = True
    st.rerun()


def delete(ids: Sequence[int]) -> None:
    """Delete jobs; those that were left out are named by `deletions`."""
    try:
        done = runtime.service().delete(ids)
    except UnknownJobError:  # somebody else was quicker with some of them
        done = runtime.service().delete([job.job_id for job in runtime.service().these(ids)])
    job_question.ask_anew()
    if done.left_out:
        st.session_state[LEFT_OUT] = " ".join(
            f"Job {job_id} was left out: {why}." for job_id, why in done.left_out.items()
        )


def deletions(found: Sequence[Deletion]) -> None:
    """What was deleted and can be taken back, each with the button for it."""
    if said := st.session_state.get(LEFT_OUT):
        st.warning(formats.escape(said, 500), icon=":material/info:")
    for deletion in found:
        key = f"{deletion.at:%H%M%S%f}"
        jobs = formats.some(len(deletion.job_ids), "job")
        size = ("" if deletion.whole else "at least ") + formats.size(deletion.bytes)
        with st.container(
            horizontal=True, vertical_alignment="center", border=True, key=f"deletion-{key}"
        ):
            with st.container(width="stretch"):
                st.markdown(
                    f":material/delete: {jobs} deleted. {size} will be freed in "
                    f"{formats.roughly(max(1.0, deletion.seconds_left))}."
                )
            st.button(
                "Undo",
                key=f"undo-{key}",
                icon=":material/undo:",
                on_click=trouble.acting(SPOT, "It was not taken back", lambda ids: undo(ids)),
                args=(deletion.job_ids,),
            )
            st.button(
                "Free it now",
                key=f"free-{key}",
                help="Remove the files at once; this cannot be undone",
                on_click=trouble.acting(
                    SPOT, "It was not freed", runtime.service().delete_for_good
                ),
                args=(deletion.job_ids,),
            )


def undo(ids: Sequence[int]) -> None:
    """Take a deletion back."""
    runtime.service().undelete(ids)
    job_question.ask_anew()
