"""Floods of registrations and of leases: the memory of Redis is bounded, and flat again when they have expired."""

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Figure
from tests.security.connections import MIB, Serve, files
from tests.support.waiting import wait_until
from tests.system import servers
from tests.system.processes import ControllerProcess
from tests.system.test_serve import A

pytestmark = pytest.mark.system

WORKERS, LEASES = 50, 20
HEARTBEATS_EXPIRE, LEASES_EXPIRE = 3.0, 5.0  # seconds
LIMITS = (
    *("--max-workers", str(WORKERS), "--max-leases", str(LEASES), "--registration-rate", "0", "--poll-interval", "0"),
    *("--sweep-interval", "0.2", "--heartbeat-expiration", str(HEARTBEATS_EXPIRE)),
    # The reply to a registration is kept as long as it may be repeated, which is --register-timeout and some seconds.
    *("--lease-time", str(LEASES_EXPIRE), "--register-timeout", "1", "--redis-timeout", "1"),
)


@pytest.fixture
async def redis(work_dir: Path) -> AsyncIterator[servers.Server]:
    async with servers.single(work_dir) as server:
        yield server


async def used_memory(redis: servers.Server) -> int:
    """Return the memory that the data of Redis occupy, without the buffers of its clients."""
    client = redis.client()
    try:
        return int((await client.info("memory"))["used_memory_dataset"])
    finally:
        await client.aclose()


async def number_of_keys(redis: servers.Server) -> int:
    client = redis.client()
    try:
        return int(await client.dbsize())
    finally:
        await client.aclose()


async def flood(calls: Iterator[Callable[[], Awaitable[httpx.Response]]], number: int) -> tuple[int, int, int, float]:
    """Make calls, 32 at once. Return the number of responses with status 200, 429 and others, and the seconds."""
    counts = [0, 0, 0]
    limited = itertools.islice(calls, number)
    began = time.monotonic()

    async def client() -> None:
        for call in limited:
            status = (await call()).status_code
            counts[0 if status == 200 else 1 if status == 429 else 2] += 1

    await asyncio.gather(*(client() for _ in range(32)))
    return counts[0], counts[1], counts[2], time.monotonic() - began


def registrations(http: httpx.AsyncClient, models: int) -> Iterator[Callable[[], Awaitable[httpx.Response]]]:
    """Yield registrations of ever other workers, each with models of its own."""
    for number in itertools.count():
        names = [f"model-{number}-{model}" for model in range(models)]
        status = {"model_names": names, "speed": 1, "queue_length": 0}
        body: dict[str, Any] = {
            "worker_name": f"http://127.0.0.1:1/{number}",
            "check_heart_beat": True,
            "worker_status": status,
        }
        yield lambda body=body: http.post("/register_worker", json=body)  # type: ignore[misc]


def leases(http: httpx.AsyncClient) -> Iterator[Callable[[], Awaitable[httpx.Response]]]:
    while True:
        yield lambda: http.post("/get_worker_address", json={"model": "m", "lease": True})


def client(controller: ControllerProcess) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=controller.url, timeout=60)


async def test_a_flood_of_registrations(serve: Serve, redis: servers.Server, figure: Figure) -> None:
    controller = serve("--redis-url", redis.url, *LIMITS)
    async with client(controller) as http:
        calls = registrations(http, models=20)
        await flood(calls, 200)  # Redis has allocated what it keeps, such as the scripts
        await wait_until(lambda: not controller.names(), "all workers have expired")
        keys, memory, open_files = await number_of_keys(redis), await used_memory(redis), files(controller)
        peak = 0
        refused = 0
        for _ in range(2):
            accepted, too_many, others, seconds = await flood(calls, 400)
            assert others == 0
            assert accepted <= WORKERS * (2 + seconds / HEARTBEATS_EXPIRE), (
                "others are accepted when these have expired"
            )
            refused += too_many
            peak = max(peak, await used_memory(redis))
            assert len(controller.names()) <= WORKERS
        assert refused > 0
        figure("memory of Redis in a flood of registrations", f"{(peak - memory) / MIB:.1f} MiB more")
        assert peak - memory < 2 * WORKERS * 20 * 2048
        await wait_until(lambda: not controller.names(), "all workers have expired")

        async def is_flat() -> bool:
            return await number_of_keys(redis) <= keys and await used_memory(redis) < memory + MIB

        await wait_until(is_flat, "the memory is as before", timeout=30)
    # A replica keeps up to 33 connections to Redis.
    await wait_until(lambda: files(controller) <= open_files + 33, "all connections are closed")
    assert "Traceback" not in controller.log


async def test_a_flood_of_leases(serve: Serve, redis: servers.Server, figure: Figure) -> None:
    controller = serve("--redis-url", redis.url, *LIMITS)
    controller.register(A, check=False)
    async with client(controller) as http:
        await flood(leases(http), 200)
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "all leases have expired")
        memory, peak, refused = await used_memory(redis), 0, 0
        for _ in range(2):
            accepted, too_many, others, seconds = await flood(leases(http), 400)
            assert others == 0
            assert accepted <= LEASES * (2 + seconds / LEASES_EXPIRE), "others are granted when these have expired"
            refused += too_many
            peak = max(peak, await used_memory(redis))
            assert controller.workers()[0]["leased"] <= LEASES
        assert refused > 0
        assert controller.dispatch() == A, "requests without a lease are served"
        figure("memory of Redis in a flood of leases", f"{(peak - memory) / MIB:.1f} MiB more")
        await wait_until(lambda: controller.workers()[0]["leased"] == 0, "all leases have expired")

        async def is_flat() -> bool:
            return await used_memory(redis) < memory + MIB // 2

        await wait_until(is_flat, "the memory is as before", timeout=30)
    assert "Traceback" not in controller.log
