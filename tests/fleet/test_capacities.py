"""Capacities on a replica: settings that apply to registered workers, and capacities that Redis lost."""

import asyncio

import pytest

from controller.domain.capacity import CapacityTarget, DefaultCapacities
from controller.domain.errors import StoreUnavailable
from controller.fleet import capacities
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Open, Store
from tests.support.lost_data import restore, save
from tests.support.outage import Link, wait_for_recovery
from tests.support.samples import OPERATOR, A, B, worker
from tests.support.waiting import wait_until
from tests.support.workers import bad_worker, status

OF_B, OF_M, OF_N = CapacityTarget(worker_name=B), CapacityTarget(model="m"), CapacityTarget(model="n")


async def capacities_of(controller: Replica) -> dict[str, tuple[int | None, str]]:
    workers = (await controller.membership.list_workers()).value
    return {known.name: (known.status.capacity, known.capacity_source) for known in workers}


async def test_settings_of_a_new_replica_apply_to_registered_workers(
    replica: Open, store: Store, link: Link, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capacities, "_RETRY_INTERVAL", 0.01)
    await registry.register(worker(A))
    await registry.register(worker(B, capacity=3))
    controller = replica(store.registry(default_capacities=DefaultCapacities({"m": 5})))
    with link.broken(script="apply_capacities"):
        task = asyncio.create_task(controller.capacities.run())
        await wait_until(lambda: "list_workers" in link.delivered, "the replica has begun")
    await wait_for_recovery(controller)
    await task
    assert await capacities_of(controller) == {A: (5, "configured"), B: (3, "reported")}


async def test_set_returns_the_previous_capacity_and_the_number_of_workers(controller: Replica) -> None:
    assert await controller.capacities.set(OF_M, 5, caller=OPERATOR) == (None, 2)
    assert await controller.capacities.set(OF_N, 4, caller=OPERATOR) == (None, 1)
    assert await controller.capacities.set(CapacityTarget(worker_name="http://absent:1"), 4, caller=OPERATOR) == (
        None,
        0,
    )
    assert await capacities_of(controller) == {A: (4, "configured"), B: (5, "configured")}
    assert await controller.capacities.set(OF_N, None, caller=OPERATOR) == (4, 1)
    assert await capacities_of(controller) == {A: (5, "configured"), B: (5, "configured")}


