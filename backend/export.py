"""Every point of a curve as a file for other programs, written while it is sent."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from enum import StrEnum
from typing import Final

from backend.curve import Point, point_as_json

PIECE_BYTES: Final = 256 * 2**10

_FIRST: Final = ("step", "epoch", "timestamp")
_ACTING: Final = ("=", "+", "-", "@", "\t", "\r")
"""What begins a formula in a spreadsheet; a name that somebody logged must not be one."""


class Form(StrEnum):
    """How points are written."""

    CSV = "csv"
    JSONL = "jsonl"


def pieces(blocks: Iterable[Sequence[Point]], form: Form, names: Sequence[str]) -> Iterator[bytes]:
    """The points as CSV with a header or as JSON lines, UTF-8, in pieces of some 256 KiB.

    In either a value that was no finite number is empty (`null`).

    Args:
        names: The columns of a CSV after step, epoch and timestamp. What has another name is left
            out there.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if form is Form.CSV:
        writer.writerow([*_FIRST, *map(_plain, names)])
    for block in blocks:
        for point in block:
            if form is Form.JSONL:
                text.write(point_as_json(point) + "\n")
            else:
                values = [point.values.get(name) for name in names]
                writer.writerow([point.step, point.epoch, point.timestamp, *values])
            if text.tell() >= PIECE_BYTES:
                yield _taken(text)
    if text.tell():
        yield _taken(text)


def _taken(text: io.StringIO) -> bytes:
    content = text.getvalue().encode("utf-8", "replace")
    text.seek(0)
    text.truncate()
    return content


def _plain(name: str) -> str:
    return f"'{name}" if name.startswith(_ACTING) else name
