"""The requests of the client for workers, and the connections that it keeps."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from controller.domain.errors import StreamBroken, WorkerUnreachable
from controller.upstream import session
from controller.upstream.client import WorkerClient

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LARGE = b"x" * 32 * 1024 * 1024  # more than the buffers of the kernel hold


class Server:
    """A server that keeps its connections open. It records the heads of the requests."""

    def __init__(self) -> None:
        self.heads: list[bytes] = []
        self.connections = 0
        self.reads_bodies = True
        self.address = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
                if self.reads_bodies:
                    length = self.heads[-1].lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
                    await reader.readexactly(int(length))
                writer.write(ANSWER)
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def serving() -> AsyncIterator[Server]:
    served = Server()
    server = await asyncio.start_server(served.serve, "127.0.0.1", 0)
    served.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        yield served


async def send(client: WorkerClient, server: Server, body: bytes = b"{}", **headers: str) -> bytes:
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await client.post_to_engine(server.address, "/v1/x?a=%20", body, sent)
    try:
        return b"".join([piece async for piece in response.pieces()])
    finally:
        response.close()


async def test_request_has_one_of_each_header(client: WorkerClient) -> None:
    async with serving() as server:
        assert await send(client, server, accept="text/plain", USER_AGENT="test", content_type="a/b") == b"{}"
    lines = server.heads[0].decode().splitlines()
    assert lines[0] == "POST /v1/x?a=%20 HTTP/1.1"
    assert sorted(line.lower() for line in lines[1:-1]) == [
        "accept-encoding: identity",
        "accept: text/plain",
        "content-length: 2",
        "content-type: a/b",
        f"host: {server.address.removeprefix('http://')}",
        "user-agent: test",
    ]


@pytest.mark.parametrize("value", ["a\r\nX-Injected: b", "a\nb", "a\0b"])
async def test_header_with_a_control_character_is_not_sent(client: WorkerClient, value: str) -> None:
    async with serving() as server:
        with pytest.raises(WorkerUnreachable):
            await send(client, server, x=value)
        assert (server.connections, server.heads) == (0, [])


async def test_large_body_is_sent_whole_and_its_connection_is_kept(client: WorkerClient) -> None:
    async with serving() as server:
        assert await send(client, server, LARGE) == b"{}"
        assert await send(client, server) == b"{}"
        assert server.connections == 1


async def test_connection_is_not_kept_if_the_response_comes_before_the_body_is_sent(client: WorkerClient) -> None:
    async with serving() as server:
        server.reads_bodies = False
        assert await send(client, server, LARGE) == b"{}"
        server.reads_bodies = True
        assert await send(client, server) == b"{}"
        assert server.connections == 2


async def test_nothing_is_sent_after_the_end_of_the_streams(client: WorkerClient) -> None:
    async with serving() as server:
        client.end_streams()
        with pytest.raises(StreamBroken, match="shutting down"):
            await send(client, server)
        assert (server.connections, server.heads) == (0, [])


async def test_more_servers_than_are_remembered(client: WorkerClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "_MAX_SERVERS", 1)
    async with serving() as first, serving() as second:
        for _ in range(2):
            assert await send(client, first) == await send(client, second) == b"{}"
        assert (first.connections, second.connections) == (1, 1)
        assert len(client._session._servers) == 1
