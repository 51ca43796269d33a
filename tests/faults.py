"""Faults on the way between a replica and its store."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path


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

    def resume(self) -> None:
        self._hang_after = None
        self._open.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        store_reader, store_writer = await asyncio.open_unix_connection(self._target)
        with contextlib.suppress(ConnectionError):
            await asyncio.gather(self._requests(reader, store_writer), self._replies(store_reader, writer))
        for side in (writer, store_writer):
            side.close()

    async def _requests(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
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


@contextlib.asynccontextmanager
async def proxy(path: Path, target: str, lose: int = 0) -> AsyncIterator[Proxy]:
    front = Proxy(path, target, lose)
    server = await asyncio.start_unix_server(front._serve, path)
    try:
        yield front
    finally:
        server.close()
