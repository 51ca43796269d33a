"""The state of the cluster for the page: what changes between snapshots, and what viewers cost."""

import asyncio
import json
import time
from collections.abc import Awaitable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreUnavailable, TooManyFollowers
from controller.fleet.overview import Update
from controller.replica import Replica
from controller.store.registry import Registry, Report
from tests.conftest import Open, Store
from tests.support.metrics import value
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until


async def tick(replica: Replica) -> None:
    await replica.snapshots.take_now()
    await replica.overview.tick()


async def state(replica: Replica) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await replica.overview.state())
    return found


async def row(replica: Replica, name: str = A) -> dict[str, Any]:
    await tick(replica)
    return next(row for row in (await state(replica))["workers"] if row["worker_name"] == name)


async def read(update: Awaitable[Update]) -> tuple[str, dict[str, Any]]:
    kind, frame = await update
    first, second = frame.decode().removesuffix("\n\n").split("\n")
    assert first == f"event: {kind}"
    return kind, json.loads(second.removeprefix("data: "))


async def test_the_state_has_workers_and_replicas(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(A, "m", "n", queue_length=3, capacity=4))
    await registry.register(worker(B, "m"))
    await registry.drain(B)
    one, another = replica(), replica()
    await another.replicas.join()
    await one.replicas.join()
    found = await row(one)
    assert (found["model_names"], found["queue_length"], found["capacity"], found["draining"]) == (
        ["m", "n"],
        3,
        4,
        False,
    )
    assert (await row(one, B))["drained"] is True
    body = await state(one)
    assert (body["degraded"], body["parents"], body["dispatch_method"]) == (None, [], "shortest_queue")
    assert {each["id"] for each in body["replicas"]} == {one.replicas.id, another.replicas.id}
    assert body["replica"]["id"] == one.replicas.id
    assert abs(body["time"] - body["seen_at"]) < 60


async def test_viewers_get_changes_only(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(A, "m"))
    controller = replica()
    await tick(controller)
    updates = controller.overview.follow()
    kind, body = await read(anext(updates))
    assert (kind, [each["worker_name"] for each in body["workers"]]) == ("state", [A])
    await tick(controller)
    kind, body = await read(anext(updates))
    assert (kind, body["workers"], body["removed"]) == ("changes", [], []), "a heartbeat that ages is no change"
    await registry.drain(A)
    await registry.register(worker(B, "n"))
    await tick(controller)
    _, body = await read(anext(updates))
    changed = {each["worker_name"]: each for each in body["workers"]}
    assert changed[A] == {"worker_name": A, "draining": True, "drained": True}
    assert changed[B]["model_names"] == ["n"]
    await registry.remove(A)
    await tick(controller)
    _, body = await read(anext(updates))
    assert (body["workers"], body["removed"]) == ([], [A])
    await updates.aclose()
    assert controller.overview.viewers == 0


async def test_a_viewer_that_joins_between_two_ticks_takes_nothing_from_another(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(A, "m"))
    controller = replica()
    await tick(controller)
    first, second = controller.overview.follow(), controller.overview.follow()
    await anext(first)
    await tick(controller)
    await anext(first)
    await registry.register(worker(B, "n"))
    await controller.snapshots.take_now()
    controller.overview._state = None  # as a moment later
    assert [each["worker_name"] for each in (await read(anext(second)))[1]["workers"]] == [A, B]
    await controller.overview.tick()
    _, body = await read(anext(first))
    assert [each["worker_name"] for each in body["workers"]] == [B]
    for viewer in (first, second):
        await viewer.aclose()


async def test_a_slow_viewer_gets_the_state_again(store: Store, replica: Open) -> None:
    registry = store.registry()
    controller = replica()
    updates = controller.overview.follow()
    assert (await read(anext(updates)))[0] == "state"
    for number in range(10):
        await registry.register(worker(A, f"m{number}"))
        await tick(controller)
    found: list[tuple[str, dict[str, Any]]] = [await read(anext(updates))]
    while found[-1][0] != "state":
        found.append(await read(anext(updates)))
    assert [each["model_names"] for each in found[-1][1]["workers"]] == [["m9"]]
    await registry.register(worker(A, "last"))
    await tick(controller)
    kind, body = await read(anext(updates))
    assert (kind, body["workers"][0]["model_names"]) == ("changes", ["last"])
    await updates.aclose()


async def test_an_update_is_encoded_once_for_all_viewers(store: Store, replica: Open) -> None:
    controller = replica()
    await tick(controller)
    viewers = [controller.overview.follow() for _ in range(3)]
    assert len({id((await anext(viewer)).frame) for viewer in viewers}) == 1
    await tick(controller)
    assert len({id(await anext(viewer)) for viewer in viewers}) == 1
    for viewer in viewers:
        await viewer.aclose()


