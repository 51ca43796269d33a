"""HTTP sessions to other servers: requests on kept connections, with one retry on a new connection.

A session to workers connects only to addresses that --worker-allow allows.
"""

import asyncio
import contextlib
import time
from collections.abc import Mapping
from functools import cache
from typing import Final, NamedTuple, Self, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.http_writer import _serialize_headers
from multidict import CIMultiDict
from yarl import URL

from controller.security.worker_addresses import WorkerAddresses
from controller.upstream.connections import KEEP_ALIVE, Connector, ResponseProtocol
from controller.upstream.lookups import Resolver
from controller.upstream.trust import trusted

_PART: Final = 256 * 1024  # bytes of a request's body that are sent at once
_MAX_SERVERS: Final = 1_000  # whose addresses and headers are cached
# No compression: a small response could decompress to any size, and a stream's frames would arrive late.
_HEADERS: Final[Mapping[str, str]] = {
    "Accept-Encoding": "identity",
    "User-Agent": "controller-cluster",
}
_JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}


class KeepAliveRace(aiohttp.ClientConnectionError):
    """A reused connection broke just after a request was sent. The server had probably closed it as idle."""


class Body:
    """The body of a request, sent in parts.

    progress_at: time.monotonic() when the latest part was handed to the connection, or when the body was created.
    """

    def __init__(self, value: bytes) -> None:
        self.value = value
        self.progress_at = time.monotonic()

    async def send_rest(self, protocol: ResponseHandler) -> None:
        """Send the parts after the first one, as fast as the server receives them."""
        with contextlib.suppress(aiohttp.ClientError, OSError):  # the call that waits for the response raises the error
            for start in range(_PART, len(self.value), _PART):
                await asyncio.sleep(0)  # a large body must not delay other requests
                await protocol._drain_helper()
                if protocol.transport is None:
                    return
                self.progress_at = time.monotonic()
                protocol.transport.write(self.value[start : start + _PART])


def location(url: str) -> tuple[str, int]:
    """Return the host and the port that a connection for a URL goes to. Raises ValueError if it is not a URL."""
    parsed = URL(url)
    return parsed.raw_host or "", parsed.port or 0


