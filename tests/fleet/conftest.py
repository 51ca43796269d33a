"""A polled worker, a polled engine, replicas that poll them, and agents."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from controller.fleet import engine_poller, engine_sources
from controller.replica import Replica
from controller.tasks import end
from tests.conftest import Open
from tests.fleet.agents import Fleet
from tests.fleet.engine_replicas import Starter, gauges, models
from tests.fleet.polling import INTERVAL, StatusRoute
from tests.support.engines import Answer, AnswerServer, answer_server
from tests.support.workers import BadWorker, bad_worker


@pytest.fixture
async def status_route() -> StatusRoute:
    return StatusRoute()


@pytest.fixture
async def target(status_route: StatusRoute) -> AsyncIterator[BadWorker]:
    async with bad_worker(worker_get_status=status_route) as server:
        yield server


@pytest.fixture
async def polling(replica: Open) -> AsyncIterator[Callable[..., Replica]]:
    """Return a function that opens replicas which take snapshots and poll."""
    tasks: list[asyncio.Task[None]] = []

    def start(snapshot_interval: float = 0.05, **settings: object) -> Replica:
        controller = replica(poll_interval=INTERVAL, snapshot_interval=snapshot_interval, **settings)
        loops = (controller.snapshots.run, controller.replicas.run, controller.poller.run)
        tasks.extend(asyncio.create_task(loop()) for loop in loops)
        return controller

    yield start
    await end(tasks)


@pytest.fixture
async def engine() -> AsyncIterator[AnswerServer]:
    """Return a server that answers as vLLM does."""
    answers = {"/v1/models": models("m", "n"), "/health": Answer(), "/metrics": gauges(0, 0)}
    async with answer_server(answers) as server:
        yield server


@pytest.fixture
async def polling_engines(replica: Open, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Starter]:
    """Return a function that opens replicas which take snapshots and poll engines."""
    monkeypatch.setattr(engine_poller, "INTERVAL", 0.02)
    starter = Starter(replica)
    yield starter
    for each in list(starter.tasks):
        await starter.stop(each)


@pytest.fixture
async def fleet(replica: Open, engine: AnswerServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Fleet]:
    """Return a replica whose engines expire after an hour, for agents."""
    monkeypatch.setattr("controller.upstream.engines.probe._STATE_INTERVAL", 0.05)
    opened = Fleet(replica(snapshot_interval=0.05, engine_expiration=3600), engine)
    yield opened
    await end(opened.tasks)
    await opened.client.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each read of a source look its names up."""
    monkeypatch.setattr(engine_sources, "_LOOKUP_INTERVAL", 0.0)
