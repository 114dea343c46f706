"""Values of a job's variables become asterisks wherever they are printed."""

import itertools
import json
import time
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from backend.mask import MAX_LINES, MIN_LENGTH, Mask, _is_number, mask_of

# Few letters, so that values occur, overlap and hold each other.
VALUES = st.lists(st.text("abé\"\\\n'", max_size=12), max_size=5)
TEXTS = st.text("abé\"\\\n'x ", max_size=60)


def _text_with(values: list[str], text: str, places: list[int]) -> str:
    for value, place in zip(values, places, strict=False):
        text = text[:place] + value + text[place:]
    return text


def _cut(content: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return [content[a:b] for a, b in itertools.pairwise(edges)]


def _hidden(values: list[str]) -> set[str]:
    lines = {line.strip() for value in values for line in (value, *value.splitlines())}
    return {line for line in lines if len(line) >= MIN_LENGTH}


def test_a_value_becomes_as_many_asterisks() -> None:
    mask = Mask(["hf_sécret"])
    assert mask.text("key=hf_sécret.") == "key=*********."
    assert mask.data("key=hf_sécret.".encode()) == b"key=**********."
    assert Mask(["hf_secret"]).reach == 8


def test_a_short_value_stays() -> None:
    """Ordinary text would go with it."""
    mask = Mask(["1", "true", "12345", "  abc  ", "", "100000", "-0.00030", "1.5e-4"])
    assert not mask
    assert mask.text("1 true 12345") == "1 true 12345"
    assert mask.data(b"true") == b"true"
    assert mask.reach == 0
    assert Mask(["abcdef"]).text("abcdef") == "******"


@pytest.mark.parametrize(
    "number", ["1" * 20, "1_000_000", "-1e-300", "3.141592653589793238462643", "infinity"]
)
def test_a_number_of_any_length_stays(number: str) -> None:
    """Else the JSON that holds it would be none any more."""
    assert not Mask([number])
    assert Mask([number + "x"]).text(number + "x") == "*" * (len(number) + 1)


def test_each_line_of_a_value_is_hidden() -> None:
    mask = Mask(["-----BEGIN-----\nMIIEvQIBADAN\r\nend\n"])
    assert mask.text("a MIIEvQIBADAN b -----BEGIN----- end") == f"a {'*' * 12} b {'*' * 15} end"


def test_blanks_around_a_value_are_not_part_of_it() -> None:
    assert Mask(["  hf_secret\n"]).text("[hf_secret]") == "[*********]"


def test_of_values_that_overlap_no_byte_is_left() -> None:
    mask = Mask(["secret-one", "one-more-secret"])
    assert mask.data(b"<secret-one-more-secret>") == b"<**********************>"
    assert Mask(["abcabc"]).text("abcabcabc.") == "*********."


@pytest.mark.parametrize("value", ['with "quotes"', "back\\slash", "two\nlines", "käse\t\x1b[0m"])
def test_a_value_is_hidden_as_json_and_python_spell_it(value: str) -> None:
    mask = Mask([value])
    error = {"error": repr(KeyError(value)), "value": value}
    texts = [json.dumps(error), json.dumps(error, ensure_ascii=False), repr(error), f"<{value}>"]
    for text in texts:
        for part in ("quotes", "slash", "lines", "se\\t", "se\t"):
            assert part not in mask.text(text)
            assert part.encode() not in mask.data(text.encode())
        assert len(mask.text(text)) == len(text)
        assert len(mask.data(text.encode())) == len(text.encode())


def test_a_value_that_is_no_utf8_is_hidden() -> None:
    """As Python has it of a variable with any bytes in it."""
    assert Mask(["caf\udce9-secret"]).data(b"caf\xe9-secret.") == b"***********."
    assert not Mask(["half \ud800 a character"]).data(b"no variable can have that").count(b"*")


@given(VALUES, TEXTS, st.lists(st.integers(0, 60), max_size=5))
def test_no_value_is_left_and_nothing_moves(
    values: list[str], text: str, places: list[int]
) -> None:
    text = _text_with(values, text, places)
    mask = Mask(values)
    shown, content = mask.text(text), mask.data(text.encode())
    assert len(shown) == len(text)
    assert len(content) == len(text.encode())
    for value in _hidden(values):
        for spelling in (value, json.dumps(value)[1:-1]):
            assert spelling not in shown
            assert spelling.encode() not in content
    kept = [(a, b) for a, b in zip(text, shown, strict=True) if b != "*"]
    assert all(a == b for a, b in kept)


@given(VALUES, TEXTS, st.lists(st.integers(0, 60), max_size=5), st.lists(st.integers(0, 200)))
def test_a_stream_is_masked_as_the_whole_is_however_it_is_cut(
    values: list[str], text: str, places: list[int], cuts: list[int]
) -> None:
    content = _text_with(values, text, places).encode()
    mask = Mask(values)
    assert b"".join(mask.chunks(_cut(content, cuts))) == mask.data(content)


@given(VALUES, TEXTS, st.lists(st.integers(0, 60), max_size=5), st.integers(0, 200))
def test_a_piece_is_masked_by_itself_with_its_reach(
    values: list[str], text: str, places: list[int], start: int
) -> None:
    content = _text_with(values, text, places).encode()
    mask = Mask(values)
    begin, end = max(0, start - mask.reach), start + 7 + mask.reach
    piece = mask.data(content[begin:end])[start - begin :][:7]
    assert piece == mask.data(content)[start : start + 7]


@given(VALUES, TEXTS)
def test_what_a_value_begins_with_is_known_at_the_end(values: list[str], text: str) -> None:
    content, mask = text.encode(), Mask(values)
    begun = mask.begun(content)
    assert begun <= mask.reach
    for value in _hidden(values):
        needle = value.encode()
        begins = [n for n in range(1, len(needle)) if content.endswith(needle[:n])]
        assert begun >= max(begins, default=0)


def test_the_beginning_of_a_value_is_counted_to_the_byte() -> None:
    mask = Mask(["hf_secret", "secondary"])
    assert mask.begun(b"key=hf_sec") == 6
    assert mask.begun(b"hf_secre") == 8
    assert mask.begun(b"key=hf_secret") == 0
    assert mask.begun(b"key=hf_s") == 4
    assert mask.begun(b"key") == 0
    assert mask.begun(b"") == 0
    assert Mask([]).begun(b"anything") == 0


def test_the_beginning_of_a_value_is_hidden_where_a_text_was_cut() -> None:
    mask = Mask(["hf_secret"])
    assert mask.text("key=hf_sec", 10) == "key=******"
    assert mask.text("hf_secret hf_", 10) == "********* ***"
    assert mask.text("key=hf_sec", 11) == "key=hf_sec"
    assert mask.text("key=hf_sec") == "key=hf_sec"
    assert Mask(["x" * 300 + "!"]).text("_" + "x" * 199, 200) == "_" + "*" * 199


def test_among_many_values_none_is_left() -> None:
    """They are searched for in another way: two that begin alike, one in another, overlaps."""
    values = [f"value-{n}" for n in range(1000)] + ["e-17 value-9", "y" * 5000]
    mask = Mask(values)
    shown = mask.text("a value-17 value-999 value- value-x")
    assert shown == f"a {'*' * 18} value- value-x"
    assert mask.data(b"value-123!" + b"y" * 5001) == b"*" * 9 + b"!" + b"*" * 5001
    assert mask.begun(b"value-12") == 8


@given(VALUES, TEXTS, st.lists(st.integers(0, 60), max_size=5))
def test_many_values_are_hidden_as_few_are(values: list[str], text: str, places: list[int]) -> None:
    text = _text_with(values, text, places)
    many = [*values, *(f"none of these {n}" for n in range(100))]
    assert Mask(many).text(text) == Mask(values).text(text)
    assert Mask(many).data(text.encode()) == Mask(values).data(text.encode())
    assert Mask(many).begun(text.encode()) == Mask(values).begun(text.encode())


@given(st.text("ab", min_size=6, max_size=9), st.text("ab", max_size=60))
def test_a_value_that_overlaps_itself_is_hidden_wherever_it_is(value: str, text: str) -> None:
    hidden = {
        place
        for start in range(len(text))
        if text.startswith(value, start)
        for place in range(start, start + len(value))
    }
    shown = "".join("*" if n in hidden else letter for n, letter in enumerate(text))
    assert Mask([value]).text(text) == shown


@pytest.mark.parametrize("value", ["a" * 32_768, "ab" * 16_384, "a" * 16_384 + "b" * 16_384])
def test_a_long_value_in_a_long_text_takes_a_moment(value: str) -> None:
    begin = time.monotonic()
    mask = Mask([value])
    content = (value * 9)[: 2**18]
    assert mask.text(content).startswith("*" * len(value))
    assert mask.data(content.encode()).startswith(b"*" * len(value))
    assert mask.begun(content.encode()) < len(value)
    assert time.monotonic() - begin < 5, "12.5 s where each place is looked at by itself"


def test_a_value_of_very_many_lines_takes_a_moment() -> None:
    lines = [f"{n:x}_secret" for n in range(130_000)]
    env = {"LONG": "\n".join(lines)}
    begin = time.monotonic()
    mask = mask_of(env)
    assert mask.text("an ordinary line\n" * 15_000).count("*") == 0
    assert time.monotonic() - begin < 5, "9.4 s where all lines are searched for one by one"
    assert mask_of(dict(env)) is mask
    assert lines[MAX_LINES - 1] not in mask.text(lines[MAX_LINES - 1])
    assert "_secret" not in mask.text("\n".join(lines))


def test_a_long_stream_takes_little_memory() -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(2000):
            yield b"line after line\n" * 1000

    mask = Mask(["hf_secret" * 10])
    tracemalloc.start()
    try:
        assert sum(map(len, mask.chunks(chunks()))) == 2000 * 16_000
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


@given(st.text(min_size=MIN_LENGTH), st.text())
def test_any_value_is_hidden_in_any_text(value: str, text: str) -> None:
    assume(len(value.strip()) >= MIN_LENGTH)
    assume("*" not in value)
    assume(not _is_number(value.strip()))
    assert value not in Mask([value]).text(text + value + text)
