"""Test how the store learns a model's time constant from bookings, reports and requests of other clients."""

import random
from collections.abc import AsyncIterator

import pytest

from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, leases_of, workers_of
from tests.support.samples import A, asks, reports, worker

FIRST = 10_000  # milliseconds, the initial time constant
POLL = 5_000


class Lab:
    """A registry whose clock the test sets, and the simulated requests of worker A."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry: Registry = store.registry(booking_decay=True, booking_delay=0.2)
        self.now = 1_800_000_000_000
        self.foreign = 0
        self.ends: list[int] = []  # when our requests end

    async def tick(self, milliseconds: int) -> None:
        self.now += milliseconds
        await self.store.client.set(CLOCK, self.now)

    async def send(self, takes: int) -> None:
        assert workers_of(await dispatch_shortest_queue(self.registry, asks(["m"]))) == [A]
        self.ends.append(self.now + takes)

    async def poll(self) -> None:
        self.ends = [end for end in self.ends if end > self.now]
        await self.registry.take_poll_answers(reports([(A, len(self.ends) + self.foreign)]))

    async def serve(self, requests: int, *, takes: int, each_poll: int = 10) -> None:
        """Send evenly spaced requests, `each_poll` of them between two polls."""
        for i in range(requests):
            await self.send(takes)
            await self.tick(POLL // each_poll)
            if (i + 1) % each_poll == 0:
                await self.poll()

    async def constant(self) -> float:
        return float((await self.store.client.get(keys.decay(self.store.namespace, "m"))).split()[2])


@pytest.fixture
async def lab(store: Store, store_clock: None) -> AsyncIterator[Lab]:
    lab = Lab(store)
    await lab.tick(0)
    await lab.registry.register(worker(A, check_heart_beat=False))
    yield lab
    await store.client.delete(CLOCK)


async def test_requests_of_other_clients_do_not_change_the_time_constant(lab: Lab) -> None:
    draw = random.Random(1)
    for _ in range(500):
        lab.foreign = draw.randrange(10)
        await lab.tick(POLL)
        await lab.poll()
    assert await lab.constant() == FIRST


async def test_stuck_queue_does_not_change_the_time_constant(lab: Lab) -> None:
    await lab.serve(10, takes=10**9)
    for _ in range(500):
        await lab.tick(60_000)
        await lab.poll()
    assert await lab.constant() == FIRST


async def test_time_constant_recovers_from_a_stuck_queue_within_60_requests(lab: Lab) -> None:
    await lab.serve(10, takes=10**9)
    await lab.tick(8 * 3_600_000)
    lab.ends = []
    await lab.poll()
    await lab.serve(60, takes=1_000)
    assert await lab.constant() < 2_000


async def test_time_constant_is_accurate_with_a_few_requests_of_other_clients(lab: Lab) -> None:
    lab.foreign = 2
    await lab.serve(200, takes=2_000, each_poll=20)
    assert 2_000 <= await lab.constant() < 4_000, "8 of 10 requests are dispatched by the registry"


async def test_time_constant_recovers_from_many_requests_of_other_clients_within_60_of_ours(lab: Lab) -> None:
    lab.foreign = 100
    await lab.serve(300, takes=1_000, each_poll=5)
    assert await lab.constant() > 20_000, "a report does not show whose requests have ended"
    lab.foreign = 0
    await lab.poll()
    await lab.serve(60, takes=1_250)
    assert await lab.constant() == pytest.approx(1_250, rel=0.5)


async def test_wrong_time_constant_is_corrected_within_60_requests(lab: Lab) -> None:
    text = f"12 {lab.now} 3600000 1 2000 7200000000 7200000000 0 0 0 0"
    await lab.store.client.set(keys.decay(lab.store.namespace, "m"), text)
    await lab.serve(60, takes=1_250)
    assert await lab.constant() == pytest.approx(1_250, rel=0.5)


async def test_time_constant_is_accurate_for_rare_and_long_requests(lab: Lab) -> None:
    """One request runs at a time, and most reports arrive without a new booking."""
    for _ in range(40):
        await lab.send(60_000)
        for _ in range(20):
            await lab.tick(POLL)
            await lab.poll()
    assert await lab.constant() == pytest.approx(60_000, rel=0.3)


@pytest.mark.parametrize("goes", ["drains", "dies", "serves another model"])
async def test_time_constant_survives_the_last_worker_of_a_model(lab: Lab, goes: str) -> None:
    await lab.serve(40, takes=500)
    learned = await lab.constant()
    assert learned < FIRST
    registry, client = lab.registry, lab.store.client
    if goes == "drains":
        await registry.drain(A)
    elif goes == "dies":
        await lab.store.expire_heartbeat(A)
        await registry.sweep(60.0)
    else:
        await registry.register(worker(A, "n", check_heart_beat=False))
    decay_key = keys.decay(lab.store.namespace, "m")
    assert 3_500_000 < await client.pttl(decay_key) <= 3_600_000
    if goes == "drains":
        await registry.heartbeat(reports([(A, 0)]))
        await registry.drain(A, False)
    else:
        await registry.register(worker(A, check_heart_beat=False))
    assert await client.pttl(decay_key) == -1
    assert await lab.constant() == learned


async def test_time_constant_is_learned_from_lottery_draws(lab: Lab) -> None:
    """Requests take half a second, and half of them are leased. No request may be counted twice."""
    for _ in range(50):
        leases = leases_of(await dispatch_lottery(lab.registry, asks(["m"] * 5, 60_000)))
        await dispatch_lottery(lab.registry, asks(["m"] * 5))
        await lab.tick(POLL)
        lab.foreign = 1
        await lab.poll()
        await lab.registry.release(leases)
    assert await lab.constant() == pytest.approx(500, rel=0.25)
