"""The database: legal changes only, one verdict each, and no lock errors from any thread."""

import itertools
import random
import sqlite3
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from backend.models import (
    TRANSITIONS,
    Cleanup,
    Failure,
    FailureKind,
    Job,
    JobStatus,
    RequestKind,
    utc_now,
)
from backend.store import IllegalTransitionError, Sort, Store, StoreError, Turns
from tests.waiting import wait_until

QUEUED, RUNNING, PAUSED = JobStatus.QUEUED, JobStatus.RUNNING, JobStatus.PAUSED
COMPLETED, FAILED, CANCELLED = JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED

PATHS = {
    QUEUED: [],
    RUNNING: [RUNNING],
    PAUSED: [RUNNING, PAUSED],
    COMPLETED: [RUNNING, COMPLETED],
    FAILED: [RUNNING, FAILED],
    CANCELLED: [CANCELLED],
}
"""A way from queued to each state."""

Add = Callable[..., int]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "signalbox.db")
    yield store
    store.close()


@pytest.fixture
def add(store: Store) -> Add:
    """Adds a job and brings it into a state."""

    def add(status: JobStatus = QUEUED, **fields: Any) -> int:
        job_id = store.add(_job(**fields))
        before = QUEUED
        for after in PATHS[status]:
            assert store.change(job_id, before, after, "on its way")
            before = after
        return job_id

    return add


def _job(**fields: Any) -> Job:
    return Job(**{"name": "a job", "recipe": "digits", "timeout_seconds": 600, "gpus": 0, **fields})


def _status(store: Store, job_id: int) -> JobStatus:
    job = store.get(job_id)
    assert job is not None
    return job.status


def _history(store: Store, job_id: int) -> list[JobStatus]:
    return [event.to_status for event in store.timeline(job_id) if event.to_status]


# States


@pytest.mark.parametrize(("old", "new"), [*itertools.product(JobStatus, JobStatus)])
def test_only_legal_changes_are_made(
    store: Store, add: Add, old: JobStatus, new: JobStatus
) -> None:
    job_id = add(old)
    if new in TRANSITIONS[old]:
        assert store.change(job_id, old, new, "legal")
        assert _status(store, job_id) is new
    else:
        with pytest.raises(IllegalTransitionError, match=f"from {old} to {new}"):
            store.change(job_id, old, new, "illegal")
        assert _status(store, job_id) is old


def test_the_transitions_are_those_of_the_contract() -> None:
    assert {(old, new) for old, news in TRANSITIONS.items() for new in news} == {
        (QUEUED, RUNNING),
        (QUEUED, CANCELLED),
        (RUNNING, COMPLETED),
        (RUNNING, FAILED),
        (RUNNING, CANCELLED),
        (RUNNING, PAUSED),
        (PAUSED, QUEUED),
        (PAUSED, CANCELLED),
    }
    assert [status for status in JobStatus if status.ended] == [COMPLETED, FAILED, CANCELLED]


def test_a_change_from_a_state_that_is_not_the_jobs_writes_nothing(store: Store, add: Add) -> None:
    job_id = add(COMPLETED)
    failure = Failure(job_id=job_id, kind=FailureKind.CRASHED, message="boom")
    cleanup = Cleanup(job_id=job_id, reason="crashed", device="host", source="host")
    assert not store.change(
        job_id, RUNNING, FAILED, "too late", failure=failure, cleanups=[cleanup], error="boom"
    )
    job = store.get(job_id)
    assert job is not None
    assert (job.status, job.error) == (COMPLETED, None)
    assert store.failure(job_id) is None
    assert store.cleanups(job_id, 10) == []
    assert _history(store, job_id) == [QUEUED, RUNNING, COMPLETED]


