"""The log as a terminal would show it."""

import os
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from backend.log import TAIL_BYTES, as_shown, read_tail, tail


def _tail(tmp_path: Path, content: bytes, lines: int = 10) -> str:
    path = tmp_path / "log.txt"
    path.write_bytes(content)
    return tail(path, lines)


def test_a_bar_that_rewrites_its_line_appears_once(tmp_path: Path) -> None:
    bar = b"start\n" + b"".join(b"\r%3d%%|###  |" % n for n in range(101)) + b"\nend\n"
    assert _tail(tmp_path, bar) == "start\n100%|###  |\nend"


def test_a_bar_under_way_is_shown_in_its_last_state(tmp_path: Path) -> None:
    assert _tail(tmp_path, b"\r1%\r2%\r3%\r") == "3%"


def test_windows_line_ends_are_line_ends(tmp_path: Path) -> None:
    assert _tail(tmp_path, b"a\r\nb\r\n") == "a\nb"


def test_escape_codes_and_control_characters_are_left_out(tmp_path: Path) -> None:
    content = b"\x1b[31mred\x1b[0m \x1b]0;title\x07x\x00\x08y\n" + "\u202eabc\n".encode()
    assert _tail(tmp_path, content) == "red xy\nabc"


def test_bytes_that_are_no_utf8_become_replacement_marks(tmp_path: Path) -> None:
    assert _tail(tmp_path, b"caf\xe9\n") == "caf�"


def test_only_the_last_lines_of_a_long_log_are_read(tmp_path: Path) -> None:
    content = b"".join(b"line %d\n" % n for n in range(200_000))
    assert _tail(tmp_path, content, 2) == "line 199998\nline 199999"


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    shown = _tail(tmp_path, b"x" * (3 * TAIL_BYTES))
    assert len(shown) == 2000
    assert shown.endswith("…")


def test_no_log_is_an_empty_text(tmp_path: Path) -> None:
    assert tail(tmp_path / "log.txt", 5) == ""
    assert tail(tmp_path, 5) == ""


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "log.txt").symlink_to(tmp_path / "secret")
    assert read_tail(tmp_path / "log.txt", 100) == b""


def test_no_log_is_read_through_a_link_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "log.txt").write_text("secret")
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    assert read_tail(tmp_path / "run" / "log.txt", 100) == b""


def test_a_fifo_in_place_of_the_log_is_an_empty_text(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log.txt")
    assert tail(tmp_path / "log.txt", 5) == ""


def test_the_tail_of_a_huge_log_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    with path.open("wb") as file:
        file.seek(5 * 10**9)
        file.write(b"\nthe end\n")
    begin = time.monotonic()
    assert tail(path, 1) == "the end"
    assert time.monotonic() - begin < 2


@given(st.text())
def test_anything_becomes_plain_text(text: str) -> None:
    shown = as_shown(text)
    assert "\x1b" not in shown
    assert "\0" not in shown
    assert "\r" not in shown
