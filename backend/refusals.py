"""What the API answers when it does not do what was asked: a status, a sentence, and what OpenAPI
says of it."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final

from fastapi.exceptions import RequestValidationError
from fastapi.requests import Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from backend import runtime
from backend.archive import NotSavedError
from backend.door import TooLargeError
from backend.models import JobStatus
from backend.service import QueueFullError, UnknownJobError
from backend.shapes import (
    Conflict,
    Error,
    Invalid,
    InvalidJsonError,
    InvalidTraining,
    Wrong,
    WrongBodyError,
)
from backend.store import StoreError
from backend.submission import InvalidSubmissionError, sentence

logger = logging.getLogger(__name__)

MAX_PROBLEMS: Final = 100
"""So many are named at once."""


class BusyError(Exception):
    """Too much is going on already; the message is a sentence."""


class WrongError(Exception):
    """Something in a request that its model cannot tell is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class NotAllowedError(Exception):
    """A job's state does not allow what was asked."""

    def __init__(self, status: JobStatus, detail: str) -> None:
        super().__init__(detail)
        self.status = status


_Handler = Callable[[Request, Any], Awaitable[Response]]


def _error(status: int, error: Error, headers: Mapping[str, str] | None = None) -> Response:
    return Response(error.model_dump_json(), status, headers=headers, media_type="application/json")


def _plain(status: int, headers: Mapping[str, str] | None = None) -> _Handler:
    """Answers with the sentence that an exception brings."""

    async def handler(_: Request, error: Exception) -> Response:
        return _error(status, Error(detail=str(error.args[0]) if error.args else ""), headers)

    return handler


async def _on_http(request: Request, error: HTTPException) -> Response:
    if error.status_code == HTTPStatus.NOT_FOUND and request.url.path.startswith("/ws/"):
        detail = "This is the address of a WebSocket; docs/http-api.md says how to open it."
    elif error.status_code == HTTPStatus.NOT_FOUND:
        detail = "There is nothing at this address; /api/docs lists what there is."
    elif error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        detail = f"{request.method} is not for this address; /api/docs lists what there is."
    else:
        detail = str(error.detail)
    return _error(error.status_code, Error(detail=detail), error.headers)


async def _on_conflict(_: Request, error: NotAllowedError) -> Response:
    return _error(409, Conflict(detail=str(error), status=error.status))


async def _on_wrong_request(_: Request, error: RequestValidationError) -> Response:
    problems = [
        Wrong(field=str(details["loc"][1]), message=sentence(details)) for details in error.errors()
    ]
    return _error(422, Invalid(detail=_told(problems), problems=problems))


async def _on_wrong_value(_: Request, error: WrongError) -> Response:
    problems = [Wrong(field=error.field, message=str(error))]
    return _error(422, Invalid(detail=_told(problems), problems=problems))


async def _on_wrong_training(_: Request, error: InvalidSubmissionError) -> Response:
    problems = [Wrong(field=p.field, message=p.message) for p in error.problems[:MAX_PROBLEMS]]
    return _error(422, InvalidTraining(detail=_told(problems), problems=problems))


async def _on_wrong_body(_: Request, error: WrongBodyError) -> Response:
    problems = [Wrong(field=p.field, message=p.message) for p in error.problems[:MAX_PROBLEMS]]
    return _error(422, Invalid(detail=_told(problems), problems=problems))


async def _on_disconnect(_: Request, error: ClientDisconnect) -> Response:
    return _error(400, Error(detail="The body did not come to its end."))  # nobody is there to read


async def _on_bug(request: Request, error: Exception) -> Response:
    logger.error("%s %r failed", request.method, request.url.path, exc_info=error)
    return _error(500, Error(detail="Something in Signalbox is broken; its log says what."))


def _told(problems: Sequence[Wrong]) -> str:
    return " ".join(f"{problem.field}: {problem.message}" for problem in problems)


HANDLERS: Final[Mapping[type[Exception], _Handler]] = {
    HTTPException: _on_http,
    RequestValidationError: _on_wrong_request,
    InvalidSubmissionError: _on_wrong_training,
    WrongError: _on_wrong_value,
    WrongBodyError: _on_wrong_body,
    NotAllowedError: _on_conflict,
    InvalidJsonError: _plain(400),
    UnknownJobError: _plain(404),
    NotSavedError: _plain(404),
    TooLargeError: _plain(413),
    QueueFullError: _plain(429),
    BusyError: _plain(429, {"retry-after": "1"}),
    StoreError: _plain(503, {"retry-after": "5"}),
    runtime.NotRunningError: _plain(503, {"retry-after": "5"}),
    ClientDisconnect: _on_disconnect,
    Exception: _on_bug,
}


# By status: its shape, what it means, and the sentence of an example.
_ERRORS: Final[Mapping[int, tuple[type[Error], str, str]]] = {
    400: (
        Error,
        "The request makes no sense, or the server was called by a name not its own.",
        "The body is no valid JSON: EOF while parsing a value at line 1 column 0.",
    ),
    401: (
        Error,
        "SIGNALBOX_TOKEN is set, and the request does not hold it.",
        "This server asks for its token: send it as Authorization: Bearer.",
    ),
    403: (
        Error,
        "The request comes from a page of another site.",
        "The request comes from a page of another site.",
    ),
    404: (Error, "There is no such job, checkpoint or address.", "There is no job 99."),
    409: (Conflict, "The job's state does not allow it.", ""),
    413: (
        Error,
        "The body is too large.",
        "The body is too large; at most 1,048,576 bytes are taken.",
    ),
    415: (
        Error,
        "The body is not JSON, or a POST without one lacks its header.",
        "The body must be JSON, sent with Content-Type: application/json.",
    ),
    422: (Invalid, "Something in the request is wrong; all of it is named.", ""),
    429: (
        Error,
        "The queue is full, or too many requests wait.",
        "The server is busy: 256 such requests wait already. Try again in a moment.",
    ),
    503: (
        Error,
        "The database cannot be used for a moment, or the server is closing.",
        "The database cannot be read (another program keeps it locked); try again.",
    ),
}


def answers(*statuses: int, **models: type[Error]) -> dict[int | str, dict[str, Any]]:
    """What OpenAPI says of refusals; a model by its status where it is not the usual one."""
    found: dict[int | str, dict[str, Any]] = {}
    for status in (*statuses, *map(int, models)):
        model, description, detail = _ERRORS[status]
        found[status] = {"model": models.get(str(status), model), "description": description}
        if model is Error:
            found[status]["content"] = {"application/json": {"example": {"detail": detail}}}
    return found
