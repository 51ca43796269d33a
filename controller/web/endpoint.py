"""A route that takes a JSON body and gives JSON, as a bare ASGI application.

Starlette's Request and Response cost about as much as all the rest of a dispatch; the two hot routes go without
them, and the others that take a body do the same, so that there is one way.
"""

import logging
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.types import Message, Receive, Scope, Send

from controller.domain.errors import ControllerError
from controller.web.errors import BodyTooLarge, error_body, status_of

logger = logging.getLogger("controller.web")

MAX_BODY: Final = 1024 * 1024  # a registration with as many and as long model names as are taken


class Answer(NamedTuple):
    """An HTTP answer: JSON, a status and further headers."""

    body: bytes
    status: int = 200
    headers: tuple[tuple[bytes, bytes], ...] = ()


class Endpoint:
    """An ASGI application that hands the body of a request to `handle` and sends its answer.

    A ControllerError becomes the answer that stands for it, anything else a 500 with a traceback in the log.
    """

    def __init__(self, handle: Callable[[bytes], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        try:
            body = await read_body(scope, receive, MAX_BODY)
            if body is None:
                return
            answer = await self._handle(body)
        except ControllerError as error:
            answer = Answer(error_body(error.code, str(error)), status_of(error))
        except Exception:
            logger.exception("A request to %s failed; this is a bug.", scope["path"])
            answer = Answer(error_body("internal_error", "The controller has a bug; its log has the details."), 500)
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % len(answer.body)),
                    *answer.headers,
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer.body})


async def read_body(scope: Scope, receive: Receive, limit: int) -> bytes | None:
    """The whole body of a request, or None if the client went away. Raises BodyTooLarge before it is all read."""
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        return body
    return await _read_long_body(message, scope, receive, limit)


async def _read_long_body(message: Message, scope: Scope, receive: Receive, limit: int) -> bytes | None:
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise _too_large(limit)
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
