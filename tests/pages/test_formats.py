"""Numbers, times and strangers' texts."""

import re
import unicodedata
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pages.parts import formats

NOW = datetime(2026, 11, 23, 18, 2, 45, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (-3, "0 s"),
        (0.44, "0.4 s"),
        (9.96, "10 s"),
        (59.6, "1 min 0 s"),
        (240, "4 min 0 s"),
        (7500, "2 h 5 min"),
        (3 * 86400 + 4 * 3600, "3 d 4 h"),
    ],
)
def test_durations_have_two_units_at_most(seconds: float | None, text: str) -> None:
    assert formats.duration(seconds) == text


@pytest.mark.parametrize(
    ("passed", "text"),
    [(1, "just now"), (-60, "just now"), (59, "59 s ago"), (150, "2 min ago"), (7300, "2 h ago")],
)
def test_ago(passed: float, text: str) -> None:
    assert formats.ago(NOW - timedelta(seconds=passed), NOW) == text


def test_the_exact_time_is_in_the_readers_zone() -> None:
    berlin = formats.zone("Europe/Berlin")
    assert formats.exact(NOW, berlin) == "23 Nov 2026, 19:02:45 CET"
    assert isinstance(berlin, ZoneInfo)


def test_a_moment_says_how_long_ago_and_holds_the_exact_time() -> None:
    at = NOW - timedelta(minutes=2)
    assert formats.moment(at, formats.zone("Europe/Berlin"), NOW) == (
        '<time datetime="2026-11-23T18:00:45+00:00" title="23 Nov 2026, 19:00:45 CET">'
        "2 min ago</time>"
    )
    assert formats.moment(None) == "–"


def test_of_all_html_only_a_time_is_left() -> None:
    time = formats.moment(NOW, now=NOW)
    assert formats.only_times(f"ended {time}") == f"ended {time}"
    assert formats.only_times(f"<b>x</b> {time}<i") == f"\\<b>x\\</b> {time}\\<i"
    odd = '<time datetime="x" title="y"><img src=x onerror=alert(1)></time>'
    assert formats.only_times(odd).startswith("\\<time")


@given(st.text(alphabet='<>/\\"=& time datetime title', max_size=80))
def test_a_strangers_text_cannot_pass_for_a_time(text: str) -> None:
    for name in (text, formats.moment(NOW, now=NOW) + text):
        assert not re.search(r"(?<!\\)(\\\\)*<", formats.only_times(formats.escape(name, 500)))


@pytest.mark.parametrize("name", [None, "", "Nowhere/At/All", "../../etc/passwd", "\0"])
def test_an_unknown_zone_is_utc(name: str | None) -> None:
    assert formats.zone(name) is UTC


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**31, "2.0 GiB"),
     (5 * 2**40, "5.0 TiB")],
)  # fmt: skip
def test_sizes(count: int | None, text: str) -> None:
    assert formats.size(count) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0, "0"), (1.23456, "1.235"), (0.0003, "0.0003"), (0.0000123, "1.23e−05"),
     (-2.5, "−2.5"), (123456.7, "123,457"), (1.5e9, "1.5e+09")],
)  # fmt: skip
def test_figures(value: float | None, text: str) -> None:
    assert formats.figure(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (600, "10 more minutes"),
        (60, "1 more minute"),
        (6, "6 more seconds"),
        (90, "90 more seconds"),
    ],
)
def test_an_extension_is_said_as_people_say_it(seconds: float, text: str) -> None:
    assert formats.more(seconds) == text


