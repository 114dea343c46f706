"""An index beside metrics.jsonl, so that a curve of any length, or any stretch of it, is read in a
moment.

It holds the bins of level 6 (64 rows) and above, in an SQLite file whose writes are whole or not
there. Finer bins are made of the lines themselves, which are found by the offsets of their level 6
bins. It can be made anew at any time, which takes a few seconds for each million lines.
"""

import logging
import os
import sqlite3
import stat
import struct
import threading
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO, Final, Literal

from backend.bins import (
    Batch,
    Bin,
    Curve,
    CurveSummary,
    Stretch,
    batches_of,
    between,
    bin_of,
    binned,
    firsts_of,
    joined,
    level_for,
    rows_in,
    summary_of,
)
from backend.curve import LONGEST_LINE, MAX_EXTRA, decoded, parse_point
from backend.paths import open_inside

logger = logging.getLogger(__name__)

BASE: Final = 6
BASE_ROWS: Final = 2**BASE

MAX_SERIES: Final = 2 * MAX_EXTRA
"""Of a file that names still more, the first ones; nobody looks at so many curves."""

CHUNK_BYTES: Final = 128 * 2**10
PIECE_LINES: Final = 500
MAX_LINES_BYTES: Final = 32 * 2**20
"""Of more the lines are not read to make finer bins; those of level 6 have to do."""

VERSION: Final = 1

_BROKEN: Final = (OSError, sqlite3.Error, LookupError, TypeError, ValueError, struct.error)
"""What comes of a file that cannot be used, or that holds something else than was written."""

X = Literal["step", "epoch", "time"]

