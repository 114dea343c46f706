"""Search conditions as SQLite has them. What a reader typed is in bound parameters only."""

import math
import sqlite3
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import ColumnElement, and_, case, exists, false, func, literal, not_, or_, select
from sqlmodel import col

from backend.arguments import argument, spellings
from backend.models import Job, JobStatus
from backend.search import (
    Compared,
    Condition,
    InField,
    InState,
    Operator,
    Search,
    Starred,
    TextField,
    Words,
    long_name,
)

_WAITS_AFTER_A_PAUSE: Final = and_(
    col(Job.status).in_((JobStatus.PAUSED, JobStatus.QUEUED)), col(Job.paused_at).is_not(None)
)
_UNTIL: Final = func.coalesce(
    col(Job.finished_at), case((_WAITS_AFTER_A_PAUSE, col(Job.paused_at))), func.current_timestamp()
)
DURATION: Final = (
    func.julianday(_UNTIL) - func.julianday(col(Job.started_at)) - col(Job.paused_seconds) / 86400
)
"""How long a job ran, in days; NULL where it never did."""

_TEXTS: Final[Mapping[TextField, Any]] = {
    "name": col(Job.name),
    "recipe": col(Job.recipe),
    "error": col(Job.error),
    "note": col(Job.note),
}
_TIMES: Final[Mapping[str, Any]] = {
    "duration": DURATION * 86400,
    "age": (func.julianday(func.current_timestamp()) - func.julianday(col(Job.created_at))) * 86400,
    "timeout": col(Job.timeout_seconds),
}
FIGURES: Final = frozenset((
    "current_step", "total_steps", "best_step", "current_epoch", "total_epochs",
    "progress_percent", "train_loss", "eval_loss", "perplexity", "learning_rate", "grad_norm",
    "best_eval_loss", "samples_per_second", "steps_per_second", "elapsed_seconds",
    "remaining_seconds", "gpu_memory_allocated_gb", "gpu_memory_reserved_gb",
))  # fmt: skip
"""What `progress.Reading` knows by its own name; whatever else a job reports is in its `extra`."""

_COLUMNS: Final[Mapping[str, Any]] = {"id": col(Job.id), "gpus": col(Job.gpus)}


def conditions(search: Search) -> list[ColumnElement[bool]]:
    """What has to hold of a job that a search finds."""
    return [_condition(condition) for condition in search.conditions]


def value_of(name: str) -> ColumnElement[Any]:
    """The value of a parameter, of a script's argument or of a figure, by its name; NULL where a
    job has none. The name must be one by `search.NAME`.

    What was asked for comes first: at its end a training's learning rate often is 0.
    """
    long = long_name(name)
    spelled = dict.fromkeys((name, long, name.replace("-", "_")))
    params = [_extract(Job.params, f'$."{spelling}"') for spelling in spelled]
    figure = f'$."{long}"' if long in FIGURES else f'$.extra."{name}"'
    return func.coalesce(
        case(
            (
                col(Job.recipe) == "script",
                case((_may_hold(name), func.signalbox_argument(col(Job.params), name))),
            ),
            else_=func.coalesce(*params, None),
        ),
        _extract(Job.progress, figure),
    )


def _extract(column: Any, path: str) -> Any:
    return func.json_extract(col(column), path)


def _may_hold(name: str) -> ColumnElement[bool]:
    """Whether a script's parameters can hold such an argument at all: a quick look at the text."""
    parts = {max(spelled.split("-"), key=len) for spelled in spellings(name)}
    return or_(*(func.instr(col(Job.params), part) > 0 for part in sorted(parts)))


def register(connection: sqlite3.Connection) -> None:
    """Give a connection the function that `value_of` needs."""
    connection.create_function("signalbox_argument", 2, argument, deterministic=True)


def _condition(condition: Condition) -> ColumnElement[bool]:
    match condition.wanted:
        case Words(text, number):
            fits = _has_words(text, number)
        case InField("tag", text):
            fits = _tag(lambda tag: func.lower(tag) == text.lower())
        case InField(field, text):
            fits = _TEXTS[field].contains(text, autoescape=True)
        case InState(statuses, kinds):
            fits = or_(col(Job.status).in_(statuses), col(Job.failure_kind).in_(kinds))
        case Starred():
            fits = col(Job.starred).is_(True)
        case Compared() as compared:
            fits = _compared(compared)
    # NULL, of a text or a figure that a job has not, is no yes.
    return not_(func.coalesce(fits, false())) if condition.excludes else fits


def _has_words(text: str, number: int | None) -> ColumnElement[bool]:
    either = [column.contains(text, autoescape=True) for column in _TEXTS.values()]
    either.append(_tag(lambda tag: tag.contains(text, autoescape=True)))
    if number is not None:
        either.append(col(Job.id) == number)
    return or_(*either)


def _tag(fits: Callable[[Any], ColumnElement[bool]]) -> ColumnElement[bool]:
    tags = func.json_each(col(Job.tags)).table_valued("value", joins_implicitly=True)
    # Most jobs have none, and looking into the list costs more than all the rest.
    return and_(
        func.length(col(Job.tags)) > 2, exists(select(literal(1)).where(fits(tags.c.value)))
    )


def _compared(compared: Compared) -> ColumnElement[bool]:
    value = _TIMES.get(compared.name)
    if value is None:
        value = _COLUMNS.get(compared.name)
    if value is None:
        value = value_of(compared.name)
    fits: ColumnElement[bool]
    if compared.number is None:
        text = compared.text.lower()
        truth = {"true": "1", "false": "0"}.get(text, text)  # as SQLite has them
        fits = func.lower(value).in_((text, truth))
        fits = not_(fits) if compared.operator == "!=" else fits
    elif compared.operator == "!=":
        fits = value != compared.number
    else:
        # For SQLite every text is larger than any number; between two numbers there is none.
        fits = value.between(*_range(compared.operator, compared.number))
    if compared.operator != "=":
        return fits
    named = f"{compared.name}={compared.text}"
    return or_(fits, col(Job.name).contains(named, autoescape=True))


def _range(sign: Operator, number: float) -> tuple[float, float]:
    """The lowest and the highest that fits."""
    match sign:
        case "<":
            return -math.inf, math.nextafter(number, -math.inf)
        case "<=":
            return -math.inf, number
        case ">":
            return math.nextafter(number, math.inf), math.inf
        case ">=":
            return number, math.inf
        case _:
            return number, number
