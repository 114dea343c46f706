"""Numbers, times and strangers' texts."""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

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
