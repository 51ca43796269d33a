"""The transport and the flow control of a connection, for BoundedProtocol."""

import asyncio
from collections.abc import Sized
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


class JoinedWrites:
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
        """Keep the head of a response until its body follows. Write everything else at once."""
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
        """Send what is left, and close the connection."""
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head and not self._transport.is_closing():
            self._transport.write(self._head)
        self._head = b""


class BoundedFlow(FlowControl):
    """Stops reading from a connection while more than `limit` of its requests wait.

    uvicorn would resume reading each time that it starts the next request.

    waiting: the requests that wait.
    """

    def __init__(self, transport: asyncio.Transport, waiting: Sized, limit: int) -> None:
        super().__init__(transport)
        self._waiting = waiting
        self._limit = limit

    def resume_reading(self) -> None:
        """Resume reading, unless too many requests wait."""
        if len(self._waiting) <= self._limit:
            super().resume_reading()
