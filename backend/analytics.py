"""What jobs come to in figures: of one, and of several side by side."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backend.curve import CurveFigures
from backend.progress import Reading

NOT_REPORTED: Final = "not reported"
"""The time before a job named a phase."""


@dataclass(frozen=True)
class PhaseShare:
    phase: str
    seconds: float  # in which the server was looking
    share: float  # of the seconds of all phases, 0 to 1


@dataclass(frozen=True)
class JobAnalytics:
    """One job in figures; None where it is not known."""

    job_id: int
    duration_seconds: float | None  # from its start to its end, or to now
    steps: int  # points of its curve
    last_step: int | None
    mean_steps_per_second: float | None  # from the first point to the last
    peak_steps_per_second: float | None  # in its fastest 10 seconds; of a shorter run the mean
    mean_samples_per_second: float | None
    peak_samples_per_second: float | None
    best_train_loss: float | None
    best_train_step: int | None
    last_train_loss: float | None
    last_train_step: int | None
    best_eval_loss: float | None
    best_eval_step: int | None
    last_eval_loss: float | None
    last_eval_step: int | None
    peak_memory_bytes: int | None
    phases: Sequence[PhaseShare]  # the longest first


@dataclass(frozen=True)
class Compared:
    """One of the jobs of a comparison."""

    name: str
    recipe: str
    params: Mapping[str, Any]
    analytics: JobAnalytics

    @property
    def job_id(self) -> int:
        return self.analytics.job_id


@dataclass(frozen=True)
class Best:
    job_id: int
    value: float


@dataclass(frozen=True)
class Comparison:
    jobs: Sequence[Compared]
    differing_params: Mapping[str, Mapping[int, Any]]
    """By parameter each job's value, None where it has none; only those that are not all equal."""
    best: Mapping[str, Best]
    """By criterion, which is a field of JobAnalytics, the job that is best. Without those that no
    job has a value for."""


_CRITERIA: Final[Mapping[str, Callable[..., Any]]] = {
    "best_eval_loss": min,
    "best_train_loss": min,
    "last_eval_loss": min,
    "mean_steps_per_second": max,
    "duration_seconds": min,
    "peak_memory_bytes": min,
}


def analyse(
    job_id: int,
    curve: CurveFigures,
    reading: Reading,
    duration_seconds: float | None,
    peak_memory_bytes: int | None,
) -> JobAnalytics:
    """One job in figures.

    A curve has no samples. Where the latest reading has both rates, their ratio is taken for the
    samples of every step.
    """
    samples = None
    if reading.samples_per_second is not None and reading.steps_per_second:
        samples = reading.samples_per_second / reading.steps_per_second
    mean, peak = curve.mean_steps_per_second, curve.peak_steps_per_second
    return JobAnalytics(
        job_id=job_id,
        duration_seconds=duration_seconds,
        steps=curve.points,
        last_step=curve.last_step,
        mean_steps_per_second=mean,
        peak_steps_per_second=peak,
        mean_samples_per_second=_product(mean, samples),
        peak_samples_per_second=_product(peak, samples),
        best_train_loss=curve.best_train_loss,
        best_train_step=curve.best_train_step,
        last_train_loss=curve.last_train_loss,
        last_train_step=curve.last_train_step,
        best_eval_loss=curve.best_eval_loss,
        best_eval_step=curve.best_eval_step,
        last_eval_loss=curve.last_eval_loss,
        last_eval_step=curve.last_eval_step,
        peak_memory_bytes=peak_memory_bytes,
        phases=_phases(reading.phase_seconds),
    )


def compare(jobs: Sequence[Compared]) -> Comparison:
    """Several jobs side by side: what differs, and who is best in what. Of equals the job with the
    lowest id is best."""
    names = dict.fromkeys(name for job in jobs for name in job.params)
    values = {name: {job.job_id: job.params.get(name) for job in jobs} for name in names}
    differing = {name: row for name, row in values.items() if not _all_equal([*row.values()])}
    best: dict[str, Best] = {}
    for criterion, choose in _CRITERIA.items():
        figures = {
            job.job_id: figure
            for job in sorted(jobs, key=lambda job: job.job_id)
            if (figure := getattr(job.analytics, criterion)) is not None
        }
        if figures:
            job_id = choose(figures, key=figures.__getitem__)
            best[criterion] = Best(job_id, figures[job_id])
    return Comparison(jobs, differing, best)


def _all_equal(values: Sequence[Any]) -> bool:
    # To Python True is 1.
    return all(
        value == values[0] and isinstance(value, bool) == isinstance(values[0], bool)
        for value in values
    )


def _phases(spent: Mapping[str, float]) -> list[PhaseShare]:
    total = sum(spent.values())
    longest_first = sorted(spent.items(), key=lambda item: -item[1])
    return [
        PhaseShare(phase or NOT_REPORTED, seconds, seconds / total)
        for phase, seconds in longest_first
        if seconds > 0
    ]


def _product(rate: float | None, samples: float | None) -> float | None:
    if rate is None or samples is None:
        return None
    product = rate * samples
    return product if 0 < product < math.inf else None
