"""Every query and every change of state, on SQLite."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal

from sqlalchemy import Connection, Engine, create_engine, event, func, or_, update
from sqlmodel import Session, SQLModel, col, select

from backend.models import (
    TRANSITIONS,
    Cleanup,
    Event,
    Failure,
    FailureKind,
    Job,
    JobStatus,
    RequestKind,
    utc_now,
)

BUSY_SECONDS: Final = 30
"""How long a writer waits for another before it gives up."""

Sort = Literal["id", "name", "status", "started", "finished", "duration"]

_DURATION: Final = func.julianday(func.coalesce(col(Job.finished_at), func.current_timestamp())) - (
    func.julianday(col(Job.started_at))
)
_SORTS: Final[Mapping[str, Any]] = {
    "id": col(Job.id),
    "name": func.lower(col(Job.name)),
    "status": col(Job.status),
    "started": col(Job.started_at),
    "finished": col(Job.finished_at),
    "duration": _DURATION,
}


class IllegalTransitionError(ValueError):
    """The transition table has no such change; a mistake in this program."""


@dataclass(frozen=True)
class Found:
    jobs: Sequence[Job]
    total: int


class Store:
    """The database of one data folder. Safe to use from every thread."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(
            f"sqlite:///{path}",
            connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False},
        )
        _use_own_transactions(self._engine)
        self._writing = self._engine.execution_options(writes=True)
        SQLModel.metadata.create_all(self._writing)

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        with Session(self._writing, expire_on_commit=False) as session, session.begin():
            yield session

    # Jobs

    def add(self, job: Job) -> int:
        """Queue a job; return its id."""
        with self._write() as session:
            session.add(job)
            session.flush()
            assert job.id is not None
            session.add(Event(job_id=job.id, to_status=JobStatus.QUEUED, message="Submitted"))
            return job.id

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
        """Jobs by state and by a part of their name, recipe or error (or `12` for job 12)."""
        conditions: list[Any] = []
        if statuses:
            conditions.append(col(Job.status).in_(statuses))
        if text := text.strip():
            either = [
                col(column).contains(text, autoescape=True)
                for column in (Job.name, Job.recipe, Job.error)
            ]
            number = text.lower().removeprefix("job").strip().lstrip("#")
            if number.isascii() and number.isdecimal() and len(number) < 19:
                either.append(col(Job.id) == int(number))
            conditions.append(or_(*either))
        key = _SORTS[sort]
        order = key.desc() if descending else key.asc()
        newest = col(Job.id).desc()
        with self._read() as session:
            total = session.exec(select(func.count()).select_from(Job).where(*conditions)).one()
            jobs = session.exec(
                select(Job)
                .where(*conditions)
                .order_by(order.nulls_last(), newest)
                .limit(limit)
                .offset(offset)
            ).all()
        return Found(jobs, total)

    def counts(self) -> dict[JobStatus, int]:
        with self._read() as session:
            rows = session.exec(select(Job.status, func.count()).group_by(col(Job.status))).all()
        counted = {JobStatus(status): number for status, number in rows}
        return {status: counted.get(status, 0) for status in JobStatus}

    def next_queued(self) -> Job | None:
        """The job whose turn it is."""
        with self._read() as session:
            return session.exec(
                select(Job)
                .where(col(Job.status) == JobStatus.QUEUED)
                .order_by(col(Job.queued_at), col(Job.id))
                .limit(1)
            ).first()

    def queue_positions(self) -> dict[int, int]:
        """The place of each queued job; 1 is next."""
        with self._read() as session:
            ids = session.exec(
                select(Job.id)
                .where(col(Job.status) == JobStatus.QUEUED)
                .order_by(col(Job.queued_at), col(Job.id))
            ).all()
        return {job_id: place for place, job_id in enumerate(ids, 1) if job_id is not None}

    def running(self) -> list[Job]:
        with self._read() as session:
            return list(session.exec(select(Job).where(col(Job.status) == JobStatus.RUNNING)).all())

    def change(
        self,
        job_id: int,
        old: JobStatus,
        new: JobStatus,
        message: str,
        *,
        failure: Failure | None = None,
        cleanups: Sequence[Cleanup] = (),
        **values: Any,
    ) -> bool:
        """Compare-and-set: move a job from one state to another, with all that goes with it.

        Returns False, and writes nothing, where the job is not in `old` (any more).

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
        with self._write() as session:
            if session.execute(statement).rowcount != 1:  # type: ignore[attr-defined]
                return False
            session.add(
                Event(job_id=job_id, at=at, from_status=old, to_status=new, message=message)
            )
            session.add_all([row for row in (failure, *cleanups) if row is not None])
        return True

    def request(self, job_id: int, kind: RequestKind, message: str) -> bool:
        """Note that the end (or the pause) of a running job was asked for; False if not running."""
        statement = (
            update(Job)
            .where(col(Job.id) == job_id, col(Job.status) == JobStatus.RUNNING)
            .where(col(Job.requested).is_distinct_from(kind))
            .values(requested=kind)
        )
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

    # What goes with a job

    def note(self, job_id: int, message: str) -> None:
        """Add a line to a job's timeline."""
        with self._write() as session:
            session.add(Event(job_id=job_id, message=message))

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
        query = select(Failure, Job).where(col(Failure.job_id) == col(Job.id))
        if kind is not None:
            query = query.where(col(Failure.kind) == kind)
        newest = (col(Failure.at).desc(), col(Failure.job_id).desc())
        with self._read() as session:
            return session.exec(query.order_by(*newest).limit(limit).offset(offset)).all()

    def failure_counts(self, days: int) -> list[tuple[date, FailureKind, int]]:
        """How many failures of each kind there were on each of the last days, in UTC."""
        day = func.date(col(Failure.at))
        since: datetime = utc_now() - timedelta(days=days)
        with self._read() as session:
            rows = session.exec(
                select(day, Failure.kind, func.count())
                .where(col(Failure.at) >= since)
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
        query = select(Cleanup)
        if job_id is not None:
            query = query.where(col(Cleanup.job_id) == job_id)
        with self._read() as session:
            return session.exec(query.order_by(col(Cleanup.id).desc()).limit(limit)).all()


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
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
