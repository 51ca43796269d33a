"""Workers whose responses break off. The client gets the end of the response and can tell that it failed."""

import asyncio

import httpx
import pytest

from tests.support.workers import bad_worker, plain, sends
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system

FRAME = b'{"text": "one", "error_code": 0}\0'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"
CHUNK = b"%x\r\n%s\r\n" % (len(FRAME), FRAME)


async def receive(url: str, path: str, gate: asyncio.Event) -> tuple[bytes, bool]:
    """Return the received bytes, and True if the response was complete. Opens the gate when the first bytes arrive."""
    received = b""
    async with httpx.AsyncClient(timeout=60.0) as http:
        try:
            async with http.stream("POST", url + path, json={"model": "m"}) as response:
                async for part in response.aiter_raw():
                    received += part
                    gate.set()
        except httpx.RemoteProtocolError:
            return received, False
    return received, True


@pytest.mark.parametrize("end", ["open", "closed", "reset"])
async def test_garbage_in_the_middle_ends_the_response(controller: ControllerProcess, end: str) -> None:
    garbage = plain(b"oops", status=b"502 Bad Gateway")
    for path in ("worker_generate_stream", "worker_generate"):
        for at_once in (False, True):
            if at_once and end == "reset":
                continue  # a reset may discard data that was not read yet
            gate = asyncio.Event()
            parts = [CHUNKED + b"\r\n" + CHUNK, garbage]
            answers = sends(*([b"".join(parts)] if at_once else parts), end=end, gate=gate)
            async with bad_worker(worker_generate_stream=answers, worker_generate=answers) as worker:
                controller.register(worker.address, check=False)
                received, complete = await receive(controller.url, f"/{path}", gate)
                assert received.startswith(FRAME)
                if path == "worker_generate_stream":
                    assert complete
                    assert b"50006" in received
                    assert received.endswith(b"\0")
                else:
                    assert not complete
                    assert received == FRAME
                controller.post("/remove_worker", {"worker_name": worker.address})


async def test_a_broken_compressed_stream_is_reported_as_incomplete(controller: ControllerProcess) -> None:
    body = b"not to be read"
    head = CHUNKED + b"Content-Encoding: br\r\n\r\n"
    answers = sends(head + b"%x\r\n%s\r\n" % (len(body) - 5, body[:-5]), end="closed")
    async with bad_worker(worker_generate_stream=answers) as worker:
        controller.register(worker.address, check=False)
        assert await receive(controller.url, "/worker_generate_stream", asyncio.Event()) == (body[:-5], False)


async def test_a_truncated_response_is_shorter_than_its_content_length(controller: ControllerProcess) -> None:
    gate = asyncio.Event()
    cut = plain(b"x" * 1000)[:-500]
    async with bad_worker(worker_generate=sends(cut, b"", end="closed", gate=gate)) as worker:
        controller.register(worker.address, check=False)
        assert await receive(controller.url, "/worker_generate", gate) == (b"x" * 500, False)
