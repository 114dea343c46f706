"""What a script was given on its command line, by name: of `--lr 3e-4`, `--lr=3e-4`, `lr=3e-4`."""

import functools
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from typing import Final

from backend.curve import LONG_NAMES
from backend.search import long_name

MAX_KEPT: Final = 2000
"""Characters of parameters that are kept read."""


def arguments_of(args: Sequence[object]) -> Mapping[str, float | str]:
    """By name, with dashes in it; an option without a value is 1, and of two the last one counts.

    A value that is a number is one.
    """
    found: dict[str, float | str] = {}
    for given, following in itertools.pairwise([*map(str, args), ""]):
        key, has_value, value = given.lstrip("-").partition("=")
        if not has_value:
            if not given.startswith("-"):
                continue
            alone = not following or (following.startswith("-") and _number(following) is None)
            value = "1" if alone else following
        number = _number(value)
        found[key.replace("_", "-")] = value if number is None else number
    return found


@functools.lru_cache(256)
def spellings(name: str) -> tuple[str, ...]:
    """All names that an argument may have which is meant by this one: `lr`, `learning-rate`."""
    long = long_name(name)
    short = [s for s, meant in LONG_NAMES.items() if meant == long]
    return tuple(dict.fromkeys(spelled.replace("_", "-") for spelled in (name, long, *short)))


def argument(params: str, name: str) -> float | str | None:
    """One value by its name; None where there is none. Never raises.

    Args:
        params: a script's parameters, as JSON.
    """
    given = _kept(params) if len(params) <= MAX_KEPT else _read(params)
    return next((given[s] for s in spellings(name) if s in given), None)


def _read(params: str) -> Mapping[str, float | str]:
    try:
        return arguments_of(json.loads(params).get("args") or ())
    except (ValueError, AttributeError, TypeError, RecursionError):
        return {}


_kept = functools.lru_cache(16_384)(_read)
"""Each search looks at those of all jobs again."""


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
