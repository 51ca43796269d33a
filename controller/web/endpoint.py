"""A route that takes a JSON body and gives JSON, as a bare ASGI application.

Starlette's Request and Response cost about as much as the rest of a dispatch. The three hot routes do without them, and
so do the other routes with a body.
"""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final, NamedTuple, cast

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from controller.domain import way
from controller.domain.errors import BodyTooLarge, ControllerError
from controller.web.errors import error_body, error_text, status_of

logger = logging.getLogger("controller.web")

MAX_BODY: Final = 1024 * 1024  # a registration with as many and as long model names as are taken
MAX_FORWARDED_BODY: Final = 32 * 1024 * 1024  # a prompt with images in it
_WAY_HEADER: Final = way.HEADER.encode()
_OLD_REQUESTS: Final = re.compile(rb"python-requests/(0|1|2\.(1?\d|2[0-6]))\.")


Headers = tuple[tuple[bytes, bytes], ...]


class Answer(NamedTuple):
    """An HTTP answer: a body, a status, further headers, and the type of the body."""

    body: bytes
    status: int = 200
    headers: Headers = ()
    content_type: bytes = b"application/json"


def degraded(snapshot_age: float | None) -> Headers:
    """The header of an answer that was found in a snapshot so many seconds old; none if the store has said it."""
    return () if snapshot_age is None else ((b"x-controller-degraded", b"%.1f" % snapshot_age),)


class _BodyEndpoint(ABC):
    """An ASGI application that reads a request's body, of at most `limit` bytes, and sends the answer to it.

    A ControllerError becomes the answer that stands for it; a mistake of ours, a 500 and a traceback in the log.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, body: bytes) -> Answer | Response | None:
        """Answer a request; None if nobody is there any more to be answered."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await read_body(scope, receive, self._limit)
            if body is None:
                return None
            answer = await self._answer(scope, receive, body)
            del body  # an answer may take long, and is for many at once
        except ControllerError as error:
            # Where the connection is kept, a body is passed over up to its end, so that its sender comes to read the
            # answer. But a sender that waits for "100 Continue" will not send it after this; its next request would be
            # taken for the body.
            expects = isinstance(error, BodyTooLarge) and any(name == b"expect" for name, _ in scope["headers"])
            headers = ((b"connection", b"close"),) if expects else ()
            answer = self._error(scope, error.code, str(error), status_of(error), headers)
        except Exception:  # whatever it is, the client gets an answer, and the log a traceback
            logger.exception("A request to %s failed; this is a bug.", scope["path"])
            answer = self._error(scope, "internal_error", "The controller has a bug; its log has the details.", 500)
        if answer is None:
            return None
        if isinstance(answer, Response):
            return await answer(scope, receive, send)
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (b"content-type", answer.content_type),
                    (b"content-length", b"%d" % len(answer.body)),
                    *answer.headers,
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer.body})
        return None

    def _error(self, _: Scope, code: str, message: str, status: int, headers: Headers = ()) -> Answer:
        return Answer(error_body(code, message), status, headers)


class Endpoint(_BodyEndpoint):
    """Hands the body to `handle`."""

    def __init__(self, handle: Callable[[bytes], Awaitable[Answer]], limit: int = MAX_BODY) -> None:
        super().__init__(limit)
        self._handle = handle

    async def _answer(self, _: Scope, __: Receive, body: bytes) -> Answer:
        return await self._handle(body)


class HeartbeatEndpoint(Endpoint):
    """Hands the body to `handle`. An error is a line of text, because JSON without `exist` ends workers' heartbeats.

    LLaVA's worker and FastChat's up to 0.2.20 catch only `requests.exceptions.RequestException`, and no KeyError. Text
    raises JSONDecodeError, which is a RequestException since requests 2.27. Older versions raise a ValueError, which
    FastChat's newer `except` clause does not catch either. They get a body that they cannot decode, which raises
    ContentDecodingError.
    """

    def _error(self, scope: Scope, code: str, message: str, status: int, headers: Headers = ()) -> Answer:
        headers = (*headers, (b"x-controller-error", code.encode()))
        if any(name == b"user-agent" and _OLD_REQUESTS.match(value) for name, value in scope["headers"]):
            headers = (*headers, (b"content-encoding", b"gzip"))  # untrue: decoding the body fails
        return Answer(error_text(code, message), status, headers, b"text/plain; charset=utf-8")


class WayEndpoint(_BodyEndpoint):
    """Hands body and way (controller/domain/way.py) of a request to `handle`."""

    def __init__(self, handle: Callable[[bytes, str], Awaitable[Answer]]) -> None:
        super().__init__(MAX_BODY)
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, body: bytes) -> Answer:
        return await self._handle(body, _way(scope))


class ForwardEndpoint(_BodyEndpoint):
    """Hands path, body and way of a request to `handle`, which is cancelled when the client goes away."""

    def __init__(self, handle: Callable[[str, bytes, str], Awaitable[Response]]) -> None:
        super().__init__(MAX_FORWARDED_BODY)
        self._handle = handle

    async def _answer(self, scope: Scope, receive: Receive, body: bytes) -> Response | None:
        async with _while_connected(receive):
            return await self._handle(scope["path"], body, _way(scope))
        return None


@asynccontextmanager
async def _while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancels what is done in it when the client goes away, and then ends it without an error."""
    task = cast("asyncio.Task[object]", asyncio.current_task())
    gone = False

    async def listen() -> None:
        nonlocal gone
        while (await receive())["type"] != "http.disconnect":
            pass
        gone = True
        task.cancel()

    listening = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        if not gone or task.uncancel():  # it was somebody else who cancelled, too
            raise
    finally:
        listening.cancel()


def _way(scope: Scope) -> str:
    return ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == _WAY_HEADER)


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body of a request, or None if the client went away.

    Raises BodyTooLarge: at once if the request announces a longer body, or as soon as more has come.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise _too_large(limit)
    message = await receive()
    if not message.get("more_body"):  # the usual case, without a copy
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    return await _read_in_parts(message, receive, limit)


async def _read_in_parts(message: Message, receive: Receive, limit: int) -> bytes | None:
    body = bytearray()
    while message["type"] == "http.request":
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body"):
            return bytes(body)
        message = await receive()
    return None


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is longer than the {limit} bytes that this route takes.")
