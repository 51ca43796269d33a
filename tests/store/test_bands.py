"""The bands of cost and of the second index in the store, at the bounds of what workers may report."""

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
from tests.support.dispatches import workers_of
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, C, asks, reports, worker

NAMES = [A, B, C]
NOW = 1_800_000_000_000


@dataclass
class Given:
    """What a worker reports, and whether it fails."""

    speed: float
    queue_length: int
    capacity: int | None
    fails: bool

    @property
    def band(self) -> int:
        if self.fails:
            return 2
        return int(self.capacity is not None and self.queue_length + 1 > self.capacity)


given_workers = st.lists(
    st.builds(
        Given,
        speed=st.sampled_from([MIN_SPEED, MAX_SPEED, 1.0]) | st.floats(MIN_SPEED, MAX_SPEED),
        queue_length=st.sampled_from([0, 1, MAX_QUEUE_LENGTH]) | st.integers(0, MAX_QUEUE_LENGTH),
        capacity=st.sampled_from([None, 1, MAX_CAPACITY]) | st.integers(1, MAX_CAPACITY),
        fails=st.booleans(),
    ),
    min_size=2,
    max_size=3,
)


@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize("fades", [True, False])
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
@given(all_given=given_workers, leased=st.booleans())
async def test_the_best_band_is_chosen(store: Store, fades: bool, all_given: list[Given], leased: bool) -> None:
    if store.kind == "fakeredis":
        pytest.skip("it compiles a script at each run")
    await store.client.set(CLOCK, NOW)  # it stands still: no booking fades
    registry = store.registry(booking_decay=fades)
    workers = dict(zip(NAMES, all_given, strict=False))
    for name, each in workers.items():
        status: dict[str, Any] = {"speed": each.speed, "queue_length": each.queue_length, "capacity": each.capacity}
        await registry.register(worker(name, check_heart_beat=False, **status))
        if each.fails:
            await registry.report_failure(name)
    [chosen] = await registry.dispatch_shortest_queue(asks(["m"], 60_000 * leased))
    assert workers[chosen.worker].band == min(each.band for each in all_given)
    await check_invariants(store.client, store.namespace, fades)
    for name in workers:
        await registry.remove(name)
    await store.client.delete(CLOCK)


@pytest.mark.parametrize("lease_ms", [0, 60_000])
async def test_among_costs_at_the_bound_of_a_band_the_turn_decides(store: Store, lease_ms: int) -> None:
    registry = store.registry(booking_decay=True)
    for name in NAMES:
        await registry.register(worker(name, speed=MIN_SPEED, capacity=1, queue_length=MAX_QUEUE_LENGTH))
    chosen = await registry.dispatch_shortest_queue(asks(["m"] * 6, lease_ms))
    assert workers_of(chosen) == NAMES * 2 if lease_ms else set(workers_of(chosen)) == set(NAMES)


class Fading:
    """Two workers in a store whose clock is the test's, and whose model is at a phase near the end of its period."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.registry: Registry = store.registry(booking_decay=True, booking_delay=0.0)
        self.now = NOW

    async def tick(self, milliseconds: int) -> None:
        self.now += milliseconds
        await self.store.client.set(CLOCK, self.now)

    async def set_phase(self, phase: float, constant: int) -> None:
        """Set the phase of the model m. Its workers report, so that they are at this phase, too."""
        learned = f"1 10 {10 * constant} {10 * constant} 0 0 0 0"
        fade = keys.decay(self.store.namespace, "m")
        await self.store.client.set(fade, f"{phase:.17g} {self.now} {constant} {learned}")
        await self.registry.heartbeat(reports([(A, 1), (B, 1)]))

    async def phase(self) -> float:
        return float((await self.store.client.get(keys.decay(self.store.namespace, "m"))).split()[0])


@pytest.fixture
async def fading(store: Store, store_clock: None) -> AsyncIterator[Fading]:
    fading = Fading(store)
    await fading.tick(0)
    for name in (A, B):
        await fading.registry.register(worker(name, queue_length=1, check_heart_beat=False))
    yield fading
    await store.client.delete(CLOCK)


@pytest.mark.parametrize("phase", [0, 1e6, CLOCK_PERIOD - 1, 1.5 * CLOCK_PERIOD])
async def test_at_any_phase_those_that_fail_come_last_and_idle_ones_first(fading: Fading, phase: float) -> None:
    await fading.set_phase(phase, 20)
    await fading.registry.register(worker(C, check_heart_beat=False))
    await fading.registry.report_failure(A)
    index = keys.decay_index(fading.store.namespace, "m")
    assert await fading.store.client.zrange(index, 0, -1) == [C, B, A]
    await fading.registry.heartbeat(reports([(A, 1)]))


async def test_a_phase_that_starts_again_lets_bookings_fade(fading: Fading) -> None:
    registry = fading.registry
    await fading.set_phase(CLOCK_PERIOD - 10, 100)
    await fading.tick(2_000)
    await registry.heartbeat(reports([(A, 0)]))
    assert await fading.phase() == pytest.approx(10)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A]
    await registry.heartbeat(reports([(B, 4)]))
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A], "B has more to do"
    await fading.tick(5_000)
    lengths = {known.name: known.status.queue_length for known in (await registry.list_workers()).workers}
    assert lengths == {A: 0, B: 0}, "all have faded"


async def test_a_worker_that_has_not_reported_since_the_phase_started_again_fades_from_its_next_booking(
    fading: Fading,
) -> None:
    registry = fading.registry
    await fading.set_phase(CLOCK_PERIOD - 10, 100)
    await fading.tick(2_000)
    await registry.heartbeat(reports([(A, 0)]))
    await registry.drain(A)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [B]
    await fading.tick(5_000)
    lengths = {known.name: known.status.queue_length for known in (await registry.list_workers()).workers}
    assert lengths == {A: 0, B: 0}
