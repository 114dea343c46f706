"""The shapes of the HTTP API: what comes in and what goes out, with units, bounds and examples.

OpenAPI is made of these models, and the parameters of a recipe in it are those of the catalogue.
"""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, TypeVar, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    create_model,
)

from backend.labels import MAX_NOTE, MAX_TAG, MAX_TAGS
from backend.models import FailureKind, JobStatus, RequestKind
from backend.recipes import RECIPES, ScriptParams
from backend.submission import (
    MAX_ENV,
    MAX_NAME,
    MAX_RETRIES,
    MAX_TIMEOUT_MINUTES,
    MAX_VALUE,
    InvalidSubmissionError,
    Problem,
    Submission,
    sentence,
)
from backend.views import MarkKind

MAX_DEVICES: Final = 1024


class Shape(BaseModel):
    """What goes out is made from the service's answers by their attributes."""

    model_config = ConfigDict(from_attributes=True)


# What comes in


class RunRequest(BaseModel):
    """What can be said of any job."""

    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(max_length=MAX_NAME)] = Field(
        default="", description="What the job is called; empty: after its recipe or script."
    )
    env: dict[str, Annotated[str, Field(max_length=MAX_VALUE)]] = Field(
        default_factory=dict,
        max_length=MAX_ENV,
        description="Environment variables of the job. Their values are never shown again.",
        json_schema_extra={"propertyNames": {"pattern": "^(?!SIGNALBOX_)[A-Za-z_][A-Za-z0-9_]*$"}},
        examples=[{"OMP_NUM_THREADS": "2"}],
    )
    timeout_minutes: (
        Annotated[float, Field(ge=0.001, le=MAX_TIMEOUT_MINUTES, allow_inf_nan=False)] | None
    ) = Field(
        default=None,
        description="Minutes without progress that end the job; null: the server's setting.",
        examples=[10],
    )
    gpus: Annotated[int, Field(ge=0, le=MAX_DEVICES)] | None = Field(
        default=None,
        description="GPUs that the job has to itself; null: one, where there is one.",
        examples=[None],
    )
    max_retries: Annotated[int, Field(ge=0, le=MAX_RETRIES)] = Field(
        default=0,
        description="How often a job that timed out, crashed or was lost is queued again by "
        "itself, each time from its last checkpoint and after a longer wait.",
    )


class ScriptRequest(ScriptParams, RunRequest):
    """Run any Python file of this machine."""

    args: list[str] = Field(
        default_factory=list, max_length=1000, description="Given to the script as they are."
    )

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"script": "/home/me/train.py", "args": ["--lr", "3e-4"], "name": "first"}]
        },
    )


def _request_of(key: str) -> type[RunRequest]:
    recipe = RECIPES[key]
    return create_model(
        "".join(map(str.title, key.split("_"))) + "Request",
        __base__=RunRequest,
        __doc__=recipe.sentence,
        recipe=(  # type: ignore[arg-type]
            Literal[key],
            Field(description=f"{recipe.title}: {recipe.sentence}"),
        ),
        params=(
            recipe.params,
            Field(
                default_factory=recipe.params,
                description="What is left out has its default.",
                examples=[{"seed": 7}],
            ),
        ),
    )


_SCRIPT: Final = "script"
_REQUESTS: Final[Mapping[str, type[RunRequest]]] = {
    **{key: _request_of(key) for key, recipe in RECIPES.items() if recipe.module},
    _SCRIPT: ScriptRequest,
}


_OF_A_REQUEST: Final = {"recipe", "params", *ScriptParams.model_fields}


def _which(document: Any) -> str | None:
    """The recipe that a document asks for, or its script; None where it says neither."""
    if not isinstance(document, dict):
        return None
    if "recipe" not in document and _SCRIPT in document:
        return _SCRIPT
    recipe = document.get("recipe")
    return recipe if isinstance(recipe, str) and recipe != _SCRIPT else None


TRAINING_REQUEST: Final[TypeAdapter[RunRequest]] = TypeAdapter(
    Annotated[  # type: ignore[arg-type]
        Union[tuple(Annotated[model, Tag(key)] for key, model in _REQUESTS.items())],  # noqa: UP007
        Discriminator(_which),
    ]
)
"""The body of execute and validate."""


