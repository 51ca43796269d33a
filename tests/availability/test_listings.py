"""Each replica notices when Redis loses what the replica has listed."""

import pytest

from controller.availability.listings import Listings
from controller.domain.errors import StoreUnavailable
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry, WorkerList
from tests.conftest import Open, Store
from tests.support.dispatches import dispatch_shortest_queue
from tests.support.lost_data import restore, save
from tests.support.samples import OPERATOR, A, B, C, asks, worker


async def test_loss_is_noticed_if_the_sequence_number_has_caught_up(
    controller: Replica, store: Store, replica: Open
) -> None:
    """A failover loses a registration, a drain and a removal. Then clients make more requests than were lost."""
    registry = store.registry()
    other = replica()
    await registry.register(worker(C, "m", check_heart_beat=False))
    for each in (controller, other):
        await each.snapshots.take_now()
    await save(store)
    new = "http://127.0.0.9:1"
    await registry.register(worker(new, "m"))
    assert await controller.membership.drain(A, caller=OPERATOR)
    assert await controller.membership.remove(C, caller=OPERATOR)
    for each in (controller, other):
        await each.snapshots.take_now()
    await restore(store)
    for _ in range(10):
        await dispatch_shortest_queue(registry, asks(["m"]))
    for each in (other, controller):
        await each.snapshots.take_now()
    listed = {known.name: known.draining for known in (await registry.list_workers()).workers}
    assert listed == {A: True, B: False, new: False}
    assert await registry.drain(A, drain=False)
    for each in (other, controller):
        await each.snapshots.take_now()
    assert not (await registry.list_workers()).workers[0].draining, "the loss is repaired once"


@pytest.mark.parametrize("returns_first", [False, True])
async def test_loss_of_a_change_that_one_replica_has_listed_is_noticed_though_its_membership_has_expired(
    controller: Replica, store: Store, replica: Open, returns_first: bool
) -> None:
    """The failover takes so long that all memberships expire."""
    registry = store.registry()
    other = replica()
    for each in (controller, other):
        await each.replicas.join()
        await each.snapshots.take_now()
    await save(store)
    assert await controller.membership.drain(A, caller=OPERATOR)
    await controller.snapshots.take_now()
    await restore(store)
    ids = controller.replicas.id, other.replicas.id
    await store.client.zadd(keys.replicas(store.namespace), dict.fromkeys(ids, 1.0))
    for _ in range(10):
        await dispatch_shortest_queue(registry, asks(["m"]))
    if not returns_first:
        await other.replicas.join()
    await controller.snapshots.take_now()
    assert (await registry.list_workers()).workers[0].draining


async def test_numbers_of_replicas_that_do_not_return_are_deleted_when_there_are_too_many(store: Store) -> None:
    registry, listings = store.registry(), keys.listings(store.namespace)
    for name in ("alive", "crashed", "leaving"):
        await registry.join_replicas(name, 60.0)
        await registry.mark_listing(name, 0, 1)
    await store.client.zadd(keys.replicas(store.namespace), {"crashed": 1.0, "leaving": 1.0})
    await registry.join_replicas("alive", 60.0)
    assert set(await store.client.hkeys(listings)) == {"alive", "crashed", "leaving"}
    await registry.leave_replicas("leaving")
    assert set(await store.client.hkeys(listings)) == {"alive", "crashed"}
    await store.client.hset(listings, mapping={f"crashed-{i}": 1 for i in range(999)})
    await registry.join_replicas("alive", 60.0)
    assert await store.client.hlen(listings) == 1_001
    await registry.mark_listing("starting", 0, 1)
    await registry.join_replicas("alive", 60.0)
    assert await store.client.hgetall(listings) == {"alive": "1"}


async def test_nothing_is_lost_if_other_replicas_removed_the_notes_of_a_silent_one(
    controller: Replica, store: Store
) -> None:
    registry = store.registry()
    await controller.replicas.join()
    await controller.snapshots.take_now()
    await registry.leave_replicas(controller.replicas.id)
    assert await store.client.hgetall(keys.listings(store.namespace)) == {}
    await registry.drain(A)
    await controller.snapshots.take_now()
    assert (await registry.list_workers()).workers[0].draining


async def test_late_and_repeated_notes_are_no_loss(store: Store) -> None:
    registry = store.registry()
    assert await registry.mark_listing("a", 0, 1)
    assert await registry.mark_listing("a", 1, 3)
    assert await registry.mark_listing("a", 1, 2), "its client has not waited for it"
    assert await registry.mark_listing("a", 3, 4)
    assert await registry.mark_listing("b", 0, 1)
    assert not await registry.mark_listing("a", 5, 6)
    assert not await registry.mark_listing("a", 5, 6), "a repeated call gets the same reply"
    assert await registry.mark_listing("a", 0, 6)


async def test_listing_from_before_the_loss_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis loses data after it was listed, and before that was noted."""
    registry = store.registry()
    listings = Listings(registry, "replica")
    assert not (await listings.take())[1]
    await save(store)
    await registry.register(worker(A))
    assert not (await listings.take())[1]
    list_workers = Registry.list_workers
    lost: list[WorkerList] = []

    async def then_lose(self: Registry) -> WorkerList:
        listed = await list_workers(self)
        if not lost:
            lost.append(listed)
            await restore(store)
            for _ in range(3):
                await registry.register(worker(B))
        return listed

    monkeypatch.setattr(Registry, "list_workers", then_lose)
    listing, lost_data = await listings.take()
    assert ([known.name for known in listing.workers], lost_data) == ([B], True)
    assert not (await listings.take())[1]


async def test_loss_is_returned_later_if_redis_fails_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = store.registry()
    listings = Listings(registry, "replica")
    await listings.take()
    await save(store)
    await listings.take()
    await restore(store)
    list_workers, count = Registry.list_workers, 0

    async def fails_second(self: Registry) -> WorkerList:
        nonlocal count
        count += 1
        if count == 2:
            raise StoreUnavailable("away")
        return await list_workers(self)

    monkeypatch.setattr(Registry, "list_workers", fails_second)
    with pytest.raises(StoreUnavailable, match="away"):
        await listings.take()
    assert (await listings.take())[1]
    assert not (await listings.take())[1]


async def test_store_that_loses_each_note_is_unavailable(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    async def loses(*_: object) -> bool:
        return False

    monkeypatch.setattr(Registry, "mark_listing", loses)
    with pytest.raises(StoreUnavailable, match="lost data during each of 3 attempts"):
        await Listings(store.registry(), "replica").take()
