"""The stall clock: how long a job has been silent, and when that is too long."""

from typing import Final

WARN_SHARE: Final = 0.8
"""At this share of the timeout the stacks of the process are taken."""


class StallClock:
    """Counts the seconds in which somebody was looking and saw no progress.

    A tick counts at most `longest_tick` seconds: after a suspend, a stopped server or a loaded
    machine the time in which nobody looked is nobody's fault. `now` is the monotonic clock, in
    seconds.
    """

    def __init__(self, timeout_seconds: float, now: float, longest_tick: float = 2.0) -> None:
        self.timeout_seconds = timeout_seconds
        self.silent_seconds = 0.0
        self._allowed = timeout_seconds
        self._last = now
        self._longest_tick = longest_tick

    def tick(self, now: float) -> None:
        """A look was taken and nothing had changed since the last."""
        self.silent_seconds += min(max(0.0, now - self._last), self._longest_tick)
        self._last = now

    def progressed(self, now: float, timeout_seconds: float | None = None) -> None:
        """A look was taken and the job had made progress.

        Args:
            timeout_seconds: how long it may be silent from here on, where that has changed.
        """
        if timeout_seconds is not None:
            self.timeout_seconds = timeout_seconds
        self.silent_seconds = 0.0
        self._allowed = self.timeout_seconds
        self._last = now

    def extend(self) -> None:
        """Grant another full timeout from here on."""
        self._allowed = self.silent_seconds + self.timeout_seconds

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._allowed - self.silent_seconds)

    @property
    def warned(self) -> bool:
        """The last fifth of the timeout has begun."""
        return self.seconds_left <= self.timeout_seconds - WARN_SHARE * self.timeout_seconds

    @property
    def expired(self) -> bool:
        return self.seconds_left <= 0


def timeout_message(timeout_seconds: float) -> str:
    """The sentence that a timeout leaves, with the number as it was configured.

    >>> timeout_message(600)
    'Training timed out - no progress updates for 10 minutes'
    """
    return f"Training timed out - no progress updates for {duration(timeout_seconds)}"


STALLED: Final = "No progress for "
"""How the line of a job's timeline begins that says that the stacks were taken."""


def duration(seconds: float) -> str:
    """`10 minutes`, `1 minute`, `30 seconds`: whole minutes where they are whole."""
    minutes = round(seconds / 60, 6)
    if minutes >= 1 and minutes == int(minutes):
        number, unit = f"{int(minutes)}", "minute"
    else:
        number, unit = f"{round(seconds, 3):g}", "second"
    return f"{number} {unit}" if number == "1" else f"{number} {unit}s"
