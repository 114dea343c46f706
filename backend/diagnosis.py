"""What a failure was, and what to say of it: what happened, and what to try."""

import json
import os
import re
import signal
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, Final

from backend import stacks
from backend.mask import NO_MASK, Mask
from backend.memory_kills import MemoryKill
from backend.models import FailureKind, JobStatus
from backend.paths import open_inside
from backend.stacks import Frame

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
    FailureKind.CRASHED: "The traceback is at the end of the log. Fix the cause and retry; "
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

_GPU_MEMORY_TYPES: Final = ("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError")
_GPU_MEMORY_WORDS: Final = (
    "CUDA out of memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_HOST_MEMORY_WORDS: Final = ("can't allocate memory", "out of shared memory")
MAX_MESSAGE: Final = 2000
_RUNNER_CUTS_AT: Final = 4096
"""Characters: MAX_MESSAGE_CHARACTERS of backend/training/runner.py."""
_RUNNER_KEEPS_BYTES: Final = 64 * 2**10 - 4
"""Of the end of a traceback: MAX_TRACEBACK_BYTES of the same, less what is left of a character."""

_BY_KERNEL: Final = (MemoryKill.CERTAIN, MemoryKill.PROBABLE)
_WORKER_KILLED: Final = re.compile(r"DataLoader worker \(pid.*\) is killed by signal: Killed")

_MAX_RECORD_BYTES: Final = 2**20
_MAX_LEFT: Final = 10_000
_MAX_FRAMES: Final = 20
_MAX_PATH: Final = 500
_MAX_WORD: Final = 200
_MAX_PARAMETERS: Final = 4
_BOOT_ID: Final = re.compile(r"[0-9a-f-]{1,64}")

_TAKE_MEMORY: Final = (
    *("batch_size", "per_device_train_batch_size", "micro_batch_size", "train_batch_size"),
    *("context", "context_length", "block_size", "seq_len", "sequence_length", "max_seq_length"),
    *("max_length", "image_size", "resolution"),
    *("width", "hidden_size", "d_model", "n_embd", "layers", "num_layers", "n_layer"),
)
_TAKE_HOST_MEMORY: Final = ("num_workers", "workers", "dataloader_num_workers", "prefetch_factor")
_AGAINST_NAN: Final = (
    *("learning_rate", "lr", "grad_clip", "max_grad_norm", "clip_grad_norm", "clip"),
    *("warmup_steps", "weight_decay"),
)
_MAY_BE_OF_NAN: Final = (FailureKind.CRASHED, FailureKind.TIMEOUT)

_FIGURES: Final[Mapping[str, re.Pattern[str]]] = {
    name: re.compile(words.replace("#", r"(\d+(?:\.\d+)?) (bytes|KiB|MiB|GiB)"))
    for name, words in {
        "tried_bytes": "Tried to allocate #",
        "total_bytes": "total capaci?ty of #|; # total capacity",
        "free_bytes": "of which # is free|; # free",
        "allocated_bytes": "# is allocated by PyTorch|; # already allocated",
        "unused_bytes": "# is reserved by PyTorch but unallocated",
    }.items()
}
_UNITS: Final = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_ALLOCATOR_OPTION: Final = re.compile(r"PYTORCH_\w*ALLOC_CONF=expandable_segments:True")
_MUCH_SHARE: Final = 0.1
"""Of a GPU. Less than that each process holds for CUDA itself."""

_SHARED_MEMORY: Final = (
    "Its data workers hand batches over through /dev/shm, which was full: make it larger (of a "
    "container with --shm-size), or use fewer workers."
)
_NOT_FOR_MEMORY: Final = (
    "Memory did not run out, by the kernel's own count: somebody or something else sent the "
    "signal. Look who may end processes here (a scheduler, a container's limits, a colleague), "
    "then retry."
)
_ADVICE_ON: Final[Mapping[str, str]] = {
    "EOFError": "If it waited for somebody to type: a job has no terminal. Give the answer as an "
    "argument or an environment variable, and take out breakpoints.",
    "ModuleNotFoundError": "The interpreter that ran it has no such module: install it there, or "
    "choose on the form the interpreter that has it.",
}


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


@dataclass(frozen=True)
class ExitRecord:
    """What exit.json says; see `backend/training/runner.py`."""

    code: int | None
    signal: int | None
    exception_type: str | None
    exception_line: str | None
    finished_at: str | None
    traceback: str | None = None
    """As Python prints it; of a very long one the end."""
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
        traceback=_traceback(exception.get("traceback"), mask),
        left=_left(document.get("boot"), document.get("left")),
    )


