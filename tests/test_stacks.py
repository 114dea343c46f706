"""What stacks.txt says, and the sentence that a person reads of it."""

import time
import traceback
from pathlib import Path
from textwrap import dedent

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend import stacks
from backend.stacks import Frame, own_frames, read, sentence, traceback_frames, where

LIB = "/usr/lib/python3.11"
PACKAGES = "/home/me/venv/lib/python3.11/site-packages"
OF_AN_EARLIER_RELEASE = f"""
=== Process 7: python train.py
Thread 0x00007f1 (most recent call first):
  File "/opt/signalbox/backend/training/signalbox.py", line 300 in _publish_news
  File "{LIB}/threading.py", line 982 in run

Current thread 0x00007f2 (most recent call first):
  File "{LIB}/threading.py", line 327 in wait
  File "{PACKAGES}/torch/utils/data/dataloader.py", line 1 in get
  File "/home/me/training/train.py", line 12 in next_batch
  File "/home/me/training/train.py", line 40 in <module>
  File "/opt/signalbox/backend/training/runner.py", line 181 in _run_as_main

=== Process 8: python train.py
Current thread 0x00007f3 (most recent call first):
  File "/home/me/training/worker.py", line 3 in load
"""


def _process(
    pid: int = 7, *calls: str, role: str = "training", source: str = "", **facts: str
) -> str:
    """A process in stacks.txt, its calls as `path:line:function`, the innermost first."""
    lines = [f"=== Process {pid}: {facts.pop('command', 'python train.py')}", f"role: {role}"]
    lines += [f"{name.replace('_', ' ')}: {value}" for name, value in facts.items()]
    if calls:
        lines.append("Current thread 0x00007f2 [MainThread] (most recent call first):")
    for call in calls:
        path, line, function = call.split(":")
        lines.append(f'  File "{path}", line {line} in {function}')
        if source and path.startswith("/home") and "packages" not in path:
            lines.append(f"    source: {source}")
            source = ""
    return "\n".join(lines) + "\n\n"


def _section(*processes: str, at: str = "2026-11-23T18:02:45Z") -> str:
    return f"\n=== Taken at {at}\n{''.join(processes)}=== End\n"


def _said(text: str) -> str:
    report = read(text)
    assert report is not None
    return sentence(report, last_step=None, silent_seconds=None, phase=None)


# Reading.


def test_the_newest_section_counts() -> None:
    text = _section(_process(7, "/home/a.py:1:old"), at="2026-11-23T18:02:45Z")
    text += _section(_process(7, "/home/a.py:2:new"), at="2026-11-23T18:04:45Z")
    report = read(text)
    assert report is not None
    assert report.taken_at == "2026-11-23T18:04:45Z"
    assert own_frames(report) == [Frame("/home/a.py", 2, "new")]


def test_a_section_without_a_process_leaves_it_to_the_one_before() -> None:
    text = _section(_process(7, "/home/a.py:1:old")) + _section()
    report = read(text)
    assert report is not None
    assert [frame.function for frame in own_frames(report)] == ["old"]


def test_everything_is_read() -> None:
    facts = {"state": "S (sleeping)", "cpu": "12 %", "waits_in": "read on a pipe"}
    text = _section(
        _process(7, "/home/a.py:3:load", source="os.read(1, 1)", **facts),
        _process(8, role="DataLoader worker 0", state="Z (dead)", died_of="SIGKILL"),
    )
    report = read(text)
    assert report is not None
    training, worker = report.processes
    assert report.training is training
    assert (training.pid, training.role, training.state) == (7, "training", "S")
    assert (training.cpu_percent, training.waits_in) == (12, "read on a pipe")
    assert training.command == "python train.py"
    assert training.main_thread
    assert training.main_thread.frames == (Frame("/home/a.py", 3, "load", "os.read(1, 1)"),)
    assert (worker.role, worker.is_dead, worker.died_of) == ("DataLoader worker 0", True, "SIGKILL")
    assert worker.main_thread is None