def test_a_verdict_comes_with_all_that_belongs_to_it(store: Store, add: Add) -> None:
    job_id = add(RUNNING)
    store.request(job_id, RequestKind.CANCELLING, "asked")
    failure = Failure(job_id=job_id, kind=FailureKind.TIMEOUT, message="m", log_tail="t")
    cleanup = Cleanup(
        job_id=job_id, reason="timeout", device="cuda:0", source="nvml",
        holders=[{"pid": 1, "name": "x", "bytes": None}],
    )  # fmt: skip
    assert store.change(
        job_id,
        RUNNING,
        FAILED,
        "m",
        failure=failure,
        cleanups=[cleanup],
        error="m",
        failure_kind=FailureKind.TIMEOUT,
        progress={"current_step": 7, "extra": {}},
    )
    job = store.get(job_id)
    assert job is not None
    assert (job.error, job.failure_kind, job.requested) == ("m", FailureKind.TIMEOUT, None)
    assert job.progress["current_step"] == 7
    assert job.finished_at is not None
    kept = store.failure(job_id)
    assert kept is not None
    assert (kept.kind, kept.log_tail) == (FailureKind.TIMEOUT, "t")
    (row,) = store.cleanups(job_id, 10)
    assert row.holders == [{"pid": 1, "name": "x", "bytes": None}]


def test_of_many_verdicts_that_race_one_is_written(store: Store, add: Add) -> None:
    job_ids = [add(RUNNING) for _ in range(5)]
    verdicts = [COMPLETED, FAILED, CANCELLED] * 4
    barrier = threading.Barrier(len(verdicts))

    def give(verdict: JobStatus) -> list[int]:
        barrier.wait(30)
        return [i for i in job_ids if store.change(i, RUNNING, verdict, "won", error=str(verdict))]

    with ThreadPoolExecutor(len(verdicts)) as threads:
        won = list(threads.map(give, verdicts))
    assert sorted(itertools.chain(*won)) == job_ids, "each was won exactly once"
    for job_id in job_ids:
        job = store.get(job_id)
        assert job is not None
        assert job.error == job.status, "and the winner wrote all of it"
        assert _history(store, job_id) == [QUEUED, RUNNING, job.status]


def test_a_job_that_everybody_pulls_at_goes_only_where_it_may(store: Store, add: Add) -> None:
    job_id = add()
    changes = [(old, new) for old, news in TRANSITIONS.items() for new in news if not new.ended]
    verdicts = [(RUNNING, COMPLETED), (RUNNING, FAILED), (PAUSED, CANCELLED)]

    def pull(seed: int) -> None:
        chance = random.Random(seed)
        for number in range(20):
            old, new = chance.choice(changes + verdicts if number > 10 else changes)
            store.change(job_id, old, new, "pulled")

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(pull, range(8)))
    history = _history(store, job_id)
    assert history[0] is QUEUED
    assert all(new in TRANSITIONS[old] for old, new in itertools.pairwise(history))
    assert history[-1] is _status(store, job_id)
    events = [event for event in store.timeline(job_id) if event.to_status]
    assert [event.from_status for event in events] == [None, *history[:-1]]


# Requests and facts


def test_a_request_is_noted_once_and_of_a_running_job_only(store: Store, add: Add) -> None:
    job_id = add()
    assert not store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
    store.change(job_id, QUEUED, RUNNING, "Started")
    assert store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
    assert not store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
    job = store.get(job_id)
    assert job is not None
    assert job.requested is RequestKind.CANCELLING
    assert [event.message for event in store.timeline(job_id)].count("Cancel was asked for") == 1
    store.change(job_id, RUNNING, COMPLETED, "Completed")
    assert not store.request(job_id, RequestKind.PAUSING, "too late")


def test_a_cancel_takes_the_place_of_a_pause_and_not_the_other_way_round(
    store: Store, add: Add
) -> None:
    job_id = add(RUNNING, notice="It was not paused.")
    assert store.request(job_id, RequestKind.PAUSING, "Pause was asked for")
    asked = store.get(job_id)
    assert asked is not None
    assert asked.notice is None, "what was said of an earlier ask is over"
    assert store.request(job_id, RequestKind.CANCELLING, "Cancel was asked for")
    assert not store.request(job_id, RequestKind.PAUSING, "Pause was asked for")
    assert not store.withdraw_pause(job_id, "It goes on.")
    assert not store.change(job_id, RUNNING, PAUSED, "Paused", unless=RequestKind.CANCELLING)
    assert store.change(job_id, RUNNING, CANCELLED, "Cancelled")


