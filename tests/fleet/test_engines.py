"""Engines: registered once, polled by one replica each, alive while they are ready."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import Forbidden, TooManyWorkers, WorkerUnreachable
from controller.domain.worker import Worker
from controller.fleet import engine_poller
from controller.replica import Replica
from controller.security.access import Caller
from controller.security.tokens import Plane, token_of
from controller.store.entries import ENGINES
from controller.store.registry import Registry
from controller.tasks import end
from tests.conftest import Open
from tests.support.engines import DISCONNECTS, HANGS, Answer, AnswerServer, answer_server
from tests.support.samples import worker
from tests.support.waiting import wait_until

ADMIN = Caller(Plane.ADMIN, "127.0.0.1")


def models(*names: str, owner: str = "vllm") -> Answer:
    data = [{"id": name, "object": "model", "owned_by": owner, "max_model_len": 4096} for name in names]
    return Answer(json.dumps({"object": "list", "data": data}).encode())


def gauges(running: int, waiting: int) -> Answer:
    return Answer(f"vllm:num_requests_running {running}\nvllm:num_requests_waiting {waiting}\n".encode())


@pytest.fixture
async def engine() -> AsyncIterator[AnswerServer]:
    """Return a server that answers as vLLM does."""
    answers = {"/v1/models": models("m", "n"), "/health": Answer(), "/metrics": gauges(0, 0)}
    async with answer_server(answers) as server:
        yield server


class Starter:
    """Opens replicas that take snapshots and poll engines."""

    def __init__(self, replica: Open) -> None:
        self._replica = replica
        self.tasks: dict[Replica, list[asyncio.Task[None]]] = {}

    def __call__(self, **settings: object) -> Replica:
        quick = {"engine_poll_interval": 0.05, "snapshot_interval": 0.05}
        opened = self._replica(**{**quick, **settings})
        loops = (opened.snapshots.run, opened.replicas.run, opened.engine_poller.run, opened.events.run_recording)
        self.tasks[opened] = [asyncio.create_task(loop()) for loop in loops]
        return opened

    async def stop(self, replica: Replica) -> None:
        await end(self.tasks.pop(replica))
        await replica.replicas.close()


@pytest.fixture
async def polling(replica: Open, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Starter]:
    """Return a function that opens replicas which take snapshots and poll engines."""
    monkeypatch.setattr(engine_poller, "_LOOK_INTERVAL", 0.02)
    starter = Starter(replica)
    yield starter
    for each in list(starter.tasks):
        await starter.stop(each)


async def only(registry: Registry) -> Worker | None:
    workers = (await registry.list_workers()).workers
    assert len(workers) <= 1
    return workers[0] if workers else None


async def is_alive(registry: Registry) -> bool:
    return await only(registry) is not None


async def test_registered_engine_serves_at_once_by_its_own_protocol(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling()
    state = await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert (state.kind, state.alive, state.models, state.problem) == ("vllm", True, ("m", "n"), "")
    chosen = await replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    assert chosen.value.address == engine.address
    assert (await replica.dispatcher.dispatch("m")).value == "", "FastChat's clients would not understand it"
    known = await only(registry)
    assert known is not None
    assert known.engine is not None
    assert (known.engine.kind, known.engine.max_lengths) == ("vllm", {"m": 4096, "n": 4096})


async def test_engine_that_does_not_respond_is_not_registered(polling: Starter, engine: AnswerServer) -> None:
    replica = polling()
    engine.default = DISCONNECTS
    engine.answers.clear()
    with pytest.raises(WorkerUnreachable):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    with pytest.raises(WorkerUnreachable):
        await replica.engines.register(engine.address, EngineEntry("vllm"), ADMIN)
    assert await replica.engines.list() == []


async def test_server_without_models_is_no_engine(polling: Starter, engine: AnswerServer) -> None:
    replica = polling()
    engine.answers.clear()
    with pytest.raises(WorkerUnreachable, match=r"is no engine that can be used: /v1/models returned status 404"):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert await replica.engines.list() == []


async def test_only_admins_read_what_another_host_answered(
    polling: Starter, engine: AnswerServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise, a worker token could be used to read from hosts that only the controller reaches."""
    replica = polling()
    engine.answers = {"/v1/models": Answer(b'{"error": "the password is tulip"}', 404)}
    with pytest.raises(WorkerUnreachable, match="tulip"):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    holder = Caller(Plane.WORKER, "127.0.0.1", token_of("t", Plane.WORKER, "s" * 32, [], []))
    with pytest.raises(WorkerUnreachable) as raised:
        await replica.engines.register(engine.address, EngineEntry(), holder)
    assert "tulip" not in str(raised.value)
    assert "tulip" in caplog.text
    state = await replica.engines.register(engine.address, EngineEntry("vllm"), holder)
    assert (state.alive, state.problem) == (False, "it is not ready")