def test_what_comes_after_the_end_of_a_section_is_nobodys() -> None:
    late = 'Current thread 0x1 (most recent call first):\n  File "/home/b.py", line 1 in late\n'
    report = read(_section(_process(7, "/home/a.py:1:load")) + late)
    assert report is not None
    assert len(report.training.threads) == 1


def test_of_more_than_a_hundred_threads_the_main_one_is_not_known() -> None:
    report = read(_section(_process(7, "/home/a.py:1:load") + "...\n"))
    assert report is not None
    assert report.training.main_thread is None
    assert own_frames(report) == []


def test_a_child_of_multiprocessing_does_not_stand_where_it_was_forked() -> None:
    text = _process(
        7,
        f"{LIB}/multiprocessing/pool.py:125:worker",
        f"{LIB}/multiprocessing/process.py:314:_bootstrap",
        f"{LIB}/multiprocessing/popen_fork.py:71:_launch",
        "/home/train.py:9:main",
    )
    report = read(text)
    assert report is not None
    assert own_frames(report) == []


def test_stacks_of_an_earlier_release_are_read() -> None:
    report = read(OF_AN_EARLIER_RELEASE)
    assert report is not None
    assert report.taken_at is None
    assert [process.role for process in report.processes] == ["training", "child"]
    assert [frame.line for frame in own_frames(report)] == [12, 40]


def test_a_stopped_process_of_an_earlier_release_is_known() -> None:
    report = read("=== Process 7: python\nIt is stopped, as by SIGSTOP or Ctrl-Z.\n")
    assert report is not None
    assert report.training.is_stopped


def test_where_it_stood_is_the_users_own_innermost_frame_of_the_main_thread() -> None:
    assert where(OF_AN_EARLIER_RELEASE) == "next_batch (train.py, line 12)"


def test_of_several_dumps_the_last_counts() -> None:
    later = OF_AN_EARLIER_RELEASE.replace("line 12 in next_batch", "line 13 in evaluate")
    assert where(OF_AN_EARLIER_RELEASE + later) == "evaluate (train.py, line 13)"


def test_where_there_is_no_frame_of_the_users_the_innermost_is_told() -> None:
    stacks = f'=== Process 7: x\n  File "{LIB}/queue.py", line 171 in get\n'
    assert where(stacks) == "get (queue.py, line 171)"


@pytest.mark.parametrize("text", ["", "x", "=== Process 7: x\n", "=== Taken at x\n=== End\n"])
def test_without_calls_nobody_stood_anywhere(text: str) -> None:
    assert where(text) is None


@pytest.mark.parametrize(
    ("path", "is_own"),
    [
        ("/home/me/train.py", True),
        ("/home/me/lib/train.py", True),
        ("<string>", True),
        ("/opt/signalbox/backend/training/recipes/digits.py", True),
        ("/opt/signalbox/backend/training/runner.py", False),
        ("/opt/signalbox/backend/training/signalbox.py", False),
        (f"{PACKAGES}/torch/nn/functional.py", False),
        (f"{LIB}/queue.py", False),
        ("/usr/lib/python3/dist-packages/numpy/x.py", False),
        (r"C:\Python311\Lib\queue.py", False),
        (r"C:\Users\me\train.py", True),
        ("<frozen importlib._bootstrap>", False),
    ],
)
def test_whose_a_frame_is(path: str, is_own: bool) -> None:
    assert Frame(path, 1, "f").is_own is is_own


# Tracebacks.


def _run(path: str, source: str) -> str:
    """The traceback of a script at this path."""
    try:
        exec(compile(dedent(source), path, "exec"), {})
    except Exception:  # noqa: BLE001 - whatever it raises is what is wanted
        return traceback.format_exc()
    raise AssertionError("It raised nothing.")


