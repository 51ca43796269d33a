"""What one connection may do to a replica: not much."""

import asyncio
import contextlib
from collections.abc import Iterable

import psutil
import pytest

from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess
from tests.system.test_serve import A

POST = b"POST /get_worker_address HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
DISPATCH = POST + b'Content-Length: 13\r\n\r\n{"model":"m"}'
MEGABYTE = 1024 * 1024


def resident(controller: ControllerProcess) -> int:
    return int(psutil.Process(controller.popen.pid).memory_info().rss)


async def flood(controller: ControllerProcess, parts: Iterable[bytes]) -> tuple[int, bytes]:
    """Send all parts, or as many as are taken; how many bytes were, and what was answered."""
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
    writer.transport.abort()  # what was not taken need not be sent
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
async def test_a_flood_is_cut_off_and_harms_nobody(serve: Serve, case: str) -> None:
    controller = serve()
    controller.register(A)
    controller.dispatch()
    before = resident(controller)
    first, part = FLOODS[case]
    sent, answer = await flood(controller, [first, *[part] * 100])
    assert sent < 20 * MEGABYTE, "what the sockets hold, and not much more"
    assert not answer or b" 431 " in answer or case == "requests whose answers are not read"
    assert resident(controller) - before < 30 * MEGABYTE
    assert controller.dispatch() == A
    assert "Traceback" not in controller.log


async def test_a_large_head_and_some_pipelined_requests_are_served(serve: Serve) -> None:
    controller = serve()
    controller.register(A)
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    large = DISPATCH.replace(b"Host: x\r\n", b"Host: x\r\nX: " + b"a" * 60_000 + b"\r\n")
    writer.write(large + DISPATCH * 99)
    for _ in range(100):
        assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
        assert await reader.readuntil(b"}") == b'{"address":"http://a:1"}'
    writer.close()
    assert controller.workers()[0]["queue_length"] == 100


async def test_a_body_announced_too_long_is_refused_before_it_is_sent(serve: Serve) -> None:
    controller = serve()
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    writer.write(POST + b"Expect: 100-continue\r\nContent-Length: 99999999\r\n\r\n")
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in head.lower()
    assert b"body_too_large" in await reader.read()
    writer.close()
