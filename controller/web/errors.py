"""Error responses: status and body for each error."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from controller.domain.errors import (
    BodyTooLarge,
    ControllerError,
    EventsUnavailable,
    Forbidden,
    InvalidInput,
    LimitReached,
    LoopDetected,
    ModelNotFound,
    NoWorker,
    ReplicaBusy,
    ShuttingDown,
    StoreUnavailable,
    TooManyBodies,
    TooManyFollowers,
    TooManyForwards,
    Unauthorized,
    WorkerNotAllowed,
    WorkerUnreachable,
    WrongProtocol,
)
from controller.domain.headers import Headers
from controller.domain.request_ids import HEADER as REQUEST_ID
from controller.web.asgi.request_ids import identify
from controller.web.schemas import openai
from controller.web.schemas.fastchat import encode

_STATUS: Final[Mapping[type[ControllerError], int]] = {
    InvalidInput: 400,
    Unauthorized: 401,
    Forbidden: 403,
    BodyTooLarge: 413,
    WorkerNotAllowed: 400,
    WorkerUnreachable: 502,
    StoreUnavailable: 503,
    ReplicaBusy: 503,
    EventsUnavailable: 503,
    ModelNotFound: 404,
    WrongProtocol: 404,
    NoWorker: 503,
    LoopDetected: 508,
    ShuttingDown: 503,
    LimitReached: 429,
    TooManyBodies: 503,  # another replica may have room, so a load balancer should try there
    TooManyForwards: 503,
    TooManyFollowers: 503,
}


def status_of(error: ControllerError) -> int:
    """Return the HTTP status of an error, or 500 for an error that no route should raise."""
    return status_of_kind(type(error))


def status_of_kind(kind: type[ControllerError]) -> int:
    """Return the HTTP status of a kind of error, as status_of()."""
    return next((_STATUS[base] for base in kind.__mro__ if base in _STATUS), 500)


def retry_after(error: ControllerError) -> Headers:
    """Return the header that says when the client may try again, if a limit was reached."""
    return ((b"retry-after", b"%d" % error.retry_after),) if isinstance(error, LimitReached) else ()


def error_body(code: str, message: str) -> bytes:
    """Return the JSON body of an error response."""
    return encode({"error": {"code": code, "message": message}})


def error_text(code: str, message: str) -> bytes:
    """Return the body of an error response as one line of text, for clients that take any JSON body for a success."""
    return f"{code}: {' '.join(message.split())}\n".encode()


async def http_exception(request: Request, error: Exception) -> Response:
    """Return Starlette's own errors, such as an unknown route, in our format."""
    if not isinstance(error, HTTPException):
        raise error
    messages = {
        404: ("not_found", f"There is no route {request.url.path}."),
        405: ("method_not_allowed", f"{request.url.path} does not accept {request.method}."),
    }
    code, message = messages.get(error.status_code, ("http_error", error.detail))
    headers = {**(error.headers or {}), REQUEST_ID: identify(request.scope)}
    if "expect" in request.headers:
        # The client may never send the body, and the next request would be parsed as the body.
        headers["connection"] = "close"
    make_body = error_body
    if openai.is_openai_path(request.url.path):
        make_body = partial(openai.error_body, error.status_code)
    return Response(make_body(code, message), error.status_code, headers, "application/json")
