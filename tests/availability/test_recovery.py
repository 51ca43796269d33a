"""A store that comes back without its memory, or with one that is not ours."""

import asyncio
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
from controller.store.registry import SCHEMA, Registry, Report
from tests.conftest import Open, Store
from tests.support.outage import Link, back, queues
from tests.support.samples import A, B, C, asks, worker
from tests.support.waiting import wait_until


async def test_a_store_that_lost_its_memory_is_given_the_workers_again(
    controller: Replica, link: Link, store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    other = replica()  # it has the same snapshot
    await other.readiness.check()
    with link.broken():
        assert (await controller.dispatcher.dispatch("n")).value == A
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
        await store.aside.hset("unrelated", "x", "y")
    await back(controller)
    assert "registering 2 workers again" in caplog.text
    assert await queues(store) == {A: 1, B: 0}
    assert await store.aside.get(keys.epoch(store.namespace)), "the memory has a name, so that its loss is noticed"
    workers = (await store.registry().list_workers()).workers
    assert [(known.name, known.multimodal, known.check_heart_beat) for known in workers] == [
        (A, False, True),
        (B, True, True),
    ]
    assert all(known.expires_in and 0 < known.expires_in < 90 for known in workers), "no heartbeat was invented"
    assert await controller.membership.heartbeat(A, 3) is True
    await other.snapshots._take_if_stale()
    assert caplog.text.count("registering 2 workers again") == 1, "one replica's word is enough"
    await store.aside.delete("unrelated")


@pytest.mark.parametrize("registers_first", [True, False])
async def test_a_worker_that_drained_drains_on(
    controller: Replica, link: Link, store: Store, registers_first: bool
) -> None:
    assert await controller.membership.drain(B)
    await controller.snapshots._take_if_stale()
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    if registers_first:
        await store.registry().register(worker(B, "m"))
    await back(controller)
    assert {known.name: known.draining for known in (await store.registry().list_workers()).workers} == {
        A: False,
        B: True,
    }
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [A, A, A]


async def test_acts_of_operators_that_a_failover_lost_are_repeated(
    controller: Replica, store: Store, replica: Open
) -> None:
    """The store has all that it had before, but for a drain, a resumption and a removal."""
    registry = store.registry()
    await registry.register(worker(C, "m", check_heart_beat=False))
    await registry.drain(B)
    other = replica()
    await other.readiness.check()
    await save(store)
    assert await controller.membership.drain(A)
    assert await controller.membership.drain(B, drain=False)
    assert await controller.membership.remove(C)
    for each in (controller, other):
        await each.snapshots.refresh()
    await fall_back(store)
    assert len((await registry.list_workers()).workers) == 3
    for each in (other, controller):
        await each.snapshots.refresh()
    assert {known.name: known.draining for known in (await registry.list_workers()).workers} == {A: True, B: False}
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [B, B, B]


async def test_a_worker_that_came_after_the_last_snapshot_is_not_taken_for_removed(
    controller: Replica, store: Store
) -> None:
    registry = store.registry()
    await save(store)
    for _ in range(5):
        await registry.dispatch_shortest_queue(asks(["m"]))
    await controller.snapshots.refresh()
    await fall_back(store)
    await registry.register(worker(C))
    await controller.snapshots.refresh()
    assert [known.name for known in (await registry.list_workers()).workers] == [A, B, C]


async def save(store: Store) -> None:
    """Keep all keys of the namespace, as a replica of the store has them that lags behind."""
    if store.kind == "fakeredis":
        pytest.skip("COPY of fakeredis makes a second name for the same value")
    for name in await store.aside.keys(f"{keys.namespace(store.namespace)}*"):
        await store.aside.copy(name, f"saved:{name}")


async def fall_back(store: Store) -> None:
    """Put the kept keys in the place of those of now."""
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    for name in await store.aside.keys("saved:*"):
        await store.aside.copy(name, name.removeprefix("saved:"))
        await store.aside.delete(name)


async def test_a_worker_that_failed_fails_on(controller: Replica, link: Link, store: Store) -> None:
    registry = store.registry()
    await registry.heartbeat([Report(B, 0)], of_polls=True)
    assert await registry.report_failure(B, of_polls=True)
    await controller.snapshots._take_if_stale()
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    await back(controller)
    [_, known] = (await registry.list_workers()).workers
    assert (known.name, known.failing, known.polled) == (B, "polls", True)
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == [A, A, A]


async def test_what_has_registered_since_is_not_overwritten(controller: Replica, link: Link, store: Store) -> None:
    with link.broken():
        await controller.dispatcher.dispatch("n")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    link.cut = "before"
    registry = store.registry()
    link.cut = None
    await registry.register(worker(A, "new", queue_length=7))
    await back(controller)
    workers = (await registry.list_workers()).workers
    assert {known.name: known.status for known in workers} == {
        A: WorkerStatus(("new",), 1, workers[0].status.queue_length),
        B: WorkerStatus(("m",), 1, 0),
    }
    assert workers[0].status.queue_length in (7, 8)


async def test_workers_whose_time_is_over_are_not_given_back(store: Store, link: Link, replica: Open) -> None:
    for registration in (worker(A), worker(B, check_heart_beat=False)):
        await store.registry().register(registration)
    controller = replica()
    await controller.readiness.check()
    kept = controller.snapshots
    assert kept._listing is not None
    kept._listing = kept._listing._replace(
        workers=[replace(known, expires_in=known.expires_in and 0.001) for known in kept._listing.workers]
    )
    kept._snapshot = Snapshot(kept._listing.workers, time.monotonic(), lambda: 0.5)
    with link.broken():
        await controller.dispatcher.dispatch("m")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
        await wait_until(lambda: lapsed(controller, A), "its time is over")
    await back(controller)
    [known] = (await store.registry().list_workers()).workers
    assert (known.name, known.expires_in) == (B, None)


async def lapsed(controller: Replica, name: str) -> bool:
    return {known.name: known.expires_in for known in (await controller.membership.list_workers()).value}[name] == 0


async def test_a_model_that_is_missing_is_looked_for_once(controller: Replica, link: Link, store: Store) -> None:
    """The store has lost its memory without being away: it is found out by the first who gets no worker."""
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    link.passed.clear()
    answers = await asyncio.gather(*(controller.dispatcher.dispatch(model) for model in ["m", "n", "m", "nobody's"]))
    assert [bool(answer.value) for answer in answers] == [True, True, True, False]
    assert {answer.snapshot_age for answer in answers} == {None}
    assert link.passed.count("list_workers") == 2
    assert sum((await queues(store)).values()) == 3
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    assert (await controller.dispatcher.list_models()).value == ["m", "n"]


async def test_a_model_that_is_gone_is_looked_for_once(controller: Replica, link: Link, store: Store) -> None:
    for name in (A, B):
        await store.lapse(name)
    link.passed.clear()
    for _ in range(5):
        assert await controller.dispatcher.dispatch("m") == MaybeStale("")
    assert link.passed.count("list_workers") == 1
    assert (await controller.dispatcher.list_models()).value == []


async def test_what_cannot_be_read_keeps_nobody_from_being_served(
    controller: Replica, link: Link, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.aside.hset(keys.worker(store.namespace, B), "models", "no JSON")
    with link.broken():
        await controller.dispatcher.dispatch("n")
    await back(controller)
    assert "the controller cannot have written" in caplog.text
    assert await controller.dispatcher.dispatch("n") == MaybeStale(A)
    await store.aside.hset(keys.worker(store.namespace, B), "models", '["m"]')


async def test_a_layout_of_another_version_is_not_touched(
    store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    await store.aside.set(keys.schema(store.namespace), "999")
    controller = replica()
    with pytest.raises(StoreIncompatible, match=f"key layout version 999. This program needs version {SCHEMA}"):
        await controller.readiness.check()
    with pytest.raises(StoreIncompatible):
        await controller.dispatcher.dispatch("m")
    with pytest.raises(StoreIncompatible):
        await controller.membership.heartbeat(A, 1)
    assert "key layout version 999" in caplog.text
    await store.aside.delete(keys.schema(store.namespace))
    await back(controller)
    assert await store.aside.get(keys.schema(store.namespace)) == SCHEMA
    assert await controller.dispatcher.dispatch("m") == MaybeStale("")


async def wipe(store: Store) -> None:
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))


async def test_what_two_replicas_did_is_told_to_a_store_that_has_forgotten_all(
    controller: Replica, link: Link, store: Store, replica: Open
) -> None:
    other = replica()
    await other.readiness.check()
    with link.broken():
        for one in (controller, other):
            for _ in range(4):
                await one.dispatcher.dispatch("m")
        await wipe(store)
    await back(controller)
    await back(other)
    assert sum((await queues(store)).values()) == 8


async def test_who_was_removed_since_stays_away(controller: Replica, store: Store, replica: Open) -> None:
    other = replica()
    await other.readiness.check()
    await wipe(store)
    await controller.snapshots._take_if_stale()
    assert set(await queues(store)) == {A, B}
    assert await controller.membership.remove(A) is True
    await other.snapshots._take_if_stale()
    assert set(await queues(store)) == {B}
    registry = store.registry()
    assert await registry.register(worker(A)) is True
    assert await registry.remove(A) is True
    await store.aside.delete(keys.removed(store.namespace, A))


async def test_a_part_of_the_memory_is_enough(controller: Replica, store: Store) -> None:
    """As after a failover to a replica that had not all of it: the same memory, but it counts less."""
    before = int(await store.aside.get(keys.sequence(store.namespace)))
    await store.registry().remove(A)
    await store.aside.delete(keys.removed(store.namespace, A))
    await store.aside.set(keys.sequence(store.namespace), before - 1)
    await controller.snapshots._take_if_stale()
    assert set(await queues(store)) == {A, B}
    assert int(await store.aside.get(keys.sequence(store.namespace))) >= before


async def test_who_left_is_not_missed(controller: Replica, store: Store) -> None:
    await store.registry().remove(A)
    await controller.snapshots._take_if_stale()
    assert set(await queues(store)) == {B}


async def test_a_layout_that_changes_later_ends_the_snapshot_too(controller: Replica, link: Link, store: Store) -> None:
    with link.broken():
        assert (await controller.dispatcher.dispatch("n")).value == A
        await store.aside.set(keys.schema(store.namespace), "999")
    await wait_until(lambda: refuses(controller), "it has seen that")
    with pytest.raises(StoreIncompatible):
        await controller.dispatcher.dispatch("n")
    await store.aside.set(keys.schema(store.namespace), SCHEMA)
    await back(controller)


async def refuses(controller: Replica) -> bool:
    try:
        await controller.readiness.check()
    except StoreIncompatible:
        return True
    return False


async def test_a_memory_that_is_found_lost_while_it_serves_gets_a_name(controller: Replica, store: Store) -> None:
    await wipe(store)
    await controller.snapshots._take_if_stale()
    assert set(await queues(store)) == {A, B}
    assert await store.aside.get(keys.epoch(store.namespace))


@pytest.mark.parametrize("page", [2, 3])
async def test_a_loss_in_the_middle_of_a_listing_is_no_list(
    store: Store, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    registry = store.registry()
    await registry.check()
    for i in range(600):
        await registry.register(worker(f"http://127.0.0.1:1/w{i}"))
    run = Registry._run
    pages = 0

    async def lose(self: Registry, script: str, *arguments: str | int) -> object:
        nonlocal pages
        pages += 1
        if pages == page:
            await wipe(store)
            await store.registry().register(worker(B, check_heart_beat=False))
        return await run(self, script, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", lose)
        workers, sequence, epoch, _ = await registry.list_workers()
    assert ([known.name for known in workers], sequence, epoch) == ([B], 1, "")


async def test_a_failing_restoration_does_not_end_in_no_worker(controller: Replica, link: Link, store: Store) -> None:
    await wipe(store)
    with link.broken("before", "restore"):
        answer = await controller.dispatcher.dispatch("n")
    assert (answer.value, answer.snapshot_age is None) == (A, False)
    await back(controller)
    assert (await queues(store))[A] == 1


async def test_a_kind_of_model_that_nobody_serves_is_not_looked_for(
    controller: Replica, link: Link, store: Store
) -> None:
    await store.registry().register(worker(B, "m"))
    await controller.snapshots._take_if_stale()
    link.passed.clear()
    for _ in range(3):
        assert (await controller.dispatcher.list_models(multimodal=True)).value == []
    assert link.passed == ["list_models_by_kind"] * 3


async def test_a_restored_worker_has_the_time_that_it_had_left(controller: Replica, store: Store) -> None:
    """The time since the snapshot is not given to it again."""
    registry = store.registry()
    before = await registry.list_workers()
    await wipe(store)
    recovery = Recovery(registry, Metrics(), heartbeat_expiration=90.0)
    assert await recovery.repair(before, 50.0, await registry.list_workers())
    left = [known.expires_in for known in (await registry.list_workers()).workers]
    assert len(left) == 2
    assert all(seconds is not None and 0 < seconds <= 40 for seconds in left)