def test_a_traceback_has_the_users_own_frames_the_innermost_first() -> None:
    text = _run("/home/me/train.py", "import json\ndef load():\n  json.loads('{')\nload()\n")
    assert "json/decoder.py" in text
    frames = [frame for frame in traceback_frames(text) if frame.path == "/home/me/train.py"]
    assert frames == [
        Frame("/home/me/train.py", 3, "load"),
        Frame("/home/me/train.py", 4, "<module>"),
    ]
    assert all(frame.is_own for frame in traceback_frames(text))


def test_a_traceback_has_its_lines_of_source(tmp_path: Path) -> None:
    script = tmp_path / "train.py"
    script.write_text("def load(path):\n    return open(path)\nload('/no/such/file')\n")
    text = _run(str(script), script.read_text())
    assert "~~~" in text or "^^^" in text
    assert [frame.source for frame in traceback_frames(text)][:2] == [
        "return open(path)",
        "load('/no/such/file')",
    ]


def test_of_chained_exceptions_the_last_counts() -> None:
    text = _run("/home/me/train.py", "try:\n  1 / 0\nexcept Exception:\n  raise ValueError\n")
    assert text.count("Traceback") == 2
    assert [f.line for f in traceback_frames(text) if f.path == "/home/me/train.py"] == [4]


def test_a_syntax_error_has_its_line() -> None:
    text = _run("/home/me/train.py", "compile('x = = 3', '/home/me/model.py', 'exec')")
    assert traceback_frames(text)[0] == Frame("/home/me/model.py", 1, "<module>", "x = = 3")


def test_an_exception_of_a_data_worker_has_the_workers_frames_first() -> None:
    text = f"""Traceback (most recent call last):
  File "/home/me/train.py", line 40, in <module>
    for batch in loader:
  File "{PACKAGES}/torch/_utils.py", line 722, in reraise
    raise exception
ValueError: Caught ValueError in DataLoader worker process 0.
Original Traceback (most recent call last):
  File "{PACKAGES}/torch/utils/data/_utils/worker.py", line 309, in _worker_loop
    data = fetcher.fetch(index)
  File "/home/me/data.py", line 7, in __getitem__
    raise ValueError(index)
ValueError: 3
"""
    assert traceback_frames(text) == [
        Frame("/home/me/data.py", 7, "__getitem__", "raise ValueError(index)"),
        Frame("/home/me/train.py", 40, "<module>", "for batch in loader:"),
    ]


# Sentences. Those of real stuck processes are in test_hang.py.


