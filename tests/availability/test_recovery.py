"""Recovery of a store that lost data, and stores with data that the controller cannot use."""

import time
from dataclasses import replace

import pytest

from controller.availability.recovery import Recovery
from controller.availability.snapshot import MaybeStale, Snapshot
from controller.domain.errors import StoreIncompatible
from controller.domain.worker import WorkerStatus
from controller.metrics import Metrics
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import SCHEMA, Report
from tests.conftest import Open, Store
from tests.support.dispatches import dispatch_shortest_queue
from tests.support.lost_data import restore, save
from tests.support.outage import Link, queue_lengths, wait_for_recovery
from tests.support.samples import OPERATOR, A, B, C, asks, worker
from tests.support.waiting import wait_until


async def wipe(store: Store) -> None:
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))


async def test_workers_are_restored_after_a_data_loss(
    controller: Replica, link: Link, store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    other = replica()  # its snapshot is the same
    await other.readiness.check()
    with link.broken():
        assert (await controller.dispatcher.dispatch("n")).value == A
        await wipe(store)
        await store.client.hset("unrelated", "x", "y")
    await wait_for_recovery(controller)
    assert "registering 2 workers again" in caplog.text
    assert await queue_lengths(store) == {A: 1, B: 0}
    assert await store.client.get(keys.epoch(store.namespace)), "the data have an epoch, so that their loss is noticed"
    workers = (await store.registry().list_workers()).workers
    assert [(known.name, known.multimodal, known.check_heart_beat) for known in workers] == [
        (A, False, True),
        (B, True, True),
    ]
    assert all(known.expires_in and 0 < known.expires_in < 90 for known in workers), (
        "the heartbeats keep the time that they had left"
    )
    assert await controller.membership.heartbeat(A, 3) is True
    await other.snapshots._take_another()
    assert caplog.text.count("registering 2 workers again") == 1, "the other replica restores nothing more"
    await store.client.delete("unrelated")


@pytest.mark.parametrize("registers_first", [True, False])
async def test_draining_worker_drains_after_a_data_loss(
    controller: Replica, link: Link, store: Store, registers_first: bool
) -> None:
    assert await controller.membership.drain(B, caller=OPERATOR)
    await controller.snapshots._take_another()
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await wipe(store)
    if registers_first:
        await store.registry().register(worker(B, "m"))
    await wait_for_recovery(controller)
    assert {known.name: known.draining for known in (await store.registry().list_workers()).workers} == {
        A: False,
        B: True,
    }
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [A, A, A]


async def test_operator_actions_lost_in_a_failover_are_repeated(
    controller: Replica, store: Store, replica: Open
) -> None:
    """The failover loses only a drain, a resume and a removal."""
    registry = store.registry()
    await registry.register(worker(C, "m", check_heart_beat=False))
    await registry.drain(B)
    other = replica()
    await other.readiness.check()
    await save(store)
    assert await controller.membership.drain(A, caller=OPERATOR)
    assert await controller.membership.drain(B, drain=False, caller=OPERATOR)
    assert await controller.membership.remove(C, caller=OPERATOR)
    for each in (controller, other):
        await each.snapshots.take_now()
    await restore(store)
    assert len((await registry.list_workers()).workers) == 3
    for each in (other, controller):
        await each.snapshots.take_now()
    assert {known.name: known.draining for known in (await registry.list_workers()).workers} == {A: True, B: False}
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [B, B, B]


async def test_drain_after_a_recovery_is_not_undone_by_a_replica_that_returns_late(
    controller: Replica, store: Store, replica: Open
) -> None:
    """The late replica has a listing from before the loss, in which the worker is not draining."""
    other = replica()
    await other.readiness.check()
    await wipe(store)
    await other.snapshots.take_now()
    assert await other.membership.drain(A, caller=OPERATOR)
    await controller.snapshots.take_now()
    registry = store.registry()
    assert {known.name: known.draining for known in (await registry.list_workers()).workers} == {A: True, B: False}


async def test_worker_that_registers_after_a_failover_is_kept(controller: Replica, store: Store) -> None:
    registry = store.registry()
    await save(store)
    for _ in range(5):
        await dispatch_shortest_queue(registry, asks(["m"]))
    await controller.snapshots.take_now()
    await restore(store)
    await registry.register(worker(C))
    await controller.snapshots.take_now()
    assert [known.name for known in (await registry.list_workers()).workers] == [A, B, C]


async def test_deprioritised_worker_stays_so_after_a_data_loss(controller: Replica, link: Link, store: Store) -> None:
    registry = store.registry()
    await registry.take_poll_answers([Report(B, 0)])
    assert await registry.report_failure(B, of_polls=True)
    await controller.snapshots._take_another()
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await wipe(store)
    await wait_for_recovery(controller)
    [_, known] = (await registry.list_workers()).workers
    assert (known.name, known.failing, known.polled) == (B, "polls", True)
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [A, A, A]


async def test_worker_that_registered_after_a_data_loss_is_not_overwritten(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await wipe(store)
    registry = store.registry()
    await registry.register(worker(A, "new", queue_length=7))
    await wait_for_recovery(controller)
    workers = (await registry.list_workers()).workers
    assert {known.name: known.status for known in workers} == {
        A: WorkerStatus(("new",), 1, workers[0].status.queue_length),
        B: WorkerStatus(("m",), 1, 0),
    }
    assert workers[0].status.queue_length in (7, 8)


async def test_worker_whose_heartbeat_expired_during_the_outage_is_not_restored(
    store: Store, link: Link, replica: Open
) -> None:
    for registration in (worker(A), worker(B, check_heart_beat=False)):
        await store.registry().register(registration)
    controller = replica()
    await controller.readiness.check()
    manager = controller.snapshots
    assert manager._listing is not None
    manager._listing = manager._listing._replace(
        workers=[replace(known, expires_in=known.expires_in and 0.001) for known in manager._listing.workers]
    )
    manager._snapshot = Snapshot(manager._listing.workers, time.monotonic(), lambda: 0.5)
    with link.broken():
        await controller.dispatcher.dispatch("m")
        await wipe(store)
        await wait_until(lambda: is_expired(controller, A), "its heartbeat has expired")
    await wait_for_recovery(controller)
    [known] = (await store.registry().list_workers()).workers
    assert (known.name, known.expires_in) == (B, None)


async def is_expired(replica: Replica, name: str) -> bool:
    return {known.name: known.expires_in for known in (await replica.membership.list_workers()).value}[name] == 0


async def test_unreadable_worker_does_not_stop_dispatch_to_others(
    controller: Replica, link: Link, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.client.hset(keys.worker(store.namespace, B), "models", "no JSON")
    with link.broken():
        await controller.dispatcher.dispatch("n")
    await wait_for_recovery(controller)
    assert "the controller cannot have written" in caplog.text
    assert await controller.dispatcher.dispatch("n") == MaybeStale(A)
    await store.client.hset(keys.worker(store.namespace, B), "models", '["m"]')


async def test_key_layout_of_another_version_is_refused_and_not_changed(
    store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    await store.client.set(keys.schema(store.namespace), "999")
    controller = replica()
    with pytest.raises(StoreIncompatible, match=f"key layout version 999. This program needs version {SCHEMA}"):
        await controller.readiness.check()
    with pytest.raises(StoreIncompatible):
        await controller.dispatcher.dispatch("m")
    with pytest.raises(StoreIncompatible):
        await controller.membership.heartbeat(A, 1)
    assert "key layout version 999" in caplog.text
    await store.client.delete(keys.schema(store.namespace))
    await wait_for_recovery(controller)
    assert await store.client.get(keys.schema(store.namespace)) == SCHEMA
    assert await controller.dispatcher.dispatch("m") == MaybeStale("")


async def test_dispatches_of_two_replicas_are_booked_after_a_data_loss(
    controller: Replica, link: Link, store: Store, replica: Open
) -> None:
    other = replica()
    await other.readiness.check()
    with link.broken():
        for each in (controller, other):
            for _ in range(4):
                await each.dispatcher.dispatch("m")
        await wipe(store)
    await wait_for_recovery(controller)
    await wait_for_recovery(other)
    assert sum((await queue_lengths(store)).values()) == 8


async def test_worker_removed_after_a_recovery_is_not_restored_by_another_replica(
    controller: Replica, store: Store, replica: Open
) -> None:
    other = replica()
    await other.readiness.check()
    await wipe(store)
    await controller.snapshots._take_another()
    assert set(await queue_lengths(store)) == {A, B}
    assert await controller.membership.remove(A, caller=OPERATOR) is True
    await other.snapshots._take_another()
    assert set(await queue_lengths(store)) == {B}
    registry = store.registry()
    assert await registry.register(worker(A)) is True
    assert await registry.remove(A) is True
    await store.client.delete(keys.removed(store.namespace, A))


async def test_removed_worker_is_not_restored(controller: Replica, store: Store) -> None:
    await store.registry().remove(A)
    await controller.snapshots._take_another()
    assert set(await queue_lengths(store)) == {B}


async def test_key_layout_that_changes_during_an_outage_ends_degraded_mode(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        assert (await controller.dispatcher.dispatch("n")).value == A
        await store.client.set(keys.schema(store.namespace), "999")
    await wait_until(lambda: is_incompatible(controller), "the replica has read the version")
    with pytest.raises(StoreIncompatible):
        await controller.dispatcher.dispatch("n")
    await store.client.set(keys.schema(store.namespace), SCHEMA)
    await wait_for_recovery(controller)


async def is_incompatible(replica: Replica) -> bool:
    try:
        await replica.readiness.check()
    except StoreIncompatible:
        return True
    return False


async def test_restored_worker_gets_the_time_that_its_heartbeat_had_left(controller: Replica, store: Store) -> None:
    """The time since the snapshot is subtracted."""
    registry = store.registry()
    before = await registry.list_workers()
    await wipe(store)
    recovery = Recovery(registry, Metrics(), heartbeat_expiration=90.0, engine_expiration=10.0, replica_id="a")
    assert await recovery.repair(before, 50.0, await registry.list_workers(), lost_data=True)
    times_left = [known.expires_in for known in (await registry.list_workers()).workers]
    assert len(times_left) == 2
    assert all(seconds is not None and 0 < seconds <= 40 for seconds in times_left)
