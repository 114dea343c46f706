"""Which jobs the page of all jobs shows: what its address asks for, and what that came to.

Their order does not move under the pointer: they stay until the reader asks for others.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

import streamlit as st

from backend import runtime
from backend.models import JobStatus
from backend.search import NAME
from backend.views import JobFilter, JobView
from pages.parts import trouble

ROWS: Final = 50
SHOWN: Final = "jobs-shown"
ANEW: Final = "jobs-shown-anew"
ADDRESS: Final = "jobs-address"
SETTLE_SECONDS: Final = 5.0
"""So long after a choice was written into the address a browser may still send the one before."""

CHOICES: Final = ("sort", "page", "cols")


@dataclass(frozen=True)
class Shown:
    """The jobs on the page, in their order."""

    asked: tuple[object, ...]
    ids: tuple[int, ...]
    total: int
    newest: int


@dataclass(frozen=True)
class _Written:
    values: Mapping[str, str]
    at: float  # on the monotonic clock
    visit: int


def read() -> Mapping[str, str]:
    """What the address chooses: `sort`, `page`, `cols`, as far as they are there."""
    written: _Written | None = st.session_state.get(ADDRESS)
    if (
        written is not None
        and written.visit == st.session_state.get(trouble.VISIT)
        and time.monotonic() - written.at < SETTLE_SECONDS
    ):
        return written.values
    return {name: st.query_params[name] for name in CHOICES if name in st.query_params}


def write(**values: str | None) -> None:
    """Write choices into the address; None: as it is without."""
    changed = {**read(), **values}
    kept = {name: value for name, value in changed.items() if value is not None}
    visit = st.session_state.get(trouble.VISIT, 0)
    st.session_state[ADDRESS] = _Written(kept, time.monotonic(), visit)
    for name in CHOICES:
        if name in kept:
            st.query_params[name] = kept[name]
        elif name in st.query_params:
            del st.query_params[name]


def ask_anew() -> None:
    """The reader did something to the jobs themselves."""
    st.session_state[ANEW] = True


def wanted(text: str, states: frozenset[JobStatus]) -> JobFilter:
    """What the address asks for; what makes no sense in it is as if it were not there."""
    address = read()
    sort = address.get("sort", "-id")
    key = sort.removeprefix("-")
    if not NAME.fullmatch(key):
        sort, key = "-id", "id"
    page = address.get("page", "1")
    number = int(page) if page.isascii() and page.isdecimal() and len(page) < 9 else 1
    return JobFilter(states, text, key, sort.startswith("-"), ROWS, ROWS * (max(1, number) - 1))


def shown(asked: JobFilter) -> tuple[Shown, list[JobView]]:
    """The jobs on the page as they are now; asked for anew when the reader did something."""
    service = runtime.service()
    question = (*vars(asked).values(), st.session_state.get(trouble.VISIT))
    kept: Shown | None = st.session_state.get(SHOWN)
    anew = st.session_state.pop(ANEW, False)
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
