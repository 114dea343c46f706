"""The HTTP API: the service's answers as JSON, under the pages' own port.

Nothing here decides anything about jobs. What the service does may take a moment, a query or a
file, so it is done in a few threads of the API's own, and never on the event loop.
"""

import logging
import re
from collections.abc import (
    Callable,
    Generator,
    Iterator,
    Mapping,
)
from typing import Annotated, Any, Final, NoReturn, TypeVar

import anyio
from anyio import to_thread
from fastapi import Depends, FastAPI, Header, Path, Query, Request, WebSocket
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse, Response
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, BeforeValidator
from starlette.types import Receive, Scope, Send

from backend import runtime
from backend.columns import curve_as_json
from backend.curve import point_as_json
from backend.curve_index import X
from backend.door import read_body
from backend.export import Form
from backend.labels import LabelError
from backend.models import JobStatus, RequestKind
from backend.refusals import HANDLERS, BusyError, NotAllowedError, WrongError, answers
from backend.search import MAX_TEXT, NAME, parse
from backend.service import Service
from backend.shapes import (
    TRAINING_REQUEST,
    Analytics,
    Checkpoints,
    ChosenJobs,
    Cleanups,
    Comparison,
    Curve,
    CurveMarks,
    Curves,
    Deleted,
    Emptied,
    Errors,
    Extended,
    Gpu,
    Health,
    InvalidTraining,
    Jobs,
    Label,
    Labelled,
    Logs,
    MachineNow,
    Metrics,
    Pausing,
    Queue,
    Spec,
    Status,
    Submitted,
    Summary,
    Undeleted,
    Usage,
    Valid,
    Whereabouts,
    named,
    read_body_as,
    read_training,
)
from backend.submission import InvalidSubmissionError, Problem, Submission
from backend.views import JobFilter, JobView
from backend.watch import MAX_WATCHERS, Hub, Message, refuse

logger = logging.getLogger(__name__)

THREADS: Final = 4
"""That many requests are worked on at the same moment; a supervisor wants its turn too."""

LONG_THREADS: Final = 2
"""The same, of requests that read whole curves; and again of pieces of zips."""

LOOKING_THREADS: Final = 2
"""The same, of looks at jobs that are watched."""

ACTING_THREADS: Final = 2
"""The same, of what ends a job or gives it time: that must not wait behind those that only look,
nor be refused for their number. While 16 clients ask for lists without a pause, a cancel is
answered after 0.04 s and its job gone after 0.27 s; among them it would be 0.22 s and 0.35 s."""

MAX_WAITING: Final = 256
MAX_LONG_WAITING: Final = 32
MAX_DOWNLOADS: Final = 16
MAX_JOBS: Final = 1000
MAX_POINTS: Final = 10_000
MAX_LOG_BYTES: Final = 2**20
MAX_COMPARED: Final = 100
MIN_BINS: Final = 16
MAX_BINS: Final = 2000
MAX_ID: Final = 2**63 - 1
MAX_MOMENT: Final = 2**53
"""In milliseconds since 1970; a browser has no larger whole numbers."""

KINDS: Final = {Form.CSV: "text/csv; charset=utf-8", Form.JSONL: "application/jsonl"}

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)


def _by_hand(
    x_requested_with: Annotated[
        str,
        Header(
            description="Anything; a POST without a body needs it, or Content-Type: "
            "application/json. The door has looked at it already."
        ),
    ] = "docs",
) -> None:
    """For the description, and its page, which sends what is described."""


BODILESS: Final = [Depends(_by_hand)]


def _as_number(raw: object) -> object:
    # Of a text int takes more than a whole number: blanks, signs, underscores, other digits.
    if isinstance(raw, str) and not re.fullmatch(r"-?[0-9]{1,100}", raw, re.ASCII):
        raise ValueError("Must be a whole number.")
    return raw


JobId = Annotated[
    int, BeforeValidator(_as_number), Path(description="The job's number.", examples=[12])
]


JobIds = Annotated[
    str,
    Query(
        max_length=2000,
        json_schema_extra={"pattern": r"^[0-9]{1,18}(,[0-9]{1,18})*$"},
        description=f"Numbers of at most {MAX_COMPARED} jobs, with commas.",
        examples=["1,2"],
    ),
]
Bins = Annotated[int, Query(ge=MIN_BINS, le=MAX_BINS, description="Bins at most.")]
Names = Annotated[
    list[str] | None, Query(description="Only series of these names.", examples=[["train_loss"]])
]


