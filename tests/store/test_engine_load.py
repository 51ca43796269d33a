"""The load of engines between two reports: leases, and requests of other clients that do not decay."""

import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from random import Random

import pytest

from controller.store import keys
from controller.store.registry import Report
from tests.conftest import CLOCK, Store
from tests.store.test_engines import OF_ENGINES, engine
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, asks, worker

LAG = 6.0  # seconds by which the load in a report may be out of date


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
        await clock.advance(0.02)
        await registry.take_engine_answers([Report(A, 6)])
        await registry.release([choice.lease])
        await clock.advance(1.0)
        await registry.take_engine_answers([Report(A, 5)])
    await clock.advance(1.0)
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


async def estimates(
    clock: Clock,
    arrivals: Sequence[float],
    lag: Callable[[], float],
    *,
    foreign: Callable[[float], int] = lambda _: 0,
    until: int = 20,
    most_lag: float = LAG,
) -> AsyncIterator[tuple[float, int, int]]:
    """Dispatch requests to an engine, each of 3 s. The engine is polled every second.

    arrivals: of the requests, in seconds.
    lag: returns by how many seconds the load in the next report is out of date.
    foreign: returns how many requests other clients have at the engine at a time.
    most_lag: the lag in the table of engines.

    Yields twice a second the time, the requests at the engine, and the estimate.
    """
    registry = clock.registry
    await registry.register(engine(A))
    waiting, running, counts = deque(sorted(arrivals)), deque[tuple[float, str]](), [0]
    for step in range(1, 40 * until):
        now = step / 40
        await clock.advance(1 / 40)
        while running and running[0][0] <= now:
            await registry.release([running.popleft()[1]])
        while waiting and waiting[0] <= now:
            waiting.popleft()
            [choice] = await dispatch_shortest_queue(registry, asks([OF_ENGINES], lease_ms=600_000))
            running.append((now + 3.0, choice.lease))
        counts.append(foreign(now) + len(running))
        if step % 40 == 10:
            reported = counts[max(0, step - round(40 * lag()))]
            await registry.take_engine_answers([Report(A, reported, time.monotonic() - most_lag)])
        if step % 20 == 15:
            [found] = (await registry.list_workers()).workers
            yield now, counts[-1], found.status.queue_length


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize("lag", [0.0, 2.9, LAG])
@pytest.mark.parametrize("rate", [0.5, 2, 10, 20])
async def test_a_report_that_lags_counts_no_request_twice_and_misses_none(
    clock: Clock, rate: float, lag: float
) -> None:
    steady = [i / rate for i in range(round(20 * rate))]
    async for now, true, estimate in estimates(clock, steady, lambda: lag):
        assert estimate == true, f"after {now} s"


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize("seed", range(5))
async def test_bursts_at_an_engine_whose_lag_varies(clock: Clock, seed: int) -> None:
    random = Random(seed)
    bursts = [at + random.uniform(0, 0.5) for at in (1, 4, 8, 9) for _ in range(random.randrange(40))]
    async for now, true, estimate in estimates(clock, bursts, lambda: random.uniform(0, LAG)):
        assert estimate == true, f"after {now} s"


@pytest.mark.slow_on_fakeredis
async def test_requests_of_other_clients_are_seen_despite_the_lag(clock: Clock) -> None:
    """The requests of the cluster end after 15 s. The reports contain them for longer, which hides no others."""
    steady = [i / 4 for i in range(48)]
    async for now, true, estimate in estimates(clock, steady, lambda: LAG, foreign=lambda _: 7, until=30):
        assert true - 7 <= estimate <= true
        if now > 10:
            assert estimate >= true - 1, f"after {now} s"


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize("most_lag", [0.0, 1.0, LAG])
async def test_requests_of_other_clients_are_seen_while_the_own_load_varies(clock: Clock, most_lag: float) -> None:
    """They end after 40 s."""
    random = Random(1)
    arrivals = [at + random.uniform(0, 0.5) for at in range(70) for _ in range(random.choice([0, 0, 1, 4]))]
    async for now, true, estimate in estimates(
        clock,
        arrivals,
        lambda: random.uniform(0, most_lag),
        foreign=lambda now: 7 if now < 40 else 0,
        until=70,
        most_lag=most_lag,
    ):
        if 15 < now < 40 or now > 40 + 2 * LAG:
            assert abs(true - estimate) <= (2 if most_lag else 0), f"after {now} s"


async def test_requests_that_an_engine_lost_stop_to_count_after_the_lag(clock: Clock) -> None:
    """The engine has crashed and is empty. No client releases the leases."""
    registry = clock.registry
    await registry.register(engine(A))
    await dispatch_shortest_queue(registry, asks([OF_ENGINES] * 5, lease_ms=600_000))
    found = []
    for _ in range(10):
        await clock.advance(1.0)
        await registry.take_engine_answers([Report(A, 0, time.monotonic() - LAG)])
        [known] = (await registry.list_workers()).workers
        found.append(known.status.queue_length)
    assert found == [5] * 6 + [0] * 4


async def test_bookings_of_an_outage_count_once_although_the_reports_lag(clock: Clock) -> None:
    """They have no lease. The first report has them already, the second one not yet."""
    registry = clock.registry
    await registry.register(engine(A))
    await clock.advance(2 * LAG)
    await dispatch_shortest_queue(registry, asks([OF_ENGINES], lease_ms=60_000))
    await clock.advance(0.1)
    await dispatch_shortest_queue(registry, asks([OF_ENGINES] * 8))
    found = []
    for reported in (9, 1, 10, 11, 12, 12):
        await clock.advance(1.0)
        await dispatch_shortest_queue(registry, asks([OF_ENGINES], lease_ms=60_000))
        await registry.take_engine_answers([Report(A, reported, time.monotonic() - LAG)])
        [known] = (await registry.list_workers()).workers
        found.append(known.status.queue_length - known.leased)
    assert found == [8] * 6
    for _ in range(14):  # the bookings have ended, and the seven leases have not
        await clock.advance(1.0)
        await registry.take_engine_answers([Report(A, 7, time.monotonic() - LAG)])
    [known] = (await registry.list_workers()).workers
    assert known.status.queue_length == known.leased == 7


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