def test_a_pause_is_withdrawn_with_its_reason(store: Store, add: Add) -> None:
    job_id = add(RUNNING)
    assert not store.withdraw_pause(job_id, "nobody asked")
    store.request(job_id, RequestKind.PAUSING, "Pause was asked for")
    assert store.withdraw_pause(job_id, "It goes on.")
    job = store.get(job_id)
    assert job is not None
    assert (job.requested, job.notice) == (None, "It goes on.")
    assert [event.message for event in store.timeline(job_id)][-1] == "It goes on."
    assert store.change(job_id, RUNNING, PAUSED, "Paused", unless=RequestKind.CANCELLING)


def test_a_retry_is_queued_with_the_verdict_or_not_at_all(store: Store, add: Add) -> None:
    job_id = add(RUNNING)
    retry = {"parent_id": job_id, "max_retries": 2, "retry_number": 1}
    assert store.change(job_id, RUNNING, FAILED, "It crashed.", retry=_job(**retry))
    assert not store.change(job_id, RUNNING, FAILED, "It crashed.", retry=_job(**retry))
    (child,) = store.children(job_id)
    assert _status(store, child) is QUEUED
    assert store.children(child) == []
    assert store.timeline(child)[0].message == f"Automatic retry 1 of 2 of job {job_id}"
    assert store.timeline(job_id)[-1].message == f"Will be retried automatically, as job {child}"


def test_facts_are_written_of_running_jobs_only(store: Store, add: Add) -> None:
    running, ended = add(RUNNING), add(CANCELLED)
    for job_id in (running, ended):
        store.update_running(job_id, pid=7)
    assert [job.pid for job in store.running()] == [7]
    job = store.get(ended)
    assert job is not None
    assert job.pid is None


def test_what_is_not_there_is_none(store: Store) -> None:
    assert store.get(12) is None
    assert store.failure(12) is None
    assert store.timeline(12) == []
    assert store.next_queued() is None
    assert not store.change(12, QUEUED, RUNNING, "nobody")
    with pytest.raises(StoreError, match="FOREIGN KEY") as caught:
        store.note(12, "nobody's")
    assert not caught.value.passing


# Queue


def test_the_queue_is_first_come_first_served(store: Store) -> None:
    now = utc_now()
    late = store.add(_job(queued_at=now + timedelta(seconds=1)))
    first = store.add(_job(queued_at=now))
    second = store.add(_job(queued_at=now))
    assert store.queue_positions() == {first: 1, second: 2, late: 3}
    taken = []
    while job := store.next_queued():
        assert job.id is not None
        store.change(job.id, QUEUED, RUNNING, "Started")
        taken.append(job.id)
    assert taken == [first, second, late]
    assert store.queue_positions() == {}


def test_what_is_to_wait_comes_last_and_is_not_taken(store: Store) -> None:
    now = utc_now()
    waits = store.add(_job(queued_at=now, starts_after=now + timedelta(minutes=5)))
    lingers = store.add(_job(queued_at=now + timedelta(seconds=1)))
    ready = store.add(_job(queued_at=now + timedelta(seconds=2), starts_after=now))
    far_off = store.add(_job(queued_at=now, starts_after=now + timedelta(days=365)))
    assert store.queue_positions() == {far_off: 1, lingers: 2, ready: 3, waits: 4}

    def next_besides(*ids: int) -> int | None:
        job = store.next_queued(besides=ids)
        return job.id if job else None

    assert next_besides() == far_off, "the clock was set back by a year"
    assert next_besides(far_off, lingers) == ready
    assert next_besides(far_off, lingers, ready) is None


# Ids


def test_a_new_job_gets_no_id_below_the_first(tmp_path: Path) -> None:
    """Run folders may be there of jobs that the database does not know."""
    first = Store(tmp_path / "signalbox.db", first_id=12)
    assert [first.add(_job()), first.add(_job())] == [12, 13]
    first.close()
    second = Store(tmp_path / "signalbox.db", first_id=5)
    assert second.add(_job()) == 14
    second.close()
    third = Store(tmp_path / "signalbox.db", first_id=40)
    assert third.add(_job()) == 40
    assert third.add(_job(id=3)) == 3
    assert third.add(_job()) == 41
    third.close()


