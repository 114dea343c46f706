"""The log as a terminal would show it."""

import os
import tempfile
import time
import tracemalloc
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.log import TAIL_BYTES, LogSlice, as_shown, read_slice, read_tail, tail
from backend.mask import Mask

NOTHING = Mask([])
NO_LOG = LogSlice("", 0, 0, 0)


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


def test_a_tail_does_not_show_a_value(tmp_path: Path) -> None:
    """Not one that begins before what is read, nor one with an escape sequence in it."""
    path = tmp_path / "log.txt"
    path.write_bytes(b"token=hf_secret\nhf_\x1b[1msec\x1b[0mret\n")
    mask = Mask(["hf_secret"])
    assert tail(path, 5, mask) == "token=*********\n*********"
    assert tail(path, 5, NOTHING) == tail(path, 5) == "token=hf_secret\nhf_secret"
    path.write_bytes(b"hf_secret" + b"x" * (TAIL_BYTES - 4))
    assert read_tail(path, TAIL_BYTES, mask)[:6] == b"****xx"
    assert read_tail(path, 10**9, mask)[:10] == b"*********x"


def _slices(path: Path, limits: Iterator[int], mask: Mask, *, grows: bool) -> Iterator[LogSlice]:
    """All of a log, as a client follows it."""
    offset = 0
    while True:
        part = read_slice(path, offset, limit := next(limits), mask, grows=grows)
        assert part.offset == offset
        assert part.next_offset - offset <= max(limit, 4)
        assert bool(part.text) == (part.next_offset > offset), "It stops, or it goes on."
        if not part.text:
            return
        yield part
        offset = part.next_offset


def test_a_log_is_followed_slice_by_slice(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"one\r\x1b[1mtwo\n")
    assert read_slice(path, 0, 4, NOTHING, grows=True) == LogSlice("one\r", 0, 4, 12)
    assert read_slice(path, 4, 100, NOTHING, grows=True) == LogSlice("\x1b[1mtwo\n", 4, 12, 12)
    assert read_slice(path, 12, 100, NOTHING, grows=True) == LogSlice("", 12, 12, 12)
    with path.open("ab") as file:
        file.write(b"three")
    assert read_slice(path, 12, 100, NOTHING, grows=True) == LogSlice("three", 12, 17, 17)


def test_a_log_that_was_cut_is_followed_from_its_end(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"abc")
    assert read_slice(path, 10, 5, NOTHING, grows=True) == LogSlice("", 3, 3, 3)
    assert read_slice(path, 10, 5, Mask(["secret"]), grows=False) == LogSlice("", 3, 3, 3)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5])
def test_a_character_is_never_cut(tmp_path: Path, limit: int) -> None:
    path = tmp_path / "log.txt"
    path.write_text("aé€🙂z", encoding="utf-8")
    parts = list(_slices(path, cycle([limit]), NOTHING, grows=True))
    assert "".join(part.text for part in parts) == "aé€🙂z"
    assert parts[-1].next_offset == 11


def test_half_a_character_at_the_end_is_left_until_the_log_ends(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes("ab€".encode()[:-1])
    assert read_slice(path, 0, 100, NOTHING, grows=True) == LogSlice("ab", 0, 2, 4)
    assert read_slice(path, 2, 1, NOTHING, grows=True) == LogSlice("", 2, 2, 4)
    assert read_slice(path, 2, 100, NOTHING, grows=False) == LogSlice("\ufffd", 2, 4, 4)
    assert read_slice(path, 2, 1, NOTHING, grows=False) == LogSlice("\ufffd", 2, 4, 4)


def test_a_value_that_spans_slices_is_hidden_in_each(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"key=hf_secret.")
    mask = Mask(["hf_secret"])
    for limit in range(1, 15):
        for offset in range(14):
            part = read_slice(path, offset, limit, mask, grows=False)
            assert part.text == "key=*********."[offset : offset + limit]


def test_a_value_that_is_still_being_written_is_left(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    path.write_bytes(b"key=hf_sec")
    mask = Mask(["hf_secret"])
    assert read_slice(path, 0, 100, mask, grows=True) == LogSlice("key=", 0, 4, 10)
    assert read_slice(path, 4, 100, mask, grows=True) == LogSlice("", 4, 4, 10)
    assert read_slice(path, 7, 1, mask, grows=True) == LogSlice("", 7, 7, 10)
    assert read_slice(path, 4, 3, mask, grows=True) == LogSlice("", 4, 4, 10)
    with path.open("ab") as file:
        file.write(b"ret")
    assert read_slice(path, 4, 100, mask, grows=True) == LogSlice("*********", 4, 13, 13)
    path.write_bytes(b"key=hf_section")
    assert read_slice(path, 4, 100, mask, grows=True).text == "hf_section"


@pytest.mark.parametrize("mask", [NOTHING, Mask(["aébaéb", "bbbbbb"])], ids=["plain", "masked"])
@given(
    content=st.one_of(
        st.text("abé€🙂\n", max_size=60).map(str.encode),
        st.binary(max_size=40),
        st.lists(
            st.sampled_from([b"a\xc3\xa9ba\xc3\xa9b", b"bbb", b"\xc3", b"a", b"\xf0\x9f"])
        ).map(b"".join),
    ),
    limits=st.lists(st.integers(1, 20), min_size=1, max_size=8),
)
def test_the_slices_together_are_the_log(mask: Mask, content: bytes, limits: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.txt"
        path.write_bytes(content)
        whole = mask.data(content).decode("utf-8", "replace")
        ended = list(_slices(path, cycle(limits), mask, grows=False))
        assert "".join(part.text for part in ended) == whole
        if content:
            assert ended[-1].next_offset == len(content)
        grows = list(_slices(path, cycle(limits), mask, grows=True))
        assert whole.startswith("".join(part.text for part in grows))
        left = len(content) - (grows[-1].next_offset if grows else 0)
        assert left <= max(mask.reach, 3)


def test_where_there_is_no_log_the_slice_is_empty(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "log.txt"
    assert read_slice(path, 5, 10, NOTHING, grows=True) == NO_LOG
    path.mkdir()
    assert read_slice(path, 0, 10, NOTHING, grows=True) == NO_LOG
    path.rmdir()
    os.mkfifo(path)
    assert read_slice(path, 0, 10, NOTHING, grows=True) == NO_LOG
    path.unlink()
    (tmp_path / "secret").write_text("theirs")
    path.symlink_to(tmp_path / "secret")
    assert read_slice(path, 0, 10, NOTHING, grows=True) == NO_LOG
    path.unlink()
    path.write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "run")
    assert read_slice(tmp_path / "link" / "log.txt", 0, 10, NOTHING, grows=True) == NO_LOG


def test_a_slice_of_a_huge_log_is_there_at_once(tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    size = 4 * 2**30
    with path.open("wb") as file:
        file.seek(size - 8)
        file.write(b"the end\n")
    tracemalloc.start()
    try:
        part = read_slice(path, size - 8, 100_000, Mask(["hf_secret"]), grows=True)
        assert part == LogSlice("the end\n", size - 8, size, size)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_sequence_that_is_never_ended_hides_no_more_than_its_line() -> None:
    assert as_shown("before\n\x1b]0;title\nTraceback") == "before\n\nTraceback"