class Desk:
    """Where blocking work is done: in a bounded number of threads, with a bounded queue."""

    def __init__(self, threads: int, most_waiting: int) -> None:
        self._limiter = anyio.CapacityLimiter(threads)
        self._most_waiting = most_waiting

    async def do(self, work: Callable[..., T], *args: Any) -> T:
        """Raises BusyError, and whatever the work raises."""
        if self._limiter.statistics().tasks_waiting >= self._most_waiting:
            raise BusyError(
                f"The server is busy: {self._most_waiting} such requests wait already. "
                "Try again in a moment."
            )
        return await to_thread.run_sync(work, *args, limiter=self._limiter)


class Download(Response):
    """A file, sent a piece at a time; `end` is called however it ends, also before it begins."""

    def __init__(
        self, chunks: Iterator[bytes], desk: Desk, end: Callable[[], None], name: str, kind: str
    ) -> None:
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        super().__init__(headers=headers, media_type=kind)
        del self.headers["content-length"]
        self._chunks, self._desk, self._end = chunks, desk, end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            while chunk := await self._desk.do(next, self._chunks, b""):
                # Waits until the client has taken most of what was sent; raises once it is gone.
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            logger.info("A download was left by its client")
        finally:
            self._end()


def make_api(*, asks_for_token: bool = False) -> FastAPI:
    """The application; it finds the service of this process when it is asked.

    Args:
        asks_for_token: whether the door in front of it does, for its description.
    """
    desk, long_desk = Desk(THREADS, MAX_WAITING), Desk(LONG_THREADS, MAX_LONG_WAITING)
    zip_desk = Desk(LONG_THREADS, MAX_DOWNLOADS)  # which wait one piece each, so none is refused
    act_desk = Desk(ACTING_THREADS, MAX_WAITING)
    downloads = 0
    hub = Hub(_describe, Desk(LOOKING_THREADS, MAX_WATCHERS).do)
    api = FastAPIOffline(
        title="Signalbox",
        version="1",
        description=_DESCRIPTION,
        openapi_url="/api/openapi.json",
        docs_url="/api/docs",
        redoc_url=None,
        static_url="/api/docs/files",
        swagger_ui_oauth2_redirect_url="/api/docs/oauth2-redirect",
        swagger_ui_parameters={"defaultModelsExpandDepth": 0, "tryItOutEnabled": True},
        openapi_tags=_TAGS,
        responses=answers(400, 401, 403, 422, 429, 503),
        redirect_slashes=False,
    )
    api.state.hub = hub
    api.openapi = lambda: _openapi(api, asks_for_token)  # type: ignore[method-assign]
    for kind, handler in HANDLERS.items():
        api.add_exception_handler(kind, handler)

    async def answer(
        shape: type[M], work: Callable[[], Any], status: int = 200, *, at: Desk = desk
    ) -> Response:
        """What the work comes to, as JSON of that shape; also the JSON is made in the thread."""

        def made() -> bytes:
            return shape.model_validate(work()).model_dump_json().encode()

        content = await at.do(made)
        return Response(content, status, media_type="application/json")

    async def download(
        name: str, work: Callable[[], Iterator[bytes]], kind: str = "application/zip"
    ) -> Response:
        """The file that the work makes, a piece at a time, as fast as the client takes it."""
        nonlocal downloads
        if downloads >= MAX_DOWNLOADS:
            raise BusyError(f"{MAX_DOWNLOADS} downloads run already; wait for one of them.")
        downloads += 1
        try:
            chunks = await desk.do(work)
        except BaseException:
            downloads -= 1
            raise

        def end() -> None:
            nonlocal downloads
            downloads -= 1
            if isinstance(chunks, Generator):
                chunks.close()

        return Download(chunks, zip_desk, end, name, kind)

    async def submission(request: Request) -> tuple[Submission, list[Problem]]:
        """What the body asks for, and everything that is wrong with it."""
        body = await read_body(request)

        def understood() -> tuple[Submission, list[Problem]]:
            asked, problems = read_training(body)
            wrong = {problem.field for problem in problems}
            found = [named(problem, asked) for problem in _service().validate(asked)]
            return asked, problems + [problem for problem in found if problem.field not in wrong]

        return await desk.do(understood)

    # Submitting

    @api.post(
        "/api/training/execute",
        tags=["submit"],
        summary="Queue a training",
        status_code=201,
        response_model=Submitted,
        responses=answers(413, 415, **{"422": InvalidTraining}),
        openapi_extra=_TRAINING_BODY,
    )
    async def execute(request: Request) -> Response:
        """Queue a recipe with its parameters, or any Python script. What is wrong with the body is
        named all at once, and then nothing is queued."""
        asked, problems = await submission(request)
        if problems:
            raise InvalidSubmissionError(problems)
        return await answer(Submitted, lambda: _submitted(_service().submit(asked)), 201)

    @api.post(
        "/api/training/validate",
        tags=["submit"],
        summary="Say what is wrong with a training",
        response_model=Valid,
        responses=answers(413, 415, **{"422": InvalidTraining}),
        openapi_extra=_TRAINING_BODY,
    )
    async def validate(request: Request) -> Response:
        """Takes what execute takes and answers as it would, but queues nothing."""
        _, problems = await submission(request)
        if problems:
            raise InvalidSubmissionError(problems)
        return await answer(Valid, Valid)

    # Looking

    @api.get(
        "/api/training/status/{job_id}",
        tags=["look"],
        summary="One job now",
        response_model=Status,
        responses=answers(404),
    )
    async def status(job_id: JobId) -> Response:
        """The database's truth, with the latest figures of a job that runs."""
        return await answer(Status, lambda: _service().job(job_id))

    @api.get(
        "/api/training/{job_id}/spec",
        tags=["look"],
        summary="What was asked for",
        response_model=Spec,
        responses=answers(404),
    )
    async def spec(job_id: JobId) -> Response:
        """The recipe or script of a job, with its parameters."""
        return await answer(Spec, lambda: _service().job(job_id))

    @api.get(
        "/api/training/jobs", tags=["look"], summary="All jobs, newest first", response_model=Jobs
    )
    async def jobs(
        status: Annotated[
            list[JobStatus] | None, Query(description="Only jobs in these states.")
        ] = None,
        q: Annotated[
            str,
            Query(
                max_length=MAX_TEXT,
                description='A search: words, `"two words"`, `name:` `recipe:` `tag:` `note:` '
                "`error:` `status:`, `is:starred`, `lr>0.001`, `best<0.05`, `duration>1h`, and "
                "`-` before what is not to be. What is not understood is named in `problems`.",
                examples=["lr>0.001 recipe:digits -failed"],
            ),
        ] = "",
        sort: Annotated[
            str,
            Query(
                pattern=f"^{NAME.pattern}$",
                description="id, name, recipe, status, started, finished, duration, starred, or "
                "any parameter or figure, as learning_rate or best.",
            ),
        ] = "id",
        descending: Annotated[bool, Query(description="The largest first.")] = True,
        limit: Annotated[int, Query(ge=1, le=MAX_JOBS, description="Jobs on this page.")] = 100,
        offset: Annotated[int, Query(ge=0, le=MAX_ID, description="Jobs before this page.")] = 0,
    ) -> Response:
        """One page of them; `total` says how many match."""
        wanted = JobFilter(frozenset(status or ()), q, sort, descending, limit, offset)

        def work() -> Mapping[str, Any]:
            return {**vars(_service().jobs(wanted)), "problems": parse(q).problems}

        return await answer(Jobs, work)

    @api.get(
        "/api/training/queue", tags=["look"], summary="What runs and what waits",
        response_model=Queue,
    )  # fmt: skip
    async def queue() -> Response:
        """Ids alone; those that wait in the order in which they will be started."""
        return await answer(Queue, lambda: _service().queue())

    @api.get(
        "/api/training/metrics/{job_id}",
        tags=["look"],
        summary="The curve of a job",
        response_model=Metrics,
        responses=answers(404),
    )
    async def metrics(
        job_id: JobId,
        since_step: Annotated[
            int | None,
            Query(
                ge=-1,
                le=MAX_ID,
                description="Only points after this step: an increment. What is logged later at "
                "the same step adds to a point, so ask from the step before the newest and replace "
                "it.",
            ),
        ] = None,
        max_points: Annotated[
            int,
            Query(
                ge=1,
                le=MAX_POINTS,
                description="A longer curve is thinned to so many points; its lowest and highest "
                "losses and its newest point stay.",
            ),
        ] = 2000,
    ) -> Response:
        """Every point that was logged, or a thinned curve that keeps its extremes."""

        def read() -> bytes:
            curve = _service().metrics(job_id, since_step, max_points)
            # Point by point: one long call into C would hold up all other threads.
            points = ", ".join(map(point_as_json, curve.points))
            return f'{{"job_id": {job_id}, "points": [{points}], "total": {curve.total}}}'.encode()

        return Response(await long_desk.do(read), media_type="application/json")

    @api.get(
        "/api/training/curve/{job_id}",
        tags=["look"],
        summary="The curve of a job in bins, for a chart",
        response_model=Curve,
        responses=answers(404),
    )
    async def curve(
        job_id: JobId,
        bins: Bins = 1000,
        level: Annotated[
            int | None,
            Query(ge=0, le=64, description="With after_row: the level that you have."),
        ] = None,
        after_row: Annotated[
            int | None,
            Query(
                ge=0,
                le=MAX_ID,
                description="An increment: only the bins from this row on, which is where your "
                "last bin begins. Where the curve has outgrown `level` you get all of it.",
            ),
        ] = None,
        x: Annotated[X, Query(description="What begin and end are; a time in ms since 1970.")] = (
            "step"
        ),
        begin: Annotated[
            float | None, Query(allow_inf_nan=False, description="Only from here, and finer.")
        ] = None,
        end: Annotated[
            float | None, Query(allow_inf_nan=False, description="Up to here; with begin.")
        ] = None,
        name: Names = None,
    ) -> Response:
        """As many bins as a screen has room for, whatever the number of points: lowest, highest
        and mean of each. Takes milliseconds, also of ten million points."""
        if (begin is None) != (end is None):
            raise WrongError("begin", "Give begin and end, or neither.")

        def read() -> str:
            found = _service().curve(
                job_id, bins, level=level, after_row=after_row, x=x, begin=begin, end=end
            )
            return curve_as_json(job_id, found, name or ())

        return Response(await desk.do(read), media_type="application/json")

    @api.get(
        "/api/training/curves",
        tags=["look"],
        summary="The curves of several jobs",
        response_model=Curves,
        responses=answers(404),
    )
    async def curves(job_ids: JobIds, bins: Bins = 200, name: Names = None) -> Response:
        """Whole curves in bins, as those of one job."""
        wanted = _job_ids(job_ids)

        def read() -> str:
            service = _service()
            found = (curve_as_json(n, service.curve(n, bins), name or ()) for n in wanted)
            return f'{{"curves": [{", ".join(found)}]}}'

        return Response(await long_desk.do(read), media_type="application/json")

    @api.get(
        "/api/training/marks/{job_id}",
        tags=["look"],
        summary="What to mark on the axis of a curve",
        response_model=CurveMarks,
        responses=answers(404),
    )
    async def marks(job_id: JobId) -> Response:
        """Checkpoints, pauses, resumes, stalls and the end."""

        def work() -> Mapping[str, Any]:
            return {
                "marks": [
                    {
                        "kind": mark.kind,
                        "step": mark.step,
                        "time": mark.at.timestamp() * 1000,
                        "text": mark.text,
                    }
                    for mark in _service().marks(job_id)
                ]
            }

        return await answer(CurveMarks, work)

    @api.get(
        "/api/training/logs/{job_id}",
        tags=["look"],
        summary="A piece of a job's log",
        response_model=Logs,
        responses=answers(404),
    )
    async def logs(
        job_id: JobId,
        offset: Annotated[int, Query(ge=0, le=MAX_ID, description="First byte.")] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES, description="Bytes at most.")] = 65_536,
    ) -> Response:
        """By byte offset, so that a log of any size can be followed: ask again from
        `next_offset`."""
        return await answer(Logs, lambda: _service().logs(job_id, offset, limit))

    @api.get(
        "/api/training/usage/{job_id}",
        tags=["look"],
        summary="A job's use of the machine over time",
        response_model=Usage,
        responses=answers(404),
    )
    async def usage(
        job_id: JobId,
        since: Annotated[
            int | None,
            Query(
                ge=0,
                le=MAX_MOMENT,
                description="Only points after this moment, in milliseconds since 1970.",
            ),
        ] = None,
    ) -> Response:
        """Cores, memory, and the memory and load of its GPUs: a point every two seconds, of a long
        job fewer."""
        return await answer(Usage, lambda: _usage(job_id, since))

    @api.get(
        "/api/training/{job_id}/errors",
        tags=["look"],
        summary="Why a job failed",
        response_model=Errors,
        responses=answers(404),
    )
    async def errors(job_id: JobId) -> Response:
        """What happened, what to try, where it was stuck, and the end of its log."""
        return await answer(Errors, lambda: _errors(job_id))

    # Acting

    @api.post(
        "/api/training/cancel/{job_id}",
        tags=["act"],
        dependencies=BODILESS,
        summary="End a job",
        response_model=Status,
        responses=answers(404, 409, 415),
    )
    async def cancel(
        job_id: JobId,
        now: Annotated[
            bool, Query(description="Kill it at once, without the grace in which it could save.")
        ] = False,
    ) -> Response:
        """A running job is asked to stop, and killed with all its processes after its grace; until
        then its `requested` is cancelling. Asking again changes nothing, unless with `now`, and is
        answered by 409 once the job has ended."""

        def work() -> JobView:
            _require(job_id, lambda state: not state.ended, "has ended already")
            _service().cancel(job_id, now=now)
            job = _service().job(job_id)
            if job.status.ended and job.status is not JobStatus.CANCELLED:
                _refuse_state(job, "it has ended already")  # by itself, just before
            return job

        return await answer(Status, work, at=act_desk)

    @api.post(
        "/api/training/extend/{job_id}",
        tags=["act"],
        dependencies=BODILESS,
        summary="Give a job another full timeout",
        response_model=Extended,
        responses=answers(404, 409, 415),
    )
    async def extend(job_id: JobId) -> Response:
        """From now on, without progress. Only a running job has a timeout."""

        def work() -> JobView:
            if not _service().extend(job_id):
                job = _service().job(job_id)
                _refuse_state(
                    job,
                    "its end has begun"
                    if job.status is JobStatus.RUNNING
                    else "only a running job can be given more time",
                )
            return _service().job(job_id)

        return await answer(Extended, work, at=act_desk)

    @api.post(
        "/api/training/retry/{job_id}",
        tags=["act"],
        dependencies=BODILESS,
        summary="Run a job again",
        status_code=201,
        response_model=Submitted,
        responses={
            200: {"model": Submitted, "description": "It is being run again already, by this job."},
            **answers(404, 409, 415),
        },
    )
    async def retry(
        job_id: JobId,
        from_checkpoint: Annotated[
            bool,
            Query(
                description="Go on from the newest checkpoint that is whole, the job's own or of "
                "the job that it went on from; where there is none it begins anew."
            ),
        ] = False,
    ) -> Response:
        """Queue a new job like one that has ended. As long as that new job has not ended itself,
        asking again makes no other, but answers 200 with the same number."""

        def work() -> tuple[int, str]:
            _require(job_id, lambda state: state.ended, "can be retried once it has ended")
            live, is_new = _service().retry_once(job_id, from_checkpoint=from_checkpoint)
            found = Submitted(job_id=live.job_id, status=live.status)
            return 201 if is_new else 200, found.model_dump_json()

        code, content = await desk.do(work)
        return Response(content, code, media_type="application/json")

    @api.post(
        "/api/training/pause/{job_id}",
        tags=["act"],
        dependencies=BODILESS,
        summary="Have a job save and end, to be resumed later",
        response_model=Pausing,
        responses=answers(404, 409, 415),
    )
    async def pause(job_id: JobId) -> Response:
        """The job is asked to save and to end; until it has its `requested` is pausing, then it is
        paused, and its memory is back. One that ignores the ask is not killed: it goes on, and its
        `notice` says why. Asking again changes nothing."""

        def work() -> JobView:
            service = _service()
            if service.job(job_id).status is not JobStatus.PAUSED and not service.pause(job_id):
                job = service.job(job_id)
                cancelled = job.requested is RequestKind.CANCELLING
                _refuse_state(
                    job,
                    "it is being cancelled" if cancelled else "only a running job can be paused",
                )
            return service.job(job_id)

        return await answer(Pausing, work, at=act_desk)

    @api.post(
        "/api/training/resume/{job_id}",
        tags=["act"],
        dependencies=BODILESS,
        summary="Go on with a paused job",
        response_model=Status,
        responses=answers(404, 409, 415),
    )
    async def resume(job_id: JobId) -> Response:
        """It is queued again under its own number, and goes on from its newest checkpoint that is
        whole. Asking again while it waits in the queue changes nothing."""

        def work() -> JobView:
            service = _service()
            resumed = service.resume(job_id)
            job = service.job(job_id)
            if not resumed and not (job.status is JobStatus.QUEUED and job.paused_at):
                _refuse_state(job, "only a paused job can be resumed")
            return job

        return await answer(Status, work, at=act_desk)

    @api.post(
        "/api/training/where/{job_id}",
        tags=["look"],
        dependencies=BODILESS,
        summary="Where is it?",
        response_model=Whereabouts,
        responses=answers(404, 409, 415),
    )
    async def where(job_id: JobId) -> Response:
        """The stacks of every thread of a running job's Python processes, taken now, while it goes
        on, and what they come to in a sentence. Takes up to a few seconds."""

        def work() -> Mapping[str, str]:
            service = _service()
            sentence = service.where(job_id)
            if sentence is None:
                _refuse_state(service.job(job_id), "it has no process that could be asked")
            return {"sentence": sentence, "stacks": service.stacks(job_id)}

        return await answer(Whereabouts, work, at=long_desk)

    # What is written beside a job, and deleting

    async def read_as(shape: type[M], request: Request) -> M:
        """The body, as JSON of that shape."""
        body = await read_body(request)
        return await desk.do(read_body_as, shape, body)

    @api.patch(
        "/api/training/{job_id:int}",  # else it would take PATCH for the addresses beside it too
        tags=["act"],
        summary="Rename, tag, star, or write a note",
        response_model=Labelled,
        responses=answers(404, 413, 415),
        openapi_extra=_body_of(Label),
    )
    async def label(job_id: JobId, request: Request) -> Response:
        """What is left out of the body stays as it is."""
        wanted = (await read_as(Label, request)).model_dump(exclude_unset=True)

        def work() -> JobView:
            try:
                _service().label(job_id, **wanted)
            except LabelError as error:
                raise WrongError(error.field, str(error)) from None
            return _service().job(job_id)

        return await answer(Labelled, work)

    @api.post(
        "/api/training/delete",
        tags=["act"],
        summary="Delete jobs that have ended",
        response_model=Deleted,
        responses=answers(404, 413, 415),
        openapi_extra=_body_of(ChosenJobs),
    )
    async def delete(request: Request) -> Response:
        """With their run folders. They are out of all lists at once; for 10 minutes they can be
        taken back, then they are removed. Those that have not ended are left out, and `left_out`
        says why."""
        wanted = await read_as(ChosenJobs, request)
        return await answer(Deleted, lambda: _service().delete(wanted.job_ids), at=long_desk)

    @api.post(
        "/api/training/undelete",
        tags=["act"],
        summary="Take a deletion back",
        response_model=Undeleted,
        responses=answers(413, 415),
        openapi_extra=_body_of(ChosenJobs),
    )
    async def undelete(request: Request) -> Response:
        """`job_ids` of the answer are those that are there again; of others it is too late, or they
        were not deleted."""
        wanted = await read_as(ChosenJobs, request)
        return await answer(Undeleted, lambda: {"job_ids": _service().undelete(wanted.job_ids)})

    # Files

    @api.get(
        "/api/training/checkpoints/{job_id}",
        tags=["files"],
        summary="What a job has saved",
        response_model=Checkpoints,
        responses=answers(404),
    )
    async def checkpoints(job_id: JobId) -> Response:
        """One that is not complete is being written, or was left half-written."""
        return await answer(
            Checkpoints, lambda: {"checkpoints": _service().checkpoints(job_id)}, at=long_desk
        )

    zipped: dict[int | str, dict[str, Any]] = {
        200: {"content": {"application/zip": {}}, "description": "A zip, written while it is sent."}
    }

    @api.get(
        "/api/training/{job_id}/download/model",
        tags=["files"],
        summary="Model and checkpoints, as a zip",
        response_class=Response,
        responses={**zipped, **answers(404)},
    )
    async def download_model(
        job_id: JobId,
        checkpoint: Annotated[
            str | None,
            Query(
                max_length=255,
                description="Only this checkpoint; without it all complete ones, and whatever "
                "else the job left in its folder.",
                examples=["step-00000500"],
            ),
        ] = None,
    ) -> Response:
        """Files of any size: nothing is collected in memory or on the disk first."""
        name = f"job-{job_id}-model.zip"
        return await download(name, lambda: _service().model_archive(job_id, checkpoint))

    @api.get(
        "/api/training/{job_id}/download/logs",
        tags=["files"],
        summary="Log, progress, metrics, use of the machine and spec, as a zip",
        response_class=Response,
        responses={**zipped, **answers(404)},
    )
    async def download_logs(job_id: JobId) -> Response:
        """The log as it was written, with the values of the job's environment variables blacked
        out."""
        return await download(f"job-{job_id}-logs.zip", lambda: _service().log_archive(job_id))

    @api.get(
        "/api/training/{job_id}/download/metrics",
        tags=["files"],
        summary="Every point of the curve, as CSV or JSON lines",
        response_class=Response,
        responses={
            200: {"content": {kind: {} for kind in KINDS.values()}, "description": "Every point."},
            **answers(404),
        },
    )
    async def download_metrics(
        job_id: JobId,
        format: Annotated[Form, Query(description="A table, or an object a line.")] = Form.CSV,
    ) -> Response:
        """At full resolution, oldest first, written while it is sent. The values of the job's
        environment variables are blacked out."""
        name = f"job-{job_id}-metrics.{format}"
        return await download(name, lambda: _service().points(job_id, format), KINDS[format])

    # Figures

    @api.get(
        "/api/training/analytics/summary",
        tags=["figures"],
        summary="All jobs in figures",
        response_model=Summary,
    )
    async def summary() -> Response:
        """How many, how long, how many went well, and why the others failed."""
        return await answer(Summary, lambda: _service().summary())

    @api.get(
        "/api/training/analytics/compare",
        tags=["figures"],
        summary="Several jobs side by side",
        response_model=Comparison,
        responses=answers(404),
    )
    async def compare(job_ids: JobIds) -> Response:
        """Which parameters differ, and who is best at what."""
        wanted = _job_ids(job_ids)
        return await answer(Comparison, lambda: _service().compare(wanted), at=long_desk)

    @api.get(
        "/api/training/{job_id}/analytics",
        tags=["figures"],
        summary="One job in figures",
        response_model=Analytics,
        responses=answers(404),
    )
    async def analytics(job_id: JobId) -> Response:
        """Rates, best and last losses, its peak of memory, and where its time went."""

        return await answer(Analytics, lambda: _service().analytics(job_id), at=long_desk)

    # The machine

    @api.get(
        "/api/machine",
        tags=["machine"],
        summary="What runs, how busy the machine is, and what has ended",
        response_model=MachineNow,
    )
    async def machine(
        ended_after: Annotated[
            int | None,
            Query(
                ge=0,
                le=MAX_MOMENT,
                description="Name the jobs that ended after this number, the `last_ending` of an "
                "earlier answer; without it none is named.",
            ),
        ] = None,
    ) -> Response:
        """Cheap: may be asked every second. Jobs that were cancelled while they waited are not
        named."""
        return await answer(MachineNow, lambda: _machine(ended_after))

    @api.get("/api/gpu", tags=["machine"], summary="GPU memory now", response_model=Gpu)
    async def gpu() -> Response:
        """Of a machine without a GPU the host's memory."""
        return await answer(Gpu, lambda: _service().machine())

    @api.get(
        "/api/training/cleanups",
        tags=["machine"],
        summary="Memory before and after each job's end",
        response_model=Cleanups,
    )
    async def cleanups(
        job_id: Annotated[int | None, Query(description="Only of this job.")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_JOBS, description="So many at most.")] = 100,
    ) -> Response:
        """One row for each device that a job used."""
        return await answer(Cleanups, lambda: {"cleanups": _service().cleanups(job_id, limit)})

    @api.post(
        "/api/gpu/empty-cache",
        tags=["machine"],
        dependencies=BODILESS,
        summary="Empty the server's own CUDA cache",
        response_model=Emptied,
        responses=answers(415),
    )
    async def empty_cache() -> Response:
        """Also collects garbage. Jobs are not touched: their memory comes back when they end."""
        return await answer(Emptied, lambda: _service().empty_cache(), at=long_desk)

    @api.get("/health", tags=["machine"], summary="Is the server there?", response_model=Health)
    async def health() -> Response:
        """Needs no token."""
        _service()
        return Response(Health().model_dump_json(), media_type="application/json")

    @api.websocket("/ws/training/{job_id}")
    async def watch(websocket: WebSocket, job_id: str) -> None:
        if job_id.isascii() and job_id.isdecimal() and len(job_id) < 20:
            await hub.serve(websocket, int(job_id))
        else:
            await refuse(websocket, 404, f"There is no job {job_id[:20]!r}.")

    @api.get("/api", include_in_schema=False)
    @api.get("/api/", include_in_schema=False)
    async def root() -> Response:
        return RedirectResponse("/api/docs")

    return api