@pytest.mark.parametrize(
    ("calls", "said"),
    [
        ([f"{LIB}/threading.py:327:wait", f"{LIB}/queue.py:171:get"], "waiting in `queue.get`"),
        ([f"{LIB}/threading.py:327:wait"], "waiting in `Condition.wait`"),
        (
            [f"{LIB}/threading.py:327:wait", f"{LIB}/threading.py:629:wait"],
            "waiting in `Event.wait`",
        ),
        (
            [f"{LIB}/threading.py:327:Condition.wait", f"{LIB}/threading.py:629:Event.wait"],
            "waiting in `Event.wait`",
        ),
        ([f"{LIB}/threading.py:1119:join"], "waiting in `Thread.join`"),
        ([f"{LIB}/multiprocessing/pool.py:774:get"], "waiting in `Pool.get`"),
        ([f"{LIB}/ssl.py:1166:read", f"{LIB}/http/client.py:1:getresponse"],
         "waiting in `HTTPConnection.getresponse`"),
        ([f"{PACKAGES}/torch/distributed/distributed_c10d.py:9:all_reduce",
          f"{PACKAGES}/torch/distributed/c10d_logger.py:8:wrapper"],
         "waiting in `torch.distributed.all_reduce`"),
        ([f"{PACKAGES}/torch/autograd/graph.py:9:run", f"{PACKAGES}/torch/_tensor.py:8:backward"],
         "waiting in `Tensor.backward`"),
        ([f"{PACKAGES}/torch/utils/data/dataloader.py:708:__next__"],
         "waiting for the next batch of its DataLoader"),
    ],
)  # fmt: skip
def test_a_wait_is_called_as_its_caller_knows_it(calls: list[str], said: str) -> None:
    text = _process(7, *calls, "/home/train.py:12:step", state="S (sleeping)")
    assert _said(text) == f"The main thread is {said} (train.py, line 12, in step)."


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"waits_in": "futex"}, "waiting for a lock in `x(1)` (a.py, line 3, in f)"),
        ({"waits_in": "clock_nanosleep"}, "sleeping in `x(1)` (a.py, line 3, in f)"),
        ({"waits_in": "epoll_wait"}, "waiting in `x(1)` (a.py, line 3, in f)"),
        ({"waits_in": "recvfrom on a socket to 10.0.0.1:443"},
         "waiting in `x(1)` (a.py, line 3, in f), blocked in `recvfrom` on a socket to "
         "10.0.0.1:443"),
        ({"state": "D (waiting)", "waits_in": "read on /mnt/data/x.bin"},
         "waiting in `x(1)` (a.py, line 3, in f), waiting for a disk or a driver, blocked in "
         "`read` on /mnt/data/x.bin"),
        ({"waits_in": "clock_nanosleep", "holds_the_GIL": "main thread"},
         "sleeping in `x(1)` (a.py, line 3, in f), while it holds the GIL, so no other thread can "
         "run"),
        ({"state": "R (running)", "cpu": "99 %"}, "busy in `x(1)` (a.py, line 3, in f)"),
        ({"state": "R (running)", "cpu": "3 %"}, "busy in `x(1)` (a.py, line 3, in f)"),
        ({"state": "I (idle)"}, "in `x(1)` (a.py, line 3, in f)"),
        ({"state": "T (stopped)"}, "stopped, as by SIGSTOP or Ctrl-Z (a.py, line 3, in f)"),
        ({"state": "t (traced)"}, "stopped by a debugger (a.py, line 3, in f)"),
    ],
)  # fmt: skip
def test_the_kernel_says_how_it_waits(facts: dict[str, str], said: str) -> None:
    text = _process(7, "/home/a.py:3:f", source="x(1)", **{"state": "S (sleeping)", **facts})
    assert _said(text) == f"The main thread is {said}."


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"waits_in": "read on a pipe"}, "is blocked in `read` on a pipe"),
        ({"waits_in": "futex"}, "is waiting for a lock"),
        ({"waits_in": "wait4"}, "is waiting for a process that it started"),
        ({"waits_in": "clock_nanosleep"}, "is sleeping"),
        ({"waits_in": "epoll_wait"}, "is waiting in `epoll_wait`"),
        ({"state": "D (waiting)"}, "is waiting for a disk or a driver"),
        ({"cpu": "100 %"}, "is busy"),
        ({}, "does not say more"),
        ({"state": "Z (dead)", "died_of": "exit code 3"},
         "is dead: it died, with exit code 3, and nobody has waited for it"),
        ({"state": "Z (dead)", "died_of": "unknown"},
         "is dead: it died, and nobody has waited for it"),
    ],
)  # fmt: skip
def test_without_calls_only_the_kernel_speaks(facts: dict[str, str], said: str) -> None:
    assert _said(_process(7, **facts)) == f"The main thread {said}."


def test_a_library_that_computes_is_named_with_its_caller() -> None:
    calls = (f"{PACKAGES}/torch/nn/functional.py:9:linear", "/home/a.py:3:f")
    busy = _process(7, *calls, source="y = model(x)", cpu="380 %", waits_in="futex")
    assert _said(busy) == (
        "The main thread is busy in `linear` of torch/nn/functional.py, called from "
        "`y = model(x)` (a.py, line 3, in f)."
    )
    alone = _process(7, calls[0], waits_in="futex", state="S (sleeping)")
    assert _said(alone) == "The main thread is waiting in `linear` of torch/nn/functional.py."


