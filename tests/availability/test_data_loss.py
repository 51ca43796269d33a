"""Replicas notice with few calls that Redis has lost data."""

import asyncio

import pytest

from controller.availability.snapshot import MaybeStale
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry
from tests.availability.test_recovery import wipe
from tests.conftest import Store
from tests.support.outage import Link, queue_lengths, wait_for_recovery
from tests.support.samples import A, B, worker


async def test_concurrent_requests_for_lost_models_cause_one_recovery(
    controller: Replica, link: Link, store: Store
) -> None:
    """The store lost data without an outage. The first requests that find no worker start the recovery."""
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))
    link.delivered.clear()
    choices = await asyncio.gather(*(controller.dispatcher.dispatch(model) for model in ["m", "n", "m", "absent"]))
    assert [bool(choice.value) for choice in choices] == [True, True, True, False]
    assert {choice.snapshot_age for choice in choices} == {None}
    assert link.delivered.count("list_workers") == 2
    assert sum((await queue_lengths(store)).values()) == 3
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))
    assert (await controller.dispatcher.list_models()).value == ["m", "n"]


async def test_requests_for_a_model_without_workers_cause_one_snapshot(
    controller: Replica, link: Link, store: Store
) -> None:
    for name in (A, B):
        await store.expire_heartbeat(name)
    link.delivered.clear()
    for _ in range(5):
        assert await controller.dispatcher.dispatch("m") == MaybeStale("")
    assert link.delivered.count("list_workers") == 1
    assert (await controller.dispatcher.list_models()).value == []


async def test_lower_sequence_in_the_same_epoch_is_a_data_loss(controller: Replica, store: Store) -> None:
    """This happens after a failover to a Redis replica that lagged behind."""
    before = int(await store.client.get(keys.sequence(store.namespace)))
    await store.registry().remove(A)
    await store.client.delete(keys.removed(store.namespace, A))
    await store.client.set(keys.sequence(store.namespace), before - 1)
    await controller.snapshots._take_another()
    assert set(await queue_lengths(store)) == {A, B}
    assert int(await store.client.get(keys.sequence(store.namespace))) >= before


async def test_data_loss_without_an_outage_starts_a_new_epoch(controller: Replica, store: Store) -> None:
    await wipe(store)
    await controller.snapshots._take_another()
    assert set(await queue_lengths(store)) == {A, B}
    assert await store.client.get(keys.epoch(store.namespace))


@pytest.mark.parametrize("page", [2, 3])
async def test_data_loss_during_a_listing_restarts_it(store: Store, monkeypatch: pytest.MonkeyPatch, page: int) -> None:
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
        workers, sequence, epoch, *_ = await registry.list_workers()
    assert ([known.name for known in workers], sequence, epoch) == ([B], 1, "")


async def test_dispatch_uses_the_snapshot_if_the_recovery_fails(controller: Replica, link: Link, store: Store) -> None:
    await wipe(store)
    with link.broken("before", "restore"):
        choice = await controller.dispatcher.dispatch("n")
    assert (choice.value, choice.snapshot_age is None) == (A, False)
    await wait_for_recovery(controller)
    assert (await queue_lengths(store))[A] == 1


async def test_empty_list_of_multimodal_models_causes_no_snapshot(
    controller: Replica, link: Link, store: Store
) -> None:
    await store.registry().register(worker(B, "m"))
    await controller.snapshots._take_another()
    link.delivered.clear()
    for _ in range(3):
        assert (await controller.dispatcher.list_models(multimodal=True)).value == []
    assert link.delivered == ["list_models_by_kind"] * 3