class Response:
    """A response of which the head has arrived.

    The connection is kept for another request at the end of the body. Close a response that is not read to its end.
    """

    def __init__(
        self,
        connection: Connection,
        head: RawResponseMessage,
        content: aiohttp.StreamReader,
        sending: "asyncio.Task[None] | None",
    ) -> None:
        self.status = head.code
        self.headers = head.headers
        self.raw_headers = head.raw_headers
        self.content = content
        self._connection = connection
        self._sending = sending
        content.on_eof(self._release)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, unless the response is complete. Reads of the body then raise ClientConnectionError."""
        if self._sending is not None:
            self._sending.cancel()
        self._connection.close()
        if self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientConnectionError("Connection closed"))

    def _release(self) -> None:
        if self._sending is None or self._sending.done():
            self._connection.release()
        else:  # the server responded before it received the whole body
            self._sending.cancel()
            self._connection.close()


class _Server(NamedTuple):
    """The values that all requests to one server share.

    request: tells aiohttp's connector where to connect.
    headers: the default headers of a request: name in lower case, name and value.
    """

    request: ClientRequest
    headers: tuple[tuple[str, str, str], ...]


class Session:
    """An HTTP client. Create and close it in the running event loop.

    It uses the connections and the parser of aiohttp. It does without aiohttp's ClientSession, whose requests cost much
    more processor time.

    addresses: the rule for the addresses that it connects to. None allows all.
    """

    def __init__(self, addresses: WorkerAddresses | None = None) -> None:
        trust = trusted()
        self._resolver = Resolver()
        self._kept = Connector(addresses, self._resolver, keepalive_timeout=KEEP_ALIVE, ssl=trust)
        self._fresh = Connector(addresses, self._resolver, force_close=True, ssl=trust)
        self._servers: dict[URL, _Server] = {}  # by origin

    async def close(self) -> None:
        """Close all connections."""
        await self._kept.close()
        await self._fresh.close()
        await self._resolver.close()

    async def resolve(self, url: str) -> None:
        """Look up and check the addresses of a server, as a connection does. The result is kept for some seconds.

        Raises WorkerNotAllowed, and OSError or ValueError if the host has no address.
        """
        await self._kept.resolve(*location(url))

    async def post(
        self, url: str, body: Body | None, headers: Mapping[str, str], connect_timeout: float | None = None
    ) -> Response:
        """Send a POST request and return the response when its head has arrived. Redirects are not followed.

        A server may close a kept connection just as a request is sent on it, or send garbage after its last response.
        The request is then sent once more, on a new connection.

        connect_timeout: for the name lookup and the connection, in seconds. The rest of the request has no timeout.

        Raises WorkerNotAllowed if the server has an address that is not allowed. Nothing was sent then.
        """
        sent = headers if body is None else {**headers, **_JSON}
        return await self._send("POST", URL(url), sent, body or Body(b""), connect_timeout)

    async def post_as_is(
        self, url: str, body: Body, headers: Mapping[str, str], connect_timeout: float | None = None
    ) -> Response:
        """Send a body of any type, to a URL that is encoded already. Otherwise like post()."""
        return await self._send("POST", URL(url, encoded=True), headers, body, connect_timeout)

    async def get(self, url: str, headers: Mapping[str, str]) -> Response:
        """Send a GET request. Otherwise like post()."""
        return await self._send("GET", URL(url), headers)

    async def _send(
        self,
        method: str,
        url: URL,
        headers: Mapping[str, str],
        body: Body | None = None,
        connect_timeout: float | None = None,
    ) -> Response:
        server = self._server(url)
        given = {name.lower() for name in headers}
        sent = {name: value for lowered, name, value in server.headers if lowered not in given}
        sent.update(headers)
        if body is not None:
            sent["Content-Length"] = str(len(body.value))
        request_line = f"{method} {url.raw_path_qs} HTTP/1.1"
        limits = _limits(connect_timeout)
        try:
            return await self._exchange(self._kept, server, _head(request_line, sent), body, limits)
        except KeepAliveRace:
            sent["Connection"] = "close"
            return await self._exchange(self._fresh, server, _head(request_line, sent), body, limits)

    def _server(self, url: URL) -> _Server:
        origin = url.origin()
        known = self._servers.get(origin)
        if known is None:
            if url.scheme not in ("http", "https"):
                raise aiohttp.NonHttpUrlClientError(url)
            if len(self._servers) >= _MAX_SERVERS:
                del self._servers[next(iter(self._servers))]
            request = ClientRequest("GET", origin, headers=_HEADERS, loop=asyncio.get_running_loop())
            headers = tuple((name.lower(), name, value) for name, value in request.headers.items())
            known = self._servers[origin] = _Server(request, headers)
        return known

    async def _exchange(
        self, connector: Connector, server: _Server, head: bytes, body: Body | None, limits: aiohttp.ClientTimeout
    ) -> Response:
        try:
            connection = await connector.connect(server.request, [], limits)
        except TimeoutError as error:
            raise aiohttp.ConnectionTimeoutError(f"Connection timeout to host {server.request.url}") from error
        protocol = cast("ResponseProtocol", connection.protocol)
        sending = None
        try:
            protocol.begin()
            if protocol.transport is None or protocol.transport.is_closing():
                raise aiohttp.ClientConnectionResetError("Cannot write to closing transport")  # noqa: TRY301 - it may be a race
            if body is not None:
                body.progress_at = time.monotonic()
            protocol.transport.write(head + body.value[:_PART] if body is not None else head)
            if body is not None and len(body.value) > _PART:
                sending = asyncio.create_task(body.send_rest(protocol))
            return Response(connection, *await protocol.head(), sending)
        except BaseException as error:
            is_race = protocol.begun_on_kept_connection and not protocol.response_begun
            if sending is not None:
                sending.cancel()
            connection.close()
            if is_race and isinstance(error, aiohttp.ClientConnectionError | HttpProcessingError | OSError):
                raise KeepAliveRace(f"a kept connection broke: {error}") from error
            if isinstance(error, HttpProcessingError):
                info = server.request.request_info
                raise aiohttp.ClientResponseError(info, (), status=error.code, message=error.message) from error
            raise


def _head(request_line: str, headers: Mapping[str, str]) -> bytes:
    """Return the head of a request. Raises ValueError if a control character is in it."""
    return _serialize_headers(request_line, cast("CIMultiDict[str]", headers))  # it uses only items()


@cache
def _limits(connect_timeout: float | None) -> aiohttp.ClientTimeout:
    return aiohttp.ClientTimeout(total=None, connect=connect_timeout)
