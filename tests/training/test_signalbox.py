"""The helper: what it publishes, what it is asked, and that it never disturbs a training."""

import ast
import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from backend import checkpoints, curve, progress
from backend.paths import RunPaths
from backend.training import runner, signalbox
from backend.training.signalbox import History, Point, Run
from tests.waiting import wait_until

HELPER_FOLDER = Path(signalbox.__file__).parent


def strict(text: str) -> Any:
    """Parses JSON, and refuses the NaN and Infinity that Python's parser would let pass."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture
def paths(tmp_path: Path) -> RunPaths:
    return RunPaths(tmp_path)


@pytest.fixture
def job(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Makes this process a job; what it returns reads progress.json."""
    monkeypatch.setenv("SIGNALBOX_RUN_DIR", str(paths.folder))
    monkeypatch.setenv("SIGNALBOX_PROGRESS", str(paths.progress))
    monkeypatch.setenv("SIGNALBOX_CHECKPOINT_DIR", str(paths.checkpoints))
    for variable in ("SIGNALBOX_RESUME_FROM", "SIGNALBOX_CONFIG", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(signalbox, "STOP_LOOK_SECONDS", 0)
    handler = signal.getsignal(signal.SIGTERM)
    yield lambda: strict(paths.progress.read_text())
    signal.signal(signal.SIGTERM, handler)


Read = Callable[[], Any]


def in_a_job(
    paths: RunPaths, source: str, python: tuple[str, ...] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own, as a job."""
    return subprocess.run(
        [sys.executable, *python, "-c", dedent(source)],
        env={
            **os.environ,
            "PYTHONPATH": str(HELPER_FOLDER),
            "SIGNALBOX_RUN_DIR": str(paths.folder),
            "SIGNALBOX_PROGRESS": str(paths.progress),
            "SIGNALBOX_CHECKPOINT_DIR": str(paths.checkpoints),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_the_file_names_are_those_that_the_server_reads() -> None:
    paths = RunPaths(Path("/run"))
    assert paths.folder / signalbox.PROGRESS_FILE == paths.progress
    assert paths.folder / signalbox.METRICS_FILE == paths.metrics
    assert paths.folder / signalbox.STOP_FILE == paths.stop
    assert paths.folder / runner.EXIT_FILE == paths.exit
    assert signalbox.COMPLETE == checkpoints.COMPLETE
    assert paths.folder / runner.STACKS_FILE == paths.stacks
    assert signalbox.ALIASES.items() <= curve.LONG_NAMES.items()
    assert signalbox.MAX_POINTS == curve.MAX_POINTS


def test_all_fields_are_published(job: Read) -> None:
    run = Run(total_steps=1000, total_epochs=10, samples_per_step=32)
    run.log(100, 1, train_loss=1.5, eval_loss=1.0)
    run.log(120, 2, loss=1.25, val_loss=2.0, lr=3e-4, grad_norm=0.8, eval_accuracy=0.5)
    run.phase("evaluating")
    run.finish()
    found = job()
    expected = {
        "status": "finished", "phase": "evaluating", "current_step": 120, "total_steps": 1000,
        "current_epoch": 2, "total_epochs": 10, "progress_percent": 12.0, "train_loss": 1.25,
        "eval_loss": 2.0, "learning_rate": 3e-4, "grad_norm": 0.8, "eval_accuracy": 0.5,
        "best_eval_loss": 1.0, "best_step": 100,
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["perplexity"] == pytest.approx(math.exp(2.0))
    assert found["elapsed_seconds"] >= 0
    assert "non_finite_count" not in found
    assert "gpu_memory_allocated_gb" not in found  # torch is imported here, CUDA not in use
    assert [point["step"] for point in found["metrics_history"]] == [100, 120]
    assert found["metrics_history"][1].items() >= {"epoch": 2, "eval_accuracy": 0.5}.items()


def test_the_server_reads_what_the_helper_writes(job: Read, paths: RunPaths) -> None:
    run = Run(total_steps=10)
    run.log(1, train_loss=2.0)
    run.log(2, train_loss=math.nan)
    run.finish()
    reading = progress.parse(paths.progress.read_bytes())
    assert (reading.current_step, reading.non_finite_count) == (2, 1)
    assert [point.values["train_loss"] for point in reading.history] == [2.0, None]
    assert [p.step for p in curve.read_points(paths.metrics)] == [1, 2]


def test_the_rate_gives_samples_and_remaining_time(job: Read) -> None:
    run = Run(total_steps=100, samples_per_step=8)
    run.log(10, loss=1)
    run._publish()
    run._rate[0] = (run._rate[0][0] - 10.0, 10)  # ten seconds ago
    run.log(60, loss=1)
    run.finish()
    found = job()
    assert found["steps_per_second"] == pytest.approx(5, rel=0.1)
    assert found["samples_per_second"] == pytest.approx(40, rel=0.1)
    assert found["remaining_seconds"] == pytest.approx(8, rel=0.1)


def test_perplexity_is_of_the_training_loss_until_there_is_a_held_out_one(job: Read) -> None:
    run = Run()
    run.log(1, loss=1.0)
    run._publish()
    assert job()["perplexity"] == pytest.approx(math.e)
    run.log(2, loss=1e6)
    run._publish()
    assert "perplexity" not in job()


def test_a_loss_that_is_no_number_is_null_and_counted(job: Read, paths: RunPaths) -> None:
    run = Run()
    run.log(811, loss=1.0)
    run.log(812, loss=math.nan, grad_norm=math.inf)
    run.log(813, loss=-math.inf)
    run.finish()
    found = job()
    assert found["train_loss"] is None
    assert found["grad_norm"] is None
    assert (found["non_finite_count"], found["first_non_finite_step"]) == (2, 812)
    lines = paths.metrics.read_text().splitlines()
    assert [strict(line)["train_loss"] for line in lines] == [1.0, None, None]


@pytest.mark.parametrize(
    "value", [torch.tensor(0.5), torch.tensor([0.5], requires_grad=True), torch.tensor(0.5).numpy()]
)
def test_anything_that_float_takes_can_be_logged(job: Read, value: Any) -> None:
    run = Run()
    run.log(torch.tensor(3), loss=value)  # type: ignore[arg-type]
    run.finish()
    assert (job()["current_step"], job()["train_loss"]) == (3, 0.5)


@pytest.mark.parametrize("value", ["0.5", None, [1, 2], torch.zeros(2), {}, 1j])
@pytest.mark.parametrize("inside", [True, False])
def test_a_value_that_is_no_number_is_refused(
    job: Read, monkeypatch: pytest.MonkeyPatch, value: Any, inside: bool
) -> None:
    if not inside:
        monkeypatch.delenv("SIGNALBOX_PROGRESS")
    with pytest.raises(TypeError, match=r"log\(loss=…\) takes one number, not "):
        Run().log(1, loss=value)


def test_names_that_are_worked_out_here_are_refused(job: Read) -> None:
    with pytest.raises(TypeError, match="worked out by Signalbox"):
        Run().log(1, best_step=3)
    with pytest.raises(TypeError, match="a whole number"):
        Run().log(1.5, loss=3)  # type: ignore[arg-type]


def test_any_name_gives_strict_json(job: Read, paths: RunPaths) -> None:
    run = Run()
    run.log(1, **{'a"b\n': 1, "größe": 2, "\ud800": 3})
    run.finish()
    assert job()['a"b\n'] == 1
    assert strict(paths.metrics.read_text())["größe"] == 2


def test_logs_of_one_step_share_a_point(job: Read, paths: RunPaths) -> None:
    run = Run()
    run.log(1, loss=3)
    run.log(2, loss=2)
    run.log(2, val_loss=2.5)
    run.log(3, loss=1)
    run.finish()
    history = job()["metrics_history"]
    assert [(p["step"], p["train_loss"], p.get("eval_loss")) for p in history] == [
        (1, 3, None), (2, 2, 2.5), (3, 1, None),
    ]  # fmt: skip
    assert len(paths.metrics.read_text().splitlines()) == 4


number = st.floats(allow_nan=False, allow_infinity=False)


GAP, LOW, HIGH, MEASURED = (None, None), (0.0, None), (1.0, None), (None, 0.0)


@given(
    st.lists(st.tuples(st.none() | number, st.none() | number), max_size=300),
    st.integers(11, 60),
)
@example([*[GAP] * 5, *[MEASURED, LOW, HIGH] * 2, MEASURED, LOW, *[GAP] * 6], 11)
def test_thinning_keeps_extremes_and_the_bound(
    losses: list[tuple[float | None, float | None]], most: int
) -> None:
    history = History(most)
    for index, (train_loss, eval_loss) in enumerate(losses):
        history.add(Point(train_loss, eval_loss, str(index)))
        assert history._kept + len(history._open) <= most
    kept = [int(text) for text in history.texts()]
    assert len(kept) == history._kept + len(history._open)
    assert kept == sorted(set(kept))
    trained = [a for a, _ in losses if a is not None]
    measured = [b for _, b in losses if b is not None]
    if trained:
        assert {min(trained), max(trained)} <= {losses[i][0] for i in kept}
    if measured:
        assert min(measured) in {losses[i][1] for i in kept}


def test_a_long_curve_stays_bounded_even_and_complete_in_its_file(
    job: Read, paths: RunPaths
) -> None:
    run = Run()
    for step in range(50_000):
        spike = step == 31_234
        run.log(step, loss=100.0 if spike else 1 / (step + 1))
        if step % 100 == 0:
            run.log(step, val_loss=2.0 - (step == 20_000))
    run.finish()
    steps = [point["step"] for point in job()["metrics_history"]]
    assert 500 <= len(steps) <= signalbox.MAX_POINTS
    assert {0, 20_000, 31_234, 49_999} <= set(steps)
    assert max(b - a for a, b in pairwise(steps)) < 500
    assert (job()["best_eval_loss"], job()["best_step"]) == (1.0, 20_000)
    with paths.metrics.open() as file:
        assert sum(1 for _ in file) == 50_500


def test_the_last_log_before_a_silence_appears_soon(job: Read) -> None:
    run = Run()
    run.log(1, loss=3)
    run.log(2, loss=2)
    wait_until(lambda: job().get("current_step") == 2, 2, "The trailing edge was not published.")


def test_nothing_is_published_without_news(job: Read, paths: RunPaths) -> None:
    run = Run()
    run.log(1, loss=3)
    wait_until(lambda: job().get("current_step") == 1, 2, "The log was not published.")
    before = paths.progress.stat()
    time.sleep(1)  # a silence is what is tested
    assert paths.progress.stat().st_mtime_ns == before.st_mtime_ns
    assert paths.progress.stat().st_ino == before.st_ino


def test_publications_are_rationed(job: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run()
    publications = 0
    publish = run._publish

    def count() -> None:
        nonlocal publications
        publications += 1
        publish()

    monkeypatch.setattr(run, "_publish", count)
    begin = time.monotonic()
    step = 0
    while publications < 3 and time.monotonic() - begin < 60:
        step += 1
        run.log(step, loss=1)
    assert 3 <= publications <= (time.monotonic() - begin) / signalbox.PUBLISH_SECONDS[0] + 2


def test_threads_lose_nothing(job: Read, paths: RunPaths) -> None:
    run = Run()

    def log(offset: int) -> None:
        for step in range(2000):
            run.log(offset + step, loss=1.0)

    threads = [threading.Thread(target=log, args=(10_000 * n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run.finish()
    steps = [strict(line)["step"] for line in paths.metrics.read_text().splitlines()]
    assert sorted(steps) == [10_000 * n + step for n in range(4) for step in range(2000)]
    assert job()["status"] == "finished"


def test_a_forked_child_is_silent_and_dies_of_sigterm(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import os, signal, sys, time
        import signalbox
        run = signalbox.start()
        run.log(1, loss=1)
        assert not run.should_stop
        child = os.fork()
        if child == 0:
            run.log(99, loss=99)
            run.finish()
            assert not run.saved("anything")
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        print(os.waitpid(child, 0)[1])
        child = os.fork()
        if child == 0:
            sys.exit()
        os.waitpid(child, 0)
        """,
    )
    assert (done.stdout, done.stderr) == (f"{int(signal.SIGTERM)}\n", "")
    assert len(paths.metrics.read_text().splitlines()) == 1
    assert strict(paths.progress.read_text())["current_step"] == 1


def test_what_is_pending_is_published_at_exit(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import signalbox
        run = signalbox.start(total_steps=3)
        for step in (1, 2, 3):
            run.log(step, loss=1)
        raise ValueError("boom")
        """,
    )
    assert done.stderr.endswith("ValueError: boom\n")
    found = strict(paths.progress.read_text())
    assert (found["status"], found["current_step"]) == ("running", 3)


def test_as_a_context_it_finishes_unless_something_went_wrong(job: Read) -> None:
    with Run() as run:
        run.log(1, loss=1)
    assert job()["status"] == "finished"
    with pytest.raises(TypeError, match="takes one number"), Run(total_steps=7) as run:
        run.log(2, loss="no number")
    assert (job()["status"], job()["total_steps"]) == ("running", 7)


def test_start_twice_goes_on_with_the_same_run(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import signalbox
        run = signalbox.start(total_steps=5)
        run.log(1, loss=1)
        run.finish()
        assert signalbox.start(total_steps=10) is run
        run.log(2, loss=1)
        """,
    )
    assert done.stderr == ""
    found = strict(paths.progress.read_text())
    assert (found["status"], found["total_steps"]) == ("running", 10)
    assert len(found["metrics_history"]) == 2


def test_outside_a_job_nothing_is_written(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIGNALBOX_")}
    code = """
        import signalbox
        with signalbox.start(total_steps=2) as run:
            run.log(run.resume_step, loss=1)
            run.phase("evaluating")
            print(run.should_stop, run.checkpoint_dir, run.resume_from, run.resume_step)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(code)],
        env={**environment, "PYTHONPATH": str(HELPER_FOLDER)},
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("False None None 0\n", "")
    assert list(tmp_path.iterdir()) == []


def test_other_ranks_are_silent(job: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    Run().log(1, loss=1)
    with pytest.raises(FileNotFoundError):
        job()


def test_a_lost_folder_never_breaks_a_training(
    job: Read, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SIGNALBOX_PROGRESS", str(tmp_path / "gone" / "progress.json"))
    run = Run()
    for step in range(3):
        run.log(step, loss=1)
        run._publish()
    assert capsys.readouterr().err.count("signalbox: progress cannot be written") == 1


def test_nothing_is_published_through_a_link_in_place_of_the_run_folder(
    job: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inside = RunPaths(tmp_path / "run")
    inside.folder.mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("SIGNALBOX_RUN_DIR", str(inside.folder))
    monkeypatch.setenv("SIGNALBOX_PROGRESS", str(inside.progress))
    run = Run()
    run.log(1, loss=1)
    run._publish()
    inside.folder.rename(tmp_path / "moved")
    inside.folder.symlink_to(tmp_path / "elsewhere")
    for step in (2, 3):
        run.log(step, loss=1)
        run._publish()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert capsys.readouterr().err.count("the run folder is a link") == 1


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_metrics_that_cannot_be_written_do_not_stop_the_sign_of_life(
    job: Read, paths: RunPaths, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    secret = paths.folder / "secret"
    secret.write_text("secret")
    if kind == "link":
        paths.metrics.symlink_to(secret)
    elif kind == "folder":
        paths.metrics.mkdir()
    else:
        os.mkfifo(paths.metrics)
    run = Run()
    for step in (1, 2):
        run.log(step, loss=1)
        run._publish()
    assert job()["current_step"] == 2
    assert secret.read_text() == "secret"
    assert capsys.readouterr().err.count("signalbox: ") == 1


def test_a_link_in_place_of_the_temporary_file_is_not_followed(job: Read, paths: RunPaths) -> None:
    secret = paths.folder / "secret"
    secret.write_text("secret")
    run = Run()
    (paths.folder / f"progress.json.{os.getpid()}.tmp").symlink_to(secret)
    for step in (1, 2):
        run.log(step, loss=1)
        run._publish()
    assert secret.read_text() == "secret"
    assert job()["current_step"] == 2, "the link was removed"


def test_a_full_disk_leaves_the_last_good_file(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import resource, signal
        import signalbox
        run = signalbox.start()
        run.log(1, loss=1)
        run._publish()
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        for step in range(2, 5):
            run.log(step, loss=1)
            run._publish()
        """,
    )
    assert done.returncode == 0
    assert done.stderr.count("signalbox: ") == 1
    assert strict(paths.progress.read_text())["current_step"] == 1
    assert not list(paths.folder.glob("*.tmp")), "half a file takes the last room"


def test_sigterm_asks_a_cooperating_script_to_stop(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import os, signal
        import signalbox
        run = signalbox.start()
        assert not run.should_stop
        os.kill(os.getpid(), signal.SIGTERM)
        print(run.should_stop)
        """,
    )
    assert (done.stdout, done.returncode) == ("True\n", 0)


def test_a_script_that_never_asks_dies_of_sigterm(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        "import os, signal, signalbox\nsignalbox.start()\nos.kill(os.getpid(), signal.SIGTERM)",
    )
    assert done.returncode == -signal.SIGTERM


def test_an_earlier_handler_of_sigterm_still_runs(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import os, signal
        import signalbox
        signal.signal(signal.SIGTERM, lambda *_: print("mine"))
        run = signalbox.start()
        run.should_stop
        os.kill(os.getpid(), signal.SIGTERM)
        print(run.should_stop)
        """,
    )
    assert done.stdout == "mine\nTrue\n"


def test_sigterm_can_be_taken_from_a_framework(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import os, signal
        import signalbox
        run = signalbox.start()
        run.should_stop
        signal.signal(signal.SIGTERM, lambda *_: print("the framework's"))
        run.take_sigterm()
        os.kill(os.getpid(), signal.SIGTERM)
        print(run.stop_kind)
        """,
    )
    assert done.stdout == "cancel\n"


PAUSE = {"asked_at": "2026-11-23T18:02:45.123456Z", "pause": True, "ending": None}
PAUSE_AGAIN = {**PAUSE, "asked_at": "2026-11-23T18:12:00Z"}
CANCEL = {**PAUSE, "ending": {"status": "cancelled"}}


def ask(paths: RunPaths, wanted: dict[str, Any]) -> None:
    paths.stop.write_text(json.dumps(wanted))


def test_sigterm_with_a_pause_is_that_pause(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import json, os, signal
        import signalbox
        run = signalbox.start()
        print(run.stop_kind)
        stop = os.path.join(os.environ["SIGNALBOX_RUN_DIR"], "stop.json")
        with open(stop, "w") as file:
            json.dump({"asked_at": "now", "pause": True, "ending": None}, file)
        os.kill(os.getpid(), signal.SIGTERM)
        print(run.stop_kind)
        os.remove(stop)
        os.kill(os.getpid(), signal.SIGTERM)
        print(run.stop_kind, run.decline("never"))
        """,
    )
    assert (done.stdout, done.returncode) == ("None\npause\ncancel False\n", 0)


def test_the_first_look_says_that_the_script_can_be_paused(job: Read) -> None:
    run = Run()
    run.log(1, loss=1)
    run._publish()
    assert "can_pause" not in job()
    assert not run.should_stop
    wait_until(lambda: job().get("can_pause") is True, 2, "It was not said.")


def test_a_pause_is_answered_until_it_is_withdrawn(job: Read, paths: RunPaths) -> None:
    run = Run()
    assert (run.should_stop, run.stop_kind) == (False, None)
    ask(paths, PAUSE)
    assert (run.should_stop, run.stop_kind) == (True, "pause")
    run._publish()
    assert job()["status"] == "stopping"
    paths.stop.unlink()
    assert (run.should_stop, run.stop_kind) == (False, None)
    run._publish()
    assert job()["status"] == "running"
    ask(paths, PAUSE)
    assert run.should_stop


def test_a_cancel_takes_the_place_of_a_pause_and_stays(job: Read, paths: RunPaths) -> None:
    run = Run()
    ask(paths, PAUSE)
    assert run.stop_kind == "pause"
    ask(paths, CANCEL)
    assert run.stop_kind == "cancel"
    paths.stop.unlink()
    assert (run.should_stop, run.stop_kind) == (True, "cancel")
    ask(paths, PAUSE)
    assert run.stop_kind == "cancel"


def test_an_ask_without_words_is_a_cancel(job: Read, paths: RunPaths) -> None:
    ask(paths, {})
    assert Run().stop_kind == "cancel"


@pytest.mark.parametrize(
    "content",
    ["", '{"pause": tr', "[]", "null", "NaN", "[" * 100_000, '{"x": "' + "x" * 2**20 + '"}'],
)
def test_what_is_no_ask_asks_for_nothing(job: Read, paths: RunPaths, content: str) -> None:
    paths.stop.write_text(content)
    run = Run()
    assert not run.should_stop
    ask(paths, PAUSE)
    assert run.should_stop, "half a file is only one that is not there yet"


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "idle fifo"])
def test_what_is_no_file_asks_for_nothing(
    job: Read, paths: RunPaths, tmp_path: Path, kind: str
) -> None:
    writer = None
    if kind == "link":
        (tmp_path / "elsewhere").write_text(json.dumps(CANCEL))
        paths.stop.symlink_to(tmp_path / "elsewhere")
    elif kind == "folder":
        paths.stop.mkdir()
    else:
        os.mkfifo(paths.stop)
        writer = os.open(paths.stop, os.O_RDWR) if kind == "idle fifo" else None
    assert not Run().should_stop
    if writer is not None:
        os.close(writer)