async def test_viewers_are_limited_and_end_with_the_replica(
    store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.overview._MAX_VIEWERS", 1)
    controller = replica()
    updates = controller.overview.follow()
    await anext(updates)
    with pytest.raises(TooManyFollowers):
        await anext(controller.overview.follow())
    waiting = asyncio.ensure_future(anext(updates, None))
    await asyncio.sleep(0)
    controller.stop_waiting()
    assert await waiting is None


async def test_viewers_cost_redis_nothing_but_a_look_at_new_replicas(
    store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica()
    await controller.replicas.join()
    await tick(controller)
    ran: list[str] = []
    run = Registry._run

    async def recorded(self: Registry, script: str, *arguments: str | int) -> object:
        ran.append(script)
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", recorded)
    await controller.overview.tick()
    assert ran == [], "no viewer"
    viewers = [controller.overview.follow() for _ in range(8)]
    for viewer in viewers:
        await anext(viewer)
    for _ in range(5):
        await controller.overview.tick()
    assert ran == ["list_replicas"]
    for viewer in viewers:
        await viewer.aclose()


async def test_an_outage_keeps_the_old_state(store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    await store.registry().register(worker(A, "m"))
    controller = replica()
    await controller.replicas.join()
    before = await row(controller)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", AsyncMock(side_effect=StoreUnavailable("Redis is away.")))
        with pytest.raises(StoreUnavailable):
            await controller.snapshots.take_now()
        await controller.replicas.join()
        await controller.overview.tick()
        body = await state(controller)
    assert body["degraded"] == "Redis is away."
    assert body["workers"] == [before]
    assert len(body["replicas"]) == 1
    assert body["dispatches"]["per_second"][-1] is None


async def test_an_outage_that_is_longer_than_a_snapshot_is_valid(
    store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.registry().register(worker(A, "m"))
    controller = replica()

    async def can_dispatch() -> tuple[bool, float]:
        controller.telemetry.measure()
        await controller.overview.tick()
        metrics = controller.metrics.render().decode()
        return (await state(controller))["can_dispatch"], value(metrics, "controller_replica_can_dispatch")

    assert await can_dispatch() == (True, 1)
    await controller.snapshots.take_now()
    assert await can_dispatch() == (True, 1)
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", AsyncMock(side_effect=StoreUnavailable("Redis is away.")))
        with pytest.raises(StoreUnavailable):
            await controller.snapshots.take_now()
        assert await can_dispatch() == (True, 1)
        assert controller.snapshots.snapshot is not None
        controller.snapshots.snapshot.taken_at -= 91
        assert await can_dispatch() == (False, 0)
        with pytest.raises(StoreUnavailable):
            await controller.dispatcher.dispatch("m")
        late = replica()
        with pytest.raises(StoreUnavailable):
            await late.snapshots.take_now()
        assert not late.snapshots.can_dispatch, "it has no snapshot"
    await wait_until(lambda: controller.snapshots.breaker.reason is None, "the replica uses Redis again")
    assert await can_dispatch() == (True, 1)


async def test_a_stalled_worker(store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """tests/domain/test_stalls.py has the rule."""
    registry = store.registry()
    await registry.register(worker(A, "m", queue_length=5))
    await registry.register(worker(B, "m"))
    controller = replica()
    first = (await row(controller))["stalled_since"]
    assert abs(first - time.time()) < 60
    assert (await row(controller, B))["stalled_since"] is None
    await registry.heartbeat([Report(A, 6)])
    assert (await row(controller))["stalled_since"] == first
    monkeypatch.setattr(controller.snapshots.stalls, "stalled_for", lambda *_: 120.0)
    assert (await row(controller))["stalled_since"] == pytest.approx(time.time() - 120, abs=60)


async def rates(replica: Replica) -> list[float | None]:
    found: list[float | None] = (await state(replica))["dispatches"]["per_second"]
    return found


async def test_the_dispatch_rate_is_that_of_the_cluster(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(A, "m"))
    one, another = replica(), replica()
    await tick(one)
    assert await rates(one) == [None]
    await registry.register(worker(B, "m"))  # is numbered as well, and is no dispatch
    await tick(one)
    assert (await rates(one))[-1] == 0
    started_at = one.snapshots.taken_at
    for _ in range(20):
        await another.dispatcher.dispatch("m")
    await tick(one)
    assert (await rates(one))[-1] == pytest.approx(20 / (one.snapshots.taken_at - started_at), rel=0.01, abs=0.1)


async def test_the_lottery_shows_the_rate_of_this_controller(store: Store, replica: Open) -> None:
    await store.registry().register(worker(A, "m"))
    controller = replica(dispatch_method=DispatchMethod.LOTTERY)
    await tick(controller)
    await controller.dispatcher.dispatch("m")
    await tick(controller)
    body = await state(controller)
    assert body["dispatches"]["scope"] == "controller"
    assert body["dispatches"]["per_second"][-1] > 0


async def test_many_workers_do_not_block_the_replica(
    store: Store, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.observations._SLICE", 1)
    registry = store.registry()
    for name in (A, B):
        await registry.register(worker(name))
    controller = replica()
    await controller.snapshots.take_now()
    updates = controller.overview.follow()
    opening = asyncio.ensure_future(anext(updates))
    await asyncio.sleep(0)
    assert not opening.done()
    await opening
    await updates.aclose()
    assert len((await state(controller))["workers"]) == 2
