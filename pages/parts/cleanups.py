"""A cleanup in words and figures, and who holds memory."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import streamlit as st

from backend.models import Cleanup
from pages.parts import bars, formats, times

WIDTHS: Final = {
    "Job": 58,
    "When": 96,
    "Reason": 78,
    "Device": 92,
    "Baseline": 70,
    "Before": 70,
    "Peak": 70,
    "After": 70,
    "Released": 96,
    "Held by": 80,
    "Cache": 70,
}
"""Pixels; together they fit beside the sidebar of a small screen."""
_REASONS: Final = {kind.value: words for kind, words in formats.KIND_WORDS.items()}
SOMETIMES: Final = ("Held by", "Cache")


def name_of(cleanup: Cleanup) -> str:
    """Which job it followed, if any."""
    return "by hand" if cleanup.job_id is None else f"job {cleanup.job_id}"


def reason_of(cleanup: Cleanup) -> str:
    """Why, in words."""
    return _REASONS.get(cleanup.reason, cleanup.reason)


def pair_of(cleanup: Cleanup) -> bars.Pair:
    """A cleanup as `bars.pairs` takes it."""
    before, after = cleanup.before_bytes or 0, cleanup.after_bytes or 0
    return bars.Pair(
        f"{name_of(cleanup)} · {cleanup.device}",
        times.ago(cleanup.created_at),
        (before, formats.size(before)),
        (after, formats.size(after)),
    )


def as_row(cleanup: Cleanup) -> dict[str, str]:
    """A cleanup as a row of the table."""
    device = formats.one_line(cleanup.device)
    here = formats.zone(st.context.timezone)
    said = {True: "yes", False: "no", None: formats.NOTHING}[cleanup.released]
    if cleanup.released and cleanup.settle_seconds is not None:
        said += f", in {formats.duration(cleanup.settle_seconds)}"
    return {
        "Job": name_of(cleanup),
        "When": cleanup.created_at.astimezone(here).strftime("%d %b, %H:%M"),
        "Reason": formats.one_line(reason_of(cleanup)),
        "Device": device if device == cleanup.source else f"{device} ({cleanup.source})",
        "Baseline": formats.size(cleanup.baseline_bytes),
        "Before": formats.size(cleanup.before_bytes),
        "Peak": formats.size(cleanup.peak_bytes),
        "After": formats.size(cleanup.after_bytes),
        "Released": said,
        "Held by": ", ".join(held(h) for h in cleanup.holders) or formats.NOTHING,
        "Cache": formats.size(cleanup.cache_freed_bytes),
    }


def table(rows: Sequence[Cleanup]) -> None:
    """Every cleanup as a row; a column that says nothing of any is left out."""
    shown = [as_row(cleanup) for cleanup in rows]
    left_out = {n for n in SOMETIMES if all(row[n] == formats.NOTHING for row in shown)}
    st.dataframe(
        [{n: words for n, words in row.items() if n not in left_out} for row in shown],
        hide_index=True,
        column_config={name: st.column_config.TextColumn(width=w) for name, w in WIDTHS.items()},
        alt="Memory before and after each cleanup",
    )


def held(holder: Mapping[str, Any]) -> str:
    """Who holds memory, and how much."""
    amount = holder.get("bytes")
    size = formats.size(amount) if isinstance(amount, int | float) else "an unknown amount"
    name = formats.one_line(holder.get("name") or "") or "a process"
    return f"{name} (pid {holder.get('pid')}) holds {size}"
