"""Reads log.txt, which holds whatever a job printed."""

import os
import re
import stat
from pathlib import Path
from typing import Final

from backend.paths import open_inside

TAIL_BYTES: Final = 256 * 2**10
LONGEST_LINE: Final = 2000

_ESCAPE: Final = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
"""Control sequences: CSI, OSC and the two-character ones. Source: ECMA-48, 5.3 and 5.4."""

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of text."""


def read_tail(path: Path, most_bytes: int) -> bytes:
    """The last bytes of a log; empty where there is none."""
    try:
        with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                return b""
            file.seek(max(0, status.st_size - most_bytes))
            return file.read(most_bytes)
    except OSError:
        return b""


def tail(path: Path, lines: int) -> str:
    """The last lines of a log as a terminal would show them.

    Progress bars that rewrite their line appear once, in their last state; escape sequences and
    control characters are left out; bytes that are no UTF-8 become replacement marks.
    """
    content = read_tail(path, TAIL_BYTES)
    if len(content) == TAIL_BYTES:
        content = content[content.find(b"\n") + 1 :] or content
    rows = as_shown(content.decode("utf-8", "replace")).split("\n")
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
