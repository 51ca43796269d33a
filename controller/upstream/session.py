"""HTTP sessions to other servers: connections that are kept, limits on heads, and what aiohttp leaves open.

aiohttp 3.14 reports a protocol error in a body to nobody who reads the body, takes a reset for the end of a body
without a length, and loses a head that comes together with garbage. AnswerProtocol closes these gaps.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage

from controller.upstream.trust import trusted

_IDLE_FOR: Final = 4.0  # seconds; FastChat's workers close after 5, and a request might be on its way just then
_RACE: Final = 2.0  # seconds: a kept connection that breaks later was not closed just as the request was sent
_VANISHED_AFTER: Final = 10.0  # TCP_USER_TIMEOUT: drop a connection whose peer acknowledges nothing for so long
_READ_AHEAD: Final = 32 * 1024
_PART: Final = 256 * 1024  # of a request's body
_MAX_LINE: Final = 64 * 1024
_MAX_HEADERS: Final = 512
_MAX_HEAD: Final = 512 * 1024  # with the informational answers before it
# No compression: a small answer could unfold to any size, and a stream's frames would arrive late.
_HEADERS: Final[Mapping[str, str]] = {
    "Accept-Encoding": "identity",
    "User-Agent": "controller-cluster",
}
_JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


class KeptConnectionBroke(aiohttp.ClientConnectionError):
    """A connection that was used before broke before any byte of the answer: the server had closed it."""


class Body(aiohttp.payload.Payload):
    """The body of a request, sent in parts.

    moved_at: when the last part was handed over, by time.monotonic(). Before the first: when it was made.
    """

    _autoclose = True
    _value: bytes

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._size = len(value)
        self.moved_at = time.monotonic()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the body."""
        for start in range(0, len(self._value), _PART):
            if start:
                await asyncio.sleep(0)  # a large body must not hold up the others
            self.moved_at = time.monotonic()
            await writer.write(self._value[start : start + _PART])


class Session:
    """An HTTP client for JSON requests by POST. Create and close it in the running event loop."""

    def __init__(self) -> None:
        trust = trusted()
        self._kept = _open(keepalive_timeout=_IDLE_FOR, ssl=trust)
        self._fresh = _open(force_close=True, ssl=trust)

    async def close(self) -> None:
        """Close all connections."""
        await self._kept.close()
        await self._fresh.close()

    async def post(
        self, url: str, body: Body | None, headers: Mapping[str, str], connect_timeout: float | None = None
    ) -> aiohttp.ClientResponse:
        """Send a request and return the answer when its head is there. Redirects are not followed.

        Only the connection has a time limit here, in seconds and with the look-up of the name.

        A server may close a kept connection just as a request is sent on it, or send garbage behind its last answer.
        The request is then sent once more, on a connection of its own.
        """
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout)
        sent = headers if body is None else {**headers, **_JSON}
        try:
            return await self._kept.post(url, data=body, headers=sent, timeout=timeout, allow_redirects=False)
        except KeptConnectionBroke:
            return await self._fresh.post(url, data=body, headers=sent, timeout=timeout, allow_redirects=False)


def _open(**options: Any) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=_Connector(limit=0, socket_factory=_socket, **options),
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        auto_decompress=False,
        read_bufsize=_READ_AHEAD,
        max_line_size=_MAX_LINE,
        max_field_size=_MAX_LINE,
        max_headers=_MAX_HEADERS,
        request_class=_Request,
        response_class=_Response,
    )


class AnswerProtocol(ResponseHandler):
    """One connection, on which requests are answered one after the other.

    requests: how many were begun.
    heard: True if an answer has begun to come for the last of them. Garbage is no answer: the server may have sent it
        behind its last one.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.requests = 0
        self._begun_at = 0.0
        self.heard = False
        self._awaits_head = False
        self._head_size = 0

    @property
    def begun_on_kept_connection(self) -> bool:
        """Whether the request that is under way was begun just now, and others before it."""
        return self.requests > 1 and self._loop.time() - self._begun_at < _RACE

    def set_response_params(self, **params: Any) -> None:
        """Begin a request."""
        self.requests += 1
        self._begun_at = self._loop.time()
        self.heard = False
        self._awaits_head = True
        self._head_size = 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        if self._awaits_head and data:
            self._head_received(data)
        else:
            super().data_received(data)

    def _head_received(self, data: bytes) -> None:
        """Parse a head by itself: an error in what comes with it must not lose it."""
        self.heard = self.heard or b"HTTP/".startswith(data[:5])
        self._head_size += len(data)
        start = 0
        while self._awaits_head and start < len(data) and self.exception() is None:
            end = data.find(b"\r\n\r\n", start)
            end = len(data) if end < 0 else end + 4
            super().data_received(data[start:end])
            start = end
        if start < len(data) and self.exception() is None:
            super().data_received(data[start:])
        if self._awaits_head and self._head_size > _MAX_HEAD:
            self._fail(HttpProcessingError(code=400, message=f"a head of more than {_MAX_HEAD} bytes"))

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Take an answer whose head is there. One that was not asked for must not answer the next request."""
        if not self._awaits_head:
            self._fail(HttpProcessingError(code=400, message="an answer without a request"))
            return
        code = data[0].code
        self._awaits_head = 100 <= code <= 199 and code != 101
        super().feed_data(data, size)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Go on reading. aiohttp calls this after each read, and would run its parser on nothing each time."""
        if self._reading_paused:
            super().resume_reading(resume_parser)

    def _fail(self, error: HttpProcessingError) -> None:
        if self.transport is not None:
            self.transport.close()
        self.set_exception(error)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        """End the answer that is under way, also for the reader of its body."""
        super().set_exception(exc, exc_cause)
        message = exc.message if isinstance(exc, HttpProcessingError) else str(exc)
        self._break_body(f"not the rest of an answer: {message}", exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End the answer that is under way. After a reset it is not whole, even if its head gave no length."""
        if exc is not None:
            self._break_body(f"connection lost: {exc}", exc)
        super().connection_lost(exc)

    def _break_body(self, message: str, cause: BaseException) -> None:
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            error = aiohttp.ClientPayloadError(message)
            error.__cause__ = cause
            body.set_exception(error)


class _Connector(aiohttp.TCPConnector):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        make: Callable[..., ResponseHandler] = AnswerProtocol
        self._factory = partial(make, loop=self._loop)


class _Request(ClientRequest):
    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        protocol = conn.protocol
        try:
            return await super().send(conn)
        except (aiohttp.ClientConnectionError, OSError) as error:
            if _is_race(protocol):
                raise KeptConnectionBroke(f"a kept connection broke: {error}") from error
            raise


class _Response(aiohttp.ClientResponse):
    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        try:
            return await super().start(connection)
        except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError, OSError) as error:
            if _is_race(protocol):
                raise KeptConnectionBroke(f"a kept connection broke: {error}") from error
            raise


def _is_race(protocol: ResponseHandler | None) -> bool:
    """Return True if a kept connection broke shortly after a request was begun on it, and without an answer."""
    return isinstance(protocol, AnswerProtocol) and protocol.begun_on_kept_connection and not protocol.heard


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Make a socket that tells when the other machine has vanished, which else would look like a busy worker."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * _VANISHED_AFTER))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(_VANISHED_AFTER / 2))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, round(_VANISHED_AFTER / 4))
    return made
