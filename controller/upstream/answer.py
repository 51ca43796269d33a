"""A worker's answer whose head is there: its headers, and its body as it comes. Nothing in it is trusted."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from math import inf
from typing import Final

import aiohttp

from controller.domain.errors import StreamBroken, WorkerRefused, WorkerSilent, WorkerUnreachable
from controller.domain.headers import coding_of, decoded, end_to_end, is_encoded, without_body, without_length
from controller.upstream.decoding import CODINGS, DecodedBody

_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_MAX_REFUSAL_BYTES: Final = 64 * 1024
_MAX_PIECE: Final = 32 * 1024  # of an answer: a client that does not read holds up a few of them

GRACE: Final = 0.02  # seconds: if this process was stopped, it must read what has come before it calls a worker silent
# ValueError: a name that the resolver or the URL parser will not have.
UNREACHABLE: Final = (aiohttp.ClientError, OSError, ValueError)
_NO_CONNECTION: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError)


class WorkerAnswer:
    """A worker's answer of which the body is still on its way. `forget` is called when it is closed.

    A read of the body that takes longer than `timeout` seconds raises WorkerSilent. Time in which nobody reads, because
    the client does not, is not counted.

    A body that came compressed is decompressed: the request did not allow it, so the client may not understand it, and
    no frame or error could be added to it. headers describe the decompressed body.
    """

    def __init__(
        self,
        url: str,
        response: aiohttp.ClientResponse,
        timeout: float,
        forget: Callable[["WorkerAnswer"], None],
    ) -> None:
        self.url = url
        self.status = response.status
        self.headers = end_to_end(response.raw_headers, response.status)
        self._read = self._receive
        coding = coding_of(self.headers)
        if coding in CODINGS:
            self.headers = decoded(self.headers)
            self._read = DecodedBody(coding, self._receive, _MAX_PIECE).read
        self.encoded = is_encoded(self.headers)
        self._response = response
        self._content = response.content
        self._timeout = timeout
        self._forget = forget
        # One timer for all reads, which compares times: a timer for each read would cost more than the read.
        self._loop = asyncio.get_running_loop()
        self._reads_since = inf
        self._suspected = 0.0
        self._timer = self._loop.call_later(timeout, self._check_time)

    def close(self) -> None:
        """Close the connection, unless all of the answer has come: then it is free for others already."""
        self._timer.cancel()
        self._forget(self)
        self._response.close()

    def end(self, error: Exception) -> None:
        """Let the read that is under way, or the next one, raise an error."""
        self._content.set_exception(error)

    async def refusal(self) -> WorkerRefused:
        """Return the error that this answer is. Raises as pieces(); the time limit is for the body as a whole."""
        body = bytearray()
        with in_our_words(self.url):
            async with asyncio.timeout(self._timeout), aclosing(self.pieces()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > _MAX_REFUSAL_BYTES:
                        break
        message = f"{self.url} answered {self.status}."
        if self.encoded and len(body) > _MAX_REFUSAL_BYTES:  # half of a compressed text is worth nothing
            return WorkerRefused(message, self.status, without_body(self.headers), b"")
        return WorkerRefused(message, self.status, without_length(self.headers), bytes(body[:_MAX_REFUSAL_BYTES]))

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the body as it comes. Raises WorkerSilent or StreamBroken when it does not come to its end."""
        with in_our_words(self.url):
            while piece := await self._read():
                yield piece

    async def frames(self) -> AsyncGenerator[bytes]:
        """Yield the body as it comes, in pieces of one or more whole frames, each of which ends in a NUL.

        A rest without one at the end of the body gets it (FastChat does the same). Raises WorkerSilent or StreamBroken
        when the body does not come to its end: then a frame that was begun is left out.
        """
        rest = bytearray()  # not by way of pieces(): each generator costs its share
        with in_our_words(self.url):
            while chunk := await self._read():
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

    async def _receive(self) -> bytes:
        self._reads_since = self._loop.time()
        try:
            piece = await self._content.read(_MAX_PIECE)
        except (aiohttp.ClientError, OSError):
            if piece := self._unread():
                return piece
            raise
        self._reads_since = inf
        return piece

    def _unread(self) -> bytes:
        """Return what had come before the answer broke: aiohttp's reader gives nothing out after an error."""
        error = self._content.exception()
        if error is None:
            return b""
        self._content.set_exception(None)  # type: ignore[arg-type]
        try:
            return self._content.read_nowait()
        finally:
            self._content.set_exception(error)

    def _check_time(self) -> None:
        left = min(self._reads_since + self._timeout - self._loop.time(), self._timeout)
        if left <= 0 and self._suspected != self._reads_since:
            self._suspected = self._reads_since
            left = GRACE
        if left <= 0:
            self.end(TimeoutError())
        else:
            self._timer = self._loop.call_later(left, self._check_time)


@contextmanager
def in_our_words(url: str) -> Iterator[None]:
    """Turn aiohttp's errors into WorkerUnreachable, WorkerSilent and StreamBroken."""
    try:
        yield
    except _NO_CONNECTION as error:
        raise WorkerUnreachable(f"{url} cannot be reached: {one_line(error)}") from error
    except TimeoutError as error:
        raise WorkerSilent(f"{url} was silent for too long.") from error
    except UNREACHABLE as error:
        raise StreamBroken(f"{url} broke off: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error for a log line: its text may have come from a worker."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before the head of an answer was complete"  # aiohttp prints its half
    if isinstance(error, aiohttp.ClientResponseError):
        return repr(error.message.strip().partition("\n")[0])[1:-1][:200].rstrip(":")
    return repr(str(error))[1:-1][:200] or type(error).__name__
