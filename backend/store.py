"""Every query and every change of state, on SQLite."""

import logging
import sqlite3
import threading
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import (
    URL,
    ColumnElement,
    Connection,
    Engine,
    Update,
    and_,
    create_engine,
    delete,
    event,
    func,
    or_,
    update,
)
from sqlalchemy.exc import OperationalError, SQLAlchemyError, TimeoutError
from sqlmodel import Session, col, select

from backend.matching import DURATION, conditions, register, value_of
from backend.models import (
    TRANSITIONS,
    Cleanup,
    Event,
    Failure,
    FailureKind,
    Gone,
    Job,
    JobStatus,
    RequestKind,
    utc_now,
)
from backend.schema import BUSY_SECONDS, prepare
from backend.search import NAME, parse

logger = logging.getLogger(__name__)

KEPT_CONNECTIONS: Final = 16
MAX_CONNECTIONS: Final = 128
"""One for each thread that reads at the same moment: supervisors, pages and requests."""

_ADVICE: Final[Mapping[int, str]] = {
    sqlite3.SQLITE_FULL: "free some space and try again",
    sqlite3.SQLITE_BUSY: "another program keeps it locked; try again",
    sqlite3.SQLITE_READONLY: "make sure that it may be written and try again",
    sqlite3.SQLITE_CANTOPEN: "make sure that its folder is there and try again",
    sqlite3.SQLITE_CORRUPT: "it is damaged; restart Signalbox, which sets it aside",
    sqlite3.SQLITE_NOTADB: "it is damaged; restart Signalbox, which sets it aside",
}
"""What to try, by SQLite's result code."""

Sort = str
"""One of `_SORTS`, or the name of a parameter or a figure, as `search.NAME` allows it."""

MAX_RETRY_WAIT_SECONDS: Final = 3600.0
"""No retry waits longer, whatever became of the clock."""

_SORTS: Final[Mapping[str, Any]] = {
    "id": col(Job.id),
    "name": func.lower(col(Job.name)),
    "recipe": col(Job.recipe),
    "status": col(Job.status),
    "started": col(Job.started_at),
    "finished": col(Job.finished_at),
    "duration": DURATION,
    "starred": col(Job.starred),
}


