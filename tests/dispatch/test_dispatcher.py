"""Requests that the dispatcher answers without Redis, and those for models without workers."""

import asyncio
from dataclasses import replace

import pytest

from controller.domain.engine import Engine, Protocol
from controller.domain.worker import MAX_MODEL_NAME_LENGTH
from controller.store.registry import Registry, WorkerList
from tests.conftest import Open
from tests.support.outage import Link
from tests.support.samples import A, B, worker


async def test_model_name_that_is_too_long_to_be_registered_never_reaches_redis(replica: Open, link: Link) -> None:
    """The name may be as long as a whole body."""
    dispatcher = replica().dispatcher
    name = "m" * (MAX_MODEL_NAME_LENGTH + 1)
    assert (await dispatcher.dispatch(name)).value == ""
    assert (await dispatcher.dispatch_with_lease(name)).value == ("", "")
    assert (await dispatcher.find_worker(name)).value == ""
    assert link.delivered == []


async def test_no_name_of_a_model_reaches_the_index_of_another_protocol(replica: Open, registry: Registry) -> None:
    """Redis indexes the models of engines under names with a character that no model has."""
    dispatcher = replica(registry).dispatcher
    await registry.register(replace(worker(A, "m"), engine=Engine("vllm")))
    assert (await dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.address == A
    for name in ("\x1dm", "\x1d", "\x1d\x1dm"):
        for protocol in Protocol:
            assert (await dispatcher.dispatch(name, protocol)).value == ""
            assert (await dispatcher.dispatch_with_lease(name, protocol=protocol)).value == ("", "")
            assert (await dispatcher.find_worker(name, protocol=protocol)).value == ""


async def test_longest_model_name_is_dispatched(registry: Registry, replica: Open) -> None:
    dispatcher = replica(registry).dispatcher
    name = "m" * MAX_MODEL_NAME_LENGTH
    await registry.register(worker(A, name))
    assert (await dispatcher.dispatch(name)).value == A
    assert (await dispatcher.dispatch_with_lease(name)).value.address == A
    assert (await dispatcher.find_worker(name)).value == A


async def test_a_model_that_has_lost_its_last_worker_holds_up_no_other(
    registry: Registry, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replica lists all workers, in case Redis has lost some. Only requests for that model wait for the list."""
    opened = replica(registry)
    await registry.register(worker(A, "m"))
    await registry.register(worker(B, "lost"))
    await opened.snapshots.take_now()
    await registry.remove(B)
    listing, begun, may_end = registry.list_workers, asyncio.Event(), asyncio.Event()

    async def slow() -> WorkerList:
        begun.set()
        await may_end.wait()
        return await listing()

    monkeypatch.setattr(registry, "list_workers", slow)
    dispatcher = opened.dispatcher
    waiting = [asyncio.create_task(call) for call in (dispatcher.dispatch("lost"), dispatcher.find_worker("lost"))]
    at_once = asyncio.create_task(dispatcher.dispatch("m"))
    await begun.wait()
    assert (await at_once).value == A
    assert (await dispatcher.dispatch("m")).value == A
    assert (await dispatcher.find_worker("m")).value == A
    assert not any(task.done() for task in waiting)
    may_end.set()
    assert [(await task).value for task in waiting] == ["", ""]


async def test_requests_go_to_workers_of_their_protocol_also_without_redis(
    registry: Registry, replica: Open, link: Link
) -> None:
    opened = replica(registry)
    dispatcher, openai = opened.dispatcher, Protocol.OPENAI
    await registry.register(worker(A, "m", "of-workers"))
    await registry.register(replace(worker(B, "m", "of-engines"), engine=Engine("generic")))
    await opened.snapshots.take_now()

    async def check() -> None:
        assert (await dispatcher.dispatch("m")).value == A
        assert (await dispatcher.dispatch("of-engines")).value == ""
        assert (await dispatcher.dispatch_with_lease("m", protocol=openai)).value.address == B
        assert (await dispatcher.dispatch_with_lease("of-workers", protocol=openai)).value.address == ""
        assert (await dispatcher.find_worker("m", protocol=openai)).value == B
        assert (await dispatcher.find_worker("of-engines")).value == ""
        assert (await dispatcher.list_models()).value == ["m", "of-workers"]
        assert (await dispatcher.list_models(protocol=openai)).value == ["m", "of-engines"]

    await check()
    assert b'model="m"' in opened.metrics.render()
    assert b"\x1d" not in opened.metrics.render(), "a model has one name in metrics"
    with link.broken():
        await check()
