"""Servers that answer as engines do: with answers on file, or with those that a test chooses."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from tests.support.waiting import wait_until
from tests.support.workers import stop_accepting


class Answer(NamedTuple):
    """A response. If `sent` is False, the request gets none, and `hangs` says if the connection stays open."""

    body: bytes = b""
    status: int = 200
    headers: tuple[str, ...] = ()
    sent: bool = True
    hangs: bool = False


NOT_FOUND = Answer(b'{"detail":"Not Found"}', 404)
HANGS = Answer(sent=False, hangs=True)
DISCONNECTS = Answer(sent=False)


@dataclass
class AnswerServer:
    """An HTTP server with one answer for each path. A test may change the answers.

    answers: by path, without the query. Other paths have the answer `default`.
    requests: path and query of each request.
    heads: head of each request.
    """

    answers: dict[str, Answer]
    default: Answer = NOT_FOUND
    address: str = ""
    requests: list[str] = field(default_factory=list)
    heads: list[bytes] = field(default_factory=list)
    writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writers.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                target = head.split(b" ")[1].decode()
                self.requests.append(target)
                self.heads.append(head)
                answer = self.answers.get(target.partition("?")[0], self.default)
                if answer.hangs:
                    await reader.read()  # until the client disconnects
                if not answer.sent:
                    return
                lines = [f"HTTP/1.1 {answer.status} X", f"Content-Length: {len(answer.body)}", *answer.headers]
                writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + answer.body)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self.writers.discard(writer)

    def taken(self) -> list[str]:
        """Return the requests since the last call, sorted, because those of one poll are sent at once."""
        taken, self.requests[:] = sorted(self.requests), []
        return taken


@contextlib.asynccontextmanager
async def answer_server(answers: Mapping[str, Answer], default: Answer = NOT_FOUND) -> AsyncIterator[AnswerServer]:
    served = AnswerServer(dict(answers), default)
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        await stop_accepting(server)
        server.close()
        for writer in list(served.writers):
            writer.transport.abort()
        await wait_until(lambda: not served.writers, "all connections are closed")