# What the routes ask


def _service() -> Service:
    return runtime.service()


def _submitted(job_id: int) -> Submitted:
    return Submitted(job_id=job_id, status=JobStatus.QUEUED)


def _job_ids(text: str) -> list[int]:
    """Each number once."""
    if not re.fullmatch(r"[0-9]{1,18}(,[0-9]{1,18})*", text, re.ASCII):
        raise WrongError("job_ids", "Must be numbers of jobs with commas between them, as 1,2.")
    wanted = list(dict.fromkeys(map(int, text.split(","))))
    if len(wanted) > MAX_COMPARED:
        raise WrongError("job_ids", f"At most {MAX_COMPARED} jobs can be looked at together.")
    return wanted


def _require(job_id: int, allows: Callable[[JobStatus], bool], otherwise: str) -> None:
    job = _service().job(job_id)
    if not allows(job.status):
        raise NotAllowedError(job.status, f"Job {job_id} is {job.status}; it {otherwise}.")


def _refuse_state(job: JobView, reason: str) -> NoReturn:
    raise NotAllowedError(job.status, f"Job {job.job_id} is {job.status}; {reason}.")


def _errors(job_id: int) -> Mapping[str, Any]:
    service = _service()
    job, failure = service.job(job_id), service.failure(job_id)
    return {
        "error": job.error,
        "failure_kind": job.failure_kind,
        "explanation": failure.explanation if failure else None,
        "advice": failure.advice if failure else None,
        "stacks": (failure.stacks if failure else service.stacks(job_id)) or None,
        "log_tail": failure.log_tail if failure else service.log_tail(job_id),
    }


