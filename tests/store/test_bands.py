"""Test the bands of both indexes with the largest and smallest values that workers may report."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controller.domain.worker import MAX_CAPACITY, MAX_QUEUE_LENGTH, MAX_SPEED, MIN_SPEED
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.model.decay import CLOCK_PERIOD
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.invariants import check_invariants
from tests.support.parts import examples
from tests.support.samples import A, B, C, asks, reports, worker

NAMES = [A, B, C]
NOW = 1_800_000_000_000


@dataclass
class WorkerCase:
    """The reported values of a worker, and its failure flag."""

    speed: float
    queue_length: int
    capacity: int | None
    fails: bool

    @property
    def band(self) -> int:
        if self.fails:
            return 2
        return int(self.capacity is not None and self.queue_length + 1 > self.capacity)


worker_case_lists = st.lists(
    st.builds(
        WorkerCase,
        speed=st.sampled_from([MIN_SPEED, MAX_SPEED, 1.0]) | st.floats(MIN_SPEED, MAX_SPEED),
        queue_length=st.sampled_from([0, 1, MAX_QUEUE_LENGTH]) | st.integers(0, MAX_QUEUE_LENGTH),
        capacity=st.sampled_from([None, 1, MAX_CAPACITY]) | st.integers(1, MAX_CAPACITY),
        fails=st.booleans(),
    ),
    min_size=2,
    max_size=3,
)


@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize("decays", [True, False])
@settings(max_examples=examples(60), suppress_health_check=list(HealthCheck))
@given(worker_cases=worker_case_lists, leased=st.booleans())
async def test_dispatch_chooses_a_worker_of_the_lowest_band(
    store: Store, decays: bool, worker_cases: list[WorkerCase], leased: bool
) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis compiles a script at each run")
    await store.client.set(CLOCK, NOW)  # the clock is stopped, so bookings do not decay
    registry = store.registry(booking_decay=decays)
    workers = dict(zip(NAMES, worker_cases, strict=False))
    for name, each in workers.items():
        status: dict[str, Any] = {"speed": each.speed, "queue_length": each.queue_length, "capacity": each.capacity}
        await registry.register(worker(name, check_heart_beat=False, **status))
        if each.fails:
            await registry.report_failure(name)
    [chosen] = await dispatch_shortest_queue(registry, asks(["m"], 60_000 * leased))
    assert workers[chosen.worker].band == min(each.band for each in worker_cases)
    await check_invariants(store.client, store.namespace, decays)
    for name in workers:
        await registry.remove(name)
    await store.client.delete(CLOCK)


@pytest.mark.parametrize("lease_ms", [0, 60_000])
async def test_sequence_breaks_ties_at_the_upper_bound_of_a_band(store: Store, lease_ms: int) -> None:
    registry = store.registry(booking_decay=True)
    for name in NAMES:
        await registry.register(worker(name, speed=MIN_SPEED, capacity=1, queue_length=MAX_QUEUE_LENGTH))
    chosen = await dispatch_shortest_queue(registry, asks(["m"] * 6, lease_ms))
    assert workers_of(chosen) == NAMES * 2 if lease_ms else set(workers_of(chosen)) == set(NAMES)


class Lab:
    """Two workers, a store clock that the test sets, and a decay clock near the end of its period."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry: Registry = store.registry(booking_decay=True, booking_delay=0.0)
        self.now = NOW

    async def tick(self, milliseconds: int) -> None:
        self.now += milliseconds
        await self.store.client.set(CLOCK, self.now)

    async def set_reading(self, reading: float, constant: int) -> None:
        """Set the decay clock of the model m. Both workers report, so that they adopt this reading."""
        learned = f"1 10 {10 * constant} {10 * constant} 0 0 0 0"
        decay_key = keys.decay(self.store.namespace, "m")
        await self.store.client.set(decay_key, f"{reading:.17g} {self.now} {constant} {learned}")
        await self.registry.heartbeat(reports([(A, 1), (B, 1)]))

    async def reading(self) -> float:
        return float((await self.store.client.get(keys.decay(self.store.namespace, "m"))).split()[0])


@pytest.fixture
async def lab(store: Store, store_clock: None) -> AsyncIterator[Lab]:
    lab = Lab(store)
    await lab.tick(0)
    for name in (A, B):
        await lab.registry.register(worker(name, queue_length=1, check_heart_beat=False))
    yield lab
    await store.client.delete(CLOCK)


@pytest.mark.parametrize("reading", [0, 1e6, CLOCK_PERIOD - 1, 1.5 * CLOCK_PERIOD])
async def test_decay_index_orders_idle_workers_first_and_failing_ones_last(lab: Lab, reading: float) -> None:
    await lab.set_reading(reading, 20)
    await lab.registry.register(worker(C, check_heart_beat=False))
    await lab.registry.report_failure(A)
    index = keys.decay_index(lab.store.namespace, "m")
    assert await lab.store.client.zrange(index, 0, -1) == [C, B, A]
    await lab.registry.heartbeat(reports([(A, 1)]))


async def test_bookings_decay_after_the_decay_clock_wraps(lab: Lab) -> None:
    registry = lab.registry
    await lab.set_reading(CLOCK_PERIOD - 10, 100)
    await lab.tick(2_000)
    await registry.heartbeat(reports([(A, 0)]))
    assert await lab.reading() == pytest.approx(10)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    await registry.heartbeat(reports([(B, 4)]))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A], "B has a longer queue"
    await lab.tick(5_000)
    lengths = {known.name: known.status.queue_length for known in (await registry.list_workers()).workers}
    assert lengths == {A: 0, B: 0}, "all bookings have decayed"


async def test_bookings_decay_on_a_worker_without_a_report_since_the_decay_clock_wrapped(
    lab: Lab,
) -> None:
    registry = lab.registry
    await lab.set_reading(CLOCK_PERIOD - 10, 100)
    await lab.tick(2_000)
    await registry.heartbeat(reports([(A, 0)]))
    await registry.drain(A)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [B]
    await lab.tick(5_000)
    lengths = {known.name: known.status.queue_length for known in (await registry.list_workers()).workers}
    assert lengths == {A: 0, B: 0}
