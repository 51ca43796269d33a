"""uvicorn's HTTP protocol, extended in three ways.

- It limits the size of heads and the number of pipelined requests.
- It sends the head of a response and the first part of its body in one system call.
- It responds to a client that shuts down the sending side of its connection after the request.
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
_CHECK_INTERVAL: Final = 0.1  # seconds between two checks of a half-closed connection
_HTTP_1_0_GRACE: Final = 0.5  # seconds until a half-closed HTTP/1.0 connection counts as closed
_INTERIM: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class _JoinedWrites:
    """A transport that sends the head of a response and the first part of its body in one system call.

    uvicorn needs two calls. If the process is killed between them, the client has received half a response, and a load
    balancer can no longer retry. A system call is also a tenth of the cost of a dispatch. A head is sent alone if no
    body follows before the next iteration of the event loop.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._transport.is_closing():  # the client has left, and its other requests may still be answered
            return
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
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class _BoundedFlow(FlowControl):
    """Stops reading from a connection while many of its requests wait.

    uvicorn would resume reading each time that it starts the next request.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if len(self._waiting) <= MAX_PIPELINED:
            super().resume_reading()


class BoundedProtocol(HttpToolsProtocol):
    """Rejects oversized heads, trailers and chunk headers, and stops reading from a client with many waiting requests.

    Received bytes count until the parser reports what they were: a complete head, a part of a body, or the end of a
    message. One read may contain several of these, so the limit is exact only to the size of one read.
    """

    _unparsed = 0

    # asyncio declares a BaseTransport. uvicorn and this class need the methods of a TCP transport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start serving a new connection."""
        super().connection_made(transport)
        self.transport = _JoinedWrites(transport, self.loop)  # type: ignore[assignment]
        self.flow = _BoundedFlow(transport, self.pipeline)

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection open if a complete request still waits for its response.

        A FIN does not tell whether the client has closed the connection or only its sending side. So the connection is
        closed if no response is due, or if a request or a response is incomplete. Otherwise _check_client() watches it.
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
        cycle.keep_alive = False  # this request is the last one of the connection
        self.loop.call_later(_CHECK_INTERVAL, self._check_client, self.loop.time(), 0.0)
        return True

    def _check_client(self, since: float, probe_after: float) -> None:
        """Abort the connection if the client has closed it. Repeat until the last response begins.

        This method sends interim responses at growing intervals. If the client has closed the connection, its operating
        system replies with a reset. HTTP/1.0 has no interim responses, so such a connection is aborted after a short
        time. Once a response has begun, a failed write shows that the client has closed the connection.
        """
        cycle = self.cycle
        if self.transport.is_closing() or cycle.response_started:
            return
        waited = self.loop.time() - since
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or (
            cycle.scope["http_version"] == "1.0" and waited >= _HTTP_1_0_GRACE
        ):
            self.transport.abort()
            return
        if waited >= probe_after and cycle.scope["http_version"] != "1.0" and not self.pipeline:
            self.transport.write(_INTERIM)
            probe_after = 2 * waited
        self.loop.call_later(_CHECK_INTERVAL, self._check_client, since, probe_after)

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, and reject the request if its head is too long."""
        self._unparsed += len(data)
        super().data_received(data)
        if self._unparsed > MAX_HEAD and not self.transport.is_closing():
            message = f"The head, a chunk header or the trailers of the request are longer than {MAX_HEAD} bytes."
            self._refuse(b"431 Request Header Fields Too Large", "head_too_large", message)

    def send_400_response(self, msg: str) -> None:
        """Reject a malformed request. uvicorn would write this response even in the middle of another response."""
        self._refuse(b"400 Bad Request", "invalid_http", msg)

    def _refuse(self, status: bytes, code: str, message: str) -> None:
        cycle = self.cycle
        answering = cycle is not None and not cycle.response_complete
        if not answering or not (cycle.response_started or self.pipeline):
            body = error_body(code, message)
            self.transport.write(_REFUSAL % (status, len(body), body))
        if answering:  # as in connection_lost(): stop the handler that waits for the rest of its request
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Handle the complete head of a request."""
        self._unparsed = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Handle a part of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Handle the end of a request."""
        self._unparsed = 0
        super().on_message_complete()


_REFUSAL: Final = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
