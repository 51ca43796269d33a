"""Test that the sweep purges expired workers, once per interval for any number of replicas."""

import asyncio

import pytest

from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.budget import small_budget
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, C, reports, worker
from tests.support.waiting import wait_until


async def test_sweep_purges_expired_workers(store: Store, registry: Registry) -> None:
    for name in (A, B, C):
        await registry.register(worker(name, "m", name))
    await store.expire_heartbeat(A)
    await store.expire_heartbeat(C)
    assert sorted(await registry.sweep(0.001)) == [A, C]
    state = await check_invariants(store.client, store.namespace)
    assert set(state.hashes) == {B}
    assert state.models == {"m", B}


async def test_sweep_purges_a_worker_whose_heartbeat_expired(store: Store) -> None:
    registry = store.registry(heartbeat_expiration=0.05)
    await registry.register(worker(A))
    await wait_until(lambda: registry.sweep(0.001), "the sweep finds the worker")
    assert (await check_invariants(store.client, store.namespace)).hashes == {}


async def test_sweep_removes_no_more_than_its_budget(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    small_budget(monkeypatch)
    registry = store.registry()
    for i in range(5):
        await registry.register(worker(f"http://w{i}:1", "m", "n"))
        await store.expire_heartbeat(f"http://w{i}:1")
    unfinished, removed = await registry._run("sweep", 60_000, 0)
    assert (unfinished, len(removed)) == (1, 1)
    assert len(await registry.sweep(60.0)) == 4, "the registry calls the script again for the rest"
    assert await registry._run("sweep", 60_000, 0) == [0, []]


async def test_heartbeats_of_expired_workers_purge_no_more_than_the_budget(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_budget(monkeypatch, 12)
    registry = store.registry()
    names = [f"http://w{i}:1" for i in range(5)]
    for name in names:
        await registry.register(worker(name, "m", "n"))
        await store.expire_heartbeat(name)
    assert await registry.heartbeat(reports([(name, 0) for name in names])) == [False] * 5
    left = len((await check_invariants(store.client, store.namespace)).hashes)
    assert 0 < left < 5
    assert len(await registry.sweep(60.0)) == left


async def test_only_one_replica_sweeps_in_each_interval(store: Store) -> None:
    replicas = [store.registry() for _ in range(20)]
    for name in (A, B):
        await replicas[0].register(worker(name))
        await store.expire_heartbeat(name)
    swept = await asyncio.gather(*(replica.sweep(60.0) for replica in replicas))
    assert sorted(len(removed) for removed in swept) == [0] * 19 + [2]
    await replicas[0].register(worker(C))
    await store.expire_heartbeat(C)
    assert await replicas[1].sweep(60.0) == [], "the interval is not over"


async def test_sweep_keeps_a_live_worker_with_a_past_deadline(store: Store, registry: Registry) -> None:
    """The system clock may have been set forward and back."""
    await registry.register(worker(A))
    await store.client.zadd(f"{{{store.namespace}}}:workers", {A: 1.0})
    assert await registry.sweep(0.001) == []
    state = await check_invariants(store.client, store.namespace)
    assert state.workers[A] > 1.0
    assert set(state.hashes) == {A}
