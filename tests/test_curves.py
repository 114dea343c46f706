"""The curves of jobs as the service answers them, from whatever a job leaves."""

import json
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from backend import curves
from backend.curve import Point, point_as_json
from backend.curves import Curves
from backend.paths import DataPaths
from backend.service import Service, UnknownJobError
from backend.stall import STALLED
from backend.submission import Submission
from tests.waiting import wait_until, wait_until_ended

Script = Callable[..., Submission]


def steps(service: Service, job_id: int) -> list[int]:
    return [made.first_step for made in service.curve(job_id).bins]


def write(paths: DataPaths, job_id: int, count: int, name: str = "metrics") -> Path:
    folder = paths.run(job_id).folder
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.jsonl"
    with path.open("a") as file:
        for step in range(count):
            file.write(point_as_json(Point(step, values={"train_loss": 1 / (step + 1)})) + "\n")
    return path


def test_a_curve_is_there_whoever_kept_it(idle_service: Service, script: Script) -> None:
    service = idle_service
    paths = DataPaths(service.settings.data)
    ids = [service.submit(script("", env={"KEY": "secret-name"})) for _ in range(4)]
    write(paths, ids[0], 100)
    write(paths, ids[1], 100, "seen")
    history = [{"step": n, "loss": n, "secret-name": 1} for n in range(20)]
    paths.run(ids[2]).folder.mkdir(parents=True)
    paths.run(ids[2]).progress.write_text(json.dumps({"step": 19, "metrics_history": history}))
    assert steps(service, ids[0]) == steps(service, ids[1]) == list(range(100))
    assert steps(service, ids[2]) == list(range(20))
    assert steps(service, ids[3]) == []
    assert set(service.curve(ids[2]).names.values()) == {"train_loss", "***********"}
    summary = service.curve_summary(ids[2])
    assert (summary.rows, summary.series["train_loss"].minimum) == (20, 0)
    assert set(summary.series) == {"train_loss", "***********"}
    assert service.curve_summary(ids[0]).series["train_loss"].last == 0.01
    assert service.curve_summary(ids[3]).rows == 0
    for ask in (service.curve, service.curve_summary, service.marks):
        with pytest.raises(UnknownJobError):
            ask(99)


def test_the_index_of_a_running_job_keeps_up_without_being_asked(
    service: Service, script: Script
) -> None:
    job_id = service.submit(
        script(
            """
            import signalbox, time
            run = signalbox.start()
            for step in range(5000):
                run.log(step, train_loss=1.0)
                time.sleep(0.002)
            """
        )
    )
    index = DataPaths(service.settings.data).run(job_id).metrics.with_suffix(".index")
    wait_until(index.exists, 60, "Nobody made an index.")
    service.cancel(job_id)
    wait_until_ended(service, job_id)
    assert index.name in [file.name for file in service.files(job_id)]


def test_a_long_file_that_was_never_read_is_read_in_the_background(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "ANSWER_SECONDS", 0)
    paths = DataPaths(tmp_path)
    write(paths, 1, 20_000)
    kept = Curves(paths, running=lambda: ())
    assert kept.of(1).curve(100).indexed < 1
    kept.start()
    wait_until(lambda: kept.of(1).curve(100).indexed == 1)
    assert kept.of(1).curve(100).rows == 20_000
    kept.close()


def test_few_are_open_and_those_that_were_closed_answer_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(curves, "MAX_OPEN", 2)
    paths = DataPaths(tmp_path)
    for job_id in range(1, 7):
        write(paths, job_id, 100 + job_id)
    kept = Curves(paths, running=lambda: ())
    indexes = {job_id: kept.of(job_id) for job_id in range(1, 7)}
    for job_id, index in indexes.items():
        assert index.curve(16).rows == 100 + job_id
    failures: list[object] = []

    def ask(job_id: int) -> None:
        for _ in range(20):
            if kept.of(job_id).curve(16).rows != 100 + job_id:
                failures.append(job_id)

    threads = [threading.Thread(target=ask, args=(job_id,)) for job_id in range(1, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    kept.forget(3)
    assert kept.of(3).curve(16).rows == 103
    kept.close()


def test_what_happened_to_a_job_is_marked_on_its_curve(service: Service, script: Script) -> None:
    job_id = service.submit(
        script(
            """
            import signalbox, time
            run = signalbox.start()
            if run.resume_from:
                time.sleep(600)
            for step in range(1, 4):
                run.log(step, train_loss=1.0)
            while not run.should_stop:
                time.sleep(0.02)
            folder = run.checkpoint_dir / "step-3"
            folder.mkdir()
            (folder / "x").write_text("x")
            run.saved(folder)
            """,
            timeout_minutes=0.1,
        )
    )
    wait_until(lambda: service.job(job_id).can_pause, 60)
    service.pause(job_id)
    wait_until(lambda: service.job(job_id).status == "paused", 60)
    service.resume(job_id)
    wait_until_ended(service, job_id)
    marks = service.marks(job_id)
    assert [m.kind for m in marks] == ["checkpoint", "pause", "resume", "stall", "end"]
    assert marks[0].step == 3
    assert marks[3].text.startswith(STALLED)
