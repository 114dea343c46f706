"""Small bar charts of figures that stand still, as plain HTML: they need no script, take the
reader's theme, and every bar has its figure beside it."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final, NamedTuple
from urllib.parse import quote

import streamlit as st

from pages.parts.formats import one_line

BEFORE: Final = "light-dark(#a9adb2, #6b737c)"
AFTER: Final = "light-dark(#0072b2, #56b4e9)"
TRACK: Final = "rgba(128, 128, 128, 0.14)"
LINE: Final = "#3d94d6"
"""An image does not know the theme."""
SPARK_POINTS: Final = 60
DAY_HEIGHT: Final = 72  # pixels of the highest day
FEW: Final = 4
"""A day with so many is as high as the chart: a single failure does not fill it."""


class Pair(NamedTuple):
    """Before and after; each an amount and its words."""

    name: str
    when: str
    """As HTML, of `times.ago`."""
    before: tuple[float, str]
    after: tuple[float, str]


def pairs(rows: Sequence[Pair]) -> None:
    """Before and after of each row as two bars."""
    top = max((max(row.before[0], row.after[0]) for row in rows), default=0) or 1
    lines = [_legend({"before": BEFORE, "after": AFTER})]
    for row in rows:
        bars = _bar(row.before, top, BEFORE, "before") + _bar(row.after, top, AFTER, "after")
        lines.append(
            '<div style="margin:0.7rem 0">'
            '<div style="font-size:0.85rem;overflow-wrap:anywhere">'
            f"{_text(row.name)} · {row.when}</div>"
            f"{bars}</div>"
        )
    st.html("".join(lines))


def days(
    names: Sequence[str],
    stacks: Sequence[Mapping[str, int]],
    kinds: Mapping[str, tuple[str, str]],
) -> None:
    """A column for each day, stacked by what was counted; of each kind its colour and its words."""
    top = max(FEW, *(sum(stack.values()) for stack in stacks))
    columns = []
    for name, stack in zip(names, stacks, strict=True):
        said = ", ".join(f"{number} {what}" for what, number in stack.items()) or "none"
        parts = "".join(
            f'<div style="height:{number / top * DAY_HEIGHT:.1f}px;background:{kinds[what][0]};'
            f'margin-top:1px;border-radius:2px"></div>'
            for what, number in stack.items()
        )
        columns.append(
            f'<div style="flex:1 1 0;min-width:0" title="{_text(f"{name}: {said}")}">'
            f'<div style="height:{DAY_HEIGHT + 20}px;display:flex;flex-direction:column;'
            f'justify-content:flex-end"><div style="text-align:center;font-size:0.8rem">'
            f"{sum(stack.values()) or ''}</div>{parts}</div>"
            f'<div style="border-top:1px solid {TRACK};text-align:center;font-size:0.7rem;'
            f'opacity:0.75;white-space:nowrap;overflow:hidden">{_text(name)}</div></div>'
        )
    chart = f'<div style="display:flex;gap:4px">{"".join(columns)}</div>'
    st.html(_legend({words: color for color, words in kinds.values()}) + chart)


def sparkline(values: Sequence[float], words: str) -> None:
    """A whole curve at a hand's breadth; `words` say what it shows."""
    values = thinned(values)
    low, high = min(values), max(values)
    reach = (high - low) or 1
    points = " ".join(
        f"{position / max(1, len(values) - 1) * 100:.1f},{29 - (value - low) / reach * 28:.1f}"
        for position, value in enumerate(values)
    )
    drawing = (
        '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 30" preserveAspectRatio="none">'
        f'<polyline points="{points}" fill="none" stroke="{LINE}" stroke-width="1.6" '
        'vector-effect="non-scaling-stroke" stroke-linejoin="round"/></svg>'
    )
    # As an image: Streamlit takes SVG elements out of HTML.
    st.html(
        f'<img alt="{_text(words)}" style="width:100%;height:44px;display:block" '
        f'src="data:image/svg+xml,{quote(drawing)}">'
    )


def thinned(values: Sequence[float], most: int = SPARK_POINTS) -> Sequence[float]:
    """At most so many of them, evenly spaced, the first and the last among them."""
    last = len(values) - 1
    if last < most:
        return values
    return [values[round(n * last / (most - 1))] for n in range(most)]


def _bar(amount_and_words: tuple[float, str], top: float, color: str, which: str) -> str:
    amount, words = amount_and_words
    return (
        '<div style="display:flex;align-items:center;gap:0.6rem;margin-top:3px">'
        f'<div style="flex:1;background:{TRACK};border-radius:3px" title="{which}">'
        f'<div style="width:{max(0.4, amount / top * 100):.1f}%;height:10px;'
        f'background:{color};border-radius:3px"></div></div>'
        '<div style="width:9.5rem;font-size:0.8rem;white-space:nowrap">'
        f"{which} {_text(words)}</div></div>"
    )


def _legend(colors: Mapping[str, str]) -> str:
    marks = "".join(
        '<span style="display:inline-flex;align-items:center;gap:0.35rem">'
        f'<span style="width:10px;height:10px;border-radius:2px;background:{color}"></span>'
        f"{_text(name)}</span>"
        for name, color in colors.items()
    )
    return (
        f'<div style="display:flex;flex-wrap:wrap;gap:0.2rem 1rem;font-size:0.8rem">{marks}</div>'
    )


def _text(text: str) -> str:
    return escape(one_line(text, 200))
