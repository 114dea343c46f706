"""What a failure was, from what its runner wrote and how its process ended."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backend.diagnosis import (
    ADVICE,
    EXPLANATIONS,
    Allocator,
    Detail,
    ExitRecord,
    Verdict,
    advice,
    detail_of,
    failed,
    read_exit,
    signal_name,
    verdict_of,
    was_killed,
)
from backend.mask import Mask
from backend.memory_kills import MemoryKill
from backend.models import FailureKind, JobStatus
from backend.stacks import Frame

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
RECORDS = st.fixed_dictionaries(
    {},
    optional=dict.fromkeys(("code", "signal", "exception", "finished_at", "boot", "left"), JSON),
)


def _record(**fields: Any) -> ExitRecord:
    nothing = dict.fromkeys(ExitRecord.__dataclass_fields__)
    when = "2026-11-23T18:02:45.123Z"
    return ExitRecord(**{**nothing, "finished_at": when, "left": (), **fields})


def _raised(kind: str, message: str) -> ExitRecord:
    return _record(code=1, exception_type=kind, exception_line=f"{kind}: {message}")


@pytest.mark.parametrize("kind", FailureKind)
def test_every_kind_has_a_sentence_of_what_happened_and_one_of_what_to_try(
    kind: FailureKind,
) -> None:
    for sentences in (EXPLANATIONS, ADVICE):
        assert sentences[kind].endswith(".")
        assert sentences[kind][0].isupper()


def test_exit_code_0_is_the_end_of_a_training() -> None:
    assert verdict_of(_record(code=0), 0) == Verdict(
        JobStatus.COMPLETED, finished_at="2026-11-23T18:02:45.123Z"
    )
    assert verdict_of(_record(code=0), None).status is JobStatus.COMPLETED
    assert verdict_of(None, 0) == Verdict(JobStatus.COMPLETED)


def test_an_exception_leaves_its_last_line() -> None:
    verdict = verdict_of(_raised("ValueError", "no such layer"), 1)
    assert verdict.status is JobStatus.FAILED
    assert verdict.kind is FailureKind.CRASHED
    assert verdict.error == "ValueError: no such layer"
    assert verdict.finished_at == "2026-11-23T18:02:45.123Z"


@pytest.mark.parametrize("record", [_record(code=3), None])
def test_an_exit_code_alone_is_told_as_it_is(record: ExitRecord | None) -> None:
    verdict = verdict_of(record, 3)
    assert verdict.kind is FailureKind.CRASHED
    assert verdict.error == "The process exited with code 3."


@pytest.mark.parametrize(
    ("record", "code"),
    [(_record(signal=9), -9), (_record(signal=9), None), (None, -9), (_record(code=1), -9)],
)
def test_a_signal_is_named(record: ExitRecord | None, code: int | None) -> None:
    verdict = verdict_of(record, code)
    assert verdict.kind is FailureKind.KILLED
    assert verdict.error == "The process was killed by SIGKILL."


@pytest.mark.parametrize(
    ("memory_kill", "kind", "error"),
    [
        (MemoryKill.CERTAIN, FailureKind.HOST_OUT_OF_MEMORY,
         "The kernel killed the process because memory ran out."),
        (MemoryKill.PROBABLE, FailureKind.HOST_OUT_OF_MEMORY,
         "The kernel probably killed the process because memory ran out."),
        (MemoryKill.NO, FailureKind.KILLED, "The process was killed by SIGKILL."),
        (MemoryKill.UNKNOWN, FailureKind.KILLED, "The process was killed by SIGKILL."),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("record", "code"), [(_record(signal=9), None), (None, -9)])
def test_a_kill_for_want_of_memory_is_told_from_any_other(
    record: ExitRecord | None, code: int | None, memory_kill: MemoryKill, kind: FailureKind,
    error: str,
) -> None:  # fmt: skip
    verdict = verdict_of(record, code, memory_kill)
    assert (verdict.kind, verdict.error) == (kind, error)


@pytest.mark.parametrize(
    ("record", "code", "killed"),
    [
        (_record(signal=9), None, True),
        (None, -9, True),
        (_record(signal=15), -9, False),
        (None, 137, False),
        (None, None, False),
        (_record(code=1), 1, False),
        (_raised("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Killed. "), 1,
         True),
        (_raised("RuntimeError", "DataLoader worker (pid 7) is killed by signal: Aborted. "), 1,
         False),
    ],
)  # fmt: skip
def test_only_of_a_kill_it_is_asked_whose_it_was(
    record: ExitRecord | None, code: int | None, killed: bool
) -> None:
    assert was_killed(record, code) is killed


def test_another_signal_has_nothing_to_do_with_memory() -> None:
    assert verdict_of(_record(signal=11), -11, MemoryKill.CERTAIN).kind is FailureKind.KILLED
    assert verdict_of(_record(code=0), 0, MemoryKill.CERTAIN).status is JobStatus.COMPLETED
    assert verdict_of(_record(code=1), 1, MemoryKill.CERTAIN).kind is FailureKind.CRASHED


def test_a_data_worker_that_was_killed_for_want_of_memory_is_told() -> None:
    record = _raised("RuntimeError", "DataLoader worker (pid 4711) is killed by signal: Killed. ")
    verdict = verdict_of(record, 1, MemoryKill.PROBABLE)
    assert verdict.kind is FailureKind.HOST_OUT_OF_MEMORY
    assert verdict.error == (
        "The kernel probably killed a DataLoader worker because memory ran out."
    )
    assert verdict_of(record, 1, MemoryKill.NO).kind is FailureKind.CRASHED


def test_without_a_word_it_is_lost() -> None:
    assert verdict_of(None, None).kind is FailureKind.LOST
    assert verdict_of(_record(), None).kind is FailureKind.LOST


def test_a_record_that_says_nothing_leaves_it_to_the_exit_code() -> None:
    assert verdict_of(_record(), 0).status is JobStatus.COMPLETED
    assert verdict_of(_record(), 3).error == "The process exited with code 3."


@pytest.mark.parametrize(
    "record",
    [
        _raised("torch.OutOfMemoryError", "CUDA out of memory. Tried to allocate 20.00 GiB."),
        _raised("torch.cuda.OutOfMemoryError", "CUDA out of memory."),
        _raised("RuntimeError", "CUDA out of memory. Tried to allocate 2.00 MiB"),
        _raised("torch.AcceleratorError", "CUDA error: out of memory"),
        _raised("RuntimeError", "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublas…`"),
        _raised("torch.OutOfMemoryError", "HIP out of memory. Tried to allocate 20.00 GiB."),
    ],
)
def test_a_gpu_without_memory_is_a_kind_of_its_own(record: ExitRecord) -> None:
    assert verdict_of(record, 1).kind is FailureKind.GPU_OUT_OF_MEMORY


@pytest.mark.parametrize(
    "record",
    [
        _raised("MemoryError", ""),
        _raised("numpy._core._exceptions._ArrayMemoryError", "Unable to allocate 8.00 TiB"),
        _raised(
            "RuntimeError", "[enforce fail at alloc_cpu.cpp:121] . DefaultCPUAllocator: "
            "can't allocate memory: you tried to allocate 4000000000000 bytes."
        ),
    ],
)  # fmt: skip
def test_a_host_without_memory_is_a_kind_of_its_own(record: ExitRecord) -> None:
    assert verdict_of(record, 1).kind is FailureKind.HOST_OUT_OF_MEMORY


def test_a_long_message_is_cut() -> None:
    assert len(failed(FailureKind.CRASHED, "x" * 10**6).error or "") == 2000


@pytest.mark.parametrize(
    ("number", "name"), [(11, "SIGSEGV"), (15, "SIGTERM"), (63, "signal 63"), (-5, "signal -5")]
)
def test_signals_are_named_where_they_have_a_name(number: int, name: str) -> None:
    assert signal_name(number) == name


def test_the_record_is_read(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    path.write_text(
        json.dumps(
            {
                "code": 1,
                "signal": None,
                "exception": {"type": "ValueError", "line": "ValueError: x", "message": "x"},
                "finished_at": "2026-11-23T18:02:45.123Z",
            }
        )
    )
    assert read_exit(path) == _record(
        code=1, exception_type="ValueError", exception_line="ValueError: x"
    )


TRACEBACK = """Traceback (most recent call last):
  File "/home/me/train.py", line 40, in <module>
    train(key="hunter22")
  File "/home/me/venv/lib/python3.11/site-packages/torch/nn/functional.py", line 9, in linear
    return torch._C._nn.linear(input)
