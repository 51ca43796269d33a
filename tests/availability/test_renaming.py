"""Renaming of workers that an older version stored under a spelling other than the canonical name."""

import asyncio

import pytest

from controller.domain.worker import worker_name
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Report
from tests.conftest import Open, Store
from tests.support.outage import Link
from tests.support.samples import OPERATOR, A, worker

PORT_80, IPV6, FINAL_DOT = "http://127.0.0.1:80", "http://[0:0:0:0:0:0:0:1]:5", "http://h.:7"
CANONICAL = {PORT_80: "http://127.0.0.1", IPV6: "http://[::1]:5", FINAL_DOT: "http://h:7"}
INVALID_NAME = "http://user@h:7"


async def names(store: Store) -> list[str]:
    return [known.name for known in (await store.registry().list_workers()).workers]


async def refresh(replica: Replica) -> None:
    await replica.snapshots.take_now()


@pytest.mark.parametrize("check_heart_beat", [True, False])
@pytest.mark.parametrize("old", [PORT_80, IPV6, FINAL_DOT])
async def test_old_name_is_replaced_by_the_canonical_name(
    store: Store, replica: Open, caplog: pytest.LogCaptureFixture, old: str, check_heart_beat: bool
) -> None:
    caplog.set_level("INFO", "controller")
    registry = store.registry()
    await registry.restore(
        worker(old, "m", "n", speed=2, queue_length=3, capacity=4, multimodal=True, check_heart_beat=check_heart_beat),
        expires_in=50,
    )
    controller = replica()
    await refresh(controller)
    [known] = (await registry.list_workers()).workers
    new = CANONICAL[old]
    assert (known.name, known.multimodal, known.check_heart_beat) == (new, True, check_heart_beat)
    assert known.status == worker(new, "m", "n", speed=2, queue_length=3, capacity=4).status
    assert known.expires_in is None if not check_heart_beat else 0 < (known.expires_in or 0) <= 50
    assert [known.name for known in controller.snapshots.workers()] == [new]
    assert f"Renamed worker {old} to {new}" in caplog.text
    assert await controller.membership.heartbeat(worker_name(old), 1) is True
    assert (await controller.dispatcher.dispatch("m")).value == new
    assert await controller.membership.drain(worker_name(old), caller=OPERATOR) is True
    assert (await controller.dispatcher.dispatch("m")).value == ""
    assert await controller.membership.remove(worker_name(old), caller=OPERATOR) is True
    await refresh(controller)
    assert await names(store) == []


async def test_renamed_worker_keeps_its_draining_polled_and_failure_state(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.restore(worker(PORT_80), polled=True)
    assert await registry.drain(PORT_80)
    await registry.register(worker(IPV6))
    assert await registry.report_failure(IPV6)
    await refresh(replica())
    workers = {known.name: known for known in (await registry.list_workers()).workers}
    assert workers.keys() == {CANONICAL[PORT_80], CANONICAL[IPV6]}
    assert (workers[CANONICAL[PORT_80]].draining, workers[CANONICAL[PORT_80]].polled) == (True, True)
    assert workers[CANONICAL[IPV6]].failing == "request"
    await store.client.delete(keys.draining(store.namespace, PORT_80))


async def test_canonical_and_invalid_names_are_not_changed(store: Store, replica: Open, link: Link) -> None:
    registry = store.registry()
    for name in (A, INVALID_NAME):
        await registry.register(worker(name))
    controller = replica()
    await refresh(controller)
    link.delivered.clear()
    await refresh(controller)
    assert link.delivered == ["list_workers", "mark_listing"]
    assert await names(store) == [A, INVALID_NAME]


@pytest.mark.parametrize("canonical_first", [True, False])
async def test_later_registration_of_two_spellings_is_kept(store: Store, replica: Open, canonical_first: bool) -> None:
    registry = store.registry()
    order = [CANONICAL[PORT_80], PORT_80] if canonical_first else [PORT_80, CANONICAL[PORT_80]]
    await registry.register(worker(order[0], "before", check_heart_beat=False))
    await registry.register(worker(order[1], "after", check_heart_beat=False))
    await refresh(replica())
    [known] = (await registry.list_workers()).workers
    assert (known.name, known.status.model_names) == (CANONICAL[PORT_80], ("after",))


async def test_three_spellings_become_one_worker(store: Store, replica: Open) -> None:
    registry = store.registry()
    for name, model in (("http://h.", "first"), ("http://h.:80", "last")):
        await registry.register(worker(name, model))
    controller = replica()
    await refresh(controller)
    await refresh(controller)
    [known] = (await registry.list_workers()).workers
    assert (known.name, known.status.model_names) == ("http://h", ("last",))


async def test_drain_under_the_old_name_applies_to_the_canonical_one(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(PORT_80))
    assert await registry.drain(PORT_80)
    await registry.register(worker(CANONICAL[PORT_80]))
    await refresh(replica())
    [known] = (await registry.list_workers()).workers
    assert (known.name, known.draining) == (CANONICAL[PORT_80], True)
    await store.client.delete(keys.draining(store.namespace, PORT_80))


async def test_concurrent_renames_by_several_replicas_happen_once(store: Store, replica: Open) -> None:
    registry = store.registry()
    for name in CANONICAL:
        await registry.register(worker(name, check_heart_beat=False))
    replicas = [replica() for _ in range(4)]
    await asyncio.gather(*(refresh(each) for each in replicas))
    assert await names(store) == sorted(CANONICAL.values())
    assert (await registry.list_workers()).sequence == 9, "each was registered once more, and removed once"


async def test_replica_that_fails_between_the_steps_loses_no_worker(store: Store, replica: Open, link: Link) -> None:
    await store.registry().register(worker(PORT_80, check_heart_beat=False))
    controller = replica()
    with link.broken("before", "remove"):
        with pytest.raises(Exception, match="away"):
            await refresh(controller)
        assert await names(store) == [CANONICAL[PORT_80], PORT_80]
    await refresh(replica())
    assert await names(store) == [CANONICAL[PORT_80]]


async def test_worker_stays_registered_beside_a_replica_of_an_older_version(store: Store, replica: Open) -> None:
    """All heartbeats of the worker reach the older replica, which uses only the old name."""
    older = store.registry()
    newer = replica()
    await older.restore(worker(PORT_80), expires_in=20)
    await refresh(newer)
    for _ in range(3):
        assert await names(store) == [CANONICAL[PORT_80]]
        assert await older.heartbeat([Report(PORT_80, 2)]) == [False]
        await older.register(worker(PORT_80, queue_length=2))
        assert (await newer.dispatcher.dispatch("m")).value
        await refresh(newer)
        [known] = (await older.list_workers()).workers
        assert (known.name, known.status.queue_length) == (CANONICAL[PORT_80], 2)
        assert (known.expires_in or 0) > 20, "it has the TTL of the last registration"


async def test_recently_removed_worker_keeps_its_old_name_for_a_while(store: Store, replica: Open) -> None:
    """It was removed here and then registered with an older replica. Dispatch must find it at any time."""
    registry = store.registry()
    controller = replica()
    await registry.register(worker(CANONICAL[PORT_80]))
    assert await controller.membership.remove(CANONICAL[PORT_80], caller=OPERATOR) is True
    await registry.register(worker(PORT_80))
    await refresh(controller)
    assert await names(store) == [PORT_80]
    await store.client.delete(keys.removed(store.namespace, CANONICAL[PORT_80]))
    await refresh(controller)
    assert await names(store) == [CANONICAL[PORT_80]]