def was_killed(record: ExitRecord | None, exit_code: int | None) -> bool:
    """Whether a process of a job died of SIGKILL, so that it is worth asking whose it was."""
    number = record.signal if record else None
    if number is None and exit_code is not None and exit_code < 0:
        number = -exit_code
    if number is not None:
        return signal_name(number) == "SIGKILL"
    return record is not None and _lost_a_worker(record)


def verdict_of(
    record: ExitRecord | None,
    exit_code: int | None,
    memory_kill: MemoryKill = MemoryKill.UNKNOWN,
) -> Verdict:
    """How a job ended that nobody stopped.

    Args:
        record: what its runner wrote, if it came to write.
        exit_code: of the leader, minus the signal's number; None where nobody was told.
        memory_kill: whether the kernel killed a process of it because memory ran out.
    """
    when = record.finished_at if record else None
    if record is not None and record.signal is not None:
        return _killed(record.signal, when, memory_kill)
    if exit_code is not None and exit_code < 0:
        return _killed(-exit_code, when, memory_kill)
    # The runner always writes; only a full disk or a deleted folder keeps it from that.
    code = exit_code if record is None or record.code is None else record.code
    if code is None:
        return failed(FailureKind.LOST, NO_WORD)
    if code == 0:
        return Verdict(JobStatus.COMPLETED, finished_at=when)
    if record is not None and record.exception_line is not None:
        if _lost_a_worker(record) and memory_kill in _BY_KERNEL:
            return _out_of_memory("a DataLoader worker", when, memory_kill)
        return failed(_kind_of(record), record.exception_line, when)
    return failed(FailureKind.CRASHED, f"The process exited with code {code}.", when)


@dataclass(frozen=True)
class Allocator:
    """What PyTorch said of the GPU's memory when it ran out; None where it did not say."""

    tried_bytes: int | None = None
    total_bytes: int | None = None
    free_bytes: int | None = None
    allocated_bytes: int | None = None
    """In tensors of this process."""
    unused_bytes: int | None = None
    """Reserved by this process and in no tensor."""


@dataclass(frozen=True)
class Detail:
    """What else is known of a failure; its texts are masked and bounded."""

    sentence: str | None = None
    """Of a timeout: who waited for what."""
    frames: tuple[Frame, ...] = ()
    """The user's own, innermost first: where it was stuck, or where the exception was raised."""
    allocator: Allocator | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those of the job worth changing, and their values."""
    non_finite: str | None = None
    """`loss stopped being a number at step 812`."""
    advice: str | None = None
    """What to try, where more is known than `ADVICE` says."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any) -> "Detail":
        """What `as_json` gave; of anything else as much as makes sense."""
        found = value if isinstance(value, dict) else {}
        frames, parameters = found.get("frames"), found.get("parameters")
        figures = found.get("allocator")
        return cls(
            sentence=_words(found.get("sentence")),
            frames=tuple(filter(None, map(_frame_of, frames if isinstance(frames, list) else []))),
            allocator=_allocator_of(figures) if isinstance(figures, dict) else None,
            parameters=parameters if isinstance(parameters, dict) else {},
            non_finite=_words(found.get("non_finite")),
            advice=_words(found.get("advice")),
        )


def detail_of(
    kind: FailureKind,
    *,
    record: ExitRecord | None = None,
    stacks_text: str = "",
    params: Mapping[str, Any] | None = None,
    non_finite: str | None = None,
    last_step: int | None = None,
    silent_seconds: float | None = None,
    phase: str | None = None,
    memory_kill: MemoryKill = MemoryKill.UNKNOWN,
    mask: Mask = NO_MASK,
) -> Detail:
    """What else there is to know of a failure. Never raises.

    Args:
        record: what its runner wrote; its texts are masked.
        stacks_text: the stacks of a stuck job; masked.
        params: the job's, as they were submitted.
        non_finite: that its loss stopped being a number, and when.
        last_step: of its last progress, which was so many seconds ago, in this phase.
        memory_kill: as `verdict_of` was told.
    """
    report = stacks.read(stacks_text) if kind is FailureKind.TIMEOUT else None
    line = (record and record.exception_line) or ""
    sentence, frames = None, []
    if report is not None:
        sentence = stacks.sentence(
            report, last_step=last_step, silent_seconds=silent_seconds, phase=phase
        )
        frames = stacks.own_frames(report)
    elif kind is not FailureKind.TIMEOUT and record is not None:
        frames = stacks.traceback_frames(record.traceback or "")
    if kind not in _MAY_BE_OF_NAN:
        non_finite = None
    parameters = _worth_changing(_names_for(kind, non_finite), params or {}, mask)
    allocator = _allocator_in(line) if kind is FailureKind.GPU_OUT_OF_MEMORY else None
    advice: str | None
    if kind is FailureKind.TIMEOUT:
        advice = _advice_when_stuck(report) if report else None
    elif kind in (FailureKind.GPU_OUT_OF_MEMORY, FailureKind.HOST_OUT_OF_MEMORY):
        advice = _advice_on_memory(kind, parameters, allocator, line)
    elif non_finite is not None:
        advice = _advice_on_nan(non_finite, parameters)
    elif kind is FailureKind.KILLED and memory_kill is MemoryKill.NO:
        advice = _NOT_FOR_MEMORY
    else:
        advice = _ADVICE_ON.get((record and record.exception_type) or "")
    return Detail(
        sentence=sentence and mask.text(sentence)[:MAX_MESSAGE],
        frames=tuple(map(_bounded, frames[:_MAX_FRAMES])),
        allocator=allocator,
        parameters=parameters,
        non_finite=non_finite and mask.text(non_finite)[:MAX_MESSAGE],
        advice=advice and mask.text(advice)[:MAX_MESSAGE],
    )


