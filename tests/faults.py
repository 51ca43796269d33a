"""Faults on the way between a replica and its store."""

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace


class Proxy:
    """A unix socket in front of another one.

    It can lose replies: every `lose`-th is dropped with its connection. And it can hang: `hang_after(reply)` lets
    that very reply through and nothing after it, until `resume()`.
    """

    def __init__(self, path: Path, target: str, lose: int = 0) -> None:
        self.path = path
        self.url = f"unix://{path}"
        self.lose = lose
        self.replies = 0
        self.lost = 0
        self._target = target
        self._hang_after: bytes | None = None
        self._open = asyncio.Event()
        self._open.set()

    @property
    def hanging(self) -> bool:
        return not self._open.is_set()

    def hang_after(self, reply: bytes) -> None:
        self._hang_after = reply

    def hang(self) -> None:
        """Let nothing through, in either direction, until resume()."""
        self._open.clear()

    def resume(self) -> None:
        self._hang_after = None
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_unix_connection(self._target)
        try:
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(self._requests(reader, store_writer), self._replies(store_reader, writer))
        finally:
            for side in (writer, store_writer):
                side.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
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


@contextlib.contextmanager
def proxy_aside(path: Path, target: str) -> Iterator[SimpleNamespace]:
    """A proxy in a thread of its own, for tests that block theirs; only hang() and resume() may be called."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    front = Proxy(path, target)

    async def call(method: Callable[[], None]) -> None:
        method()

    async def end(server: asyncio.Server) -> None:
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # for the sockets to be closed

    server = asyncio.run_coroutine_threadsafe(asyncio.start_unix_server(front._serve, path), loop).result(10)
    aside = SimpleNamespace(
        url=front.url,
        hang=lambda: asyncio.run_coroutine_threadsafe(call(front.hang), loop).result(10),
        resume=lambda: asyncio.run_coroutine_threadsafe(call(front.resume), loop).result(10),
    )
    try:
        yield aside
    finally:
        asyncio.run_coroutine_threadsafe(end(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextlib.asynccontextmanager
async def proxy(path: Path, target: str, lose: int = 0) -> AsyncIterator[Proxy]:
    front = Proxy(path, target, lose)
    server = await asyncio.start_unix_server(front._serve, path)
    try:
        yield front
    finally:
        server.close()