class InvalidJsonError(ValueError):
    """A body is no JSON at all; the message is a sentence."""


def read_training(body: bytes) -> tuple[Submission, list[Problem]]:
    """What a body asks for, as far as it can be understood, and everything that is wrong with it.

    Raises:
        InvalidJsonError: it is no JSON.
        InvalidSubmissionError: nothing in it can be understood.
    """
    try:
        document = _DOCUMENT.validate_json(body)
    except ValidationError as error:
        raise InvalidJsonError(
            f"The body is no valid JSON: {error.errors()[0].get('ctx', {}).get('error', 'broken')}."
        ) from None
    if not isinstance(document, dict):
        raise InvalidSubmissionError([Problem("body", "Must be an object.")])
    if sum(len(part) for part in (document, *document.values()) if isinstance(part, dict)) > 2000:
        raise InvalidSubmissionError([Problem("body", "Holds more than 2,000 fields.")])
    key = _which(document)
    problems: dict[str, Problem] = {}
    try:
        if key in _REQUESTS:
            TRAINING_REQUEST.validate_json(body, strict=True)
        else:
            known = ", ".join(repr(recipe) for recipe in _REQUESTS if recipe != _SCRIPT)
            said = f"Must be one of {known}; or give the path of a file as script."
            problems["recipe"] = Problem("recipe", said)
            rest = document.keys() - _OF_A_REQUEST
            RunRequest.model_validate({n: document[n] for n in rest}, strict=True)
    except ValidationError as error:
        for details in error.errors(include_url=False, include_input=False):
            path = details["loc"][1:] if key in _REQUESTS else details["loc"]
            where = ".".join(str(part)[:MAX_NAME] for part in path) or "body"
            said = sentence(details)
            of_recipe = RECIPES[key].params.model_fields if key in _REQUESTS and key else {}
            if details["type"] == "extra_forbidden" and where in of_recipe:
                said = "Belongs into params."
            problems.setdefault(where, Problem(where, said))
    if document.get("recipe") is not None and _SCRIPT in document:
        problems[_SCRIPT] = Problem(_SCRIPT, "Give a recipe or a script, not both.")
    if key is None or key not in _REQUESTS:
        raise InvalidSubmissionError([*problems.values()])
    good = _without(document, problems)
    submission = Submission(
        recipe=key,
        params={n: v for n, v in good.items() if n in ScriptParams.model_fields}
        if key == _SCRIPT
        else good.get("params", {}),
        **{n: v for n, v in good.items() if n in RunRequest.model_fields},
    )
    return submission, list(problems.values())


def _without(document: Mapping[str, Any], wrong: Collection[str], at: str = "") -> dict[str, Any]:
    """The fields that are right, so that all that is wrong with these can be said too."""
    good: dict[str, Any] = {}
    for name, value in document.items():
        path = f"{at}{name[:MAX_NAME]}"
        if isinstance(value, dict) and path not in wrong:
            good[name] = _without(value, wrong, f"{path}.")
        elif not any(field == path or field.startswith(f"{path}.") for field in wrong):
            good[name] = value
    return good


B = TypeVar("B", bound=BaseModel)


def read_body_as(shape: type[B], body: bytes) -> B:
    """A body as JSON of that shape.

    Raises:
        InvalidJsonError: it is no JSON.
        WrongBodyError: it is another; everything that is wrong with it is named.
    """
    try:
        return shape.model_validate_json(body, strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False, include_input=False)
        if found[0]["type"] == "json_invalid":
            broken = found[0].get("ctx", {}).get("error", "broken")
            raise InvalidJsonError(f"The body is no valid JSON: {broken}.") from None
        problems = {
            ".".join(str(part)[:MAX_NAME] for part in details["loc"]) or "body": sentence(details)
            for details in found
        }
        raise WrongBodyError([Problem(*both) for both in problems.items()]) from None


