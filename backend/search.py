"""Reads what is typed into the search of jobs: `lr>0.001 recipe:digits failed -tag:old`.

Every condition has to hold. What cannot be understood is named in a sentence, and the rest counts.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from backend.curve import LONG_NAMES
from backend.models import FailureKind, JobStatus

MAX_TEXT: Final = 1000
MAX_CONDITIONS: Final = 30
"""SQLite takes only so many in one query."""

TextField = Literal["name", "recipe", "tag", "note", "error"]
Operator = Literal["<", "<=", ">", ">=", "=", "!="]

DURATIONS: Final = frozenset(("duration", "age", "timeout"))
"""What is compared as a time: `duration>1h30m`. The age of a job counts from its submission."""


@dataclass(frozen=True)
class Words:
    """A text that is anywhere in a job's texts, or its number."""

    text: str
    number: int | None = None


@dataclass(frozen=True)
class InField:
    """A text in one of a job's texts; a tag is meant as a whole."""

    field: TextField
    text: str


@dataclass(frozen=True)
class InState:
    """One of these states, or one of these kinds of failure."""

    statuses: frozenset[JobStatus] = frozenset()
    kinds: frozenset[FailureKind] = frozenset()


@dataclass(frozen=True)
class Starred:
    """Marked with a star."""


@dataclass(frozen=True)
class Compared:
    """A parameter, a figure or a time beside a value. A job that has no such thing does not fit,
    unless it is called so: `lr=3e-4` finds the name `sweep lr=3e-4` too."""

    name: str
    operator: Operator
    text: str
    number: float | None
    """None: it is no number, and is compared as a text. Seconds, of a time."""


@dataclass(frozen=True)
class Condition:
    """One part of a search."""

    wanted: Words | InField | InState | Starred | Compared
    excludes: bool = False


@dataclass(frozen=True)
class Search:
    """What was understood, and a sentence for each part that was not."""

    conditions: tuple[Condition, ...] = ()
    problems: tuple[str, ...] = ()


_FIELDS: Final[Mapping[str, TextField]] = {
    "name": "name", "recipe": "recipe", "tag": "tag", "note": "note", "error": "error",
}  # fmt: skip

STATES: Final[Mapping[str, InState]] = {
    **{status.value: InState(frozenset({status})) for status in JobStatus},
    **{kind.value: InState(kinds=frozenset({kind})) for kind in FailureKind},
    "timed-out": InState(kinds=frozenset({FailureKind.TIMEOUT})),
    "oom": InState(
        kinds=frozenset({FailureKind.GPU_OUT_OF_MEMORY, FailureKind.HOST_OUT_OF_MEMORY})
    ),
}
"""Words that stand for a state."""

_OF_COMPARISONS: Final[Mapping[str, str]] = {
    **LONG_NAMES,
    "best": "best_eval_loss",
    "progress": "progress_percent",
    "rate": "samples_per_second",
}
_NAME: Final = r"[A-Za-z_][A-Za-z0-9_.-]{0,63}"
NAME: Final = re.compile(_NAME)
"""What may be compared: the name of a parameter or of a figure."""

_SIGNS: Final = str.maketrans({"≥": ">=", "≤": "<=", "≠": "!=", "−": "-", "“": '"', "”": '"'})
_TOKEN: Final = re.compile(
    rf"""(?P<minus>-?)
    (?:
        (?P<field>[A-Za-z]+):(?:"(?P<quoted_value>[^"]*)(?P<value_end>"?)|(?P<value>[^\s"]*))
      | "(?P<quoted>[^"]*)(?P<end>"?)
      | (?P<name>{_NAME})\s*(?P<operator><=|>=|!=|==|=|<|>)\s*
        (?:"(?P<quoted_other>[^"]*)(?P<other_end>"?)|(?P<other>[^\s"]*))
      | (?P<number>(?:[Jj][Oo][Bb]\s*\#?|\#)\s*[0-9]{{1,18}}(?!\S))
      | (?P<word>\S+)
    )""",
    re.VERBOSE,
)
_NUMBER: Final = re.compile(r"(?:job\s*)?#?\s*([0-9]{1,18})", re.IGNORECASE | re.ASCII)
_DURATION: Final = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)(ms|s|min|m|h|d|w)", re.ASCII)
_SECONDS: Final = {
    "ms": 0.001, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800,
}  # fmt: skip


def long_name(name: str) -> str:
    """The name that a figure has, of one that people type: `lr` is `learning_rate`."""
    return _OF_COMPARISONS.get(name, name)


