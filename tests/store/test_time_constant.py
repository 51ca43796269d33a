"""What a model's time constant is learned from, in the store: bookings, reports, and requests that are not ours."""

import random
from collections.abc import AsyncIterator

import pytest

from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.support.dispatches import leases_of, workers_of
from tests.support.samples import A, asks, reports, worker

FIRST = 10_000  # milliseconds: what the constant is before anything is known
POLL = 5_000


class Lab:
    """A registry whose clock is the test's, and what worker A has to do."""

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
        assert workers_of(await self.registry.dispatch_shortest_queue(asks(["m"]))) == [A]
        self.ends.append(self.now + takes)

    async def poll(self) -> None:
        self.ends = [end for end in self.ends if end > self.now]
        await self.registry.heartbeat(reports([(A, len(self.ends) + self.foreign)]), of_polls=True)

    async def serve(self, requests: int, *, takes: int, each_poll: int = 10) -> None:
        """Send requests evenly spaced, so many between two polls."""
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


async def test_requests_of_other_clients_teach_nothing(lab: Lab) -> None:
    draw = random.Random(1)
    for _ in range(500):
        lab.foreign = draw.randrange(10)
        await lab.tick(POLL)
        await lab.poll()
    assert await lab.constant() == FIRST


async def test_a_queue_that_does_not_move_teaches_nothing(lab: Lab) -> None:
    await lab.serve(10, takes=10**9)
    for _ in range(500):
        await lab.tick(60_000)
        await lab.poll()
    assert await lab.constant() == FIRST


async def test_a_queue_that_did_not_move_for_hours_is_forgotten_within_60_requests(lab: Lab) -> None:
    await lab.serve(10, takes=10**9)
    await lab.tick(8 * 3_600_000)
    lab.ends = []
    await lab.poll()
    await lab.serve(60, takes=1_000)
    assert await lab.constant() < 2_000


async def test_it_is_right_beside_a_few_requests_of_other_clients(lab: Lab) -> None:
    lab.foreign = 2
    await lab.serve(200, takes=2_000, each_poll=20)
    assert 2_000 <= await lab.constant() < 4_000, "8 of 10 requests are ours"


async def test_after_many_requests_of_other_clients_it_is_right_within_60_of_ours(lab: Lab) -> None:
    lab.foreign = 100
    await lab.serve(300, takes=1_000, each_poll=5)
    assert await lab.constant() > 20_000, "it cannot be known whose requests have ended"
    lab.foreign = 0
    await lab.poll()
    await lab.serve(60, takes=1_250)
    assert await lab.constant() == pytest.approx(1_250, rel=0.5)


async def test_a_wrong_time_constant_is_corrected_within_60_requests(lab: Lab) -> None:
    text = f"12 {lab.now} 3600000 1 2000 7200000000 7200000000 0 0 0 0"
    await lab.store.client.set(keys.decay(lab.store.namespace, "m"), text)
    await lab.serve(60, takes=1_250)
    assert await lab.constant() == pytest.approx(1_250, rel=0.5)


async def test_seldom_and_long_requests_are_learned_whole(lab: Lab) -> None:
    """Most reports come without a booking, while one request runs."""
    for _ in range(40):
        await lab.send(60_000)
        for _ in range(20):
            await lab.tick(POLL)
            await lab.poll()
    assert await lab.constant() == pytest.approx(60_000, rel=0.3)


@pytest.mark.parametrize("goes", ["drains", "dies", "serves another model"])
async def test_what_was_learned_outlives_the_last_worker_of_a_model(lab: Lab, goes: str) -> None:
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
    fade = keys.decay(lab.store.namespace, "m")
    assert 3_500_000 < await client.pttl(fade) <= 3_600_000
    if goes == "drains":
        await registry.heartbeat(reports([(A, 0)]))
        await registry.drain(A, False)
    else:
        await registry.register(worker(A, check_heart_beat=False))
    assert await client.pttl(fade) == -1
    assert await lab.constant() == learned


async def test_what_the_lottery_draws_is_learned_from_as_bookings_are(lab: Lab) -> None:
    """Requests of half a second, as many with a lease as without: no work comes from nowhere."""
    for _ in range(50):
        leases = leases_of(await lab.registry.dispatch_lottery(asks(["m"] * 5, 60_000)))
        await lab.registry.dispatch_lottery(asks(["m"] * 5))
        await lab.tick(POLL)
        lab.foreign = 1
        await lab.poll()
        await lab.registry.release(leases)
    assert await lab.constant() == pytest.approx(500, rel=0.25)
