"""A cleanup in words and figures, and who holds memory."""

from collections.abc import Mapping
from typing import Any

from backend.models import Cleanup
from pages.parts import cards, formats


def name_of(cleanup: Cleanup) -> str:
    """Which job it followed, if any."""
    return "by hand" if cleanup.job_id is None else f"job {cleanup.job_id}"


def pair_of(cleanup: Cleanup) -> tuple[str, tuple[float, str], tuple[float, str]]:
    """A cleanup as `bars.pairs` takes it."""
    before, after = cleanup.before_bytes or 0, cleanup.after_bytes or 0
    name = f"{name_of(cleanup)} · {cleanup.device} · {formats.ago(cleanup.created_at)}"
    return name, (before, formats.size(before)), (after, formats.size(after))


def as_row(cleanup: Cleanup) -> dict[str, str]:
    """A cleanup as a row of the table."""
    said = {True: "yes", False: "no", None: formats.NOTHING}[cleanup.released]
    return {
        "Job": name_of(cleanup),
        "When": cards.when(cleanup.created_at),
        "Reason": formats.one_line(cleanup.reason),
        "Device": formats.one_line(cleanup.device),
        "Baseline": formats.size(cleanup.baseline_bytes),
        "Before": formats.size(cleanup.before_bytes),
        "Peak": formats.size(cleanup.peak_bytes),
        "After": formats.size(cleanup.after_bytes),
        "Settled in": formats.duration(cleanup.settle_seconds),
        "Released": said,
        "Still held by": ", ".join(held(h) for h in cleanup.holders) or formats.NOTHING,
        "Cache emptied": formats.size(cleanup.cache_freed_bytes),
        "Source": cleanup.source,
    }


def held(holder: Mapping[str, Any]) -> str:
    """Who holds memory, and how much."""
    amount = holder.get("bytes")
    size = formats.size(amount) if isinstance(amount, int | float) else "an unknown amount"
    return f"{holder.get('name') or 'a process'} (pid {holder.get('pid')}) holds {size}"
