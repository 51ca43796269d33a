"""uvicorn's HTTP protocol, extended in six ways.

- It limits the size of heads, the number of pipelined requests and the number of connections.
- It limits how long a client may take to send a head or a body, or read nothing of a response.
- It sends the head of a response and the first part of its body in one system call.
- It ignores offers of an upgrade, and serves the requests.
- It responds to a client that shuts down the sending side of its connection after the request.
- It ends the running request of a client that has pipelined others and leaves.
"""

import asyncio
import contextlib
import socket
import struct
from typing import Any, Final

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from controller.web.asgi.connections import ConnectionLimits, ConnectionWatch
from controller.web.asgi.transport import BoundedFlow, JoinedWrites
from controller.web.errors import error_body

MAX_HEAD: Final = 64 * 1024
MAX_PIPELINED: Final = 256
_CHECK_INTERVAL: Final = 0.1  # seconds between two checks of a half-closed connection
_HTTP_1_0_GRACE: Final = 0.5  # seconds until a half-closed HTTP/1.0 connection counts as closed
# Connections beyond the limit that get a response. Further ones are closed at once.
_REFUSED_CONNECTIONS: Final = 256
_PROBES: Final = ("/healthz", "/readyz")
_BYTES_ACKED: Final = 120  # position of tcpi_bytes_acked in Linux's struct tcp_info
_FIRST_HEAD: Final = ("head", None)
_INTERIM: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class BoundedProtocol(HttpToolsProtocol):
    """Rejects oversized heads, trailers and chunk headers, and stops reading from a client with many waiting requests.

    Received bytes count until the parser reports what they were: a complete head, a part of a body, or the end of a
    message. One read may contain several of these, so the limit is exact only to the size of one read.
    """

    _unparsed = 0
    _in_body = False
    _offers_upgrade = False
    _head: bytes | None = None  # of a request that offered an upgrade, without the offer
    _awaited: tuple[object, ...] | None = _FIRST_HEAD  # what the connection waited for at the last check
    _since = 0.0  # since when

    def __init__(self, watch: ConnectionWatch | None = None, **options: Any) -> None:
        super().__init__(**options)
        self._watch = watch or ConnectionWatch(ConnectionLimits())
        self._limits = self._watch.limits
        self._earlier: list[RequestResponseCycle] = []  # pipelined requests before the last one

    # asyncio declares a BaseTransport. uvicorn and this class need the methods of a TCP transport.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start serving a new connection."""
        super().connection_made(transport)
        self.transport = JoinedWrites(transport, self.loop)  # type: ignore[assignment]
        self.flow = BoundedFlow(transport, self.pipeline, MAX_PIPELINED)
        self._since = self.loop.time()
        if not self._watch.running:
            self._watch.start(self.loop, self.connections)  # type: ignore[arg-type]  # all are ours
        excess = len(self.connections) - self._limits.connections
        if excess > 0 and self._limits.connections:
            self._refuse_connection(transport, excess)

    def _refuse_connection(self, transport: asyncio.Transport, excess: int) -> None:
        """Answer requests on a connection beyond the limit with 503. Close it if too many such connections are open.

        Probes are served, so that nothing restarts a replica because it is flooded.
        """
        self._count("connections")
        if excess > _REFUSED_CONNECTIONS:
            transport.abort()
            return
        application = self.app

        async def refuse(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["path"] in _PROBES:
                await application(scope, receive, send)
                return
            message = (
                f"This replica has {self._limits.connections} connections, which is its limit --max-connections. "
                "Connect again, or run more replicas."
            )
            headers = {"retry-after": "1", "connection": "close"}
            body = error_body("too_many_connections", message)
            await Response(body, 503, headers, "application/json")(scope, receive, send)

        self.app = refuse

    def _count(self, limit: str) -> None:
        refusals = self.app_state.get("refusals")
        if refusals is not None:
            refusals.labels(limit).inc()

    def check_progress(self, now: float) -> None:
        """Refuse the request or close the connection if it has waited for the same progress for too long.

        ConnectionWatch calls this at intervals. Two checks are compared, so that requests pay nothing.
        """
        awaited, limit = self._awaits()
        if awaited is None or awaited != self._awaited:
            self._awaited, self._since = awaited, now
        elif limit and now - self._since >= limit:
            self._time_out(str(awaited[0]))
            self._since = now  # close() may wait for the client to read

    def _awaits(self) -> tuple[tuple[object, ...] | None, float]:
        """Return the progress that the connection waits for from its client, and its time limit.

        Two waits are equal if there was no progress between them. None means that the client waits for this replica.
        """
        cycle = self.cycle
        if self.transport.is_closing() or self.flow.write_paused:
            return ("send", *self._sent()), self._limits.send
        if self.pipeline or self.flow.read_paused:
            return None, 0.0
        if self._in_body:
            return ("body", cycle), self._limits.body
        if cycle is not None and not cycle.response_complete:
            return None, 0.0
        if self.timeout_keep_alive_task is not None and not self._head_has_begun():  # uvicorn closes the connection
            return None, 0.0
        return ("head", cycle), self._limits.head

    def _head_has_begun(self) -> bool:
        """Return True if the first part of a head has arrived, but not the whole head."""
        return self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)

    def _sent(self) -> tuple[int, int]:
        """Return the size of the write buffer, and the number of bytes that the client has acknowledged, if known.

        The buffer alone shows no progress for a long time: the kernel takes the next bytes only when a large part of
        its own buffer, which may have megabytes, is free.
        """
        acknowledged = 0
        client = self.transport.get_extra_info("socket")
        with contextlib.suppress(OSError, AttributeError, struct.error):  # not TCP, or an old kernel
            information = client.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_ACKED + 8)
            [acknowledged] = struct.unpack_from("Q", information, _BYTES_ACKED)
        return self.transport.get_write_buffer_size(), acknowledged

    def _time_out(self, awaited: str) -> None:
        self._count(f"{awaited}_time")
        if awaited == "send":
            self.transport.abort()
        elif awaited == "body" and self.cycle.response_complete:  # the rest of the body was discarded
            self.transport.close()
        elif awaited == "body":
            message = f"The body of the request was not complete within {self._limits.body:g} s. Nothing was done."
            self._refuse(b"408 Request Timeout", "body_timeout", message)
        elif not self._head_has_begun():
            self.transport.close()  # without a response: the client could take it for that to its next request
        else:
            message = f"The head of the request was not complete within {self._limits.head:g} s."
            self._refuse(b"408 Request Timeout", "head_timeout", message)

    def _find_running(self) -> RequestResponseCycle | None:
        """Return the first request without a complete response, or the last request if there is none.

        uvicorn's `cycle` is the last one, which waits for its turn if the client has pipelined it.
        """
        while self._earlier and self._earlier[0].response_complete:
            self._earlier.pop(0)
        return self._earlier[0] if self._earlier else self.cycle

    def connection_lost(self, exc: Exception | None) -> None:
        """End the running request. uvicorn ends only the last one."""
        self._end_running()
        super().connection_lost(exc)

    def _end_running(self) -> None:
        running = self._find_running()
        if running is not None and not running.response_complete:
            running.disconnected = True
            running.message_event.set()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Keep a half-closed connection open if a complete request still waits for its response.

        A FIN does not tell whether the client has closed the connection or only its sending side. So the connection is
        closed if no response is due, or if a request or a response is incomplete. Otherwise _check_client() watches it.
        """
        cycle, running = self.cycle, self._find_running()
        if (
            self.scheme == "https"  # TLS has no half-closed connections
            or self.transport.is_closing()
            or running is None
            or running.response_started
            or cycle.more_body
            or self._head_has_begun()
        ):
            return False
        cycle.keep_alive = False  # this request is the last one of the connection
        self.loop.call_later(_CHECK_INTERVAL, self._check_client, self.loop.time(), 0.0)
        return True

    def _check_client(self, since: float, probe_after: float) -> None:
        """Abort the connection if the client has closed it. Repeat until the last response is complete.

        This method sends interim responses at growing intervals. If the client has closed the connection, its operating
        system replies with a reset. HTTP/1.0 has no interim responses, so such a connection is aborted after a short
        time. Once a response has begun, its own parts take the place of interim responses. A stream may be silent after
        the first part, so no failed write would show the reset.
        """
        running = self._find_running()
        if running is None or self.transport.is_closing() or running.response_complete:
            return
        waited = self.loop.time() - since
        is_waiting = not running.response_started
        if self.transport.get_extra_info("socket").getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) or (
            is_waiting and running.scope["http_version"] == "1.0" and waited >= _HTTP_1_0_GRACE
        ):
            self.transport.abort()
            return
        if is_waiting and waited >= probe_after and running.scope["http_version"] != "1.0":
            self.transport.write(_INTERIM)
            probe_after = 2 * waited
        self.loop.call_later(_CHECK_INTERVAL, self._check_client, since, probe_after)

    def data_received(self, data: bytes) -> None:
        """Parse the received bytes, and reject the request if its head is too long."""
        self._unparsed += len(data)
        self._unset_keepalive_if_required()
        try:
            self._parse(data)
        except HttpParserError:
            self.send_400_response("Invalid HTTP request received.")
        if self._unparsed > MAX_HEAD and not self.transport.is_closing():
            message = f"The head, a chunk header or the trailers of the request are longer than {MAX_HEAD} bytes."
            self._count("head_size")
            self._refuse(b"431 Request Header Fields Too Large", "head_too_large", message)

    def _parse(self, data: bytes) -> None:
        """Parse the received bytes. Requests that offer an upgrade are served as if they did not.

        At an offer, the parser ends the request with its head, and would take the body for the next request. A proxy
        that forwards the offer takes it for the body. So the head is parsed again without the offer. Java's HttpClient
        offers HTTP/2 with each first request.
        """
        while True:
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                if self._head is None:  # CONNECT
                    raise HttpParserError("The request wants another protocol.") from None
                [end_of_head] = upgrade.args
                data = self._head + data[end_of_head:]
                self._head = None
                self.parser = HttpRequestParser(self)
            else:
                return

    def send_400_response(self, msg: str) -> None:
        """Reject a malformed request. uvicorn would write this response even in the middle of another response."""
        self._refuse(b"400 Bad Request", "invalid_http", msg)

    def _refuse(self, status: bytes, code: str, message: str) -> None:
        running = self._find_running()
        if running is None or running.response_complete or not (running.response_started or self.pipeline):
            body = error_body(code, message)
            self.transport.write(_REFUSAL % (status, len(body), body))
        self._end_running()  # its handler may wait for the rest of its request
        self.transport.close()

    def on_headers_complete(self) -> None:
        """Handle the complete head of a request."""
        self._unparsed = 0
        self._offers_upgrade = self.parser.should_upgrade()
        if self._offers_upgrade:
            self._head = self._without_offer()
            return
        self._in_body = True
        previous = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            self._earlier.append(previous)
            self._find_running()  # drops the complete ones

    def _without_offer(self) -> bytes | None:
        """Return the head of the request without the offer of an upgrade. None if its method is CONNECT."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            return None
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            if name == b"connection":
                options = [option.strip() for option in value.split(b",")]
                value = b", ".join(option for option in options if option.lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, value))
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def on_body(self, body: bytes) -> None:
        """Handle a part of a body."""
        self._unparsed = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Handle the end of a request."""
        self._unparsed = 0
        if self._offers_upgrade:
            return  # _parse() parses it again
        self._in_body = False
        super().on_message_complete()


_REFUSAL: Final = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%s"