RuntimeError: mat1 and mat2 shapes cannot be multiplied
"""


def _written(tmp_path: Path, **exception: str) -> Path:
    path = tmp_path / "exit.json"
    path.write_text(json.dumps({"code": 1, "exception": exception}))
    return path


def test_the_traceback_is_read_and_masked(tmp_path: Path) -> None:
    record = read_exit(_written(tmp_path, traceback=TRACEBACK), Mask(["hunter22"]))
    assert record
    assert record.traceback == TRACEBACK.replace("hunter22", "********")


def test_of_a_traceback_whose_beginning_was_cut_off_no_half_line_is_kept(tmp_path: Path) -> None:
    path = _written(tmp_path, traceback="ter22\n" + TRACEBACK + "x" * 2**16)
    record = read_exit(path, Mask(["hunter22"]))
    assert record
    assert record.traceback
    assert record.traceback.startswith('\n  File "/home/me/train.py"')
    assert "ter22" not in record.traceback
    record = read_exit(_written(tmp_path, traceback="ter22" + "x" * 2**16))
    assert record
    assert record.traceback is None


BOOT = "3c8f9a2e-0000-4000-8000-000000000000"


def _left(tmp_path: Path, boot: Any, left: Any) -> tuple[tuple[int, str], ...]:
    path = tmp_path / "exit.json"
    path.write_text(json.dumps({"code": 0, "boot": boot, "left": left}))
    record = read_exit(path)
    assert record
    assert record.code == 0
    return record.left


def test_who_was_left_behind_is_read(tmp_path: Path) -> None:
    assert _left(tmp_path, BOOT, [[12, 345], [13, 0]]) == ((12, f"{BOOT}:345"), (13, f"{BOOT}:0"))


@pytest.mark.parametrize(
    "entry",
    [[1, 5], [0, 5], [-12, 5], [2**31, 5], [12, -1], [12, 2**63], [12, 5.0], ["12", 5], [True, 5],
     [12, None], [12], [12, 5, 6], {}, "12", None, 12, [[12], [5]]],
)  # fmt: skip
def test_who_cannot_have_been_left_behind_is_not_read(tmp_path: Path, entry: Any) -> None:
    assert _left(tmp_path, BOOT, [entry, [12, 345]]) == ((12, f"{BOOT}:345"),)


@pytest.mark.parametrize("boot", [None, "", "a:1", 5, [BOOT], "x" * 36, BOOT * 9])
def test_without_the_boot_nobody_can_be_told_by_a_pid(tmp_path: Path, boot: Any) -> None:
    assert _left(tmp_path, boot, [[12, 345]]) == ()


@pytest.mark.parametrize("left", [None, 12, "12", {"12": 345}, {}])
def test_a_list_that_is_none_names_nobody(tmp_path: Path, left: Any) -> None:
    assert _left(tmp_path, BOOT, left) == ()


def test_no_more_than_ten_thousand_are_read(tmp_path: Path) -> None:
    assert len(_left(tmp_path, BOOT, [[12, n] for n in range(20_000)])) == 10_000


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"code": ', b"\xff\xfe", b"[" * 10**5, b" " * 2**21]
)
def test_a_record_that_makes_no_sense_is_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "exit.json"
    path.write_bytes(content)
    assert read_exit(path) is None


def test_no_record_a_folder_and_a_link_are_none(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    assert read_exit(path) is None
    path.mkdir()
    assert read_exit(path) is None
    (tmp_path / "elsewhere").write_text('{"code": 0}')
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    assert read_exit(tmp_path / "link") is None


def test_no_record_is_read_through_a_link_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "exit.json").write_text('{"code": 0}')
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    assert read_exit(tmp_path / "run" / "exit.json") is None


def test_a_fifo_does_not_hold_the_verdict_up(tmp_path: Path) -> None:
    path = tmp_path / "exit.json"
    os.mkfifo(path)
    found: list[ExitRecord | None] = []
    thread = threading.Thread(target=lambda: found.append(read_exit(path)), daemon=True)
    thread.start()
    thread.join(10)
    assert found == [None]


@settings(deadline=None)
@given(RECORDS | JSON, st.none() | st.integers(-64, 255))
def test_any_record_leads_to_a_verdict(
    tmp_path_factory: pytest.TempPathFactory, document: Any, code: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "any exit.json"
    path.write_text(json.dumps(document))
    verdict = verdict_of(read_exit(path), code)
    assert verdict.status in (JobStatus.COMPLETED, JobStatus.FAILED)
    assert (verdict.kind is not None) == (verdict.status is JobStatus.FAILED)
    for text in (verdict.error or "", verdict.finished_at or ""):
        text.encode("utf-8")
        assert "\0" not in text


def test_a_crash_without_a_traceback_is_not_sent_to_look_for_one() -> None:
    with_one = advice(FailureKind.CRASHED, "Traceback (most recent call last):\n  …")
    without = advice(FailureKind.CRASHED, "This job asks for a GPU.")
    assert "traceback is at the end" in with_one
    assert "without a traceback" in without


# What else is known of a failure.

CUDA = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.78 GiB. GPU 0 has a total "
    "capacity of 31.50 GiB of which 12.75 GiB is free. Including non-PyTorch memory, this process "
    "has 18.73 GiB memory in use. Of the allocated memory 9.00 GiB is allocated by PyTorch, and "
    "512.00 MiB is reserved by PyTorch but unallocated. If reserved but unallocated memory is "
    "large try setting PYTORCH_ALLOC_CONF=expandable_segments:True to avoid fragmentation.  See "
    "documentation for Memory Management  (https://docs.pytorch.org/docs/stable/notes/cuda.html)"
)
OF_TORCH_1 = (
    "RuntimeError: CUDA out of memory. Tried to allocate 36.00 MiB (GPU 0; 7.50 GiB total "
    "capacity; 130.50 MiB already allocated; 512 bytes free; 188.00 MiB reserved in total by "
    "PyTorch) If reserved memory is >> allocated memory try setting max_split_size_mb to avoid "
    "fragmentation."
)
CHAR_LM = {"steps": 100, "learning_rate": 0.003, "batch_size": 64, "context": 256, "width": 128,
           "layers": 3, "grad_clip": 1.0, "device": "auto"}  # fmt: skip
MIB, GIB = 2**20, 2**30


def _out_of_gpu_memory(message: str, params: dict[str, Any] = CHAR_LM) -> Detail:
    record = _record(code=1, exception_type="torch.OutOfMemoryError", exception_line=message)
    return detail_of(FailureKind.GPU_OUT_OF_MEMORY, record=record, params=params)


def test_the_allocators_figures_are_read() -> None:
    assert _out_of_gpu_memory(CUDA).allocator == Allocator(
        tried_bytes=round(22.78 * GIB),
        total_bytes=round(31.5 * GIB),
        free_bytes=round(12.75 * GIB),
        allocated_bytes=9 * GIB,
        unused_bytes=512 * MIB,
    )
    assert _out_of_gpu_memory(OF_TORCH_1).allocator == Allocator(
        tried_bytes=36 * MIB,
        total_bytes=round(7.5 * GIB),
        free_bytes=512,
        allocated_bytes=round(130.5 * MIB),
        unused_bytes=None,
    )


@pytest.mark.parametrize(
    "message", ["", "CUDA error: out of memory", "Tried to allocate x GiB", "0 total capacity"]
)
def test_without_figures_there_are_none(message: str) -> None:
    assert _out_of_gpu_memory(message).allocator is None


def test_what_takes_memory_is_named_with_its_value() -> None:
    detail = _out_of_gpu_memory("CUDA out of memory.")
    assert detail.parameters == {"batch_size": 64, "context": 256, "width": 128, "layers": 3}
    assert next(iter(detail.parameters)) == "batch_size"
    assert detail.advice == (
        "Retry with a smaller batch_size (now 64), context (now 256), width (now 128) or layers "
        "(now 3)."
    )


def test_parameters_are_found_on_a_command_line_too() -> None:
    args = ["--lr", "0.1", "--Batch-Size=32", "--fast", "--seq_len", "512", "data.txt", "--", "-x"]
    params = {"script": "/home/me/train.py", "args": args}
    assert _out_of_gpu_memory("x", params).parameters == {"Batch-Size": "32", "seq_len": "512"}
    nan = detail_of(FailureKind.CRASHED, params=params, non_finite="loss stopped being a number")
    assert nan.parameters == {"lr": "0.1"}


def test_who_else_holds_memory_of_the_gpu_and_pieces_too_small_are_told() -> None:
    assert "About 9.2 GiB of the GPU were in use outside" in (_out_of_gpu_memory(CUDA).advice or "")
    pieces = CUDA.replace("22.78 GiB", "400.00 MiB").replace("9.00 GiB is all", "18.00 GiB is all")
    advice = _out_of_gpu_memory(pieces).advice or ""
    assert "in use outside" not in advice
    assert advice.endswith(
        "0.5 GiB were reserved but in pieces too small: the environment variable "
        "PYTORCH_ALLOC_CONF=expandable_segments:True may help by itself."
    )


def test_what_takes_host_memory_is_named_with_its_value() -> None:
    params = {"args": ["--batch-size", "32", "--num-workers", "8"]}
    detail = detail_of(FailureKind.HOST_OUT_OF_MEMORY, params=params)
    assert detail.advice == "Retry with a smaller num-workers (now 8) or batch-size (now 32)."
    assert detail_of(FailureKind.HOST_OUT_OF_MEMORY).advice is None
    assert detail.allocator is None


def test_a_loss_that_stopped_being_a_number_is_told_with_its_step() -> None:
    said = "loss stopped being a number at step 812"
    detail = detail_of(FailureKind.CRASHED, params=CHAR_LM, non_finite=said)
    assert detail.non_finite == said
    assert detail.parameters == {"learning_rate": 0.003, "grad_clip": 1.0}
    assert detail.advice == (
        "Its loss stopped being a number at step 812, before it ended: what comes after that is "
        "of no use. A smaller learning rate is the first thing to try, clipped gradients the "
        "second. Try other values of learning_rate (now 0.003) or grad_clip (now 1.0)."
    )
    for kind in (FailureKind.GPU_OUT_OF_MEMORY, FailureKind.KILLED, FailureKind.LOST):
        assert detail_of(kind, params=CHAR_LM, non_finite=said).non_finite is None


def test_an_exception_has_the_users_own_frames() -> None:
    record = _record(code=1, traceback=TRACEBACK)
    detail = detail_of(FailureKind.CRASHED, record=record, stacks_text=STACKS)
    assert detail.frames == (Frame("/home/me/train.py", 40, "<module>", 'train(key="hunter22")'),)
    assert (detail.sentence, detail.advice) == (None, None)


STACKS = """
=== Taken at 2026-11-23T18:02:45Z
=== Process 4711: python train.py
role: training
state: S (sleeping)
Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/usr/lib/python3.11/queue.py", line 171 in get
  File "/home/me/train.py", line 12 in next_batch
    source: batch = batches.get(key="hunter22")
