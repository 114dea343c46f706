"""What the service answers with: plain, frozen, and free of the database."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from typing import Any, Literal

from backend.diagnosis import Detail
from backend.models import FailureKind, JobStatus, RequestKind
from backend.store import Sort


@dataclass(frozen=True)
class JobView:
    """What is known of a job now: the database's truth and the supervisor's latest figures."""

    job_id: int
    name: str
    recipe: str
    status: JobStatus
    requested: RequestKind | None
    progress: float | None  # percent
    current_step: int | None
    total_steps: int | None
    current_epoch: int | None
    total_epochs: int | None
    loss: float | None
    eval_loss: float | None
    learning_rate: float | None
    samples_per_second: float | None
    elapsed_seconds: float | None
    remaining_seconds: float | None
    seconds_since_progress: float | None
    timeout_seconds: float
    error: str | None
    failure_kind: FailureKind | None
    queue_position: int | None  # 1 is next
    pid: int | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    parent_id: int | None
    checkpoint: str | None

    best_eval_loss: float | None = None
    best_step: int | None = None
    steps_per_second: float | None = None
    phase: str | None = None
    seconds_left: float | None = None  # before the timeout strikes
    stacks_taken: bool = False  # the stall clock is past 80 %
    progress_problem: str | None = None  # what is wrong with progress.json
    non_finite: str | None = None  # "loss stopped being a number at step 812"
    extra: Mapping[str, float] = field(default_factory=dict)  # other numbers it reports, latest
    memory_bytes: int | None = None  # used now: on its devices, or by its processes on the host
    peak_memory_bytes: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)
    env_names: Sequence[str] = ()
    devices: Sequence[int] = ()
    gpus: int = 0
    folder: str = ""
    can_pause: bool = False  # it has said that it saves and ends when it is asked to
    notice: str | None = None  # what its reader should know: why it was not paused, say
    phase_seconds_allowed: float | None = None  # without progress in its phase, where it says so
    paused_at: datetime | None = None  # the last time
    continues_id: int | None = None  # the job from whose checkpoint it began
    max_retries: int = 0  # automatic ones
    retry_number: int = 0  # how many automatic retries led to it
    starts_after: datetime | None = None  # an automatic retry waits until then
    tags: Sequence[str] = ()
    note: str = ""
    starred: bool = False


@dataclass(frozen=True)
class JobFilter:
    """Which jobs, in which order."""

    statuses: frozenset[JobStatus] = frozenset()  # empty: all
    text: str = ""  # a search, as `backend.search` reads it
    sort: Sort = "id"
    descending: bool = True
    limit: int = 100
    offset: int = 0


@dataclass(frozen=True)
class JobPage:
    jobs: Sequence[JobView]
    total: int  # without limit and offset


@dataclass(frozen=True)
class QueueView:
    running: Sequence[int]
    queued: Sequence[int]  # in the order in which they will be started


@dataclass(frozen=True)
class FailureView:
    """A failed job as the failures page shows it."""

    job: JobView
    kind: FailureKind
    message: str
    seconds_without_progress: float | None
    last_step: int | None
    log_tail: str
    stacks: str
    where: str | None  # the user's own frame that it stood in, where stacks were taken
    at: datetime
    explanation: str  # what happened, one sentence
    advice: str  # what to try, one sentence
    detail: Detail = field(default_factory=Detail)  # what else was found out


MarkKind = Literal["checkpoint", "pause", "resume", "stall", "end"]


@dataclass(frozen=True)
class CurveMark:
    """Something that happened to a job, to be marked on the axis of its curve."""

    kind: MarkKind
    step: int | None
    at: datetime
    text: str


@dataclass(frozen=True)
class FailureCount:
    day: date  # in UTC
    kind: FailureKind
    count: int


@dataclass(frozen=True)
class DeviceView:
    """A GPU, or (index None) the host's memory where there is none."""

    index: int | None
    name: str
    total_bytes: int | None
    used_bytes: int | None
    leased_by: int | None  # a job's id
    holders: Sequence[Mapping[str, Any]] = ()  # {"pid", "name", "bytes"}


@dataclass(frozen=True)
class Machine:
    source: Literal["nvml", "torch", "host"]
    devices: Sequence[DeviceView]
    note: str | None  # what the reader should know about the source
    host_used_bytes: int = 0
    host_total_bytes: int = 0


@dataclass(frozen=True)
class RunFile:
    name: str  # relative to the run folder
    bytes: int
    modified_at: datetime
