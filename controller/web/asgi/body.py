"""Reads the bodies of requests, within the limits of a route and of the replica."""

from typing import Final

from starlette.types import Message, Receive, Scope

from controller.domain.errors import BodyTooLarge
from controller.domain.request_ids import HEADER as REQUEST_ID
from controller.web.asgi.limits import SMALL_BODY, BodyMemory
from controller.web.asgi.request_ids import identify

_REQUEST_ID_HEADER: Final = REQUEST_ID.encode()


async def read_body(scope: Scope, receive: Receive, limit: int, memory: BodyMemory | None = None) -> bytes | None:
    """Return the whole body of a request, or None if the client has disconnected.

    If the request has an id in a header, its id is set. If the body has more than SMALL_BODY bytes, they are counted in
    `memory`, and the caller removes them.

    Raises BodyTooLarge before it reads if the Content-Length is too large, or once too many bytes have arrived. Raises
    TooManyBodies if there is no memory for the body.
    """
    for name, value in scope["headers"]:
        if name == b"content-length" and int(value) > limit:
            raise _too_large(limit)
        if name == _REQUEST_ID_HEADER:  # in this loop, because a second one would slow down each dispatch
            identify(scope)
    message = await receive()
    if not message.get("more_body"):  # almost all bodies arrive in one part, which needs no copy
        if message["type"] != "http.request":
            return None
        body: bytes = message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if memory and len(body) > SMALL_BODY:
            memory.add(len(body))
        return body
    return await _read_in_parts(message, receive, limit, memory or BodyMemory())


async def _read_in_parts(message: Message, receive: Receive, limit: int, memory: BodyMemory) -> bytes | None:
    body = bytearray()
    counted = 0
    try:
        while message["type"] == "http.request":
            body += message.get("body", b"")
            if len(body) > limit:
                raise _too_large(limit)
            if len(body) > SMALL_BODY:
                memory.add(len(body) - counted)
                counted = len(body)
            if not message.get("more_body"):
                counted = 0  # the caller removes them
                return bytes(body)
            message = await receive()
        return None
    finally:
        memory.remove(counted)


def _too_large(limit: int) -> BodyTooLarge:
    return BodyTooLarge(f"The body is too long: this route accepts at most {limit} bytes. Nothing was done.")
