"""Several replicas with default settings choose workers as one replica does."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from controller.store import keys
from controller.store.connection import connect
from tests.support.clients import Client
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, stock_worker
from tests.system.servers import single

pytestmark = pytest.mark.system

DEFAULTS = ("--booking-decay", "on", "--booking-delay", "0.2")


async def dispatch_many(controller: ControllerProcess, number: int, **body: object) -> list[dict[str, str]]:
    async with httpx.AsyncClient(timeout=60.0, limits=httpx.Limits(max_connections=64)) as http:
        url = f"{controller.url}/get_worker_address"
        answers = await asyncio.gather(*(http.post(url, json={"model": "m", **body}) for _ in range(number)))
    return [answer.json() for answer in answers]


@pytest.mark.slow
async def test_a_burst_is_spread_evenly(serve: Serve) -> None:
    controller = serve("--replicas", "4", *DEFAULTS)
    for i in range(4):
        controller.register(f"http://127.0.0.1:1/w{i}")
    answers = await dispatch_many(controller, 256, lease=True)
    assert Counter(answer["address"] for answer in answers) == {f"http://127.0.0.1:1/w{i}": 64 for i in range(4)}
    assert [worker["queue_length"] for worker in controller.workers()] == [64] * 4
    for answer in answers:
        assert controller.post("/release_worker", {"lease": answer["lease"]}) == {"released": True}
    assert [worker["queue_length"] for worker in controller.workers()] == [0] * 4


async def test_a_lease_expires_if_its_client_does_not_release_it(serve: Serve) -> None:
    controller = serve()
    controller.register("http://127.0.0.1:1/w")
    [answer] = await dispatch_many(controller, 1, lease=True)
    await dispatch_many(controller, 1, lease=60)
    await expire_leases(controller.store_url, answer["lease"])
    await dispatch_many(controller, 1, lease=60)  # a dispatch removes expired leases
    [worker] = controller.workers()
    assert (worker["leased"], worker["queue_length"]) == (2, 2)
    assert controller.post("/release_worker", {"lease": answer["lease"]}) == {"released": False}


async def test_a_hanging_stock_worker_is_soon_deprioritised(serve: Serve, work_dir: Path) -> None:
    """A failed poll deprioritises the worker long before its heartbeat expires. An answered poll clears the failure."""
    controller = serve("--poll-interval", "0.3", "--probe-timeout", "0.3", *DEFAULTS)
    with stock_worker(work_dir, controller.url, "--model-names", "m", interval=45) as hanging:
        controller.register("http://127.0.0.1:9", queue_length=50)
        await wait_until(lambda: controller.dispatch() == hanging.url, "the worker is chosen")
        await wait_until(lambda: answered_polls(controller) > 0, "the worker has answered a poll")
        os.kill(hanging.popen.pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: failing(controller, hanging.url) == "polls", "a poll has failed")
            assert {controller.dispatch() for _ in range(5)} == {"http://127.0.0.1:9"}
        finally:
            os.kill(hanging.popen.pid, signal.SIGCONT)
        await wait_until(lambda: controller.dispatch() == hanging.url, "the worker is chosen again")


@pytest.mark.slow
async def test_a_stream_of_a_killed_replica_is_booked_until_its_lease_expires(serve: Serve, work_dir: Path) -> None:
    flags = ("--poll-interval", "0.3", *DEFAULTS)
    async with single(work_dir) as store:
        killed, other = (serve("--redis-url", store.url, *flags, data=f"r{i}") for i in range(2))
        with stock_worker(work_dir, other.url, "--model-names", "m", "--delay", "0.3", interval=45) as worker:
            await wait_until(lambda: other.dispatch() == worker.url, "the worker is chosen")
            with pytest.raises(httpx.TransportError):
                await kill_during(killed, other)
            assert leased(other) == 1, "the lease is still active"
            await expire_leases(store.url)
            await wait_until(lambda: leased(other) == 0, "the lease has expired")


async def expire_leases(url: str, *leases: str) -> None:
    """Move the expiration of these leases, or of all leases, into the past."""
    client: Client = connect(url, timeout=60.0)
    key = keys.leases("controller")
    for lease in leases or await client.zrange(key, 0, -1):
        await client.zadd(key, {lease: 1.0}, xx=True)
    await client.aclose()


async def kill_during(killed: ControllerProcess, other: ControllerProcess) -> None:
    """Start a stream and kill its replica after the first frame."""
    body = {"model": "m", "prompt": "word " * 30}
    async with (
        httpx.AsyncClient() as http,
        http.stream("POST", f"{killed.url}/worker_generate_stream", json=body) as answer,
    ):
        async for _ in answer.aiter_bytes():
            assert leased(other) == 1
            killed.kill()


def leased(controller: ControllerProcess) -> object:
    [shown] = controller.workers()
    return shown["leased"]


def answered_polls(controller: ControllerProcess) -> float:
    [line] = [line for line in metrics(controller) if line.startswith('controller_polls_total{outcome="answered"}')]
    return float(line.split()[1])


def metrics(controller: ControllerProcess) -> list[str]:
    return httpx.get(f"{controller.url}/metrics").text.splitlines()


def failing(controller: ControllerProcess, name: str) -> object:
    [shown] = [worker for worker in controller.workers() if worker["worker_name"] == name]
    return shown["failing"]