class WrongBodyError(Exception):
    """A body is not of the shape that it should be."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__()
        self.problems = tuple(problems)


_DOCUMENT: Final[TypeAdapter[Any]] = TypeAdapter(Any)


def named(problem: Problem, submission: Submission) -> Problem:
    """A problem that the service found, by the name that its field has in a request."""
    if (
        submission.recipe != _SCRIPT
        and problem.field in RECIPES[submission.recipe].params.model_fields
    ):
        return Problem(f"params.{problem.field}", problem.message)
    return problem


# What goes out


class Error(Shape):
    """Why a request was not done."""

    detail: str = Field(description="One sentence for a person.", examples=["There is no job 99."])


class Conflict(Error):
    """The job's state does not allow it."""

    detail: str = Field(examples=["Job 12 is completed; it has ended already."])
    status: JobStatus = Field(description="The state that the job is in.", examples=["completed"])


class Wrong(Shape):
    """One thing that is wrong with a request."""

    field: str = Field(description="Which field, as a path.", examples=["params.epochs"])
    message: str = Field(examples=["Must be at least 1."])


class Invalid(Error):
    """Everything that is wrong with a request, at once."""

    detail: str = Field(examples=["params.epochs: Must be at least 1."])
    problems: list[Wrong]


class InvalidTraining(Invalid):
    """Everything that is wrong with a description of a job."""

    valid: Literal[False] = False


class Valid(Shape):
    """The description of a job could be submitted as it is."""

    valid: Literal[True] = True
    problems: list[Wrong] = Field(default_factory=list, max_length=0)


class Submitted(Shape):
    """A job that was queued."""

    job_id: int = Field(description="Its number.", examples=[12])
    status: JobStatus = Field(examples=["queued"])


Seconds = Annotated[float, Field(ge=0)]


class Status(Shape):
    """What is known of a job now. A figure that the job does not report is null."""

    job_id: int = Field(examples=[12])
    name: str = Field(examples=["digits"])
    status: JobStatus = Field(
        description="completed, failed and cancelled never change again.", examples=["running"]
    )
    requested: RequestKind | None = Field(description="What was asked of it and is under way.")
    progress: float | None = Field(description="Percent, 0 to 100.", examples=[12.0])
    current_step: int | None = Field(examples=[120])
    total_steps: int | None = Field(examples=[1000])
    current_epoch: int | None = Field(examples=[2])
    total_epochs: int | None = Field(examples=[20])
    loss: float | None = Field(description="The training loss, latest.", examples=[1.23])
    eval_loss: float | None = Field(description="The held-out loss, latest.", examples=[1.31])
    learning_rate: float | None = Field(examples=[0.003])
    samples_per_second: float | None = Field(examples=[512.0])
    elapsed_seconds: float | None = Field(description="From its start to its end, or to now.")
    remaining_seconds: float | None = Field(description="Estimated, while it runs.")
    seconds_since_progress: float | None = Field(
        description="How long progress.json has not changed, while it runs; at timeout_seconds it "
        "is ended, unless it was given more time."
    )
    timeout_seconds: float = Field(examples=[600])
    error: str | None = Field(
        description="Why it failed.",
        examples=["Training timed out - no progress updates for 10 minutes"],
    )
    failure_kind: FailureKind | None
    queue_position: int | None = Field(description="1 is next.")
    pid: int | None = Field(description="Of its first process.")
    created_at: datetime = Field(description="UTC, ISO 8601.")
    started_at: datetime | None
    finished_at: datetime | None
    parent_id: int | None = Field(description="The job that this one is a retry of.")
    checkpoint: str | None = Field(
        description="The newest that it has saved, else the one that it went on from.",
        examples=["step-00000500"],
    )
    tags: Sequence[str] = Field(examples=[["paper"]])
    starred: bool


class Jobs(Shape):
    """A page of the jobs that match."""

    jobs: Sequence[Status]
    total: int = Field(description="How many match, without limit and offset.")
    problems: Sequence[str] = Field(
        default=(), description="A sentence for each part of `q` that was not understood."
    )


class Labelled(Status):
    """A job with all that was written beside it."""

    note: str


