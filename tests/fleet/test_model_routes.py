"""The routes of model names on several replicas: changes, outages of Redis, and Redis that loses its data."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

import pytest

from controller.domain.errors import InvalidInput, StoreUnavailable
from controller.domain.model_route import ModelRoute
from controller.fleet import model_routes
from controller.replica import Replica
from controller.store import keys
from controller.store.entries import ListName
from controller.store.registry import Registry
from controller.tasks import end
from tests.conftest import Open, Store
from tests.support.outage import Link, wait_for_recovery
from tests.support.samples import OPERATOR
from tests.support.waiting import wait_until

INTERVAL = 0.02
ROUTE, OTHER = ModelRoute({"qwen-7b": 1}, ("qwen-1b",)), ModelRoute({"qwen-7b-next": 1})


@pytest.fixture(autouse=True)
def fast_route_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_routes, "INTERVAL", INTERVAL)


@pytest.fixture
async def running(replica: Open) -> AsyncIterator[Callable[[], Replica]]:
    """Return a function that opens replicas which look for changed routes."""
    tasks: list[asyncio.Task[None]] = []

    def start() -> Replica:
        opened = replica()
        tasks.append(asyncio.create_task(opened.model_routes.run()))
        return opened

    yield start
    await end(tasks)


async def wait_for(controller: Replica, model: str, *candidates: str) -> None:
    await wait_until(
        lambda: tuple(controller.model_routes.candidates(model)) == candidates, f"{model} goes to {candidates}"
    )


async def test_route_is_used_at_once_by_its_replica_and_then_by_the_others(running: Callable[[], Replica]) -> None:
    first, second = running(), running()
    for opened in (first, second):
        assert opened.model_routes.candidates("gpt") == ("gpt",), "a name without a route is a model"
    await first.model_routes.set("gpt", ROUTE, OPERATOR)
    assert first.model_routes.candidates("gpt") == ("qwen-7b", "qwen-1b")
    await wait_for(second, "gpt", "qwen-7b", "qwen-1b")
    await second.model_routes.set("gpt", OTHER, OPERATOR)
    assert second.model_routes.candidates("gpt") == ("qwen-7b-next",)
    await wait_for(first, "gpt", "qwen-7b-next")
    assert await first.model_routes.remove("gpt", OPERATOR)
    assert first.model_routes.candidates("gpt") == ("gpt",)
    await wait_for(second, "gpt", "gpt")
    assert not await second.model_routes.remove("gpt", OPERATOR)


async def test_change_is_answered_when_all_replicas_have_looked(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two intervals: one until the next look, and one more for a look that began before the change."""
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    await replica().model_routes.set("gpt", ROUTE, OPERATOR)
    assert waits == [2 * INTERVAL]


async def test_names_are_sorted(replica: Open) -> None:
    controller = replica()
    for name in ("b", "a", "c"):
        await controller.model_routes.set(name, ROUTE, OPERATOR)
    await controller.model_routes.remove("b", OPERATOR)
    assert controller.model_routes.names() == ("a", "c")
    routes, age = await controller.model_routes.list()
    assert (routes, list(routes), age) == ({"a": ROUTE, "c": ROUTE}, ["a", "c"], None)


async def test_routes_work_while_redis_is_away(running: Callable[[], Replica], link: Link) -> None:
    controller = running()
    await controller.model_routes.set("gpt", ROUTE, OPERATOR)
    with link.broken():
        with pytest.raises(StoreUnavailable):
            await controller.model_routes.set("gpt", OTHER, OPERATOR)
        with pytest.raises(StoreUnavailable):
            await controller.model_routes.remove("gpt", OPERATOR)
        assert controller.model_routes.candidates("gpt") == ("qwen-7b", "qwen-1b")
        routes, age = await controller.model_routes.list()
        assert routes == {"gpt": ROUTE}
        assert age is not None
    await wait_for_recovery(controller)
    await controller.model_routes.set("gpt", OTHER, OPERATOR)
    assert controller.model_routes.candidates("gpt") == ("qwen-7b-next",)


async def test_replica_that_starts_without_redis_reads_the_routes_later(
    running: Callable[[], Replica], replica: Open, link: Link
) -> None:
    await replica().model_routes.set("gpt", ROUTE, OPERATOR)
    with link.broken():
        late = running()
        with pytest.raises(StoreUnavailable):
            await late.model_routes.list()
        assert late.model_routes.names() == ()
    await wait_for_recovery(late)
    await wait_for(late, "gpt", "qwen-7b", "qwen-1b")


