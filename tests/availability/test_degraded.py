"""Degraded mode: while the store is unavailable, a replica dispatches from its snapshot and reports its age."""

import asyncio
import contextlib
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from unittest.mock import patch

import pytest

from controller.availability import snapshots
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreUnavailable
from controller.domain.worker import WorkerStatus
from controller.replica import Replica
from tests.conftest import Open, Store
from tests.support.metrics import dispatches
from tests.support.outage import Link, queue_lengths, wait_for_recovery
from tests.support.samples import OPERATOR, A, B, worker
from tests.support.waiting import cancelled, wait_until


async def test_dispatch_uses_the_snapshot_and_returns_its_age(controller: Replica, link: Link) -> None:
    with link.broken():
        first, second, third = [await controller.dispatcher.dispatch("m") for _ in range(3)]
        assert {first.value, second.value} == {A, B}
        assert third.value in (A, B)
        assert third.snapshot_age is not None
        assert third.snapshot_age >= 0
        assert (await controller.dispatcher.dispatch("n")).value == A
        assert (await controller.dispatcher.dispatch("absent")).value == ""


async def test_reads_use_the_snapshot_and_writes_fail(controller: Replica, link: Link) -> None:
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
        assert (reason, age is not None) == ("Redis is away.", True)
        with pytest.raises(StoreUnavailable):
            await controller.membership.heartbeat(A, 0)
        with pytest.raises(StoreUnavailable):
            await controller.membership.remove(A, caller=OPERATOR)
        with pytest.raises(StoreUnavailable):
            await controller.refresher.refresh()


async def test_lottery_uses_the_snapshot_and_books_nothing(store: Store, link: Link, replica: Open) -> None:
    await store.registry().register(worker(A))
    controller = replica(dispatch_method=DispatchMethod.LOTTERY)
    await controller.readiness.check()
    with link.broken():
        assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [A, A, A]
    with link.broken("after"):
        assert (await controller.dispatcher.dispatch("m")).value == A
    await wait_for_recovery(controller)
    assert await queue_lengths(store) == {A: 0}


async def test_snapshot_is_used_until_the_heartbeat_expiration(store: Store, link: Link, replica: Open) -> None:
    await store.registry().register(worker(A))
    controller = replica(heartbeat_expiration=0.5)
    await controller.readiness.check()
    with link.broken():
        assert (await controller.dispatcher.dispatch("m")).value == A
        await wait_until(lambda: dispatch_fails(controller), "the snapshot is too old")
        with pytest.raises(StoreUnavailable):
            await controller.dispatcher.list_models()
        with pytest.raises(StoreUnavailable):
            await controller.readiness.check()


async def dispatch_fails(replica: Replica) -> bool:
    try:
        await replica.dispatcher.dispatch("m")
    except StoreUnavailable:
        return True
    return False


async def test_snapshots_are_taken_at_intervals(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=0.01)
    snapshot_loop = asyncio.create_task(controller.snapshots.run())
    await controller.readiness.check()
    await store.registry().register(worker(A))
    await wait_until(lambda: in_snapshot(controller, A), "the worker is in the snapshot")
    with link.broken():
        assert (await controller.dispatcher.dispatch("m")).value == A
    await wait_for_recovery(controller)
    await wait_until(lambda: link.delivered.count("list_workers") > 5, "more snapshots are taken")
    await cancelled(snapshot_loop)


def in_snapshot(replica: Replica, name: str) -> bool:
    snapshot = replica.snapshots._snapshot
    return snapshot is not None and name in snapshot._workers


async def test_each_registration_causes_one_snapshot(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=60)
    snapshot_loop = asyncio.create_task(controller.snapshots.run())
    await wait_until(lambda: controller.snapshots._snapshot is not None, "the first snapshot is taken")
    listings: list[int] = []
    for name in (A, B):
        await controller.membership.register(
            name, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False, caller=OPERATOR
        )
        await wait_until(
            partial(in_snapshot, controller, name),
            "the worker is in a snapshot, long before the interval has passed",
        )
        listings.append(link.delivered.count("list_workers"))
    assert listings[1] == listings[0] + 1
    assert not controller.snapshots._requested.is_set(), "the next snapshot is due after the interval"
    await cancelled(snapshot_loop)