def _usage(job_id: int, since: int | None) -> Mapping[str, Any]:
    service = _service()
    live = service.job(job_id).status is JobStatus.RUNNING  # first: or the last points were missed
    return {"job_id": job_id, "live": live, "points": service.usage(job_id, since)}


def _machine(ended_after: int | None) -> Mapping[str, Any]:
    service = _service()
    last, endings = service.endings(ended_after)
    counts = service.counts()
    return {
        "running": counts[JobStatus.RUNNING],
        "queued": counts[JobStatus.QUEUED],
        "load": service.load(),
        "last_ending": last,
        "endings": endings,
    }


def _describe(job_id: int) -> Message:
    """What a watcher of a job is told."""
    job = _service().job(job_id, look=True)
    return Message(Status.model_validate(job).model_dump(mode="json"), job.status.ended)


# The description


def _body_of(shape: type[BaseModel]) -> dict[str, Any]:
    content = {"application/json": {"schema": shape.model_json_schema()}}
    return {"requestBody": {"required": True, "content": content}}


_BODY_SCHEMA: Final = TRAINING_REQUEST.json_schema(ref_template="#/components/schemas/{model}")
_TRAINING_BODY: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {k: v for k, v in _BODY_SCHEMA.items() if k != "$defs"},
                "examples": {
                    "recipe": {
                        "summary": "A built-in recipe",
                        "value": {"recipe": "digits", "params": {"epochs": 5}, "name": "short"},
                    },
                    "script": {
                        "summary": "A script of your own",
                        "value": {
                            "script": "/home/me/train.py",
                            "args": ["--lr", "3e-4"],
                            "env": {"OMP_NUM_THREADS": "2"},
                            "timeout_minutes": 30,
                        },
                    },
                },
            }
        },
    }
}


