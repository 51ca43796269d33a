"""Workers are ranked as the next dispatch compares them. tests/model/registry_machine.py compares the first choice."""

import pytest

from controller.domain.cost import FAILING, FULL
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.dispatches import dispatch_shortest_queue
from tests.support.invariants import whole_state
from tests.support.samples import A, B, C, asks, worker


async def ranked(registry: Registry, model: str = "m") -> dict[str, float]:
    return {each.name: round(each.cost, 6) for each in await registry.rank_workers(model)}


async def test_the_cheapest_worker_is_first_and_nothing_is_booked(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, speed=2, queue_length=3))
    await registry.register(worker(B, queue_length=1))
    await registry.register(worker(C, "n"))
    before = await whole_state(store.client, store.namespace)
    assert list((await ranked(registry)).items()) == [(B, 1.0), (A, 1.5)]
    assert await ranked(registry, "absent") == {}
    assert await whole_state(store.client, store.namespace) == before


async def test_full_and_failing_workers_come_after_free_ones(registry: Registry) -> None:
    for name, queue_length in ((A, 0), (B, 4), (C, 9)):
        await registry.register(worker(name, queue_length=queue_length, capacity=4))
    await registry.report_failure(A)
    assert list((await ranked(registry)).items()) == [(B, FULL + 0.25), (C, FULL + 1.5), (A, FAILING)]


async def test_leases_and_what_a_worker_reports_are_returned(registry: Registry) -> None:
    await registry.register(worker(A, speed=2, queue_length=1, capacity=8))
    await dispatch_shortest_queue(registry, asks(["m"], 60_000))
    [found] = await registry.rank_workers("m")
    assert (found.requests, found.leased, found.capacity, found.speed, found.failing) == (2.0, 1, 8, 2.0, False)


async def test_draining_and_expired_workers_are_not_ranked(store: Store, registry: Registry) -> None:
    names = [f"http://127.0.0.1:1/w{i:02}" for i in range(40)]
    for name in names:
        await registry.register(worker(name))
    for name in names[:30]:  # the first ones in the order of the indexes
        await store.expire_heartbeat(name)
    await registry.drain(names[30])
    assert list(await ranked(registry)) == names[31:39], "as many as a dispatch compares"
    await registry.drain(names[30], drain=False)


@pytest.mark.parametrize("models", [["m", "n"], ["m"]])
async def test_workers_of_all_pools_are_ranked(registry: Registry, models: list[str]) -> None:
    await registry.register(worker(A, *models, queue_length=2))
    await registry.register(worker(B, "m", "o", queue_length=1))
    assert list(await ranked(registry)) == [B, A]


async def test_each_pool_of_a_model_has_its_share_of_the_candidates(registry: Registry) -> None:
    for pool in range(3):
        for i in range(4):
            await registry.register(worker(f"http://127.0.0.1:1/p{pool}w{i}", "m", f"own-{pool}"))
    assert len(await ranked(registry)) == 9, "three of each pool, which is 8 in all, rounded up"


async def test_a_call_reads_a_limited_number_of_expired_workers(store: Store, registry: Registry) -> None:
    names = [f"http://127.0.0.1:1/w{i:03}" for i in range(150)]
    for name in names:
        await registry.register(worker(name))
    for name in names[:-1]:
        await store.expire_heartbeat(name)
    assert await ranked(registry) == {}
    await registry.sweep(0.001)
    assert list(await ranked(registry)) == names[-1:]