def test_the_stop_file_is_looked_for_rarely(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signalbox, "STOP_LOOK_SECONDS", 60)
    looks: list[Path] = []
    monkeypatch.setattr(signalbox, "_read_ask", looks.append)
    run = Run()
    assert not any(run.should_stop for _ in range(1000))
    assert looks == [paths.stop]


def test_a_declined_pause_is_over_until_the_next(job: Read, paths: RunPaths) -> None:
    run = Run()
    assert not run.decline("nobody asked")
    ask(paths, PAUSE)
    assert run.should_stop
    assert run.decline("No room. " * 100)
    assert (run.should_stop, run.stop_kind) == (False, None)
    run._publish()
    assert job()["status"] == "running"
    assert job()["stop_declined"] == ("No room. " * 100)[:300]
    assert job()["stop_declined_asked_at"] == PAUSE["asked_at"]

    paths.stop.unlink()
    assert not run.should_stop
    run._publish()
    assert "stop_declined" in job(), "the server may not have read it yet"
    ask(paths, PAUSE_AGAIN)
    assert run.should_stop
    run._publish()
    assert not {"stop_declined", "stop_declined_asked_at"} & set(job())


def test_a_cancel_cannot_be_declined(job: Read, paths: RunPaths) -> None:
    run = Run()
    ask(paths, PAUSE)
    assert run.decline("no room")
    ask(paths, CANCEL)
    assert not run.decline("no room")
    assert run.stop_kind == "cancel"


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_other_ranks_stop_too_and_seal_nothing(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    run = Run()
    folder = checkpoint(run, 5)
    assert not run.saved(folder)
    ask(paths, PAUSE)
    assert (run.should_stop, run.stop_kind) == (True, "pause")
    assert sorted(path.name for path in folder.iterdir()) == ["model.pt", "parts"]
    assert not paths.progress.exists()


def test_a_loop_left_because_of_an_ask_has_not_finished(job: Read, paths: RunPaths) -> None:
    for wanted, status in ((None, "finished"), (PAUSE, "stopping")):
        with Run() as run:
            for step in range(1, 4):
                run.log(step, loss=1)
                if step == 2 and wanted:
                    ask(paths, wanted)
                if run.should_stop:
                    break
        assert job()["status"] == status
        assert job()["current_step"] == (2 if wanted else 3)


def test_a_phase_may_carry_a_timeout_of_its_own(job: Read) -> None:
    run = Run()
    run.phase("downloading", timeout_minutes=90)
    run._publish()
    assert (job()["phase"], job()["phase_timeout_seconds"]) == ("downloading", 5400)
    run.phase("training")
    run._publish()
    assert "phase_timeout_seconds" not in job()


@pytest.mark.parametrize(
    ("minutes", "error"),
    [(0, ValueError), (-1, ValueError), (math.inf, ValueError), (math.nan, ValueError),
     (1e308, ValueError), (True, ValueError), ("5", TypeError)],
)  # fmt: skip
def test_a_timeout_that_is_none_is_refused(job: Read, minutes: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"phase\(timeout_minutes=…\) takes "):
        Run().phase("downloading", timeout_minutes=minutes)


# Checkpoints.


def checkpoint(run: Run, step: int) -> Path:
    assert run.checkpoint_dir is not None
    folder = run.checkpoint_dir / f"step-{step:08d}"
    (folder / "parts").mkdir(parents=True)
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "parts" / "0").write_bytes(b"")
    return folder


