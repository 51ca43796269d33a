"""The agent of an engine: what it reports to a controller, and when it takes the engine out."""

import json
from functools import partial
from typing import Any

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import ControllerUnreachable
from controller.fleet.agent import End
from controller.security.access import Caller
from controller.security.tokens import Plane, token_of
from controller.store.entries import ListName
from controller.store.registry import Registry
from tests.fleet.agents import NAME, Fleet, InProcess, found, is_gone
from tests.fleet.engine_replicas import ADMIN, gauges, models, only
from tests.support.engines import DISCONNECTS, HANGS, Answer, AnswerServer
from tests.support.waiting import wait_until


async def test_engine_is_registered_with_all_that_it_says(
    fleet: Fleet, engine: AnswerServer, registry: Registry
) -> None:
    engine.answers["/metrics"] = gauges(3, 2)
    fleet.start(EngineEntry(names={"m": "public"}, key="secret", speed=2, capacity=7))
    await wait_until(
        lambda: found(registry, lambda known: known.reported == 5 and known.polled), "it reports its queue"
    )
    known = await only(registry)
    assert known is not None
    assert known.engine is not None
    assert (known.name, known.status.model_names, known.status.speed, known.status.capacity) == (
        NAME,
        ("public",),
        2,
        7,
    )
    assert (known.engine.kind, known.engine.aliases, known.engine.key, known.engine.max_lengths) == (
        "vllm",
        {"public": "m"},
        "secret",
        {"public": 4096},
    )
    assert (known.check_heart_beat, known.polled, known.expires_in is not None) == (True, True, True)
    assert (await registry.list_entries(ListName.ENGINES)) is None, "the replicas do not poll it"


async def test_changes_are_registered_and_leases_stay(fleet: Fleet, engine: AnswerServer, registry: Registry) -> None:
    _, link, _ = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    engine.answers |= {"/v1/models": models("m", "lora"), "/metrics": gauges(4, 1)}
    await wait_until(
        lambda: found(registry, lambda known: known.status.model_names == ("m", "lora") and known.leased == 1),
        "the new model is served",
    )
    known = await only(registry)
    assert known is not None
    assert (known.status.capacity, known.capacity_source) == (4, "learned")
    registrations = link.calls.count("/register_engine")
    beats = link.calls.count("/receive_heart_beat")
    await wait_until(lambda: link.calls.count("/receive_heart_beat") > beats + 5, "heartbeats are sent")
    assert link.calls.count("/register_engine") == registrations, "nothing has changed"


async def test_unknown_load_is_not_zero(fleet: Fleet, engine: AnswerServer, registry: Registry) -> None:
    engine.answers["/metrics"] = gauges(4, 0)
    _, link, _ = fleet.start()
    await wait_until(lambda: found(registry, lambda known: known.reported == 4), "the engine reports its queue")
    engine.answers["/metrics"] = Answer(b"vllm:other 1\n")
    beats = link.calls.count("/receive_heart_beat")
    await wait_until(lambda: link.calls.count("/receive_heart_beat") > beats + 5, "heartbeats are sent")
    assert await found(registry, lambda known: known.reported == 4)


@pytest.mark.parametrize(
    "broken",
    [{"/health": Answer(b"", 503)}, {"/v1/models": models()}, {"/v1/models": DISCONNECTS, "/health": DISCONNECTS}],
)
async def test_engine_that_is_not_ready_or_dead_is_out_at_once_and_still_drains_when_it_is_back(
    fleet: Fleet, engine: AnswerServer, registry: Registry, broken: dict[str, Answer]
) -> None:
    fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await fleet.replica.membership.drain(NAME, caller=ADMIN)
    before = dict(engine.answers)
    engine.answers |= broken
    if DISCONNECTS in broken.values():
        engine.answers.clear()
        engine.default = DISCONNECTS
    await wait_until(lambda: is_gone(registry), "the engine is out")
    engine.answers |= before
    await wait_until(lambda: found(registry, lambda known: known.draining), "it is back, and drains as before")


