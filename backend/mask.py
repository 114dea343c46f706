"""Hides values in a text: those of the environment variables that a job was given may be secrets,
and a job may print them."""

import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from typing import AnyStr, Final, Generic

MIN_LENGTH: Final = 6
"""Characters. A shorter value ("1", "true") is not hidden: ordinary text would go with it."""

MAX_LINES: Final = 1000
"""Of one value so many lines are hidden by themselves; the whole value is in any case."""

_MANY: Final = 100
"""From so many needles on, one look at each place of a text costs less than a search for each."""

_NEVER_LAST: Final = frozenset("abcdeghijklmopqrsuvwxzABCDEGHIJKLMOPQRSUVWXZ")
"""Of a number: it ends with a digit, a point, or as nan, inf and infinity do."""

_SHORT: Final = 200
_HEAD: Final = 16


class Mask:
    """Puts asterisks in place of values, as many as the value had bytes or characters.

    Hidden are a value without the blanks around it, each of the first 1,000 lines of one that has
    several, and both as JSON, JSON in JSON and `repr` spell them. What is shorter than 6
    characters, or a number ("100000", "0.0003": whatever `float` takes, of any length), is not
    hidden: it is a setting rather than a secret, and would be missed in progress.json. Nor is a
    part of a value, but for the first part of one, at the end of a text that was cut there.

    Of values that overlap every byte goes. So what a byte becomes depends on the `reach` bytes
    on both of its sides and on nothing else: a piece of a file can be masked by itself.
    """

    reach: int
    """Bytes: one less than the longest spelling of a value has; 0 where nothing is hidden."""

    def __init__(self, values: Iterable[str]) -> None:
        pieces = {piece.strip() for value in values for piece in _pieces(value)}
        hidden = (p for p in pieces if len(p) >= MIN_LENGTH and not _is_number(p))
        texts = {spelling for piece in hidden for spelling in _spellings(piece)}
        self._texts = _Needles(texts)
        self._bytes = _Needles(text.encode("utf-8", "surrogateescape") for text in texts)
        self.reach = max(map(len, self._bytes.all), default=1) - 1

    def __bool__(self) -> bool:
        """Whether there is anything to hide."""
        return bool(self._bytes.all)

    def text(self, text: str, cut_at: int | None = None) -> str:
        """The text with as many characters as it had.

        One of `cut_at` characters or more was cut, and may end in the first part of a value: that
        is hidden as well.
        """
        spans = self._texts.spans(text)
        if cut_at is not None and len(text) >= cut_at:
            begun = self._texts.begun(text)
            spans += [(len(text) - begun, len(text))] if begun else []
        if not spans:
            return text
        shown = list(text)
        for start, end in spans:
            shown[start:end] = "*" * (end - start)
        return "".join(shown)

    def data(self, content: bytes) -> bytes:
        """The content with as many bytes as it had, so that an offset stays true."""
        spans = self._bytes.spans(content)
        if not spans:
            return content
        shown = bytearray(content)
        for start, end in spans:
            shown[start:end] = b"*" * (end - start)
        return bytes(shown)

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
        return self._bytes.begun(content)


class _Needles(Generic[AnyStr]):
    """What is searched for, of `MIN_LENGTH` or more each."""

    def __init__(self, needles: Iterable[AnyStr]) -> None:
        self.all: frozenset[AnyStr] = frozenset(needles)
        short = [needle for needle in self.all if len(needle) <= _SHORT]
        if len(short) < _MANY:
            short = []
        self._single: frozenset[AnyStr] = self.all.difference(short)
        self._sorted: Sequence[AnyStr] = sorted(short)
        lengths: dict[AnyStr, set[int]] = {}
        for needle in short:
            lengths.setdefault(needle[:MIN_LENGTH], set()).add(len(needle))
        self._lengths: Mapping[AnyStr, Sequence[int]] = {
            head: sorted(found, reverse=True) for head, found in lengths.items()
        }

    def spans(self, content: AnyStr) -> list[tuple[int, int]]:
        """Begins and ends that cover every occurrence of each needle; they may overlap."""
        found = list(self._scan(content)) if self._lengths else []
        for needle in self._single:
            found += _occurrences(content, needle)
        return found

    def _scan(self, content: AnyStr) -> Iterator[tuple[int, int]]:
        heads, covered = self._lengths, 0
        for start in range(len(content) - MIN_LENGTH + 1):
            for length in heads.get(content[start : start + MIN_LENGTH], ()):
                end = start + length
                if end <= covered:
                    break
                if end <= len(content) and content[start:end] in self.all:
                    yield start, end
                    covered = end
                    break

    def begun(self, content: AnyStr) -> int:
        """The length of the longest end of the content that a longer needle begins with."""
        most = 0
        for length in range(1, min(_SHORT, len(content) + 1) if self._sorted else 1):
            end = content[-length:]
            place = bisect_right(self._sorted, end)  # the first that is longer, if any is
            if place < len(self._sorted) and self._sorted[place].startswith(end):
                most = length
        for needle in self._single:
            head = needle[:_HEAD]
            start = content.find(head, max(0, len(content) - len(needle) + 1))
            while start >= 0 and not needle.startswith(content[start:]):
                start = content.find(head, start + 1)
            if start >= 0:
                most = max(most, len(content) - start)
                continue
            for length in range(min(len(needle) - 1, _HEAD), most, -1):
                if content.endswith(needle[:length]):
                    most = length
                    break
        return most


def _occurrences(content: AnyStr, needle: AnyStr) -> Iterator[tuple[int, int]]:
    """What the occurrences of a needle cover, each of which may overlap the one before."""
    length = len(needle)
    start = content.find(needle)
    while start >= 0:
        end = start + length
        # The last that overlaps, or touches, this one: all between are covered with it. So even
        # "aaaa…" in "aaaaaa…" takes two looks for each length of a needle, not one for each byte.
        while (last := content.rfind(needle, end - length + 1, end + length)) >= 0:
            end = last + length
        yield start, end
        start = content.find(needle, end)


def _pieces(value: str) -> Iterator[str]:
    yield value
    yield from islice(value.splitlines(), MAX_LINES)


def _is_number(piece: str) -> bool:
    if piece[-1:] in _NEVER_LAST:
        return False  # to try costs ten times as much, and a value may have a thousand lines
    try:
        float(piece)
    except ValueError:
        return False
    return True


def _in_json(text: str) -> tuple[str, str, str]:
    return text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]


def _spellings(value: str) -> Iterator[str]:
    if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
        yield value  # the same in all of them
        return
    # JSON twice: as exit.json holds an exception whose message is JSON.
    for text in (repr(value)[1:-1], *_in_json(value)):
        for spelling in _in_json(text):
            try:
                spelling.encode("utf-8", "surrogateescape")
            except UnicodeEncodeError:
                continue  # half a character: no variable of a process can have that
            yield spelling


NO_MASK: Final = Mask(())
"""Hides nothing."""


def mask_of(env: Mapping[str, str]) -> Mask:
    """What hides the values of these environment variables. Cheap: the last 128 are kept."""
    return _mask_of(tuple(env.values()))


@lru_cache(maxsize=128)
def _mask_of(values: tuple[str, ...]) -> Mask:
    return Mask(values)
