"""Numbers, times and strangers' texts, as the pages write them."""

import re
import unicodedata
from datetime import UTC, datetime, tzinfo
from html import escape as as_html
from typing import Any, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from backend import stall
from backend.models import FailureKind

NOTHING: Final = "–"
"""What stands where there is no figure."""

KIND_WORDS: Final = {
    FailureKind.TIMEOUT: "timed out",
    FailureKind.CRASHED: "crashed",
    FailureKind.GPU_OUT_OF_MEMORY: "out of GPU memory",
    FailureKind.HOST_OUT_OF_MEMORY: "out of memory",
    FailureKind.KILLED: "killed",
    FailureKind.COULD_NOT_START: "could not start",
    FailureKind.LOST: "lost",
}

_MARKDOWN: Final = re.compile(r"([!-/:-@\[-`{-~])")
_ACTING: Final = re.compile(r"(:(?=[\\\w])|@|[wW]{3}(?=\\\.))")
_RIGHT_TO_LEFT: Final = frozenset({"R", "AL"})
_LONGEST: Final = 10_000

_TIME: Final = re.compile(r'(<time datetime="[^"<>\\]*" title="[^"<>\\]*">[^<>\\]*</time>)')
_TAG: Final = re.compile(r"(?<!\\)<")

_COLOURS: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")
"""What colours a terminal and moves its cursor. Source: ECMA-48, 5.4 (control sequences)."""
_BREAKS: Final = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
_BLANKS: Final = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and signs that show as nothing."""
_FLOOD: Final = re.compile("m{5,}")


class _Shown(dict[int, str | None]):
    """What becomes of each character of a stranger's text, for `str.translate`."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        kind = unicodedata.category(character)
        shown: str | None = character
        if character in _BREAKS:
            shown = "\n"
        elif character in _BLANKS or (kind == "Cc" and character != "\t"):
            shown = " "
        elif kind in {"Cf", "Cs"}:
            shown = None
        self[code] = shown
        return shown


class _Kinds(dict[int, str]):
    """`m` for a mark that is drawn over the letter before it, else a dot."""

    def __missing__(self, code: int) -> str:
        self[code] = kind = "m" if unicodedata.category(chr(code)) in {"Mn", "Me"} else "."
        return kind


_SHOWN: Final = _Shown()
_KINDS: Final = _Kinds()


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `4 min 0 s`, `2 h 5 min`, `3 d 4 h`: two units at most."""
    if seconds is None:
        return NOTHING
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for size, unit, small, small_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"),
                                          (60, "min", 1, "s")):  # fmt: skip
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // small} {small_unit}"
    return f"{whole} s"


def roughly(seconds: float) -> str:
    """`12 s`, `6 min`, `2 h`, `3 d`: one unit, rounded down."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit}"
    return f"{max(0, int(seconds))} s"


def ago(moment: datetime | None, now: datetime | None = None) -> str:
    """`just now`, `2 min ago`."""
    if moment is None:
        return NOTHING
    passed = ((now or datetime.now(UTC)) - moment).total_seconds()
    return "just now" if passed < 5 else f"{roughly(passed)} ago"


def zone(name: str | None) -> tzinfo:
    """The reader's time zone by its name, or UTC where it is not known."""
    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return UTC


def exact(moment: datetime | None, where: tzinfo = UTC) -> str:
    """`23 Nov 2026, 19:04:05 UTC`."""
    return NOTHING if moment is None else moment.astimezone(where).strftime("%d %b %Y, %H:%M:%S %Z")


def moment(at: datetime | None, where: tzinfo = UTC, now: datetime | None = None) -> str:
    """`2 min ago` as HTML that carries the exact time and shows it on hover."""
    if at is None:
        return NOTHING
    machine = at.astimezone(UTC).isoformat(timespec="seconds")
    hover = as_html(exact(at, where))
    return f'<time datetime="{machine}" title="{hover}">{ago(at, now)}</time>'


def size(count: float | None) -> str:
    """`812 B`, `1.5 KiB`, `2.0 GiB`."""
    if count is None:
        return NOTHING
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def figure(value: float | None, digits: int = 4) -> str:
    """A number as researchers read it: four significant digits, `3e-04` where it is tiny."""
    if value is None:
        return NOTHING
    if value == 0 or 1e-3 <= abs(value) < 1e6:
        text = f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:,.0f}"
        return text.replace("-", "−")
    return f"{value:.{digits - 1}g}".replace("-", "−")


def count(value: int | None) -> str:
    return NOTHING if value is None else f"{value:,}"


def some(number: int, noun: str) -> str:
    """`1 job`, `2 jobs`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def lines(text: Any) -> str:
    """A stranger's text as plain lines, for places that show text as it is.

    Every break is a new line, so that a carriage return hides nothing. Colours, control characters
    and those without a width or that turn the writing are left out, and of a flood of combining
    marks all but four.
    """
    plain = _COLOURS.sub("", str(text)).replace("\r\n", "\n").translate(_SHOWN)
    pieces, end = [], 0
    for flood in _FLOOD.finditer(plain.translate(_KINDS)):
        pieces.append(plain[end : flood.start() + 4])
        end = flood.end()
    return "".join([*pieces, plain[end:]])


def one_line(text: Any, most: int = 120) -> str:
    """A stranger's text on one line: as `lines`, and not without end."""
    plain = " ".join(lines(str(text)[:_LONGEST]).split())
    return plain if len(plain) <= most else plain[: most - 1].rstrip() + "…"


def escape(text: Any, most: int = 120) -> str:
    """A stranger's text for places that read Markdown: it shows as typed, and nothing in it acts.

    Backslashes stop Markdown and HTML. Streamlit looks for `:icons:`, addresses and mail once more
    afterwards, in the plain text; a word joiner (U+2060, no width) keeps it from finding any.
    Right-to-left writing is held inside isolating marks.
    """
    return _escaped(one_line(text, most))


def prose(text: Any, most: int = 1000) -> str:
    """A sentence with `code` in it, for places that read Markdown: code shows as code, the rest as
    `escape` has it."""
    parts = one_line(text, most).split("`")
    if len(parts) % 2 == 0:  # it was cut within some, or a stranger's is among them
        return _escaped("`".join(parts))
    return "".join(
        code(part, most) if number % 2 else _escaped(part)
        for number, part in enumerate(parts)
        if part
    )


def only_times(markdown: str) -> str:
    """Markdown in which no HTML acts but that of `moment`. In what went through `escape` none does
    anyway: there a backslash stands before each sign of it."""
    parts = _TIME.split(markdown)
    return "".join(part if n % 2 else _TAG.sub(r"\<", part) for n, part in enumerate(parts))


def code(text: Any, most: int = 200) -> str:
    """A stranger's line of code, for places that read Markdown."""
    plain = one_line(text, most).replace("`", "'")
    return _isolated(f"`{plain}`", plain) if plain else ""


def _escaped(plain: str) -> str:
    return _isolated(_ACTING.sub("\\1\u2060", _MARKDOWN.sub(r"\\\1", plain)), plain)


def _isolated(shown: str, plain: str) -> str:
    turns = any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in plain)
    return f"\u2068{shown}\u2069" if turns else shown


def more(seconds: float) -> str:
    """A timeout as an extension: `10 more minutes`, `1 more minute`, `6 more seconds`."""
    number, unit = stall.duration(seconds).split(" ", 1)
    return f"{number} more {unit}"