def test_one_line_has_no_breaks_no_direction_marks_and_an_end() -> None:
    assert formats.one_line("a\r\n\tb\0c\u202ed\u2028e") == "a b cd e"
    assert formats.one_line("x" * 500, 10) == "xxxxxxxxx…"
    assert formats.one_line("\ud800a") == "a"


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("one\r\ntwo\rthree\u2028four\x85five\x0bsix", "one\ntwo\nthree\nfour\nfive\nsix"),
        ("\x1b[1;31mred\x1b[0m\x1b[2J", "red"),
        ("\x1b]8;;http://a.b\x07link", " ]8;;http://a.b link"),
        ("nul\0 bell\x07", "nul  bell "),
        ("abc\u202efdp.exe\u2066\u200f", "abcfdp.exe"),
        ("in\u200bvis\u200dible\ufeff", "invisible"),
        ("\udc80half a pair", "half a pair"),
        ("\u3164\u2800", "  "),
        ("z" + "\u0336\u035c" * 200 + "!", "z\u0336\u035c\u0336\u035c!"),
        ("\u0e01" + "\u0e47" * 200, "\u0e01" + "\u0e47" * 4),
    ],
)
def test_lines_hide_nothing_and_turn_nothing(text: str, plain: str) -> None:
    assert formats.lines(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        'File "a.py", line 1\n\tx = 1\n\n    y',
        "naïve “quotes” 你好 مرحبا 100 % █▌",
        "e\u0301 a\u0323\u0302 \u05e9\u05c1\u05bc\u05b8 ชื่อ \u0928\u093f",
        "🙂 \U0001fae8 ❤\ufe0f",
    ],
)
def test_what_people_write_stays_as_it_is(text: str) -> None:
    assert formats.lines(text) == text


@given(st.text(alphabet=st.characters(), max_size=300))
def test_no_text_at_all_can_turn_hide_or_break_a_line(text: str) -> None:
    plain = formats.lines(text)
    kinds = {unicodedata.category(c) for c in plain if c not in "\n\t"}
    assert not kinds & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert formats.lines(plain) == plain
    line = formats.one_line(text, 50)
    assert len(line) <= 50
    assert len(line.splitlines()) <= 1
    formats.escape(text, 50).encode()  # what is sent to a browser; half a pair cannot be


@pytest.mark.parametrize(
    "text",
    [
        "**b**",
        "[a](b)",
        "<b>",
        "# h",
        "1. x",
        "- x",
        "$x$",
        "`c`",
        "~~s~~",
        "a|b",
        ":red[x]",
        "&lt;",
    ],
)
def test_escaped_markdown_is_all_backslashes(text: str) -> None:
    """Each ASCII punctuation mark is escaped, and nothing else of it is changed."""
    plain = formats.escape(text).replace("\u2060", "")
    punctuation = [c for c in text if not c.isalnum() and c != " "]
    assert plain.count("\\") == len(punctuation)
    assert plain.replace("\\", "") == text


@pytest.mark.parametrize("text", [":tada:", ":material/add:", "http://a.b", "www.a.b", "me@a.b"])
def test_what_streamlit_looks_for_after_markdown_is_broken_up(text: str) -> None:
    assert "\u2060" in formats.escape(text)


def test_plain_names_stay_as_they_are() -> None:
    assert formats.escape("digits seed 8") == "digits seed 8"


def test_right_to_left_writing_is_held_inside() -> None:
    assert formats.escape("שלום") == "\u2068שלום\u2069"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("in `queue.get` *now*", "in `queue.get` \\*now\\*"),
        ("`**x** <b>` and `y`", "`**x** <b>` and `y`"),
        ("a `` b", "a  b"),
        ("`שלום` x", "\u2068`שלום`\u2069 x"),
        ("one ` alone *", "one \\` alone \\*"),
    ],
)
def test_code_within_a_sentence_shows_as_code_and_the_rest_as_typed(text: str, shown: str) -> None:
    assert formats.prose(text) == shown


@given(st.text(alphabet="`*<[:$\\ ab\n", max_size=30))
def test_nothing_in_a_sentence_acts_outside_of_its_code(text: str) -> None:
    plain_or_escaped, code = r"[a-z \u2060]|\\[^a-z ]", "`(?:[^`]|``)+`"
    assert re.fullmatch(f"(?:{plain_or_escaped}|{code})*", formats.prose(text))


def test_a_line_of_code_cannot_end_itself() -> None:
    assert formats.code("f(`x`)\n  # **y**") == "`f('x') # **y**`"
    assert formats.code(" \u200b") == ""
