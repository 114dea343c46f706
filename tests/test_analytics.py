"""Figures of one job and of several; and the phases, which the supervisor times."""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from backend.analytics import (
    NOT_REPORTED,
    Best,
    Compared,
    JobAnalytics,
    PhaseShare,
    analyse,
    compare,
)
from backend.curve import CurveFigures, read_figures
from backend.progress import Reading
from backend.settings import Settings
from backend.store import Store
from tests.test_supervisor import Watched

# One job


def test_a_job_that_said_nothing_has_figures_without_a_value() -> None:
    found = analyse(12, CurveFigures(), Reading(), None, None)
    known = {name: value for name, value in asdict(found).items() if value is not None}
    assert known == {"job_id": 12, "steps": 0, "phases": []}


def test_the_figures_of_a_curve(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        for step in range(1, 41):
            values = {"train_loss": 3.0 if step == 40 else 2 - step / 40}
            if step % 10 == 0:
                values["eval_loss"] = abs(step - 20) + 1
            time = f"2026-11-23T18:00:{step:02}Z"
            file.write(json.dumps({"step": step, **values, "timestamp": time}) + "\n")
    reading = Reading(samples_per_second=96.0, steps_per_second=3.0)
    found = analyse(12, read_figures(path), reading, 45.5, 2**30)
    assert (found.job_id, found.duration_seconds, found.peak_memory_bytes) == (12, 45.5, 2**30)
    assert (found.steps, found.last_step) == (40, 40)
    assert (found.mean_steps_per_second, found.peak_steps_per_second) == (1, 1)
    assert (found.mean_samples_per_second, found.peak_samples_per_second) == (32, 32)
    assert (found.best_train_loss, found.best_train_step) == (2 - 39 / 40, 39)
    assert (found.last_train_loss, found.last_train_step) == (3.0, 40)
    assert (found.best_eval_loss, found.best_eval_step) == (1, 20)
    assert (found.last_eval_loss, found.last_eval_step) == (21, 40)


@pytest.mark.parametrize(
    ("samples", "steps"), [(None, 3.0), (96.0, None), (96.0, 0.0), (1e308, 1e-308), (-1.0, 1.0)]
)
def test_samples_are_told_only_where_both_rates_make_sense(
    samples: float | None, steps: float | None
) -> None:
    curve = CurveFigures(mean_steps_per_second=1.0, peak_steps_per_second=2.0)
    reading = Reading(samples_per_second=samples, steps_per_second=steps)
    found = analyse(1, curve, reading, None, None)
    assert (found.mean_samples_per_second, found.peak_samples_per_second) == (None, None)


def test_phases_are_shares_of_the_time_that_was_watched() -> None:
    reading = Reading(phase_seconds={"": 1.0, "training": 6.0, "evaluating": 3.0, "saving": 0.0})
    assert analyse(1, CurveFigures(), reading, 100.0, None).phases == [
        PhaseShare("training", 6.0, 0.6),
        PhaseShare("evaluating", 3.0, 0.3),
        PhaseShare(NOT_REPORTED, 1.0, 0.1),
    ]


# Several jobs


def _compared(job_id: int, params: dict[str, Any] | None = None, **figures: Any) -> Compared:
    analytics = analyse(job_id, CurveFigures(), Reading(), None, None)
    return Compared("a job", "digits", params or {}, replace(analytics, **figures))


def test_only_parameters_that_differ_are_told() -> None:
    jobs = [
        _compared(3, {"epochs": 5, "layers": [64, 32], "seed": None, "flag": True, "lr": 1}),
        _compared(1, {"epochs": 5, "layers": [64, 32], "flag": 1, "lr": 1.0}),
        _compared(2, {"epochs": 5, "layers": [64], "flag": True, "lr": 1, "extra": {"a": [1]}}),
    ]
    assert compare(jobs).differing_params == {
        "layers": {3: [64, 32], 1: [64, 32], 2: [64]},
        "flag": {3: True, 1: 1, 2: True},
        "extra": {3: None, 1: None, 2: {"a": [1]}},
    }
    assert compare(jobs).jobs == jobs
    assert compare(jobs[:1]).differing_params == {}


def test_the_best_of_each_criterion() -> None:
    figures: dict[str, tuple[float | None, ...]] = {
        "best_eval_loss": (2.0, 1.0, None),
        "best_train_loss": (2.0, None, 0.5),
        "last_eval_loss": (None, 3.0, 3.0),
        "mean_steps_per_second": (5.0, 7.0, 7.0),
        "duration_seconds": (60.0, 30.0, 90.0),
    }
    jobs = [
        _compared(job_id, **{name: row[place] for name, row in figures.items()})
        for place, job_id in enumerate((3, 2, 1))
    ]
    assert compare(jobs).best == {
        "best_eval_loss": Best(2, 1.0),
        "best_train_loss": Best(1, 0.5),
        "last_eval_loss": Best(1, 3.0),
        "mean_steps_per_second": Best(1, 7.0),
        "duration_seconds": Best(2, 30.0),
    }, "of equals the lowest id; no job has a peak of memory"


def test_a_comparison_of_nothing_is_empty() -> None:
    found = compare([])
    assert (found.jobs, found.differing_params, found.best) == ([], {}, {})


def test_figures_are_numbers_that_json_has(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(
        '{"step": 0, "loss": NaN, "timestamp": "2026-11-23T18:00:00.000000Z"}\n'
        '{"step": 9007199254740992, "loss": 1e308, "timestamp": "2026-11-23T18:00:00.000001Z"}\n'
    )
    reading = Reading(samples_per_second=1e308, steps_per_second=1e-3)
    found: JobAnalytics = analyse(1, read_figures(path), reading, None, None)
    assert found.peak_steps_per_second is not None
    assert math.isfinite(found.peak_steps_per_second)
    json.dumps(asdict(found), allow_nan=False)


# Phases, as the supervisor times them


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "signalbox.db")
    yield store
    store.close()


@pytest.fixture
def watched(store: Store, settings: Settings, tmp_path: Path) -> Watched:
    return Watched(store, settings, tmp_path / "run", timeout_seconds=3600)


def _phases(watched: Watched) -> dict[str, float]:
    reading = watched.supervisor.live().reading
    assert reading is not None
    return dict(reading.phase_seconds)


def test_each_phase_has_the_time_that_it_was_seen(watched: Watched) -> None:
    watched.look(10, 11)
    watched.report(step=1, phase="loading", phase_seconds={"loading": 99})
    watched.look(12, 13, 14)
    watched.report(step=2, phase="training")
    watched.look(14.5, 16, 5000)
    assert _phases(watched) == {"": 2, "loading": 2.5, "training": 3.5}
    watched.end(code=0)
    watched.look(5001)
    assert watched.job.progress["phase_seconds"] == {"": 2, "loading": 2.5, "training": 4.5}


def test_phases_go_on_where_an_earlier_server_stopped(watched: Watched) -> None:
    watched.report(step=1, phase="training")
    watched.look(0, 1, 2)
    watched.supervisor.detach()
    watched.supervisor.run()
    assert Reading.from_summary(watched.job.progress).phase_seconds == {"training": 2}
    watched.supervisor = watched.adopt()
    watched.report(step=2, phase="evaluating")
    watched.look(500, 501)
    assert _phases(watched) == {"training": 2, "evaluating": 1}


def test_of_a_server_that_is_killed_at_most_half_a_minute_is_lost(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    saved: list[float] = []
    monkeypatch.setattr(watched.supervisor, "_clock", lambda: now)
    save = watched.supervisor._save

    def noted(**facts: Any) -> None:
        saved.append(now)
        save(**facts)

    monkeypatch.setattr(watched.supervisor, "_save", noted)
    watched.report(step=1, phase="training")
    for second in range(100):
        now = float(second)
        watched.look(now)
    assert saved == [30, 60, 90]
    assert watched.job.progress["current_step"] == 1
    assert watched.job.progress["phase_seconds"] == {"training": 90}
    assert watched.job.memory["peak"] == {"-1": 5000}
    watched.supervisor = watched.adopt()
    assert watched.supervisor.live().peak_bytes == 5000
    watched.look(1000, 1001)
    assert _phases(watched) == {"training": 91}


def test_the_last_reading_of_an_earlier_server_outlives_its_file(watched: Watched) -> None:
    watched.report(step=7, phase="training", loss=0.5)
    watched.look(0, 1)
    watched.supervisor.detach()
    watched.supervisor.run()
    watched.paths.progress.unlink()
    watched.supervisor = watched.adopt()
    watched.look(2, 3)
    watched.end(code=0)
    watched.look(4)
    assert watched.job.progress["current_step"] == 7
    assert watched.job.progress["phase_seconds"] == {"training": 3}
