"""The search of jobs: what is understood, what is said of the rest, and what is found."""

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any, Final

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backend import arguments, matching, progress
from backend.models import FailureKind, Job, JobStatus, utc_now
from backend.search import (
    MAX_CONDITIONS,
    MAX_TEXT,
    Compared,
    Condition,
    InField,
    InState,
    Starred,
    Words,
    parse,
)
from backend.store import Store

PIECES: Final = (
    'lr', '>', '<=', '!=', '=', '"', "-", "tag:", "is:", "status:", "starred", "failed", "12",
    "#12", "job", "duration", "1h30m", "3e-4", "inf", "nan", "1e999", "\0", "\udc80", "%", "_", "/",
    "'", ";", "é", " ", "name:", "$.x", "]", "a.b", "9" * 30, "age>", "timeout",
)  # fmt: skip
TEXTS: Final = st.one_of(
    st.text(max_size=60), st.lists(st.sampled_from(PIECES), max_size=12).map("".join)
)


def _only(text: str) -> Any:
    (condition,) = parse(text).conditions
    assert not parse(text).problems
    assert not condition.excludes
    return condition.wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("adam", Words("adam")),
        ('"two words"', Words("two words")),
        ("12", Words("12", 12)),
        ("#12", Words("#12", 12)),
        ("job 12", Words("job 12", 12)),
        ("Job #12", Words("Job #12", 12)),
        ("failed", InState(frozenset({JobStatus.FAILED}))),
        ("timeout", InState(kinds=frozenset({FailureKind.TIMEOUT}))),
        ("status:Running", InState(frozenset({JobStatus.RUNNING}))),
        ('"failed"', Words("failed")),
        ("is:starred", Starred()),
        ("recipe:digits", InField("recipe", "digits")),
        ("recipe = digits", InField("recipe", "digits")),
        ('tag:"to keep"', InField("tag", "to keep")),
        ("lr>0.001", Compared("lr", ">", "0.001", 0.001)),
        ("lr >= 3e-4", Compared("lr", ">=", "3e-4", 3e-4)),
        ("lr≤1", Compared("lr", "<=", "1", 1)),
        ("optimizer==adamw", Compared("optimizer", "=", "adamw", None)),
        ("steps>10,000", Compared("steps", ">", "10,000", 10_000)),
        ("duration>1h30m", Compared("duration", ">", "1h30m", 5400)),
        ("duration<90", Compared("duration", "<", "90", 90)),
        ("http://a.example/b", Words("http://a.example/b")),
        ("RuntimeError:", Words("RuntimeError:")),
        ("well-known", Words("well-known")),
    ],
)
def test_what_is_typed_is_understood(text: str, wanted: object) -> None:
    assert _only(text) == wanted


