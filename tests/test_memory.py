"""A store that comes back without its memory, or with one that is not ours."""

import asyncio

import pytest

from controller.domain.errors import StoreIncompatible
from controller.domain.worker import WorkerStatus
from controller.service import Controller, Found
from controller.store import keys
from tests.conftest import Open, Store
from tests.outage import Link, back, queues
from tests.samples import A, B, worker
from tests.waiting import wait_until


async def test_a_store_that_lost_its_memory_is_given_the_workers_again(
    controller: Controller, link: Link, store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    other = replica()  # it has the same snapshot
    await other.check()
    with link.broken():
        assert (await controller.dispatch("n")).value == A
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
        await store.aside.hset("unrelated", "x", "y")
    await back(controller)
    assert "giving it back 2 workers" in caplog.text
    assert await queues(store) == {A: 1, B: 0}
    workers = (await store.registry().list_workers()).workers
    assert [(known.name, known.multimodal, known.check_heart_beat) for known in workers] == [
        (A, False, True),
        (B, True, True),
    ]
    assert all(known.expires_in and 80 < known.expires_in < 90 for known in workers), "no heartbeat was invented"
    assert await controller.heartbeat(A, 3) is True
    await other._fallback._look()
    assert caplog.text.count("giving it back") == 1, "one replica's word is enough"
    await store.aside.delete("unrelated")


async def test_what_has_registered_since_is_not_overwritten(controller: Controller, link: Link, store: Store) -> None:
    with link.broken():
        await controller.dispatch("n")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    link.cut = "before"
    registry = store.registry()
    link.cut = None
    await registry.register(worker(A, "new", queue_length=7))
    await back(controller)
    workers = (await registry.list_workers()).workers
    assert {known.name: known.status for known in workers} == {
        A: WorkerStatus(("new",), 1, workers[0].status.queue_length),
        B: WorkerStatus(("m",), 1, 0),
    }
    assert workers[0].status.queue_length in (7, 8)


async def test_workers_whose_time_is_over_are_not_given_back(
    store: Store, link: Link, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.registry(heartbeat_expiration=0.2).register(worker(A))
    await store.registry().register(worker(B, check_heart_beat=False))
    controller = replica()
    await controller.check()
    with link.broken():
        await controller.dispatch("m")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
        await wait_until(lambda: lapsed(controller, A), "its time is over")
    await back(controller)
    [known] = (await store.registry().list_workers()).workers
    assert (known.name, known.expires_in) == (B, None)


async def lapsed(controller: Controller, name: str) -> bool:
    return {known.name: known.expires_in for known in (await controller.list_workers()).value}[name] == 0


async def test_a_model_that_is_missing_is_looked_for_once(controller: Controller, link: Link, store: Store) -> None:
    """The store has lost its memory without being away: it is found out by the first who gets no worker."""
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    link.passed.clear()
    answers = await asyncio.gather(*(controller.dispatch(model) for model in ["m", "n", "m", "nobody's"]))
    assert [bool(answer.value) for answer in answers] == [True, True, True, False]
    assert {answer.snapshot_age for answer in answers} == {None}
    assert link.passed.count("list_workers") == 2
    assert sum((await queues(store)).values()) == 3
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    assert (await controller.list_models()).value == ["m", "n"]


async def test_a_model_that_is_gone_is_looked_for_once(controller: Controller, link: Link, store: Store) -> None:
    for name in (A, B):
        await store.lapse(name)
    link.passed.clear()
    for _ in range(5):
        assert await controller.dispatch("m") == Found("")
    assert link.passed.count("list_workers") == 1
    assert (await controller.list_models()).value == []


async def test_what_cannot_be_read_keeps_nobody_from_being_served(
    controller: Controller, link: Link, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.aside.hset(keys.worker(store.namespace, B), "models", "no JSON")
    with link.broken():
        await controller.dispatch("n")
    await back(controller)
    assert "is not of our making" in caplog.text
    assert await controller.dispatch("n") == Found(A)
    await store.aside.hset(keys.worker(store.namespace, B), "models", '["m"]')


async def test_a_layout_of_another_version_is_not_touched(
    store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    await store.aside.set(keys.schema(store.namespace), "999")
    controller = replica()
    with pytest.raises(StoreIncompatible, match="laid out in version 999, this program works with version 1"):
        await controller.check()
    with pytest.raises(StoreIncompatible):
        await controller.dispatch("m")
    with pytest.raises(StoreIncompatible):
        await controller.heartbeat(A, 1)
    assert "laid out in version 999" in caplog.text
    await store.aside.delete(keys.schema(store.namespace))
    await back(controller)
    assert await store.aside.get(keys.schema(store.namespace)) == "1"
    assert await controller.dispatch("m") == Found("")
