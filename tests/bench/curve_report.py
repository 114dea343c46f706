"""What the benchmark of the curves is given, and how it tells what it has found."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.curve_browser import MOST_SECONDS, Browser
from tests.bench.curve_work import Case, Runs, Work

NOTHING: Final = "-"
TOO_LONG: Final = f"> {MOST_SECONDS:.0f} s"


@dataclass(frozen=True)
class Bench:
    """What every part of it works with."""

    browser: Browser
    work: Work
    runs: Runs
    cases: Sequence[Case]
    rivals: Sequence[str]
    repeat: int


@dataclass(frozen=True)
class Seconds:
    """One thing, measured several times."""

    each: Sequence[float]

    @property
    def median(self) -> float:
        return statistics.median(self.each)

    def __str__(self) -> str:
        def said(seconds: float) -> str:
            return f"{seconds * 1000:.1f}" if self.median < 0.1 else f"{seconds:.2f}"

        spread = f"{said(min(self.each))} to {said(max(self.each))}"
        return f"{said(self.median)} {'ms' if self.median < 0.1 else 's'} ({spread})"


def row(*cells: object) -> None:
    """One row of a table; the first of a table names the columns."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def head(*cells: str) -> None:
    print(flush=True)
    row(*cells)
    row(*("---" for _ in cells))


def note(text: str) -> None:
    print(f"# {text}", flush=True)


def judged(goal: str, figure: float, most: float) -> str:
    """Whether a figure keeps to its goal, and how far it is from it."""
    said = "met" if figure <= most else "MISSED"
    return f"{goal}: {said} ({figure:.3g})"
