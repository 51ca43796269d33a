"""Errors as HTTP: `{"error": {"code", "message"}}`, or a line of text, with the status that fits."""

from collections.abc import Mapping
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from controller.domain.errors import (
    BodyTooLarge,
    ControllerError,
    InvalidInput,
    LoopDetected,
    ReplicaBusy,
    ShuttingDown,
    StoreUnavailable,
    WorkerUnreachable,
)
from controller.web.wire import encode

_STATUS: Final[Mapping[type[ControllerError], int]] = {
    InvalidInput: 400,
    BodyTooLarge: 413,
    WorkerUnreachable: 502,
    StoreUnavailable: 503,
    ReplicaBusy: 503,
    LoopDetected: 508,
    ShuttingDown: 503,
}


def status_of(error: ControllerError) -> int:
    """The HTTP status of an error; 500 for one that no route should let through."""
    return next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)


def error_body(code: str, message: str) -> bytes:
    """The body of every answer that tells of an error."""
    return encode({"error": {"code": code, "message": message}})


def error_text(code: str, message: str) -> bytes:
    """The body of an error answer where JSON would be mistaken for a good answer: one line, not JSON."""
    return f"{code}: {' '.join(message.split())}\n".encode()


async def http_exception(request: Request, error: Exception) -> Response:
    """Starlette's own errors, such as an unknown route, in our form."""
    if not isinstance(error, HTTPException):
        raise error
    messages = {
        404: ("not_found", f"There is no route {request.url.path}."),
        405: ("method_not_allowed", f"{request.url.path} does not take {request.method}."),
    }
    code, message = messages.get(error.status_code, ("http_error", error.detail))
    headers = dict(error.headers or {})
    if "expect" in request.headers:
        headers["connection"] = "close"  # its sender waits before the body; the next request would be taken for it
    return Response(error_body(code, message), error.status_code, headers, "application/json")
