"""How long ago something was, with the exact time on hover, in the reader's zone."""

from datetime import datetime
from typing import Literal

import streamlit as st

from pages.parts import formats


def ago(moment: datetime | None) -> str:
    """`2 min ago`, for `caption`, as HTML."""
    return formats.moment(moment, formats.zone(st.context.timezone))


def caption(markdown: str, width: Literal["stretch", "content"] = "stretch") -> None:
    """A caption that may hold times; strangers' texts in it are escaped as elsewhere.

    It is Markdown and not `st.html`, which makes its elements anew at each change: what is read
    under the pointer would be gone within a second.
    """
    st.caption(formats.only_times(markdown), unsafe_allow_html=True, width=width)
