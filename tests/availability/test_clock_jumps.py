"""A store whose clock is set: workers that live are still found, and nothing lasts for longer than it may."""

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
from tests.support.dispatches import leases_of
from tests.support.samples import A, B, C, asks, worker

Jump = Callable[[float], None]


@pytest.fixture
def read_ahead(monkeypatch: pytest.MonkeyPatch) -> Jump:
    """Lets replicas read a clock of the store that was set. The tests themselves expire what Redis would expire."""
    run = Registry._run
    by = 0.0

    async def reading(self: Registry, script: str, *arguments: str | int) -> object:
        result = await run(self, script, *arguments)
        if script == "list_workers":
            result[3] += round(1000 * by)
        return result

    def jump(seconds: float) -> None:
        nonlocal by
        by += seconds

    monkeypatch.setattr(Registry, "_run", reading)
    return jump


async def left(store: Store, name: str) -> float:
    """The seconds that a worker's heartbeat has left."""
    milliseconds: int = await store.aside.pttl(keys.heartbeat(store.namespace, name))
    return milliseconds / 1000


async def expires_in(store: Store, name: str, seconds: float) -> None:
    await store.aside.pexpire(keys.heartbeat(store.namespace, name), round(1000 * seconds))


async def test_workers_whose_heartbeats_expired_by_a_jump_ahead_are_found(
    controller: Replica, store: Store, read_ahead: Jump, caplog: pytest.LogCaptureFixture
) -> None:
    """The first request finds no worker, looks again, and finds out about the clock."""
    await store.registry().register(worker(C, "m", check_heart_beat=False))
    await store.registry().drain(B)
    await controller.snapshots.refresh()
    read_ahead(120)
    for name in (A, B):
        await store.lapse(name)
    assert (await controller.dispatcher.dispatch("n")).value == A
    listed = {known.name: known for known in (await store.registry().list_workers()).workers}
    assert {name: known.draining for name, known in listed.items()} == {A: False, B: True, C: False}
    assert all(80 < (listed[name].expires_in or 0) <= 90 for name in (A, B)), "with the time that they had left"
    assert "set ahead by 120.0 s" in caplog.text
    assert "registering 2 workers again" in caplog.text
    await controller.snapshots.refresh()
    assert caplog.text.count("was set ahead") == 1, "one jump is one line"


async def test_a_worker_that_was_removed_stays_away_after_a_jump_ahead(
    controller: Replica, store: Store, read_ahead: Jump
) -> None:
    await store.registry().remove(A)
    read_ahead(120)
    await controller.snapshots.refresh()
    assert [known.name for known in (await store.registry().list_workers()).workers] == [B]


async def test_heartbeats_that_a_jump_ahead_shortened_get_their_time_back(
    controller: Replica, store: Store, read_ahead: Jump
) -> None:
    read_ahead(60)
    await expires_in(store, A, 30)
    await controller.snapshots.refresh()
    assert await left(store, A) > 80
    assert await left(store, B) > 80


async def test_heartbeats_last_no_longer_after_the_clock_was_set_back(
    controller: Replica, store: Store, read_ahead: Jump, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    other = replica()
    await other.readiness.check()
    await expires_in(store, A, 40)
    await controller.snapshots.refresh()
    read_ahead(-3600)
    await expires_in(store, A, 3640)
    await expires_in(store, B, 100)
    for each in (controller, other):
        await each.snapshots.refresh()
    assert 30 < await left(store, A) <= 40
    assert 80 < await left(store, B) <= 90
    assert caplog.text.count("set back by 3600.0 s") == 2, "each replica says so"
    scores = dict(await store.aside.zrange(keys.workers(store.namespace), 0, -1, withscores=True))
    assert all(score < 1000 * (time.time() + 91) for score in scores.values()), "the sweep looks in time"


async def test_a_replica_that_starts_later_corrects_what_lasts_too_long(store: Store, replica: Open) -> None:
    await store.registry().register(worker(A))
    await expires_in(store, A, 10_000)
    await replica().readiness.check()
    assert 80 < await left(store, A) <= 90


async def test_a_longer_expiration_of_other_replicas_is_no_jump(store: Store, replica: Open) -> None:
    """As while one setting is changed on one replica after the other."""
    await store.registry(heartbeat_expiration=150).register(worker(A))
    controller = replica()
    await controller.readiness.check()
    await controller.snapshots.refresh()
    assert await left(store, A) > 140


async def test_leases_end_in_time_after_the_clock_was_set_back(
    controller: Replica, store: Store, read_ahead: Jump
) -> None:
    registry = store.registry()
    leases = leases_of(
        await registry.dispatch_shortest_queue(asks(["m"] * 300, lease_ms=60_000) + asks(["m"], lease_ms=5_000_000))
    )
    key = keys.leases(store.namespace)
    for lease, ends_at in await store.aside.zrange(key, 0, -1, withscores=True):
        await store.aside.zadd(key, {lease: ends_at + 3_600_000})
    read_ahead(-3600)
    await controller.snapshots.refresh()
    now = 1000 * time.time()
    ends = {lease: ends_at - now for lease, ends_at in await store.aside.zrange(key, 0, -1, withscores=True)}
    assert len(ends) == 301
    assert all(0 < ends[lease] <= 61_000 for lease in leases[:-1])
    assert 4_000_000 < ends[leases[-1]] <= 5_001_000
    await registry.release(leases)


async def test_locks_that_last_too_long_are_free(store: Store) -> None:
    registry = store.registry()
    assert await registry.acquire_job("x", "dead", 1.0, max_pause=10.0) == (True, "")
    assert await registry.refresh_lock(20.0).acquire()
    await registry.register(worker(A))
    await registry.sweep(1.0)
    await store.lapse(A)
    await registry.join_replicas("dead", 3.0)
    for key in (keys.job(store.namespace, "x"), keys.sweep(store.namespace), keys.refresh(store.namespace)):
        assert await store.aside.pexpire(key, 3_600_000), key
    await store.aside.zadd(keys.replicas(store.namespace), {"dead": 1000 * (time.time() + 3600)})
    assert await registry.acquire_job("x", "living", 1.0, max_pause=10.0) == (True, "")
    assert await registry.refresh_lock(20.0).acquire()
    assert not await registry.refresh_lock(20.0).acquire(), "it is held for a while that can be"
    assert await registry.sweep(1.0) == [A]
    await registry.join_replicas("living", 3.0)
    stay = await store.aside.zscore(keys.replicas(store.namespace), "dead")
    assert stay is not None
    assert stay < 1000 * (time.time() + 4)


@pytest.mark.parametrize(("seconds", "direction"), [(120, "ahead"), (-3600, "back")])
async def test_a_jump_is_shown_and_counted(
    store: Store, replica: Open, read_ahead: Jump, seconds: float, direction: str
) -> None:
    metrics = Metrics()
    controller = replica()
    controller.snapshots._recovery._metrics = metrics
    assert json.loads((await public.readyz(controller.services, b"")).body) == {"ready": True}
    read_ahead(seconds)
    await controller.snapshots.refresh()
    answer = await public.readyz(controller.services, b"")
    assert answer.status == 200
    assert f"was set {direction} by {abs(seconds):.1f} s" in json.loads(answer.body)["warning"]
    assert f'controller_store_clock_jumps_total{{direction="{direction}"}} 1.0' in metrics.render().decode()
