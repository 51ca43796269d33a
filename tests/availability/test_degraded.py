"""A replica whose store goes away dispatches on, for a while, and tells how old its knowledge is."""

import asyncio
from types import SimpleNamespace

import pytest

from controller.availability import snapshots as fallback
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreUnavailable
from controller.domain.worker import WorkerStatus
from controller.replica import Replica
from tests.conftest import Open, Store
from tests.support.outage import Link, back, queues
from tests.support.samples import A, B, worker
from tests.support.waiting import cancelled, wait_until


async def test_dispatch_goes_on_and_says_how_old_its_knowledge_is(controller: Replica, link: Link) -> None:
    with link.broken():
        first, second, third = [await controller.dispatcher.dispatch("m") for _ in range(3)]
        assert {first.value, second.value} == {A, B}
        assert third.value in (A, B)
        assert third.snapshot_age is not None
        assert third.snapshot_age >= 0
        assert (await controller.dispatcher.dispatch("n")).value == A
        assert (await controller.dispatcher.dispatch("nobody's")).value == ""


async def test_everything_that_is_read_goes_on(controller: Replica, link: Link) -> None:
    with link.broken():
        await controller.dispatcher.dispatch("n")
        assert (await controller.dispatcher.list_models()).value == ["m", "n"]
        assert (await controller.dispatcher.list_models(multimodal=True)).value == ["m"]
        workers, age = await controller.membership.list_workers()
        assert [(known.name, known.status.queue_length) for known in workers] == [(A, 1), (B, 0)]
        assert age is not None
        status = await controller.membership.status()
        assert (status.value.queue_length, status.snapshot_age is not None) == (1, True)
        reason, age = await controller.readiness.check()
        assert (reason, age is not None) == ("The store is away.", True)
        with pytest.raises(StoreUnavailable):
            await controller.membership.heartbeat(A, 0)
        with pytest.raises(StoreUnavailable):
            await controller.membership.remove(A)
        with pytest.raises(StoreUnavailable):
            await controller.refresher.refresh()


async def test_a_lottery_goes_on_too_and_books_nothing(store: Store, link: Link, replica: Open) -> None:
    await store.registry().register(worker(A))
    controller = replica(dispatch_method=DispatchMethod.LOTTERY)
    await controller.readiness.check()
    with link.broken():
        assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [A, A, A]
    with link.broken("after"):
        assert (await controller.dispatcher.dispatch("m")).value == A
    await back(controller)
    assert await queues(store) == {A: 0}


async def test_the_snapshot_serves_for_the_heartbeat_expiration_at_most(
    store: Store, link: Link, replica: Open
) -> None:
    await store.registry().register(worker(A))
    controller = replica(heartbeat_expiration=0.5)
    await controller.readiness.check()
    with link.broken():
        assert (await controller.dispatcher.dispatch("m")).value == A
        await wait_until(lambda: refused(controller), "the snapshot is too old")
        with pytest.raises(StoreUnavailable):
            await controller.dispatcher.list_models()
        with pytest.raises(StoreUnavailable):
            await controller.readiness.check()


async def refused(controller: Replica) -> bool:
    try:
        await controller.dispatcher.dispatch("m")
    except StoreUnavailable:
        return True
    return False


async def test_snapshots_are_taken_again_and_again(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=0.01)
    keeping = asyncio.create_task(controller.snapshots.run())
    await controller.readiness.check()
    await store.registry().register(worker(A))
    await wait_until(lambda: knows(controller, A), "the worker is in the snapshot")
    with link.broken():
        assert (await controller.dispatcher.dispatch("m")).value == A
    await back(controller)
    await wait_until(lambda: link.passed.count("list_workers") > 5, "it goes on")
    await cancelled(keeping)


def knows(controller: Replica, name: str) -> bool:
    snapshot = controller.snapshots._snapshot
    return snapshot is not None and name in snapshot._workers


async def test_news_is_taken_once(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=60)
    keeping = asyncio.create_task(controller.snapshots.run())
    await wait_until(lambda: "list_workers" in link.passed, "it has begun")
    for name in (A, B):
        await controller.membership.register(
            name, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False
        )
        await wait_until(
            lambda name=name: knows(controller, name), "the worker is in the snapshot, long before its time"
        )
    taken = link.passed.count("list_workers")
    await asyncio.sleep(0.3)  # ten times the pause there is between two at least
    assert link.passed.count("list_workers") == taken
    await cancelled(keeping)


async def test_an_outage_is_logged_once_and_counted(
    controller: Replica, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    with link.broken():
        for _ in range(5):
            await controller.dispatcher.dispatch("m")
    await back(controller)
    with link.broken():
        await controller.dispatcher.dispatch("m")
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "The store is away."
    assert told[1].startswith("Redis is unavailable: dispatching from a snapshot of 2 workers, ")
    assert len(told) == 2
    text = controller.metrics.render().decode()
    assert 'controller_dispatches_total{outcome="degraded"} 6.0' in text
    assert "controller_store_outages_total 2.0" in text


async def test_time_for_snapshots_is_a_small_share(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """The more workers there are to list, the less often they are; but never so little that it is of no use."""
    keeper = replica(snapshot_interval=1.0).snapshots
    pauses: list[float] = []
    sizes = iter([0, 1000, 10_000, 100_000])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def timeout(seconds: float) -> object:
        pauses.append(seconds)
        raise asyncio.CancelledError if len(pauses) == 8 else TimeoutError

    async def take(_: object) -> None:
        keeper._snapshot = range(next(sizes))

    monkeypatch.setattr(keeper.breaker, "call", take)
    monkeypatch.setattr(fallback, "asyncio", SimpleNamespace(sleep=sleep, timeout=timeout))
    with pytest.raises(asyncio.CancelledError):
        await keeper.run()
    assert pauses[0] == pytest.approx(0.02)
    assert 0.9 * 0.98 <= pauses[1] <= 1.1 * 0.98
    assert pauses[2] == pytest.approx(0.77)
    assert 0.9 * 0.23 <= pauses[3] <= 1.1 * 0.23
    assert pauses[4:] == [pytest.approx(7.52), 0.0, pytest.approx(90 / 8), 0.0]


async def test_a_worker_that_registers_is_soon_in_the_snapshot(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=60.0)
    keeping = asyncio.create_task(controller.snapshots.run())
    await wait_until(lambda: link.passed.count("list_workers") == 2, "the first snapshots are taken")
    await controller.membership.register(A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False)
    await wait_until(lambda: knows(controller, A), "the worker is in the snapshot")
    await cancelled(keeping)
