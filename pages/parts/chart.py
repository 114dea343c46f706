"""The live chart of a job: its losses, and each other number that it logs in a small one below."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import streamlit as st

from backend.curve import Point
from pages.parts import plotly_script
from pages.parts.formats import count, figure, one_line

TITLES: Final[Mapping[str, str]] = {
    "train_loss": "Train loss",
    "eval_loss": "Held-out loss",
    "learning_rate": "Learning rate",
    "grad_norm": "Gradient norm",
}
MAX_PANELS: Final = 8
EMPTY: Final = (
    "The curve appears here with the first point that the job logs: "
    "train and held-out loss over its steps."
)

_HERE: Final = Path(__file__).parent

_draw = st.components.v2.component(
    "signalbox_chart",
    html='<div class="signalbox-chart"></div>\n<div class="signalbox-notice" role="status"></div>',
    css=(_HERE / "chart.css").read_text(encoding="utf-8"),
    js=plotly_script.with_shared("chart.js"),
    isolate_styles=False,  # Plotly puts its styles into the document
)


def live_chart(job_id: int, points: Sequence[Point]) -> None:
    """Draw the curves of a job; called again with more points, it keeps the reader's zoom."""
    words = summary(points)
    _draw(
        key=f"chart-{job_id}",
        data={
            "script": plotly_script.URL,
            "revision": f"job-{job_id}",
            "version": f"{len(points)} {points[-1].step if points else ''} {words}",
            "panels": panels(points),
            "summary": words,
            "empty": EMPTY,
        },
    )
    if points:
        st.caption(words)


def panels(points: Sequence[Point]) -> list[dict[str, Any]]:
    """What the component draws: the losses together, then each other number by itself."""
    names = dict.fromkeys(name for point in points for name in point.values)
    losses = [name for name in ("train_loss", "eval_loss") if name in names]
    others = sorted(
        (n for n in names if n not in losses),
        key=lambda n: (n not in TITLES, n != "learning_rate", n),
    )
    drawn: list[dict[str, Any]] = []
    if losses:
        drawn.append(
            {
                "title": "Loss",
                "series": [_series(points, n, losses_color(n)) for n in losses],
                "best": _best(points),
            }
        )
    drawn += [
        {"title": title(name), "series": [_series(points, name, 2)], "best": None}
        for name in others[:MAX_PANELS]
    ]
    return drawn


def losses_color(name: str) -> int:
    """Which of the theme's chart colours a loss has, however many of them are drawn."""
    return 1 if name == "eval_loss" else 0


def title(name: str) -> str:
    """A logged name as a heading: `val_accuracy` is `Val accuracy`."""
    words = one_line(name, 40).replace("_", " ")
    return TITLES.get(name, words[:1].upper() + words[1:])


def summary(points: Sequence[Point]) -> str:
    """The curve in words, for those who cannot see it and those in a hurry."""
    if not points:
        return EMPTY
    parts: list[str] = []
    for name in ("train_loss", "eval_loss"):
        values = [v for point in points if (v := point.values.get(name)) is not None]
        if values:
            words = TITLES[name] if not parts else TITLES[name].lower()
            parts.append(f"{words} went from {figure(values[0])} to {figure(values[-1])}")
    best = _best(points)
    if best:
        parts.append(f"best held-out {figure(best['y'])} at step {count(int(best['x']))}")
    text = ", ".join(parts) or f"{count(len(points))} points were logged, none with a loss"
    return f"{text}. Last step {count(points[-1].step)}."


def _series(points: Sequence[Point], name: str, color: int) -> dict[str, Any]:
    logged = [point for point in points if name in point.values]
    return {
        "name": title(name),
        "x": [point.step for point in logged],
        "y": [_short(point.values[name]) for point in logged],
        "color": color,
    }


def _best(points: Sequence[Point]) -> dict[str, float] | None:
    best = best_held_out(points)
    return None if best is None else {"x": best[1], "y": best[0]}


def held_out(points: Sequence[Point]) -> list[tuple[float, int]]:
    """Each measured held-out loss with its step, as they were logged."""
    return [(v, p.step) for p in points if (v := p.values.get("eval_loss")) is not None]


def best_held_out(points: Sequence[Point]) -> tuple[float, int] | None:
    """The lowest held-out loss and the first step that had it."""
    return min(held_out(points), default=None)


def _short(value: float | None) -> float | None:
    """Six digits are more than a screen shows, and a third of the bytes."""
    return None if value is None else float(f"{value:.6g}")