_THERE: Final = col(Job.deleted_at).is_(None)
"""Not deleted."""
FOR_GOOD: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""The moment of a deletion that cannot be taken back; its files may be half gone."""

_DELETED_IDS: Final = select(Job.id).where(~_THERE)
_IS_THERE: Final = col(Failure.job_id).not_in(_DELETED_IDS)
"""The job of a failure is."""


class IllegalTransitionError(ValueError):
    """The transition table has no such change; a mistake in this program."""


class StoreError(Exception):
    """The database cannot be read or written; the message is one sentence for a person.

    Attributes:
        passing: It is locked, full, read-only or out of reach, and trying again later may help.
            Otherwise it is damaged, or this program is wrong, and the same will fail again.
    """

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Found:
    jobs: Sequence[Job]
    total: int


@dataclass(frozen=True)
class Summary:
    """All jobs in figures; None where no job tells."""

    jobs: int
    by_status: Mapping[JobStatus, int]  # every state is there
    by_recipe: Mapping[str, int]  # the most used first
    failures_by_kind: Mapping[FailureKind, int]  # the most frequent first
    total_run_seconds: float  # of those that were started and have ended
    mean_run_seconds: float | None
    longest_run_seconds: float | None
    first_created_at: datetime | None
    last_finished_at: datetime | None
    success_share: float | None  # of those that completed or failed, 0 to 1


class Store:
    """The database of one data folder. Safe to use from every thread.

    Every method may raise StoreError.
    """

    def __init__(self, path: Path, first_id: int = 1) -> None:
        """Open the database, and make it or bring it up to date where needed.

        Args:
            first_id: No new job gets a lower id, because there are run folders up to there.

        Raises:
            SchemaError: the database is not for this version; it is as it was.
            StoreError: it cannot be opened.
        """
        self._first_id = first_id
        self._engine = create_engine(
            URL.create("sqlite", database=str(path)),
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
            pool_size=KEPT_CONNECTIONS,
            max_overflow=MAX_CONNECTIONS - KEPT_CONNECTIONS,
            pool_timeout=BUSY_SECONDS,
        )
        _use_own_transactions(self._engine)
        self._writing = self._engine.execution_options(writes=True)
        self._turns = Turns()
        try:
            with _plainly(f"The database {path} cannot be opened"):
                prepare(self._engine, path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with (
            _plainly("The database cannot be read"),
            Session(self._engine, expire_on_commit=False) as session,
        ):
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        if not self._turns.take(BUSY_SECONDS):
            raise StoreError(
                "The database cannot be written (other writes take too long); try again.",
                passing=True,
            )
        try:
            with (
                _plainly("The database cannot be written"),
                Session(self._writing, expire_on_commit=False) as session,
                session.begin(),
            ):
                yield session
        finally:
            self._turns.give()

    # Jobs

    def add(self, job: Job) -> int:
        """Queue a job; return its id."""
        with self._write() as session:
            return self._add(session, job, "Submitted")

    def _add(self, session: Session, job: Job, message: str) -> int:
        if job.id is None:
            newest = session.exec(select(func.max(col(Job.id)))).one() or 0
            gone = session.exec(select(func.max(col(Gone.job_id)))).one() or 0
            job.id = max(newest + 1, gone + 1, self._first_id)
        session.add(job)
        session.flush()
        session.add(Event(job_id=job.id, to_status=JobStatus.QUEUED, message=message))
        return job.id

    def restore(self, job: Job, message: str) -> None:
        """Write a job that has an id and a state already, but is not in this database."""
        assert job.id is not None
        with self._write() as session:
            session.add(job)
            session.flush()
            session.add(Event(job_id=job.id, to_status=job.status, message=message))

    def get(self, job_id: int) -> Job | None:
        with self._read() as session:
            return session.get(Job, job_id)

    def find(
        self,
        statuses: frozenset[JobStatus] = frozenset(),
        text: str = "",
        sort: Sort = "id",
        descending: bool = True,
        limit: int = 100,
        offset: int = 0,
    ) -> Found:
        """Jobs by state and by a search, as `backend.search` reads it."""
        wanted = _wanted(statuses, text)
        # SQLite sorts whole rows; of jobs that are not on the page it sorts nothing but the ids.
        found = select(Job.id).where(*wanted).order_by(*_order(sort, descending))
        with self._read() as session:
            if text.strip():  # to look through the texts and the JSON once is enough
                ids = session.exec(found).all()
                total, ids = len(ids), ids[offset : offset + limit]
            else:
                total = session.exec(select(func.count()).select_from(Job).where(*wanted)).one()
                ids = session.exec(found.limit(limit).offset(offset)).all()
            jobs = session.exec(select(Job).where(col(Job.id).in_(ids))).all()
        by_id = {job.id: job for job in jobs}
        return Found([by_id[job_id] for job_id in ids if job_id in by_id], total)

    def these(self, job_ids: Sequence[int]) -> Sequence[Job]:
        """Those of these jobs that are there, in the order in which they are named."""
        with self._read() as session:
            jobs = session.exec(select(Job).where(col(Job.id).in_(job_ids), _THERE)).all()
        by_id = {job.id: job for job in jobs}
        return [by_id[job_id] for job_id in job_ids if job_id in by_id]

    def newer(self, job_id: int, statuses: frozenset[JobStatus], text: str) -> int:
        """How many jobs that match were submitted after this one."""
        newer = select(func.count()).select_from(Job).where(col(Job.id) > job_id)
        with self._read() as session:
            return session.exec(newer.where(*_wanted(statuses, text))).one()

    def newest_id(self) -> int:
        """The highest number of a job; 0 where there is none."""
        with self._read() as session:
            return session.exec(select(func.max(col(Job.id)))).one() or 0

    def counts(self) -> dict[JobStatus, int]:
        counts = select(Job.status, func.count()).where(_THERE).group_by(col(Job.status))
        with self._read() as session:
            rows = session.exec(counts).all()
        counted = {JobStatus(status): number for status, number in rows}
        return {status: counted.get(status, 0) for status in JobStatus}

    def summary(self) -> Summary:
        """All jobs in figures, added up by the database."""
        groups = col(Job.status), col(Job.recipe), col(Job.failure_kind)
        started, finished = func.julianday(Job.started_at), func.julianday(Job.finished_at)
        # The clock may have been set back.
        seconds = func.max(0, (finished - started) * 86400 - Job.paused_seconds)
        query = (
            select(  # type: ignore[call-overload]
                *groups,
                func.count(),
                func.count(seconds),
                func.sum(seconds),
                func.max(seconds),
                func.min(Job.created_at),
                func.max(Job.finished_at),
            )
            .where(_THERE)
            .group_by(*groups)
        )
        with self._read() as session:
            rows = session.exec(query).all()
        by_status: Counter[JobStatus] = Counter(dict.fromkeys(JobStatus, 0))
        by_recipe: Counter[str] = Counter()
        by_kind: Counter[FailureKind] = Counter()
        for status, recipe, kind, jobs, *_ in rows:
            by_status[status] += jobs
            by_recipe[recipe] += jobs
            if kind is not None:
                by_kind[kind] += jobs
        runs = sum(row[4] for row in rows)
        total = sum(row[5] for row in rows if row[5] is not None)
        completed, failed = by_status[JobStatus.COMPLETED], by_status[JobStatus.FAILED]
        return Summary(
            jobs=by_status.total(),
            by_status=by_status,
            by_recipe=dict(by_recipe.most_common()),
            failures_by_kind=dict(by_kind.most_common()),
            total_run_seconds=round(total, 3),
            mean_run_seconds=round(total / runs, 3) if runs else None,
            longest_run_seconds=max(
                (round(row[6], 3) for row in rows if row[6] is not None), default=None
            ),
            first_created_at=min((row[7] for row in rows if row[7] is not None), default=None),
            last_finished_at=max((row[8] for row in rows if row[8] is not None), default=None),
            success_share=completed / (completed + failed) if completed + failed else None,
        )

    def next_queued(self, besides: Collection[int] = ()) -> Job | None:
        """The job whose turn it is; not one that is to wait, nor one of those `besides`."""
        with self._read() as session:
            return session.exec(
                select(Job)
                .where(col(Job.status) == JobStatus.QUEUED, ~_is_to_wait())
                .where(col(Job.id).not_in(besides))
                .order_by(col(Job.queued_at), col(Job.id))
                .limit(1)
            ).first()

    def queue_positions(self) -> dict[int, int]:
        """The place of each queued job; 1 is next. Those that are to wait come last."""
        with self._read() as session:
            ids = session.exec(
                select(Job.id)
                .where(col(Job.status) == JobStatus.QUEUED)
                .order_by(_is_to_wait(), col(Job.queued_at), col(Job.id))
            ).all()
        return {job_id: place for place, job_id in enumerate(ids, 1) if job_id is not None}

    def running(self) -> list[Job]:
        with self._read() as session:
            return list(session.exec(select(Job).where(col(Job.status) == JobStatus.RUNNING)).all())

    def live_child(self, job_id: int) -> Job | None:
        """The newest retry of a job that has not ended."""
        live = [status for status in JobStatus if not status.ended]
        with self._read() as session:
            return session.exec(
                select(Job)
                .where(col(Job.parent_id) == job_id, col(Job.status).in_(live))
                .order_by(col(Job.id).desc())
                .limit(1)
            ).first()

    def children(self, job_id: int) -> Sequence[int]:
        """The jobs that are retries of this one, oldest first."""
        with self._read() as session:
            ids = session.exec(
                select(Job.id).where(col(Job.parent_id) == job_id, _THERE).order_by(col(Job.id))
            ).all()
        return [child for child in ids if child is not None]

    def change(
        self,
        job_id: int,
        old: JobStatus,
        new: JobStatus,
        message: str,
        *,
        failure: Failure | None = None,
        cleanups: Sequence[Cleanup] = (),
        retry: Job | None = None,
        unless: RequestKind | None = None,
        **values: Any,
    ) -> bool:
        """Compare-and-set: move a job from one state to another, with all that goes with it.

        Returns False, and writes nothing, where the job is not in `old` (any more).

        Args:
            retry: the job that is queued in its place.
            unless: a request that the job must not be under; it counts as another state.

        Raises:
            IllegalTransitionError: no job may go from `old` to `new`.
        """
        if new not in TRANSITIONS[old]:
            raise IllegalTransitionError(f"A job cannot go from {old} to {new}.")
        at = utc_now()
        if new.ended:
            values.setdefault("finished_at", at)
        statement = (
            update(Job)
            .where(col(Job.id) == job_id, col(Job.status) == old)
            .values(status=new, requested=None, **values)
        )
        if unless is not None:
            statement = statement.where(col(Job.requested).is_distinct_from(unless))
        with self._write() as session:
            asked = session.exec(select(Job.requested).where(col(Job.id) == job_id)).first()
            if session.execute(statement).rowcount != 1:  # type: ignore[attr-defined]
                return False
            if asked is RequestKind.CANCELLING:
                retry = None  # whoever cancels a job does not want another
            session.add(
                Event(job_id=job_id, at=at, from_status=old, to_status=new, message=message)
            )
            session.add_all([row for row in (failure, *cleanups) if row is not None])
            if retry is not None:
                number = f"{retry.retry_number} of {retry.max_retries}"
                child = self._add(session, retry, f"Automatic retry {number} of job {job_id}")
                told = f"Will be retried automatically, as job {child}"
                session.add(Event(job_id=job_id, message=told))
        return True

    def request(self, job_id: int, kind: RequestKind, message: str) -> bool:
        """Note that the end or the pause of a running job was asked for.

        False if it is not running, or that or more was asked for already: an end stays one.
        """
        statement = (
            update(Job)
            .where(col(Job.id) == job_id, col(Job.status) == JobStatus.RUNNING)
            .where(col(Job.requested).is_distinct_from(kind))
            .where(col(Job.requested).is_distinct_from(RequestKind.CANCELLING))
            .values(requested=kind, notice=None)
        )
        return self._request(statement, job_id, message)

    def withdraw_pause(self, job_id: int, notice: str) -> bool:
        """Note that a running job is not paused after all, and why; False if none was asked for."""
        statement = (
            update(Job)
            .where(col(Job.id) == job_id, col(Job.status) == JobStatus.RUNNING)
            .where(col(Job.requested) == RequestKind.PAUSING)
            .values(requested=None, notice=notice)
        )
        return self._request(statement, job_id, notice)

    def _request(self, statement: Update, job_id: int, message: str) -> bool:
        with self._write() as session:
            if session.execute(statement).rowcount != 1:  # type: ignore[attr-defined]
                return False
            session.add(Event(job_id=job_id, message=message))
        return True

    def update_running(self, job_id: int, **values: Any) -> None:
        """Write facts about a running job that are not its state."""
        statement = (
            update(Job)
            .where(col(Job.id) == job_id, col(Job.status) == JobStatus.RUNNING)
            .values(**values)
        )
        with self._write() as session:
            session.execute(statement)

    def label(self, job_id: int, **values: Any) -> bool:
        """Write what a reader says of a job: name, tags, note, star; False where it is gone."""
        statement = update(Job).where(col(Job.id) == job_id, _THERE).values(**values)
        with self._write() as session:
            return bool(session.execute(statement).rowcount)  # type: ignore[attr-defined]

    # Deleted jobs

    def delete(self, job_ids: Collection[int], at: datetime) -> Sequence[int]:
        """Delete those of these jobs that have ended, all at once; return which."""
        ended = [status for status in JobStatus if status.ended]
        chosen = col(Job.id).in_(job_ids), col(Job.status).in_(ended), _THERE
        with self._write() as session:
            ids = [i for i in session.exec(select(Job.id).where(*chosen)).all() if i is not None]
            session.execute(update(Job).where(col(Job.id).in_(ids)).values(deleted_at=at))
        return ids

    def undelete(self, job_ids: Collection[int], since: datetime) -> Sequence[int]:
        """Take back what was deleted after that moment; return which jobs are there again."""
        chosen = col(Job.id).in_(job_ids), col(Job.deleted_at) > since
        with self._write() as session:
            ids = [i for i in session.exec(select(Job.id).where(*chosen)).all() if i is not None]
            session.execute(update(Job).where(col(Job.id).in_(ids)).values(deleted_at=None))
        return ids

    def deleted(self) -> Sequence[tuple[int, datetime]]:
        """The jobs whose rows are still there, with the moment of their deletion, newest first."""
        query = select(Job.id, Job.deleted_at).where(~_THERE)
        with self._read() as session:
            rows = session.exec(query.order_by(col(Job.deleted_at).desc(), col(Job.id))).all()
        return [(job_id, at) for job_id, at in rows if job_id is not None and at is not None]

    def give_up(self, job_ids: Collection[int]) -> None:
        """Have deleted jobs be so for good: nobody can take them back any more."""
        statement = update(Job).where(col(Job.id).in_(job_ids), ~_THERE)
        with self._write() as session:
            session.execute(statement.values(deleted_at=FOR_GOOD))

    def forget(self, job_id: int) -> None:
        """Remove the row of a job that is deleted for good, with all that goes with it. Jobs that
        were its retries stay, and their timelines say what they were."""
        with self._write() as session:
            job = session.get(Job, job_id)
            if job is None or job.deleted_at != FOR_GOOD:
                return
            children = select(Job.id).where(col(Job.parent_id) == job_id)
            for child in session.exec(children).all():
                assert child is not None
                said = f"Job {job_id}, of which this is a retry, was deleted"
                session.add(Event(job_id=child, message=said))
            session.execute(update(Job).where(col(Job.parent_id) == job_id).values(parent_id=None))
            for table in (Event, Failure, Cleanup):
                session.execute(delete(table).where(col(table.job_id) == job_id))
            session.execute(delete(Job).where(col(Job.id) == job_id))
            session.merge(Gone(job_id=job_id))  # it is there of a job that was found running since

    def continued_by(self) -> Mapping[int, int]:
        """The jobs from whose checkpoints one begins that has not ended, and which that is."""
        live = [status for status in JobStatus if not status.ended]
        query = select(Job.id, Job.continues_id).where(
            col(Job.continues_id).is_not(None), col(Job.status).in_(live)
        )
        found: dict[int, int] = {}
        with self._read() as session:
            for child, ancestor in session.exec(query).all():
                while ancestor is not None and ancestor not in found:
                    assert child is not None
                    found[ancestor] = child
                    job = session.get(Job, ancestor)
                    ancestor = job.continues_id if job else None
        return found

    # What goes with a job

    def note(self, job_id: int, message: str) -> None:
        """Add a line to a job's timeline."""
        with self._write() as session:
            session.add(Event(job_id=job_id, message=message))

    def try_to_note(self, job_id: int, message: str) -> None:
        """`note`, where what follows is worth more than the line: one that is lost is logged."""
        try:
            self.note(job_id, message)
        except StoreError as error:
            logger.warning("Job %s: %r not noted. %s", job_id, message, error)

    def timeline(self, job_id: int) -> Sequence[Event]:
        with self._read() as session:
            return session.exec(
                select(Event).where(col(Event.job_id) == job_id).order_by(col(Event.id))
            ).all()

    def failure(self, job_id: int) -> Failure | None:
        with self._read() as session:
            return session.get(Failure, job_id)

    def failures(
        self, kind: FailureKind | None, limit: int, offset: int
    ) -> Sequence[tuple[Failure, Job]]:
        """Newest first."""
        newest = (col(Failure.at).desc(), col(Failure.job_id).desc())
        page = select(Failure.job_id).where(_IS_THERE).order_by(*newest).limit(limit).offset(offset)
        if kind is not None:
            page = page.where(col(Failure.kind) == kind)
        query = select(Failure, Job).where(col(Failure.job_id) == col(Job.id))
        with self._read() as session:
            return session.exec(
                query.where(col(Failure.job_id).in_(page)).order_by(*newest)  # as in `find`
            ).all()

    def failure_counts(self, days: int) -> list[tuple[date, FailureKind, int]]:
        """How many failures of each kind there were on each of the last days, in UTC."""
        day = func.date(col(Failure.at))
        since: datetime = utc_now() - timedelta(days=days)
        with self._read() as session:
            rows = session.exec(
                select(day, Failure.kind, func.count())
                .where(col(Failure.at) >= since, _IS_THERE)
                .group_by(day, col(Failure.kind))
                .order_by(day)
            ).all()
        return [(date.fromisoformat(d), FailureKind(kind), count) for d, kind, count in rows]

    def add_cleanup(self, cleanup: Cleanup) -> Cleanup:
        with self._write() as session:
            session.add(cleanup)
        return cleanup

    def cleanups(self, job_id: int | None, limit: int) -> Sequence[Cleanup]:
        """Newest first."""
        query = select(Cleanup).where(
            or_(col(Cleanup.job_id).is_(None), col(Cleanup.job_id).not_in(_DELETED_IDS))
        )
        if job_id is not None:
            query = query.where(col(Cleanup.job_id) == job_id)
        with self._read() as session:
            return session.exec(query.order_by(col(Cleanup.id).desc()).limit(limit)).all()