def _openapi(api: FastAPI, asks_for_token: bool) -> dict[str, Any]:
    if api.openapi_schema is None:
        described = get_openapi(
            title=api.title,
            version=api.version,
            description=api.description,
            routes=api.routes,
            tags=api.openapi_tags,
        )
        components = described["components"]
        components["schemas"] |= _BODY_SCHEMA["$defs"]
        for unused in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(unused, None)
        if asks_for_token:
            token = {"type": "http", "scheme": "bearer", "description": "SIGNALBOX_TOKEN."}
            components["securitySchemes"] = {"token": token}
            described["security"] = [{"token": []}]
            described["paths"]["/health"]["get"]["security"] = []
        api.openapi_schema = described
    return api.openapi_schema


_TAGS: Final = [
    {"name": "submit", "description": "Queue a training, or ask whether it could be."},
    {"name": "look", "description": "What runs, how it goes, what it said."},
    {
        "name": "act",
        "description": "Pause, resume, cancel, retry, give more time, label, delete. Safe to "
        "repeat.",
    },
    {"name": "files", "description": "What a job left behind, as streamed zips."},
    {"name": "figures", "description": "One job, several, or all of them in figures."},
    {"name": "machine", "description": "Memory, cleanups, and whether the server is there."},
]

_DESCRIPTION: Final = """\
The same jobs as on the pages, for notebooks, scripts and other programs.

- Times are UTC, ISO 8601; durations are seconds; sizes are bytes.
- Every error is `{"detail": "one sentence"}`. A 422 names each wrong field in `problems`, a 409 the
  job's `status`.
- A POST with a body needs `Content-Type: application/json`. A POST without one needs that header
  too, or `X-Requested-With: anything`, which a form of another site cannot send.
- Where `SIGNALBOX_TOKEN` is set, send `Authorization: Bearer <token>`.
- **WebSocket** `/ws/training/{job_id}`: the job's status at once, then at each change, with
  `"complete": false`; the last message has `"complete": true`, and the socket is closed.
"""
