"""Reads log.txt, which holds whatever a job printed."""

import codecs
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from backend.mask import Mask
from backend.paths import open_inside

TAIL_BYTES: Final = 256 * 2**10
LONGEST_LINE: Final = 2000
LONGEST_CHARACTER: Final = 4
"""Bytes of UTF-8."""

_ESCAPE: Final = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b\n]*(?:\x07|\x1b\\)?|[@-Z\\-_])"
)
"""Control sequences: CSI, OSC and the two-character ones. Source: ECMA-48, 5.3 and 5.4. One that is
never ended takes no more than its line with it."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of text."""


@dataclass(frozen=True)
class LogSlice:
    """A part of a log; `offset`, `next_offset` (where the next one begins) and the `size` of the
    whole log are in bytes."""

    text: str
    offset: int
    next_offset: int
    size: int


def read_slice(path: Path, offset: int, limit: int, mask: Mask, *, grows: bool) -> LogSlice:
    """At most `limit` (1 or more) bytes of a log as they are, from a byte on.

    To be called again with `offset=next_offset`: all the texts together are the log, masked, with
    replacement marks for bytes that are no UTF-8. So a character that the limit cuts is left for
    the next slice; one that is longer than the limit is given whole. What stands unfinished at the
    end of a log that `grows`, half a character or the beginning of a hidden value, is left too.

    An offset behind the end, as after the log was cut, becomes the end. Empty where there is no
    log.
    """
    try:
        with _opened(path) as (file, size):
            offset = min(offset, size)
            start = max(0, offset - mask.reach)
            end = min(size, offset + limit + LONGEST_CHARACTER - 1 + mask.reach)
            file.seek(start)
            content = file.read(end - start)
    except OSError:
        return LogSlice("", 0, 0, 0)
    if grows and end == size:
        end -= mask.begun(content)
    shown = mask.data(content)[offset - start : max(offset, end) - start]
    text, next_offset = "", offset
    for length in range(limit, limit + LONGEST_CHARACTER):
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        text = decoder.decode(shown[:length], final=not grows and offset + length >= size)
        if text:
            left = len(decoder.getstate()[0])
            next_offset = offset + min(length, len(shown)) - left
            break
    return LogSlice(text, offset, next_offset, size)


def read_tail(path: Path, most_bytes: int, mask: Mask | None = None) -> bytes:
    """The last bytes of a log; empty where there is none."""
    reach = mask.reach if mask else 0
    try:
        with _opened(path) as (file, size):
            file.seek(max(0, size - most_bytes - reach))
            content = file.read(min(size, most_bytes + reach))
    except OSError:
        return b""
    content = mask.data(content) if mask else content
    return content[max(0, len(content) - most_bytes) :]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """A log and its size in bytes. Raises OSError: it is not there, or no file."""
    with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "no regular file", str(path))
        yield file, status.st_size


def tail(path: Path, lines: int, mask: Mask | None = None) -> str:
    """The last lines of a log as a terminal would show them.

    Progress bars that rewrite their line appear once, in their last state; escape sequences and
    control characters are left out; bytes that are no UTF-8 become replacement marks.
    """
    content = read_tail(path, TAIL_BYTES, mask)
    if len(content) == TAIL_BYTES:
        content = content[content.find(b"\n") + 1 :] or content
    shown = as_shown(content.decode("utf-8", "replace"))
    if mask:
        shown = mask.text(shown)  # again: a value may have had an escape sequence in it
    rows = shown.split("\n")
    if rows and not rows[-1]:
        rows.pop()
    return "\n".join(rows[-lines:])


def as_shown(text: str) -> str:
    """What is left on a terminal after this text was printed to it."""
    return "\n".join(map(_line, _ESCAPE.sub("", text).replace("\r\n", "\n").split("\n")))


def _line(line: str) -> str:
    if "\r" in line:
        line = next((part for part in reversed(line.split("\r")) if part.strip()), "")
    line = _CONTROL.sub("", line)
    return line if len(line) <= LONGEST_LINE else line[: LONGEST_LINE - 1] + "…"
