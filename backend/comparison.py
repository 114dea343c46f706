"""Jobs side by side: which were asked for, which parameters differ, and who is best in what."""

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from backend.bins import CurveSummary
from backend.models import JobStatus
from backend.views import JobView

EVAL: Final = "eval_loss"
LOSSES: Final = ("train_loss", EVAL)
"""What jobs are compared by first, where they log it."""

Value = str | int | float | bool | None
"""A parameter's value as it is compared: lists are written as a command line has them."""

MAX_JOBS: Final = 100
"""So many curves the API gives at once."""

_HIGHER: Final = re.compile(
    r"(^|_)(acc|accuracy|auc|auroc|auprc|f1|precision|recall|reward|return|score|bleu|rouge\w*|"
    r"map|miou|iou|dice|psnr|ssim|r2|throughput|\w*per_second)($|_|\d)"
)
_OPTION: Final = re.compile(r"--?([A-Za-z][\w.-]*)(?:=(.*))?", re.DOTALL)
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][\w.]*)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Asked:
    """What the address asks for."""

    ids: Sequence[int]  # each once, in the order given
    wrong: Sequence[str]  # what is no job's number, as it was written
    left_out: int  # how many were more than can be compared


@dataclass(frozen=True)
class Group:
    """The jobs that have the same value of a parameter."""

    value: Value
    job_ids: Sequence[int]


@dataclass(frozen=True)
class Differences:
    """The parameters of several jobs, in the order in which the jobs name them."""

    differing: Mapping[str, Mapping[int, Value]]
    """By parameter each job's value, None where it has none."""
    same: Mapping[str, Value]


def asked(text: str) -> Asked:
    """What `12,14,x` asks for."""
    ids: dict[int, None] = {}
    wrong: list[str] = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        if part.isascii() and part.isdecimal() and 0 < int(part[:20]) < 2**63:
            ids[int(part[:20])] = None
        else:
            wrong.append(part)
    return Asked(list(ids)[:MAX_JOBS], wrong, max(0, len(ids) - MAX_JOBS))


def parameters_of(recipe: str, params: Mapping[str, Any]) -> dict[str, Value]:
    """A job's parameters by name; a script's arguments one by one.

    `--lr 3e-4`, `--lr=3e-4` and Hydra's `lr=3e-4` are all `lr`, an option without a value is True,
    and what has no name is `argument 1` and so on.
    """
    found: dict[str, Value] = {"recipe": recipe}
    for name, value in params.items():
        if name == "args" and isinstance(value, list):
            for option, given in _arguments([str(part) for part in value]):
                free = option
                while free in found:  # `--script` is not the script
                    free = f"--{free}"
                found[free] = given
        else:
            found[name] = _plain(value)
    return found


def _arguments(args: Sequence[str]) -> Iterator[tuple[str, Value]]:
    given: dict[str, list[Value]] = {}
    unnamed = 0
    waiting: str | None = None  # an option whose value may be next
    for part in args:
        named = _OPTION.fullmatch(part)
        if named:
            waiting = named[1]
            given.setdefault(waiting, [])
            if named[2] is not None:
                given[waiting].append(_read(named[2]))
                waiting = None
        elif waiting is not None and not given[waiting]:
            given[waiting].append(_read(part))
        elif named := _ASSIGNMENT.fullmatch(part):
            given.setdefault(named[1], []).append(_read(named[2]))
        elif waiting is not None:
            given[waiting].append(_read(part))
        else:
            unnamed += 1
            given[f"argument {unnamed}"] = [_read(part)]
    for name, values in given.items():
        many = " ".join("–" if value is None else str(value) for value in values)
        yield name, many if len(values) > 1 else values[0] if values else True


def _read(text: str) -> Value:
    """A number where it is one: `1e-3` and `0.001` are the same learning rate."""
    for kind in (int, float):
        try:
            number = kind(text)
        except ValueError:
            continue
        return number if abs(number) < 1e300 else text  # what is not finite stays as written
    return text


def _plain(value: Any) -> Value:
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if isinstance(value, list):
        return shlex.join(map(str, value))
    return str(value)


def differences(parameters: Mapping[int, Mapping[str, Value]]) -> Differences:
    """Which parameters are not the same in all jobs, and which are."""
    names = dict.fromkeys(name for given in parameters.values() for name in given)
    differing: dict[str, Mapping[int, Value]] = {}
    same: dict[str, Value] = {}
    for name in names:
        values = {job_id: given.get(name) for job_id, given in parameters.items()}
        first = next(iter(values.values()))
        if all(_key(value) == _key(first) for value in values.values()):
            same[name] = first
        else:
            differing[name] = values
    return Differences(differing, same)


def groups(values: Mapping[int, Value]) -> list[Group]:
    """The jobs by their value of one parameter: numbers first, in their order, those without a
    value last."""
    found: dict[tuple[bool, Value], list[int]] = {}
    for job_id, value in values.items():
        found.setdefault(_key(value), []).append(job_id)
    return [
        Group(value, ids)
        for (_, value), ids in sorted(found.items(), key=lambda g: _order(g[0][1]))
    ]