def test_a_definition_or_a_module_is_no_call() -> None:
    text = _process(7, "/home/a.py:3:f", source="def f(x):", cpu="99 %")
    assert _said(text) == "The main thread is busy in `f` (a.py, line 3, in f)."
    text = _process(7, "/home/a.py:3:<module>", cpu="99 %")
    assert _said(text) == "The main thread is busy at a.py, line 3."


def test_who_is_dead_or_stopped_comes_first_and_equals_are_counted() -> None:
    waits = {"state": "S (sleeping)", "waits_in": "read on a pipe"}
    text = _section(
        _process(7, f"{PACKAGES}/torch/utils/data/dataloader.py:1:get", "/home/a.py:3:f"),
        *(_process(8 + n, role=f"DataLoader worker {n}", **waits) for n in range(3)),
        _process(20, role="child", command="/usr/bin/sleep 9", waits_in="clock_nanosleep"),
        _process(21, role="rank 1", state="T (stopped)"),
        _process(22, role="DataLoader worker 3", state="Z (dead)", died_of="SIGKILL"),
    )
    assert _said(text) == (
        "The main thread is waiting for the next batch of its DataLoader (a.py, line 3, in f); "
        "DataLoader worker 3 is dead: it died of SIGKILL, and nobody has waited for it; "
        "rank 1 is stopped, as by SIGSTOP or Ctrl-Z; "
        "DataLoader worker 0 is blocked in `read` on a pipe (and so are 2 others)."
    )


def test_who_waits_for_work_is_not_mentioned() -> None:
    idle = _process(
        8,
        f"{LIB}/multiprocessing/connection.py:930:wait",
        f"{LIB}/multiprocessing/queues.py:113:get",
        f"{PACKAGES}/torch/utils/data/_utils/worker.py:275:_worker_loop",
        role="DataLoader worker 0",
    )
    tracker = "python -c from multiprocessing.resource_tracker import main;main(6)"
    text = _section(
        _process(7, "/home/a.py:3:f", source="x()", cpu="99 %"),
        idle,
        _process(9, role="child", command=tracker, waits_in="read on a pipe"),
    )
    assert _said(text) == "The main thread is busy in `x()` (a.py, line 3, in f)."


@pytest.mark.parametrize(
    ("last_step", "silent_seconds", "phase", "said"),
    [
        (812, 600.0, "evaluating", "The last progress was step 812, 10 minutes ago, in phase "
         "`evaluating`."),
        (812, 600.0, None, "The last progress was step 812, 10 minutes ago."),
        (0, None, "", "The last progress was step 0."),
        (None, 600.0, "loading", "It has reported no progress for 10 minutes, in phase `loading`."),
        (None, None, "loading", "It is in phase `loading`."),
        (None, 0.2, None, "It has reported no progress for 1 second."),
        (None, 89.6, None, "It has reported no progress for 90 seconds."),
        (None, 119.0, None, "It has reported no progress for 119 seconds."),
        (None, 120.0, None, "It has reported no progress for 2 minutes."),
        (None, 5400.0, None, "It has reported no progress for 90 minutes."),
        (None, 86_400.0, None, "It has reported no progress for 24 hours."),
    ],
)  # fmt: skip
def test_the_last_progress_is_told(
    last_step: int | None, silent_seconds: float | None, phase: str | None, said: str
) -> None:
    report = read(_process(7))
    assert report is not None
    whole = sentence(report, last_step=last_step, silent_seconds=silent_seconds, phase=phase)
    assert whole == f"The main thread does not say more. {said}"


def test_words_of_the_job_stay_on_the_line_and_within_their_quotes() -> None:
    text = _process(7, "/home/a.py:3:f", source="x(`" + "y" * 500, state="S (sleeping)")
    report = read(text)
    assert report is not None
    said = sentence(report, last_step=1, silent_seconds=1, phase="a`b\nc\x1b[31m" + "d" * 500)
    assert said.count("`") == 4
    assert said.isprintable()
    assert len(said) < 250


