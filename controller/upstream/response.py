"""A worker's response, read after its head has arrived. Its content is not trusted."""

import asyncio
import errno
import os
import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from math import inf
from types import TracebackType
from typing import Final, NamedTuple

import aiohttp

from controller.domain.errors import StreamBroken, WorkerRefused, WorkerSilent, WorkerUnreachable
from controller.domain.headers import (
    content_coding,
    end_to_end,
    is_encoded,
    without_body,
    without_coding,
    without_length,
)
from controller.upstream.decoding import CODINGS, DecodedBody
from controller.upstream.session import Response

_MAX_FRAME_BYTES: Final = 16 * 1024 * 1024
_MAX_REFUSAL_BYTES: Final = 64 * 1024
_MAX_PIECE: Final = 32 * 1024  # bytes: a client that does not read keeps a few pieces in memory

# Seconds. After this process was stopped, it reads the data that arrived meanwhile before it calls a worker silent.
GRACE_PERIOD: Final = 0.02
FIRST_BYTE: Final = "--first-byte-timeout"
# ValueError: the resolver or the URL parser rejects the host name.
UNREACHABLE: Final = (aiohttp.ClientError, OSError, ValueError)
_NO_CONNECTION: Final = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ValueError)


class ReadRules(NamedTuple):
    """The way in which the body of a response is read.

    timeout: for each read of the body, in seconds. A slow client does not make its worker look silent, because the
        time between two reads does not count.
    first_timeout: for the first read, in seconds. `inf` for no limit, None for `timeout`.
    first_setting: what sets first_timeout, for the error.
    decompresses: a compressed body is decompressed: the request did not allow compression, so the client may not
        understand it, and no frame or error could be appended. The headers describe the decompressed body.
    """

    timeout: float
    first_timeout: float | None = None
    first_setting: str = FIRST_BYTE
    decompresses: bool = True


