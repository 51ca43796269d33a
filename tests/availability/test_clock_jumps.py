"""The clock of the store is set: live workers stay registered, and leases and locks still expire in time."""

import json
import time
from collections.abc import Callable

import pytest

from controller.metrics import Metrics
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry
from controller.web.routes import public
from tests.conftest import Open, Store
from tests.support.dispatches import dispatch_shortest_queue, leases_of
from tests.support.samples import A, B, C, asks, worker

Jump = Callable[[float], None]


@pytest.fixture
def jump_clock(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Return a function that sets the clock that replicas read. The tests expire keys that Redis would expire."""
    run = Registry._run
    total = 0.0

    async def run_with_jump(self: Registry, script: str, *arguments: str | int) -> object:
        result = await run(self, script, *arguments)
        if script == "list_workers":
            result[3] += round(1000 * total)
        return result

    def jump(seconds: float) -> None:
        nonlocal total
        total += seconds

    monkeypatch.setattr(Registry, "_run", run_with_jump)
    return jump


async def seconds_left(store: Store, name: str) -> float:
    """Return the time until a worker's heartbeat expires."""
    milliseconds: int = await store.client.pttl(keys.heartbeat(store.namespace, name))
    return milliseconds / 1000


async def set_seconds_left(store: Store, name: str, seconds: float) -> None:
    await store.client.pexpire(keys.heartbeat(store.namespace, name), round(1000 * seconds))


async def test_workers_with_heartbeats_that_a_jump_ahead_expired_are_restored(
    controller: Replica, store: Store, jump_clock: Jump, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request finds no worker. The replica then takes a snapshot, which shows the jump."""
    await store.registry().register(worker(C, "m", check_heart_beat=False))
    await store.registry().drain(B)
    await controller.snapshots.take_now()
    jump_clock(120)
    for name in (A, B):
        await store.expire_heartbeat(name)
    assert (await controller.dispatcher.dispatch("n")).value == A
    listed = {known.name: known for known in (await store.registry().list_workers()).workers}
    assert {name: known.draining for name, known in listed.items()} == {A: False, B: True, C: False}
    assert all(80 < (listed[name].expires_in or 0) <= 90 for name in (A, B)), (
        "they get the time back that they had left"
    )
    assert "set ahead by 120.0 s" in caplog.text
    assert "registering 2 workers again" in caplog.text
    await controller.snapshots.take_now()
    assert caplog.text.count("was set ahead") == 1, "each jump is logged once"


async def test_removed_worker_is_not_restored_after_a_jump_ahead(
    controller: Replica, store: Store, jump_clock: Jump
) -> None:
    await store.registry().remove(A)
    jump_clock(120)
    await controller.snapshots.take_now()
    assert [known.name for known in (await store.registry().list_workers()).workers] == [B]


async def test_heartbeats_get_the_time_back_that_a_jump_ahead_took(
    controller: Replica, store: Store, jump_clock: Jump
) -> None:
    jump_clock(60)
    await set_seconds_left(store, A, 30)
    await controller.snapshots.take_now()
    assert await seconds_left(store, A) > 80
    assert await seconds_left(store, B) > 80


async def test_heartbeats_expire_in_time_after_the_clock_was_set_back(
    controller: Replica, store: Store, jump_clock: Jump, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    other = replica()
    await other.readiness.check()
    await set_seconds_left(store, A, 40)
    await controller.snapshots.take_now()
    jump_clock(-3600)
    await set_seconds_left(store, A, 3640)
    await set_seconds_left(store, B, 100)
    for each in (controller, other):
        await each.snapshots.take_now()
    listed = (await store.registry().list_workers()).workers
    assert all(known.heartbeat_age >= 0 for known in listed), "also of a heartbeat from before the jump"
    assert 30 < await seconds_left(store, A) <= 40
    assert 80 < await seconds_left(store, B) <= 90
    assert caplog.text.count("set back by 3600.0 s") == 2, "each replica logs the jump"
    scores = dict(await store.client.zrange(keys.workers(store.namespace), 0, -1, withscores=True))
    assert all(score < 1000 * (time.time() + 91) for score in scores.values()), "the sweep finds them when they expire"


async def test_replica_that_starts_after_a_jump_corrects_overlong_heartbeats(store: Store, replica: Open) -> None:
    await store.registry().register(worker(A))
    await set_seconds_left(store, A, 10_000)
    await replica().readiness.check()
    assert 80 < await seconds_left(store, A) <= 90


async def test_longer_expiration_of_another_replica_is_not_corrected(store: Store, replica: Open) -> None:
    """Replicas differ while an operator changes the setting on one after the other."""
    await store.registry(heartbeat_expiration=150).register(worker(A))
    controller = replica()
    await controller.readiness.check()
    await controller.snapshots.take_now()
    assert await seconds_left(store, A) > 140


async def test_leases_expire_in_time_after_the_clock_was_set_back(
    controller: Replica, store: Store, jump_clock: Jump
) -> None:
    registry = store.registry()
    leases = leases_of(
        await dispatch_shortest_queue(registry, asks(["m"] * 300, lease_ms=60_000) + asks(["m"], lease_ms=5_000_000))
    )
    key = keys.leases(store.namespace)
    for lease, ends_at in await store.client.zrange(key, 0, -1, withscores=True):
        await store.client.zadd(key, {lease: ends_at + 3_600_000})
    jump_clock(-3600)
    await controller.snapshots.take_now()
    now = 1000 * time.time()
    ends = {lease: ends_at - now for lease, ends_at in await store.client.zrange(key, 0, -1, withscores=True)}
    assert len(ends) == 301
    assert all(0 < ends[lease] <= 61_000 for lease in leases[:-1])
    assert 4_000_000 < ends[leases[-1]] <= 5_001_000
    await registry.release(leases)


async def test_locks_that_last_too_long_can_be_acquired(store: Store) -> None:
    registry = store.registry()
    assert await registry.acquire_job("x", "dead", 1.0, max_pause=10.0) == (True, "")
    assert await registry.refresh_lock(20.0).acquire()
    await registry.register(worker(A))
    await registry.sweep(1.0)
    await store.expire_heartbeat(A)
    await registry.join_replicas("dead", 3.0)
    for key in (keys.job(store.namespace, "x"), keys.sweep(store.namespace), keys.refresh(store.namespace)):
        assert await store.client.pexpire(key, 3_600_000), key
    await store.client.zadd(keys.replicas(store.namespace), {"dead": 1000 * (time.time() + 3600)})
    assert await registry.acquire_job("x", "live", 1.0, max_pause=10.0) == (True, "")
    assert await registry.refresh_lock(20.0).acquire()
    assert not await registry.refresh_lock(20.0).acquire(), "it is held, and its TTL is possible"
    assert await registry.sweep(1.0) == [A]
    await registry.join_replicas("live", 3.0)
    expires_at = await store.client.zscore(keys.replicas(store.namespace), "dead")
    assert expires_at is not None
    assert expires_at < 1000 * (time.time() + 4)


@pytest.mark.parametrize(("seconds", "direction"), [(120, "ahead"), (-3600, "back")])
async def test_jump_is_a_readiness_warning_and_a_metric(
    store: Store, replica: Open, jump_clock: Jump, seconds: float, direction: str
) -> None:
    metrics = Metrics()
    controller = replica()
    controller.snapshots.recovery._metrics = metrics
    assert json.loads((await public.readyz(controller.services, b"")).body) == {"ready": True}
    jump_clock(seconds)
    await controller.snapshots.take_now()
    response = await public.readyz(controller.services, b"")
    assert response.status == 200
    assert f"was set {direction} by {abs(seconds):.1f} s" in json.loads(response.body)["warning"]
    assert f'controller_store_clock_jumps_total{{direction="{direction}"}} 1.0' in metrics.render().decode()
