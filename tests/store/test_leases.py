"""Leases whose time is over, and leases that are renewed: each by itself, where random histories come seldom."""

import pytest

from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.model.load import LATE_RELEASE_MS
from tests.support.dispatches import leases_of
from tests.support.samples import A, asks, reports, worker


@pytest.fixture
async def overdue(store: Store, registry: Registry) -> str:
    """A lease whose time is over, and that nobody has counted out yet."""
    await registry.register(worker(A))
    [lease] = leases_of(await registry.dispatch_shortest_queue(asks(["m"], 60_000)))
    await store.client.zadd(keys.leases(store.namespace), {lease: 1})
    return lease


async def leased(registry: Registry) -> int:
    [known] = (await registry.list_workers()).workers
    return known.leased


async def test_a_release_after_the_time_is_over_counts_once_and_says_so(registry: Registry, overdue: str) -> None:
    assert await registry.release([overdue, overdue]) == [False, False]
    assert await leased(registry) == 0


async def test_what_is_over_is_not_renewed(registry: Registry, overdue: str) -> None:
    assert not await registry.renew(overdue)
    assert await leased(registry) == 1, "until somebody counts it out"


async def test_a_sweep_counts_out_what_is_over(store: Store, registry: Registry, overdue: str) -> None:
    assert await registry.sweep(60.0) == []
    assert await leased(registry) == 0
    assert not await store.client.exists(keys.leases(store.namespace))


async def test_a_report_counts_out_what_is_over(registry: Registry, overdue: str) -> None:
    await registry.heartbeat(reports([(A, 0)]))
    assert await leased(registry) == 0


async def test_a_lease_that_is_renewed_lasts_from_now_as_long_as_it_was_to_last(
    store: Store, registry: Registry
) -> None:
    await registry.register(worker(A))
    [lease] = leases_of(await registry.dispatch_shortest_queue(asks(["m"], 60_000)))
    leases = keys.leases(store.namespace)
    ends_at = await store.client.zscore(leases, lease)
    await store.client.zadd(leases, {lease: ends_at - 50_000})  # as if that much time had passed
    assert await registry.renew(lease)
    assert ends_at <= await store.client.zscore(leases, lease) < ends_at + 9_000
    assert await store.client.pttl(leases) > 86_400_000


async def test_with_a_worker_that_lapsed_no_lease_is_renewed(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    [lease] = leases_of(await registry.dispatch_shortest_queue(asks(["m"], 60_000)))
    await store.expire_heartbeat(A)
    assert not await registry.renew(lease), "whether a sweep has seen it or not"
    await registry.sweep(60.0)
    assert not await registry.renew(lease)


@pytest.mark.usefixtures("store_clock")
async def test_leases_that_nobody_released_make_no_room_for_others(store: Store) -> None:
    """Five clients died, and a report has shown it. When their leases expire, eight later requests still run."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry()
    await registry.register(worker(A, capacity=8, check_heart_beat=False))
    await registry.dispatch_shortest_queue(asks(["m"] * 5, 60_000))
    await store.client.incrby(CLOCK, 5_000)
    await registry.heartbeat(reports([(A, 0)]))
    held = leases_of(await registry.dispatch_shortest_queue(asks(["m"] * 8, 120_000)))
    await store.client.incrby(CLOCK, 60_000)
    await registry.sweep(60.0)
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length) == (8, 8)
    assert await registry.release(held) == [True] * 8
    await store.client.delete(CLOCK)


@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize(("late", "queue_length"), [(LATE_RELEASE_MS - 1, 1), (LATE_RELEASE_MS, 0)])
async def test_a_release_shortly_after_a_report_was_counted_out_by_it(
    store: Store, late: int, queue_length: int
) -> None:
    """Of two leases the report shows that one has ended. A release soon afterwards is taken for that one."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry()
    await registry.register(worker(A, check_heart_beat=False))
    leases = leases_of(await registry.dispatch_shortest_queue(asks(["m"] * 2, 60_000)))
    await store.client.incrby(CLOCK, 5_000)
    await registry.heartbeat(reports([(A, 1)]))
    await store.client.incrby(CLOCK, late)
    assert await registry.release(leases[:1]) == [True]
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length) == (1, queue_length)
    await store.client.delete(CLOCK)