def _key(value: Value) -> tuple[bool, Value]:
    return isinstance(value, bool), value  # to Python True is 1


def _order(value: Value) -> tuple[int, float, str]:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def higher_is_better(metric: str) -> bool:
    """Whether the name of a metric says that more of it is better, as `accuracy` does."""
    return _HIGHER.search(metric.lower()) is not None


def best_of(values: Mapping[int, float | None], *, higher: bool) -> list[int]:
    """The jobs with the best value, several where they are equal; none of fewer than two."""
    known = {job_id: value for job_id, value in values.items() if value is not None}
    if len(known) < 2:
        return []
    best = (max if higher else min)(known.values())
    return [job_id for job_id, value in known.items() if value == best]


def metrics_in_order(names: Iterable[str]) -> list[str]:
    """The metrics that jobs log: the losses first, then by name."""
    given = set(names)
    return [*(n for n in LOSSES if n in given), *sorted(given.difference(LOSSES), key=str.lower)]


@dataclass(frozen=True)
class Column:
    """One figure of each job."""

    title: str
    kind: str  # figure, count or seconds: how it is written
    values: Mapping[int, float | None]
    notes: Mapping[int, str]  # what is said beside the value, for some of the jobs
    best: Sequence[int] = ()  # the jobs that have the best value


def figures(
    summaries: Mapping[int, CurveSummary], jobs: Mapping[int, JobView], metric: str, title: str
) -> list[Column]:
    """Best and last value of a metric, steps, time and rate of each job.

    Args:
        title: How the metric is called in a sentence, as in `held-out loss`.
    """
    held_out = []
    if metric != EVAL and any(EVAL in summary.series for summary in summaries.values()):
        held_out = [_best_column(summaries, EVAL, "held-out loss")]
    series = {job_id: summary.series.get(metric) for job_id, summary in summaries.items()}
    last = {job_id: found.last if found else None for job_id, found in series.items()}
    seconds = {job_id: job.elapsed_seconds for job_id, job in jobs.items()}
    whole = {n: seconds[n] for n, job in jobs.items() if job.status is JobStatus.COMPLETED}
    rates = {job_id: rate(summaries[job_id], jobs[job_id]) for job_id in jobs}
    return [
        _best_column(summaries, metric, title),
        Column(
            f"Last {title}",
            "figure",
            last,
            {n: f"{found.bad:,} not finite" for n, found in series.items() if found and found.bad},
            best_of(last, higher=higher_is_better(metric)),
        ),
        *held_out,
        Column("Steps", "count", {n: summary.last_step for n, summary in summaries.items()}, {}),
        Column("Time", "seconds", seconds, {}, best_of(whole, higher=False)),
        Column("Steps per second", "figure", rates, {}, best_of(rates, higher=True)),
    ]


def _best_column(summaries: Mapping[int, CurveSummary], metric: str, title: str) -> Column:
    higher = higher_is_better(metric)
    found = {n: s.series[metric] for n, s in summaries.items() if metric in s.series}
    values = {n: (f.maximum if higher else f.minimum) for n, f in found.items()}
    steps = {n: (f.max_step if higher else f.min_step) for n, f in found.items()}
    return Column(
        f"{'Highest' if higher else 'Lowest'} {title}",
        "figure",
        {n: values.get(n) for n in summaries},
        {n: f"step {step:,}" for n, step in steps.items() if step is not None},
        best_of(values, higher=higher),
    )


def rate(summary: CurveSummary, job: JobView) -> float | None:
    """Steps per second from the first logged point to the last, the job's pauses left out."""
    if summary.first_at is None or summary.last_at is None:
        return None
    if summary.first_step is None or summary.last_step is None:
        return None
    seconds = (summary.last_at - summary.first_at) / 1000 - _paused_seconds(job)
    steps = summary.last_step - summary.first_step
    return steps / seconds if steps > 0 and seconds > 0 else None


def _paused_seconds(job: JobView) -> float:
    if job.started_at is None or job.finished_at is None or job.elapsed_seconds is None:
        return 0.0
    return max(0.0, (job.finished_at - job.started_at).total_seconds() - job.elapsed_seconds)


def in_words(column: Column, names: Mapping[int, str], shown: Callable[[float], str]) -> str:
    """A column in a sentence, for those who cannot see the lines.

    Args:
        names: How each job is called.
        shown: Writes a value.
    """
    known = {job_id: value for job_id, value in column.values.items() if value is not None}
    if not known:
        return f"{column.title}: none of these jobs has logged it."
    if not column.best:
        ((job_id, value),) = known.items()
        told = f"{shown(value)}, {names[job_id]}"
    else:
        first, *others = column.best
        told = f"{shown(known[first])}, {names[first]}"
        told += f" and {len(others)} more" if others else ""
        job_id = first
    at = f" at {column.notes[job_id]}" if job_id in column.notes else ""
    return f"{column.title}: {told}{at}."
