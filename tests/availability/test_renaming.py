"""Workers that an older version stored under a name that is not canonical now."""

import asyncio

import pytest

from controller.domain.worker import worker_name
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Report
from tests.conftest import Open, Store
from tests.support.outage import Link
from tests.support.samples import A, worker

PORT_80, IPV6, FINAL_DOT = "http://127.0.0.1:80", "http://[0:0:0:0:0:0:0:1]:5", "http://h.:7"
CANONICAL = {PORT_80: "http://127.0.0.1", IPV6: "http://[::1]:5", FINAL_DOT: "http://h:7"}
NO_NAME_ANY_MORE = "http://user@h:7"


async def names(store: Store) -> list[str]:
    return [known.name for known in (await store.registry().list_workers()).workers]


async def look(controller: Replica) -> None:
    await controller.snapshots.refresh()


@pytest.mark.parametrize("check_heart_beat", [True, False])
@pytest.mark.parametrize("old", [PORT_80, IPV6, FINAL_DOT])
async def test_an_old_name_becomes_canonical(
    store: Store, replica: Open, caplog: pytest.LogCaptureFixture, old: str, check_heart_beat: bool
) -> None:
    caplog.set_level("INFO", "controller")
    registry = store.registry()
    await registry.restore(
        worker(old, "m", "n", speed=2, queue_length=3, capacity=4, multimodal=True, check_heart_beat=check_heart_beat),
        expires_in=50,
    )
    controller = replica()
    await look(controller)
    [known] = (await registry.list_workers()).workers
    new = CANONICAL[old]
    assert (known.name, known.multimodal, known.check_heart_beat) == (new, True, check_heart_beat)
    assert known.status == worker(new, "m", "n", speed=2, queue_length=3, capacity=4).status
    assert known.expires_in is None if not check_heart_beat else 0 < (known.expires_in or 0) <= 50
    assert [known.name for known in controller.snapshots.workers()] == [new]
    assert f"Renamed worker {old} to {new}" in caplog.text
    assert await controller.membership.heartbeat(worker_name(old), 1) is True
    assert (await controller.dispatcher.dispatch("m")).value == new
    assert await controller.membership.drain(worker_name(old)) is True
    assert (await controller.dispatcher.dispatch("m")).value == ""
    assert await controller.membership.remove(worker_name(old)) is True
    await look(controller)
    assert await names(store) == []


async def test_what_an_old_name_was_stays_so(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.restore(worker(PORT_80), polled=True)
    assert await registry.drain(PORT_80)
    await registry.register(worker(IPV6))
    assert await registry.report_failure(IPV6)
    await look(replica())
    workers = {known.name: known for known in (await registry.list_workers()).workers}
    assert workers.keys() == {CANONICAL[PORT_80], CANONICAL[IPV6]}
    assert (workers[CANONICAL[PORT_80]].draining, workers[CANONICAL[PORT_80]].polled) == (True, True)
    assert workers[CANONICAL[IPV6]].failing == "request"
    await store.aside.delete(keys.draining(store.namespace, PORT_80))


async def test_other_names_stay(store: Store, replica: Open, link: Link) -> None:
    registry = store.registry()
    for name in (A, NO_NAME_ANY_MORE):
        await registry.register(worker(name))
    controller = replica()
    await look(controller)
    link.passed.clear()
    await look(controller)
    assert link.passed == ["list_workers"]
    assert await names(store) == [A, NO_NAME_ANY_MORE]


@pytest.mark.parametrize("canonical_first", [True, False])
async def test_of_two_spellings_the_later_registration_counts(
    store: Store, replica: Open, canonical_first: bool
) -> None:
    registry = store.registry()
    order = [CANONICAL[PORT_80], PORT_80] if canonical_first else [PORT_80, CANONICAL[PORT_80]]
    await registry.register(worker(order[0], "before", check_heart_beat=False))
    await registry.register(worker(order[1], "after", check_heart_beat=False))
    await look(replica())
    [known] = (await registry.list_workers()).workers
    assert (known.name, known.status.model_names) == (CANONICAL[PORT_80], ("after",))


async def test_three_spellings_become_one(store: Store, replica: Open) -> None:
    registry = store.registry()
    for name, model in (("http://h.", "first"), ("http://h.:80", "last")):
        await registry.register(worker(name, model))
    controller = replica()
    await look(controller)
    await look(controller)
    [known] = (await registry.list_workers()).workers
    assert (known.name, known.status.model_names) == ("http://h", ("last",))


async def test_a_drain_under_either_name_counts(store: Store, replica: Open) -> None:
    registry = store.registry()
    await registry.register(worker(PORT_80))
    assert await registry.drain(PORT_80)
    await registry.register(worker(CANONICAL[PORT_80]))
    await look(replica())
    [known] = (await registry.list_workers()).workers
    assert (known.name, known.draining) == (CANONICAL[PORT_80], True)
    await store.aside.delete(keys.draining(store.namespace, PORT_80))


async def test_several_replicas_rename_at_once(store: Store, replica: Open) -> None:
    registry = store.registry()
    for name in CANONICAL:
        await registry.register(worker(name, check_heart_beat=False))
    replicas = [replica() for _ in range(4)]
    await asyncio.gather(*(look(each) for each in replicas))
    assert await names(store) == sorted(CANONICAL.values())
    assert (await registry.list_workers()).sequence == 9, "each was registered once more, and removed once"


async def test_a_replica_that_ends_between_the_steps_loses_no_worker(store: Store, replica: Open, link: Link) -> None:
    await store.registry().register(worker(PORT_80, check_heart_beat=False))
    controller = replica()
    with link.broken("before", "remove"), pytest.raises(Exception, match="away"):
        await look(controller)
    assert await names(store) == [CANONICAL[PORT_80], PORT_80]
    await look(replica())
    assert await names(store) == [CANONICAL[PORT_80]]


async def test_a_worker_lives_on_beside_a_replica_of_the_older_version(store: Store, replica: Open) -> None:
    """All its heartbeats reach the older one, which knows only the old name."""
    older = store.registry()
    new = replica()
    await older.restore(worker(PORT_80), expires_in=20)
    await look(new)
    for _ in range(3):
        assert await names(store) == [CANONICAL[PORT_80]]
        assert await older.heartbeat([Report(PORT_80, 2)]) == [False]
        await older.register(worker(PORT_80, queue_length=2))
        assert (await new.dispatcher.dispatch("m")).value
        await look(new)
        [known] = (await older.list_workers()).workers
        assert (known.name, known.status.queue_length) == (CANONICAL[PORT_80], 2)
        assert (known.expires_in or 0) > 20, "it has the time of the last registration"


async def test_a_worker_that_was_removed_just_now_keeps_its_old_name_for_a_while(store: Store, replica: Open) -> None:
    """It registered with an older replica after it was removed here: it must stay dispatchable."""
    registry = store.registry()
    controller = replica()
    await registry.register(worker(CANONICAL[PORT_80]))
    assert await controller.membership.remove(CANONICAL[PORT_80]) is True
    await registry.register(worker(PORT_80))
    await look(controller)
    assert await names(store) == [PORT_80]
    await store.aside.delete(keys.removed(store.namespace, CANONICAL[PORT_80]))
    await look(controller)
    assert await names(store) == [CANONICAL[PORT_80]]
