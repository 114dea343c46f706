"""The table of jobs: what stands in it, as plain data. `job_acts` does what is clicked in it."""

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import Any, Final, NamedTuple

import streamlit as st

from backend.arguments import arguments_of
from backend.models import JobStatus
from backend.search import NAME
from backend.views import JobView
from pages.parts import buttons, cards, formats
from pages.parts.scripts import joined

KEY: Final = "jobs-table"
MAX_SHOWN_TAGS: Final = 4

Cell = dict[str, Any]


class Column(NamedTuple):
    """What can stand in a column."""

    title: str
    cell: Callable[[JobView, tzinfo], Cell]
    sort: str = ""  # what the store sorts by; empty: it cannot
    figures: bool = False  # on the right, as numbers are


def _figure(read: Callable[[JobView], float | None]) -> Callable[[JobView, tzinfo], Cell]:
    return lambda job, _: {"text": formats.figure(read(job))}


def _text(read: Callable[[JobView], str]) -> Callable[[JobView, tzinfo], Cell]:
    return lambda job, _: {"text": formats.one_line(read(job)) or formats.NOTHING}


def _time(read: Callable[[JobView], datetime | None]) -> Callable[[JobView, tzinfo], Cell]:
    return lambda job, zone: _moment(read(job), zone)


def _moment(moment: datetime | None, zone: tzinfo) -> Cell:
    if moment is None:
        return {"text": formats.NOTHING}
    return {"text": "", "time": moment.isoformat(), "exact": formats.exact(moment, zone)}


def _progress(job: JobView, _: tzinfo) -> Cell:
    if job.progress is None:
        return {"text": formats.NOTHING}
    return {"text": f"{job.progress:.0f} %", "share": round(job.progress / 100, 3)}


COLUMNS: Final[Mapping[str, Column]] = {
    "recipe": Column("Recipe", _text(lambda job: job.recipe), "recipe"),
    "progress": Column("Progress", _progress, "progress", True),
    "loss": Column("Train loss", _figure(lambda job: job.loss), "loss", True),
    "eval_loss": Column("Held-out", _figure(lambda job: job.eval_loss), "eval_loss", True),
    "best": Column("Best", _figure(lambda job: job.best_eval_loss), "best", True),
    "rate": Column("Samples/s", _figure(lambda job: job.samples_per_second), "rate", True),
    "duration": Column(
        "Duration",
        lambda job, _: {"text": formats.duration(job.elapsed_seconds)},
        "duration",
        True,
    ),
    "submitted": Column("Submitted", _time(lambda job: job.created_at), "id"),
    "ended": Column("Ended", _time(lambda job: job.finished_at), "finished"),
    "tags": Column("Tags", _text(lambda job: ", ".join(job.tags))),
    "note": Column("Note", _text(lambda job: job.note)),
}
"""Those that every job may have, by the name that the address has for them."""

DEFAULT: Final = ("progress", "loss", "best", "duration", "submitted")
SORTS: Final = frozenset(
    {"id", "name", "status", "starred", *(c.sort for c in COLUMNS.values() if c.sort)}
)
_OF_SCRIPTS: Final = frozenset(("script", "args", "python", "working_dir"))


def parameters_of(job: JobView) -> Mapping[str, Any]:
    """What a job was given, by name; of a script its arguments."""
    if job.recipe == "script":
        return arguments_of(job.params.get("args") or ())
    return {name: value for name, value in job.params.items() if name not in _OF_SCRIPTS}


def column_of(name: str) -> Column:
    """A column by its name; one that is not known is of a parameter."""
    if name in COLUMNS:
        return COLUMNS[name]

    def cell(job: JobView, _: tzinfo) -> Cell:
        value = parameters_of(job).get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return {"text": formats.figure(value)}
        plain = formats.one_line("" if value is None else value, 60)
        return {"text": plain or formats.NOTHING}

    return Column(name, cell, name, True)


def chosen(address: str) -> tuple[str, ...]:
    """The columns that an address names, as `recipe,loss,learning_rate`; without any, the usual."""
    names = [name for name in address.split(",") if NAME.fullmatch(name)]
    return tuple(dict.fromkeys(names))[:20] or DEFAULT


