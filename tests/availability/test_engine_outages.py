"""Engines after an outage of the store in which no replica could renew their heartbeats."""

from typing import NamedTuple

import pytest

from controller.availability.recovery import Recovery
from controller.domain.errors import StoreRejection
from controller.metrics import Metrics
from controller.store import keys
from tests.conftest import Store
from tests.support.openai_engines import engine_worker
from tests.support.samples import A, B, worker

EXPIRATION = 10.0
REPLICA = "this"


class Case(NamedTuple):
    """polled: as Recovery.engine_time_left returns it. age, until_outage: as in Recovery.repair().

    expected: seconds until the restored engine expires, at most. None if it is not restored.
    alive: the replicas that are alive in Redis.
    """

    polled: float | None
    age: float
    until_outage: float | None
    expected: float | None
    alive: tuple[str, ...] = ()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(7.0, 50.0, 1.0, 7.0), id="this replica has found it ready"),
        pytest.param(Case(0.0, 50.0, 1.0, None), id="this replica has found it not ready"),
        pytest.param(Case(-3.0, 13.0, 1.0, None), id="it has not answered this replica for its expiration"),
        pytest.param(Case(None, 13.0, 1.0, EXPIRATION), id="another replica or an agent polls it"),
        pytest.param(Case(None, 13.0, 1.0, EXPIRATION, (REPLICA,)), id="another one, and this replica has joined"),
        pytest.param(Case(None, 13.0, 1.0, None, ("other",)), id="another one, and a replica has served meanwhile"),
        pytest.param(Case(7.0, 50.0, 1.0, 7.0, ("other",)), id="this replica, and another one has served meanwhile"),
        pytest.param(Case(None, 13.0, 11.0, None), id="it expired before the outage"),
        pytest.param(Case(None, 5.0, 1.0, None), id="it was taken out, because it had time left"),
        pytest.param(Case(None, 91.0, 1.0, None), id="the snapshot is too old to dispatch from it"),
        pytest.param(Case(7.0, 13.0, None, None), id="there was no outage"),
    ],
)
async def test_engine_that_expired_in_an_outage_is_restored_if_it_may_be_alive(store: Store, case: Case) -> None:
    registry = store.registry(engine_expiration=EXPIRATION)
    await registry.register(engine_worker(A, "m"))
    await registry.register(worker(B, "m"))
    before = await registry.list_workers()
    await store.client.delete(keys.heartbeat(store.namespace, A), keys.heartbeat(store.namespace, B))
    recovery = Recovery(registry, Metrics(), 90.0, EXPIRATION, REPLICA)
    recovery.engine_time_left = lambda _: case.polled
    for replica in case.alive:
        await registry.join_replicas(replica, 60.0)
    now = await registry.list_workers()
    repaired = await recovery.repair(before, case.age, now, lost_data=False, until_outage=case.until_outage)
    found = {known.name: known.expires_in for known in (await registry.list_workers()).workers}
    assert repaired is (case.expected is not None)
    assert set(found) == ({A} if case.expected else set()), "workers of FastChat register again by themselves"
    assert all(left is not None and 0 < left <= (case.expected or 0) for left in found.values())


async def test_engine_that_was_removed_is_not_restored(store: Store) -> None:
    registry = store.registry(engine_expiration=EXPIRATION)
    await registry.register(engine_worker(A, "m"))
    before = await registry.list_workers()
    await registry.remove(A)
    recovery = Recovery(registry, Metrics(), 90.0, EXPIRATION, REPLICA)
    recovery.engine_time_left = lambda _: 7.0
    await recovery.repair(before, 13.0, await registry.list_workers(), lost_data=False, until_outage=1.0)
    assert (await registry.list_workers()).workers == []


@pytest.mark.parametrize("is_listed", [True, False])
async def test_list_of_engines_is_updated_before_they_are_restored(store: Store, is_listed: bool) -> None:
    registry = store.registry(engine_expiration=EXPIRATION)
    await registry.register(engine_worker(A, "m"))
    before = await registry.list_workers()
    await store.client.delete(keys.heartbeat(store.namespace, A))
    recovery = Recovery(registry, Metrics(), 90.0, EXPIRATION, REPLICA)
    left = 7.0

    async def update() -> None:
        nonlocal left
        left = left if is_listed else 0.0
        raise StoreRejection("the list is unreadable")  # the replica keeps the list that it has

    recovery.update_engines = update
    recovery.engine_time_left = lambda _: left
    await recovery.repair(before, 13.0, await registry.list_workers(), lost_data=False, until_outage=1.0)
    assert len((await registry.list_workers()).workers) == is_listed


async def test_engine_is_restored_after_an_outage_that_lost_the_data(store: Store) -> None:
    """Its heartbeat has expired, and so the time that it had left says nothing."""
    registry = store.registry(engine_expiration=EXPIRATION)
    await registry.register(engine_worker(A, "m"))
    await registry.drain(A)
    before = await registry.list_workers()
    await store.client.delete(*await store.client.keys(f"{keys.namespace(store.namespace)}*"))
    recovery = Recovery(registry, Metrics(), 90.0, EXPIRATION, REPLICA)
    assert await recovery.repair(before, 13.0, await registry.list_workers(), lost_data=True, until_outage=1.0)
    [restored] = (await registry.list_workers()).workers
    assert (restored.name, restored.draining) == (A, True)
