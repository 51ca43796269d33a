"""Faults of the connection between a replica and its store, or between two clusters."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.workers import stop_accepting


class Proxy:
    """A proxy on a unix socket, for a server on another unix socket.

    It can lose replies: it drops every `lose`-th with its connection. It can also hang: `hang_after(reply)` lets that
    reply through and nothing after it, until `resume()`.
    """

    def __init__(self, path: Path, target: str, lose: int = 0) -> None:
        self.path = path
        self.url = f"unix://{path}"
        self.lose = lose
        self.replies = 0
        self.lost = 0
        self.held: list[Any] = []  # addresses of clients with a request that is held back
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._hang_after: bytes | None = None
        self._open = asyncio.Event()
        self._open.set()

    @property
    def hanging(self) -> bool:
        return not self._open.is_set()

    @property
    def connections(self) -> int:
        """Number of open sockets on both sides."""
        return len(self._writers)

    def hang_after(self, reply: bytes) -> None:
        self._hang_after = reply

    def hang(self) -> None:
        """Hold back requests and replies until resume()."""
        self._open.clear()

    def resume(self) -> None:
        self._hang_after = None
        self._open.set()

    def cut(self) -> None:
        """Abort all connections, with everything that is held back. New connections are accepted."""
        for writer in self._writers:
            writer.transport.abort()
        self.held.clear()
        self.resume()

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._serve, self.path)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_unix_connection(self._target)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        sides = {writer}
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):  # asyncio would log them as unhandled errors
                store_reader, store_writer = await self._connect()
                sides.add(store_writer)
                self._writers |= sides
                client = writer.get_extra_info("peername")
                await asyncio.gather(self._requests(reader, store_writer, client), self._replies(store_reader, writer))
        finally:
            self._writers -= sides
            for side in sides:
                side.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, client: Any) -> None:
        while data := await reader.read(65536):
            if self.hanging:
                self.held.append(client)
            await self._open.wait()
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _replies(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            self.replies += 1
            await self._open.wait()
            if self.lose and self.replies % self.lose == 0:
                self.lost += 1
                break
            writer.write(data)
            await writer.drain()
            if data == self._hang_after:
                self._open.clear()
        writer.close()


class TcpProxy(Proxy):
    """A proxy on a TCP port, for a server on another TCP port."""

    def __init__(self, port: int, target: int) -> None:
        super().__init__(Path(), "")
        self.url = f"http://127.0.0.1:{port}"
        self._ports = port, target

    @property
    def port(self) -> int:
        return self._ports[0]

    def retarget(self, target: int) -> None:
        """Connect to another port from now on. Connections to the previous one stay open until cut()."""
        self._ports = self._ports[0], target

    async def listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", self._ports[0])

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self._ports[1])


@contextlib.contextmanager
def proxy_in_thread(front: Proxy) -> Iterator[SimpleNamespace]:
    """Run a proxy in its own thread, for tests that block theirs. Yields its url, held, hang(), resume() and cut()."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def in_thread(method: Callable[[], None]) -> Callable[[], None]:
        async def call() -> None:
            method()

        return lambda: asyncio.run_coroutine_threadsafe(call(), loop).result(10)

    async def end(server: asyncio.Server) -> None:
        await stop_accepting(server)
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the sockets are closed in the next round of the loop

    server = asyncio.run_coroutine_threadsafe(front.listen(), loop).result(10)
    try:
        yield SimpleNamespace(
            url=front.url,
            held=front.held,
            hang=in_thread(front.hang),
            resume=in_thread(front.resume),
            cut=in_thread(front.cut),
        )
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def proxy(path: Path, target: str, lose: int = 0) -> AsyncIterator[Proxy]:
    front = Proxy(path, target, lose)
    server = await front.listen()
    try:
        yield front
    finally:
        await stop_accepting(server)
        server.close()
