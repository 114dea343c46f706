"""The stall clock, with time passed in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.stall import StallClock, duration, timeout_message


def test_the_clock_starts_at_launch_so_a_job_that_never_writes_is_caught() -> None:
    clock = StallClock(10, now=100)
    for now in range(101, 110):
        clock.tick(now)
        assert not clock.expired
    clock.tick(110)
    assert clock.expired


def test_progress_starts_it_anew() -> None:
    clock = StallClock(10, now=0)
    for now in range(1, 10):
        clock.tick(now)
    clock.progressed(9.5)
    assert clock.silent_seconds == 0
    assert clock.seconds_left == 10
    clock.tick(10.5)
    assert clock.silent_seconds == 1


def test_the_last_fifth_is_a_warning() -> None:
    clock = StallClock(10, now=0)
    for now in range(1, 8):
        clock.tick(now)
        assert not clock.warned
    clock.tick(8)
    assert clock.warned


def test_a_suspended_laptop_or_a_stopped_server_counts_as_one_look() -> None:
    clock = StallClock(600, now=0, longest_tick=2)
    clock.tick(1)
    clock.tick(4000)
    assert clock.silent_seconds == 3


def test_a_clock_that_steps_back_takes_nothing_away() -> None:
    clock = StallClock(10, now=100)
    clock.tick(101)
    clock.tick(50)
    assert clock.silent_seconds == 1
    clock.tick(51)
    assert clock.silent_seconds == 2


def test_an_extension_grants_a_full_timeout_from_then_on() -> None:
    clock = StallClock(10, now=0)
    for now in range(1, 10):
        clock.tick(now)
    clock.extend()
    assert clock.seconds_left == 10
    assert clock.silent_seconds == 9, "the silence is told as it is"
    assert not clock.warned
    clock.progressed(10)
    assert clock.seconds_left == 10, "an extension is for this silence only"


@given(st.lists(st.floats(0, 1e6), max_size=50), st.floats(0.1, 1e5))
def test_it_never_expires_before_its_time(times: list[float], timeout: float) -> None:
    clock = StallClock(timeout, now=0)
    for now in times:
        clock.tick(now)
        assert clock.silent_seconds <= sum(times) + 1e-6
        assert clock.expired == (clock.silent_seconds >= timeout)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (600, "10 minutes"),
        (60, "1 minute"),
        (30, "30 seconds"),
        (6, "6 seconds"),
        (1, "1 second"),
        (90, "90 seconds"),
        (3600, "60 minutes"),
        (0.6, "0.6 seconds"),
    ],
)
def test_the_message_has_the_number_as_configured(seconds: float, words: str) -> None:
    assert duration(seconds) == words
    assert timeout_message(seconds) == f"Training timed out - no progress updates for {words}"
