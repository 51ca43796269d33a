"""Streams that are closed when the test has read them."""

from collections.abc import AsyncGenerator

from controller.replica import Replica
from controller.upstream.client import WorkerClient


async def streamed(replica: Replica, model: str = "m", hops: str = "") -> AsyncGenerator[bytes]:
    """Yield the frames that a client gets from a replica."""
    forwarded = (await replica.forwarder.stream(model, b"{}", hops)).value
    try:
        async for piece in forwarded.pieces():
            yield piece
    finally:
        forwarded.close()


async def frames_from(client: WorkerClient, address: str, body: bytes = b"{}") -> AsyncGenerator[bytes]:
    """Yield the frames that a worker sends to a replica."""
    answer = await client.post(address, "/worker_generate_stream", body)
    try:
        async for piece in answer.frames():
            yield piece
    finally:
        answer.close()
