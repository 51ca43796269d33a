"""The load of engines between two reports: leases, and requests of other clients that do not decay."""

from collections.abc import AsyncIterator

import pytest

from controller.store import keys
from controller.store.registry import Report
from tests.conftest import CLOCK, Store
from tests.store.test_engines import OF_ENGINES, engine
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, asks, worker


class Clock:
    """A registry whose clock the test sets."""

    def __init__(self, store: Store) -> None:
        self.registry = store.registry(booking_decay=True)
        self.store = store
        self._now = 1_800_000_000_000

    async def advance(self, seconds: float) -> None:
        self._now += round(1000 * seconds)
        await self.store.client.set(CLOCK, self._now)


@pytest.fixture
async def clock(store_clock: None, store: Store) -> AsyncIterator[Clock]:
    opened = Clock(store)
    await opened.advance(0)
    yield opened
    await check_invariants(store.client, store.namespace, decays=True, slack=1e15)  # heartbeats do not use this clock
    for known in (await opened.registry.list_workers()).workers:
        await opened.registry.remove(known.name)
    await store.client.delete(CLOCK)


@pytest.mark.parametrize("models", [("m",), ("m", "o")])
@pytest.mark.parametrize("has_capacity", [True, False])
async def test_requests_of_other_clients_at_an_engine_do_not_decay(
    clock: Clock, models: tuple[str, ...], has_capacity: bool
) -> None:
    """The requests of this cluster take 20 ms, which says nothing of the others."""
    registry = clock.registry
    await registry.register(engine(A, *models, capacity=8 if has_capacity else None))
    for _ in range(30):
        [choice] = await dispatch_shortest_queue(registry, asks([OF_ENGINES], lease_ms=60_000))
        await registry.take_engine_answers([Report(A, 6)])
        await registry.release([choice.lease])
        await registry.take_engine_answers([Report(A, 5)])
    await clock.advance(30.0)
    [found] = (await registry.list_workers()).workers
    assert (found.status.queue_length, found.reported) == (5, 5)
    await registry.take_engine_answers([Report(A, 0)])
    [found] = (await registry.list_workers()).workers
    assert found.status.queue_length == 0, "the next report replaces it"


async def test_requests_go_to_the_engine_without_foreign_ones_until_it_has_as_many(clock: Clock) -> None:
    registry = clock.registry
    await registry.register(engine(A))
    await registry.register(engine(B))
    await registry.take_engine_answers([Report(A, 10), Report(B, 0)])
    await clock.advance(30.0)
    chosen = workers_of(await dispatch_shortest_queue(registry, asks([OF_ENGINES] * 9, lease_ms=60_000)))
    assert chosen == [B] * 9


async def test_bookings_decay_at_an_engine_that_does_not_say_its_load(clock: Clock) -> None:
    """No report replaces them. Such bookings are made while Redis is away."""
    registry = clock.registry
    await registry.register(engine(A))
    await dispatch_shortest_queue(registry, asks([OF_ENGINES] * 8))
    for _ in range(100):
        await clock.advance(1.0)
        await registry.take_engine_answers([Report(A, None)])
    [found] = (await registry.list_workers()).workers
    assert found.status.queue_length == 0


async def test_a_worker_of_fastchat_still_decays_beside_an_engine(clock: Clock) -> None:
    registry = clock.registry
    await registry.register(engine(A, queue_length=8))
    await registry.register(worker(B, queue_length=8))
    await clock.advance(100.0)
    found = {known.name: known.status.queue_length for known in (await registry.list_workers()).workers}
    assert found == {A: 8, B: 0}


async def test_load_of_an_engine_does_not_decay_in_overflow_pools_beside_other_workers(clock: Clock) -> None:
    """A model has pools for a limited number of sets of models. All other workers are in overflow pools."""
    for i in range(26):
        await clock.registry.register(engine(f"{A}/{i}", "m", f"n{i}", queue_length=5))
        await clock.registry.register(worker(f"{B}/{i}", "m", f"n{i}", queue_length=5))
    for name in (A, B):
        pools = await clock.store.client.hget(keys.worker(clock.store.namespace, f"{name}/25"), "pools")
        assert pools.startswith("\x1f"), "it is in overflow pools"
    await clock.advance(100.0)
    found = {known.name: known.status.queue_length for known in (await clock.registry.list_workers()).workers}
    assert found == {f"{name}/{i}": queue for name, queue in ((A, 5), (B, 0)) for i in range(26)}