def test_jobs_that_are_added_at_once_get_ids_of_their_own(tmp_path: Path) -> None:
    stores = [Store(tmp_path / "signalbox.db", first_id=12) for _ in range(2)]
    with ThreadPoolExecutor(8) as threads:
        ids = list(threads.map(lambda number: stores[number % 2].add(_job()), range(16)))
    assert sorted(ids) == list(range(12, 28))
    for store in stores:
        store.close()


def test_a_job_that_runs_is_written_again_under_its_own_id(store: Store) -> None:
    store.restore(_job(id=12, status=RUNNING), "Found running")
    assert [job.id for job in store.running()] == [12]
    assert _history(store, 12) == [RUNNING]
    with pytest.raises(StoreError, match="UNIQUE"):
        store.restore(_job(id=12, status=RUNNING), "Found running")
    assert store.add(_job()) == 13


# Finding


def _found(store: Store, **filter: Any) -> list[int | None]:
    return [job.id for job in store.find(**filter).jobs]


def test_jobs_are_found_by_state(store: Store, add: Add) -> None:
    ids = {status: add(status) for status in JobStatus}
    assert _found(store) == sorted(ids.values(), reverse=True)
    for status, job_id in ids.items():
        assert _found(store, statuses=frozenset({status})) == [job_id]
    both = frozenset({QUEUED, FAILED})
    assert _found(store, statuses=both) == [ids[FAILED], ids[QUEUED]]
    assert store.counts() == dict.fromkeys(JobStatus, 1)


def test_every_state_is_counted_even_if_no_job_is_in_it(store: Store, add: Add) -> None:
    add(FAILED)
    assert store.counts() == {**dict.fromkeys(JobStatus, 0), FAILED: 1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nightly", [1]),
        ("NIGHTLY", [1]),
        ("char_lm", [2]),
        ("charxlm", []),
        ("%", [3]),
        ("50%", [3]),
        ("_", [4, 2]),
        ("a\\b", [4]),
        ("3", [3]),
        ("job 3", [3]),
        ("Job #3", [3]),
        ("#3", [3]),
        (" nightly ", [1]),
        ("", [4, 3, 2, 1]),
        ("out of memory", [5]),
        ("' or 1=1 --", []),
        ("9" * 30, []),
        ("٣", []),
    ],
)
def test_jobs_are_found_by_text(store: Store, add: Add, text: str, expected: list[int]) -> None:
    add(name="nightly run", recipe="digits")
    add(name="language", recipe="char_lm")
    add(name="dropout 50%", recipe="digits")
    add(name="a\\b_c", recipe="script")
    if "memory" in text:
        store.change(add(RUNNING), RUNNING, FAILED, "m", error="GPU is out of memory")
    assert _found(store, text=text) == expected


@pytest.mark.parametrize(
    ("sort", "expected"),
    [
        ("id", [1, 2, 3, 4]),
        ("name", [3, 1, 2, 4]),
        ("status", [1, 2, 3, 4]),
        ("started", [2, 3, 1, 4]),
        ("finished", [2, 3, 1, 4]),
        ("duration", [2, 3, 1, 4]),
    ],
)
def test_jobs_are_sorted_both_ways_with_the_unknown_at_the_end(
    store: Store, add: Add, sort: Sort, expected: list[int]
) -> None:
    noon = datetime(2026, 11, 23, 12, tzinfo=UTC)

    def minutes(number: int) -> datetime:
        return noon + timedelta(minutes=number)

    for name, verdict, started, finished in (
        ("beta", CANCELLED, 5, 20),
        ("delta", COMPLETED, 1, 2),
        ("Alpha", FAILED, 2, 16),
    ):
        job_id = add(name=name)
        store.change(job_id, QUEUED, RUNNING, "Started", started_at=minutes(started))
        store.change(job_id, RUNNING, verdict, "Ended", finished_at=minutes(finished))
    add(name="epsilon")
    assert _found(store, sort=sort, descending=False) == expected
    known = expected if sort in ("id", "name", "status") else expected[:-1]
    rest = expected[len(known) :]
    assert _found(store, sort=sort, descending=True) == [*reversed(known), *rest]


