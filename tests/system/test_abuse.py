"""A hostile connection does not harm a replica."""

import asyncio
import contextlib
import json
from collections.abc import Iterable

import psutil
import pytest

from tests.support.workers import bad_worker
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess
from tests.system.test_serve import A

pytestmark = pytest.mark.system

POST = b"POST /get_worker_address HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
DISPATCH = POST + b'Content-Length: 13\r\n\r\n{"model":"m"}'
MEGABYTE = 1024 * 1024


def resident(controller: ControllerProcess) -> int:
    return int(psutil.Process(controller.popen.pid).memory_info().rss)


async def flood(controller: ControllerProcess, parts: Iterable[bytes]) -> tuple[int, bytes]:
    """Send parts until the replica stops reading for 3 s or disconnects. Return the bytes sent and the response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    sent = 0
    answer = b""
    with contextlib.suppress(ConnectionError, TimeoutError):
        for part in parts:
            writer.write(part)
            await asyncio.wait_for(writer.drain(), 3)
            sent += len(part)
        writer.write_eof()
    with contextlib.suppress(ConnectionError):
        answer = await asyncio.wait_for(reader.read(4096), 10)
    writer.transport.abort()  # close() would still send the rest
    return sent, answer


FLOODS = {
    "one endless header": (POST + b"X: ", b"a" * MEGABYTE),
    "headers without end": (POST, b"X-Header: value\r\n" * 65536),
    "an endless URL": (b"GET /", b"a" * MEGABYTE),
    "trailers without end": (CHUNKED + b"0\r\n", b"X-Header: value\r\n" * 65536),
    "one endless trailer": (CHUNKED + b"0\r\nX: ", b"a" * MEGABYTE),
    "an endless chunk extension": (CHUNKED + b"1;x=", b"a" * MEGABYTE),
    "requests whose answers are not read": (b"", DISPATCH * 10_000),
}


@pytest.mark.parametrize("case", FLOODS)
async def test_a_flood_is_stopped_and_the_replica_keeps_serving(serve: Serve, case: str) -> None:
    controller = serve()
    controller.register(A)
    controller.dispatch()
    before = resident(controller)
    first, part = FLOODS[case]
    sent, answer = await flood(controller, [first, *[part] * 100])
    assert sent < 20 * MEGABYTE, "the replica reads little more than the socket buffers hold"
    assert not answer or b" 431 " in answer or case == "requests whose answers are not read"
    assert resident(controller) - before < 30 * MEGABYTE
    assert controller.dispatch() == A
    assert "Traceback" not in controller.log


async def test_a_large_head_and_some_pipelined_requests_are_served(controller: ControllerProcess) -> None:
    controller.register(A)
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    large = DISPATCH.replace(b"Host: x\r\n", b"Host: x\r\nX: " + b"a" * 60_000 + b"\r\n")
    writer.write(large + DISPATCH * 99)
    for _ in range(100):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"}") == b'{"address":"http://127.0.0.1:1/a"}'
    writer.close()
    assert controller.workers()[0]["queue_length"] == 100


async def test_large_bodies_are_accepted_in_large_and_in_small_parts(controller: ControllerProcess) -> None:
    prompt = b'{"model": "absent", "prompt": "%s"}' % (b"a" * 20 * MEGABYTE)
    head = POST.replace(b"/get_worker_address", b"/worker_generate_stream") + b"Connection: close\r\n"
    small = b"".join(b"1\r\n%c\r\n" % byte for byte in b" " * 70_000 + b'{"model": "absent"}') + b"0\r\n\r\n"
    for request in (
        head + b"Content-Length: %d\r\n\r\n" % len(prompt) + prompt,
        head + b"Transfer-Encoding: chunked\r\n\r\n" + small,
    ):
        reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
        writer.write(request)
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"error_code":50005' in answer
        writer.close()


@pytest.mark.parametrize(
    "head",
    [
        b"invalid\r\n\r\n",
        POST + b"Content-Length: 5, 5\r\n\r\n",
        POST + b"a b: c\r\n\r\n",
        CHUNKED + b"5\r\nabcde\r\nx",
    ],
)
async def test_invalid_http_gets_a_json_error(controller: ControllerProcess, head: bytes) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    writer.write(head)
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_http"
    assert "Traceback" not in controller.log
    writer.close()


async def test_invalid_data_after_a_request_does_not_corrupt_its_response(controller: ControllerProcess) -> None:
    gate = asyncio.Event()

    async def stream_until_gate(_: object, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nfirst\0")
        await gate.wait()

    async with bad_worker(worker_generate_stream=stream_until_gate) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
        request = DISPATCH.replace(b"/get_worker_address", b"/worker_generate_stream")
        writer.write(request)
        received = await reader.readuntil(b"first\0")
        writer.write(b"invalid\r\n\r\n")
        received += await reader.read()
        gate.set()
        assert received.count(b"HTTP/1.1") == 1
        assert "Traceback" not in controller.log
        writer.close()


async def test_an_early_response_to_expect_100_continue_closes_the_connection(controller: ControllerProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    writer.write(b"POST /healthz HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 50\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"connection: close" in answer.lower()
    writer.close()


async def test_a_too_large_content_length_is_rejected_before_the_body_is_sent(controller: ControllerProcess) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()
    assert b"body_too_large" in await reader.read()
    writer.close()
