"""What the database has against something: said in its place, and tried again where it was read."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

import streamlit as st

from backend.service import QueueFullError
from backend.store import StoreError
from pages.parts import formats

REFUSED: Final = "refused"
PAGE: Final = "page-shown"
VISIT: Final = "visit"
"""How many pages this browser has turned to."""
AGAIN_SECONDS: Final = 2


class Refusal(NamedTuple):
    """What the last click could not do."""

    spot: str
    title: str
    sentence: str


def run_page(run: Callable[[], None], name: str) -> None:
    """Run a page; where it cannot be read say so, and run it again until it can."""
    if st.session_state.get(PAGE) != name:
        st.session_state[PAGE] = name
        st.session_state[VISIT] = st.session_state.get(VISIT, 0) + 1
        st.session_state.pop(REFUSED, None)
    try:
        run()
    except StoreError as error:
        _say(error)
        _run_again()
        st.stop()  # ends it so that fields which were not drawn keep what was typed


@contextmanager
def told() -> Iterator[None]:
    """Say in this place what could not be read; for a part that redraws itself.

    Such a part must not hold another: while the outer one is drawn anew Streamlit drops what it had
    begun to send of it, but not what it had of the inner one, at which the browser's side breaks.
    """
    try:
        yield
    except StoreError as error:
        _say(error)


def acting(spot: str, title: str, do: Callable[..., None]) -> Callable[..., None]:
    """A button's callback; what it cannot do is kept for `said`, until the next click.

    Args:
        spot: Where it is said.
        title: What did not happen, as in `It was not queued`.
        do: What the button does.
    """

    def act(*args: object) -> None:
        st.session_state.pop(REFUSED, None)
        try:
            do(*args)
        except (StoreError, QueueFullError) as error:
            refuse(spot, title, str(error))

    return act


def refuse(spot: str, title: str, sentence: str) -> None:
    """Keep what a click could not do for `said`."""
    st.session_state[REFUSED] = Refusal(spot, title, sentence)


def said(spot: str) -> None:
    """Say what the last click here could not do, if it could not."""
    refused: Refusal | None = st.session_state.get(REFUSED)
    if refused and refused.spot == spot:
        st.error(formats.escape(refused.sentence, 500), title=refused.title)


def _say(error: StoreError) -> None:
    st.error(formats.escape(error, 500), icon=":material/database_off:")


def _run_again() -> None:
    drawn = False

    def part() -> None:
        nonlocal drawn
        if drawn:
            st.rerun()
        drawn = True

    st.fragment(part, run_every=AGAIN_SECONDS)()