def test_a_running_jobs_duration_is_what_it_has_run_so_far(store: Store, add: Add) -> None:
    now = utc_now()
    short, long = add(), add()
    store.change(short, QUEUED, RUNNING, "Started", started_at=now - timedelta(hours=1))
    store.change(short, RUNNING, COMPLETED, "Completed")
    store.change(long, QUEUED, RUNNING, "Started", started_at=now - timedelta(hours=2))
    assert _found(store, sort="duration") == [long, short]


def test_a_pause_is_no_part_of_a_duration(store: Store, add: Add) -> None:
    now = utc_now()
    hour = timedelta(hours=1)
    paused, resumed, plain = add(RUNNING), add(RUNNING), add(RUNNING)
    for job_id, started in ((paused, 9), (resumed, 8), (plain, 2)):
        store.update_running(job_id, started_at=now - started * hour)
    store.change(paused, RUNNING, PAUSED, "Paused", paused_at=now - 8 * hour)
    store.update_running(resumed, paused_seconds=5 * 3600, paused_at=now - 7 * hour)
    assert _found(store, sort="duration") == [resumed, plain, paused]
    store.change(resumed, RUNNING, COMPLETED, "Completed", finished_at=now)
    assert store.summary().total_run_seconds == pytest.approx(3 * 3600)


def test_pages_hold_every_job_once(store: Store, add: Add) -> None:
    for _ in range(7):
        add(name="the same name")
    pages = [store.find(sort="name", limit=3, offset=offset) for offset in (0, 3, 6, 9)]
    assert [page.total for page in pages] == [7] * 4
    assert [len(page.jobs) for page in pages] == [3, 3, 1, 0]
    assert sorted(job.id or 0 for page in pages for job in page.jobs) == list(range(1, 8))


# Failures and cleanups


def _fail(store: Store, job_id: int, kind: FailureKind, at: datetime) -> None:
    failure = Failure(job_id=job_id, kind=kind, message=str(kind), at=at)
    assert store.change(job_id, RUNNING, FAILED, "failed", failure=failure)


def test_failures_come_newest_first_by_kind_and_page(store: Store, add: Add) -> None:
    now = utc_now()
    kinds = [FailureKind.TIMEOUT, FailureKind.CRASHED, FailureKind.TIMEOUT]
    for age, kind in enumerate(kinds):
        _fail(store, add(RUNNING), kind, now - timedelta(hours=age))

    def ids(kind: FailureKind | None, limit: int, offset: int) -> list[int | None]:
        found = store.failures(kind, limit, offset)
        assert all(failure.job_id == job.id for failure, job in found)
        return [job.id for _, job in found]

    assert ids(None, 10, 0) == [1, 2, 3]
    assert ids(FailureKind.TIMEOUT, 10, 0) == [1, 3]
    assert ids(None, 1, 1) == [2]


def test_failures_are_counted_by_day_and_kind(store: Store, add: Add) -> None:
    today = utc_now()
    yesterday = today - timedelta(days=1)
    for at, kind in (
        (today, FailureKind.TIMEOUT),
        (today, FailureKind.TIMEOUT),
        (today, FailureKind.LOST),
        (yesterday, FailureKind.TIMEOUT),
        (today - timedelta(days=40), FailureKind.TIMEOUT),
    ):
        _fail(store, add(RUNNING), kind, at)
    assert sorted(store.failure_counts(14)) == [
        (yesterday.date(), FailureKind.TIMEOUT, 1),
        (today.date(), FailureKind.LOST, 1),
        (today.date(), FailureKind.TIMEOUT, 2),
    ]


def test_cleanups_come_newest_first(store: Store, add: Add) -> None:
    job_id = add(RUNNING)
    for number in range(3):
        store.add_cleanup(
            Cleanup(job_id=job_id, reason="button", device=f"cuda:{number}", source="nvml")
        )
    kept = store.add_cleanup(Cleanup(reason="button", device="server", source="host"))
    assert kept.id == 4
    assert [row.device for row in store.cleanups(None, 2)] == ["server", "cuda:2"]
    assert [row.device for row in store.cleanups(job_id, 9)] == ["cuda:2", "cuda:1", "cuda:0"]


# Times and texts


