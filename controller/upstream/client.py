"""Speaks to workers as FastChat's controller does. Nothing that a worker sends is trusted."""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from types import MappingProxyType
from typing import Final

import aiohttp

from controller.domain.errors import InvalidInput, StreamBroken, WorkerUnreachable
from controller.domain.worker import WorkerStatus
from controller.json_bodies import read_status
from controller.upstream.answer import GRACE, UNREACHABLE, WorkerAnswer, in_our_words, one_line
from controller.upstream.decoding import CODINGS, DecodedBody
from controller.upstream.session import Body, Session

_MAX_STATUS_BYTES: Final = 1024 * 1024
_CONNECT_TIMEOUT: Final = 2.0  # seconds: time for one lost packet
NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class WorkerClient:
    """An HTTP client for workers; create and close it in the running event loop.

    probe_timeout bounds a status call as a whole; worker_timeout bounds each silence of a worker: until the head of its
    answer is there, and in each read of the body. Seconds.
    """

    def __init__(self, probe_timeout: float, worker_timeout: float) -> None:
        self._probe_timeout = probe_timeout
        self._worker_timeout = worker_timeout
        self._connect_timeout = min(_CONNECT_TIMEOUT, worker_timeout)
        self._ending = asyncio.Event()
        self._answers: set[WorkerAnswer] = set()
        self._session = Session()

    def end_streams(self) -> None:
        """Break off all answers, those that have not begun too: each raises StreamBroken."""
        self._ending.set()
        for answer in self._answers:
            answer.end(_shutting_down())

    @property
    def ending(self) -> bool:
        """Whether streams are broken off."""
        return self._ending.is_set()

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
            async with asyncio.timeout(self._probe_timeout):
                body = await self._status_body(url, headers)
            return read_status(body)
        except TimeoutError as error:
            raise WorkerUnreachable(f"{url} did not answer within {self._probe_timeout:g} s.") from error
        except InvalidInput as error:
            raise WorkerUnreachable(f"{url} answered with something that is no status: {one_line(error)}") from error
        except UNREACHABLE as error:
            raise WorkerUnreachable(f"{url} cannot be reached: {one_line(error)}") from error

    async def _status_body(self, url: str, headers: Mapping[str, str]) -> bytes:
        body = bytearray()
        async with await self._session.post(url, None, headers) as response:
            if response.status != 200:
                raise WorkerUnreachable(f"{url} answered {response.status} where 200 is expected.")
            read = response.content.readany
            coding = response.headers.get("Content-Encoding", "").strip().lower().encode("latin-1", "replace")
            if coding in CODINGS:
                read = DecodedBody(coding, read, _MAX_STATUS_BYTES).read
            while chunk := await read():
                body += chunk
                if len(body) > _MAX_STATUS_BYTES:
                    raise WorkerUnreachable(f"{url} answered with more than {_MAX_STATUS_BYTES} bytes.")
        return bytes(body)

    async def ask(self, name: str, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> WorkerAnswer:
        """Post a JSON body to a worker; its answer, of which the head is there, and which is to be closed.

        Raises WorkerUnreachable when no connection can be made, WorkerSilent and StreamBroken when no head comes that
        can be passed on.
        """
        url = name + path
        with in_our_words(url):
            sent = Body(body)
            sent.moved_at += self._connect_timeout  # until it is sent: the connection has a limit of its own
            response = await self._head(self._session.post(url, sent, headers, self._connect_timeout), sent)
        if not 200 <= response.status <= 599:
            response.close()
            raise StreamBroken(f"{url} answered {response.status}, which is no status of an answer.")
        coding = response.headers.get("Transfer-Encoding", "chunked").strip().lower()
        if coding not in ("chunked", "identity"):
            response.close()
            raise StreamBroken(f"{url} answered with Transfer-Encoding {coding[:100]!r}, which was not asked for.")
        answer = WorkerAnswer(url, response, self._worker_timeout, self._answers.discard)
        self._answers.add(answer)
        return answer

    async def _head(self, request: Awaitable[aiohttp.ClientResponse], body: Body) -> aiohttp.ClientResponse:
        """Wait for the head of an answer, unless streams are broken off.

        A busy worker may take long. The time counts from the last part of the body that it took.
        """
        answer = asyncio.ensure_future(request)
        ending = asyncio.ensure_future(self._ending.wait())
        taken = False
        suspected = 0.0
        try:
            while not answer.done() and not ending.done():
                left = body.moved_at + self._worker_timeout - time.monotonic()
                if left <= 0 and suspected == body.moved_at:
                    raise TimeoutError
                if left <= 0:
                    suspected, left = body.moved_at, GRACE
                left = min(left, self._worker_timeout)  # the time for the connection may not be used up
                await asyncio.wait((answer, ending), timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if self._ending.is_set():
                raise _shutting_down()
            taken = True
            return answer.result()
        finally:
            ending.cancel()
            if not taken:
                answer.cancel()
                answer.add_done_callback(_discard)


def _discard(answer: "asyncio.Future[aiohttp.ClientResponse]") -> None:
    """Close an answer that nobody takes."""
    if not answer.cancelled() and answer.exception() is None:
        answer.result().close()


def _shutting_down() -> aiohttp.ClientConnectionError:
    return aiohttp.ClientConnectionError("this replica is shutting down")
