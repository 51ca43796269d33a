"""Real processes forward requests unchanged, and clean up after clients that disconnect."""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, chunks, hangs
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.system


def random_frames(rng: random.Random) -> Iterator[bytes]:
    """Yield 10,000 frames of 1 byte to 256 KiB. Small frames are more frequent than large ones."""
    for _ in range(10_000):
        yield rng.randbytes(round(2 ** rng.uniform(0, 18))).replace(b"\0", b"\1") + b"\0"


async def send_frames(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    """Send the frames in pieces whose boundaries are independent of the frames."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    rng = random.Random(5)
    buffer = bytearray()
    for frame in random_frames(random.Random(4)):
        buffer += frame
        size = round(2 ** rng.uniform(0, 20))
        while len(buffer) >= size:
            writer.write(bytes(buffer[:size]))
            await writer.drain()
            del buffer[:size]
            size = round(2 ** rng.uniform(0, 20))
    writer.write(bytes(buffer))


@pytest.mark.parametrize("levels", [1, pytest.param(3, marks=pytest.mark.slow)])
async def test_frames_pass_all_levels_unchanged(serve: Serve, levels: int) -> None:
    sent = hashlib.sha256()
    for frame in random_frames(random.Random(4)):
        sent.update(frame)
    received = hashlib.sha256()
    async with bad_worker(worker_generate_stream=send_frames) as worker:
        target = worker.address
        for level in range(levels):
            controller = serve("--poll-interval", "0", data=f"level-{level}")
            controller.register(target, check=False)
            target = controller.url
        async with (
            httpx.AsyncClient(timeout=60.0) as http,
            http.stream("POST", f"{target}/worker_generate_stream", json={"model": "m"}) as response,
        ):
            async for part in response.aiter_raw():
                received.update(part)
    assert received.digest() == sent.digest()


async def send_request(controller: ControllerProcess, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n"
    writer.write(head.encode() + b'{"model": "m"}')
    return reader, writer


async def disconnect(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_disconnected_clients_leave_no_leases_and_no_connections(controller: ControllerProcess) -> None:
    """1,000 clients disconnect after three frames each. Their requests to the worker are cancelled."""
    async with bad_worker(worker_generate_stream=chunks(*[b"frame\0"] * 10_000, pause=0.01)) as worker:
        controller.register(worker.address, check=False)

        async def read_three() -> None:
            reader, writer = await send_request(controller, "/worker_generate_stream")
            received = b""
            while received.count(b"\0") < 3:
                received += await reader.read(65_536)
            await disconnect(writer)

        for _ in range(10):
            await asyncio.gather(*(read_three() for _ in range(100)))
        await wait_until(lambda: worker.open == 0, "all requests to the worker are cancelled")
        assert len(worker.requests) == 1_000
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "no lease remains")
        assert controller.workers()[0]["queue_length"] == 0
        await wait_until(lambda: sockets(controller) < 20, "the connections are closed")


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/v1/rerank"])
async def test_clients_that_disconnect_before_the_response_leave_nothing_behind(serve: Serve, path: str) -> None:
    """Clients disconnect at once or while the worker is busy. Requests are cancelled and leases released."""
    controller = serve("--poll-interval", "0", "--redis-timeout", "30")
    async with bad_worker(**{path.rpartition("/")[2]: hangs}) as worker:
        controller.register(worker.address, check=False)
        clients = [await send_request(controller, path) for _ in range(50)]
        await wait_until(lambda: worker.open == 50, "the requests of these clients have reached the worker")
        for i in range(200):
            _, writer = await send_request(controller, path)
            if i % 2:
                await asyncio.sleep(0.002 * (i % 5))  # the request is then at different stages
            await disconnect(writer)
        await wait_until(lambda: worker.open == 50, "only the requests of connected clients remain")
        await wait_until(lambda: controller.workers()[0]["leased"] == 50, "only the leases of connected clients remain")
        for _, writer in clients:
            await disconnect(writer)
        await wait_until(lambda: worker.open == 0, "no request remains")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "no lease remains")
        await wait_until(lambda: sockets(controller) < 20, "the connections are closed")
    assert "because of a bug" not in controller.log
    assert "Exception" not in controller.log


async def test_generations_whose_clients_have_left_are_booked_until_the_worker_answers(
    controller: ControllerProcess,
) -> None:
    gate = asyncio.Event()

    async def respond_after_gate(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await gate.wait()
        await answers(b'{"text": "done"}')(worker, writer, body)

    async with bad_worker(worker_generate=respond_after_gate) as worker:
        controller.register(worker.address, check=False)
        clients = [await send_request(controller, "/worker_generate") for _ in range(100)]
        await wait_until(lambda: len(worker.requests) == 100, "all requests have reached the worker")
        for _, writer in clients:
            await disconnect(writer)
        await wait_until(lambda: sockets(controller) < 120, "the connections of the clients are closed")
        assert worker.open == 100
        assert controller.workers()[0]["leased"] == 100
        gate.set()
        await wait_until(lambda: worker.open == 0, "the worker has answered all")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "no lease remains")
        await wait_until(lambda: sockets(controller) < 20, "the connections are closed")
    assert "because of a bug" not in controller.log
    assert "Exception" not in controller.log


@pytest.mark.slow
async def test_clients_that_do_not_read_use_little_memory(serve: Serve) -> None:
    """The worker has 64 MiB to send to each client."""
    controller = serve("--poll-interval", "0")
    sent = 0

    async def send_64_mib(_worker: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(1024):
            writer.write(b"x" * 65_535 + b"\0")
            await writer.drain()
            sent += 65_536

    async with bad_worker(worker_generate_stream=send_64_mib) as worker:
        controller.register(worker.address, check=False)
        before = resident(controller)
        clients = [await send_request(controller, "/worker_generate_stream") for _ in range(50)]
        await wait_until(lambda: len(worker.requests) == 50, "all requests have reached the worker")
        sent_before = -1

        async def is_blocked() -> bool:
            nonlocal sent_before
            blocked, sent_before = sent == sent_before, sent
            await asyncio.sleep(0.3)
            return blocked

        await wait_until(is_blocked, "the worker cannot send more")
        assert (resident(controller) - before) / 50 < 1024, "each client uses less than 1 of its 64 MiB"
        for _, writer in clients:
            await disconnect(writer)
        await wait_until(lambda: worker.open == 0, "all requests to the worker are cancelled")


def resident(controller: ControllerProcess) -> int:
    """Return the resident memory of the controller in KiB."""
    status = Path(f"/proc/{controller.popen.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def sockets(controller: ControllerProcess) -> int:
    """Count the open sockets of the controller."""
    links = []
    for path in Path(f"/proc/{controller.popen.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # the file was closed after it was listed
            links.append(str(path.readlink()))
    return sum(link.startswith("socket:") for link in links)