def test_times_are_aware_and_in_utc_whatever_zone_they_came_from(store: Store, add: Add) -> None:
    tokyo = datetime(2026, 11, 24, 3, 2, 45, 123456, tzinfo=timezone(timedelta(hours=9)))
    job_id = add()
    store.change(job_id, QUEUED, RUNNING, "Started", started_at=tokyo)
    job = store.get(job_id)
    assert job is not None
    assert job.started_at == tokyo
    for at in (job.created_at, job.queued_at, job.started_at, *_times(store, job_id)):
        assert at is not None
        assert at.tzinfo is UTC
    assert abs(job.created_at - utc_now()) < timedelta(minutes=1)


def _times(store: Store, job_id: int) -> list[datetime]:
    return [event.at for event in store.timeline(job_id)]


@given(name=st.text(), value=st.text())
@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_text_comes_back_as_it_was(store: Store, name: str, value: str) -> None:
    job = store.get(store.add(_job(name=name, params={name: value})))
    assert job is not None
    assert (job.name, job.params) == (name, {name: value})


def test_everything_survives_a_new_start(tmp_path: Path) -> None:
    first = Store(tmp_path / "signalbox.db")
    job_id = first.add(_job(env={"A": "b"}, params={"epochs": 3}, devices=[1]))
    first.change(job_id, QUEUED, RUNNING, "Started")
    first.close()
    second = Store(tmp_path / "signalbox.db")
    (job,) = second.running()
    assert (job.id, job.env, job.params, job.devices) == (job_id, {"A": "b"}, {"epochs": 3}, [1])
    assert _history(second, job_id) == [QUEUED, RUNNING]
    assert second.add(_job()) == job_id + 1
    second.close()


def test_the_database_is_in_write_ahead_mode(store: Store, tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "signalbox.db")
    assert connection.execute("pragma journal_mode").fetchone() == ("wal",)
    connection.close()


# Many at once


def test_twenty_threads_read_and_write_without_a_lock_error(store: Store) -> None:
    """Ten submit and end jobs while ten read; each write is there in the end."""
    ended = threading.Event()

    def write(number: int) -> list[int]:
        ids = []
        for _ in range(2):
            job_id = store.add(_job(name=f"by {number}"))
            assert store.change(job_id, QUEUED, RUNNING, "Started")
            store.update_running(job_id, pid=number + 1)
            store.note(job_id, "a note")
            assert store.change(job_id, RUNNING, COMPLETED, "Completed")
            ids.append(job_id)
        return ids

    def read(number: int) -> int:
        reads = 0
        while not ended.is_set():
            store.find(text="by", sort="duration", limit=20)
            for job in store.running():
                assert job.status is RUNNING
            store.counts()
            store.queue_positions()
            reads += 1
        return reads

    with ThreadPoolExecutor(20) as threads:
        readers = [threads.submit(read, number) for number in range(10)]
        try:
            ids = sorted(itertools.chain(*threads.map(write, range(10))))
        finally:
            ended.set()
        assert all(reader.result() > 0 for reader in readers)
    assert ids == list(range(1, 21))
    assert store.counts()[COMPLETED] == 20
    for job_id in ids:
        assert _history(store, job_id) == [QUEUED, RUNNING, COMPLETED]


def test_sixty_threads_read_at_the_same_moment(store: Store, add: Add) -> None:
    job_id = add()
    together = threading.Barrier(60)

    def read(_number: int) -> int:
        with store._read() as session:
            assert session.get(Job, job_id)
            return together.wait(30)  # all of them hold their connection now

    with ThreadPoolExecutor(60) as threads:
        assert sorted(threads.map(read, range(60))) == list(range(60))


def test_who_writes_in_a_loop_keeps_nobody_waiting(store: Store, add: Add) -> None:
    """Who has asked waits for one turn of the other; before it gets to ask there may be a few."""
    job_id = add()
    spun, stop = itertools.count(), threading.Event()
    turns = 0

    def spin() -> None:
        nonlocal turns
        while not stop.is_set():
            store.note(job_id, "spinning")
            turns = next(spun)

    waited = []
    with ThreadPoolExecutor(1) as threads:
        spinner = threads.submit(spin)
        wait_until(lambda: turns)
        for _ in range(10):
            before = turns
            wait_until(lambda before=before: turns > before)  # it is at it again
            before = turns
            store.note(job_id, "mine")
            waited.append(turns - before)
        stop.set()
        spinner.result()
    assert sum(waited) < 10 * len(waited), waited


