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
        if asked is None or not asked.pause:
            asked = StopFile(asked_at=utc_now(), pause=True)
            asked.publish(paths)
        self._asked_at = asked.asked_at
        self._paths = paths
        self._grace_seconds = grace_seconds
        self._saved = size_of(paths)
        self._grew_at = self._looked_at = now

    def tell(self, leader: Leader, reading: Reading | None) -> None:
        """Say it by a signal too, to a script that has asked for it and catches it.

        To no other: the agent of torchrun catches SIGTERM, and ends its ranks with an error.
        """
        if reading is None or not reading.wants_sigterm:
            return
        script = script_of(leader, leader.tree(afresh=True))
        if script is not None and catches(script.id.pid, signal.SIGTERM):
            send_signal(script.id, signal.SIGTERM, wake=False)

    def why_not(self, now: float, reading: Reading | None) -> str | None:
        """The sentence that says why the job goes on; None while it may still obey."""
        if reading and reading.stop_declined and self._is_mine(reading.stop_declined_asked_at):
            return f"It was not paused: {reading.stop_declined}"
        if now - self._looked_at >= LOOK_SECONDS:
            self._looked_at = now
            saved = size_of(self._paths)
            if saved != self._saved:
                self._saved, self._grew_at = saved, now
        if now - self._grew_at <= self._grace_seconds:
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


def has_obeyed(record: ExitRecord | None, exit_code: int | None, reading: Reading | None) -> bool:
    """Whether a job that has ended did so because of the pause, and not because it was done.

    It ended well, and had answered; or it died of the SIGTERM that it catches, as one does that
    saves and then passes the signal on.
    """
    if reading is None or not reading.can_pause:
        return False
    if record is not None and record.signal is not None:
        return record.signal == signal.SIGTERM
    code = record.code if record is not None and record.code is not None else exit_code
    return code == os.EX_OK and reading.status in (STOPPING, None)