_SERIES: Final = struct.Struct("<HIIdddqqqqd")
_TABLES: Final = """
CREATE TABLE series (id INTEGER PRIMARY KEY, name TEXT NOT NULL, first REAL);
CREATE TABLE place (
    number INTEGER PRIMARY KEY, begin INTEGER NOT NULL, end INTEGER NOT NULL, crc INTEGER NOT NULL
);
CREATE TABLE bin (
    level INTEGER NOT NULL, number INTEGER NOT NULL, first_step INTEGER, last_step INTEGER,
    first_epoch REAL, last_epoch REAL, first_time REAL, last_time REAL, series BLOB NOT NULL,
    PRIMARY KEY (level DESC, number)
) WITHOUT ROWID;
"""
# The lowest level comes last in there: where most rows are appended, which leaves the pages full.


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the lines of a bin are: bytes from `begin` up to `end`, and their checksum."""

    begin: int
    end: int
    crc: int

    def is_as_read(self, file: BinaryIO) -> bool:
        file.seek(self.begin)
        crc, at = 0, self.begin
        while at < self.end and (more := file.read(min(LONGEST_LINE, self.end - at))):
            at += len(more)
            crc = zlib.crc32(more, crc)
        return at == self.end and crc == self.crc


class CurveIndex:
    """The index of one file of points. Safe to use from several threads.

    Nothing raises: a file that cannot be read has no rows, and an index that is damaged or cannot
    be written is thrown away and made anew.
    """

    def __init__(self, source: Path) -> None:
        """Of metrics.jsonl, say; the index lies beside it as metrics.index."""
        self._source = source
        self._path = source.with_suffix(".index")
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._begin_anew()

    # Filling it

    def update(self, seconds: float) -> bool:
        """Read what was appended to the file, for about so long; say whether that is all of it.

        A file that was cut or replaced is read again from where it differs.
        """
        with self._lock:
            try:
                return self._update(time.monotonic() + seconds)
            except FileNotFoundError:
                if self._identity is not None:
                    self._discard()
            except _BROKEN as error:
                logger.warning("The index of %s was given up. %s", self._source, error)
                self._discard()
            return True

    def close(self) -> None:
        """Close its file. It opens again when it is asked."""
        with self._lock:
            if self._db is not None:
                with suppress(sqlite3.Error):
                    self._commit()
                self._db.close()
                self._db = None
            self._begin_anew()

    # Asking it

    @property
    def rows(self) -> int:
        """How many it has read, but for a last line without its newline."""
        return self._count * BASE_ROWS + rows_in(self._pending)

    def curve(
        self,
        most: int,
        *,
        level: int | None = None,
        after_row: int | None = None,
        x: X = "step",
        begin: float | None = None,
        end: float | None = None,
    ) -> Curve:
        """The curve, as far as it was read, at the finest level that has at most `most` bins.

        Args:
            level: With `after_row`: if that is still the level, only the bins from this row on.
            begin: With `end`, in units of x: only what reaches into this range, and so much finer.
                Times are milliseconds since 1970.
        """
        with self._lock:
            try:
                self._ensure_open()
                with self._opened() as file:
                    return self._curve(file, most, level, after_row, x, begin, end)
            except FileNotFoundError:
                return Curve(0, 0, 0, [], {})
            except _BROKEN as error:
                logger.warning("The index of %s cannot be read. %s", self._source, error)
                self._discard()
                return Curve(0, 0, 0, [], {}, indexed=0.0)

    def summary(self) -> CurveSummary:
        """What the whole curve comes to, as far as it was read."""
        with self._lock:
            try:
                self._ensure_open()
                with self._opened() as file:
                    tail = self._tail(file)
            except _BROKEN:
                return CurveSummary()
            whole = joined([*self._largest(), *self._binned(tail, rows_in(tail))])
            rows = self._count * BASE_ROWS + rows_in(tail)
            return summary_of(whole, rows, self._names, firsts_of(tail, self._firsts, self._names))

    # Inside, reading lines

    def _ensure_open(self) -> None:
        """Whoever else needs many may have had it closed since it was updated."""
        if self._identity is None:
            self._update(time.monotonic())

    def _begin_anew(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._size = 0  # of the file when it was looked at
        self._is_behind = False
        self._names: dict[str, int] = {}
        self._firsts: dict[str, float] = {}
        self._count = 0  # whole bins of the base level
        self._last: dict[int, Bin] = {}
        """By level the last whole bin, where it has no sibling yet. Together, the highest level
        first, they are all that is whole, as the ones of a binary number are all of it."""
        self._begin_bin(0)

    def _begin_bin(self, position: int) -> None:
        self._position = position  # all before was read
        self._pending: list[Batch] = []  # rows that do not fill a bin yet
        self._begin = position  # of their lines
        self._crc = 0

    def _opened(self) -> BinaryIO:
        file = open(  # noqa: SIM115 (whoever called closes it)
            self._source, "rb", opener=lambda _, flags: open_inside(self._source, flags)
        )
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            file.close()
            raise FileNotFoundError(self._source)
        return file

    def _update(self, deadline: float) -> bool:
        with self._opened() as file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if identity != self._identity or status.st_size != self._size:
                if self._identity is None:
                    self._take_up_file()
                if not self._still_holds(file, status.st_size):
                    self._cut(file)
                self._identity, self._size = identity, status.st_size
            self._is_behind = False
            while self._position < self._size and self._read_chunk(file):
                if time.monotonic() > deadline:
                    self._is_behind = self._position < self._size
                    break
            self._commit()
            return not self._is_behind

    def _read_chunk(self, file: BinaryIO) -> bool:
        """Take in the next whole lines; False where there is none any more."""
        file.seek(self._position)
        chunk = file.read(min(CHUNK_BYTES, self._size - self._position))
        end = chunk.rfind(b"\n")
        if end < 0:
            chunk += file.read(min(LONGEST_LINE, self._size - self._position - len(chunk)))
            end = chunk.rfind(b"\n")
            if end < 0 and len(chunk) <= LONGEST_LINE:
                return False  # half-written, or the end of a file that has no newline there
        text = chunk[:end] if end >= 0 else chunk  # without its end such a line is no point
        lines = text.split(b"\n")
        taken = 0  # lines whose bytes are in the checksum and before the position
        for at, batch in batches_of(decoded(lines, text) if end >= 0 else [None]):
            first = 0
            while first < len(batch):
                part = batch.part(first, first + BASE_ROWS - rows_in(self._pending))
                self._pending.append(part)
                first += len(part)
                if rows_in(self._pending) == BASE_ROWS:
                    self._pass(lines[taken : at + first])
                    taken = at + first
                    self._complete()
        self._pass(lines[taken:], ends=end >= 0)
        return True

    def _pass(self, lines: Sequence[bytes], *, ends: bool = True) -> None:
        """Go on behind some lines."""
        if lines:
            read = b"\n".join((*lines, b"")) if ends else b"\n".join(lines)
            self._crc = zlib.crc32(read, self._crc)
            self._position += len(read)

    def _complete(self) -> None:
        """Keep a whole bin, and those of the levels above that it completes."""
        made = bin_of(self._pending, self._number)
        self._firsts = firsts_of(self._pending, self._firsts, self._names)
        level, number = BASE, self._count
        self._count += 1
        self._keep(level, number, made)
        self._keep_place(number, _Place(self._begin, self._position, self._crc))
        while number % 2:
            made = self._last.pop(level).then(made)
            level, number = level + 1, number // 2
            self._keep(level, number, made)
        self._last[level] = made
        self._begin_bin(self._position)

    def _number(self, name: str) -> int | None:
        number = self._names.get(name)
        if number is None and len(self._names) < MAX_SERIES:
            number = self._names[name] = len(self._names)
        return number

    def _binned(self, rows: Sequence[Batch], size: int) -> list[Bin]:
        return binned(rows, max(1, size), self._number)

    def _tail(self, file: BinaryIO) -> Sequence[Batch]:
        """The rows after the last whole bin, a last line without its newline among them."""
        if self._position < self._size and not self._is_behind:
            file.seek(self._position)
            last = file.read(min(self._size - self._position, LONGEST_LINE))
            return [*self._pending, *(batch for _, batch in batches_of([parse_point(last)]))]
        return self._pending

    # Inside, answering

    def _curve(
        self,
        file: BinaryIO,
        most: int,
        level: int | None,
        after_row: int | None,
        x: X,
        begin: float | None,
        end: float | None,
    ) -> Curve:
        tail = self._tail(file)
        rows = self._count * BASE_ROWS + rows_in(tail)
        first, beyond = 0, rows
        if begin is not None and end is not None:
            first, beyond = self._rows_between(tail, x, begin, end)
        found = level_for(beyond - first, most)
        place = self._place_of(first, beyond) if found < BASE else None
        if place and place.end - place.begin > MAX_LINES_BYTES:
            found = BASE
        if begin is None and after_row is not None and level == found:
            first = min(after_row, rows)
        first = first >> found << found
        beyond = min(rows, -(-beyond >> found) << found)
        if found < BASE:
            bins = self._fine_bins(file, tail, found, first, beyond)
        else:
            bins = self._kept_bins(tail, found, first, beyond)
        names = {number: name for name, number in self._names.items()}
        share = self._position / self._size if self._is_behind else 1.0
        return Curve(rows, found, first, bins, names, share)

    def _fine_bins(
        self, file: BinaryIO, tail: Sequence[Batch], level: int, first: int, beyond: int
    ) -> list[Bin]:
        """Bins of a level that is not kept, made of the lines of these rows."""
        whole = self._count * BASE_ROWS
        rows: list[Batch] = []
        place = self._place_of(first, beyond)
        if place:
            file.seek(place.begin)
            lines = file.read(place.end - place.begin).removesuffix(b"\n").split(b"\n")
            # All in one call would keep every other thread waiting for as long as it takes.
            pieces = (lines[n : n + PIECE_LINES] for n in range(0, len(lines), PIECE_LINES))
            entries = chain.from_iterable(decoded(piece, b"\n".join(piece)) for piece in pieces)
            read = [batch for _, batch in batches_of(entries)]
            begun = first >> BASE << BASE
            rows += between(read, first - begun, min(beyond, whole) - begun)
        rows += between(tail, first - whole, beyond - whole)
        return self._binned(rows, 1 << level)

    def _place_of(self, first: int, beyond: int) -> _Place | None:
        """Where the lines of the whole bins are that have these rows; None where none has."""
        numbers = first >> BASE, min(self._count, -(-beyond >> BASE)) - 1
        if self._db is None or numbers[1] < numbers[0]:
            return None
        query = "SELECT begin, end, crc FROM place WHERE number = ?"
        begin, end = (_Place(*self._db.execute(query, (n,)).fetchone()) for n in numbers)
        return _Place(begin.begin, end.end, 0)

    def _kept_bins(self, tail: Sequence[Batch], level: int, first: int, beyond: int) -> list[Bin]:
        """The bins of a kept level with these rows; `first` is where one begins."""
        stop = -(-beyond >> level)
        whole = self._count >> (level - BASE)
        found = self._load(level, first >> level, min(stop, whole))
        if stop > whole:
            below = [made for at, made in self._by_level() if at < level]
            rest = joined([*below, *self._binned(tail, rows_in(tail))])
            found += [rest] if rest else []
        return found

    def _by_level(self) -> list[tuple[int, Bin]]:
        return sorted(self._last.items(), reverse=True)

    def _largest(self) -> list[Bin]:
        """The largest whole bins that come to all that is whole, in their order."""
        return [made for _, made in self._by_level()]

    def _rows_between(
        self, tail: Sequence[Batch], x: X, begin: float, end: float
    ) -> tuple[int, int]:
        """The rows, rounded to bins of the base level, that reach into a range of x."""
        found: list[tuple[int, int]] = []  # bins of the base level
        at = BASE + max(0, self._count.bit_length() - 9)  # with at most 512 bins
        both = self._search(x, at, 0, self._count >> (at - BASE), begin, end)
        if both:
            low, high = both
            while at > BASE:
                down = min(5, at - BASE)
                at -= down
                lowest = self._search(x, at, low << down, (low + 1) << down, begin, end)
                highest = self._search(x, at, high << down, (high + 1) << down, begin, end)
                low = lowest[0] if lowest else low << down
                high = highest[1] if highest else ((high + 1) << down) - 1
            found.append((low, high))
        # What is whole on the base level need not be on the one where the search began.
        at = BASE + max(0, self._count.bit_length() - 9)
        rest = self._search(
            x, BASE, self._count >> (at - BASE) << (at - BASE), self._count, begin, end
        )
        if rest:
            found.append(rest)
        (last,) = self._binned(tail, rows_in(tail)) or (None,)
        if last and _is_within(last, x, begin, end):
            found.append((self._count, self._count))
        if not found:
            return 0, 0
        rows = self._count * BASE_ROWS + rows_in(tail)
        first = min(low for low, _ in found) * BASE_ROWS
        return first, min(rows, (max(high for _, high in found) + 1) * BASE_ROWS)

    def _search(
        self, x: X, level: int, first: int, beyond: int, begin: float, end: float
    ) -> tuple[int, int] | None:
        """The first and the last of some whole bins that reach into a range."""
        if self._db is None or beyond <= first:
            return None
        low, high = self._db.execute(
            f"SELECT min(number), max(number) FROM bin WHERE level = ? AND number >= ? "
            f"AND number < ? AND last_{x} >= ? AND first_{x} <= ?",
            (level, first, beyond, begin, end),
        ).fetchone()
        return None if low is None else (low, high)

    # Inside, the database

    def _take_up_file(self) -> None:
        """Go on with the index that is there, if there is one."""
        if not _is_plain_file(self._path):
            _remove(self._path)
            return
        self._db = _connect(self._path)
        try:
            if self._db.execute("PRAGMA user_version").fetchone() != (VERSION,):
                self._discard()
                return
            rows = self._db.execute("SELECT id, name, first FROM series ORDER BY id").fetchall()
            self._names = {name: number for number, name, _ in rows}
            self._firsts = {name: first for _, name, first in rows if first is not None}
            query = "SELECT coalesce(max(number) + 1, 0) FROM place"
            self._take_up(self._db.execute(query).fetchone()[0])
        except _BROKEN as error:
            logger.warning("The index of %s is made anew. %s", self._source, error)
            self._discard()

    def _take_up(self, count: int) -> None:
        """Go on behind so many whole bins, which are in the database."""
        self._count = count
        self._last = {}
        for bit in range(count.bit_length()):
            if count >> bit & 1:
                number = (count >> bit) - 1
                (self._last[BASE + bit],) = self._load(BASE + bit, number, number + 1)
        place = self._place_of(0, count * BASE_ROWS)
        self._begin_bin(place.end if place else 0)

    def _still_holds(self, file: BinaryIO, size: int) -> bool:
        """Whether the file still begins with what was read of it, by the last bins of it."""
        if size < self._position:
            return False
        begun = _Place(self._begin, self._position, self._crc)
        if begun.end - begun.begin <= LONGEST_LINE and not begun.is_as_read(file):
            return False
        return self._count == 0 or self._holds(file, self._count)

    def _holds(self, file: BinaryIO, count: int) -> bool:
        """Whether the last of so many whole bins is in the file as it was read."""
        assert self._db is not None
        query = "SELECT begin, end, crc FROM place WHERE number = ?"
        return _Place(*self._db.execute(query, (count - 1,)).fetchone()).is_as_read(file)

    def _cut(self, file: BinaryIO) -> None:
        """Forget what the file does not begin with any more."""
        low, high = 0, self._count
        while low < high:  # one that was cut still has its beginning
            middle = (low + high + 1) // 2
            if self._holds(file, middle):
                low = middle
            else:
                high = middle - 1
        if not low:
            self._discard()
            return
        assert self._db is not None
        self._db.execute("BEGIN")
        self._db.execute("DELETE FROM place WHERE number >= ?", (low,))
        for level in range(BASE, BASE + self._count.bit_length()):
            beyond = low >> (level - BASE)
            self._db.execute("DELETE FROM bin WHERE level = ? AND number >= ?", (level, beyond))
        self._db.commit()
        self._take_up(low)

    def _keep(self, level: int, number: int, made: Bin) -> None:
        db = self._db
        if db is None:
            _remove(self._path)
            db = self._db = _connect(self._path)
            db.executescript(f"{_TABLES} PRAGMA user_version = {VERSION};")
        if not db.in_transaction:
            db.execute("BEGIN")
        series = b"".join(_SERIES.pack(key, *stretch) for key, stretch in made.series.items())
        row = (
            level,
            number,
            made.first_step,
            made.last_step,
            made.first_epoch,
            made.last_epoch,
            made.first_time,
            made.last_time,
            series,
        )
        db.execute("INSERT INTO bin VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _keep_place(self, number: int, place: _Place) -> None:
        assert self._db is not None
        self._db.execute("INSERT INTO place VALUES (?, ?, ?, ?)", (number, *astuple(place)))

    def _load(self, level: int, first: int, beyond: int) -> list[Bin]:
        if self._db is None or beyond <= first:
            return []
        rows = self._db.execute(
            "SELECT first_step, last_step, first_epoch, last_epoch, first_time, last_time, series "
            "FROM bin WHERE level = ? AND number >= ? AND number < ? ORDER BY number",
            (level, first, beyond),
        )
        return [_made(*row) for row in rows]

    def _commit(self) -> None:
        if self._db is not None and self._db.in_transaction:
            self._db.executemany(
                "INSERT OR REPLACE INTO series VALUES (?, ?, ?)",
                [(number, name, self._firsts.get(name)) for name, number in self._names.items()],
            )
            self._db.commit()

    def _discard(self) -> None:
        """Begin anew, without what was kept."""
        if self._db is not None:
            self._db.close()
            self._db = None
        _remove(self._path)
        self._begin_anew()


def _made(
    first_step: int,
    last_step: int,
    first_epoch: float | None,
    last_epoch: float | None,
    first_time: float | None,
    last_time: float | None,
    series: bytes,
) -> Bin:
    found = {key: Stretch._make(rest) for key, *rest in _SERIES.iter_unpack(series)}
    return Bin(first_step, last_step, first_epoch, last_epoch, first_time, last_time, found)


def _is_within(made: Bin, x: X, begin: float, end: float) -> bool:
    low, high = getattr(made, f"first_{x}"), getattr(made, f"last_{x}")
    return low is not None and low <= end and high >= begin


def _is_plain_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def _remove(path: Path) -> None:
    for name in (path, Path(f"{path}-journal")):
        with suppress(OSError):
            name.unlink()


def _connect(path: Path) -> sqlite3.Connection:
    """Raises OSError where the run folder is a link, which leads anywhere."""
    if path.parent.is_symlink():
        raise OSError(f"{path.parent} is a link")
    db = sqlite3.connect(path, timeout=1, isolation_level=None, check_same_thread=False)
    # What is lost in a power cut is found damaged, or missing, and made anew.
    for pragma in ("synchronous = OFF", "cache_size = -1000", "trusted_schema = OFF"):
        db.execute(f"PRAGMA {pragma}")
    return db
