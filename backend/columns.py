"""A curve as the columns of the API's answer: JSON made by hand, because one long call into C would
hold up all other threads, and the numbers are to be short."""

import json
from collections.abc import Collection, Iterable
from typing import Final

from backend.bins import Bin, Curve, Stretch

_NULL: Final = "null"


def curve_as_json(job_id: int, curve: Curve, wanted: Collection[str] = ()) -> str:
    """One curve, as `backend.shapes.Curve` describes it.

    Args:
        wanted: names of series; none: all of them.
    """
    bins = curve.bins
    columns = {
        "step": [str(b.first_step) for b in bins],
        "epoch": [_number(b.first_epoch) for b in bins],
        "time": [_milliseconds(b.first_time) for b in bins],
    }
    if curve.level:
        columns |= {
            "last_step": [str(b.last_step) for b in bins],
            "last_epoch": [_number(b.last_epoch) for b in bins],
            "last_time": [_milliseconds(b.last_time) for b in bins],
        }
    series: dict[str, str] = {}
    for key, name in curve.names.items():
        if name not in series and (not wanted or name in wanted):
            found = [(n, s) for n, b in enumerate(bins) if (s := b.series.get(key))]
            if found:
                series[name] = _series(found, bins, curve.level)
    return (
        f'{{"job_id": {job_id}, "rows": {curve.rows}, "indexed": {curve.indexed:.4g}, '
        f'"live": {"true" if curve.live else "false"}, "level": {curve.level}, '
        f'"first_row": {curve.first_row}, "bins": {_object(columns)}, "series": '
        f"{{{', '.join(f'{json.dumps(name)}: {text}' for name, text in series.items())}}}}}"
    )


def _series(found: list[tuple[int, Stretch]], bins: Collection[Bin], level: int) -> str:
    columns: dict[str, list[str]] = {}
    if len(found) < len(bins):
        columns["bin"] = [str(n) for n, _ in found]
    columns["mean"] = [_number(s.mean) for _, s in found]
    if level:
        there = [s if s.numbers else None for _, s in found]
        columns["min"] = [_number(s.low) if s else _NULL for s in there]
        columns["max"] = [_number(s.high) if s else _NULL for s in there]
        columns["min_step"] = [str(s.low_step) if s else _NULL for s in there]
        columns["max_step"] = [str(s.high_step) if s else _NULL for s in there]
    bad = [f"[{n}, {s.bad}]" for n, s in found if s.bad]
    if bad:
        columns["bad"] = bad
    return _object(columns)


def _object(columns: dict[str, list[str]]) -> str:
    return f"{{{', '.join(f'{chr(34)}{n}{chr(34)}: {_array(c)}' for n, c in columns.items())}}}"


def _array(column: Iterable[str]) -> str:
    return f"[{','.join(column)}]"


def _number(value: float | None) -> str:
    """Six digits are more than a screen shows, and a third of the bytes."""
    return _NULL if value is None else f"{value:.6g}"


def _milliseconds(value: float | None) -> str:
    return _NULL if value is None else f"{value:.0f}"
