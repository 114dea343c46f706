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
    ExitRecord,
    Verdict,
    advice,
    failed,
    read_exit,
    signal_name,
    verdict_of,
    where,
)
from backend.models import FailureKind, JobStatus

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


STACKS = """
=== Process 7: python train.py
Thread 0x00007f1 (most recent call first):
  File "/opt/signalbox/backend/training/signalbox.py", line 300 in _publish_news
  File "/usr/lib/python3.11/threading.py", line 982 in run

Current thread 0x00007f2 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 327 in wait
  File "/home/me/venv/lib/python3.11/site-packages/torch/utils/data/dataloader.py", line 1 in get
  File "/home/me/training/train.py", line 12 in next_batch
  File "/home/me/training/train.py", line 40 in <module>
  File "/opt/signalbox/backend/training/runner.py", line 181 in _run_as_main

=== Process 8: python train.py
Current thread 0x00007f3 (most recent call first):
  File "/home/me/training/worker.py", line 3 in load
"""


def test_where_it_stood_is_the_users_own_innermost_frame_of_the_main_thread() -> None:
    assert where(STACKS) == "next_batch (train.py, line 12)"


def test_of_several_dumps_the_last_counts() -> None:
    later = STACKS.replace("line 12 in next_batch", "line 13 in evaluate")
    assert where(STACKS + later) == "evaluate (train.py, line 13)"


def test_where_there_is_no_frame_of_the_users_the_innermost_is_told() -> None:
    stacks = '=== Process 7: x\n  File "/usr/lib/python3.11/queue.py", line 171 in get\n'
    assert where(stacks) == "get (queue.py, line 171)"


@given(st.text())
def test_any_text_may_stand_where_stacks_should(text: str) -> None:
    assert where("") is None
    where(text)
    where(STACKS + text)


def test_a_crash_without_a_traceback_is_not_sent_to_look_for_one() -> None:
    with_one = advice(FailureKind.CRASHED, "Traceback (most recent call last):\n  …")
    without = advice(FailureKind.CRASHED, "This job asks for a GPU.")
    assert "traceback is at the end" in with_one
    assert "without a traceback" in without