async def test_engine_that_is_too_busy_to_respond_gets_no_heartbeats_but_stays(
    fleet: Fleet, engine: AnswerServer, registry: Registry
) -> None:
    _, link, _ = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    engine.answers.clear()
    engine.default = HANGS
    seen = len(engine.requests)
    await wait_until(lambda: len(engine.requests) > seen + 4, "several polls had no response")
    beats, asked = link.calls.count("/receive_heart_beat"), len(engine.requests)
    await wait_until(lambda: len(engine.requests) > asked, "it is still polled")
    assert link.calls.count("/receive_heart_beat") == beats
    assert await found(registry), "it expires after --engine-expiration"


async def test_only_the_token_that_registered_an_engine_reports_its_problems(fleet: Fleet, registry: Registry) -> None:
    fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    other = Caller(Plane.WORKER, "127.0.0.1", token_of("t", Plane.WORKER, "s" * 32, (), ()))
    body = {"worker_name": NAME, "engine": "vllm", "models": {"m": "m"}, "status": {"problem": "no"}}
    answer = await InProcess(fleet.replica, other).post("/register_engine", body)
    assert answer["problem"] == "no"
    assert await found(registry)


async def test_an_engine_that_was_polled_is_polled_no_more(
    fleet: Fleet, engine: AnswerServer, registry: Registry
) -> None:
    await registry.set_entry(ListName.ENGINES, NAME, EngineEntry("vllm").encode(), limit=10)
    fleet.start()

    async def is_removed() -> bool:
        listed = await registry.list_entries(ListName.ENGINES)
        return listed is not None and not listed.entries

    await wait_until(is_removed, "the entry is removed")
    assert await found(registry)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"engine": "auto"}, "engine: and models are needed"),
        ({"models": {}}, "engine: and models are needed"),
        ({"status": {"queue_length": -1}}, "queue_length: must be a number"),
        ({"status": {"age": -1}}, "status.age: must be a number of seconds"),
        ({"status": {"age": 1e9}}, "status.age: must be a number of seconds"),
        ({"status": {"max_lengths": {"other": 5}}}, "status.max_lengths: has a model that is not in models"),
        ({"status": {"max_lengths": {"m": 0}}}, "status.max_lengths: must have numbers of tokens"),
        ({"status": {"problem": "x" * 501}}, "status.problem: must have at most 500"),
        ({"status": []}, "Expected `object | null`"),
    ],
)
async def test_wrong_registrations_are_refused(
    fleet: Fleet, registry: Registry, change: dict[str, Any], problem: str
) -> None:
    body = {"worker_name": NAME, "engine": "vllm", "models": {"m": "m"}, "status": {}, **change}
    with pytest.raises(ControllerUnreachable, match=problem):
        await InProcess(fleet.replica).post("/register_engine", body)
    assert await is_gone(registry)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"queue_length": None}, "queue_length: is null"),
        ({"engine_age": -1}, "engine_age: must be a number of seconds"),
        ({"engine_age": float("nan")}, "engine_age: must be a number of seconds"),
        ({"engine_age": "1"}, "Expected `int | float | null`"),
    ],
)
async def test_wrong_heartbeats_are_refused(fleet: Fleet, change: dict[str, Any], problem: str) -> None:
    post = partial(InProcess(fleet.replica).post, "/receive_heart_beat")
    assert await post({"worker_name": NAME, "queue_length": None, "engine_age": 1}) == {"exist": False}
    with pytest.raises(ControllerUnreachable, match=problem.replace("|", r"\|")):
        await post({"worker_name": NAME, "queue_length": 0, **change})


async def test_a_controller_gets_no_agent(
    fleet: Fleet, engine: AnswerServer, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    model = {"id": "m", "object": "model", "owned_by": "controller-cluster", "hops": "a,b"}
    engine.answers = {"/v1/models": Answer(json.dumps({"object": "list", "data": [model]}).encode())}
    agent, link, running = fleet.start()
    await wait_until(lambda: "it is a controller, which needs no agent" in caplog.text, "the agent has said so")
    agent.stop()
    assert await running is End.IDLE
    assert link.calls == []