class Label(BaseModel):
    """What is to be written beside a job; what is left out stays as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Annotated[str, Field(max_length=MAX_NAME)] = Field(default="", examples=["baseline"])
    tags: Annotated[list[Annotated[str, Field(max_length=MAX_TAG)]], Field(max_length=MAX_TAGS)] = (
        Field(default=[], description="All of them: those it had go.", examples=[["paper"]])
    )
    note: Annotated[str, Field(max_length=MAX_NOTE)] = Field(
        default="", description="Plain text; empty: none."
    )
    starred: bool = False


MAX_DELETED: Final = 1000


class ChosenJobs(BaseModel):
    """Which jobs."""

    model_config = ConfigDict(extra="forbid", strict=True)

    job_ids: Annotated[
        list[Annotated[int, Field(ge=1, le=2**63 - 1)]], Field(min_length=1, max_length=MAX_DELETED)
    ] = Field(examples=[[12, 14]])


class Deleted(Shape):
    """What was deleted, and what is free once nobody can take it back any more."""

    job_ids: Sequence[int] = Field(examples=[[12]])
    left_out: Mapping[int, str] = Field(
        description="Why others were not, by number.", examples=[{"14": "it has not ended"}]
    )
    bytes: int = Field(description="What their run folders take on the disk.")
    seconds_left: float = Field(description="In which it can be taken back.", examples=[600])


class Undeleted(Shape):
    """The jobs that are there again."""

    job_ids: Sequence[int] = Field(examples=[[12]])


class Extended(Status):
    """The job with its new time."""

    seconds_left: float | None = Field(
        description="Without progress so long, and the job is ended."
    )


class Pausing(Status):
    """The job, which was asked to save and to end."""

    can_pause: bool = Field(
        description="It has said that it looks whether it is to stop. One that never has will "
        "probably go on; a pause kills nothing."
    )
    notice: str | None = Field(
        description="What to know of it: why it was not paused the last time, say."
    )


class Whereabouts(Shape):
    """What a running job does at this moment."""

    sentence: str = Field(
        examples=["The main thread is waiting in `queue.get` (train.py, line 12, in batches)."]
    )
    stacks: str = Field(description="The stacks of each of its processes, and what it waits in.")


class Spec(Shape):
    """What was asked for when a job was submitted."""

    job_id: int = Field(examples=[12])
    name: str
    recipe: str = Field(description="script, for a file of your own.", examples=["digits"])
    params: Mapping[str, Any] = Field(
        description="Of the recipe; of a script its path, args, python and working_dir."
    )
    env_names: Sequence[str] = Field(
        description="Environment variables; their values are never shown."
    )
    timeout_seconds: float
    gpus: int
    max_retries: int = Field(description="How often it is retried by itself.")
    parent_id: int | None = Field(description="The job that this one is a retry of.")


class Queue(Shape):
    """Which jobs run, and which wait, in the order in which they will be started."""

    running: Sequence[int] = Field(examples=[[11]])
    queued: Sequence[int] = Field(examples=[[12, 13]])


class MetricPoint(BaseModel):
    """What was logged at one step: besides the fields here each number under its own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None] = Field(init=False)

    step: int
    epoch: float | None = None
    timestamp: str | None = Field(default=None, description="UTC, ISO 8601.")


class Metrics(Shape):
    """A curve. A loss that was not a number (NaN or infinite) is null."""

    job_id: int
    points: Sequence[MetricPoint] = Field(
        examples=[[{"step": 1, "epoch": 1, "train_loss": 2.9, "timestamp": "2026-11-23T18:02:45Z"}]]
    )
    total: int = Field(description="How many points there are, before they were thinned.")


class CurveBins(BaseModel):
    """Where each bin is. Of level 0, where a bin is one row, there is no `last_…`."""

    step: Sequence[int] = Field(description="Of its first row.")
    epoch: Sequence[float | None]
    time: Sequence[float | None] = Field(description="Milliseconds since 1970, UTC.")
    last_step: Sequence[int] | None = Field(default=None, description="Of its last row.")
    last_epoch: Sequence[float | None] | None = None
    last_time: Sequence[float | None] | None = None


class CurveSeries(BaseModel):
    """One series, in the bins that have a value of it. Of level 0 it has `mean` alone, the
    value itself."""

    bin: Sequence[int] | None = Field(
        default=None, description="Which of the bins; left out where all have a value."
    )
    mean: Sequence[float | None] = Field(description="null: no value was a number.")
    min: Sequence[float | None] | None = None
    max: Sequence[float | None] | None = None
    min_step: Sequence[int | None] | None = None
    max_step: Sequence[int | None] | None = None
    bad: Sequence[Sequence[int]] | None = Field(
        default=None,
        description="Where values were NaN or infinite: which bin, and how many.",
    )


