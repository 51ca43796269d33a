"""The agent of an engine: what it reports to a controller, and when it takes the engine out."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping
from functools import partial
from typing import Any

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import ControllerError, ControllerRefused, ControllerUnreachable, Forbidden
from controller.domain.worker import Worker
from controller.fleet.agent import Agent, End
from controller.replica import Replica
from controller.security.access import Caller
from controller.security.tokens import Plane, token_of
from controller.store.entries import ENGINES
from controller.store.registry import Registry
from controller.tasks import end
from controller.upstream.client import WorkerClient
from controller.web.routes import admin, worker
from tests.conftest import Open
from tests.fleet.engine_replicas import ADMIN, gauges, models, only
from tests.support.engines import DISCONNECTS, HANGS, Answer, AnswerServer
from tests.support.waiting import wait_until

NAME = "http://127.0.0.1:8000"


class InProcess:
    """Stands for Controllers: calls the routes of a replica."""

    def __init__(self, replica: Replica, caller: Caller = ADMIN) -> None:
        self.is_away = False
        self.calls: list[str] = []
        services = replica.services
        self._routes: dict[str, Callable[[bytes], Any]] = {
            "/register_engine": lambda body: worker.register_engine(services, body, "", caller),
            "/receive_heart_beat": lambda body: worker.receive_heart_beat(services, body, caller),
            "/drain_worker": lambda body: admin.drain_worker(services, body, caller),
            "/remove_worker": lambda body: admin.remove_worker(services, body, caller),
        }

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        self.calls.append(path)
        if self.is_away:
            raise ControllerUnreachable("it is away")
        try:
            return json.loads((await self._routes[path](json.dumps(body).encode())).body)
        except Forbidden as error:
            raise ControllerRefused(str(error)) from error
        except ControllerError as error:
            raise ControllerUnreachable(str(error)) from error


class Fleet:
    """A replica that takes snapshots, and agents that represent the engine at it."""

    def __init__(self, replica: Replica, engine: AnswerServer) -> None:
        self.replica = replica
        self.client = WorkerClient(1.0, 60.0)
        self.tasks = [asyncio.create_task(replica.snapshots.run())]
        self._engine = engine

    def start(
        self, entry: EngineEntry | None = None, deadline: float = 3600, caller: Caller = ADMIN
    ) -> tuple[Agent, InProcess, "asyncio.Task[End]"]:
        link = InProcess(self.replica, caller)
        address = self._engine.address
        agent = Agent(self.client, link, address, NAME, entry or EngineEntry(), 0.05, deadline)  # type: ignore[arg-type]
        running = asyncio.create_task(agent.run())
        self.tasks.append(running)  # type: ignore[arg-type]
        return agent, link, running


@pytest.fixture
async def fleet(replica: Open, engine: AnswerServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """The engines of the replica expire after an hour."""
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    opened = Fleet(replica(snapshot_interval=0.05, engine_expiration=3600), engine)
    yield opened
    await end(opened.tasks)
    await opened.client.close()


async def found(registry: Registry, test: Callable[[Worker], bool] = lambda _: True) -> bool:
    known = await only(registry)
    return known is not None and test(known)


async def is_gone(registry: Registry) -> bool:
    return await only(registry) is None


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
    assert (await registry.list_entries(ENGINES)) is None, "the replicas do not poll it"


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


async def test_stop_drains_and_ends_when_the_last_request_has(
    fleet: Fleet, engine: AnswerServer, registry: Registry
) -> None:
    agent, link, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    lease = (await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    agent.stop()
    await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
    drains = link.calls.count("/drain_worker")
    await wait_until(lambda: link.calls.count("/drain_worker") > drains + 3, "the agent waits")
    assert not running.done()
    assert await fleet.replica.dispatcher.release(lease)
    engine.answers["/metrics"] = gauges(1, 0)
    drains = link.calls.count("/drain_worker")
    await wait_until(lambda: found(registry, lambda known: known.reported == 1), "a foreign request runs")
    engine.answers["/metrics"] = gauges(0, 0)
    assert await running is End.IDLE
    assert await is_gone(registry)
    fleet.start()
    await wait_until(lambda: found(registry, lambda known: not known.draining), "it serves when it is started again")


@pytest.mark.parametrize("operator", ["", "before", "after"])
async def test_drain_of_an_agent_that_was_killed_ends_when_it_is_started_again(
    fleet: Fleet, registry: Registry, operator: str
) -> None:
    """But not that of an operator, who may have drained the engine before the agent did, or after."""
    agent, _, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    if operator == "before":
        await fleet.replica.membership.drain(NAME, caller=ADMIN, reason="new driver")
    agent.stop()
    await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
    if operator == "after":
        await fleet.replica.membership.drain(NAME, caller=ADMIN, reason="new driver")
    await end([running])
    _, link, _ = fleet.start()
    await wait_until(lambda: link.calls.count("/receive_heart_beat") > 1, "the new agent has registered it")
    known = await only(registry)
    assert known is not None
    assert known.draining is bool(operator)


async def test_drain_of_an_agent_ends_also_if_the_engine_has_expired_meanwhile(
    fleet: Fleet, registry: Registry
) -> None:
    agent, _, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    agent.stop()
    await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
    await end([running])
    known = await only(registry)
    assert known is not None
    await registry.refresh(known.as_registered(), known.registration, expires_in=0.001)
    await wait_until(lambda: is_gone(registry), "it has expired")
    await registry.sweep(0.001)
    fleet.start()
    await wait_until(lambda: found(registry, lambda known: not known.draining), "it serves")


@pytest.mark.parametrize("how", ["deadline", "second signal", "controller is away"])
async def test_agent_of_a_busy_engine_ends_at_the_deadline_or_the_second_signal(
    fleet: Fleet, engine: AnswerServer, registry: Registry, how: str
) -> None:
    engine.answers["/metrics"] = gauges(1, 0)
    agent, link, running = fleet.start(deadline=3600 if how == "second signal" else 0.2)
    await wait_until(lambda: found(registry), "the engine is registered")
    link.is_away = how == "controller is away"
    agent.stop()
    if how == "second signal":
        await wait_until(lambda: found(registry, lambda known: known.draining), "the engine drains")
        agent.stop()
    assert await running is End.BUSY
    assert await is_gone(registry) == (how != "controller is away")


async def test_agent_of_an_idle_engine_ends_if_no_controller_responds_for_the_expiration(
    fleet: Fleet,
    engine: AnswerServer,
    registry: Registry,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("controller.fleet.agent._CUT_OFF_AFTER", 0.2)
    agent, link, running = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    engine.answers["/metrics"] = gauges(1, 0)
    link.is_away = True
    agent.stop()
    calls = len(link.calls)
    await wait_until(lambda: len(link.calls) > calls + 20, "it waits for the request that runs")
    assert not running.done()
    engine.answers["/metrics"] = gauges(0, 0)
    assert await running is End.IDLE
    errors = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(errors) <= len(set(link.calls[calls:])), "one for each path"


async def test_each_path_that_fails_is_logged_once_and_when_it_works_again(
    fleet: Fleet, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    agent, link, _ = fleet.start()
    await wait_until(lambda: found(registry), "the engine is registered")
    lease = (await fleet.replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    link.is_away = True
    agent.stop()
    seen = len(link.calls)
    await wait_until(lambda: link.calls[seen:].count("/drain_worker") > 3, "calls to two paths fail alternately")
    assert caplog.text.count("No controller has accepted the call") == 2
    link.is_away = False
    await wait_until(lambda: found(registry, lambda known: known.draining), "the controller is back")
    await wait_until(lambda: "accepts calls again. The path is /drain_worker." in caplog.text, "it is logged")
    assert caplog.text.count("accepts calls again. The path is /receive_heart_beat.") == 1
    assert await fleet.replica.dispatcher.release(lease)


async def test_agent_of_an_engine_that_was_never_ready_ends_at_once(fleet: Fleet, engine: AnswerServer) -> None:
    engine.answers["/health"] = Answer(b"", 503)
    agent, link, running = fleet.start()
    await wait_until(lambda: engine.requests.count("/health") > 2, "the engine is polled")
    agent.stop()
    assert await running is End.IDLE
    assert link.calls == []


@pytest.mark.slow
async def test_a_token_that_may_not_drain_takes_the_engine_out(
    fleet: Fleet, engine: AnswerServer, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    unbound = Caller(Plane.WORKER, "127.0.0.1", token_of("t", Plane.WORKER, "s" * 32, (), ()))
    agent, _, running = fleet.start(caller=unbound)
    await wait_until(lambda: found(registry), "the engine is registered")
    engine.answers["/metrics"] = gauges(1, 0)
    await wait_until(lambda: found(registry, lambda known: known.reported == 1), "a request runs")
    agent.stop()
    await wait_until(lambda: is_gone(registry), "it is out")
    assert not running.done(), "a request still runs"
    engine.answers["/metrics"] = gauges(0, 0)
    assert await running is End.IDLE
    assert "or a worker token that is bound to this worker by a pattern" in caplog.text


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
    await registry.set_entry(ENGINES, NAME, EngineEntry("vllm").encode(), limit=10)
    fleet.start()

    async def is_removed() -> bool:
        listed = await registry.list_entries(ENGINES)
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
