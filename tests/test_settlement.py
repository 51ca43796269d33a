"""A replica whose store comes back: nothing that it did meanwhile is lost or counted twice."""

import asyncio

import pytest

from controller.domain.errors import StoreUnavailable
from controller.service import Controller
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Store
from tests.invariants import load_of
from tests.outage import Link, back, queues
from tests.samples import A, B, C, asks, reports, worker
from tests.waiting import wait_until


async def test_the_store_is_told_what_was_dispatched_without_it(
    controller: Controller, link: Link, store: Store
) -> None:
    with link.broken():
        chosen = [(await controller.dispatch("m")).value for _ in range(10)]
    assert await queues(store) == {A: 0, B: 0}
    await back(controller)
    assert chosen.count(A) == 5
    assert await queues(store) == {A: 5, B: 5}
    assert (await controller.dispatch("n")).value == A
    assert await queues(store) == {A: 6, B: 5}


async def test_a_dispatch_whose_answer_was_lost_is_booked_once(
    controller: Controller, link: Link, store: Store
) -> None:
    with link.broken("after"):
        answer = await controller.dispatch("m")
    assert answer.snapshot_age is not None, "it was answered from the snapshot"
    await back(controller)
    assert await queues(store) == {A: 0, B: 0, answer.value: 1}


async def test_a_dispatch_that_is_still_on_its_way_books_nothing_when_it_arrives(
    controller: Controller, link: Link, store: Store, monkeypatch: pytest.MonkeyPatch
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
        answer = await controller.dispatch("m")
    await back(controller)
    before = await queues(store)
    [(registry, arguments)] = late
    assert await registry._run("dispatch_shortest_queue", *arguments) == []
    assert await queues(store) == before == {A: 0, B: 0, answer.value: 1}


async def test_what_was_told_and_not_acknowledged_counts_once(controller: Controller, link: Link, store: Store) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatch("m")
    with link.broken("after", "settle"):
        await wait_until(lambda: link.passed.count("settle") == 2, "it is told twice")
        assert await queues(store) == {A: 3, B: 3}
        assert (await controller.dispatch("m")).snapshot_age is not None, "it does not know that it was heard"
    await back(controller)
    assert await queues(store) in ({A: 4, B: 3}, {A: 3, B: 4})


async def test_what_could_not_be_told_is_told_later(controller: Controller, link: Link, store: Store) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatch("m")
    link.passed.clear()
    with link.broken("before", "settle"):
        await wait_until(lambda: link.passed.count("check") == 2, "the store is tried twice")
        assert await queues(store) == {A: 0, B: 0}
    await back(controller)
    assert await queues(store) == {A: 3, B: 3}


async def test_a_settlement_counts_once_however_often_it_is_sent(store: Store) -> None:
    registry = store.registry()
    for name in (A, B):
        await registry.register(worker(name, queue_length=1))
    [settlement] = registry.settlements({A: 2, B: 3, C: 4}, 0)
    for _ in range(3):
        await registry.settle(settlement)
    assert await queues(store) == {A: 3, B: 4}
    assert await registry.dispatch_shortest_queue(asks(["m"])) == [A], "the indexes were brought up to date"


async def test_a_settlement_is_remembered_for_as_long_as_a_replica_may_repeat_it(store: Store) -> None:
    """A replica repeats it after an outage, which it outlasts for the heartbeat expiration."""
    registry = store.registry(heartbeat_expiration=600.0, deadline=1.0)
    registry._unanswered.append("lost")
    [settlement] = registry.settlements({A: 1}, 0)
    await registry.settle(settlement)
    for request_id in (f"{settlement.request_id}-0", "lost"):
        assert 300_000 < await store.aside.pttl(keys.reply(store.namespace, request_id)) <= 600_000


async def test_there_is_nothing_to_settle_where_nothing_happened(store: Store) -> None:
    registry = store.registry()
    assert registry.settlements({}, 0) == []
    [settlement] = registry.settlements({}, 1000)
    await registry.settle(settlement)
    assert await store.aside.get(keys.sequence(store.namespace)) == "1000"
    [settlement] = registry.settlements({}, 10)
    await registry.settle(settlement)
    assert await store.aside.get(keys.sequence(store.namespace)) == "1000", "it never goes back"


async def test_a_large_settlement_is_sent_in_parts(store: Store) -> None:
    registry = store.registry()
    parts = registry.settlements({f"http://127.0.0.1:1/w{i}": 1 for i in range(2500)}, 3)
    assert [len(part.bookings) for part in parts] == [1000, 1000, 500]
    assert len({part.request_id for part in parts}) == 3


async def test_a_booking_is_never_taken_back_below_zero(store: Store) -> None:
    registry = store.registry()
    await registry.register(worker(A))
    assert await registry._run("dispatch_shortest_queue", "lost", 60_000, 0, "m", 0) == [A]
    registry._unanswered.append("lost")
    await registry.heartbeat(reports([(A, 0)]))
    [settlement] = registry.settlements({}, 0)
    await registry.settle(settlement)
    assert await queues(store) == {A: 0}


async def test_two_that_tell_the_store_at_once_tell_everything_once(
    controller: Controller, link: Link, store: Store
) -> None:
    with link.broken():
        for _ in range(4):
            await controller.dispatch("m")
    keeper = controller._fallback
    await asyncio.gather(keeper._return_to_store(), keeper._look(), keeper._return_to_store())
    await back(controller)
    assert await queues(store) == {A: 2, B: 2}


async def test_a_report_after_a_settlement_takes_no_more_for_seen_than_there_is(store: Store, link: Link) -> None:
    registry = store.registry(booking_delay=0.1)
    await registry.register(worker(A))
    with link.broken("after", "dispatch_shortest_queue"):
        for _ in range(5):
            with pytest.raises(StoreUnavailable):
                await registry.dispatch_shortest_queue(asks(["m"]))
    await asyncio.sleep(0.06)  # and there is another mark
    assert await registry.dispatch_shortest_queue(asks(["m"])) == [A]
    for settlement in registry.settlements({}, 0):
        await registry.settle(settlement)
    await asyncio.sleep(0.06)
    await registry.heartbeat(reports([(A, 0)]))
    load = load_of(await store.aside.hgetall(keys.worker(store.namespace, A)))
    assert load.booked >= 0
    assert load.unleased >= 0
    await registry.list_workers()