async def test_engine_that_loads_its_model_serves_when_it_is_ready(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling()
    engine.answers["/health"] = Answer(b"loading", 503)
    state = await replica.engines.register(engine.address, EngineEntry("vllm"), ADMIN)
    assert not state.alive
    assert "/health returned status 503" in state.problem
    [listed] = await replica.engines.list()
    assert (listed.alive, "/health returned status 503" in listed.problem) == (False, True)
    engine.answers["/health"] = Answer()
    await wait_until(lambda: is_alive(registry), "the engine is registered")


@pytest.mark.parametrize(
    ("path", "answer"),
    [
        ("/health", Answer(b"", 503)),
        ("/v1/models", models()),
        ("/is_sleeping", Answer(b'{"is_sleeping": true}')),
    ],
)
async def test_engine_that_is_not_ready_is_out_at_once_and_comes_back(
    polling: Starter,
    engine: AnswerServer,
    registry: Registry,
    path: str,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not wait for its expiration, which is an hour here."""
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    replica = polling(engine_expiration=3600)
    engine.answers["/is_sleeping"] = Answer(b'{"is_sleeping": false}')
    before = dict(engine.answers)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers[path] = answer

    async def is_out() -> bool:
        return not await is_alive(registry)

    await wait_until(is_out, "the engine is out")
    engine.answers.update(before)
    await wait_until(lambda: is_alive(registry), "the engine is back")


@pytest.mark.parametrize("silence", [DISCONNECTS, HANGS])
async def test_silent_engine_is_deprioritised_and_expires(
    polling: Starter, engine: AnswerServer, registry: Registry, silence: Answer
) -> None:
    replica = polling(engine_expiration=3600, probe_timeout=60.0 if silence is DISCONNECTS else 1.0)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers.clear()
    engine.default = silence

    async def is_failing() -> bool:
        known = await only(registry)
        return known is not None and known.failing == "polls"

    await wait_until(is_failing, "the engine is deprioritised")
    [listed] = await replica.engines.list()
    assert (listed.alive, bool(listed.problem)) == (True, True)


async def test_dead_engine_is_out_after_the_expiration(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling(engine_expiration=1.0)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers.clear()
    engine.default = DISCONNECTS

    async def is_out() -> bool:
        return (await replica.dispatcher.list_models(protocol=Protocol.OPENAI)).value == []

    await wait_until(is_out, "the engine has expired")
    [listed] = await replica.engines.list()
    assert not listed.alive


async def test_models_and_load_follow_the_engine(
    polling: Starter, engine: AnswerServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    replica = polling()
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers |= {"/v1/models": models("n", "lora"), "/metrics": gauges(3, 2)}

    async def follows() -> bool:
        known = await only(registry)
        return known is not None and known.status.model_names == ("n", "lora") and known.reported == 5

    await wait_until(follows, "the registry has the new models and the load")
    known = await only(registry)
    assert known is not None
    assert (known.status.capacity, known.capacity_source) == (3, "learned"), "it was full with 3 running requests"


async def test_hung_engines_do_not_delay_the_polls_of_live_ones(
    polling: Starter, engine: AnswerServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that has just started does not know yet which engines hang."""
    monkeypatch.setattr(engine_poller, "_MAX_OTHER_POLLS", 1)
    first = polling()
    await first.engines.register(engine.address, EngineEntry(), ADMIN)
    async with answer_server({}, HANGS) as hung:
        for number in range(20):
            entry = EngineEntry("vllm").encode()
            await registry.set_entry(ENGINES, f"{hung.address}/{number}", entry, limit=100)
        second = polling()
        await polling.stop(first)
        await wait_until(lambda: len(second.engine_poller._watches) == 21, "the new replica polls all engines")
        seen = len(engine.requests)
        await wait_until(lambda: engine.requests[seen:].count("/metrics") >= 5, "the live engine is polled again")
        assert await is_alive(registry)


async def test_unknown_load_is_not_zero(polling: Starter, engine: AnswerServer, registry: Registry) -> None:
    """The requests that were dispatched stay booked, because nothing says that they have ended."""
    replica = polling()
    engine.answers["/metrics"] = gauges(4, 0)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers["/metrics"] = Answer(b"vllm:other 1\n")
    seen = len(engine.requests)
    await wait_until(lambda: engine.requests[seen:].count("/metrics") >= 3, "the engine was polled")
    known = await only(registry)
    assert known is not None
    assert known.reported == 4


async def test_public_names(polling: Starter, engine: AnswerServer, registry: Registry) -> None:
    replica = polling()
    await replica.engines.register(engine.address, EngineEntry(names={"m": "public"}, key="secret"), ADMIN)
    known = await only(registry)
    assert known is not None
    assert known.engine is not None
    assert known.status.model_names == ("public",)
    assert known.engine.aliases == {"public": "m"}
    assert b"Bearer secret" in engine.heads[-1]
    await replica.engines.register(engine.address, EngineEntry(names={"n": "n"}), ADMIN)
    known = await only(registry)
    assert known is not None
    assert known.engine is not None
    assert (known.status.model_names, known.engine.aliases, known.engine.key) == (("n",), {}, "")


async def test_requests_stay_booked_when_an_engine_is_registered_again(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling()
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    lease = (await replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    await replica.engines.register(engine.address, EngineEntry(speed=2), ADMIN)
    known = await only(registry)
    assert known is not None
    assert (known.status.speed, known.leased) == (2, 1)
    assert await replica.dispatcher.release(lease)


async def test_removed_engine_is_polled_no_more(polling: Starter, engine: AnswerServer, registry: Registry) -> None:
    replica = polling()
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert await replica.engines.remove(engine.address)
    assert await replica.membership.remove(engine.address, caller=ADMIN)
    assert not await replica.engines.remove(engine.address)
    await wait_until(lambda: not replica.engine_poller._watches, "the polls have ended")
    seen = len(engine.requests)
    await replica.engine_poller.refresh()
    assert len(engine.requests) == seen
    assert not await is_alive(registry)


async def test_drained_engine_drains_also_after_its_restart(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling(engine_expiration=3600)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    await replica.membership.drain(engine.address, caller=ADMIN)
    healthy = engine.answers["/health"]
    engine.answers["/health"] = Answer(b"", 503)

    async def is_out() -> bool:
        return not await is_alive(registry)

    await wait_until(is_out, "the engine is out")
    engine.answers["/health"] = healthy
    await wait_until(lambda: is_alive(registry), "the engine is back")
    known = await only(registry)
    assert known is not None
    assert known.draining


async def test_each_engine_is_polled_by_one_replica(polling: Starter, engine: AnswerServer) -> None:
    replicas = [polling() for _ in range(3)]
    await replicas[0].engines.register(engine.address, EngineEntry(), ADMIN)

    def polled_by() -> list[int]:
        return [len(replica.engine_poller._watches) for replica in replicas]

    await wait_until(lambda: sorted(polled_by()) == [0, 0, 1], "one replica polls the engine")
    leaving = replicas.pop(polled_by().index(1))
    await polling.stop(leaving)
    await wait_until(lambda: sorted(polled_by()) == [0, 1], "another replica polls the engine")


async def test_refresh_asks_engines_in_their_own_way_and_removes_none(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling(engine_poll_interval=3600, engine_expiration=7200)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    await wait_until(lambda: replica.snapshots.worker(engine.address), "a snapshot has the engine")
    engine.answers["/v1/models"] = models("other")
    await replica.refresher.refresh()

    async def is_updated() -> bool:
        known = await only(registry)
        return known is not None and known.status.model_names == ("other",)

    await wait_until(is_updated, "the models are updated")
    engine.default = NOT_AN_ENGINE
    assert "/worker_get_status" not in engine.requests
    await replica.refresher.refresh()
    assert await is_alive(registry)


NOT_AN_ENGINE = Answer(b"", 404)


async def test_engines_are_restored_if_redis_loses_its_data(
    polling: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling()
    await replica.engines.register(engine.address, EngineEntry(key="k"), ADMIN)
    await wait_until(lambda: replica.engine_poller._watches, "the replica polls the engine")
    await registry._client.flushall()

    async def is_restored() -> bool:
        listed = await registry.list_entries(ENGINES)
        return listed is not None and engine.address in listed.entries and await is_alive(registry)

    await wait_until(is_restored, "the engine is registered again")


async def test_token_binds_an_engine_to_its_names_and_models(
    polling: Starter, engine: AnswerServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    replica = polling()
    elsewhere = Caller(Plane.WORKER, "127.0.0.1", token_of("t", Plane.WORKER, "s" * 32, ["127.0.0.2"], []))
    with pytest.raises(Forbidden):
        await replica.engines.register(engine.address, EngineEntry(), elsewhere)
    only_m = Caller(Plane.WORKER, "127.0.0.1", token_of("t", Plane.WORKER, "s" * 32, [], ["m"]))
    with pytest.raises(Forbidden):
        await replica.engines.register(engine.address, EngineEntry(), only_m)
    assert await replica.engines.list() == []
    await replica.engines.register(engine.address, EngineEntry(names={"n": "m"}), only_m)
    await replica.engines.register(engine.address, EngineEntry(names={"m": "m"}), only_m)
    engine.answers["/v1/models"] = models("m")
    await replica.engines.register(engine.address, EngineEntry(), only_m)
    engine.answers["/v1/models"] = models("m", "forbidden")
    seen = len(engine.requests)
    await wait_until(lambda: engine.requests[seen:].count("/v1/models") >= 3, "the models were read")
    known = await only(registry)
    assert known is not None
    assert known.status.model_names == ("m",)


async def test_limit_of_workers_holds_for_engines(polling: Starter, engine: AnswerServer, registry: Registry) -> None:
    replica = polling(max_workers=1)
    replica.registry._max_workers = 1
    await registry.register(worker("http://127.0.0.1:1"))
    with pytest.raises(TooManyWorkers):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert await replica.engines.list() == []


async def test_unreadable_entry_is_left_out(
    polling: Starter, engine: AnswerServer, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    replica = polling()
    await registry.set_entry(ENGINES, "http://127.0.0.1:1", '{"kind": 5}', limit=10)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert [state.name for state in await replica.engines.list()] == [engine.address]
    assert "cannot be polled, because its entry is wrong: engine: must be one of" in caplog.text
