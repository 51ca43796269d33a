"""Reconciliation after an outage: nothing that a replica did meanwhile is lost or counted twice."""

import asyncio
from functools import partial

import pytest

from controller.availability.reconciler import Reconciler
from controller.domain.checkpoints import CHECKPOINT_MS
from controller.domain.errors import ReplicaBusy, StoreRejection, StoreUnavailable
from controller.replica import Replica
from controller.store import keys
from controller.store.reconciliation import Reconciliation, split
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.invariants import load_of
from tests.support.outage import Link, queue_lengths, wait_for_recovery
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.waiting import cancelled, wait_until


async def test_dispatches_from_the_snapshot_are_booked_after_the_outage(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        chosen = [(await controller.dispatcher.dispatch("m")).value for _ in range(10)]
    assert await queue_lengths(store) == {A: 0, B: 0}
    await wait_for_recovery(controller)
    assert chosen.count(A) == 5
    assert await queue_lengths(store) == {A: 5, B: 5}
    assert (await controller.dispatcher.dispatch("n")).value == A
    assert await queue_lengths(store) == {A: 6, B: 5}


async def test_dispatch_with_a_lost_reply_is_booked_once(controller: Replica, link: Link, store: Store) -> None:
    with link.broken("after"):
        choice = await controller.dispatcher.dispatch("m")
    assert choice.snapshot_age is not None, "it came from the snapshot"
    await wait_for_recovery(controller)
    assert await queue_lengths(store) == {A: 0, B: 0, choice.value: 1}


async def test_dispatch_that_arrives_after_the_reconciliation_books_nothing(
    controller: Replica, link: Link, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls may wait in the socket of a stopped server."""
    late: list[tuple[Registry, tuple[str | int, ...]]] = []
    run = Registry._run

    async def delay(self: Registry, script: str, *arguments: str | int) -> object:
        if script == "dispatch_shortest_queue":
            late.append((self, arguments))
            raise StoreUnavailable("No reply in time.")
        return await run(self, script, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", delay)
        choice = await controller.dispatcher.dispatch("m")
    await wait_for_recovery(controller)
    before = await queue_lengths(store)
    [(registry, arguments)] = late
    assert await registry._run("dispatch_shortest_queue", *arguments) == []
    assert await queue_lengths(store) == before == {A: 0, B: 0, choice.value: 1}


async def test_reconciliation_without_acknowledgement_counts_once(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatcher.dispatch("m")
    with link.broken("after", "reconcile"):
        await wait_until(lambda: link.delivered.count("reconcile") == 2, "the reconciliation is sent twice")
        assert await queue_lengths(store) == {A: 3, B: 3}
        assert (await controller.dispatcher.dispatch("m")).snapshot_age is not None, (
            "without an acknowledgement it stays in degraded mode"
        )
    await wait_for_recovery(controller)
    assert await queue_lengths(store) in ({A: 4, B: 3}, {A: 3, B: 4})


async def test_reconciliation_that_could_not_be_sent_is_sent_later(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatcher.dispatch("m")
    link.delivered.clear()
    with link.broken("before", "reconcile"):
        await wait_until(lambda: link.delivered.count("check") == 2, "the store is checked twice")
        assert await queue_lengths(store) == {A: 0, B: 0}
    await wait_for_recovery(controller)
    assert await queue_lengths(store) == {A: 3, B: 3}


async def test_reconciliation_counts_once_if_it_is_sent_repeatedly(store: Store) -> None:
    registry = store.registry()
    for name in (A, B):
        await registry.register(worker(name, queue_length=1))
    [reconciliation] = split({A: 2, B: 3, C: 4}, [], 0)
    for _ in range(3):
        await registry.reconcile(reconciliation)
    assert await queue_lengths(store) == {A: 3, B: 4}
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A], "the indexes are up to date"


async def test_rejected_reconciliation_is_dropped(store: Store) -> None:
    """A part of it may be done already, so to repeat it could count requests twice."""
    registry = store.registry()
    await registry.register(worker(A))
    await registry.register(worker(B, "n"))
    index = keys.decay_index(store.namespace, "n")
    entries = await store.client.zrange(index, 0, -1, withscores=True)
    await store.client.delete(index)
    await store.client.set(index, "of another program")
    reconciler = Reconciler(registry)
    reconciler.add_bookings([A, B])
    [report] = split({A: 1, B: 1}, [], 0)
    for call in (reconciler.reconcile, partial(registry.reconcile, report)):
        with pytest.raises(StoreRejection, match="WRONGTYPE"):
            await call()
    with pytest.raises(StoreRejection, match="an earlier run of it has failed"):
        await registry.reconcile(report)
    await store.client.delete(index)
    await store.client.zadd(index, dict(entries))
    await reconciler.reconcile()
    assert (await queue_lengths(store))[A] == 2, "each report counted once"


async def test_reconciliation_id_is_kept_while_a_replica_may_repeat_it(store: Store) -> None:
    """A replica outlasts an outage for the heartbeat expiration. After the outage it may repeat a reconciliation."""
    registry = store.registry(heartbeat_expiration=600.0, deadline=1.0)
    [reconciliation] = split({A: 1}, ["lost"], 0)
    await registry.reconcile(reconciliation)
    for request_id in (f"{reconciliation.request_id}-0", "lost"):
        assert 300_000 < await store.client.pttl(keys.reply(store.namespace, request_id)) <= 600_000


async def test_split_returns_nothing_if_there_is_nothing_to_report(store: Store) -> None:
    registry = store.registry()
    assert split({}, [], 0) == []
    [reconciliation] = split({}, [], 1000)
    await registry.reconcile(reconciliation)
    assert await store.client.get(keys.sequence(store.namespace)) == "1000"
    [reconciliation] = split({}, [], 10)
    await registry.reconcile(reconciliation)
    assert await store.client.get(keys.sequence(store.namespace)) == "1000", "it never decreases"


def test_split_returns_parts_of_bounded_size() -> None:
    parts = split({f"http://127.0.0.1:1/w{i}": 1 for i in range(2500)}, [], 3)
    assert [len(part.bookings) for part in parts] == [1000, 1000, 500]
    assert len({part.request_id for part in parts}) == 3


async def test_take_back_leaves_what_a_worker_has_reported_since(store: Store) -> None:
    registry = store.registry()
    await registry.register(worker(A))
    requests: list[str | int] = ["m", 0] * 3
    assert await registry._run("dispatch_shortest_queue", "lost", 60_000, 0, 0, *requests) == [A, ""] * 3
    await registry.heartbeat(reports([(A, 5)]))
    for part in split({}, ["lost"], 0):
        await registry.reconcile(part)
    assert await queue_lengths(store) == {A: 5}


async def test_bookings_taken_back_after_a_heartbeat_do_not_go_below_zero(store: Store) -> None:
    registry = store.registry()
    await registry.register(worker(A))
    assert await registry._run("dispatch_shortest_queue", "lost", 60_000, 0, 0, "m", 0) == [A, ""]
    await registry.heartbeat(reports([(A, 0)]))
    [reconciliation] = split({}, ["lost"], 0)
    await registry.reconcile(reconciliation)
    assert await queue_lengths(store) == {A: 0}


async def test_concurrent_reconciliations_count_each_booking_once(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        for _ in range(4):
            await controller.dispatcher.dispatch("m")
    manager = controller.snapshots
    await asyncio.gather(*(manager._return_to_redis() for _ in range(3)))
    await wait_for_recovery(controller)
    assert await queue_lengths(store) == {A: 2, B: 2}


@pytest.mark.usefixtures("store_clock")
async def test_heartbeat_after_a_reconciliation_leaves_no_negative_count(store: Store, link: Link) -> None:
    seconds, microseconds = await store.client.time()
    await store.client.set(CLOCK, 1000 * seconds + microseconds // 1000)
    registry = store.registry(booking_delay=0.1)
    unanswered: list[str] = []
    registry.on_unanswered = unanswered.append
    await registry.register(worker(A))
    with link.broken("after", "dispatch_shortest_queue"):
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await dispatch_shortest_queue(registry, asks(["m"]))
    await store.client.incrby(CLOCK, CHECKPOINT_MS + 10)  # later bookings get another checkpoint
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    for reconciliation in split({}, unanswered, 0):
        await registry.reconcile(reconciliation)
    await store.client.incrby(CLOCK, CHECKPOINT_MS + 10)
    await registry.heartbeat(reports([(A, 0)]))
    load = load_of(await store.client.hgetall(keys.worker(store.namespace, A)))
    assert load.dispatched >= 0
    assert load.untracked >= 0
    await registry.list_workers()


async def test_a_lease_that_ends_while_the_replica_reconciles_is_released_later(
    controller: Replica, link: Link, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica has released the other leases by then, and its circuit breaker is still open."""
    lease = (await controller.dispatcher.dispatch_with_lease("m")).value.lease
    answers: list[object] = []
    run = Registry._run

    async def end_a_lease_first(self: Registry, script: str, *arguments: str | int) -> object:
        if script == "reconcile" and not answers:
            answers.extend(await asyncio.gather(controller.dispatcher.release(lease), return_exceptions=True))
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", end_a_lease_first)
    with link.broken():
        await controller.dispatcher.dispatch("m")
    await wait_for_recovery(controller)
    assert isinstance(answers[0], StoreUnavailable)
    assert await store.client.zrange(keys.leases(store.namespace), 0, -1) == [lease]
    snapshots = asyncio.create_task(controller.snapshots.run())

    async def is_released() -> bool:
        return not await store.client.zrange(keys.leases(store.namespace), 0, -1)

    await wait_until(is_released, "the lease is released")
    await cancelled(snapshots)


async def test_a_lease_that_a_busy_replica_did_not_release_is_released_with_the_next_snapshot(
    controller: Replica, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No outage follows, and without the release the lease would count until it expires."""
    lease = (await controller.dispatcher.dispatch_with_lease("m")).value.lease

    async def is_busy(*_: object) -> list[bool]:
        raise ReplicaBusy("Other calls are running.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "release", is_busy)
        with pytest.raises(ReplicaBusy):
            await controller.dispatcher.release(lease)
    assert controller.snapshots.breaker.reason is None
    snapshots = asyncio.create_task(controller.snapshots.run())

    async def is_released() -> bool:
        return not await store.client.zrange(keys.leases(store.namespace), 0, -1)

    await wait_until(is_released, "the lease is released")
    await cancelled(snapshots)


async def test_a_replica_that_dispatches_all_the_time_leaves_degraded_mode(
    controller: Replica, link: Link, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call of the reconciliation takes long enough for further dispatches from the snapshot."""
    reconcile = type(controller.registry).reconcile
    dispatched = 0

    async def dispatches_meanwhile(registry: Registry, reconciliation: Reconciliation) -> None:
        nonlocal dispatched
        if not controller.snapshots.breaker._closed:
            await controller.dispatcher.dispatch("m")
            dispatched += 1
        await reconcile(registry, reconciliation)

    monkeypatch.setattr(type(controller.registry), "reconcile", dispatches_meanwhile)
    with link.broken():
        await controller.dispatcher.dispatch("m")
    await wait_for_recovery(controller)
    assert dispatched > 1
    await controller.snapshots.take_now()
    assert sum((await queue_lengths(store)).values()) >= dispatched