def sealed(folder: Path) -> Any:
    return strict((folder / signalbox.COMPLETE).read_text())


def test_a_sealed_checkpoint_says_what_is_in_it(job: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_CONFIG", "0123abcd")
    run = Run()
    run.log(5, loss=1)
    folder = checkpoint(run, 5)
    assert run.saved(folder, eval_loss=torch.tensor(0.5))  # type: ignore[arg-type]
    marker = sealed(folder)
    assert marker.pop("saved_at").endswith("Z")
    assert marker == {
        "format": 1, "step": 5, "config": "0123abcd", "eval_loss": 0.5,
        "files": {
            "model.pt": {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()},
            "parts/0": {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()},
        },
    }  # fmt: skip
    assert job()["checkpoint"] == "step-00000005"
    assert len(job()["metrics_history"]) == 1, "the curve up to it is on the disk"


def test_the_server_takes_what_the_helper_sealed(job: Read, paths: RunPaths) -> None:
    run = Run()
    assert run.saved(checkpoint(run, 5))
    assert run.saved(checkpoint(run, 10), eval_loss=math.nan)
    assert sealed(paths.checkpoints / "step-00000010")["eval_loss"] is None
    (paths.checkpoints / "step-00000010" / "model.pt").write_bytes(b"weighty")
    choice = checkpoints.choose(paths, "any")
    assert choice.good is not None
    assert choice.good.name == "step-00000005"


def test_sealing_again_tells_of_the_new_files(job: Read) -> None:
    run = Run()
    folder = checkpoint(run, 5)
    assert run.saved(folder)
    (folder / "model.pt").write_bytes(b"other weights")
    (folder / "more.pt").touch()
    assert run.saved(str(folder))
    assert sealed(folder)["files"].keys() == {"model.pt", "more.pt", "parts/0"}
    assert sealed(folder)["files"]["model.pt"]["bytes"] == 13


def test_a_checkpoint_without_a_step_in_its_name_is_of_the_last_step(job: Read) -> None:
    run = Run()
    run.log(7, loss=1)
    folder = checkpoint(run, 5).rename(run.checkpoint_dir / "best")  # type: ignore[operator]
    assert run.saved(folder)
    assert sealed(folder)["step"] == 7


@pytest.mark.skipif(sys.platform != "linux", reason="it looks in /proc for what was synced")
def test_the_marker_comes_after_everything_is_on_the_disk(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run()
    run.log(5, loss=1)
    folder = checkpoint(run, 5)
    events: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_sync(descriptor: int) -> None:
        events.append(os.path.relpath(Path(f"/proc/self/fd/{descriptor}").readlink(), paths.folder))
        fsync(descriptor)

    def record_replace(source: Any, target: Any) -> None:
        if Path(target).name == signalbox.COMPLETE:
            events.append("the marker")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "replace", record_replace)
    assert run.saved(folder)
    inside = "checkpoints/step-00000005"
    assert events == [
        "metrics.jsonl", f"{inside}/model.pt", f"{inside}/parts/0", f"{inside}/parts", inside,
        "checkpoints", f"{inside}/.COMPLETE.tmp", "the marker", inside,
    ]  # fmt: skip


def test_a_large_file_is_read_in_pieces_with_signs_of_life(
    job: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signalbox, "SEALING_SIGN_SECONDS", -1)
    run = Run()
    folder = checkpoint(run, 5)
    with (folder / "model.pt").open("wb") as file:
        file.truncate(32 * 2**20)
    signs: list[str] = []
    document = run._document
    monkeypatch.setattr(run, "_document", lambda: signs.append("") or document())
    tracemalloc.start()
    assert run.saved(folder)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(signs) >= 32
    assert peak_bytes < 8 * 2**20
    assert sealed(folder)["files"]["model.pt"]["bytes"] == 32 * 2**20


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("../step-1", "A checkpoint is a folder directly inside .*checkpoints, whose name"),
        ("step-1/parts", "A checkpoint is a folder directly inside"),
        ("", "A checkpoint is a folder directly inside"),
        (".step-1", "A checkpoint is a folder directly inside"),
        ("step-2", "There is no folder .*step-2"),
        ("file-1", "There is no folder .*file-1"),
        ("link-1", "link-1 is a link"),
        ("empty-1", "There is nothing in .*empty-1"),
    ],
)
def test_what_cannot_be_a_checkpoint_is_refused(
    job: Read, paths: RunPaths, name: str, sentence: str
) -> None:
    run = Run()
    for folder in (paths.folder / "step-1", paths.checkpoints / "step-1" / "parts",
                   paths.checkpoints / ".step-1"):  # fmt: skip
        folder.mkdir(parents=True)
        (folder / "model.pt").touch()
    (paths.checkpoints / "file-1").touch()
    (paths.checkpoints / "link-1").symlink_to(paths.folder / "step-1")
    (paths.checkpoints / "empty-1").mkdir()
    with pytest.raises(ValueError, match=sentence):
        run.saved(paths.checkpoints / name)
    assert not list(paths.folder.rglob(signalbox.COMPLETE))