def _wanted(statuses: frozenset[JobStatus], text: str) -> list[ColumnElement[bool]]:
    """What has to hold of a job that is looked for."""
    wanted = [_THERE, *conditions(parse(text))]
    return [*wanted, col(Job.status).in_(statuses)] if statuses else wanted


def _order(sort: str, descending: bool) -> tuple[ColumnElement[Any], ...]:
    key = _SORTS.get(sort)
    if key is None:
        key = value_of(sort) if NAME.fullmatch(sort) else col(Job.id)
    return (key.desc() if descending else key.asc()).nulls_last(), col(Job.id).desc()


def _is_to_wait() -> ColumnElement[bool]:
    """Whether a job is not to be started yet."""
    now = utc_now()
    latest = now + timedelta(seconds=MAX_RETRY_WAIT_SECONDS)
    starts_after = col(Job.starts_after)
    return and_(starts_after.is_not(None), starts_after > now, starts_after <= latest)


class Turns:
    """A lock that is handed on in the order in which it was asked for.

    Writers who wait for SQLite only look now and then whether it is free, so that one who writes in
    a loop would be there before them every time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Lock] = deque()

    def take(self, seconds: float) -> bool:
        """Wait for one's turn; False where it did not come in that time."""
        with self._lock:
            if not self._taken:
                self._taken = True
                return True
            mine = threading.Lock()
            mine.acquire()
            self._waiting.append(mine)
        if mine.acquire(timeout=seconds):
            return True
        with self._lock:
            if mine not in self._waiting:  # it came at the last moment
                return True
            self._waiting.remove(mine)
            return False

    def give(self) -> None:
        """Hand the turn on to who has waited longest."""
        with self._lock:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._taken = False


