"""Replicas keep the states of their engines while Redis is unavailable, and use them afterwards."""

import asyncio

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.domain.errors import StoreUnavailable
from controller.fleet import engine_poller
from controller.replica import Replica
from controller.store import keys
from controller.store.entries import ListName
from controller.store.registry import Registry
from controller.tasks import end
from tests.conftest import Open, Store
from tests.fleet.agents import Fleet, found, is_gone
from tests.fleet.engine_replicas import ADMIN, Starter, is_alive
from tests.support.engines import DISCONNECTS, HANGS, Answer, AnswerServer, answer_server
from tests.support.outage import Link, cut_off, expire_heartbeat, wait_for_recovery
from tests.support.waiting import wait_until


async def chosen(replica: Replica) -> str:
    return (await replica.dispatcher.dispatch("m", protocol=Protocol.OPENAI)).value


async def test_silent_engine_is_deprioritised_in_an_outage_until_it_answers(
    polling_engines: Starter, engine: AnswerServer, link: Link
) -> None:
    async with answer_server(dict(engine.answers)) as other:
        replica = polling_engines(engine_expiration=3600, probe_timeout=60.0)
        for server in (engine, other):
            await replica.engines.register(server.address, EngineEntry("vllm"), ADMIN)

        def failing() -> dict[str, str] | None:
            """Return the failures in the snapshot. None until it has both engines and this replica polls them."""
            workers = [replica.snapshots.worker(server.address) for server in (engine, other)]
            polled = all(replica.engine_poller.time_left(server.address) for server in (engine, other))
            return {worker.name: worker.failing for worker in workers if worker} if all(workers) and polled else None

        await wait_until(failing, "the snapshot has both engines")
        with link.broken():
            before = dict(engine.answers)
            engine.answers.clear()
            engine.default = DISCONNECTS
            await wait_until(lambda: failing() == {engine.address: "polls", other.address: ""}, "it is deprioritised")
            assert {await chosen(replica) for _ in range(5)} == {other.address}
            engine.answers.update(before)
            await wait_until(lambda: failing() == {engine.address: "", other.address: ""}, "it has answered")
            assert await chosen(replica) == engine.address


@pytest.mark.parametrize("is_ready", [True, False])
async def test_engine_serves_at_once_after_an_outage_if_its_last_poll_was_good(
    polling_engines: Starter, engine: AnswerServer, link: Link, store: Store, is_ready: bool
) -> None:
    """When the store returns, the engine hangs, so no poll registers it again."""
    replica = polling_engines(engine_expiration=3600, probe_timeout=0.2)
    await replica.engines.register(engine.address, EngineEntry("vllm"), ADMIN)
    await wait_until(lambda: bool(replica.snapshots.worker(engine.address)), "the snapshot has the engine")
    await wait_until(lambda: replica.engine_poller.time_left(engine.address), "the replica polls the engine")

    def is_noted() -> bool:
        left = replica.engine_poller.time_left(engine.address)
        return left is not None and (left > 0) is is_ready

    with link.broken():
        assert await chosen(replica) == engine.address, "from the snapshot"
        await wait_until(lambda: not replica.replicas.ids, "the replica cannot know the others")
        if not is_ready:
            engine.answers["/health"] = Answer(b"", 503)
        await wait_until(is_noted, "the poll has shown if the engine is ready")
        engine.answers.clear()
        engine.default = HANGS
        await expire_heartbeat(store.url, engine.address, store.namespace)
    await wait_for_recovery(replica)
    assert await chosen(replica) == (engine.address if is_ready else "")


async def test_engine_that_was_removed_while_its_replica_was_cut_off_stays_removed(
    polling_engines: Starter, engine: AnswerServer, registry: Registry, store: Store
) -> None:
    """When the replica returns, the mark of the removal has expired in Redis."""
    replicas = [polling_engines(), polling_engines()]
    await replicas[0].engines.register(engine.address, EngineEntry("vllm"), ADMIN)
    await wait_until(lambda: all(len(each.replicas.ids) == 2 for each in replicas), "both have joined")

    def polling() -> list[Replica]:
        return [each for each in replicas if (each.engine_poller.time_left(engine.address) or 0) > 0]

    await wait_until(lambda: len(polling()) == 1, "one of them polls the engine")
    [cut] = polling()
    [other] = set(replicas) - {cut}
    await wait_until(lambda: cut.snapshots.worker(engine.address), "its snapshot has the engine")
    with cut_off(cut):
        await wait_until(lambda: cut.breaker.reason, "it is cut off")
        assert await other.engines.remove(engine.address)
        assert await other.membership.remove(engine.address, caller=ADMIN)
        await store.client.delete(keys.removed(store.namespace, engine.address))
        assert polling() == [cut]
    await wait_for_recovery(cut)
    assert not await is_alive(registry)


async def test_engine_that_its_agent_took_out_while_another_replica_was_cut_off_stays_out(
    engine: AnswerServer, registry: Registry, replica: Open, store: Store
) -> None:
    expiration = 0.5
    serving, cut = (replica(store.registry(engine_expiration=expiration)) for _ in range(2))
    fleet = Fleet(serving, engine)
    try:
        fleet.start()
        await wait_until(lambda: found(registry), "the engine is registered")
        await cut.readiness.check()
        with cut_off(cut):
            with pytest.raises(StoreUnavailable):
                await cut.snapshots.take_now()
            engine.answers["/health"] = Answer(b"", 503)
            await wait_until(lambda: is_gone(registry), "the engine is out")
            await wait_until(lambda: cut.snapshots.age > expiration, "its heartbeat of the snapshot has expired")
            await serving.replicas.join()
        await wait_for_recovery(cut)
        assert await is_gone(registry)
    finally:
        await end(fleet.tasks)
        await fleet.client.close()


async def test_engine_that_is_not_listed_any_more_is_not_registered_by_a_poll(
    polling_engines: Starter,
    engine: AnswerServer,
    registry: Registry,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The poll begins before the replica stops to poll the engine."""
    replica = polling_engines()
    await replica.engines.register(engine.address, EngineEntry("vllm"), ADMIN)
    await wait_until(lambda: replica.engine_poller.time_left(engine.address), "the replica polls the engine")
    monkeypatch.setattr(engine_poller, "INTERVAL", 3600)
    await asyncio.sleep(0.1)  # from now on, it keeps its share
    assert await registry.set_entry(ListName.ENGINES, engine.address, "", limit=1)
    await replica.engine_poller.update()
    await registry.remove(engine.address)
    await store.client.delete(keys.removed(store.namespace, engine.address))
    asked = len(engine.requests)
    await wait_until(lambda: len(engine.requests) > asked + 5, "it is polled")
    assert not await is_alive(registry)
