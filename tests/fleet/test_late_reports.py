"""Reports of engines that lag behind: leases count until a report can have them, and foreign requests count at once."""

import contextlib
from collections import Counter

from controller.domain.engine import Protocol
from controller.domain.engine_entry import EngineEntry
from controller.replica import Replica
from controller.store.registry import Registry
from tests.fleet.engine_replicas import ADMIN, Starter, gauges, models
from tests.support.engines import Answer, AnswerServer, answer_server
from tests.support.waiting import wait_for_each, wait_until


async def test_late_reports_do_not_send_all_requests_to_one_engine(
    polling_engines: Starter, registry: Registry
) -> None:
    """One engine like vLLM reports that it is idle, for seconds after it got requests. Two others have two each."""
    replica = polling_engines()
    async with contextlib.AsyncExitStack() as stack:
        answers = {"/v1/models": models("m"), "/health": Answer()}
        engines = [
            await stack.enter_async_context(answer_server({**answers, "/metrics": gauges(running, 0)}))
            for running in (0, 2, 2)
        ]
        for engine in engines:
            await replica.engines.register(engine.address, EngineEntry(), ADMIN)
        chosen = Counter([await dispatch(replica) for _ in range(10)])
        await wait_for_each(engines, polled_again, "the engine has reported the same load again")
        chosen.update([await dispatch(replica) for _ in range(10)])
        assert [chosen[engine.address] for engine in engines] == [8, 6, 6], "by the reports alone, the first got all"

        busy = engines[0]
        busy.answers["/metrics"] = gauges(4, 12)

        async def is_known() -> bool:
            return 16 in [known.reported for known in (await registry.list_workers()).workers]

        await wait_until(is_known, "the requests of others are known")
        assert busy.address not in [await dispatch(replica) for _ in range(12)]


async def dispatch(replica: Replica) -> str:
    (chosen, _), _ = await replica.dispatcher.dispatch_with_lease("m", 60.0, protocol=Protocol.OPENAI)
    return chosen


async def polled_again(engine: AnswerServer) -> bool:
    seen = len(engine.requests)
    await wait_until(lambda: "/metrics" in engine.requests[seen:], "the engine is polled")
    return True
