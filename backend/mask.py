"""Hides values in a text: those of the environment variables that a job was given may be secrets,
and a job may print them."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import AnyStr, Final

MIN_LENGTH: Final = 6
"""Characters. A shorter value ("1", "true") is not hidden: ordinary text would go with it."""

_NUMBER: Final = re.compile(r"[+-]?[0-9_]{0,12}(\.[0-9]{0,12})?(e[+-]?[0-9]{1,3})?", re.IGNORECASE)
"""A number is a setting too ("100000", "0.0003"), and would be missed in progress.json."""


class Mask:
    """Puts asterisks in place of values, as many as the value had bytes or characters.

    Hidden are a value without the blanks around it, each line of one that has several, and both
    as JSON and `repr` spell them. A part of a value is not hidden.

    Of values that overlap every byte goes. So what a byte becomes depends on the `reach` bytes
    on both of its sides and on nothing else: a piece of a file can be masked by itself.
    """

    reach: int
    """Bytes: one less than the longest spelling of a value has; 0 where nothing is hidden."""

    def __init__(self, values: Iterable[str]) -> None:
        pieces = {piece.strip() for value in values for piece in (value, *value.splitlines())}
        long = (p for p in pieces if len(p) >= MIN_LENGTH and not _NUMBER.fullmatch(p))
        self._texts = tuple({spelling for piece in long for spelling in _spellings(piece)})
        encoded = (text.encode("utf-8", "surrogateescape") for text in self._texts)
        self._needles = tuple(encoded)
        self.reach = max(map(len, self._needles), default=1) - 1

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._needles)

    def text(self, text: str) -> str:
        """The text with as many characters as it had."""
        if not any(needle in text for needle in self._texts):
            return text
        shown = list(text)
        for start, end in _spans(text, self._texts):
            shown[start:end] = "*" * (end - start)
        return "".join(shown)

    def data(self, content: bytes) -> bytes:
        """The content with as many bytes as it had, so that an offset stays true."""
        shown = bytearray()
        for start, end in _spans(content, self._needles):
            shown = shown or bytearray(content)
            shown[start:end] = b"*" * (end - start)
        return bytes(shown) or content

    def chunks(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """What `data` makes of the whole, in constant memory, however the whole is cut."""
        window, given_out = b"", 0  # the first bytes are there only as what comes before the rest
        for chunk in chunks:
            window += chunk
            ready = len(window) - self.reach
            if ready - given_out <= self.reach:
                continue  # looked at together with more: many small chunks cost no more than a few
            yield self.data(window)[given_out:ready]
            given_out = min(ready, self.reach)
            window = window[ready - given_out :]
        if given_out < len(window):
            yield self.data(window)[given_out:]

    def begun(self, content: bytes) -> int:
        """How many of the last bytes may be the beginning of a value that is still being written;
        fewer than a whole value has."""
        most = 0
        for needle in self._needles:
            start = content.find(needle[:1], max(0, len(content) - len(needle) + 1))
            while start >= 0 and not needle.startswith(content[start:]):
                start = content.find(needle[:1], start + 1)
            if start >= 0:
                most = max(most, len(content) - start)
        return most


def _spellings(value: str) -> Iterator[str]:
    for text in (value, repr(value)[1:-1]):
        for spelling in (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
            try:
                spelling.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                continue  # half a character: no variable of a process can have that
            yield spelling


def _spans(content: AnyStr, needles: Sequence[AnyStr]) -> Iterator[tuple[int, int]]:
    """Begin and end of each occurrence of each needle; they may overlap."""
    for needle in needles:
        start = content.find(needle)
        while start >= 0:
            yield start, start + len(needle)
            start = content.find(needle, start + 1)