async def test_routes_survive_that_redis_loses_them(running: Callable[[], Replica], store: Store) -> None:
    first, second = running(), running()
    await first.model_routes.set("gpt", ROUTE, OPERATOR)
    await wait_for(second, "gpt", "qwen-7b", "qwen-1b")
    await store.client.delete(keys.routes(store.namespace))
    await wait_until(lambda: store.client.hget(keys.routes(store.namespace), "entry:gpt"), "the route is back")
    for opened in (first, second):
        assert opened.model_routes.candidates("gpt") == ("qwen-7b", "qwen-1b")


async def test_change_after_redis_lost_the_routes_keeps_the_others(replica: Open, store: Store) -> None:
    """The replica restores the list first. Its older copy would replace the change, if it were restored afterwards."""
    controller = replica()
    for name in ("a", "b", "c"):
        await controller.model_routes.set(name, ROUTE, OPERATOR)
    await store.client.delete(keys.routes(store.namespace))
    await controller.model_routes.set("a", OTHER, OPERATOR)
    await store.client.delete(keys.routes(store.namespace))
    assert await controller.model_routes.remove("b", OPERATOR)
    assert (await replica().model_routes.list()).value == {"a": OTHER, "c": ROUTE}


async def test_failed_change_can_be_repeated(controller: Replica, link: Link) -> None:
    for when in ("before", "after"):
        with link.broken(when, "set_entry"), pytest.raises(StoreUnavailable):
            await controller.model_routes.set("gpt", ROUTE, OPERATOR)
        await wait_for_recovery(controller)
        await controller.model_routes.set("gpt", ROUTE, OPERATOR)
        assert (await controller.model_routes.list()).value == {"gpt": ROUTE}
        await controller.model_routes.remove("gpt", OPERATOR)


async def test_later_of_two_updates_at_once_wins(replica: Open, registry: Registry, store: Store) -> None:
    """The reply to the first update arrives after that to the second one."""
    slow, released = asyncio.Event(), asyncio.Event()
    reading = store.registry()
    original = reading.list_entries

    async def list_entries(*arguments: object) -> object:
        found = await original(*arguments)  # type: ignore[arg-type]
        if not slow.is_set():
            slow.set()
            await released.wait()
        return found

    reading.list_entries = list_entries  # type: ignore[method-assign, assignment]
    controller = replica(reading)
    await replica(registry).model_routes.set("gpt", ROUTE, OPERATOR)
    first = asyncio.create_task(controller.model_routes.update())
    await slow.wait()
    await replica(registry).model_routes.set("gpt", OTHER, OPERATOR)
    second = asyncio.create_task(controller.model_routes.update())
    await asyncio.sleep(0.05)  # the second update would end here if it did not wait for the first one
    released.set()
    await asyncio.gather(first, second)
    assert controller.model_routes.candidates("gpt") == ("qwen-7b-next",)


@pytest.mark.parametrize("record", ["nonsense", '{"targets":{},"fallbacks":[]}', '{"targets":{"a":-1},"fallbacks":[]}'])
async def test_unreadable_route_is_left_out_and_logged(
    replica: Open, registry: Registry, caplog: pytest.LogCaptureFixture, record: str
) -> None:
    await registry.set_entry(ListName.ROUTES, "bad", record, limit=9)
    await registry.set_entry(ListName.ROUTES, "a\nb", ROUTE.encode(), limit=9)
    await registry.set_entry(ListName.ROUTES, "good", ROUTE.encode(), limit=9)
    controller = replica()
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            await controller.model_routes.update()
    assert controller.model_routes.names() == ("good",)
    assert controller.model_routes.candidates("bad") == ("bad",)
    assert [text.partition(" in Redis")[0] for text in caplog.messages] == [
        "The route of 'a\\nb'",
        "The route of 'bad'",
    ], "once, and on one line"


async def test_too_many_routes_are_refused(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_routes, "MAX_ROUTES", 2)
    controller = replica()
    for name in ("a", "b"):
        await controller.model_routes.set(name, ROUTE, OPERATOR)
    with pytest.raises(InvalidInput, match="model: 2 names have a route already, which is the limit"):
        await controller.model_routes.set("c", ROUTE, OPERATOR)
    await controller.model_routes.set("b", OTHER, OPERATOR)
    assert (await controller.model_routes.list()).value == {"a": ROUTE, "b": OTHER}


async def test_split_is_drawn_for_each_request(replica: Open) -> None:
    controller = replica()
    await controller.model_routes.set("gpt", ModelRoute({"a": 1, "b": 1}), OPERATOR)
    drawn = {tuple(controller.model_routes.candidates("gpt")) for _ in range(100)}
    assert drawn == {("a", "b"), ("b", "a")}