class Curve(BaseModel):
    """A curve in bins of 2^level rows that follow each other. A row is one line that was logged. A
    bin that is full never changes."""

    job_id: int = Field(examples=[12])
    rows: int = Field(description="Of the whole curve, as far as it was read.")
    indexed: float = Field(
        description="How much of it was read, 0 to 1: a long one that was never asked for takes a "
        "while. Ask again."
    )
    live: bool = Field(description="The job has not ended, so there may be more.")
    level: int
    first_row: int = Field(description="Of the first bin here; 0: this is the whole curve.")
    bins: CurveBins
    series: Mapping[str, CurveSeries]


class Curves(BaseModel):
    """Several curves, in the order in which they were asked for."""

    curves: Sequence[Curve]


class CurveMarkShape(Shape):
    """Something to mark on the axis of a curve."""

    kind: MarkKind
    step: int | None = Field(description="null: it is at a time.")
    time: float = Field(description="Milliseconds since 1970, UTC.")
    text: str = Field(examples=["Checkpoint step-00000500"])


class CurveMarks(Shape):
    """Checkpoints, pauses, resumes, stalls and the end, oldest first."""

    marks: Sequence[CurveMarkShape]


class Logs(Shape):
    """A piece of a log. Go on with `offset = next_offset`."""

    text: str = Field(description="As written; bytes that are no UTF-8 are U+FFFD.")
    offset: int = Field(description="Where the piece begins, in bytes.")
    next_offset: int = Field(description="Where the next one begins.")
    size: int = Field(description="How long the log is now, in bytes.")


class Errors(Shape):
    """What went wrong; null where nothing did."""

    error: str | None
    failure_kind: FailureKind | None
    explanation: str | None = Field(description="What happened, one sentence.")
    advice: str | None = Field(description="What to try.")
    stacks: str | None = Field(description="The stacks of the process where it was stuck.")
    log_tail: str = Field(description="The end of its log, as a terminal shows it.")


class CheckpointShape(Shape):
    """A folder that the job saved."""

    name: str = Field(examples=["step-00000500"])
    step: int | None = Field(examples=[500])
    bytes: int
    complete: bool = Field(description="Its marker, which is written last, is there.")
    created_at: datetime


class Checkpoints(Shape):
    """Oldest first."""

    checkpoints: Sequence[CheckpointShape]


class CleanupShape(Shape):
    """Memory of one device before and after a job's end, in bytes; null where not measured."""

    job_id: int | None = Field(description="null: asked for by hand.")
    reason: str = Field(examples=["cancelled"])
    device: str = Field(examples=["cuda:0"])
    source: str = Field(description="Who measured: nvml, torch or host.", examples=["nvml"])
    baseline_bytes: int | None = Field(description="Just before the launch.")
    before_bytes: int | None = Field(description="Just before its end.")
    peak_bytes: int | None
    after_bytes: int | None = Field(description="Once the reading had settled.")
    settle_seconds: float | None
    released: bool | None = Field(description="The reading came back to its baseline.")
    holders: Sequence[Mapping[str, Any]] = Field(
        description="Who still holds memory.",
        examples=[[{"pid": 4711, "name": "python", "bytes": 1073741824}]],
    )
    created_at: datetime


class Cleanups(Shape):
    """Newest first."""

    cleanups: Sequence[CleanupShape]


class Emptied(CleanupShape):
    """What emptying the server's own cache did."""

    cache_freed_bytes: int | None = Field(
        description="What the server's own allocator gave back; null without torch or CUDA."
    )


class Device(Shape):
    """A GPU; index null is the host's memory, where there is none."""

    index: int | None
    name: str = Field(examples=["NVIDIA H100"])
    total_bytes: int | None
    used_bytes: int | None
    leased_by: int | None = Field(description="The job that has it to itself.")


class Gpu(Shape):
    """Memory now."""

    devices: Sequence[Device]
    source: Literal["nvml", "torch", "host"]


class LoadOfDevice(Shape):
    """A GPU at this moment; null where it cannot be read."""

    index: int
    name: str = Field(examples=["NVIDIA H100"])
    used_bytes: int | None
    total_bytes: int
    percent: float | None = Field(
        description="For how much of the last moment, up to a second, it was at work, 0 to 100."
    )


