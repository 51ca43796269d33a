"""uvicorn's HTTP protocol, with the limits that it lacks: on what stands around bodies, and on pipelined requests. And
with answers in one piece, also for a client that closes its half of the connection after its request.
"""

import asyncio
import socket
from collections.abc import Sized
from typing import Any, Final

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from controller.web.errors import error_body

MAX_HEAD: Final = 64 * 1024
MAX_PIPELINED: Final = 256
_LOOK_INTERVAL: Final = 0.1  # between looks at a connection whose client has closed its half
_GRACE_OF_HTTP_1_0: Final = 0.5
_INTERIM: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _WholeAnswers:
    """A transport that sends the head of an answer and the first part of its body by one call of the system.

    uvicorn makes two. Whoever is killed between them has sent half an answer, which no load balancer can take back; and
    a call of the system is a tenth of what a dispatch costs. A head that no body follows at once goes alone.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class _BoundedFlow(FlowControl):
    """Reads no further while many requests of a connection wait; uvicorn would, at each request that it turns to."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) <= MAX_PIPELINED:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """Refuses endless heads, trailers and chunk headers, and reads no more from a client with many requests unanswered.

    What was received counts until it is told what it was: a complete head, a part of a body, the end of a message. All
    of that may come in one piece with what follows, so the limits are exact only up to the size of one read.
    """

    _unaccounted = 0

    # asyncio declares a BaseTransport; uvicorn, as here, takes what a TCP connection has.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin with a connection."""
        super().connection_made(transport)
        self.transport = _WholeAnswers(transport, self.loop)  # type: ignore[assignment]
        self.flow = _BoundedFlow(transport, self.pipeline)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep the connection open for the answers that are still due.

        A client that has gone looks like one that has only closed its half: both send a FIN. So a connection without an
        answer due is closed, as is one in the middle of a request or of an answer, and the others are watched.
        """
        cycle = self.cycle
        if (
            self.scheme == "https"  # TLS has no half-closed connections
            or self.transport.is_closing()
            or cycle is None
            or cycle.response_started
            or cycle.more_body
            or cycle.scope is not self.scope  # the head of the next request has begun
        ):
            return False
        cycle.keep_alive = False  # it is the last of those that were pipelined
        self.loop.call_later(_LOOK_INTERVAL, self._watch, self.loop.time(), 0.0)
        return True

    def _watch(self, since: float, probe_after: float) -> None:
        """Abort the connection of a client that is gone, until its last answer begins: writing tells from then on.

        The system of a client that is gone answers what it receives with a reset, so an interim response is sent, again
        and again at growing intervals. HTTP/1.0 has none, and its clients count as gone after a while.
        """
        cycle = self.cycle
        if self.transport.is_closing() or cycle.response_started:
            return
        waited = self.loop.time() - since
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or (
            cycle.scope["http_version"] == "1.0" and waited >= _GRACE_OF_HTTP_1_0
        ):
            self.transport.abort()
            return
        if waited >= probe_after and cycle.scope["http_version"] != "1.0" and not self.pipeline:
            self.transport.write(_INTERIM)
            probe_after = 2 * waited
        self.loop.call_later(_LOOK_INTERVAL, self._watch, since, probe_after)

    def data_received(self, data: bytes) -> None:
        """Parse what has come, and see whether it came to anything."""
        self._unaccounted += len(data)
        super().data_received(data)
        if self._unaccounted > MAX_HEAD and not self.transport.is_closing():
            message = f"What stands around the body of the request is longer than {MAX_HEAD} bytes."
            self._refuse(b"431 Request Header Fields Too Large", "head_too_large", message)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP; uvicorn would do it even in the middle of another answer."""
        self._refuse(b"400 Bad Request", "invalid_http", msg)

    def _refuse(self, status: bytes, code: str, message: str) -> None:
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if not answering or not (cycle.response_started or self.pipeline):
            body = error_body(code, message)
            self.transport.write(_REFUSAL % (status, len(body), body))
        if answering:  # as when the connection is lost: whoever waits for the rest of the request need not
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Take the head of a request."""
        self._unaccounted = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Take a part of a body."""
        self._unaccounted = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Take the end of a request."""
        self._unaccounted = 0
        super().on_message_complete()


_REFUSAL: Final = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
