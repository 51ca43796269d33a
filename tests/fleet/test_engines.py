"""The operations on engines: they are registered, listed, drained and removed, within the limits of a token."""

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import Forbidden, TooManyWorkers, WorkerUnreachable
from controller.security.access import Caller
from controller.security.tokens import Plane, token_of
from controller.store.entries import ListName
from controller.store.registry import Registry
from tests.fleet.engine_replicas import ADMIN, Starter, is_alive, models, only
from tests.support.engines import DISCONNECTS, Answer, AnswerServer
from tests.support.samples import worker
from tests.support.waiting import wait_until


async def test_registered_engine_serves_at_once_by_its_own_protocol(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines()
    state = await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert (state.kind, state.alive, state.models, state.problem) == ("vllm", True, ("m", "n"), "")
    chosen = await replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)
    assert chosen.value.address == engine.address
    assert (await replica.dispatcher.dispatch("m")).value == "", "FastChat's clients would not understand it"
    known = await only(registry)
    assert known is not None
    assert known.engine is not None
    assert (known.engine.kind, known.engine.max_lengths) == ("vllm", {"m": 4096, "n": 4096})


async def test_engine_that_does_not_respond_is_not_registered(polling_engines: Starter, engine: AnswerServer) -> None:
    replica = polling_engines()
    engine.default = DISCONNECTS
    engine.answers.clear()
    with pytest.raises(WorkerUnreachable):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    with pytest.raises(WorkerUnreachable):
        await replica.engines.register(engine.address, EngineEntry("vllm"), ADMIN)
    assert await replica.engines.list() == []


async def test_server_without_models_is_no_engine(polling_engines: Starter, engine: AnswerServer) -> None:
    replica = polling_engines()
    engine.answers.clear()
    with pytest.raises(WorkerUnreachable, match=r"does not answer as an engine: /v1/models returned status 404"):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert await replica.engines.list() == []


async def test_only_admins_read_what_another_host_answered(
    polling_engines: Starter, engine: AnswerServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Otherwise, a worker token could be used to read from hosts that only the controller reaches."""
    replica = polling_engines()
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


async def test_public_names(polling_engines: Starter, engine: AnswerServer, registry: Registry) -> None:
    replica = polling_engines()
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
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines()
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    lease = (await replica.dispatcher.dispatch_with_lease("m", protocol=Protocol.OPENAI)).value.lease
    await replica.engines.register(engine.address, EngineEntry(speed=2), ADMIN)
    known = await only(registry)
    assert known is not None
    assert (known.status.speed, known.leased) == (2, 1)
    assert await replica.dispatcher.release(lease)


async def test_removed_engine_is_polled_no_more(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines()
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
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines(engine_expiration=3600)
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


NOT_AN_ENGINE = Answer(b"", 404)


async def test_engines_are_restored_if_redis_loses_its_data(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines()
    await replica.engines.register(engine.address, EngineEntry(key="k"), ADMIN)
    await wait_until(lambda: replica.engine_poller._watches, "the replica polls the engine")
    await registry._client.flushall()

    async def is_restored() -> bool:
        listed = await registry.list_entries(ListName.ENGINES)
        return listed is not None and engine.address in listed.entries and await is_alive(registry)

    await wait_until(is_restored, "the engine is registered again")


async def test_token_binds_an_engine_to_its_names_and_models(
    polling_engines: Starter, engine: AnswerServer, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    replica = polling_engines()
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


async def test_limit_of_workers_holds_for_engines(
    polling_engines: Starter, engine: AnswerServer, registry: Registry
) -> None:
    replica = polling_engines(max_workers=1)
    replica.registry._max_workers = 1
    await registry.register(worker("http://127.0.0.1:1"))
    with pytest.raises(TooManyWorkers):
        await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert await replica.engines.list() == []


async def test_unreadable_entry_is_left_out(
    polling_engines: Starter, engine: AnswerServer, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    replica = polling_engines()
    await registry.set_entry(ListName.ENGINES, "http://127.0.0.1:1", '{"kind": 5}', limit=10)
    await replica.engines.register(engine.address, EngineEntry(), ADMIN)
    assert [state.name for state in await replica.engines.list()] == [engine.address]
    assert "cannot be polled, because its entry is wrong: engine: must be one of" in caplog.text
