"""Responses of very many small chunks make aiohttp's parser pause."""

import asyncio

import pytest

from controller.upstream.client import WorkerClient
from tests.support.waiting import wait_until

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = b"1\r\nx\r\n"


@pytest.mark.parametrize("first", [2047, 2048, 2049, 2050, 4097, 10_000])
async def test_chunks_after_a_pause_arrive(client: WorkerClient, first: int) -> None:
    """The reader empties the buffer, and all of the rest then arrives at once."""
    may_continue = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n{}")
        writer.write(HEAD + first * CHUNK)
        await may_continue.wait()
        writer.write(3_000 * CHUNK + b"0\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        response = await client.post_to_engine(address, "/v1/x", b"{}", {})
        content = response._content
        await wait_until(lambda: content.total_bytes >= min(first, 2_049), "the first chunks have arrived")
        received = 0
        async for piece in response.pieces():
            received += len(piece)
            if received == first:
                may_continue.set()
        assert received == first + 3_000
        response.close()