class LoadNow(Shape):
    """The machine, at most a second ago; null where it cannot be read."""

    cpu_percent: float | None = Field(
        description="Of all cores together, since the reading before.", examples=[38.2]
    )
    cores: int
    memory_used_bytes: int
    memory_total_bytes: int
    disk_free_bytes: int | None = Field(description="Left for the data folder.")
    disk_total_bytes: int | None
    disk_is_low: bool = Field(description="Less than 5 GiB are left, and less than a tenth.")
    devices: Sequence[LoadOfDevice]


class Ended(Shape):
    """A job that has ended."""

    job_id: int = Field(examples=[12])
    name: str
    status: JobStatus
    failure_kind: FailureKind | None
    error: str | None


class MachineNow(Shape):
    """What runs and waits, how busy the machine is, and which jobs have ended."""

    running: int
    queued: int
    load: LoadNow
    last_ending: int = Field(description="Ask with this number for what ends from now on.")
    endings: Sequence[Ended] = Field(description="Oldest first, 200 at most.")


class UsagePointShape(Shape):
    """What a job used up to a moment, since the point before."""

    at: int = Field(description="Milliseconds since 1970, UTC.", examples=[1795800000000])
    cores: float | None = Field(
        description="CPU seconds in each second, all of its processes together.", examples=[1.7]
    )
    memory_bytes: int = Field(description="Resident memory of its processes.")
    gpu_memory_bytes: int | None = Field(description="In use on its devices; null without any.")
    gpu_percent: float | None = Field(description="The load of its devices, their mean.")


class Usage(Shape):
    """A job's use of the machine. A long one is thinned; its highest memory stays."""

    job_id: int = Field(examples=[12])
    live: bool = Field(description="The job runs, so there will be more.")
    points: Sequence[UsagePointShape] = Field(description="Oldest first.")


class Health(Shape):
    """The server lives."""

    status: Literal["ok"] = "ok"


class Phase(Shape):
    """What a job was about for a part of its time."""

    phase: str = Field(examples=["training"])
    seconds: float = Field(description="In which the server was looking.")
    share: float = Field(description="Of the time of all phases, 0 to 1.", examples=[0.8])


class Analytics(Shape):
    """One job in figures, from its whole curve; null where it is not known."""

    job_id: int = Field(examples=[12])
    duration_seconds: float | None = Field(description="From its start to its end, or to now.")
    steps: int = Field(description="Points of its curve.", examples=[1000])
    last_step: int | None
    mean_steps_per_second: float | None = Field(description="From the first point to the last.")
    peak_steps_per_second: float | None = Field(
        description="In its fastest 10 seconds; of a shorter run the mean."
    )
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
    peak_memory_bytes: int | None = Field(
        description="On its devices; without a GPU of its processes on the host."
    )
    phases: Sequence[Phase] = Field(description="The longest first.")


class ComparedJob(Shape):
    """One of the jobs of a comparison."""

    job_id: int = Field(examples=[12])
    name: str
    recipe: str = Field(examples=["digits"])
    params: Mapping[str, Any]
    analytics: Analytics


class BestJob(Shape):
    """Who is best at something, and with what value."""

    job_id: int = Field(examples=[12])
    value: int | float


class Comparison(Shape):
    """Several jobs side by side."""

    jobs: Sequence[ComparedJob]
    differing_params: Mapping[str, Mapping[int, Any]] = Field(
        description="Parameters that are not the same in all of them: each job's value by its "
        "number.",
        examples=[{"learning_rate": {"12": 0.003, "14": 0.001}}],
    )
    best: Mapping[str, BestJob] = Field(
        description="By figure, the job that is best at it; of equals the one with the lowest "
        "number.",
        examples=[{"best_eval_loss": {"job_id": 14, "value": 0.05}}],
    )


class Summary(Shape):
    """All jobs in figures."""

    jobs: int
    by_status: Mapping[JobStatus, int]
    by_recipe: Mapping[str, int]
    failures_by_kind: Mapping[FailureKind, int]
    total_run_seconds: float = Field(description="Of all that have ended.")
    mean_run_seconds: float | None
    longest_run_seconds: float | None
    first_created_at: datetime | None
    last_finished_at: datetime | None
    success_share: float | None = Field(
        description="Completed, of those that completed or failed; 0 to 1."
    )
