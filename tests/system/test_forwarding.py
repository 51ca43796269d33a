"""Requests forwarded by real processes: byte for byte, and nothing is left of clients that go away."""

import asyncio
import contextlib
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, bad_worker, chunks, hangs
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess


def frames_at_random(rng: random.Random) -> Iterator[bytes]:
    """Frames of 1 byte to 256 KiB, more small ones than large ones."""
    for _ in range(10_000):
        yield rng.randbytes(round(2 ** rng.uniform(0, 18))).replace(b"\0", b"\1") + b"\0"


async def sends_frames(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
    """In pieces that have nothing to do with the frames."""
    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
    rng = random.Random(5)
    waiting = bytearray()
    for frame in frames_at_random(random.Random(4)):
        waiting += frame
        size = round(2 ** rng.uniform(0, 20))
        while len(waiting) >= size:
            writer.write(bytes(waiting[:size]))
            await writer.drain()
            del waiting[:size]
            size = round(2 ** rng.uniform(0, 20))
    writer.write(bytes(waiting))


@pytest.mark.parametrize("levels", [1, 3])
async def test_frames_come_through_all_levels_byte_for_byte(serve: Serve, levels: int) -> None:
    sent = hashlib.sha256()
    for frame in frames_at_random(random.Random(4)):
        sent.update(frame)
    came = hashlib.sha256()
    async with bad_worker(worker_generate_stream=sends_frames) as worker:
        below = worker.address
        for level in range(levels):
            controller = serve("--poll-interval", "0", data=f"level-{level}")
            controller.register(below, check=False)
            below = controller.url
        async with (
            httpx.AsyncClient(timeout=60.0) as http,
            http.stream("POST", f"{below}/worker_generate_stream", json={"model": "m"}) as response,
        ):
            async for part in response.aiter_raw():
                came.update(part)
    assert came.digest() == sent.digest()


async def ask(controller: ControllerProcess, path: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 14\r\n\r\n"
    writer.write(head.encode() + b'{"model": "m"}')
    return reader, writer


async def leave(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def test_clients_that_go_away_leave_nothing_behind(serve: Serve) -> None:
    """A thousand, each after three frames: the worker sees each go, and neither leases nor connections are left."""
    controller = serve("--poll-interval", "0")
    async with bad_worker(worker_generate_stream=chunks(*[b"frame\0"] * 10_000, pause=0.01)) as worker:
        controller.register(worker.address, check=False)

        async def read_three() -> None:
            reader, writer = await ask(controller, "/worker_generate_stream")
            seen = b""
            while seen.count(b"\0") < 3:
                seen += await reader.read(65_536)
            await leave(writer)

        for _ in range(10):
            await asyncio.gather(*(read_three() for _ in range(100)))
        await wait_until(lambda: worker.open == 0, "the worker has seen all of them go")
        assert len(worker.requests) == 1_000
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "no lease is left")
        assert controller.workers()[0]["queue_length"] == 0
        await wait_until(lambda: sockets(controller) < 20, "no connection is left")


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate", "/v1/other"])
async def test_clients_that_go_away_before_there_is_an_answer(serve: Serve, path: str) -> None:
    """Some at once, some while the worker thinks: it is told, and nothing is booked for them any more."""
    controller = serve("--poll-interval", "0")
    async with bad_worker(**{path.rpartition("/")[2]: hangs}) as worker:
        controller.register(worker.address, check=False)
        clients = [await ask(controller, path) for _ in range(50)]
        for i in range(200):
            _, writer = await ask(controller, path)
            if i % 2:
                await asyncio.sleep(0.002 * (i % 5))  # at whatever step it is
            await leave(writer)
        await wait_until(lambda: worker.open == 50, "only those that are still there are asked for")
        await wait_until(lambda: controller.workers()[0]["leased"] == 50, "and booked")
        for _, writer in clients:
            await leave(writer)
        await wait_until(lambda: worker.open == 0, "nothing is asked for")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "nothing is booked")
        await wait_until(lambda: sockets(controller) < 20, "no connection is left")
    assert "this is a bug" not in controller.log
    assert "Exception" not in controller.log


async def test_clients_that_do_not_read_cost_little(serve: Serve) -> None:
    """The worker would send each of them 64 MiB."""
    controller = serve("--poll-interval", "0")
    sent = 0

    async def floods(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        for _ in range(1024):
            writer.write(b"x" * 65_535 + b"\0")
            await writer.drain()
            sent += 65_536

    async with bad_worker(worker_generate_stream=floods) as worker:
        controller.register(worker.address, check=False)
        before = resident(controller)
        clients = [await ask(controller, "/worker_generate_stream") for _ in range(50)]
        await wait_until(lambda: len(worker.requests) == 50, "all have reached the worker")
        seen = -1

        async def stands_still() -> bool:
            nonlocal seen
            moved, seen = sent != seen, sent
            await asyncio.sleep(0.3)
            return not moved

        await wait_until(stands_still, "the worker waits for the clients")
        assert (resident(controller) - before) / 50 < 1024, "KiB a client, of the 65,536 that are for it"
        for _, writer in clients:
            await leave(writer)
        await wait_until(lambda: worker.open == 0, "the worker is told")


def resident(controller: ControllerProcess) -> int:
    """Its memory, in KiB."""
    status = Path(f"/proc/{controller.popen.pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def sockets(controller: ControllerProcess) -> int:
    links = []
    for path in Path(f"/proc/{controller.popen.pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # it was closed meanwhile
            links.append(str(path.readlink()))
    return sum(link.startswith("socket:") for link in links)