@pytest.mark.parametrize("kind", ["link", "link to a folder", "fifo"])
def test_what_is_no_file_keeps_a_checkpoint_from_counting(
    job: Read, paths: RunPaths, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    run = Run()
    folder = checkpoint(run, 5)
    path = folder / "parts" / "1"
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(folder / ("model.pt" if kind == "link" else "parts"))
    assert not run.saved(folder)
    assert not (folder / signalbox.COMPLETE).exists()
    assert "checkpoint" not in job()
    said = capsys.readouterr().err
    assert said.startswith("signalbox: step-00000005 does not count as a checkpoint: ")
    assert said.endswith("parts/1'\n")


@pytest.mark.parametrize("most_bytes", [100, 3000])
def test_a_full_disk_keeps_a_checkpoint_from_counting_and_stops_nothing(
    paths: RunPaths, most_bytes: int
) -> None:
    """With 100 bytes progress.json does not fit, with 3,000 it does and the marker does not."""
    done = in_a_job(
        paths,
        """
        import os, resource, signal, sys
        import signalbox
        run = signalbox.start()
        folder = run.checkpoint_dir / "step-00000005"
        folder.mkdir()
        for number in range(100):
            (folder / str(number)).touch()
        run.log(5, loss=1)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        most = int(os.environ["MOST_BYTES"])
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
        print(run.saved(folder), run.saved(folder))
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print(len(os.listdir(folder)), run.saved(folder))
        """,
        MOST_BYTES=str(most_bytes),
    )
    assert (done.stdout, done.returncode) == ("False False\n100 True\n", 0)
    assert done.stderr.count("step-00000005 does not count as a checkpoint: [Errno ") == 1
    assert strict(paths.progress.read_text())["checkpoint"] == "step-00000005"


def test_sigterm_while_sealing_interrupts_nothing(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        """
        import os, signal
        import signalbox
        run = signalbox.start()
        assert not run.should_stop
        folder = run.checkpoint_dir / "step-00000005"
        folder.mkdir()
        (folder / "model.pt").write_bytes(b"weights")
        sync = signalbox._sync
        def interrupted(path):
            os.kill(os.getpid(), signal.SIGTERM)
            sync(path)
        signalbox._sync = interrupted
        print(run.saved(folder), run.should_stop)
        """,
    )
    assert (done.stdout, done.stderr) == ("True True\n", "")
    assert sealed(paths.checkpoints / "step-00000005")["files"].keys() == {"model.pt"}


def test_outside_a_job_nothing_is_sealed_unless_a_folder_is_named(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(Run(), 5)
    for variable in ("SIGNALBOX_RUN_DIR", "SIGNALBOX_PROGRESS"):
        monkeypatch.delenv(variable)
    assert Run().saved(folder)
    monkeypatch.delenv("SIGNALBOX_CHECKPOINT_DIR")
    assert not Run().saved("nowhere")


# Going on.


@pytest.mark.parametrize(
    ("name", "marker", "step"),
    [
        ("step-00000030", None, 30),
        ("checkpoint-500", None, 500),
        ("best", '{"step": 7}', 7),
        ("best", '{"step": -7}', 0),
        ("best", '{"step": true}', 0),
        ("best", "", 0),
        ("best", None, 0),
    ],
)
def test_the_step_is_in_the_folders_name_or_in_its_marker(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, name: str,
    marker: str | None, step: int,
) -> None:  # fmt: skip
    folder = paths.checkpoints / name
    if marker is not None:
        folder.mkdir(parents=True)
        (folder / signalbox.COMPLETE).write_text(marker)
    monkeypatch.setenv("SIGNALBOX_RESUME_FROM", str(folder))
    run = Run()
    assert (run.resume_from, run.resume_step) == (folder, step)
    assert job()["current_step"] == step, "and nothing breaks without a progress.json"


def test_a_resumed_run_goes_on_with_its_curve(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(total_steps=100)
    run.log(5, loss=math.nan)
    for step in (10, 20, 30, 40):
        run.log(step, epoch=step // 10, loss=50 - step, val_loss=step, accuracy=0.5)
    run._started -= 100
    run.finish()
    monkeypatch.setenv("SIGNALBOX_RESUME_FROM", str(paths.checkpoints / "step-00000030"))
    run = Run(total_steps=100)
    found = job()
    assert (found["status"], found["current_step"], found["current_epoch"]) == ("running", 30, 3)
    assert (found["train_loss"], found["eval_loss"], found["accuracy"]) == (20, 30, 0.5)
    assert (found["checkpoint"], found["elapsed_seconds"] >= 100) == ("step-00000030", True)
    assert (found["non_finite_count"], found["first_non_finite_step"]) == (1, 5)
    run.log(31, loss=5)
    run.finish()
    assert [point["step"] for point in job()["metrics_history"]] == [5, 10, 20, 30, 31]
    assert (job()["best_eval_loss"], job()["best_step"]) == (10, 10)


def test_a_run_goes_on_with_what_the_server_carried_over(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = Run(total_steps=100)
    for step in (10, 20, 30, 40):
        run.log(step, loss=50 - step, val_loss=step)
    run.finish()
    retry = RunPaths(tmp_path / "retry")
    retry.folder.mkdir()
    checkpoints.carry_curve(paths, retry, 30)
    monkeypatch.setenv("SIGNALBOX_RUN_DIR", str(retry.folder))
    monkeypatch.setenv("SIGNALBOX_PROGRESS", str(retry.progress))
    monkeypatch.setenv("SIGNALBOX_CHECKPOINT_DIR", str(retry.checkpoints))
    monkeypatch.setenv("SIGNALBOX_RESUME_FROM", str(paths.checkpoints / "step-00000030"))
    run = Run(total_steps=100)
    run.log(31, loss=5)
    run.finish()
    found = strict(retry.progress.read_text())
    assert [point["step"] for point in found["metrics_history"]] == [10, 20, 30, 31]
    assert (found["best_eval_loss"], found["best_step"]) == (10, 10)
    assert "checkpoint" not in found, "the one that it began from is another job's"
    assert [point.step for point in curve.read_points(retry.metrics)] == [10, 20, 30, 31]


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"metrics_history": [1]}', "\x00", "[" * 100_000,
     '{"metrics_history": [{"step": 1, "best_step": 3}]}',
     '{"metrics_history": [], "elapsed_seconds": 1e999}'],
)  # fmt: skip
def test_a_broken_earlier_file_only_loses_its_curve(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    paths.progress.write_text(content)
    monkeypatch.setenv("SIGNALBOX_RESUME_FROM", "/x/step-00000030")
    run = Run()
    run.log(31, loss=5)
    run.finish()
    assert [point["step"] for point in job()["metrics_history"]] == [31]


def test_the_checkpoint_folder_is_there(job: Read, paths: RunPaths) -> None:
    assert Run().checkpoint_dir == paths.checkpoints
    assert paths.checkpoints.is_dir()


def test_the_helper_never_imports_torch(paths: RunPaths) -> None:
    done = in_a_job(
        paths,
        "import sys, signalbox\nsignalbox.start().log(1, loss=1)\nprint('torch' in sys.modules)",
    )
    assert (done.stdout, done.stderr) == ("False\n", "")


def test_the_example_of_the_docs_goes_on_as_if_it_had_never_stopped(tmp_path: Path) -> None:
    script = HELPER_FOLDER.parents[1] / "docs" / "examples" / "resume.py"

    def train(paths: RunPaths, **environment: str) -> list[str]:
        paths.folder.mkdir(exist_ok=True)
        source = "import runpy, sys\nsys.argv[1:] = ['--steps', '20', '--sleep', '0']\n"
        done = in_a_job(paths, f"{source}runpy.run_path({str(script)!r})", **environment)
        assert (done.stderr, done.returncode) == ("", 0)
        return done.stdout.splitlines()

    paused, uninterrupted = RunPaths(tmp_path / "paused"), RunPaths(tmp_path / "uninterrupted")
    paused.folder.mkdir()
    ask(paused, PAUSE)
    assert train(paused)[0] == "asked to stop after step 1"
    assert strict(paused.progress.read_text())["status"] == "stopping"
    paused.stop.unlink()
    newest = paused.checkpoints / strict(paused.progress.read_text())["checkpoint"]
    assert train(paused, SIGNALBOX_RESUME_FROM=str(newest)) == train(uninterrupted)
    losses = [
        [(point["step"], point["train_loss"]) for point in map(json.loads, lines)]
        for lines in (p.metrics.read_text().splitlines() for p in (paused, uninterrupted))
    ]
    assert losses[0] == losses[1]
    assert strict(paused.progress.read_text())["status"] == "finished"


@pytest.mark.parametrize("name", ["signalbox", "signalbox_transformers", "signalbox_lightning"])
def test_what_a_script_imports_is_understood_by_an_older_python(name: str) -> None:
    ast.parse((HELPER_FOLDER / f"{name}.py").read_text(), feature_version=(3, 8))
