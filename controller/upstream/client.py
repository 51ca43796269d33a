"""Speaks to workers as FastChat's controller does. Nothing that a worker sends is trusted."""

import asyncio
import io
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from types import MappingProxyType
from typing import Final

import aiohttp

from controller.domain.errors import InvalidInput, StreamBroken, WorkerRefused, WorkerSilent, WorkerUnreachable
from controller.domain.worker import WorkerStatus
from controller.json_bodies import read_status
from controller.upstream.trust import trusted

_MAX_STATUS_BYTES: Final = 1024 * 1024
_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_MAX_REFUSAL_BYTES: Final = 64 * 1024
_MAX_PIECE: Final = 32 * 1024  # of an answer: a client that does not read holds up a few of them
_READ_AHEAD: Final = 32 * 1024
_MAX_AT_ONCE: Final = 256 * 1024  # of a request's body
_CONNECT_TIMEOUT: Final = 2.0  # seconds: time for one lost packet
_IDLE_FOR: Final = 4.0  # seconds; FastChat's workers close after 5, and a request might be on its way just then
_VANISHED_AFTER: Final = 10.0  # seconds without a sign of the other machine, not even that it got what was sent
# No compression: a small answer could unfold to any size, and a stream's frames would arrive late.
_HEADERS: Final[Mapping[str, str]] = {"Accept-Encoding": "identity", "User-Agent": "controller-cluster"}
_JSON: Final[Mapping[str, str]] = {"Content-Type": "application/json"}
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})
# ValueError: a name that the resolver or the URL parser will not have.
_UNREACHABLE: Final = (aiohttp.ClientError, OSError, ValueError)

_NO_CONNECTION: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError)


