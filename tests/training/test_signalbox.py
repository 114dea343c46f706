"""The helper: what it publishes, how often, and that it never disturbs a training."""

import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from backend import curve, progress
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
def job(paths: RunPaths, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Makes this process a job; what it returns reads progress.json."""
    monkeypatch.setenv("SIGNALBOX_RUN_DIR", str(paths.folder))
    monkeypatch.setenv("SIGNALBOX_PROGRESS", str(paths.progress))
    monkeypatch.setenv("SIGNALBOX_CHECKPOINT_DIR", str(paths.checkpoints))
    monkeypatch.delenv("SIGNALBOX_RESUME_FROM", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    return lambda: strict(paths.progress.read_text())


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


def test_the_stop_file_asks_to_stop(paths: RunPaths) -> None:
    paths.stop.write_text("{}")
    done = in_a_job(paths, "import signalbox\nprint(signalbox.start().should_stop)")
    assert done.stdout == "True\n"


def test_a_resumed_run_goes_on_with_its_curve(
    job: Read, paths: RunPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(total_steps=100)
    for step in (10, 20, 30, 40):
        run.log(step, loss=50 - step, val_loss=step)
    run.finish()
    monkeypatch.setenv("SIGNALBOX_RESUME_FROM", str(paths.checkpoints / "step-00000030"))
    run = Run(total_steps=100)
    assert run.resume_step == 30
    assert run.resume_from == paths.checkpoints / "step-00000030"
    run.log(31, loss=5)
    run.finish()
    assert [point["step"] for point in job()["metrics_history"]] == [10, 20, 30, 31]
    assert (job()["best_eval_loss"], job()["best_step"]) == (10, 10)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metrics_history": [1]}', "\x00"])
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
