"""Endpoints: bare ASGI applications that read a request's body and send the response of a handler.

Starlette's Request and Response cost about as much as the rest of a dispatch, so no route uses Request.
"""

import asyncio
import logging
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Final, NamedTuple, cast
from urllib.parse import parse_qsl

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from controller.domain.errors import BodyTooLarge, ControllerError, Forbidden, TooManyBodies, Unauthorized
from controller.domain.headers import Headers, trace_context
from controller.domain.hops import HEADER
from controller.domain.request_ids import HEADER as REQUEST_ID
from controller.security.access import Caller, Guard
from controller.security.networks import Networks, caller_address
from controller.security.tokens import Plane
from controller.web.asgi.body import read_body
from controller.web.asgi.limits import SMALL_BODY, RequestLimits
from controller.web.asgi.request_ids import header, identify
from controller.web.errors import error_body, error_text, retry_after, status_of

logger = logging.getLogger("controller.web")

MAX_BODY: Final = 1024 * 1024  # enough for a registration with the most and longest model names that are allowed
MAX_FORWARDED_BODY: Final = 32 * 1024 * 1024  # enough for a prompt with images
_CHALLENGE: Final = (b"www-authenticate", b'Basic realm="controller", charset="UTF-8"')
_LISTEN_AFTER: Final = 0.05  # seconds
_NO_PROXIES: Final = Networks()
_HOPS_HEADER: Final = HEADER.encode()
_OLD_REQUESTS: Final = re.compile(rb"python-requests/(0|1|2\.(1?\d|2[0-6]))\.")


class Answer(NamedTuple):
    """An HTTP response: body, status, further headers and the type of the body."""

    body: bytes
    status: int = 200
    headers: Headers = ()
    content_type: bytes = b"application/json"


def degraded(snapshot_age: float | None) -> Headers:
    """Return the header that tells a client the age of the snapshot, in seconds.

    Returns no header if `snapshot_age` is None, which means that the value came from Redis.
    """
    return () if snapshot_age is None else ((b"x-controller-degraded", b"%.1f" % snapshot_age),)


