"""Clients that send or read slowly, or not at all, are disconnected. Clients that only wait are not."""

import asyncio
import time

import pytest

from tests.security.connections import DISPATCH, MIB, POST, STREAM, Connection, Serve, clients, connect, refusals
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker
from tests.system.processes import ControllerProcess
from tests.system.test_serve import A

pytestmark = pytest.mark.system

LIMITS = ("--poll-interval", "0", "--head-timeout", "0.5", "--body-timeout", "0.5", "--send-timeout", "0.5")


async def trickle(connection: Connection, data: bytes) -> None:
    """Send one byte after the other, each within the time limits, until the connection is closed."""
    while not connection.writer.is_closing() and not connection.reader.at_eof():
        connection.send(data[:1])
        data = data[1:] or data
        await asyncio.sleep(0.1)


async def trickled(controller: ControllerProcess, first: bytes, then: bytes) -> tuple[int, str]:
    async with connect(controller) as connection:
        connection.send(first)
        task = asyncio.create_task(trickle(connection, then))
        try:
            return await connection.error()
        finally:
            task.cancel()


async def test_slow_heads_and_bodies_get_a_408(serve: Serve) -> None:
    controller = serve(*LIMITS)
    controller.register(A)
    assert await trickled(controller, b"", POST) == (408, "head_timeout")
    assert await trickled(controller, POST, b"X: " + b"a" * 1000) == (408, "head_timeout")
    assert await trickled(controller, POST + b"Content-Length: 500\r\n\r\n", b" " * 500) == (408, "body_timeout")
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\n"
    assert await trickled(controller, chunked, b"1\r\n \r\n" * 500) == (408, "body_timeout")
    assert await trickled(controller, chunked + b"1;x=", b"a" * 500) == (408, "body_timeout")
    assert await trickled(controller, STREAM + b"Content-Length: 500\r\n\r\n", b" " * 500) == (408, "body_timeout")
    async with connect(controller) as connection:  # the second request of a connection
        connection.send(DISPATCH + POST)
        assert (await connection.response())[0] == 200
        assert await connection.error() == (408, "head_timeout")
    assert refusals(controller) == {"head_time": 3, "body_time": 4}
    await wait_until(lambda: clients(controller) == 0, "all connections are closed")
    assert controller.dispatch() == A
    assert "Traceback" not in controller.log


async def test_connections_without_a_request_are_closed_without_a_response(serve: Serve) -> None:
    controller = serve(*LIMITS, "--idle-timeout", "1")
    for sent in (b"", b"\r\n", b"\r\n" * 40):
        async with connect(controller) as connection:
            connection.send(sent)
            assert await connection.rest() == b"", sent
    async with connect(controller) as connection:  # line breaks between requests do not keep a connection open
        connection.send(DISPATCH)
        assert (await connection.response())[0] == 200
        task = asyncio.create_task(trickle(connection, b"\r\n" * 1000))
        assert await connection.rest() == b""
        task.cancel()
    async with connect(controller) as connection:  # an idle connection
        connection.send(DISPATCH)
        assert (await connection.response())[0] == 200
        assert await connection.rest() == b""


async def test_a_discarded_body_has_a_time_limit_too(serve: Serve) -> None:
    controller = serve(*LIMITS)
    async with connect(controller) as connection:
        connection.send(POST + b"Content-Length: 99999999\r\n\r\n")
        assert (await connection.response())[0] == 413
        task = asyncio.create_task(trickle(connection, b" " * 9999))
        assert await connection.rest() == b"", "a second response would be taken for that to the next request"
        task.cancel()


async def slow(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    await asyncio.sleep(3)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")
    await writer.drain()


async def test_a_client_that_waits_for_its_response_is_not_disconnected(serve: Serve) -> None:
    controller = serve(*LIMITS)
    async with bad_worker(worker_generate=slow) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        request = DISPATCH.replace(b"/get_worker_address", b"/worker_generate")
        for more in (b"", b"\r\n", POST, POST + b"Content-Length: 5\r\n\r\n "):
            async with connect(controller) as connection:
                connection.send(request + more)
                assert (await connection.response())[0] == 200, more


async def test_a_connection_is_kept_while_it_is_used(serve: Serve) -> None:
    """Each check sees the connection in the same state, but not waiting for the same request."""
    controller = serve(*LIMITS)
    controller.register(A)
    async with connect(controller) as connection:
        end = time.monotonic() + 2.5
        while time.monotonic() < end:
            connection.send(DISPATCH[:50])
            await asyncio.sleep(0.02)
            connection.send(DISPATCH[50:-1])
            await asyncio.sleep(0.02)
            connection.send(DISPATCH[-1:])
            assert (await connection.response())[0] == 200


async def endless(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    while True:
        writer.write(b"a" * 65535 + b"\0")
        await writer.drain()


async def test_a_client_that_reads_nothing_is_disconnected_and_its_lease_released(serve: Serve) -> None:
    controller = serve(*LIMITS)
    async with bad_worker(worker_generate_stream=endless) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        async with connect(controller) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            connection.send(DISPATCH.replace(b"/get_worker_address", b"/worker_generate_stream"))
            await wait_until(lambda: refusals(controller).get("send_time"), "the client is disconnected")
            await wait_until(lambda: not worker.open, "the worker's request has ended")
        await wait_until(lambda: clients(controller) == 0, "all connections are closed")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "the lease is released")


async def test_a_client_that_reads_slowly_is_not_disconnected(serve: Serve) -> None:
    """Kernel buffers of megabytes fill before the controller notices, so the client's own progress must count."""
    controller = serve(*LIMITS)
    async with bad_worker(worker_generate_stream=endless) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        async with connect(controller, receive_buffer=65536) as connection:
            connection.send(DISPATCH.replace(b"/get_worker_address", b"/worker_generate_stream"))
            end = time.monotonic() + 4
            while time.monotonic() < end:
                assert await connection.reader.read(32768)
                await asyncio.sleep(0.05)
            assert "send_time" not in refusals(controller)


async def test_a_response_that_is_not_read_does_not_keep_its_connection(serve: Serve) -> None:
    controller = serve(*LIMITS)
    body = b"a" * (8 * MIB)
    async with bad_worker(worker_generate=answers(body)) as worker:
        await asyncio.to_thread(controller.register, worker.address)
        async with connect(controller) as connection:
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            request = DISPATCH.replace(b"/get_worker_address", b"/worker_generate")
            connection.send(request.replace(b"Host: x", b"Host: x\r\nConnection: close"))
            await wait_until(lambda: refusals(controller).get("send_time"), "the client is disconnected")
            await wait_until(lambda: clients(controller) == 0, "its connection is closed")