class WorkerResponse:
    """A worker's response, of which the head has arrived.

    on_close: called with this response when it is closed.
    """

    def __init__(
        self,
        url: str,
        response: Response,
        rules: ReadRules,
        on_close: Callable[["WorkerResponse"], None],
    ) -> None:
        self.url = url
        self.status = response.status
        self.headers = end_to_end(response.raw_headers, response.status)
        self._read = self._receive
        coding = content_coding(self.headers)
        if rules.decompresses and coding in CODINGS:
            self.headers = without_coding(self.headers)
            self._read = DecodedBody(coding, self._receive, _MAX_PIECE).read
        self.encoded = is_encoded(self.headers)
        self._response = response
        self._content = response.content
        self._timeout = rules.timeout
        self._limit = rules.timeout if rules.first_timeout is None else rules.first_timeout  # of the running read
        self._first_setting = rules.first_setting
        self._on_close = on_close
        # One timer serves all reads and compares times. A timer per read would cost more than the read itself.
        self._loop = asyncio.get_running_loop()
        self._reading_since = inf
        self._grace_used_by = 0.0  # start of the read that got the grace period
        self._timer: asyncio.TimerHandle | None = None
        self._start_timer(self._limit)

    def close(self) -> None:
        """Close the connection. If the response is complete, the connection is already free for another request."""
        self._stop_timer()
        self._on_close(self)
        self._response.close()

    def fail(self, error: Exception) -> None:
        """Raise an error in the running read, or in the next one."""
        self._content.set_exception(error)

    async def refusal(self) -> WorkerRefused:
        """Return the error that this response stands for. Raises as pieces(). The timeout is for the whole body."""
        body = bytearray()
        with upstream_errors(self.url):
            async with asyncio.timeout(self._timeout), aclosing(self.pieces()) as pieces:
                async for piece in pieces:
                    body += piece
                    if len(body) > _MAX_REFUSAL_BYTES:
                        break
        message = f"{self.url} returned status {self.status}."
        if self.encoded and len(body) > _MAX_REFUSAL_BYTES:  # an encoded body cannot be decoded without its end
            return WorkerRefused(message, self.status, without_body(self.headers), b"")
        return WorkerRefused(message, self.status, without_length(self.headers), bytes(body[:_MAX_REFUSAL_BYTES]))

    async def pieces(self) -> AsyncGenerator[bytes]:
        """Yield the body as it arrives. Raises WorkerSilent or StreamBroken if the body is incomplete."""
        with upstream_errors(self.url):
            while piece := await self._read():
                yield piece

    async def frames(self) -> AsyncGenerator[bytes]:
        """Yield the body in pieces of one or more whole frames, each of which ends in a NUL.

        A body that ends without a NUL gets one, as in FastChat. Raises WorkerSilent or StreamBroken if the body is
        incomplete. The incomplete frame is dropped.
        """
        rest = bytearray()
        with upstream_errors(self.url):
            while chunk := await self._read():  # without pieces(), because a nested generator costs time per chunk
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
        self._reading_since = self._loop.time()
        try:
            piece = await self._content.read(_MAX_PIECE)
        except (aiohttp.ClientError, OSError):
            if piece := self._unread():
                return piece
            raise
        self._reading_since = inf
        if self._limit != self._timeout:
            self._stop_timer()
            self._limit = self._timeout
            if not self._content.at_eof():
                self._start_timer(self._limit)
        return piece

    def _start_timer(self, seconds: float) -> None:
        if seconds != inf:
            self._timer = self._loop.call_later(seconds, self._check_time)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _unread(self) -> bytes:
        """Return the data that arrived before an error. After an error, aiohttp's reader returns no data."""
        error = self._content.exception()
        if error is None:
            return b""
        self._content.set_exception(None)  # type: ignore[arg-type]
        try:
            return self._content.read_nowait()
        finally:
            self._content.set_exception(error)

    def _check_time(self) -> None:
        left = min(self._reading_since + self._limit - self._loop.time(), self._limit)
        if left <= 0 and self._grace_used_by != self._reading_since:
            self._grace_used_by = self._reading_since
            left = GRACE_PERIOD
        if left <= 0:
            self.fail(TimeoutError("" if self._limit == self._timeout else self._first_setting))
        else:
            self._start_timer(left)


class upstream_errors:  # noqa: N801 - a context manager, without contextlib because it is entered for each response
    """Turn aiohttp's errors into WorkerUnreachable, WorkerSilent and StreamBroken."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: type[BaseException] | None, error: BaseException | None, __: TracebackType | None) -> None:
        if error is None:
            return
        if isinstance(error, _NO_CONNECTION):
            raise WorkerUnreachable(f"{self._url} cannot be reached: {one_line(error)}") from error
        if isinstance(error, TimeoutError):
            raise WorkerSilent(f"{self._url} sent no data within {str(error) or '--worker-timeout'}.") from error
        if isinstance(error, UNREACHABLE):
            raise StreamBroken(f"The response of {self._url} ended early: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    """Return an error's text for a log line. It is escaped and shortened, because it may come from a worker."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed before the head was complete"  # aiohttp's text is the incomplete head
    if isinstance(error, aiohttp.ClientResponseError):
        return repr(error.message.strip().partition("\n")[0])[1:-1][:200].rstrip(":")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"the certificate is not trusted: {repr(str(error.certificate_error))[1:-1][:200]}"
    if isinstance(error, aiohttp.ClientConnectorSSLError):  # its errno counts by OpenSSL's table
        return "the port does not speak TLS, or not in a way that this controller accepts"
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0
        if number in errno.errorcode:  # aiohttp's text repeats the address, and says `ssl:default` without TLS
            return os.strerror(number).lower()
    text = str(error)
    if isinstance(error, aiohttp.ClientPayloadError):  # aiohttp's text contains a status 400 that the worker never sent
        message = re.search(r"message='([^']*)'", text)
        text = message[1] if message else text
    return repr(text)[1:-1][:200] or type(error).__name__
