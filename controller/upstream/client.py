"""Speaks to workers as FastChat's controller does. Nothing that a worker sends is trusted."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Mapping
from typing import Final

import aiohttp
import msgspec

from controller.domain.errors import InvalidInput, StreamBroken, WorkerUnreachable
from controller.domain.worker import WorkerStatus

_MAX_STATUS_BYTES: Final = 1024 * 1024
_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_CONNECT_TIMEOUT: Final = 5.0
# No compression: a small answer could unfold to any size, and a stream's frames would arrive late.
_HEADERS: Final[Mapping[str, str]] = {"Accept-Encoding": "identity", "User-Agent": "controller-cluster"}
# ValueError: a name that the resolver or the URL parser will not have.
_UNREACHABLE: Final = (aiohttp.ClientError, OSError, ValueError)

_NO_CONNECTION: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError)


class _Status(msgspec.Struct):
    model_names: list[str]
    speed: int | float
    queue_length: int
    capacity: int | None = None


class WorkerClient:
    """An HTTP client for workers; create and close it in the running event loop.

    probe_timeout bounds a status call as a whole; worker_timeout bounds each silence within a stream. Seconds.
    """

    def __init__(self, probe_timeout: float, worker_timeout: float) -> None:
        self._probe_timeout = aiohttp.ClientTimeout(total=probe_timeout)
        self._stream_timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=min(_CONNECT_TIMEOUT, worker_timeout), sock_read=worker_timeout
        )
        self._ending = asyncio.Event()
        self._streams: set[aiohttp.StreamReader] = set()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            auto_decompress=False,
        )

    def end_streams(self) -> None:
        """Break off all streams, those that wait for their first frame too: each raises StreamBroken."""
        self._ending.set()
        for stream in self._streams:
            stream.set_exception(_shutting_down())

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

    async def status(self, name: str) -> WorkerStatus:
        """What the worker says of itself (FastChat: `/worker_get_status`).

        Raises WorkerUnreachable for anything but a 200 with a status in it, in time and of a sane size. Redirects
        are not followed.
        """
        url = f"{name}/worker_get_status"
        try:
            async with self._session.post(url, timeout=self._probe_timeout, allow_redirects=False) as response:
                if response.status != 200:
                    raise WorkerUnreachable(f"{url} answered {response.status} where 200 is expected.")
                body = await _read(response, _MAX_STATUS_BYTES)
            told = msgspec.json.decode(body, type=_Status)
            return WorkerStatus(tuple(told.model_names), told.speed, told.queue_length, told.capacity)
        except TimeoutError as error:
            raise WorkerUnreachable(f"{url} did not answer within {self._probe_timeout.total:g} s.") from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, InvalidInput) as error:
            raise WorkerUnreachable(f"{url} answered with something that is no status: {_one_line(error)}") from error
        except _UNREACHABLE as error:
            raise WorkerUnreachable(f"{url} cannot be reached: {_one_line(error)}") from error

    async def stream(self, name: str, body: bytes) -> AsyncGenerator[bytes]:
        """The frames of a worker's answer to `/worker_generate_stream`, as they come.

        Each piece is one or more whole frames, each ending in a NUL; a rest without one at the end of the stream
        gets it (FastChat does the same). Raises WorkerUnreachable when no connection can be made; StreamBroken when
        the worker answers anything but 200, goes silent, or breaks off: then a frame that was begun is left out.
        """
        url = f"{name}/worker_generate_stream"
        rest = bytearray()
        headers = {"Content-Type": "application/json"}
        try:
            request = self._session.post(
                url, data=body, headers=headers, timeout=self._stream_timeout, allow_redirects=False
            )
            async with await self._unless_ending(request) as response:
                if response.status != 200:
                    raise StreamBroken(f"{url} answered {response.status} where 200 is expected.")
                stream = response.content
                self._streams.add(stream)
                try:
                    async for chunk in stream.iter_any():
                        end = chunk.rfind(b"\0") + 1
                        if end:
                            yield bytes(rest) + chunk[:end]
                            rest = bytearray(chunk[end:])
                        else:
                            rest += chunk
                        if len(rest) > _MAX_FRAME_BYTES:
                            raise StreamBroken(f"{url} sent a frame of more than {_MAX_FRAME_BYTES} bytes.")
                finally:
                    self._streams.discard(stream)
        except _NO_CONNECTION as error:
            raise WorkerUnreachable(f"{url} cannot be reached: {_one_line(error)}") from error
        except TimeoutError as error:
            raise StreamBroken(f"{url} was silent for too long.") from error
        except _UNREACHABLE as error:
            raise StreamBroken(f"{url} broke off: {_one_line(error)}") from error
        if rest:
            yield bytes(rest) + b"\0"


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
