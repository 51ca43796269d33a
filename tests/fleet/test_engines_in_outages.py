"""What replicas know of their engines while the store is away, and use when it returns."""

import pytest

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.replica import Replica
from tests.conftest import Store
from tests.fleet.engine_replicas import ADMIN, Starter
from tests.support.engines import DISCONNECTS, HANGS, Answer, AnswerServer, answer_server
from tests.support.outage import Link, expire_heartbeat, wait_for_recovery
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
