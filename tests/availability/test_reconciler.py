"""A replica whose store comes back: nothing that it did meanwhile is lost or counted twice."""

import asyncio

import pytest

from controller.domain.errors import StoreUnavailable
from controller.replica import Replica
from controller.store import keys
from controller.store.reconciliation import split
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.dispatches import workers_of
from tests.support.invariants import load_of
from tests.support.outage import Link, back, queues
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.waiting import wait_until


async def test_the_store_is_told_what_was_dispatched_without_it(controller: Replica, link: Link, store: Store) -> None:
    with link.broken():
        chosen = [(await controller.dispatcher.dispatch("m")).value for _ in range(10)]
    assert await queues(store) == {A: 0, B: 0}
    await back(controller)
    assert chosen.count(A) == 5
    assert await queues(store) == {A: 5, B: 5}
    assert (await controller.dispatcher.dispatch("n")).value == A
    assert await queues(store) == {A: 6, B: 5}


async def test_a_dispatch_whose_answer_was_lost_is_booked_once(controller: Replica, link: Link, store: Store) -> None:
    with link.broken("after"):
        answer = await controller.dispatcher.dispatch("m")
    assert answer.snapshot_age is not None, "it was answered from the snapshot"
    await back(controller)
    assert await queues(store) == {A: 0, B: 0, answer.value: 1}


async def test_a_dispatch_that_is_still_on_its_way_books_nothing_when_it_arrives(
    controller: Replica, link: Link, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a request does that waits in the socket of a stopped server."""
    late: list[tuple[Registry, tuple[str | int, ...]]] = []
    run = Registry._run

    async def delay(self: Registry, script: str, *arguments: str | int) -> object:
        if script == "dispatch_shortest_queue":
            late.append((self, arguments))
            raise StoreUnavailable("No answer in time.")
        return await run(self, script, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", delay)
        answer = await controller.dispatcher.dispatch("m")
    await back(controller)
    before = await queues(store)
    [(registry, arguments)] = late
    assert await registry._run("dispatch_shortest_queue", *arguments) == []
    assert await queues(store) == before == {A: 0, B: 0, answer.value: 1}


async def test_what_was_told_and_not_acknowledged_counts_once(controller: Replica, link: Link, store: Store) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatcher.dispatch("m")
    with link.broken("after", "reconcile"):
        await wait_until(lambda: link.passed.count("reconcile") == 2, "it is told twice")
        assert await queues(store) == {A: 3, B: 3}
        assert (await controller.dispatcher.dispatch("m")).snapshot_age is not None, (
            "it does not know that it was heard"
        )
    await back(controller)
    assert await queues(store) in ({A: 4, B: 3}, {A: 3, B: 4})


async def test_what_could_not_be_told_is_told_later(controller: Replica, link: Link, store: Store) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatcher.dispatch("m")
    link.passed.clear()
    with link.broken("before", "reconcile"):
        await wait_until(lambda: link.passed.count("check") == 2, "the store is tried twice")
        assert await queues(store) == {A: 0, B: 0}
    await back(controller)
    assert await queues(store) == {A: 3, B: 3}


async def test_a_settlement_counts_once_however_often_it_is_sent(store: Store) -> None:
    registry = store.registry()
    for name in (A, B):
        await registry.register(worker(name, queue_length=1))
    [settlement] = split({A: 2, B: 3, C: 4}, [], 0)
    for _ in range(3):
        await registry.reconcile(settlement)
    assert await queues(store) == {A: 3, B: 4}
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A], "the indexes were brought up to date"


async def test_a_settlement_is_remembered_for_as_long_as_a_replica_may_repeat_it(store: Store) -> None:
    """A replica repeats it after an outage, which it outlasts for the heartbeat expiration."""
    registry = store.registry(heartbeat_expiration=600.0, deadline=1.0)
    [settlement] = split({A: 1}, ["lost"], 0)
    await registry.reconcile(settlement)
    for request_id in (f"{settlement.request_id}-0", "lost"):
        assert 300_000 < await store.aside.pttl(keys.reply(store.namespace, request_id)) <= 600_000


async def test_there_is_nothing_to_settle_where_nothing_happened(store: Store) -> None:
    registry = store.registry()
    assert split({}, [], 0) == []
    [settlement] = split({}, [], 1000)
    await registry.reconcile(settlement)
    assert await store.aside.get(keys.sequence(store.namespace)) == "1000"
    [settlement] = split({}, [], 10)
    await registry.reconcile(settlement)
    assert await store.aside.get(keys.sequence(store.namespace)) == "1000", "it never goes back"


def test_a_large_reconciliation_is_sent_in_parts() -> None:
    parts = split({f"http://127.0.0.1:1/w{i}": 1 for i in range(2500)}, [], 3)
    assert [len(part.bookings) for part in parts] == [1000, 1000, 500]
    assert len({part.request_id for part in parts}) == 3


async def test_a_booking_is_never_taken_back_below_zero(store: Store) -> None:
    registry = store.registry()
    await registry.register(worker(A))
    assert await registry._run("dispatch_shortest_queue", "lost", 60_000, 0, "m", 0) == [[A, ""]]
    await registry.heartbeat(reports([(A, 0)]))
    [settlement] = split({}, ["lost"], 0)
    await registry.reconcile(settlement)
    assert await queues(store) == {A: 0}


async def test_two_that_tell_the_store_at_once_tell_everything_once(
    controller: Replica, link: Link, store: Store
) -> None:
    with link.broken():
        for _ in range(4):
            await controller.dispatcher.dispatch("m")
    keeper = controller.snapshots
    await asyncio.gather(keeper._return_to_redis(), keeper._take_if_stale(), keeper._return_to_redis())
    await back(controller)
    assert await queues(store) == {A: 2, B: 2}


async def test_a_report_after_a_settlement_takes_no_more_for_seen_than_there_is(store: Store, link: Link) -> None:
    registry = store.registry(booking_delay=0.1)
    unanswered: list[str] = []
    registry.on_unanswered = unanswered.append
    await registry.register(worker(A))
    with link.broken("after", "dispatch_shortest_queue"):
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await registry.dispatch_shortest_queue(asks(["m"]))
    await asyncio.sleep(0.06)  # and there is another mark
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A]
    for settlement in split({}, unanswered, 0):
        await registry.reconcile(settlement)
    await asyncio.sleep(0.06)
    await registry.heartbeat(reports([(A, 0)]))
    load = load_of(await store.aside.hgetall(keys.worker(store.namespace, A)))
    assert load.dispatched >= 0
    assert load.untracked >= 0
    await registry.list_workers()