@pytest.mark.parametrize("script", ["set_capacity", "apply_capacities"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_call_that_failed_halfway_can_be_repeated(
    controller: Replica, link: Link, script: str, when: str
) -> None:
    with link.broken(when, script), pytest.raises(StoreUnavailable):
        await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    await wait_for_recovery(controller)
    await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    assert await capacities_of(controller) == {A: (5, "configured"), B: (5, "configured")}


async def test_refresh_decides_the_capacity_again(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("n")) as healthy:
        await registry.register(worker(healthy.address, "m", capacity=7))
        await controller.capacities.set(OF_M, 5, caller=OPERATOR)
        await controller.capacities.set(OF_N, 6, caller=OPERATOR)
        assert await capacities_of(controller) == {healthy.address: (7, "reported")}
        await controller.refresher.refresh()
        assert await capacities_of(controller) == {healthy.address: (6, "configured")}


async def test_capacities_are_restored_after_a_data_loss(
    controller: Replica, link: Link, store: Store, replica: Open, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    """The restored worker keeps what it reports apart from what was set for it."""
    await registry.register(worker(B, "m", capacity=8))
    await controller.capacities.set(OF_B, 3, caller=OPERATOR)
    await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    await controller.snapshots.take_now()
    assert controller.snapshots.capacities.by_target == {OF_B: 3, OF_M: 5}
    other = replica()
    await other.readiness.check()
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))
        await store.client.hset("unrelated", "x", "y")
        expected = {A: (5, "configured"), B: (3, "configured")}
        assert await capacities_of(controller) == expected, "the snapshot has them, too"
        assert (await controller.capacities.list()).value.by_target == {OF_B: 3, OF_M: 5}
        assert (await controller.capacities.list()).snapshot_age is not None
    await wait_for_recovery(controller)
    assert await capacities_of(controller) == expected
    await other.snapshots.take_now()
    assert caplog.text.count("Redis lost capacities: setting 2 of them again.") == 1
    assert await capacities_of(other) == expected
    await other.capacities.set(OF_B, None, caller=OPERATOR)
    await other.capacities.set(OF_M, None, caller=OPERATOR)
    assert await capacities_of(other) == {A: (None, ""), B: (8, "reported")}
    assert (await controller.capacities.list()).value.by_target == {}
    await store.client.delete("unrelated")


async def test_lost_capacities_are_restored_beside_one_that_was_set_since(
    controller: Replica, store: Store, replica: Open
) -> None:
    """Two capacities are lost. After the failover, as many are set, so the version is that of before."""
    other = replica()
    for each in (controller, other):
        await each.snapshots.take_now()
    await save(store)
    await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    await controller.capacities.set(OF_N, 6, caller=OPERATOR)
    for each in (controller, other):
        await each.snapshots.take_now()
    await restore(store)
    await store.registry().set_capacity(OF_B, 3)
    await store.registry().set_capacity(OF_N, 7)
    for each in (controller, other):
        await each.snapshots.take_now()
        assert (await each.capacities.list()).value.by_target == {OF_B: 3, OF_M: 5, OF_N: 7}
        assert each.snapshots.capacities.by_target == {OF_B: 3, OF_M: 5, OF_N: 7}
    assert await capacities_of(controller) == {A: (5, "configured"), B: (3, "configured")}


async def test_capacity_set_after_a_data_loss_is_not_replaced_by_the_lost_one(
    controller: Replica, store: Store
) -> None:
    for capacity in (4, 5):
        await controller.capacities.set(OF_B, capacity, caller=OPERATOR)
    await controller.capacities.set(OF_N, 6, caller=OPERATOR)
    await controller.snapshots.take_now()
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))
    change = await controller.capacities.set(OF_B, 9, caller=OPERATOR)
    await controller.snapshots.take_now()
    assert (await controller.capacities.list()).value.by_target == {OF_B: 9, OF_N: 6}
    assert change == (5, 1)


async def test_worker_that_registered_after_a_data_loss_gets_the_restored_capacity(
    controller: Replica, store: Store, registry: Registry
) -> None:
    await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    await controller.snapshots.take_now()
    await store.client.delete(keys.capacities(store.namespace))
    await registry.register(worker(A, "m"))
    assert await capacities_of(controller) == {A: (None, ""), B: (5, "configured")}
    await controller.snapshots.take_now()
    assert await capacities_of(controller) == {A: (5, "configured"), B: (5, "configured")}
    assert [known.status.capacity for known in controller.snapshots.workers()] == [5, 5]


async def test_snapshot_lists_capacities_only_after_a_change(controller: Replica, link: Link) -> None:
    await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    await controller.snapshots.take_now()
    listings = link.delivered.count("list_capacities")
    for _ in range(3):
        await controller.snapshots.take_now()
    assert link.delivered.count("list_capacities") == listings > 0


async def test_parent_gets_the_sum_of_configured_and_reported_capacities(
    controller: Replica, registry: Registry
) -> None:
    await registry.register(worker(B, "m", capacity=8))
    assert (await controller.membership.status()).value.capacity is None
    await controller.capacities.set(OF_M, 5, caller=OPERATOR)
    assert (await controller.membership.status()).value.capacity == 13


async def test_dispatch_from_the_snapshot_uses_configured_capacities(
    controller: Replica, link: Link, registry: Registry
) -> None:
    for name in (A, B):
        await registry.register(worker(name, "m", queue_length=3 if name == A else 4))
    await controller.capacities.set(OF_M, 9, caller=OPERATOR)
    await controller.capacities.set(CapacityTarget(worker_name=A), 3, caller=OPERATOR)
    await controller.snapshots.take_now()
    with link.broken():
        assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [B, B, B]
