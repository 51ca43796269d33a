"""Streams as a test reads them: closed when it is done with them."""

from collections.abc import AsyncGenerator

from controller.replica import Replica
from controller.upstream.client import WorkerClient


async def streamed(controller: Replica, model: str = "m", way: str = "") -> AsyncGenerator[bytes]:
    """What a client gets from a replica."""
    forwarded = (await controller.forwarder.stream(model, b"{}", way)).value
    try:
        async for piece in forwarded.pieces():
            yield piece
    finally:
        forwarded.close()


async def asked(client: WorkerClient, address: str, body: bytes = b"{}") -> AsyncGenerator[bytes]:
    """The frames that a worker sends to a replica."""
    answer = await client.ask(address, "/worker_generate_stream", body)
    try:
        async for piece in answer.frames():
            yield piece
    finally:
        answer.close()
