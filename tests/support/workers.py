"""Workers on real sockets, with faults that a test chooses."""

import asyncio
import contextlib
import functools
import json
import socket
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.support.waiting import wait_until

Behaviour = Callable[["BadWorker", asyncio.StreamWriter, bytes], Awaitable[None]]


class BadWorker:
    """An HTTP server with a behaviour for each path, which controls every byte of the response.

    requests: last part of the path, and body, of each request.
    heads: head of each request.
    open: number of open connections.
    """

    def __init__(self, **behaviours: Behaviour) -> None:
        self.behaviours = behaviours
        self.requests: list[tuple[str, bytes]] = []
        self.heads: list[bytes] = []
        self.open = 0
        self.address = ""
        self.writers: set[asyncio.StreamWriter] = set()
        self.closing = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.writers.add(writer)
        try:
            if self.closing:
                return
            head = await reader.readuntil(b"\r\n\r\n")
            length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
            body = await reader.readexactly(length)
            path = head.split(b" ")[1].decode().rpartition("/")[2]
            self.requests.append((path, body))
            self.heads.append(head)
            await self._until_disconnected(reader, self.behaviours[path](self, writer, body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.writers.discard(writer)

    async def _until_disconnected(self, reader: asyncio.StreamReader, behaviour: Awaitable[None]) -> None:
        """Run a behaviour until it ends, or the client disconnects."""
        behaving, disconnected = asyncio.ensure_future(behaviour), asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((behaving, disconnected), return_when=asyncio.FIRST_COMPLETED)
            if behaving.done():
                behaving.result()
        finally:
            behaving.cancel()
            disconnected.cancel()
            await asyncio.wait((behaving, disconnected))


async def stop_accepting(server: asyncio.Server) -> None:
    """Stop accepting connections. Call this before server.close().

    In CPython 3.11, server.close() loses the sockets of connections that are just being accepted.
    """
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(5):  # these connections reach their handler after a few rounds of the loop
        await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def bad_worker(**behaviours: Behaviour) -> AsyncIterator[BadWorker]:
    worker = BadWorker(**behaviours)
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    worker.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield worker
    finally:
        await stop_accepting(server)
        server.close()
        worker.closing = True
        for writer in worker.writers:  # some of them may wait for a client to read
            writer.transport.abort()
        await wait_until(lambda: not worker.writers, "all connections are closed")


def answers(body: bytes, status: str = "200 OK", *headers: str) -> Behaviour:
    """Send a response at once, and close."""

    async def behaviour(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return behaviour


@functools.cache
def _bomb() -> bytes:
    return zlib.compress(bytes(100_000_000))  # takes 0.4 s


async def compression_bomb(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
    """Send a response of 100 MB, compressed to 97 kB."""
    await answers(_bomb(), "200 OK", "Content-Encoding: deflate")(worker, writer, body)


def status(*models: str, speed: float = 1, queue_length: int = 0) -> Behaviour:
    """Send the status of a healthy worker."""
    body: dict[str, Any] = {"model_names": models or ["m"], "speed": speed, "queue_length": queue_length}
    return answers(json.dumps(body).encode())


def chunks(*parts: bytes, end: bool = True, pause: float = 0.0) -> Behaviour:
    """Stream parts, each as a chunk. If `end` is False, close the connection before the last chunk."""

    async def behaviour(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(pause)
        if end:
            writer.write(b"0\r\n\r\n")
            await writer.drain()

    return behaviour


def sends(*parts: bytes, end: str, gate: asyncio.Event | None = None) -> Behaviour:
    """Send bytes as they are. All parts after the first wait until the gate is open.

    end: "open" keeps the connection open and sends nothing more, "closed" closes it, "reset" resets it.
    """

    async def behaviour(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        for number, part in enumerate(parts):
            if number and gate is not None:
                await gate.wait()
            writer.write(part)
            await writer.drain()
        if end == "open":
            await asyncio.sleep(3600)
        elif end == "reset":
            reset(writer)

    return behaviour


def reset(writer: asyncio.StreamWriter) -> None:
    """Close a connection by RST instead of FIN."""
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


class KeepingWorker:
    """An HTTP server that keeps connections open.

    behave: responds to a request. It gets the number of the connection and the number of the request on it, both from
    1, and a writer. It returns True to keep the connection.
    requests: number of the connection, and body, of each request.
    """

    def __init__(self, behave: Callable[[int, int, asyncio.StreamWriter], bool]) -> None:
        self._behave = behave
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self.address = ""
        self.writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number, served, keep = self.connections, 0, True
        self.writers.add(writer)
        try:
            while keep:
                head = await reader.readuntil(b"\r\n\r\n")
                served += 1
                length = next((int(h[15:]) for h in head.lower().split(b"\r\n") if h.startswith(b"content-length:")), 0)
                body = b"" if length > 1_000_000 and served > 1 else await reader.readexactly(length)
                self.requests.append((number, body))
                keep = self._behave(number, served, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.writers.discard(writer)


@contextlib.asynccontextmanager
async def keeping_worker(behave: Callable[[int, int, asyncio.StreamWriter], bool]) -> AsyncIterator[KeepingWorker]:
    worker = KeepingWorker(behave)
    server = await asyncio.start_server(worker.serve, "127.0.0.1", 0)
    worker.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield worker
    finally:
        await stop_accepting(server)
        server.close()
        for writer in list(worker.writers):
            writer.transport.abort()
        await asyncio.sleep(0)  # the sockets are closed two rounds of the loop later
        await asyncio.sleep(0)


def plain(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """Return the bytes of a response with a Content-Length."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def hangs(_: BadWorker, __: asyncio.StreamWriter, ___: bytes) -> None:
    """Read the request and send nothing."""
    await asyncio.sleep(3600)


async def sends_without_end(_worker: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Send a body of a gigabyte, until the client disconnects."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    for _ in range(1024):
        writer.write(b"x" * 1024 * 1024)
        await writer.drain()