def parse(text: str) -> Search:
    """Read a search. Takes any text, and never raises."""
    conditions: list[Condition] = []
    problems: list[str] = []
    plain = " ".join(text.encode("utf-8", "replace").decode().replace("\0", " ").split())
    if len(plain) > MAX_TEXT:
        plain = plain[:MAX_TEXT]
        problems.append(f"Only the first {MAX_TEXT:,} characters are searched for.")
    for found in _tokens(plain.translate(_SIGNS), problems):
        if len(conditions) == MAX_CONDITIONS:
            problems.append(f"Only the first {MAX_CONDITIONS} conditions count.")
            break
        conditions.append(found)
    return Search(tuple(conditions), tuple(dict.fromkeys(problems)))


def _tokens(text: str, problems: list[str]) -> Iterator[Condition]:
    for token in _TOKEN.finditer(text):
        if any(token[at] == "" and token[of] is not None for at, of in _ENDS):
            problems.append("A quotation mark has no partner; the text is taken to its end.")
        condition = _understood(token, problems)
        if condition is not None:
            yield replace(condition, excludes=bool(token["minus"]))


_ENDS: Final = (("value_end", "quoted_value"), ("end", "quoted"), ("other_end", "quoted_other"))


def _understood(token: re.Match[str], problems: list[str]) -> Condition | None:
    if token["name"]:
        return _comparison(token, problems)
    if token["field"]:
        field = token["field"].lower()
        if field not in _EXAMPLES:  # an address or an error, rather: `RuntimeError: no`
            return Condition(Words(token[0].removeprefix("-").replace('"', "")))
        quoted = token["quoted_value"]
        return _field(field, token["value"] if quoted is None else quoted, problems)
    if token["quoted"] is not None:
        return Condition(Words(token["quoted"])) if token["quoted"].strip() else None
    word = token["number"] or token["word"]
    if word.lower() in STATES:
        return Condition(STATES[word.lower()])
    number = _NUMBER.fullmatch(word)
    return Condition(Words(word, int(number[1]) if number else None))


def _field(field: str, value: str, problems: list[str]) -> Condition | None:
    if not value.strip():
        problems.append(f"{field}: is followed by nothing; write it as {field}:{_EXAMPLES[field]}.")
        return None
    if field in _FIELDS:
        return Condition(InField(_FIELDS[field], value.strip()))
    word = value.strip().lower()
    if word in ("starred", "star") and field == "is":
        return Condition(Starred())
    if word in STATES:
        return Condition(STATES[word])
    states = ", ".join(status.value for status in JobStatus)
    also = ", and is:starred" if field == "is" else ""
    problems.append(f"{field}:{word[:40]} is no state; there are {states}{also}.")
    return None


_EXAMPLES: Final = {
    "name": "baseline", "recipe": "digits", "tag": "paper", "note": "seed", "error": "CUDA",
    "status": "failed", "state": "failed", "is": "starred",
}  # fmt: skip


def _comparison(token: re.Match[str], problems: list[str]) -> Condition | None:
    name = token["name"]
    sign: Operator = token["operator"].replace("==", "=")  # type: ignore[assignment]
    value = token["quoted_other"] if token["quoted_other"] is not None else token["other"]
    value = value.strip()
    if sign == "=" and name.lower() in _EXAMPLES:  # `recipe=digits`, which cannot mean another
        return _field(name.lower(), value, problems)
    if not value:
        problems.append(f"{name}{sign} is followed by nothing; write it as {name}{sign}0.001.")
        return None
    number = _seconds(value) if name in DURATIONS else _number(value)
    if number is None and name in DURATIONS:
        problems.append(
            f"{name}{sign}{value[:40]} names no time; write it as {name}{sign}1h30m or "
            f"{name}{sign}90s."
        )
        return None
    if number is None and sign not in ("=", "!="):
        problems.append(
            f"{name}{sign}{value[:40]} compares with no number; write it as {name}{sign}0.001."
        )
        return None
    return Condition(Compared(name, sign, value, number))


def _number(text: str) -> float | None:
    try:
        number = float(text.replace(",", "") if re.fullmatch(_THOUSANDS, text) else text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


_THOUSANDS: Final = re.compile(r"-?[0-9]{1,3}(,[0-9]{3})+(\.[0-9]+)?", re.ASCII)


def _seconds(text: str) -> float | None:
    """Of `1h30m`, `90s`, or a bare number of seconds."""
    if (seconds := _number(text)) is not None:
        return seconds
    parts = _DURATION.findall(text.lower())
    if not parts or "".join(n + unit for n, unit in parts) != text.lower():
        return None
    return math.fsum(float(n) * _SECONDS[unit] for n, unit in parts)
