"""The reports of real engines, and the state that the controller derives from them."""

import asyncio
import contextlib
import time
import urllib.request
from collections.abc import AsyncIterator, Sequence

import pytest
from openai import AsyncOpenAI

from controller.domain.engine_status import EngineKind, EngineModel, EngineStatus
from controller.upstream.client import WorkerClient
from controller.upstream.engines.detection import detect
from controller.upstream.engines.probe import EngineProbe
from tests.conftest import Figure
from tests.support.metrics import value
from tests.support.real_engines import CONTEXT, QUESTION, SLOTS, Engine, EngineKit
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.engines import listed, register
from tests.system.processes import call

pytestmark = [pytest.mark.system]

WAITING = 1


@pytest.fixture
async def worker_client() -> AsyncIterator[WorkerClient]:
    opened = WorkerClient(probe_timeout=60.0, worker_timeout=60.0)
    yield opened
    await opened.close()


@contextlib.asynccontextmanager
async def busy(kit: EngineKit, engine: Engine) -> AsyncIterator[None]:
    """Send the engine more requests than it runs at once, past the controller."""

    async def ask(client: AsyncOpenAI) -> None:
        stream = await client.chat.completions.create(
            model=kit.model, messages=QUESTION, stream=True, extra_body=kit.without_end
        )
        async for _ in stream:
            pass

    async with AsyncOpenAI(base_url=f"{engine.address}/v1", api_key="none", max_retries=0, timeout=600) as client:
        tasks = [asyncio.create_task(ask(client)) for _ in range(SLOTS + WAITING)]
        yield
        assert not any(task.done() for task in tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_state_of_an_engine_is_read(
    worker_client: WorkerClient, kit: EngineKit, engines: Sequence[Engine], figure: Figure
) -> None:
    """The controller reads the numbers that the engine reports, idle and busy."""
    engine = engines[0]
    kind = await detect(worker_client, engine.address)
    probe = EngineProbe(worker_client, engine.address, kind)
    is_silent = "metrics" in kit.missing

    def state(running: int, waiting: int, found: EngineStatus) -> EngineStatus:
        return EngineStatus(
            models=(EngineModel(kit.model, None if is_silent else CONTEXT),),
            running=None if is_silent else running,
            waiting=None if is_silent else waiting,
            full=None if is_silent else waiting > 0,
            kv_use=found.kv_use,
            capacity=kit.capacity,
            lag=found.lag,
        )

    async def has(running: int, waiting: int) -> EngineStatus | None:
        found = await probe.poll()
        return found if found == state(running, waiting, found) else None

    assert kind == kit.kind
    await wait_until(lambda: has(0, 0), "the engine is idle")
    async with busy(kit, engine):
        began = time.monotonic()
        full = await wait_until(lambda: has(SLOTS, WAITING), "the engine reports its requests", interval=0.02)
        if not is_silent:
            lag = time.monotonic() - began
            figure(f"lag of the load of {kit.title}", f"{lag:.2f} s, taken to be at most {full.lag:g} s")
        if kind == EngineKind.VLLM:
            with urllib.request.urlopen(f"{engine.address}/metrics", timeout=60) as response:
                metrics = response.read().decode()
            assert 0 < full.kv_use <= value(metrics, "vllm:kv_cache_usage_perc") < 1, "it grows with each token"
            load = call(f"{engine.address}/load", method="GET")
            assert load == {"server_load": 0}, "which is why the route is not asked"
    await wait_until(lambda: has(0, 0), "the engine is idle again")


async def test_load_of_others_counts_and_the_capacity_is_learned(
    serve: Serve, kit: EngineKit, engines: Sequence[Engine]
) -> None:
    kit.needs("metrics")
    engine = engines[0]
    controller = serve(*kit.polled_often)
    register(controller, engine, kit=kit)

    def shown(*fields: str) -> list[object]:
        [worker] = listed(controller).values()
        return [worker[field] for field in fields]

    assert shown("engine", "model_names", "queue_length", "capacity") == [kit.kind, ["tiny"], 0, kit.capacity]
    known = [SLOTS, "reported" if kit.capacity else "learned"]
    async with busy(kit, engine):
        await wait_until(lambda: shown("queue_length") == [SLOTS + WAITING], "the load of others counts")
        await wait_until(lambda: shown("capacity", "capacity_source") == known, "the capacity is known")
    await wait_until(lambda: shown("queue_length") == [0], "the requests of others have ended")