def test_a_minus_excludes() -> None:
    assert parse('-failed -"a b" -tag:x').conditions == (
        Condition(InState(frozenset({JobStatus.FAILED})), excludes=True),
        Condition(Words("a b"), excludes=True),
        Condition(InField("tag", "x"), excludes=True),
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("lr>fast", "lr>fast compares with no number; write it as lr>0.001."),
        ("lr>", "lr> is followed by nothing; write it as lr>0.001."),
        ("lr<nan", "lr<nan compares with no number; write it as lr<0.001."),
        ("age>soon", "age>soon names no time; write it as age>1h30m or age>90s."),
        ("tag:", "tag: is followed by nothing; write it as tag:paper."),
        ("is:mine", "is:mine is no state; there are queued, running, paused, completed, failed, "
         "cancelled, and is:starred."),
        ('"half', "A quotation mark has no partner; the text is taken to its end."),
        ("a" * (MAX_TEXT + 1), f"Only the first {MAX_TEXT:,} characters are searched for."),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_said_and_the_rest_counts(text: str, said: str) -> None:
    search = parse(f"digits {text}")
    assert search.problems == (said,)
    assert search.conditions[0] == Condition(Words("digits"))


def test_no_search_is_too_long_for_the_database(find: Callable[..., list[int]]) -> None:
    assert len(parse("lr>0 " * 100).conditions) == MAX_CONDITIONS
    find("-lr>0 " * 100)


# What is found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Six jobs, numbered 1 to 6."""
    store = Store(tmp_path_factory.mktemp("search") / "signalbox.db")
    now = utc_now()
    common: dict[str, Any] = {"timeout_seconds": 600, "gpus": 0, "status": JobStatus.COMPLETED}
    script = {"script": "/a/train.py", "python": None, "working_dir": None}
    progress = {"train_loss": 0.5, "learning_rate": 0.0, "best_eval_loss": 0.04,
                "extra": {"accuracy": 0.9}}  # fmt: skip
    jobs = [
        {"name": "Baseline 50%", "recipe": "digits", "params": {"learning_rate": 3e-3, "seed": 2},
         "started_at": now - timedelta(hours=2), "finished_at": now, "tags": ["Paper", "to keep"]},
        {"name": "second", "recipe": "char_lm", "params": {"learning_rate": 1e-4, "seed": 1},
         "progress": progress, "note": "as in the paper", "starred": True},
        {"name": "args", "recipe": "script",
         "params": {**script, "args": ["--lr", "3e-3", "--optimizer=AdamW", "--amp"]}},
        {"name": "sweep lr=0.003", "recipe": "script",
         "params": {**script, "args": ["batch-size=64", "--shift", "-2"]}},
        {"name": "broken", "recipe": "digits", "status": JobStatus.FAILED,
         "failure_kind": FailureKind.CRASHED, "error": "CUDA says no", "params": {"seed": "two"}},
        {"name": "stuck", "recipe": "digits", "status": JobStatus.FAILED,
         "failure_kind": FailureKind.TIMEOUT, "created_at": now - timedelta(days=3)},
    ]  # fmt: skip
    for fields in jobs:
        store.add(Job(**{**common, **fields}))
    yield store
    store.close()


@pytest.fixture(scope="module")
def find(store: Store) -> Callable[..., list[int]]:
    def find(text: str, **order: Any) -> list[int]:
        found = store.find(text=text, **{"descending": False, **order})
        assert found.total == len(found.jobs)
        return [job.id or 0 for job in found.jobs]

    return find


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("", [1, 2, 3, 4, 5, 6]),
        ("baseline", [1]),
        ("50%", [1]),
        ("%", [1]),
        ("paper", [1, 2]),
        ("tag:paper", [1]),
        ("tag:pap", []),
        ('tag:"to keep"', [1]),
        ("note:paper", [2]),
        ("-paper", [3, 4, 5, 6]),
        ("cuda no", [5]),
        ("error:CUDA", [5]),
        ("3", [3, 4]),
        ("#3", [3]),
        ("is:starred", [2]),
        ("-is:starred digits", [1, 5, 6]),
        ("failed", [5, 6]),
        ("timeout", [6]),
        ("-failed -completed", []),
        ("lr>0.001", [1, 3]),
        ("lr=3e-3", [1, 3]),
        ("lr=0.003", [1, 3, 4]),
        ("learning_rate<=0.0001", [2]),
        ("-lr>0.001", [2, 4, 5, 6]),
        ("optimizer=adamw", [3]),
        ("amp>0", [3]),
        ("batch_size>=64", [4]),
        ("shift<0", [4]),
        ("seed!=2", [2, 5]),
        ("seed=two", [5]),
        ("loss<=0.5", [2]),
        ("best<0.05", [2]),
        ("accuracy>0.8", [2]),
        ("duration>1h", [1]),
        ("age>2d", [6]),
        ("timeout=10m", [1, 2, 3, 4, 5, 6]),
        ("no_such_thing>0", []),
        ("recipe:digits failed -timeout", [5]),
        ("status:nonsense broken", [5]),
    ],
)
def test_jobs_are_found(text: str, ids: list[int], find: Callable[..., list[int]]) -> None:
    assert find(text) == ids


def test_jobs_are_sorted_by_any_parameter_or_figure(find: Callable[..., list[int]]) -> None:
    assert find("lr>0", sort="lr") == [2, 3, 1]
    assert find("lr>0", sort="learning_rate", descending=True) == [3, 1, 2]
    assert find("", sort="accuracy", descending=True)[0] == 2
    assert find("", sort='"; DROP TABLE job') == [1, 2, 3, 4, 5, 6]


@given(TEXTS)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_text_makes_a_search_raise(store: Store, text: str) -> None:
    parsed = parse(text)
    assert all(problem.endswith(".") for problem in parsed.problems)
    found = store.find(text=text, sort=text)
    excluded = store.find(text=f"-{text}")
    assert {job.id for job in found.jobs} <= set(range(1, 7))
    assert excluded.total <= 6


@given(st.one_of(st.text(), st.lists(st.text(max_size=20)).map(str)), st.text(max_size=20))
def test_no_parameters_make_the_look_at_arguments_raise(params: str, name: str) -> None:
    assert isinstance(arguments.argument(params, name), float | str | None)


def test_the_figures_are_those_that_a_reading_has() -> None:
    numbers = {*progress._COUNTS, *progress._FIGURES}
    assert numbers == matching.FIGURES
