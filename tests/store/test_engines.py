"""Inference engines in Redis: indexes of their own, and heartbeats by answers to polls."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from controller.domain.capacity import CapacityTarget
from controller.domain.engine import Engine, Protocol, indexed_name, model_of
from controller.domain.errors import InvalidInput, StoreRejection
from controller.domain.worker import Registration
from controller.store import keys
from controller.store.registry import FailureCall, Find, Registry, Report
from tests.conftest import Store
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, workers_of
from tests.support.samples import A, B, C, asks, reports, worker

ENGINE = Engine("vllm", {"qwen": "Qwen/Qwen3-8B"}, "a-key")
OF_ENGINES = indexed_name("m", Protocol.OPENAI)


def engine(name: str, *models: str, **options: Any) -> Registration:
    return replace(worker(name, *models, **options), engine=ENGINE)


async def test_a_request_finds_only_workers_of_its_protocol(registry: Registry) -> None:
    await registry.register(worker(A, "m", "n"))
    await registry.register(engine(B, "m", queue_length=9))
    await registry.register(engine(C, "m", "o", queue_length=9))
    for dispatch in (dispatch_shortest_queue, dispatch_lottery):
        assert set(workers_of(await dispatch(registry, asks(["m", "n"] * 4)))) == {A}
        assert set(workers_of(await dispatch(registry, asks([OF_ENGINES] * 8)))) <= {B, C}
        assert workers_of(await dispatch(registry, asks(["o"]))) == [""]
    assert await registry.find_workers([Find("o"), Find(indexed_name("o", Protocol.OPENAI))]) == ["", C]
    assert [model_of(each) for each in await registry.list_models()] == ["m", "o", "m", "n"], "engines come first"


async def test_a_listed_engine_is_as_it_was_registered(registry: Registry) -> None:
    await registry.register(engine(A, "m", "o", capacity=4))
    await registry.register(worker(B))
    found, other = (await registry.list_workers()).workers
    assert (found.engine, found.status.model_names, found.protocol) == (ENGINE, ("m", "o"), Protocol.OPENAI)
    assert (other.engine, other.protocol) == (None, Protocol.FASTCHAT)
    assert "a-key" not in repr(found)
    [event] = [each for each in (await registry.list_events("", 9)).events if each.fields.get("worker") == A]
    assert event.fields["models"] == '["m","o"]'


async def test_only_answers_to_polls_of_engines_keep_an_engine_alive(store: Store) -> None:
    registry = store.registry(engine_expiration=60.0)
    await registry.register(engine(A))
    await registry.register(worker(B))
    assert (await registry.list_workers()).workers[0].expires_in <= 60  # type: ignore[operator]
    longer = store.registry(engine_expiration=120.0)
    await longer.take_engine_answers([Report(A, 3)])
    found = (await registry.list_workers()).workers[0]
    assert (found.expires_in or 0) > 60
    assert (found.status.queue_length, found.polled) == (3, True)
    shorter = store.registry(engine_expiration=0.2)
    assert await shorter.take_engine_answers([Report(A, 3)]) == [True]
    await longer.take_poll_answers([Report(A, 3)])
    for _ in range(600):
        if [each.name for each in (await registry.list_workers()).workers] == [B]:
            break
        await asyncio.sleep(0.05)
    assert await registry.take_engine_answers([Report(A, 3)]) == [False], "an engine that has expired has to register"


async def test_an_unknown_queue_length_changes_no_load(registry: Registry) -> None:
    await registry.register(engine(A, queue_length=7))
    assert await registry.take_engine_answers([Report(A, None)]) == [True]
    [found] = (await registry.list_workers()).workers
    assert (found.status.queue_length, found.polled) == (7, True)


async def test_an_answer_clears_a_failure_of_polls_but_not_of_a_request(registry: Registry) -> None:
    """An engine that answers polls and fails each request must not get a request after each poll."""
    await registry.register(engine(A))
    await registry.take_engine_answers([Report(A, 0)])
    for of_polls, left in ((True, ""), (False, "request")):
        await registry.report_failure_many([FailureCall(A, of_polls)])
        await registry.take_engine_answers([Report(A, 0)])
        [found] = (await registry.list_workers()).workers
        assert found.failing == left


async def test_a_capacity_of_a_model_counts_for_engines_too(registry: Registry) -> None:
    await registry.set_capacity(CapacityTarget(model="m"), 3)
    await registry.register(engine(A, "m", "o"))
    [found] = (await registry.list_workers()).workers
    assert (found.status.capacity, found.capacity_source) == (3, "configured")
    await registry.set_capacity(CapacityTarget(model="m"), None)
    await registry.apply_capacities((await registry.list_workers()).workers)
    assert (await registry.list_workers()).workers[0].status.capacity is None


async def test_a_worker_may_become_an_engine_and_a_worker_again(registry: Registry) -> None:
    for registration, index in ((worker(A), "m"), (engine(A), OF_ENGINES), (worker(A), "m")):
        await registry.register(registration)
        assert await registry.list_models() == [index]
        assert workers_of(await dispatch_shortest_queue(registry, asks(["m", OF_ENGINES]))) == [
            A if name == index else "" for name in ("m", OF_ENGINES)
        ]


async def test_a_restored_engine_is_an_engine(registry: Registry) -> None:
    await registry.restore(engine(A), expires_in=60.0)
    [found] = (await registry.list_workers()).workers
    assert found.engine == ENGINE
    await registry.refresh(engine(A, "m", "o"), found.registration)
    [found] = (await registry.list_workers()).workers
    assert (found.engine, found.status.model_names) == (ENGINE, ("m", "o"))


@pytest.mark.parametrize("text", ["no JSON", "[]", "{}", '{"kind": 1, "aliases": {}, "key": ""}'])
async def test_an_unreadable_engine_is_an_error(store: Store, registry: Registry, text: str) -> None:
    with pytest.raises(InvalidInput):
        Engine.decode(text)
    await registry.register(engine(A))
    await store.client.hset(keys.worker(store.namespace, A), "engine", text)
    with pytest.raises(StoreRejection):
        await registry.list_workers()
    await store.client.hset(keys.worker(store.namespace, A), "engine", "")


async def test_a_worker_of_an_older_version_has_no_engine(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await store.client.hdel(keys.worker(store.namespace, A), "engine")
    [found] = (await registry.list_workers()).workers
    assert found.engine is None
    assert await registry.heartbeat(reports([(A, 1)])) == [True]
