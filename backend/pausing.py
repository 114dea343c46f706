"""A pause that was asked of a running job: how it is told, and whether it obeys."""

import os
import signal
from datetime import UTC, datetime
from typing import Final

from backend.checkpoints import size_of
from backend.diagnosis import ExitRecord
from backend.models import utc_now
from backend.paths import RunPaths
from backend.processes import Leader, catches, script_of, send_signal
from backend.progress import Reading
from backend.spec import StopFile
from backend.stall import duration

LOOK_SECONDS: Final = 1.0
"""So often it is looked whether a checkpoint grows."""

STOPPING: Final = "stopping"
"""The status in progress.json of a job that was told that it is to stop, and does."""


MAX_GRACES: Final = 30
"""However much is saved, a pause takes no more than so many graces."""


class Pause:
    """Asked through stop.json, and by SIGTERM where the script wants it so; by nothing that could
    end one that does not know what a pause is."""

    def __init__(self, paths: RunPaths, grace_seconds: float, now: float) -> None:
        """Ask, unless an earlier server has.

        Args:
            grace_seconds: so long the job has, from the last time that a checkpoint grew.
            now: the monotonic clock, in seconds.

        Raises:
            OSError: stop.json cannot be written.
        """
        asked = StopFile.read(paths)
        # Many a training takes a second SIGTERM for impatience: that server may have sent one.
        self._has_told = asked is not None and asked.pause
        if asked is None or not asked.pause:
            asked = StopFile(asked_at=utc_now(), pause=True)
            asked.publish(paths)
        self._asked_at = asked.asked_at
        self._paths = paths
        self._grace_seconds = grace_seconds
        self._saved = size_of(paths)
        self._began_at = self._grew_at = self._looked_at = now

    def tell(self, leader: Leader, reading: Reading | None) -> None:
        """Say it once by a signal too, to a script that wants it so and catches it.

        To no other: the agent of torchrun catches SIGTERM, and ends its ranks with an error.
        """
        if self._has_told or reading is None or not reading.wants_sigterm:
            return
        script = script_of(leader, leader.tree(afresh=True))
        if script is not None and catches(script.id.pid, signal.SIGTERM):
            self._has_told = send_signal(script.id, signal.SIGTERM, wake=False)

    def saves(self, now: float, reading: Reading | None) -> bool:
        """Whether the job obeys and is writing a checkpoint: that stretches its grace, and is a
        sign of life."""
        if now - self._looked_at < LOOK_SECONDS:
            return False
        self._looked_at = now
        before, self._saved = self._saved, size_of(self._paths)
        obeys = reading is not None and (reading.status == STOPPING or reading.wants_sigterm)
        if before == self._saved or not obeys:
            return False
        self._grew_at = now
        return True

    def why_not(self, now: float, reading: Reading | None) -> str | None:
        """The sentence that says why the job goes on; None while it may still obey."""
        if reading and reading.stop_declined and self._is_mine(reading.stop_declined_asked_at):
            return f"It was not paused: {reading.stop_declined}"
        longest = MAX_GRACES * self._grace_seconds
        if now - self._grew_at <= self._grace_seconds and now - self._began_at <= longest:
            return None
        asked = f"within {duration(self._grace_seconds)} of being asked"
        if reading is None or not reading.can_pause:
            return (
                f"It was not paused: the script did not stop {asked}, and has never said that it "
                "can. It goes on."
            )
        return f"It was not paused: it did not stop {asked}, and goes on."

    def withdraw(self) -> None:
        """Ask no more. Raises OSError."""
        self._paths.stop.unlink(missing_ok=True)

    def _is_mine(self, asked_at: str | None) -> bool:
        try:
            found = datetime.fromisoformat(asked_at or "")
        except ValueError:
            return False
        return found.astimezone(UTC) == self._asked_at


def has_obeyed(
    paths: RunPaths, record: ExitRecord | None, exit_code: int | None, reading: Reading | None
) -> bool:
    """Whether a job that has ended saved and stopped before its end, so that it can be resumed.

    It ended well, and its last word was that it stops: because of a pause, which may have been
    withdrawn meanwhile, or of a SIGTERM that somebody sent. Of one that gives no such word: while a
    pause was asked it ended well, or died of SIGTERM, as one does that saves and passes it on.
    """
    if reading is None or not reading.can_pause:
        return False
    signalled = record.signal if record else None
    code = record.code if record is not None and record.code is not None else exit_code
    ended_well = signalled is None and code == os.EX_OK
    if ended_well and reading.status == STOPPING:
        return True
    asked = StopFile.read(paths)
    if asked is None or not asked.pause:
        return False
    return (ended_well and reading.status is None) or signalled == signal.SIGTERM