class WorkerClient:
    """An HTTP client for workers; create and close it in the running event loop.

    probe_timeout bounds a status call as a whole; worker_timeout bounds each silence within a stream. Seconds.
    """

    def __init__(self, probe_timeout: float, worker_timeout: float) -> None:
        self._probe_timeout = aiohttp.ClientTimeout(total=probe_timeout)
        connect_timeout = min(_CONNECT_TIMEOUT, worker_timeout)  # with the look-up of a name
        self._stream_timeout = aiohttp.ClientTimeout(total=None, connect=connect_timeout, sock_read=worker_timeout)
        self._ending = asyncio.Event()
        self._streams: set[aiohttp.StreamReader] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_FOR, socket_factory=_socket, ssl=trusted()),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
            read_bufsize=_READ_AHEAD,
        )

    def end_streams(self) -> None:
        """Break off all answers, those that have not begun too: each raises StreamBroken."""
        self._ending.set()
        for stream in self._streams:
            stream.set_exception(_shutting_down())

    @property
    def ending(self) -> bool:
        """Whether streams are broken off."""
        return self._ending.is_set()

    async def _unless_ending(self, request: Awaitable[aiohttp.ClientResponse]) -> aiohttp.ClientResponse:
        """The head of an answer, for which a busy worker may let us wait for long; unless streams are broken off."""
        answer = asyncio.ensure_future(request)
        ending = asyncio.ensure_future(self._ending.wait())
        taken = False
        try:
            await asyncio.wait((answer, ending), return_when=asyncio.FIRST_COMPLETED)
            if self._ending.is_set():
                raise _shutting_down()
            taken = True
            return answer.result()
        finally:
            ending.cancel()
            if not taken:
                answer.cancel()
                answer.add_done_callback(_discard)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def status(self, name: str, headers: Mapping[str, str] = NO_HEADERS) -> WorkerStatus:
        """What the worker says of itself (FastChat: `/worker_get_status`).

        Raises WorkerUnreachable for anything but a 200 with a status in it, in time and of a sane size. Redirects
        are not followed.
        """
        url = f"{name}/worker_get_status"
        try:
            async with self._session.post(
                url, headers=headers, timeout=self._probe_timeout, allow_redirects=False
            ) as response:
                if response.status != 200:
                    raise WorkerUnreachable(f"{url} answered {response.status} where 200 is expected.")
                body = await _read(response, _MAX_STATUS_BYTES)
            return read_status(body)
        except TimeoutError as error:
            raise WorkerUnreachable(f"{url} did not answer within {self._probe_timeout.total:g} s.") from error
        except InvalidInput as error:
            raise WorkerUnreachable(f"{url} answered with something that is no status: {_one_line(error)}") from error
        except _UNREACHABLE as error:
            raise WorkerUnreachable(f"{url} cannot be reached: {_one_line(error)}") from error

    async def ask(self, name: str, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> "WorkerAnswer":
        """Post a JSON body to a worker; its answer, of which the head is there, and which is to be closed.

        Raises WorkerUnreachable when no connection can be made, WorkerSilent and StreamBroken when no head comes that
        can be passed on.
        """
        url = name + path
        with _in_our_words(url):
            data = io.BytesIO(body) if len(body) > _MAX_AT_ONCE else body  # which aiohttp sends in parts
            request = self._session.post(
                url, data=data, headers={**headers, **_JSON}, timeout=self._stream_timeout, allow_redirects=False
            )
            response = await self._unless_ending(request)
        if not 200 <= response.status <= 599:
            response.close()
            raise StreamBroken(f"{url} answered {response.status}, which is no status of an answer.")
        self._streams.add(response.content)
        return WorkerAnswer(url, response, self._streams.discard)


class WorkerAnswer:
    """A worker's answer of which the body is still on its way. `forget` is told when it is closed."""

    def __init__(
        self, url: str, response: aiohttp.ClientResponse, forget: Callable[[aiohttp.StreamReader], None]
    ) -> None:
        self.url = url
        self.status = response.status
        told = response.headers.get("Content-Type", "application/json")
        # Whatever it is: an answer's head is latin-1, and has the bytes that came.
        self.content_type = told.encode("utf-8", "surrogateescape").decode("latin-1")
        self._response = response
        self._forget = forget

    def close(self) -> None:
        """Close the connection, unless all of the answer has come: then it is free for others already."""
        self._forget(self._response.content)
        self._response.close()

    async def refusal(self) -> WorkerRefused:
        """The error that this answer is. Raises as pieces()."""
        body = bytearray()
        async with aclosing(self.pieces()) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) >= _MAX_REFUSAL_BYTES:
                    break
        message = f"{self.url} answered {self.status}."
        return WorkerRefused(message, self.status, self.content_type, bytes(body[:_MAX_REFUSAL_BYTES]))

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes. Raises WorkerSilent or StreamBroken when it does not come to its end."""
        with _in_our_words(self.url):
            async for piece in self._response.content.iter_chunked(_MAX_PIECE):
                yield piece

    async def frames(self) -> AsyncGenerator[bytes]:
        """The body as it comes, in pieces of one or more whole frames, each of which ends in a NUL.

        A rest without one at the end of the body gets it (FastChat does the same). Raises WorkerSilent or StreamBroken
        when the body does not come to its end: then a frame that was begun is left out.
        """
        rest = bytearray()  # not by way of pieces(): each generator costs its share
        with _in_our_words(self.url):
            async for chunk in self._response.content.iter_chunked(_MAX_PIECE):
                end = chunk.rfind(b"\0") + 1
                if end == len(chunk) and not rest:
                    yield chunk
                elif end:
                    yield bytes(rest) + chunk[:end]
                    rest = bytearray(chunk[end:])
                else:
                    rest += chunk
                if len(rest) > _MAX_FRAME_BYTES:
                    raise StreamBroken(f"{self.url} sent a frame of more than {_MAX_FRAME_BYTES} bytes.")
        if rest:
            yield bytes(rest) + b"\0"


@contextmanager
def _in_our_words(url: str) -> Iterator[None]:
    try:
        yield
    except _NO_CONNECTION as error:
        raise WorkerUnreachable(f"{url} cannot be reached: {_one_line(error)}") from error
    except TimeoutError as error:
        raise WorkerSilent(f"{url} was silent for too long.") from error
    except _UNREACHABLE as error:
        raise StreamBroken(f"{url} broke off: {_one_line(error)}") from error


def _socket(address: aiohttp.AddrInfoType) -> socket.socket:
    """A socket that tells when the other machine has vanished, which else would be silence as of a busy worker."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, round(1000 * _VANISHED_AFTER))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, round(_VANISHED_AFTER / 2))
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, round(_VANISHED_AFTER / 4))
    return made


def _discard(answer: "asyncio.Future[aiohttp.ClientResponse]") -> None:
    """Close an answer that nobody takes."""
    if not answer.cancelled() and answer.exception() is None:
        answer.result().close()


def _shutting_down() -> aiohttp.ClientConnectionError:
    return aiohttp.ClientConnectionError("this replica is shutting down")


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            raise WorkerUnreachable(f"{response.url} answered with more than {limit} bytes.")
    return bytes(body)


def _one_line(error: BaseException) -> str:
    """An error for a log line: its text may have come from a worker."""
    return repr(str(error))[1:-1][:200] or type(error).__name__
