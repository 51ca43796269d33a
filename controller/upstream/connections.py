"""The connections of HTTP sessions: allowed addresses, limits on response heads, and workarounds for aiohttp.

A name is looked up once for a connection. The addresses found are checked, and the connection uses one of them.

ResponseProtocol works around three faults of aiohttp 3.14. A protocol error in a body does not reach the reader of the
body. A reset counts as the end of a body without a length. A head is lost if it arrives together with garbage.
"""

import asyncio
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.abc import ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.tracing import Trace

from controller.domain.errors import WorkerNotAllowed
from controller.security.worker_addresses import WorkerAddresses
from controller.upstream.lookups import Resolver

# Seconds. FastChat's workers close an idle connection after 5 s, and a request must not be sent at that moment.
KEEP_ALIVE: Final = 4.0
# Seconds. If a kept connection breaks within this time after a request was sent, the server may have closed it before.
# Our side learns of that within one round trip. A server that breaks the connection later may have run the request.
_RACE_WINDOW: Final = 0.05
_PEER_TIMEOUT: Final = 10.0  # seconds: a connection is dropped if its peer acknowledges nothing for this long
_READ_AHEAD: Final = 32 * 1024
_MAX_LINE: Final = 64 * 1024
_MAX_HEADERS: Final = 512
_MAX_HEAD: Final = 512 * 1024  # bytes, including the informational responses (1xx) before the head


class ResponseProtocol(ResponseHandler):
    """One connection, which serves requests one after the other.

    requests: number of requests that were sent.
    response_begun: True if the response to the last request has begun to arrive. Garbage does not count, because the
        server may have sent it after the previous response.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.requests = 0
        self._begun_at = 0.0
        self.response_begun = False
        self._awaits_head = False
        self._head_size = 0
        self._was_paused = False

    @property
    def begun_on_kept_connection(self) -> bool:
        """True if the running request was sent just now, on a connection that earlier requests have used."""
        return self.requests > 1 and self._loop.time() - self._begun_at < _RACE_WINDOW

    def begin(self) -> None:
        """Begin a request."""
        self.requests += 1
        self._begun_at = self._loop.time()
        self.response_begun = False
        self._awaits_head = True
        self._head_size = 0
        self._was_paused = False
        self.set_response_params(
            read_until_eof=True,
            auto_decompress=False,
            read_bufsize=_READ_AHEAD,
            max_line_size=_MAX_LINE,
            max_field_size=_MAX_LINE,
            max_headers=_MAX_HEADERS,
        )

    async def head(self) -> tuple[RawResponseMessage, aiohttp.StreamReader]:
        """Return the head of the response, and its body as it arrives. Informational responses are passed over."""
        while True:
            head, content = await self.read()
            if not _is_informational(head.code):
                return head, content

    def data_received(self, data: bytes) -> None:
        """Parse received data."""
        if self._awaits_head and data:
            self._head_received(data)
        else:
            super().data_received(data)

    def _head_received(self, data: bytes) -> None:
        """Parse a head separately, so that an error in the data behind it does not lose the head."""
        self.response_begun = self.response_begun or b"HTTP/".startswith(data[:5])
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
            self._fail(HttpProcessingError(code=400, message=f"the head has more than {_MAX_HEAD} bytes"))

    def feed_data(self, data: tuple[RawResponseMessage, aiohttp.StreamReader], size: int = 0) -> None:
        """Accept a complete head. Fail if no request awaits it: it could be taken for the next response."""
        if not self._awaits_head:
            self._fail(HttpProcessingError(code=400, message="the server sent a response without a request"))
            return
        self._awaits_head = _is_informational(data[0].code)
        super().feed_data(data, size)

    def pause_reading(self) -> None:
        """Pause reading, because the reader of the body is slow."""
        self._was_paused = True
        super().pause_reading()

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume reading. aiohttp calls this after each read, and would run its parser without data each time.

        Once reading was paused, this is necessary. The parser may pause only when the next data arrive, and then it
        keeps them until it is run again.
        """
        if self._was_paused:
            super().resume_reading(resume_parser)

    def _fail(self, error: HttpProcessingError) -> None:
        if self.transport is not None:
            self.transport.close()
        self.set_exception(error)

    def set_exception(self, exc: BaseException, exc_cause: BaseException = _EXC_SENTINEL) -> None:
        """Fail the current response, also for the reader of its body."""
        super().set_exception(exc, exc_cause)
        message = exc.message if isinstance(exc, HttpProcessingError) else str(exc)
        self._break_body(f"protocol error: {message}", exc)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Fail the current response. After a reset, the body is incomplete even if its head gave no length."""
        if exc is not None:
            self._break_body(f"connection lost: {exc}", exc)
        super().connection_lost(exc)

    def _break_body(self, message: str, cause: BaseException) -> None:
        body = self._payload
        if body is not None and not body.is_eof() and body.exception() is None:
            error = aiohttp.ClientPayloadError(message)
            error.__cause__ = cause
            body.set_exception(error)


class Connector(aiohttp.TCPConnector):
    """Opens and keeps connections. addresses: as in Session. options: those of aiohttp's connector.

    resolver: looks up names. Other connectors may share it, and the caller closes it.
    """

    def __init__(self, addresses: WorkerAddresses | None, resolver: Resolver, **options: Any) -> None:
        super().__init__(limit=0, socket_factory=_socket, resolver=resolver, **options)
        self._addresses = addresses
        make: Callable[..., ResponseHandler] = ResponseProtocol
        self._factory = partial(make, loop=self._loop)

    async def _resolve_host(self, host: str, port: int, traces: Sequence[Trace] | None = None) -> list[ResolveResult]:
        """Return the addresses that a connection to a host may use. aiohttp calls this for each new connection.

        A resolver is not enough: aiohttp does not call it for IP addresses.
        """
        try:
            return await self.resolve(host, port, traces)
        except WorkerNotAllowed as error:
            if self._addresses is not None:
                self._addresses.log_refusal(host, port, error)
            raise

    async def resolve(self, host: str, port: int, traces: Sequence[Trace] | None = None) -> list[ResolveResult]:
        """Return the addresses that a connection to a host may use. Raises WorkerNotAllowed."""
        found = await super()._resolve_host(host, port, traces)
        if self._addresses is None:
            return found
        usable = self._addresses.usable(host, port, [result["host"] for result in found])
        return [result for result in found if result["host"] in usable]


def _is_informational(status: int) -> bool:
    return 100 <= status <= 199 and status != 101


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """Create a socket that detects when its peer is gone. Otherwise a lost peer would look like a busy worker."""
    family, kind, protocol, _, _ = address
    created = socket.socket(family, kind, protocol)
    created.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        created.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * _PEER_TIMEOUT))
        created.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(_PEER_TIMEOUT / 2))
        created.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, round(_PEER_TIMEOUT / 4))
    return created
