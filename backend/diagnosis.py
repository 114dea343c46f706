"""What a failure was, and what to say of it: what happened, and what to try."""

import json
import os
import re
import signal
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from backend.mask import NO_MASK, Mask
from backend.models import FailureKind, JobStatus
from backend.paths import open_inside

EXPLANATIONS: Final[Mapping[FailureKind, str]] = {
    FailureKind.TIMEOUT: "The job reported no progress for its whole timeout and was stopped.",
    FailureKind.CRASHED: "The training ended with an error of its own.",
    FailureKind.GPU_OUT_OF_MEMORY: "The training asked for more GPU memory than there was.",
    FailureKind.HOST_OUT_OF_MEMORY: "The training asked for more host memory than there was.",
    FailureKind.KILLED: "A signal from outside ended the process.",
    FailureKind.COULD_NOT_START: "The operating system could not start the process.",
    FailureKind.LOST: "The process ended while no server was watching, and left no word of how.",
}

ADVICE: Final[Mapping[FailureKind, str]] = {
    FailureKind.TIMEOUT: "Look at the stacks and the last lines of the log for the place where it "
    "waits. If a step simply takes that long, retry with a longer timeout or report more often.",
    FailureKind.CRASHED: "The traceback is at the end of the log. Mend the cause and retry; "
    "for other parameters submit a new job like it.",
    FailureKind.GPU_OUT_OF_MEMORY: "Retry with a smaller batch size, a shorter context or a "
    "narrower model, or see on the GPU page who else holds memory.",
    FailureKind.HOST_OUT_OF_MEMORY: "Retry with a smaller batch size or fewer data workers, or "
    "load the data piece by piece.",
    FailureKind.KILLED: "If nobody killed it by hand, the kernel may have: a SIGKILL without "
    "warning is most often the machine running out of memory, a SIGSEGV a bug in native code.",
    FailureKind.COULD_NOT_START: "Check that the interpreter, the script and the folder exist and "
    "may be used, then retry.",
    FailureKind.LOST: "The log and the curve are kept; retry when you are ready.",
}

NO_WORD: Final = "The process is gone and left no word of how it ended."

_NO_TRACEBACK: Final = (
    "It ended itself without a traceback: the last lines of the log say why. A retry runs the same "
    "again; for other parameters submit a new job like it."
)
_TRACEBACK: Final = "Traceback (most recent call last)"
_STACKS_OF: Final = re.compile(r"^=== Process (\d+):", re.MULTILINE)
_FRAME: Final = re.compile(r'^  File "(.*)", line (\d+) in (.+)$', re.MULTILINE)
_NOT_THEIRS: Final = re.compile(
    r"/(?:site|dist)-packages/|/lib/python3|/backend/training/(?:runner|signalbox)\.py$|^<frozen"
)

_GPU_MEMORY_TYPES: Final = ("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError")
_GPU_MEMORY_WORDS: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
MAX_MESSAGE: Final = 2000
_RUNNER_CUTS_AT: Final = 4096
"""Characters: MAX_MESSAGE_CHARACTERS of backend/training/runner.py."""

_MAX_RECORD_BYTES: Final = 2**20
_MAX_LEFT: Final = 10_000
_BOOT_ID: Final = re.compile(r"[0-9a-f-]{1,64}")


@dataclass(frozen=True)
class Verdict:
    """How a job ended."""

    status: JobStatus
    kind: FailureKind | None = None
    error: str | None = None
    finished_at: str | None = None
    """UTC ISO 8601, as the runner wrote it; None where only the present instant is known."""


CANCELLED: Final = Verdict(JobStatus.CANCELLED)


def failed(
    kind: FailureKind, error: str, finished_at: str | None = None, mask: Mask = NO_MASK
) -> Verdict:
    """Masked before it is cut, because what is left of a value is not found any more."""
    return Verdict(JobStatus.FAILED, kind, mask.text(error)[:MAX_MESSAGE], finished_at)


def advice(kind: FailureKind, log_tail: str) -> str:
    """What to try, in a sentence or two."""
    if kind is FailureKind.CRASHED and _TRACEBACK not in log_tail:
        return _NO_TRACEBACK
    return ADVICE[kind]


