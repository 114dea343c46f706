"""The tables, the states of a job, and which state may follow which."""

from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import JSON, Column, DateTime, Dialect, Enum, Index
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, SQLModel


class JobStatus(StrEnum):
    """Where a job is in its life. `completed`, `failed` and `cancelled` never change again."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return not TRANSITIONS[self]


TRANSITIONS: Final[Mapping[JobStatus, frozenset[JobStatus]]] = {
    JobStatus.QUEUED: frozenset({JobStatus.RUNNING, JobStatus.CANCELLED}),
    JobStatus.RUNNING: frozenset(
        {JobStatus.COMPLETED, JobStatus.FAILED, JobStatus.CANCELLED, JobStatus.PAUSED}
    ),
    JobStatus.PAUSED: frozenset({JobStatus.QUEUED, JobStatus.CANCELLED}),
    JobStatus.COMPLETED: frozenset(),
    JobStatus.FAILED: frozenset(),
    JobStatus.CANCELLED: frozenset(),
}


class FailureKind(StrEnum):
    """Why a job failed. `backend.diagnosis` has the sentences that go with each."""

    TIMEOUT = "timeout"
    CRASHED = "crashed"
    GPU_OUT_OF_MEMORY = "gpu_out_of_memory"
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    KILLED = "killed"
    COULD_NOT_START = "could_not_start"
    LOST = "lost"


class RequestKind(StrEnum):
    """What was asked of a running job and is under way; shown beside its state."""

    CANCELLING = "cancelling"
    PAUSING = "pausing"


def utc_now() -> datetime:
    """The present instant, aware, in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant: SQLite keeps it without a zone, so it goes in and comes out as UTC."""

    impl = DateTime
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.astimezone(UTC).replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        return None if value is None else value.replace(tzinfo=UTC)


def _word(kind: type[StrEnum]) -> Enum:
    """A column that holds one of the words of an enumeration, as plain text."""
    return Enum(
        kind,
        native_enum=False,
        create_constraint=False,
        length=32,
        values_callable=lambda words: [word.value for word in words],
    )


class Job(SQLModel, table=True):
    """One run of one training, from submission to its verdict."""

    __table_args__ = (
        Index("ix_job_status_queued", "status", "queued_at"),
        Index("ix_job_deleted_status", "deleted_at", "status"),
    )

    id: int | None = Field(default=None, primary_key=True)
    name: str
    recipe: str = Field(index=True)
    params: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    command: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """How it is started, as `backend.recipes.Command` makes it."""
    env: dict[str, str] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    timeout_seconds: float
    gpus: int

    status: JobStatus = Field(
        default=JobStatus.QUEUED, sa_column=Column(_word(JobStatus), nullable=False)
    )
    requested: RequestKind | None = Field(default=None, sa_column=Column(_word(RequestKind)))
    created_at: datetime = Field(default_factory=utc_now, sa_column=Column(UtcDateTime))
    queued_at: datetime = Field(default_factory=utc_now, sa_column=Column(UtcDateTime))
    started_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    finished_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    parent_id: int | None = Field(default=None, foreign_key="job.id", index=True)

    paused_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    """The last time."""
    resumed_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    """When it was claimed again after that."""
    paused_seconds: float = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """How long it did not run between its first start and its last."""
    continues_id: int | None = None
    """The job from whose checkpoints this one began, or is to begin."""
    max_retries: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    retry_number: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    """How many automatic retries led to it."""
    starts_after: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    """An automatic retry waits until then."""
    notice: str | None = None
    """What its reader should know: why it was not paused, say."""

    pid: int | None = None
    process_start: str | None = None
    """With `pid`, who the leader is: see `backend.processes.ProcessId`."""
    devices: list[int] = Field(default_factory=list, sa_column=Column(JSON, nullable=False))
    memory: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    """What was measured of its memory while it ran, as `backend.gpu.JobMeter` keeps it."""
    ending: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(none_as_null=True)))
    """The verdict that its processes are being ended for; it is there before the first signal."""

    progress: dict[str, Any] = Field(default_factory=dict, sa_column=Column(JSON, nullable=False))
    """The last good reading of progress.json, without its history; while the job runs, of the last
    half minute."""
    error: str | None = None
    failure_kind: FailureKind | None = Field(default=None, sa_column=Column(_word(FailureKind)))
    checkpoint: str | None = None
    """The newest that it has saved, else the one from which it began."""

    tags: list[str] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False, server_default="[]")
    )
    note: str | None = None
    starred: bool = Field(default=False, sa_column_kwargs={"server_default": "0"})
    deleted_at: datetime | None = Field(default=None, sa_column=Column(UtcDateTime))
    """Whoever asks for it finds no such job; row and run folder go when nobody takes it back."""

    @property
    def life_began_at(self) -> datetime:
        """When it was claimed the last time; before the first, when it was submitted."""
        return self.resumed_at or self.started_at or self.created_at

    @property
    def has_lived(self) -> bool:
        """Whether it waits, and has run before."""
        return self.paused_at is not None and self.status is not JobStatus.RUNNING


class Event(SQLModel, table=True):
    """One line of a job's timeline; those with `to_status` are its changes of state."""

    id: int | None = Field(default=None, primary_key=True)
    job_id: int = Field(foreign_key="job.id", index=True)
    at: datetime = Field(default_factory=utc_now, sa_column=Column(UtcDateTime))
    from_status: JobStatus | None = Field(default=None, sa_column=Column(_word(JobStatus)))
    to_status: JobStatus | None = Field(default=None, sa_column=Column(_word(JobStatus)))
    message: str


class Failure(SQLModel, table=True):
    """What is kept of a failed job, so that its folder is not needed to understand it."""

    job_id: int = Field(primary_key=True, foreign_key="job.id")
    kind: FailureKind = Field(sa_column=Column(_word(FailureKind), nullable=False, index=True))
    message: str
    seconds_without_progress: float | None = None
    last_step: int | None = None
    log_tail: str = ""
    stacks: str = ""
    detail: dict[str, Any] = Field(
        default_factory=dict, sa_column=Column(JSON, nullable=False, server_default="{}")
    )
    """What else was found out about it, as `backend.diagnosis.detail_of` makes it."""
    at: datetime = Field(default_factory=utc_now, sa_column=Column(UtcDateTime, index=True))


class Gone(SQLModel, table=True):
    """A deleted job whose row is gone: its number is given to no other."""

    job_id: int = Field(primary_key=True)


class Cleanup(SQLModel, table=True):
    """Memory before and after one cleanup of one device; bytes, empty where not measured."""

    id: int | None = Field(default=None, primary_key=True)
    job_id: int | None = Field(default=None, foreign_key="job.id", index=True)
    """Empty for a cleanup that a person asked for by the button."""
    reason: str
    device: str
    source: str
    baseline_bytes: int | None = None
    before_bytes: int | None = None
    peak_bytes: int | None = None
    after_bytes: int | None = None
    settle_seconds: float | None = None
    released: bool | None = None
    holders: list[dict[str, Any]] = Field(
        default_factory=list, sa_column=Column(JSON, nullable=False)
    )
    cache_freed_bytes: int | None = None
    """What emptying the server's own allocator gave back; empty without torch or CUDA."""
    created_at: datetime = Field(default_factory=utc_now, sa_column=Column(UtcDateTime))