def test_each_thread_has_the_lines_of_its_innermost_own_frames() -> None:
    own = [f"/home/a.py:{n}:f" for n in range(9)]
    text = _process(7, f"{LIB}/queue.py:171:get", *own) + _process(8, "/home/b.py:1:g")
    found = stacks.with_sources(text, lambda frame: f"{frame.path} {frame.line}")
    lines = [line.strip() for line in found.split("\n") if "source" in line]
    assert lines == [*(f"source: /home/a.py {n}" for n in range(5)), "source: /home/b.py 1"]
    report = read(found)
    assert report is not None
    assert [frame.source for frame in own_frames(report)][:2] == ["/home/a.py 0", "/home/a.py 1"]


# Whatever the job writes.

LINES = st.sampled_from(
    [
        *OF_AN_EARLIER_RELEASE.split("\n"),
        *_section(
            _process(
                7, "/home/a.py:3:f", source="x", state="T", cpu="1e999 %", died_of="", waits_in="x"
            )
        ).split("\n"),
        "cpu: ² %", "state:", "state: ", "role: ", "=== Process : ", "=== Process 12345678901: x",
        "    source: x", "Thread 0x1 [] (most recent", '  File "", line 0 in x', "...", "=== End",
        f'  File "{LIB}/multiprocessing/process.py", line 1 in _bootstrap', "  ...", "\r", "\0",
        '  File "x", line 1, in y', "Traceback (most recent call last):", "    x",
    ]
)  # fmt: skip
TEXTS = st.text() | st.lists(LINES | st.text(max_size=20), max_size=40).map("\n".join)


@given(TEXTS, st.none() | st.integers(), st.none() | st.floats(0, 1e12), st.none() | st.text())
def test_no_text_raises(
    text: str, last_step: int | None, silent_seconds: float | None, phase: str | None
) -> None:
    where(text)
    for frame in traceback_frames(text):
        assert frame.is_own
    report = read(text)
    if report is not None:
        said = sentence(report, last_step=last_step, silent_seconds=silent_seconds, phase=phase)
        assert said.startswith("The ")
        assert said.endswith(".")
        assert said.isprintable()
        assert all(frame.is_own for frame in own_frames(report))


@given(TEXTS)
def test_sources_are_put_between_the_lines_and_nothing_else_changes(text: str) -> None:
    found = stacks.with_sources(text, lambda frame: "X")
    assert [line for line in found.split("\n") if line != "    source: X"] == [
        line for line in text.split("\n") if line != "    source: X"
    ]


@pytest.mark.parametrize(
    "piece",
    ["=== Process 7: x\n", "Thread 0x1 (most recent\n", '  File "x", line 1 in f\n',
     '  File "' + r"\Lib\x" * 600 + '", line 1 in f\n', "=== Taken at x\n", '  File "', "[] [",
     "Traceback (most recent call last)\n", '  File "x", line 1, in f\n', "=== End\n"],
)  # fmt: skip
def test_a_hostile_text_costs_little(piece: str) -> None:
    text = _process(7) + piece * (2**18 // len(piece))
    began = time.process_time()
    report = read(text)
    assert report is not None
    sentence(report, last_step=None, silent_seconds=None, phase=None)
    own_frames(report)
    traceback_frames(text)
    assert time.process_time() - began < 5


def test_the_newest_section_is_what_was_taken_last() -> None:
    first = "=== Taken at 2026-11-23T18:02:45Z\n=== Process 7: python\n"
    last = "=== Taken at 2026-11-23T18:03:45Z\n=== Process 8: python\n"
    assert stacks.newest(f"before\n{first}\n{last}") == last
    assert stacks.newest("Thread 0x1") == "Thread 0x1"