@contextmanager
def _plainly(failure: str) -> Iterator[None]:
    """Turn SQLAlchemy's errors into a sentence that begins so, and say whether it may pass."""
    try:
        yield
    except SQLAlchemyError as error:
        reason: object = getattr(error, "orig", None) or error
        code = getattr(reason, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        # Of SQLite's operational errors only this one, as for a table that is not there, is ours.
        passing = isinstance(error, OperationalError) and code != sqlite3.SQLITE_ERROR
        if isinstance(error, TimeoutError):
            reason, passing = "too many threads use it at once", True
        advice = _ADVICE.get(code, "try again" if passing else "")
        line = str(reason).partition("\n")[0]
        raise StoreError(
            f"{failure} ({line}){'; ' if advice else ''}{advice}.", passing=passing
        ) from error


def _use_own_transactions(engine: Engine) -> None:
    """Have SQLite transactions begin where they are said to, and write-ahead logging.

    The driver's own way begins a transaction only at the first write: a reader that then writes
    meets "database is locked" without a wait. A writer here takes the lock when it begins, and
    waits for it. Source: SQLAlchemy, "Serializable isolation / Savepoints / Transactional DDL" of
    its SQLite dialect.
    """

    @event.listens_for(engine, "connect")
    def _connected(connection: Any, _record: Any) -> None:
        connection.isolation_level = None
        register(connection)
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