def where(stacks: str) -> str | None:
    """Where the training stood by the last stacks taken: `next_batch (train.py, line 12)`.

    The innermost frame of its main thread that is neither Python's nor a library's, else the
    innermost of all. Source of the format: faulthandler.dump_traceback in Python's documentation.
    """
    starts = list(_STACKS_OF.finditer(stacks))
    if not starts:
        return None
    training = starts[0].group(1)  # its workers, if any, come after it
    last = [match for match in starts if match.group(1) == training][-1]
    following = (match.start() for match in starts if match.start() > last.start())
    text = stacks[last.end() : next(following, len(stacks))]
    threads = re.split(r"^(?:Current thread|Thread) ", text, flags=re.MULTILINE)
    frames = _FRAME.findall(threads[-1])  # the main thread is written last
    if not frames:
        return None
    path, line, function = next((f for f in frames if not _NOT_THEIRS.search(f[0])), frames[0])
    return f"{function} ({Path(path).name}, line {line})"


@dataclass(frozen=True)
class ExitRecord:
    """What exit.json says; see `backend/training/runner.py`."""

    code: int | None
    signal: int | None
    exception_type: str | None
    exception_line: str | None
    finished_at: str | None
    left: tuple[tuple[int, str], ...] = ()
    """The pid and the start of each process that the job left behind, as a `ProcessId` has them."""


def read_exit(path: Path, mask: Mask = NO_MASK) -> ExitRecord | None:
    """Read exit.json, its texts masked; None where the runner did not come to write it, or it
    makes no sense."""
    try:
        with open(path, "rb", opener=lambda _, flags: open_inside(path, flags)) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_RECORD_BYTES:
                return None
            document = json.loads(file.read(_MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(document, dict):
        return None
    exception = document.get("exception")
    if not isinstance(exception, dict):
        exception = {}
    message = exception.get("message")
    was_cut = isinstance(message, str) and len(message) >= _RUNNER_CUTS_AT
    return ExitRecord(
        code=_whole(document.get("code")),
        signal=_whole(document.get("signal")),
        exception_type=_words(exception.get("type")),
        exception_line=_words(exception.get("line"), mask, 0 if was_cut else None),
        finished_at=_words(document.get("finished_at")),
        left=_left(document.get("boot"), document.get("left")),
    )


def verdict_of(record: ExitRecord | None, exit_code: int | None) -> Verdict:
    """How a job ended that nobody stopped.

    Args:
        record: what its runner wrote, if it came to write.
        exit_code: of the leader, minus the signal's number; None where nobody was told.
    """
    when = record.finished_at if record else None
    if record is not None and record.signal is not None:
        return _killed(record.signal, when)
    if exit_code is not None and exit_code < 0:
        return _killed(-exit_code, when)
    # The runner always writes; only a full disk or a deleted folder keeps it from that.
    code = exit_code if record is None or record.code is None else record.code
    if code is None:
        return failed(FailureKind.LOST, NO_WORD)
    if code == 0:
        return Verdict(JobStatus.COMPLETED, finished_at=when)
    if record is not None and record.exception_line is not None:
        return failed(_kind_of(record), record.exception_line, when)
    return failed(FailureKind.CRASHED, f"The process exited with code {code}.", when)


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 63` where the system has no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _killed(number: int, when: str | None) -> Verdict:
    return failed(FailureKind.KILLED, f"The process was killed by {signal_name(number)}.", when)


def _kind_of(record: ExitRecord) -> FailureKind:
    line = record.exception_line or ""
    if record.exception_type in _GPU_MEMORY_TYPES or any(w in line for w in _GPU_MEMORY_WORDS):
        return FailureKind.GPU_OUT_OF_MEMORY
    # numpy's is numpy._core._exceptions._ArrayMemoryError.
    if (record.exception_type or "").endswith("MemoryError") or "can't allocate memory" in line:
        return FailureKind.HOST_OUT_OF_MEMORY
    return FailureKind.CRASHED


def _left(boot: Any, entries: Any) -> tuple[tuple[int, str], ...]:
    if not (isinstance(boot, str) and _BOOT_ID.fullmatch(boot) and isinstance(entries, list)):
        return ()
    found = []
    for entry in entries[:_MAX_LEFT]:
        if isinstance(entry, list) and len(entry) == 2:
            pid, ticks = map(_whole, entry)
            if pid is not None and ticks is not None and 1 < pid < 2**31 and 0 <= ticks < 2**63:
                found.append((pid, f"{boot}:{ticks}"))
    return tuple(found)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _words(value: Any, mask: Mask = NO_MASK, cut_at: int | None = None) -> str | None:
    if not isinstance(value, str):
        return None
    return mask.text(value, cut_at).encode("utf-8", "replace").decode().replace("\0", "�")
