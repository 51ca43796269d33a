"""Workers that behave as badly as a test wants, on real sockets."""

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from tests.support.waiting import wait_until

Behaviour = Callable[["BadWorker", asyncio.StreamWriter, bytes], Awaitable[None]]


class BadWorker:
    """An HTTP server that answers each path as it is told, byte by byte. It counts its requests."""

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
            await self._unless_gone(reader, self.behaviours[path](self, writer, body))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.open -= 1
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.writers.discard(writer)

    async def _unless_gone(self, reader: asyncio.StreamReader, behaviour: Awaitable[None]) -> None:
        """Behave, unless the client goes away."""
        behaving, gone = asyncio.ensure_future(behaviour), asyncio.ensure_future(reader.read(1))
        try:
            await asyncio.wait((behaving, gone), return_when=asyncio.FIRST_COMPLETED)
            if behaving.done():
                behaving.result()
        finally:
            behaving.cancel()
            gone.cancel()
            await asyncio.wait((behaving, gone))


async def stop_accepting(server: asyncio.Server) -> None:
    """Before server.close(), which loses the sockets of connections that are just being accepted (CPython 3.11)."""
    for listener in server.sockets:
        asyncio.get_running_loop().remove_reader(listener.fileno())
    for _ in range(5):  # rounds of the loop, until those connections have reached their handler
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
        for writer in worker.writers:  # those too that wait for a client to take the rest
            writer.transport.abort()
        await wait_until(lambda: not worker.writers, "all connections are closed")


def answers(body: bytes, status: str = "200 OK", *headers: str) -> Behaviour:
    """Answer at once, and close."""

    async def behaviour(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close", *headers]
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        await writer.drain()

    return behaviour


def status(*models: str, speed: float = 1, queue_length: int = 0) -> Behaviour:
    """The status of a good worker."""
    told: dict[str, Any] = {"model_names": models or ["m"], "speed": speed, "queue_length": queue_length}
    return answers(json.dumps(told).encode())


def chunks(*parts: bytes, end: bool = True, pause: float = 0.0) -> Behaviour:
    """Stream parts, each a chunk of its own; without `end` break off in the middle."""

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
    """Send bytes as they are; the second part and those behind it when the gate is open.

    end: "open" keeps the connection and says nothing more, "closed" closes it, "reset" resets it.
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
    """An HTTP server that keeps connections. `behave` answers a request, given the number of its connection, from 1,
    and its own on that connection, from 1; it returns whether to keep the connection.
    """

    def __init__(self, behave: Callable[[int, int, asyncio.StreamWriter], bool]) -> None:
        self._behave = behave
        self.requests: list[tuple[int, bytes]] = []  # the connection and the body
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
        server.close()
        for writer in list(worker.writers):
            writer.transport.abort()
        await asyncio.sleep(0)  # for the sockets to be closed
        await asyncio.sleep(0)


def plain(body: bytes, *headers: bytes, status: bytes = b"200 OK") -> bytes:
    """An answer with a length, as bytes."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def hangs(_: BadWorker, __: asyncio.StreamWriter, ___: bytes) -> None:
    """Take the request and say nothing."""
    await asyncio.sleep(3600)


async def sends_without_end(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    """A body of a gigabyte, for as long as somebody reads it."""
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
    for _ in range(1024):
        writer.write(b"x" * 1024 * 1024)
        await writer.drain()