=== End
"""


def test_a_timeout_has_the_sentence_and_the_frames_of_the_stuck_thread() -> None:
    detail = detail_of(
        FailureKind.TIMEOUT,
        record=_record(signal=15, traceback=TRACEBACK),
        stacks_text=STACKS,
        last_step=812,
        silent_seconds=600,
        phase="hunter22",
        mask=Mask(["hunter22"]),
    )
    assert detail.sentence == (
        "The main thread is waiting in `queue.get` (train.py, line 12, in next_batch). The last "
        "progress was step 812, 10 minutes ago, in phase `********`."
    )
    assert [(frame.function, frame.line) for frame in detail.frames] == [("next_batch", 12)]
    assert detail_of(FailureKind.TIMEOUT).sentence is None


@pytest.mark.parametrize(
    ("old", "new", "advice"),
    [
        ("S (sleeping)", "T (stopped)", "can be continued, as with `kill -CONT 4711`"),
        ("=== End", "=== Process 9: x\nstate: Z (dead)\n=== End", "was dead, and it went on"),
        ("Current", "waits in: read on the terminal /dev/pts/1\nCurrent", "A job has no terminal"),
        ("Current", "waits in: recvfrom on a socket to 1.2.3.4:5\nCurrent", "Give the call a time"),
        ("Current", "holds the GIL: main thread\nCurrent", "kept Python's lock"),
        ("S (sleeping)", "R (running)", "It was computing, not waiting."),
    ],
)
def test_what_to_try_goes_by_what_it_waited_for(old: str, new: str, advice: str) -> None:
    assert detail_of(FailureKind.TIMEOUT, stacks_text=STACKS).advice is None
    changed = STACKS.replace(old, new)
    assert changed != STACKS
    assert advice in (detail_of(FailureKind.TIMEOUT, stacks_text=changed).advice or "")


@pytest.mark.parametrize(
    ("record", "memory_kill", "advice"),
    [
        (_record(signal=9), MemoryKill.NO, "Memory did not run out"),
        (_record(signal=9), MemoryKill.UNKNOWN, None),
        (_raised("EOFError", "EOF when reading a line"), MemoryKill.UNKNOWN, "no terminal"),
        (_raised("ModuleNotFoundError", "No module"), MemoryKill.UNKNOWN, "install it there"),
        (_raised("ValueError", "x"), MemoryKill.UNKNOWN, None),
        (None, MemoryKill.UNKNOWN, None),
    ],
)
def test_more_is_advised_only_where_more_is_known(
    record: ExitRecord | None, memory_kill: MemoryKill, advice: str | None
) -> None:
    kind = FailureKind.KILLED if record and record.signal else FailureKind.CRASHED
    found = detail_of(kind, record=record, memory_kill=memory_kill).advice
    assert (advice in found) if advice and found else (found is advice)


def test_full_shared_memory_is_told() -> None:
    line = (
        "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible "
        "that dataloader's workers are out of shared memory."
    )
    record = _record(code=1, exception_type="RuntimeError", exception_line=line)
    verdict = verdict_of(record, 1)
    assert verdict.kind is FailureKind.HOST_OUT_OF_MEMORY
    assert "/dev/shm" in (detail_of(verdict.kind, record=record).advice or "")


def test_texts_of_a_detail_are_bounded() -> None:
    frame = f'  File "/{"a" * 4000}", line 1, in {"f" * 400}\n    {"s" * 5000}\n'
    detail = detail_of(
        FailureKind.CRASHED,
        record=_record(code=1, traceback=frame * 100),
        params={"args": ["--lr", "9" * 10**5]},
        non_finite="x" * 10**5,
    )
    assert len(detail.frames) == 20
    assert len(json.dumps(detail.as_json())) < 30_000


def test_a_detail_comes_back_from_json() -> None:
    for detail in (
        Detail(),
        _out_of_gpu_memory(CUDA),
        detail_of(FailureKind.CRASHED, record=_record(code=1, traceback=TRACEBACK)),
        detail_of(FailureKind.TIMEOUT, stacks_text=STACKS, last_step=1, non_finite="x"),
    ):
        assert Detail.from_json(json.loads(json.dumps(detail.as_json()))) == detail


@given(
    JSON
    | st.fixed_dictionaries({}, optional=dict.fromkeys(Detail.__dataclass_fields__, JSON))
    | st.fixed_dictionaries(
        {
            "frames": st.lists(
                st.fixed_dictionaries({}, optional=dict.fromkeys(Frame.__dataclass_fields__, JSON))
            ),
            "allocator": st.fixed_dictionaries(
                {}, optional=dict.fromkeys(Allocator.__dataclass_fields__, JSON)
            ),
        }
    )
)
def test_no_json_of_a_detail_raises(value: Any) -> None:
    detail = Detail.from_json(value)
    for text in (detail.sentence, detail.non_finite, detail.advice):
        assert text is None or isinstance(text, str)
    assert all(isinstance(frame, Frame) for frame in detail.frames)
    json.dumps(detail.as_json())


@settings(deadline=None)
@given(
    st.sampled_from(FailureKind),
    st.text() | st.just(CUDA),
    st.text() | st.just(STACKS),
    st.dictionaries(st.sampled_from(["batch_size", "lr", "args", "x"]), JSON),
    st.none() | st.text(),
)
def test_no_failure_raises(
    kind: FailureKind, line: str, text: str, params: dict[str, Any], non_finite: str | None
) -> None:
    record = _record(code=1, exception_type=line, exception_line=line, traceback=text)
    detail = detail_of(
        kind, record=record, stacks_text=text, params=params, non_finite=non_finite, phase=text
    )
    json.dumps(detail.as_json())
