"""Replicas are killed under load, and a burst arrives at several replicas at once."""

import asyncio
import os
import random
import signal
from collections import Counter
from functools import partial

import httpx
import pytest

from controller.store.connection import connect
from controller.store.registry import Registry
from tests.support.clients import Client
from tests.support.invariants import check_invariants
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess
from tests.system.test_serve import replicas

pytestmark = pytest.mark.system

KILLS = 12
WORKERS = [f"http://127.0.0.1:1/w{i}" for i in range(8)]


class Load:
    """Clients that dispatch, and workers that register and leave, until `stop` is set.

    acknowledged: how often each address was returned.
    unknown: dispatches without a response, which may have been booked.
    wrong: one description per unexpected response.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.stop = asyncio.Event()
        self.acknowledged: Counter[str] = Counter()
        self.unknown = 0
        self.wrong: list[str] = []

    async def dispatch(self, http: httpx.AsyncClient) -> None:
        while not self.stop.is_set():
            try:
                response = await http.post(f"{self.url}/get_worker_address", json={"model": "steady"})
            except httpx.TransportError:
                self.unknown += 1
                continue
            address = response.json().get("address")
            if response.status_code == 200 and address in WORKERS:
                self.acknowledged[address] += 1
            else:
                self.wrong.append(f"{response.status_code} {response.text}")

    async def change_workers(self, http: httpx.AsyncClient, name: str, seed: int) -> None:
        """Register a worker with random models or remove it, in a loop. The worker never reports a queue."""
        draw = random.Random(seed)
        while not self.stop.is_set():
            models = draw.sample(["a", "b", "c", "d"], draw.randint(0, 4))
            body = {
                "worker_name": f"{name}/changing",
                "check_heart_beat": True,
                "worker_status": {"model_names": models, "speed": draw.choice([1, 2]), "queue_length": 0},
            }
            path = "/register_worker" if draw.random() < 0.8 else "/remove_worker"
            try:
                await http.post(self.url + path, json=body)
            except httpx.TransportError:
                continue


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_the_registry_stays_consistent_when_replicas_are_killed_under_load(serve: Serve) -> None:
    controller = serve("--replicas", "3")
    for name in WORKERS:
        controller.register(name, "steady", check=False)
    load = Load(controller.url)
    # Connections are not kept alive, so that the next call after a kill reaches a running replica.
    limits = httpx.Limits(max_connections=32, max_keepalive_connections=0)
    async with httpx.AsyncClient(limits=limits, timeout=60.0) as http:
        clients = [asyncio.create_task(load.dispatch(http)) for _ in range(6)]
        clients += [asyncio.create_task(load.change_workers(http, name, i)) for i, name in enumerate(WORKERS[:3])]
        killed = 0

        def dispatched_since(before: int) -> bool:
            return load.acknowledged.total() > before + 20

        while killed < KILLS:
            # Kill two of the three replicas at a time. The supervisor replaces them.
            running = await wait_until(lambda: len(now := replicas(controller)) == 3 and now, "three replicas run")
            before = load.acknowledged.total()
            for victim in random.sample(running, 2):
                os.kill(victim, signal.SIGKILL)
                killed += 1
            await wait_until(partial(dispatched_since, before), "dispatches continue")
        load.stop.set()
        await asyncio.gather(*clients)

    assert load.wrong == []
    await check_consistency(controller, load)


async def check_consistency(controller: ControllerProcess, load: Load) -> None:
    client: Client = connect(controller.store_url, timeout=60.0)
    try:
        await check_invariants(client, "controller")
        workers = (
            await Registry(client, "controller", 90.0, booking_decay=False, booking_delay=0.0).list_workers()
        ).workers
        booked = {w.name: w.status.queue_length for w in workers if w.name in WORKERS}
        # A replica may be killed after the booking and before the response. No response comes without a booking.
        unanswered = sum(booked.values()) - load.acknowledged.total()
        assert 0 <= unanswered <= load.unknown
        assert all(booked[name] >= load.acknowledged[name] for name in WORKERS)
        assert max(booked.values()) - min(booked.values()) <= 1
    finally:
        await client.aclose()
