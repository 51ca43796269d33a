"""Several replicas, with the settings that they come with, choose as one would."""

import asyncio
import os
import signal
from collections import Counter
from pathlib import Path

import httpx
import pytest

from controller.store import keys
from controller.store.connection import connect
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, stock_worker
from tests.system.servers import single

DEFAULTS = ("--booking-decay", "on", "--booking-delay", "0.2")


async def ask(controller: ControllerProcess, number: int, **body: object) -> list[dict[str, str]]:
    async with httpx.AsyncClient(timeout=60.0, limits=httpx.Limits(max_connections=64)) as http:
        url = f"{controller.url}/get_worker_address"
        answers = await asyncio.gather(*(http.post(url, json={"model": "m", **body}) for _ in range(number)))
    return [answer.json() for answer in answers]


@pytest.mark.parametrize("lease", [False, True])
async def test_a_burst_is_spread_evenly(serve: Serve, lease: bool) -> None:
    controller = serve("--replicas", "4", *DEFAULTS)
    for i in range(4):
        controller.register(f"http://127.0.0.1:1/w{i}")
    answers = await ask(controller, 256, lease=lease)
    assert Counter(answer["address"] for answer in answers) == {f"http://127.0.0.1:1/w{i}": 64 for i in range(4)}
    if lease:
        assert [worker["queue_length"] for worker in controller.workers()] == [64] * 4
        for answer in answers:
            assert controller.post("/release_worker", {"lease": answer["lease"]}) == {"released": True}
        assert [worker["queue_length"] for worker in controller.workers()] == [0] * 4


async def test_a_lease_whose_client_died_ends_by_itself(serve: Serve) -> None:
    controller = serve()
    controller.register("http://127.0.0.1:1/w")
    [answer] = await ask(controller, 1, lease=True)
    await ask(controller, 1, lease=60)
    await let_leases_lapse(controller.store_url, answer["lease"])
    await ask(controller, 1, lease=60)  # by then at the latest
    [worker] = controller.workers()
    assert (worker["leased"], worker["queue_length"]) == (2, 2)
    assert controller.post("/release_worker", {"lease": answer["lease"]}) == {"released": False}


async def test_a_stock_worker_that_hangs_gets_no_work_soon(serve: Serve, work_dir: Path) -> None:
    """Long before its heartbeat lapses; and gets work again when it answers."""
    controller = serve("--poll-interval", "0.3", "--probe-timeout", "0.3", *DEFAULTS)
    with stock_worker(work_dir, controller.url, "--model-names", "m", interval=45) as hanging:
        controller.register("http://127.0.0.1:9", queue_length=50)
        await wait_until(lambda: controller.dispatch() == hanging.url, "it gets work")
        await wait_until(lambda: answered_polls(controller) > 0, "it has answered a poll")
        os.kill(hanging.popen.pid, signal.SIGSTOP)
        try:
            await wait_until(lambda: failing(controller, hanging.url) == "polls", "it does not answer")
            assert {controller.dispatch() for _ in range(5)} == {"http://127.0.0.1:9"}
        finally:
            os.kill(hanging.popen.pid, signal.SIGCONT)
        await wait_until(lambda: controller.dispatch() == hanging.url, "it is forgiven")


async def test_a_stream_whose_replica_was_killed_is_booked_until_its_lease_is_over(
    serve: Serve, work_dir: Path
) -> None:
    flags = ("--poll-interval", "0.3", *DEFAULTS)
    async with single(work_dir) as store:
        killed, other = (serve("--redis-url", store.url, *flags, data=f"r{i}") for i in range(2))
        with stock_worker(work_dir, other.url, "--model-names", "m", "--delay", "0.3", interval=45) as worker:
            await wait_until(lambda: other.dispatch() == worker.url, "it gets work")
            with pytest.raises(httpx.TransportError):
                await kill_during(killed, other)
            assert leased(other) == 1, "nobody can know yet that the stream has ended"
            await let_leases_lapse(store.url)
            await wait_until(lambda: leased(other) == 0, "its lease is over")


async def let_leases_lapse(url: str, *leases: str) -> None:
    """As if the time of these leases, or of all, had passed."""
    client = connect(url, timeout=60.0)
    key = keys.leases("controller")
    for lease in leases or await client.zrange(key, 0, -1):
        await client.zadd(key, {lease: 1.0}, xx=True)
    await client.aclose()


async def kill_during(killed: ControllerProcess, other: ControllerProcess) -> None:
    """A stream through a replica that is killed after the first frame."""
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
