"""HTTP sessions to other servers: keep-alive connections, limits on response heads, and workarounds for aiohttp.

A session to workers connects only to addresses that --worker-allow allows. A name is looked up once for a connection.
The addresses found are checked, and the connection uses one of them.

ResponseProtocol works around three faults of aiohttp 3.14. A protocol error in a body does not reach the reader of the
body. A reset counts as the end of a body without a length. A head is lost if it arrives together with garbage.
"""

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter, ResolveResult
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.helpers import _EXC_SENTINEL
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.tracing import Trace
from yarl import URL

from controller.domain.errors import WorkerNotAllowed
from controller.security.worker_addresses import WorkerAddresses
from controller.upstream.trust import trusted

# Seconds. FastChat's workers close an idle connection after 5 s, and a request must not be sent at that moment.
_KEEP_ALIVE: Final = 4.0
# Seconds. If a kept connection breaks within this time after a request was sent, the server may have closed it before.
# Our side learns of that within one round trip. A server that breaks the connection later may have run the request.
_RACE_WINDOW: Final = 0.05
_PEER_TIMEOUT: Final = 10.0  # seconds: a connection is dropped if its peer acknowledges nothing for this long
_READ_AHEAD: Final = 32 * 1024
_PART: Final = 256 * 1024  # bytes of a request's body that are sent at once
_MAX_LINE: Final = 64 * 1024
_MAX_HEADERS: Final = 512
_MAX_HEAD: Final = 512 * 1024  # bytes, including the informational responses (1xx) before the head
# No compression: a small response could decompress to any size, and a stream's frames would arrive late.
_HEADERS: Final[Mapping[str, str]] = {
    "Accept-Encoding": "identity",
    "User-Agent": "controller-cluster",
}
_JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


class KeepAliveRace(aiohttp.ClientConnectionError):
    """A reused connection broke before any byte of the response. The server had probably closed it as idle."""


class Body(aiohttp.payload.Payload):
    """The body of a request, sent in parts.

    progress_at: time.monotonic() when the latest part was handed to the connection, or when the body was created.
    """

    _autoclose = True
    _value: bytes

    def __init__(self, value: bytes) -> None:
        super().__init__(value)
        self._size = len(value)
        self.progress_at = time.monotonic()

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the body as text."""
        return self._value.decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Send the body."""
        for start in range(0, len(self._value), _PART):
            if start:
                await asyncio.sleep(0)  # a large body must not delay other requests
            self.progress_at = time.monotonic()
            await writer.write(self._value[start : start + _PART])


def location(url: str) -> tuple[str, int]:
    """Return the host and the port that a connection for a URL goes to. Raises ValueError if it is not a URL."""
    parsed = URL(url)
    return parsed.raw_host or "", parsed.port or 0


class Session:
    """An HTTP client for JSON requests. Create and close it in the running event loop.

    addresses: the rule for the addresses that it connects to. None allows all.
    """

    def __init__(self, addresses: WorkerAddresses | None = None) -> None:
        trust = trusted()
        self._connector = _Connector(addresses, keepalive_timeout=_KEEP_ALIVE, ssl=trust)
        self._kept = _open(self._connector)
        self._fresh = _open(_Connector(addresses, force_close=True, ssl=trust))

    async def close(self) -> None:
        """Close all connections."""
        await self._kept.close()
        await self._fresh.close()

    async def resolve(self, url: str) -> None:
        """Look up and check the addresses of a server, as a connection does. The result is kept for some seconds.

        Raises WorkerNotAllowed, and OSError or ValueError if the host has no address.
        """
        await self._connector.resolve(*location(url))

    async def post(
        self, url: str, body: Body | None, headers: Mapping[str, str], connect_timeout: float | None = None
    ) -> aiohttp.ClientResponse:
        """Send a POST request and return the response when its head has arrived. Redirects are not followed.

        A server may close a kept connection just as a request is sent on it, or send garbage after its last response.
        The request is then sent once more, on a new connection.

        connect_timeout: for the name lookup and the connection, in seconds. The rest of the request has no timeout.

        Raises WorkerNotAllowed if the server has an address that is not allowed. Nothing was sent then.
        """
        sent = headers if body is None else {**headers, **_JSON}
        return await self._send("POST", url, sent, body, connect_timeout)

    async def post_as_is(
        self, url: str, body: Body, headers: Mapping[str, str], connect_timeout: float | None = None
    ) -> aiohttp.ClientResponse:
        """Send a body of any type, to a URL that is encoded already. Otherwise like post()."""
        return await self._send("POST", URL(url, encoded=True), headers, body, connect_timeout)

    async def get(self, url: str, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        """Send a GET request. Otherwise like post()."""
        return await self._send("GET", url, headers)

    async def _send(
        self,
        method: str,
        url: str | URL,
        headers: Mapping[str, str],
        body: Body | None = None,
        connect_timeout: float | None = None,
    ) -> aiohttp.ClientResponse:
        timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout)
        try:
            return await self._kept.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            )
        except KeepAliveRace:
            return await self._fresh.request(
                method, url, data=body, headers=headers, timeout=timeout, allow_redirects=False
            )


def _open(connector: aiohttp.TCPConnector) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=connector,
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

    @property
    def begun_on_kept_connection(self) -> bool:
        """True if the running request was sent just now, on a connection that earlier requests have used."""
        return self.requests > 1 and self._loop.time() - self._begun_at < _RACE_WINDOW

    def set_response_params(self, **params: Any) -> None:
        """Begin a request."""
        self.requests += 1
        self._begun_at = self._loop.time()
        self.response_begun = False
        self._awaits_head = True
        self._head_size = 0
        super().set_response_params(**params)

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
        code = data[0].code
        self._awaits_head = 100 <= code <= 199 and code != 101
        super().feed_data(data, size)

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Resume reading. aiohttp calls this after each read, and would run its parser without data each time."""
        if self._reading_paused:
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


class _Connector(aiohttp.TCPConnector):
    def __init__(self, addresses: WorkerAddresses | None, **options: Any) -> None:
        super().__init__(limit=0, socket_factory=_socket, **options)
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


class _Request(ClientRequest):
    async def send(self, conn: Connection) -> aiohttp.ClientResponse:
        protocol = conn.protocol
        try:
            return await super().send(conn)
        except (aiohttp.ClientConnectionError, OSError) as error:
            if _is_race(protocol):
                raise KeepAliveRace(f"a kept connection broke: {error}") from error
            raise


class _Response(aiohttp.ClientResponse):
    async def start(self, connection: Connection) -> aiohttp.ClientResponse:
        protocol = connection.protocol
        try:
            return await super().start(connection)
        except (aiohttp.ClientConnectionError, aiohttp.ClientResponseError, OSError) as error:
            if _is_race(protocol):
                raise KeepAliveRace(f"a kept connection broke: {error}") from error
            raise


def _is_race(protocol: ResponseHandler | None) -> bool:
    """Return True if a kept connection broke shortly after a request was sent on it, before any response."""
    return isinstance(protocol, ResponseProtocol) and protocol.begun_on_kept_connection and not protocol.response_begun


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