def test_turns_are_handed_on_in_the_order_in_which_they_were_asked_for() -> None:
    turns = Turns()
    assert turns.take(0)
    order: list[int] = []

    def wait(number: int) -> None:
        assert turns.take(30)
        order.append(number)
        turns.give()

    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=wait, args=(number,)))
        threads[-1].start()
        wait_until(lambda: len(turns._waiting) == len(threads))
    assert not turns.take(0), "who comes last, and does not wait, changes nothing"
    turns.give()
    assert turns.take(30), "after all who asked before"
    assert order == [0, 1, 2, 3, 4]
    turns.give()
    for thread in threads:
        thread.join()
    assert turns.take(0)


def test_a_writer_waits_for_another_process(store: Store, add: Add, tmp_path: Path) -> None:
    job_id = add(RUNNING)
    other = sqlite3.connect(tmp_path / "signalbox.db", isolation_level=None)
    other.execute("begin immediate")
    with ThreadPoolExecutor(1) as threads:
        verdict = threads.submit(store.change, job_id, RUNNING, COMPLETED, "Completed")
        assert _status(store, job_id) is RUNNING, "readers do not wait"
        assert not verdict.done()
        other.execute("rollback")
        assert verdict.result(timeout=30)
    other.close()


# What cannot be done


def _restrict(store: Store, pragma: str) -> None:
    """Have each connection from now on under a restriction, as the disk would set it."""
    store._engine.dispose()
    event.listen(store._engine, "connect", lambda connection, _: connection.execute(pragma))


@pytest.mark.parametrize(
    ("pragma", "sentence"),
    [
        (
            "PRAGMA max_page_count=1",
            "The database cannot be written (database or disk is full); "
            "free some space and try again.",
        ),
        (
            "PRAGMA query_only=ON",
            "The database cannot be written (attempt to write a readonly database); "
            "make sure that it may be written and try again.",
        ),
    ],
    ids=["full", "read-only"],
)
def test_what_cannot_be_written_is_said_in_a_sentence(
    store: Store, add: Add, pragma: str, sentence: str
) -> None:
    job_id = add(RUNNING)
    _restrict(store, pragma)
    big = "x" * 100_000
    for write in (
        lambda: store.note(job_id, big),
        lambda: store.add(_job(name=big)),
        lambda: store.change(job_id, RUNNING, FAILED, big, error=big),
    ):
        with pytest.raises(StoreError) as caught:
            write()
        assert str(caught.value) == sentence
        assert caught.value.passing
    assert _status(store, job_id) is RUNNING
    assert len(store.timeline(job_id)) == 2


def test_a_database_that_stays_locked_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.store.BUSY_SECONDS", 0.1)
    store = Store(tmp_path / "signalbox.db")
    other = sqlite3.connect(tmp_path / "signalbox.db", isolation_level=None)
    other.execute("begin immediate")
    with pytest.raises(StoreError, match=r"\(database is locked\); another program") as caught:
        store.add(_job())
    assert caught.value.passing
    assert store._turns.take(0)
    with pytest.raises(StoreError, match="take too long") as caught:
        store.add(_job())
    store._turns.give()
    assert caught.value.passing
    other.execute("rollback")
    other.close()
    assert store.add(_job()) == 1
    store.close()


def test_more_threads_than_connections_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.store.BUSY_SECONDS", 0.1)
    monkeypatch.setattr("backend.store.KEPT_CONNECTIONS", 1)
    monkeypatch.setattr("backend.store.MAX_CONNECTIONS", 1)
    store = Store(tmp_path / "signalbox.db")
    with store._read() as session:
        session.connection()
        with pytest.raises(StoreError, match="too many threads") as caught:
            store.counts()
    assert caught.value.passing
    assert store.counts()[QUEUED] == 0
    store.close()


