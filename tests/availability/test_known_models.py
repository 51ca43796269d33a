"""Models that have no live worker are known for a time, even by replicas that have started since."""

import json
from typing import NamedTuple

import pytest

from controller.availability.known_models import KnownModels
from controller.domain.engine import Protocol
from controller.replica import Replica
from controller.store.events import NewEvent
from controller.store.registry import Registry
from tests.conftest import Open
from tests.support.openai_engines import engine_worker
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until

HOURS = 3600.0


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Known(NamedTuple):
    models: KnownModels
    registry: Registry
    replica: Replica
    clock: Clock
    routes: set[str]


@pytest.fixture
async def known(registry: Registry, replica: Open) -> Known:
    """Return the models of a cluster in which an engine serves `e`, and a worker of FastChat's protocol `f`."""
    await registry.register(engine_worker(A, "e"))
    await registry.register(worker(B, "f"))
    opened = replica()
    await opened.snapshots.take_now()
    clock, routes = Clock(), set[str]()
    clock.now = (await vanished(registry, "gone")) + 1
    return Known(KnownModels(opened.snapshots, registry, lambda: routes, clock), registry, opened, clock, routes)


async def vanished(registry: Registry, *models: str, kind: str = "models_vanished") -> float:
    """Record an event. Return its time."""
    await registry.record_events([NewEvent(kind, {"models": json.dumps(models)})])
    return (await registry.list_events("", 1)).events[-1].time


async def test_model_is_known_for_twelve_hours(known: Known) -> None:
    known.models.observe()
    for name in (A, B):
        await known.registry.remove(name)
    await known.replica.snapshots.take_now()
    known.clock.now += 12 * HOURS - 1
    assert await known.models.has("e")
    assert not await known.models.has("never")
    known.clock.now += 2
    assert not await known.models.has("e")


async def test_protocols_are_known_separately(known: Known) -> None:
    assert [await known.models.has("e", protocol) for protocol in (Protocol.OPENAI, Protocol.FASTCHAT)] == [True, False]
    assert [await known.models.has("f", protocol) for protocol in (Protocol.OPENAI, Protocol.FASTCHAT)] == [False, True]


async def test_name_of_a_route_is_known_to_engines_only(known: Known) -> None:
    known.routes.add("alias")
    assert await known.models.has("alias")
    assert await known.models.has("alias", Protocol.OPENAI)
    assert not await known.models.has("alias", Protocol.FASTCHAT)


async def test_replica_reads_what_has_vanished_before_its_start(known: Known) -> None:
    assert await known.models.has("gone")
    known.clock.now += 12 * HOURS
    assert not await known.models.has("gone")


async def test_model_with_workers_of_fastchat_has_lost_its_engines(known: Known) -> None:
    await vanished(known.registry, "f")
    assert await known.models.has("f", Protocol.OPENAI)


async def test_model_that_has_appeared_again_has_lost_no_engines(known: Known) -> None:
    await vanished(known.registry, "f")
    await vanished(known.registry, "f", kind="models_appeared")
    assert not await known.models.has("f", Protocol.OPENAI)


@pytest.mark.parametrize("text", ["", "no JSON", "7", '{"a": 1}', '[7, null, "gone-too"]'])
async def test_event_of_another_form_is_left_out(known: Known, text: str) -> None:
    await known.registry.record_events([NewEvent("models_vanished", {"models": text})])
    assert await known.models.has("gone")
    assert await known.models.has("gone-too") == ("gone-too" in text)


async def test_events_that_cannot_be_read_are_read_later(known: Known, link: Link) -> None:
    link.cut = "before"
    assert not await known.models.has("gone")
    link.cut = None
    await wait_until(lambda: known.models.has("gone"), "Redis is back, and the events are read")