class BodyEndpoint(ABC):
    """Reads a request's body of at most `max_body` bytes, and sends the response.

    guard: decides before the body is read. None if all callers may use the route.
    limits: those of the replica. None if there are none.
    hot: the route is on the hot path. Its requests get an id only if they carry one, or if they fail.
    refuses_other_sites: requests that a page of another site has sent from a browser are refused.
    reads_api_key: as in Guard.

    A ControllerError becomes an error response. Any other exception is a bug: the client gets a 500, and the log gets
    the traceback.
    """

    max_body: int = MAX_BODY
    guard: Guard | None = None
    limits: RequestLimits | None = None
    hot = False
    refuses_other_sites = False
    reads_api_key = False

    @abstractmethod
    async def _answer(self, scope: Scope, receive: Receive, body: bytes) -> Answer | Response | None:
        """Return the response, or None if the client has disconnected."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if not self.hot:
            identify(scope)
        try:
            if self.guard is not None:
                self.guard.admit(scope)
            if self.refuses_other_sites:
                refuse_other_sites(scope)
            limits = self.limits
            body = await read_body(scope, receive, self.max_body, limits.bodies if limits else None)
            if body is None:
                return None
            size = len(body)
            try:
                answer = await self._answer(scope, receive, body)
                del body  # sending a stream takes long, and thousands of bodies would stay in memory
            finally:
                if limits and size > SMALL_BODY:
                    limits.bodies.remove(size)
        except ControllerError as error:
            identify(scope)
            # On a kept-alive connection, uvicorn discards the rest of the body so that the client reads the response.
            # With `Expect: 100-continue` the body never arrives, and the next request would be parsed as the body, so
            # close the connection instead.
            unread = isinstance(error, BodyTooLarge | TooManyBodies | Unauthorized | Forbidden)
            expects = unread and any(name == b"expect" for name, _ in scope["headers"])
            headers = (*retry_after(error), *(((b"connection", b"close"),) if expects else ()))
            if self.limits:
                self.limits.count(error)
            if isinstance(error, Unauthorized):
                headers = (*headers, _CHALLENGE)
            if isinstance(error, Unauthorized | Forbidden) and self.guard is not None:
                self.guard.record_refusal(scope, error)
            answer = self._error(scope, error.code, str(error), status_of(error), headers)
        except Exception:
            request_id = identify(scope)
            logger.exception(
                "A request to %(path)s failed because of a bug. The client gets a 500.", {"path": scope["path"]}
            )
            answer = self._error(
                scope,
                "internal_error",
                "The request failed because of a bug in the controller. Its log has the details, with the request id "
                f"{request_id}.",
                500,
            )
        if answer is None:
            return None
        if isinstance(answer, Response):
            answer.raw_headers.extend(header(scope))
            return await answer(scope, receive, send)
        await send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [
                    (b"content-type", answer.content_type),
                    (b"content-length", b"%d" % len(answer.body)),
                    *answer.headers,
                    *(header(scope) if "request_id" in scope else ()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": answer.body})
        return None

    def _caller(self, scope: Scope) -> Caller:
        """Return the caller of a request. Without a guard, each caller counts as an admin."""
        return self.guard.caller(scope) if self.guard else Caller(Plane.ADMIN, caller_address(scope, _NO_PROXIES))

    def _error(self, _: Scope, code: str, message: str, status: int, headers: Headers = ()) -> Answer:
        return Answer(error_body(code, message), status, headers)


class Endpoint(BodyEndpoint):
    """Passes the body to `handle`."""

    def __init__(self, handle: Callable[[bytes], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def _answer(self, _: Scope, __: Receive, body: bytes) -> Answer:
        return await self._handle(body)


class TokenEndpoint(BodyEndpoint):
    """Passes the body and the name of the caller's token to `handle`. The name is "" without a token."""

    def __init__(self, handle: Callable[[bytes, str], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, body: bytes) -> Answer:
        return await self._handle(body, self.guard.token_name(scope) if self.guard else "")


class CallerEndpoint(BodyEndpoint):
    """Passes the body and the caller to `handle`."""

    def __init__(self, handle: Callable[[bytes, Caller], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, body: bytes) -> Answer:
        return await self._handle(body, self._caller(scope))


class QueryEndpoint(BodyEndpoint):
    """Passes the query and the headers of a request to `handle`. Of repeated names, the last counts.

    `handle` also gets a function that returns whether the request would still be admitted. The token of a request that
    takes long may be revoked meanwhile.
    """

    def __init__(
        self,
        handle: Callable[[Mapping[str, str], Mapping[str, str], Callable[[], bool]], Awaitable[Answer | Response]],
    ) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, __: bytes) -> Answer | Response:
        query = dict(parse_qsl(scope["query_string"].decode("latin-1")))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        return await self._handle(query, headers, partial(self._is_admitted, scope))

    def _is_admitted(self, scope: Scope) -> bool:
        try:
            if self.guard is not None:
                self.guard.admit(scope)
        except (Unauthorized, Forbidden):
            return False
        return True


class FileEndpoint(BodyEndpoint):
    """Passes the part `file` of the path, or the whole path if the route has no such part, and If-None-Match."""

    def __init__(self, handle: Callable[[str, bytes], Awaitable[Answer | Response]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, __: bytes) -> Answer | Response:
        known = next((value for name, value in scope["headers"] if name == b"if-none-match"), b"")
        return await self._handle(scope["path_params"].get("file", scope["path"]), known)


class HeartbeatEndpoint(CallerEndpoint):
    """Passes the body and the caller to `handle`. Errors are plain text.

    JSON without `exist` ends the heartbeats of workers.

    LLaVA's worker and FastChat's up to 0.2.20 catch only `requests.exceptions.RequestException`, and no KeyError. Plain
    text makes `requests` raise JSONDecodeError, which is a RequestException since requests 2.27. Older versions of
    `requests` raise a ValueError, which no version of these workers catches. Such a client gets a body that it cannot
    decompress. It then raises ContentDecodingError, which is a RequestException.
    """

    def _error(self, scope: Scope, code: str, message: str, status: int, headers: Headers = ()) -> Answer:
        headers = (*headers, (b"x-controller-error", code.encode()))
        if any(name == b"user-agent" and _OLD_REQUESTS.match(value) for name, value in scope["headers"]):
            headers = (*headers, (b"content-encoding", b"gzip"))  # false on purpose, so that decompression fails
        return Answer(error_text(code, message), status, headers, b"text/plain; charset=utf-8")


def refuse_other_sites(scope: Scope) -> None:
    """Raise Forbidden if a page of another site has sent a request from a browser.

    The browser may be allowed to do what the page is not: by its address, or by a password that it remembers. Browsers
    say in Sec-Fetch-Site where a request comes from, but not to a host with plain HTTP. With every POST they send
    Origin. Programs send neither.
    """
    headers = dict(scope["headers"])
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        is_own = site in (b"same-origin", b"none")
    else:
        is_own = origin is None or origin.lower().partition(b"://")[2] == headers.get(b"host", b"").lower()
    if not is_own:
        raise Forbidden("A page of another site has sent this request. Nothing was done.")


class HopEndpoint(BodyEndpoint):
    """Passes the body and the hop list (controller/domain/hops.py) of a request to `handle`."""

    def __init__(self, handle: Callable[[bytes, str], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, body: bytes) -> Answer:
        return await self._handle(body, hops_of(scope))


class RegistrationEndpoint(BodyEndpoint):
    """Passes the body, the hop list and the caller of a request to `handle`. Limits the rate of each address."""

    def __init__(self, handle: Callable[[bytes, str, Caller], Awaitable[Answer]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, _: Receive, body: bytes) -> Answer:
        caller = self._caller(scope)
        if self.limits:
            await self.limits.registrations.admit(caller.address)
        return await self._handle(body, hops_of(scope), caller)


class ForwardEndpoint(BodyEndpoint):
    """Passes path, body, hop list and passed headers of a request to `handle`.

    The passed headers go to the worker as well: the request id and the trace context. `handle` is cancelled when the
    client disconnects.
    """

    max_body = MAX_FORWARDED_BODY

    def __init__(self, handle: Callable[[str, bytes, str, Mapping[str, str]], Awaitable[Response]]) -> None:
        self._handle = handle

    async def _answer(self, scope: Scope, receive: Receive, body: bytes) -> Response | None:
        passed = {REQUEST_ID: identify(scope), **trace_context(scope["headers"])}
        async with while_connected(receive):
            return await self._handle(scope["path"], body, hops_of(scope), passed)
        return None


class while_connected:  # noqa: N801 - a context manager, as in contextlib
    """Cancel the block when the client disconnects, without raising CancelledError to the caller.

    Most blocks end before _LISTEN_AFTER, and so without the cost of a task that listens.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._task = cast("asyncio.Task[object]", asyncio.current_task())
        self._listener: asyncio.Task[None] | None = None
        self._disconnected = False

    async def __aenter__(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_LISTEN_AFTER, self._listen)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> bool:
        self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        # False if another caller has cancelled the task as well
        return kind is asyncio.CancelledError and self._disconnected and not self._task.uncancel()

    def _listen(self) -> None:
        self._listener = asyncio.create_task(self._cancel_on_disconnect())

    async def _cancel_on_disconnect(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._disconnected = True
        self._task.cancel()


def hops_of(scope: Scope) -> str:
    """Return the hop list of a request (controller/domain/hops.py). "" if it has none."""
    return ",".join(value.decode("latin-1") for name, value in scope["headers"] if name == _HOPS_HEADER)