# What is worth changing.


def _names_for(kind: FailureKind, non_finite: str | None) -> Sequence[str]:
    """The parameters that have to do with a failure, in the order in which to try them."""
    if kind is FailureKind.GPU_OUT_OF_MEMORY:
        return _TAKE_MEMORY
    if kind is FailureKind.HOST_OUT_OF_MEMORY:
        return (*_TAKE_HOST_MEMORY, *_TAKE_MEMORY)
    return _AGAINST_NAN if non_finite is not None else ()


def _worth_changing(
    names: Sequence[str], params: Mapping[str, Any], mask: Mask
) -> dict[str, int | float | str]:
    given = {_spelled(name): (name, value) for name, value in _named(params)}
    found = (given[name] for name in names if name in given)
    return {
        name: mask.text(value)[:_MAX_WORD] if isinstance(value, str) else value
        for name, value in islice(found, _MAX_PARAMETERS)
    }


def _named(params: Mapping[str, Any]) -> Iterator[tuple[str, int | float | str]]:
    """A recipe's parameters, and those on a script's command line: `--lr 0.1`, `--lr=0.1`."""
    for name, value in params.items():
        if isinstance(value, int | float | str):
            yield name, value
    words = params.get("args")
    words = [str(word) for word in words] if isinstance(words, list) else []
    for word, following in zip_longest(words, words[1:], fillvalue="--"):
        name, equals, value = word.lstrip("-").partition("=")
        if word.startswith("-") and name and (equals or not following.startswith("--")):
            yield name[:_MAX_WORD], value if equals else following


def _spelled(name: str) -> str:
    return name.lower().replace("-", "_")


def _now(parameters: Mapping[str, Any]) -> str:
    """`batch_size (now 64), context (now 256) or width (now 128)`."""
    *first, last = [f"{name} (now {value})" for name, value in parameters.items()]
    return f"{', '.join(first)} or {last}" if first else last


# What to try.


def _advice_on_memory(
    kind: FailureKind, parameters: Mapping[str, Any], allocator: Allocator | None, line: str
) -> str | None:
    said = [f"Retry with a smaller {_now(parameters)}."] if parameters else []
    if "shared memory" in line:
        said.append(_SHARED_MEMORY)
    if allocator is not None:
        elsewhere = _held_elsewhere(allocator)
        if elsewhere:
            said.append(
                f"About {_gib(elsewhere)} of the GPU were in use outside this training's tensors: "
                "see on the GPU page who holds memory."
            )
        option = _ALLOCATOR_OPTION.search(line)
        if option and (allocator.unused_bytes or 0) >= (allocator.tried_bytes or 2**63):
            said.append(
                f"{_gib(allocator.unused_bytes or 0)} were reserved but in pieces too small: the "
                f"environment variable {option.group()} may help by itself."
            )
    if said and not parameters:
        said.insert(0, ADVICE[kind])
    return " ".join(said) or None


def _held_elsewhere(figures: Allocator) -> int | None:
    """What was neither free nor PyTorch's in this process, where that is much."""
    known = (figures.total_bytes, figures.free_bytes, figures.allocated_bytes, figures.unused_bytes)
    if None in known or not figures.total_bytes:
        return None
    total, free, allocated, unused = (number or 0 for number in known)
    elsewhere = total - free - allocated - unused
    return elsewhere if elsewhere > total * _MUCH_SHARE else None


def _advice_on_nan(non_finite: str, parameters: Mapping[str, Any]) -> str:
    try_first = f" Try other values of {_now(parameters)}." if parameters else ""
    return (
        f"Its {non_finite}, before it ended: what comes after that is of no use. A smaller "
        f"learning rate is the first thing to try, clipped gradients the second.{try_first}"
    )


