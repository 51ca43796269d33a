"""Every invalid response of a worker ends the request: at once if the fault is visible, otherwise by a timeout."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial

import pytest

from controller.domain.errors import StreamBroken, WorkerError, WorkerSilent, WorkerUnreachable
from controller.upstream.client import WorkerClient
from controller.upstream.connections import ResponseProtocol
from controller.upstream.response import WorkerResponse
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, bad_worker, plain, sends

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
UNTIL_CLOSED = b"HTTP/1.1 200 OK\r\n\r\n"
FRAME = b"one\0"
ENDS = ("open", "closed", "reset")


def length(size: int) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size


def chunk(part: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(part), part)


@dataclass
class Fault:
    """A body with a fault.

    before, after: the valid bytes that the worker sends, and the faulty bytes that follow.
    kept, closed: the expected error if the worker keeps the connection open, or closes it. None means no error.
    """

    before: bytes
    after: bytes
    kept: type[WorkerError] | None
    closed: type[WorkerError] | None


BODIES = {
    "a chunk length that is not a number": Fault(CHUNKED + chunk(FRAME), b"zz\r\n", StreamBroken, StreamBroken),
    "an error page": Fault(
        CHUNKED + chunk(FRAME), plain(b"oops", status=b"502 Bad Gateway"), StreamBroken, StreamBroken
    ),
    "a chunk length of 30 digits": Fault(CHUNKED + chunk(FRAME), b"f" * 30 + b"\r\n", StreamBroken, StreamBroken),
    "a chunk that is too long": Fault(CHUNKED + chunk(FRAME), b"2\r\nabcdef\r\n", StreamBroken, StreamBroken),
    "no last chunk": Fault(CHUNKED + chunk(FRAME), b"", WorkerSilent, StreamBroken),
    "half a chunk": Fault(CHUNKED + chunk(FRAME), b"20\r\nhalf", WorkerSilent, StreamBroken),
    "half a chunk length": Fault(CHUNKED + chunk(FRAME), b"2", WorkerSilent, StreamBroken),
    "a last chunk without its end": Fault(CHUNKED + chunk(FRAME), b"0\r\n", WorkerSilent, StreamBroken),
    "a trailer without its end": Fault(CHUNKED + chunk(FRAME), b"0\r\nX-Time: ", WorkerSilent, StreamBroken),
    "too many trailers": Fault(
        CHUNKED + chunk(FRAME), b"0\r\n" + b"X-Time: 1\r\n" * 600 + b"\r\n", StreamBroken, StreamBroken
    ),
    "a huge chunk extension": Fault(CHUNKED + chunk(FRAME), b"4;" + b"x" * 3_000_000, WorkerSilent, StreamBroken),
    "too short": Fault(length(10) + FRAME, b"", WorkerSilent, StreamBroken),
    "too long": Fault(length(4) + FRAME, b"more\0", None, None),
    "garbage after the last chunk": Fault(CHUNKED + chunk(FRAME), b"0\r\n\r\ngarbage", None, None),
    "another response after the last chunk": Fault(CHUNKED + chunk(FRAME), b"0\r\n\r\n" + plain(b"x\0"), None, None),
    "no length": Fault(UNTIL_CLOSED + FRAME, b"", WorkerSilent, None),
}


@pytest.fixture
async def client() -> AsyncIterator[WorkerClient]:
    """Return a client with short timeouts."""
    opened = WorkerClient(probe_timeout=0.2, worker_timeout=0.2)
    yield opened
    await opened.close()


@pytest.fixture
async def client_with_long_timeouts() -> AsyncIterator[WorkerClient]:
    """Return a client whose timeouts never expire in a test."""
    opened = WorkerClient(probe_timeout=60.0, worker_timeout=60.0)
    yield opened
    await opened.close()


async def read(answer: WorkerResponse, frames: bool, gate: asyncio.Event) -> tuple[bytes, type[WorkerError] | None]:
    """Return the body up to its end or fault, and the error. Open the gate when a piece has arrived."""
    received = b""
    try:
        async for piece in answer.frames() if frames else answer.pieces():
            received += piece
            gate.set()
    except WorkerError as error:
        return received, type(error)
    finally:
        answer.close()
    return received, None


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one by one"])
@pytest.mark.parametrize("frames", [True, False], ids=["stream", "call"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("case", BODIES)
async def test_invalid_body_ends_the_request(
    client: WorkerClient, client_with_long_timeouts: WorkerClient, case: str, end: str, frames: bool, at_once: bool
) -> None:
    fault, gate = BODIES[case], asyncio.Event()
    parts = [fault.before + fault.after] if at_once else [fault.before, fault.after]
    expected = fault.kept if end == "open" else fault.closed
    if end == "reset" and case == "no length":
        expected = StreamBroken
    if expected is not WorkerSilent:
        client = client_with_long_timeouts
    async with bad_worker(worker_generate_stream=sends(*parts, end=end, gate=gate)) as worker:
        if at_once and end == "reset":  # a reset may discard data that the client has not read yet
            answer = await send_or_none(client, worker.address)
            kind = StreamBroken if answer is None else (await read(answer, frames, gate))[1]
            assert kind in (expected, StreamBroken)
            return
        answer = await client.post(worker.address, "/worker_generate_stream", b"{}")
        received, kind = await read(answer, frames, gate)
        assert kind is expected
        assert received.startswith(FRAME), "the complete frame is passed on"
        assert not frames or received == FRAME
        await wait_until(lambda: worker.open == 0, "the connection is closed")


async def send_or_none(client: WorkerClient, address: str) -> WorkerResponse | None:
    try:
        return await client.post(address, "/worker_generate_stream", b"{}")
    except StreamBroken:
        return None


HEADS = {
    "nothing": (b"", WorkerSilent, StreamBroken),
    "half a status line": (b"HTTP/1.1 20", WorkerSilent, StreamBroken),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", WorkerSilent, StreamBroken),
    "not HTTP": (b"SSH-2.0-OpenSSH_9.6\r\n", StreamBroken, StreamBroken),
    "a header of 70 kB": (b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"x" * 70_000), StreamBroken, StreamBroken),
    "a header without end": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 3_000_000, StreamBroken, StreamBroken),
    "a thousand headers": (b"HTTP/1.1 200 OK\r\n" + b"X: 1\r\n" * 1000 + b"\r\n", StreamBroken, StreamBroken),
    "a megabyte of headers": (b"HTTP/1.1 200 OK\r\n" + b"X: %s\r\n" % (b"x" * 50_000) * 20, StreamBroken, StreamBroken),
    "informational responses only": (b"HTTP/1.1 103 Hints\r\n\r\n" * 3, WorkerSilent, StreamBroken),
    "too many informational responses": (b"HTTP/1.1 103 Hints\r\n\r\n" * 30_000, StreamBroken, StreamBroken),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx", StreamBroken, StreamBroken),
    "length and chunks": (CHUNKED[:-2] + b"Content-Length: 1\r\n\r\nx", StreamBroken, StreamBroken),
    "a coding that was not requested": (CHUNKED.replace(b"chunked", b"gzip, chunked"), StreamBroken, StreamBroken),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("case", HEADS)
async def test_invalid_head_ends_the_request(
    client: WorkerClient, client_with_long_timeouts: WorkerClient, case: str, end: str
) -> None:
    sent, kept, closed = HEADS[case]
    expected = kept if end == "open" else closed
    if expected is not WorkerSilent:
        client = client_with_long_timeouts
    async with bad_worker(worker_generate_stream=sends(sent, end=end)) as worker:
        with pytest.raises(expected):
            await client.post(worker.address, "/worker_generate_stream", b"{}")
        await wait_until(lambda: worker.open == 0, "the connection is closed")
        assert len(worker.requests) == 1


@pytest.mark.parametrize("case", [*HEADS, *BODIES])
async def test_invalid_response_ends_a_status_request(client: WorkerClient, case: str) -> None:
    sent = HEADS[case][0] if case in HEADS else BODIES[case].before + BODIES[case].after
    async with bad_worker(worker_get_status=sends(sent, end="open")) as worker:
        with pytest.raises(WorkerUnreachable):
            await client.status(worker.address)
        await wait_until(lambda: worker.open == 0, "the connection is closed")


async def test_probe_timeout_ends_a_slow_status_request(client: WorkerClient) -> None:
    """The timeout is for the whole call, not for each read."""

    async def send_slowly(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(length(1_000_000))
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.01)

    async with bad_worker(worker_get_status=send_slowly) as worker:
        with pytest.raises(WorkerUnreachable, match=r"within 0\.2 s"):
            await client.status(worker.address)


async def test_worker_timeout_ends_a_slow_error_body(client: WorkerClient) -> None:
    async def send_slowly(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        writer.write(length(1_000_000).replace(b"200 OK", b"500 Oops"))
        while True:
            writer.write(b" ")
            await asyncio.sleep(0.01)

    async with bad_worker(worker_generate=send_slowly) as worker:
        answer = await client.post(worker.address, "/worker_generate", b"{}")
        with pytest.raises(WorkerSilent):
            await answer.refusal()
        answer.close()


async def test_slow_client_does_not_trigger_the_worker_timeout(client: WorkerClient) -> None:
    async with bad_worker(
        worker_generate_stream=sends(CHUNKED + chunk(FRAME), chunk(FRAME * 500_000) + b"0\r\n\r\n", end="open")
    ) as worker:
        answer = await client.post(worker.address, "/worker_generate_stream", b"{}")
        frames = answer.frames()
        received = [await anext(frames)]

        def has_other_timer_than(timer: object) -> bool:
            return answer._timer is not timer

        for _ in range(3):
            await wait_until(partial(has_other_timer_than, answer._timer), "the timeout has passed")
        received += [piece async for piece in frames]
        answer.close()
    assert b"".join(received) == FRAME * 500_001


async def test_worker_that_reads_the_request_slowly_is_not_silent() -> None:
    """The timeout for the response head starts when the worker has read the request."""
    client = WorkerClient(probe_timeout=0.5, worker_timeout=0.5)
    read_time = 0.0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read_time
        began = asyncio.get_running_loop().time()
        left = 24_000_000
        await reader.readuntil(b"\r\n\r\n")
        while left > 0:
            left -= len(await reader.read(1_000_000))
            await asyncio.sleep(0.01)
        read_time = asyncio.get_running_loop().time() - began
        writer.write(plain(FRAME))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    answer = await client.post(address, "/worker_generate_stream", b"x" * 24_000_000)
    assert (await read(answer, True, asyncio.Event())) == (FRAME, None)
    assert read_time > 0.5, "reading took longer than the worker timeout"
    server.close()
    await client.close()


async def test_connections_use_our_protocol(client: WorkerClient) -> None:
    """We pass ResponseProtocol to aiohttp through an attribute that another version may not have."""
    async with bad_worker(worker_generate_stream=sends(CHUNKED + chunk(FRAME), end="open")) as worker:
        answer = await client.post(worker.address, "/worker_generate_stream", b"{}")
        assert isinstance(answer._response._connection.protocol, ResponseProtocol)
        answer.close()