def test_damage_and_mistakes_of_the_program_do_not_pass(store: Store, tmp_path: Path) -> None:
    for number in range(200):
        store.add(_job(name=f"job {number}"))
    with sqlite3.connect(tmp_path / "signalbox.db") as connection:
        connection.execute("drop table cleanup")
    connection.close()
    with pytest.raises(StoreError, match=r"read \(no such table: cleanup\)\.") as caught:
        store.cleanups(None, 1)
    assert not caught.value.passing
    store.close()
    path = tmp_path / "signalbox.db"
    with path.open("r+b") as file:
        file.seek(4096)  # where the jobs' table begins
        file.write(b"no database " * 300)
    damaged = Store(path)
    with pytest.raises(StoreError, match="it is damaged; restart Signalbox") as caught:
        damaged.find()
    assert not caught.value.passing
    damaged.close()


def test_a_file_that_is_no_database_is_said_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "signalbox.db"
    path.write_bytes(b"no database " * 1000)
    with pytest.raises(StoreError, match=r"signalbox\.db cannot be opened \(file is not") as caught:
        Store(path)
    assert not caught.value.passing


# All jobs in figures


def test_a_summary_of_nothing(store: Store) -> None:
    summary = store.summary()
    assert (summary.jobs, summary.by_status) == (0, dict.fromkeys(JobStatus, 0))
    assert (summary.by_recipe, summary.failures_by_kind) == ({}, {})
    assert (summary.total_run_seconds, summary.mean_run_seconds) == (0, None)
    assert (summary.longest_run_seconds, summary.success_share) == (None, None)
    assert (summary.first_created_at, summary.last_finished_at) == (None, None)


def test_a_summary_counts_all_jobs(store: Store, add: Add) -> None:
    begin = datetime(2026, 1, 1, tzinfo=UTC)
    runs = [(COMPLETED, 10), (COMPLETED, 20.5), (FAILED, 3600), (CANCELLED, 5), (CANCELLED, None)]
    for number, (status, seconds) in enumerate(runs):
        started = None if seconds is None else begin
        job_id = add(recipe="digits" if number else "script", created_at=begin, started_at=started)
        if status is not CANCELLED or started:
            assert store.change(job_id, QUEUED, RUNNING, "Started")
            ended = begin + timedelta(seconds=seconds or 0)
            kind = FailureKind.TIMEOUT if status is FAILED else None
            assert store.change(job_id, RUNNING, status, "", finished_at=ended, failure_kind=kind)
    add(RUNNING, created_at=begin + timedelta(days=1), started_at=begin)
    summary = store.summary()
    assert summary.jobs == 6
    assert {k: v for k, v in summary.by_status.items() if v} == {
        COMPLETED: 2, FAILED: 1, CANCELLED: 1, QUEUED: 1, RUNNING: 1,
    }  # fmt: skip
    assert list(summary.by_recipe.items()) == [("digits", 5), ("script", 1)]
    assert summary.failures_by_kind == {FailureKind.TIMEOUT: 1}
    assert summary.total_run_seconds == pytest.approx(3635.5, abs=0.01)
    assert summary.mean_run_seconds == pytest.approx(3635.5 / 4, abs=0.01)
    assert summary.longest_run_seconds == pytest.approx(3600, abs=0.01)
    assert summary.first_created_at == begin
    assert summary.last_finished_at == begin + timedelta(hours=1)
    assert summary.success_share == 2 / 3


def test_a_run_that_ended_before_it_began_took_no_time(store: Store, add: Add) -> None:
    """The machine's clock was set back while it ran."""
    now = utc_now()
    job_id = add(RUNNING, started_at=now)
    assert store.change(job_id, RUNNING, COMPLETED, "", finished_at=now - timedelta(hours=1))
    assert store.summary().total_run_seconds == 0
    assert store.summary().mean_run_seconds == 0


def test_a_summary_of_many_jobs_loads_none_of_them(store: Store, add: Add) -> None:
    add()
    with store._write() as session:
        session.add_all([_job(progress={"text": "x" * 1000}) for _ in range(100)])
    statements: list[str] = []

    @event.listens_for(store._engine, "before_cursor_execute")
    def note(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    assert store.summary().jobs == 101
    (statement,) = [s for s in statements if "SELECT" in s]
    assert "progress" not in statement
