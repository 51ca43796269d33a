"""Test expired and renewed leases. Random histories rarely reach these states."""

import pytest

from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.model.load import LATE_RELEASE_MS
from tests.support.dispatches import dispatch_shortest_queue, leases_of
from tests.support.samples import A, asks, reports, worker


@pytest.fixture
async def expired_lease(store: Store, registry: Registry) -> str:
    """Return a lease that has expired but is still counted."""
    await registry.register(worker(A))
    [lease] = leases_of(await dispatch_shortest_queue(registry, asks(["m"], 60_000)))
    await store.client.zadd(keys.leases(store.namespace), {lease: 1})
    return lease


async def leased(registry: Registry) -> int:
    [known] = (await registry.list_workers()).workers
    return known.leased


async def test_release_of_an_expired_lease_counts_once_and_returns_false(
    registry: Registry, expired_lease: str
) -> None:
    assert await registry.release([expired_lease, expired_lease]) == [False, False]
    assert await leased(registry) == 0


async def test_renew_rejects_an_expired_lease(registry: Registry, expired_lease: str) -> None:
    assert not await registry.renew(expired_lease)
    assert await leased(registry) == 1, "the lease counts until a release, report or sweep ends it"


async def test_sweep_ends_expired_leases(store: Store, registry: Registry, expired_lease: str) -> None:
    assert await registry.sweep(60.0) == []
    assert await leased(registry) == 0
    assert not await store.client.exists(keys.leases(store.namespace))


async def test_report_ends_expired_leases(registry: Registry, expired_lease: str) -> None:
    await registry.heartbeat(reports([(A, 0)]))
    assert await leased(registry) == 0


@pytest.mark.usefixtures("store_clock")
async def test_lease_expires_at_its_time(store: Store) -> None:
    seconds, microseconds = await store.client.time()
    now = 1000 * seconds + microseconds // 1000
    await store.client.set(CLOCK, now)
    registry = store.registry()
    await registry.register(worker(A))
    leases = leases_of(await dispatch_shortest_queue(registry, asks(["m"] * 2, 60_000)))
    await store.client.set(CLOCK, now + 59_999)
    assert await registry.renew(leases[0])
    await store.client.set(CLOCK, now + 60_000)
    assert not await registry.renew(leases[1])


async def test_renew_restarts_the_full_duration_of_a_lease(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    [lease] = leases_of(await dispatch_shortest_queue(registry, asks(["m"], 60_000)))
    leases = keys.leases(store.namespace)
    assert await store.client.pttl(leases) > 86_400_000, "longer than any lease"
    ends_at = await store.client.zscore(leases, lease)
    await store.client.zadd(leases, {lease: ends_at - 50_000})  # simulate elapsed time
    assert await registry.renew(lease)
    assert ends_at <= await store.client.zscore(leases, lease) < ends_at + 9_000
    assert await store.client.pttl(leases) > 86_400_000


async def test_renew_rejects_a_lease_on_an_expired_worker(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    [lease] = leases_of(await dispatch_shortest_queue(registry, asks(["m"], 60_000)))
    await store.expire_heartbeat(A)
    assert not await registry.renew(lease), "before the sweep"
    await registry.sweep(60.0)
    assert not await registry.renew(lease)


@pytest.mark.usefixtures("store_clock")
async def test_expiry_of_abandoned_leases_does_not_free_capacity(store: Store) -> None:
    """Five clients crash. A report shows their requests as finished. Eight later requests outlast their leases."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry()
    await registry.register(worker(A, capacity=8, check_heart_beat=False))
    await dispatch_shortest_queue(registry, asks(["m"] * 5, 60_000))
    await store.client.incrby(CLOCK, 5_000)
    await registry.heartbeat(reports([(A, 0)]))
    held = leases_of(await dispatch_shortest_queue(registry, asks(["m"] * 8, 120_000)))
    await store.client.incrby(CLOCK, 60_000)
    await registry.sweep(60.0)
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length) == (8, 8)
    assert await registry.release(held) == [True] * 8
    await store.client.delete(CLOCK)


@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize(("late", "queue_length"), [(LATE_RELEASE_MS - 1, 1), (LATE_RELEASE_MS, 0)])
async def test_release_shortly_after_a_report_is_not_counted_twice(store: Store, late: int, queue_length: int) -> None:
    """A report shows that one of two leases has ended. A release soon afterwards is matched to that one."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry()
    await registry.register(worker(A, check_heart_beat=False))
    leases = leases_of(await dispatch_shortest_queue(registry, asks(["m"] * 2, 60_000)))
    await store.client.incrby(CLOCK, 5_000)
    await registry.heartbeat(reports([(A, 1)]))
    await store.client.incrby(CLOCK, late)
    assert await registry.release(leases[:1]) == [True]
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length) == (1, queue_length)
    await store.client.delete(CLOCK)