def _advice_when_stuck(report: stacks.Report) -> str | None:
    training = report.training
    if stopped := [process.pid for process in report.processes if process.is_stopped]:
        return (
            "Somebody or something had stopped a process of it (SIGSTOP, Ctrl-Z or a debugger). "
            f"Stopped processes can be continued, as with `kill -CONT {stopped[0]}`; find out who "
            "does that, then retry."
        )
    if any(process.is_dead for process in report.processes):
        return (
            "A process that it had started was dead, and it went on waiting: look in the log for "
            "that one's last words. Retry with fewer workers if memory may have run out."
        )
    if "terminal" in training.waits_in:
        return (
            "It waited for somebody to type. A job has no terminal: give the answer as an argument "
            "or an environment variable, and take out breakpoints."
        )
    if "socket" in training.waits_in:
        return (
            "It waited for the other end of a connection. Give the call a timeout, and look "
            "whether the other end is alive."
        )
    if training.holds_gil:
        return (
            "Native code waited and kept Python's lock, so that nothing else in the process could "
            "run, reporting progress included. Look at the call that the stacks end with."
        )
    if training.is_busy:
        return (
            "It was computing, not waiting. If a step simply takes that long, retry with a longer "
            "timeout or report more often; else look for a loop that does not end."
        )
    return None


# What torch says.


def _allocator_in(message: str) -> Allocator | None:
    """The figures in a message of torch's CUDA allocator; see c10/cuda/CUDACachingAllocator.cpp."""
    figures = {
        name: _bytes(match) if (match := pattern.search(message)) else None
        for name, pattern in _FIGURES.items()
    }
    return Allocator(**figures) if any(n is not None for n in figures.values()) else None


def _bytes(match: re.Match[str]) -> int:
    number, unit = filter(None, match.groups())
    return round(float(number) * _UNITS[unit])


def _gib(number: int) -> str:
    return f"{number / 2**30:.1f} GiB"


# From JSON.


def _allocator_of(figures: Mapping[str, Any]) -> Allocator:
    return Allocator(**{f.name: _whole(figures.get(f.name)) for f in fields(Allocator)})


def _frame_of(value: Any) -> Frame | None:
    if not isinstance(value, dict):
        return None
    path, function = _words(value.get("path")), _words(value.get("function"))
    line = _whole(value.get("line"))
    if path is None or function is None or line is None:
        return None
    return Frame(path, line, function, _words(value.get("source")) or "")


def _bounded(frame: Frame) -> Frame:
    return Frame(
        frame.path[-_MAX_PATH:],
        frame.line,
        frame.function[:_MAX_WORD],
        frame.source[:_MAX_WORD],
    )


def signal_name(number: int) -> str:
    """`SIGKILL`, or `signal 63` where the system has no name for it."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _lost_a_worker(record: ExitRecord) -> bool:
    return _WORKER_KILLED.search(record.exception_line or "") is not None


def _killed(number: int, when: str | None, memory_kill: MemoryKill) -> Verdict:
    if signal_name(number) == "SIGKILL" and memory_kill in _BY_KERNEL:
        return _out_of_memory("the process", when, memory_kill)
    return failed(FailureKind.KILLED, f"The process was killed by {signal_name(number)}.", when)


def _out_of_memory(what: str, when: str | None, memory_kill: MemoryKill) -> Verdict:
    surely = "" if memory_kill is MemoryKill.CERTAIN else "probably "
    sentence = f"The kernel {surely}killed {what} because memory ran out."
    return failed(FailureKind.HOST_OUT_OF_MEMORY, sentence, when)


def _kind_of(record: ExitRecord) -> FailureKind:
    line = record.exception_line or ""
    if record.exception_type in _GPU_MEMORY_TYPES or any(w in line for w in _GPU_MEMORY_WORDS):
        return FailureKind.GPU_OUT_OF_MEMORY
    # numpy's is numpy._core._exceptions._ArrayMemoryError.
    is_memory_error = (record.exception_type or "").endswith("MemoryError")
    if is_memory_error or any(words in line for words in _HOST_MEMORY_WORDS):
        return FailureKind.HOST_OUT_OF_MEMORY
    return FailureKind.CRASHED


def _traceback(text: Any, mask: Mask) -> str | None:
    words = _words(text, mask)
    if words is None or len(words.encode("utf-8", "replace")) < _RUNNER_KEEPS_BYTES:
        return words
    # Its beginning was cut off, maybe within a value, whose rest is not found any more.
    start = words.find("\n  File ")
    return words[start:] if start >= 0 else None


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