def choices(jobs: Sequence[JobView], columns: Sequence[str]) -> list[dict[str, str]]:
    """What the reader can choose from: the usual columns, then each parameter of a job shown."""
    found = {name for job in jobs for name in parameters_of(job) if NAME.fullmatch(name)}
    named = sorted((found | set(columns)) - COLUMNS.keys())
    usual = [{"key": key, "title": column.title, "of": ""} for key, column in COLUMNS.items()]
    return usual + [{"key": key, "title": key, "of": "Parameters"} for key in named]


def heads(columns: Sequence[str]) -> list[dict[str, Any]]:
    """The columns' headings, as the browser's side takes them."""
    made = [(key, column_of(key)) for key in columns]
    return [{"key": key, "title": c.title, "sort": c.sort, "figures": c.figures} for key, c in made]


def rows(
    jobs: Sequence[JobView],
    columns: Sequence[str],
    *,
    killable: Collection[int] = (),
    zone: tzinfo = UTC,
) -> list[dict[str, Any]]:
    """What stands in the table, a row for each job, as plain data; strangers' texts on one line.

    Args:
        columns: by their names, as `chosen` has them.
        killable: the jobs that were asked to end a while ago.
        zone: of the exact times.
    """
    return [_row(job, columns, job.job_id in killable, zone) for job in jobs]


def _row(job: JobView, columns: Sequence[str], killable: bool, zone: tzinfo) -> dict[str, Any]:
    lamp = cards.lamp_of(job)
    name = formats.one_line(job.name)
    submitted = formats.exact(job.created_at, zone)
    return {
        "id": job.job_id,
        "name": name or f"job {job.job_id}",
        "href": f"/job?id={job.job_id}",
        "tip": f"{formats.one_line(job.name, 200)}, submitted {submitted}",
        "word": lamp.word,
        "icon": lamp.icon.removeprefix(":material/").removesuffix(":"),
        "color": lamp.color,
        "said": _said(job),
        "tags": [formats.one_line(tag, 50) for tag in job.tags[:MAX_SHOWN_TAGS]],
        "more_tags": max(0, len(job.tags) - MAX_SHOWN_TAGS),
        "note": formats.one_line(job.note, 300),
        "starred": job.starred,
        "live": not job.status.ended,
        "cells": {key: column_of(key).cell(job, zone) for key in columns},
        "acts": _acts(job, killable),
    }


def _said(job: JobView) -> str:
    """What the reader should know beside the figures: what it waits for, or why it failed."""
    if job.status == JobStatus.QUEUED:
        return cards.waiting(job)
    return formats.one_line(job.error or "", 120) if job.status == JobStatus.FAILED else ""


def _acts(job: JobView, killable: bool) -> list[dict[str, Any]]:
    """The buttons that act on a job that lives. To pause a script that never said that it can
    takes more words than there is room for here: its own page has that button."""
    if job.status.ended:
        return []
    acts: list[dict[str, Any]] = []
    asked = job.requested is not None
    if job.status == JobStatus.PAUSED:
        help = "Queue it again, to go on from its last checkpoint"
        acts.append({"do": "resume", "label": "Resume", "help": help, "off": False})
    elif job.status == JobStatus.RUNNING and job.can_pause:
        help = buttons.what_a_pause_does(job)
        acts.append({"do": "pause", "label": "Pause", "help": help, "off": asked})
    if killable:
        acts.append({"do": "kill", "label": "Kill now", "help": buttons.WHAT_KILL_DOES})
    else:
        off = job.requested == "cancelling"
        help = f"End job {job.job_id}"
        acts.append({"do": "cancel", "label": "Cancel", "help": help, "off": off})
    return acts


_HERE: Final = Path(__file__).parent

_draw = st.components.v2.component(
    "signalbox_jobs",
    html='<div class="signalbox-jobs">\n</div>',
    css=(_HERE / "job_table.css").read_text(encoding="utf-8"),
    js=joined("times.js", "job_table.js"),
    isolate_styles=False,  # as what a page says is read and searched for: in one document
)


def table(data: Mapping[str, Any], on_act: Callable[[], None]) -> None:
    """Draw the table, or bring the one that is drawn up to date; `on_act` is called at a click."""
    _draw(key=KEY, data=dict(data), on_act_change=on_act)
