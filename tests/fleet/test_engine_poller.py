"""The polls of engines: one replica polls each engine, which is alive while it is ready."""

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.fleet import engine_poller
from controller.store.entries import ListName
from controller.store.registry import Registry
from tests.fleet.engine_replicas import ADMIN, Starter, gauges, is_alive, models, only
from tests.support.engines import DISCONNECTS, HANGS, Answer, AnswerServer, answer_server
from tests.support.waiting import wait_until


async def test_engine_that_loads_its_model_serves_when_it_is_ready(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines()
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
    polling_engines: Starter,
    engine: AnswerServer,
    registry: Registry,
    path: str,
    answer: Answer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It does not wait for its expiration, which is an hour here."""
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    replica = polling_engines(engine_expiration=3600)
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
    polling_engines: Starter, engine: AnswerServer, registry: Registry, silence: Answer
) -> None:
    replica = polling_engines(engine_expiration=3600, probe_timeout=60.0 if silence is DISCONNECTS else 1.0)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers.clear()
    engine.default = silence

    async def is_failing() -> bool:
        known = await only(registry)
        return known is not None and known.failing == "polls"

    await wait_until(is_failing, "the engine is deprioritised")
    [listed] = await replica.engines.list()
    assert (listed.alive, bool(listed.problem)) == (True, True)


@pytest.mark.slow
async def test_dead_engine_is_out_after_the_expiration(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines(engine_expiration=1.0)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers.clear()
    engine.default = DISCONNECTS

    async def is_out() -> bool:
        return (await replica.dispatcher.list_models(protocol=Protocol.OPENAI)).value == []

    await wait_until(is_out, "the engine has expired")
    [listed] = await replica.engines.list()
    assert not listed.alive


async def test_models_and_load_follow_the_engine(
    polling_engines: Starter, engine: AnswerServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    replica = polling_engines()
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers |= {"/v1/models": models("n", "lora"), "/metrics": gauges(3, 2)}

    async def follows() -> bool:
        known = await only(registry)
        return known is not None and known.status.model_names == ("n", "lora") and known.reported == 5

    await wait_until(follows, "the registry has the new models and the load")
    known = await only(registry)
    assert known is not None
    assert (known.status.capacity, known.capacity_source) == (3, "learned"), "it was full with 3 running requests"


async def test_learned_capacity_stays_when_another_replica_polls_the_engine(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    first = polling_engines()
    await first.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers["/metrics"] = gauges(3, 2)

    async def learned() -> tuple[int | None, str] | None:
        known = await only(registry)
        return (known.status.capacity, known.capacity_source) if known and known.status.capacity else None

    assert await wait_until(learned, "the capacity is learned") == (3, "learned")
    engine.answers["/metrics"] = gauges(1, 0)
    second = polling_engines()
    await wait_until(lambda: second.snapshots.worker(engine.address), "the other replica has a snapshot")
    await polling_engines.stop(first)
    await wait_until(lambda: second.engine_poller.time_left(engine.address), "the other replica polls the engine")
    seen = len(engine.requests)
    await wait_until(lambda: engine.requests[seen:].count("/metrics") >= 5, "it has polled the engine several times")
    assert await learned() == (3, "learned")
    await second.engine_poller.refresh()
    assert await learned() == (3, "learned")


async def test_hung_engines_do_not_delay_the_polls_of_live_ones(
    polling_engines: Starter, engine: AnswerServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that has just started does not know yet which engines hang."""
    monkeypatch.setattr(engine_poller, "_MAX_OTHER_POLLS", 1)
    first = polling_engines()
    await first.engines.register(engine.address, EngineEntry(), ADMIN)
    async with answer_server({}, HANGS) as hung:
        for number in range(20):
            entry = EngineEntry("vllm").encode()
            await registry.set_entry(ListName.ENGINES, f"{hung.address}/{number}", entry, limit=100)
        second = polling_engines()
        await polling_engines.stop(first)
        await wait_until(lambda: len(second.engine_poller._watches) == 21, "the new replica polls all engines")
        seen = len(engine.requests)
        await wait_until(lambda: engine.requests[seen:].count("/metrics") >= 5, "the live engine is polled again")
        assert await is_alive(registry)


async def test_unknown_load_is_not_zero(polling_engines: Starter, engine: AnswerServer, registry: Registry) -> None:
    """The requests that were dispatched stay booked, because nothing says that they have ended."""
    replica = polling_engines()
    engine.answers["/metrics"] = gauges(4, 0)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    engine.answers["/metrics"] = Answer(b"vllm:other 1\n")
    seen = len(engine.requests)
    await wait_until(lambda: engine.requests[seen:].count("/metrics") >= 3, "the engine was polled")
    known = await only(registry)
    assert known is not None
    assert known.reported == 4


async def test_each_engine_is_polled_by_one_replica(polling_engines: Starter, engine: AnswerServer) -> None:
    replicas = [polling_engines() for _ in range(3)]
    await replicas[0].engines.register(engine.address, EngineEntry(), ADMIN)

    def polled_by() -> list[int]:
        return [len(replica.engine_poller._watches) for replica in replicas]

    await wait_until(lambda: sorted(polled_by()) == [0, 0, 1], "one replica polls the engine")
    leaving = replicas.pop(polled_by().index(1))
    await polling_engines.stop(leaving)
    await wait_until(lambda: sorted(polled_by()) == [0, 1], "another replica polls the engine")


async def test_refresh_asks_engines_in_their_own_way_and_removes_none(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines(engine_poll_interval=3600, engine_expiration=7200)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    await wait_until(lambda: replica.snapshots.worker(engine.address), "a snapshot has the engine")
    engine.answers["/v1/models"] = models("other")
    await replica.refresher.refresh()

    async def is_updated() -> bool:
        known = await only(registry)
        return known is not None and known.status.model_names == ("other",)

    await wait_until(is_updated, "the models are updated")
    engine.default = Answer(b"", 404)
    assert "/worker_get_status" not in engine.requests
    await replica.refresher.refresh()
    assert await is_alive(registry)
