"""Heartbeats: what they change, when they expire, and workers that send none."""

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Store
from tests.store.test_registry import names
from tests.support.dispatches import dispatch, dispatch_shortest_queue, workers_of
from tests.support.invariants import check_invariants, whole_state
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.waiting import wait_until


async def test_poll_does_not_extend_the_heartbeat_ttl(store: Store, registry: Registry) -> None:
    await registry.restore(worker(A), expires_in=30.0)
    heard_at = await store.client.hget(keys.worker(store.namespace, A), "heartbeat_at")
    await wait_until(lambda: milliseconds_have_passed(store, int(heard_at)), "two milliseconds have passed")
    assert await registry.take_poll_answers(reports([(A, 1)])) == [True]
    assert await store.client.pttl(keys.heartbeat(store.namespace, A)) <= 30_000
    assert await store.client.hget(keys.worker(store.namespace, A), "heartbeat_at") == heard_at
    await registry.heartbeat(reports([(A, 1)]))
    assert await store.client.pttl(keys.heartbeat(store.namespace, A)) > 30_000


async def milliseconds_have_passed(store: Store, since: int) -> bool:
    seconds, microseconds = await store.client.time()
    return bool(seconds * 1000 + microseconds / 1000 > since + 2)


async def test_heartbeat_sets_the_queue_and_extends_the_ttl(store: Store) -> None:
    short, long = store.registry(heartbeat_expiration=90.0), store.registry(heartbeat_expiration=9_000.0)
    await short.register(worker(A, "m", "n", speed=2))
    assert await long.heartbeat(reports([(A, 7)])) == [True]
    [known] = (await long.list_workers()).workers
    assert known.status.queue_length == 7
    assert known.expires_in is not None
    assert known.expires_in > 90.0
    state = await check_invariants(store.client, store.namespace)
    assert [dict(index) for index in state.indexes.values()] == [{f"{1:016d}{A}": 3.5}]


async def test_heartbeat_resets_the_heartbeat_age(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    key = keys.worker(store.namespace, A)
    await store.client.hset(key, "heartbeat_at", int(await store.client.hget(key, "heartbeat_at")) - 50_000)
    assert (await registry.list_workers()).workers[0].heartbeat_age > 49
    await registry.heartbeat(reports([(A, 0)]))
    assert (await registry.list_workers()).workers[0].heartbeat_age < 50


async def test_heartbeat_key_without_a_hash_is_not_listed(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await store.client.delete(keys.worker(store.namespace, A))
    assert (await registry.list_workers()).workers == []
    assert await registry.heartbeat(reports([(A, 0)])) == [False]
    assert not await store.client.exists(keys.heartbeat(store.namespace, A))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [""]
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))


async def test_heartbeat_returns_results_in_the_order_of_the_batch(registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.register(worker(B))
    assert await registry.heartbeat(reports([(A, 1), (C, 1), (B, 2), (A, 3)])) == [True, False, True, True]
    assert [w.status.queue_length for w in (await registry.list_workers()).workers] == [3, 2]


async def test_expired_worker_is_not_returned_before_a_sweep(store: Store) -> None:
    registry = store.registry(heartbeat_expiration=0.2)
    await registry.register(worker(A))
    key = f"{{{store.namespace}}}:heartbeat:{A}"

    async def expired() -> bool:
        return not await store.client.exists(key)

    await wait_until(expired, "the heartbeat expires")
    assert (await registry.list_workers()).workers == []
    assert await registry.list_models() == []
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [""]
    assert await registry.heartbeat(reports([(A, 0)])) == [False]
    assert await registry.remove(A) is False


@pytest.mark.parametrize("method", DispatchMethod)
async def test_dispatch_purges_an_expired_worker_and_chooses_the_next(store: Store, method: DispatchMethod) -> None:
    registry = store.registry(draw=lambda: 0.5)
    await registry.register(worker(A, "m", "only-a", speed=9))
    await registry.register(worker(B, queue_length=5))
    await store.expire_heartbeat(A)
    assert workers_of(await dispatch(registry, method, asks(["m"]))) == [B]
    state = await check_invariants(store.client, store.namespace)
    assert set(state.hashes) == {B}
    assert state.models == {"m"}


async def test_late_heartbeat_does_not_restore_an_expired_worker(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await store.expire_heartbeat(A)
    assert await registry.heartbeat(reports([(A, 0)])) == [False]
    assert (await whole_state(store.client, store.namespace)).hashes == {}
    assert await registry.register(worker(A)) is True


async def test_worker_without_heartbeats_stays_until_it_is_removed(store: Store) -> None:
    registry = store.registry(heartbeat_expiration=0.01)
    await registry.register(worker(A, check_heart_beat=False))
    assert await registry.heartbeat(reports([(A, 4)])) == [True]
    assert await registry.sweep(0.001) == []
    [known] = (await registry.list_workers()).workers
    assert (known.expires_in, known.status.queue_length) == (None, 4)
    assert await registry.remove(A) is True
    assert await names(registry) == []


async def test_registration_switches_heartbeats_on_and_off(store: Store, registry: Registry) -> None:
    for check_heart_beat in (True, False, True):
        await registry.register(worker(A, check_heart_beat=check_heart_beat))
        [known] = (await registry.list_workers()).workers
        assert (known.expires_in is None) is not check_heart_beat
        await check_invariants(store.client, store.namespace)