async def test_calls_that_wait_for_a_snapshot_do_not_each_wait_for_a_hung_store(controller: Replica) -> None:
    sent: list[str] = []

    async def hang(script: str, *_: str | int) -> object:
        sent.append(script)
        await asyncio.sleep(0.05)
        raise StoreUnavailable("no response in time")

    snapshots = controller.snapshots
    with patch.object(controller.registry, "_run", hang):
        found = [snapshots.find("http://127.0.0.9:1") for _ in range(10)]
        taken = [snapshots.take_now() for _ in range(10)]
        results = await asyncio.gather(*found, *taken, return_exceptions=True)
    assert results[:10] == [None] * 10
    assert all(isinstance(result, StoreUnavailable) for result in results[10:])
    assert sent.count("list_workers") == 1


async def test_each_outage_is_counted_and_a_second_one_soon_after_is_not_logged(
    controller: Replica, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    with link.broken():
        for _ in range(5):
            await controller.dispatcher.dispatch("m")
    await wait_for_recovery(controller)
    with link.broken():
        await controller.dispatcher.dispatch("m")
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0] == "Redis is away."
    assert messages[1].startswith("Redis is unavailable: dispatching from a snapshot of 2 workers, ")
    assert len(messages) == 2
    text = controller.metrics.render().decode()
    assert dispatches(text, "degraded") == 6
    assert "controller_store_outages_total 2.0" in text


async def test_request_without_a_worker_counts_once_as_no_worker_during_an_outage(
    controller: Replica, link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted() -> tuple[float, float]:
        text = controller.metrics.render().decode()
        return dispatches(text, "no_worker"), dispatches(text, "degraded")

    async def goes_down(models: Sequence[str]) -> bool:
        stack.enter_context(link.broken())
        return True

    with contextlib.ExitStack() as stack:
        monkeypatch.setattr(controller.snapshots, "verify_missing", goes_down)
        assert (await controller.dispatcher.dispatch("absent")).value == "", "Redis goes down before the second look"
        assert counted() == (1, 0)
        assert (await controller.dispatcher.dispatch("absent")).value == ""
        assert counted() == (2, 0)
        assert (await controller.dispatcher.dispatch("m")).value
        assert counted() == (2, 1)


async def test_pause_between_snapshots_grows_with_the_number_of_workers(
    replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Listing many workers takes long, so it is done less often. An upper bound keeps the snapshot useful."""
    manager = replica(snapshot_interval=1.0).snapshots
    pauses: list[float] = []
    sizes = iter([0, 1000, 10_000, 100_000])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    def timeout(seconds: float) -> object:
        pauses.append(seconds)
        raise asyncio.CancelledError if len(pauses) == 8 else TimeoutError

    async def take(_: object) -> None:
        manager._snapshot = range(next(sizes))  # type: ignore[assignment]  # only its length counts

    monkeypatch.setattr(manager.breaker, "call", take)
    monkeypatch.setattr(snapshots, "asyncio", SimpleNamespace(sleep=sleep, timeout=timeout))
    with pytest.raises(asyncio.CancelledError):
        await manager.run()
    assert pauses[0] == pytest.approx(0.02)
    assert 0.9 * 0.98 <= pauses[1] <= 1.1 * 0.98
    assert pauses[2] == pytest.approx(0.77)
    assert 0.9 * 0.23 <= pauses[3] <= 1.1 * 0.23
    assert pauses[4:] == [pytest.approx(7.52), 0.0, pytest.approx(90 / 8), 0.0]


async def test_registered_worker_is_in_the_snapshot_before_the_next_interval(
    store: Store, link: Link, replica: Open
) -> None:
    controller = replica(snapshot_interval=60.0)
    snapshot_loop = asyncio.create_task(controller.snapshots.run())
    await wait_until(lambda: link.delivered.count("list_workers") == 2, "the first snapshots are taken")
    await controller.membership.register(
        A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False, caller=OPERATOR
    )
    await wait_until(lambda: in_snapshot(controller, A), "the worker is in the snapshot")
    await cancelled(snapshot_loop)
