"""A polled worker, and replicas that poll."""

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest

from controller.replica import Replica
from controller.tasks import end
from tests.conftest import Open
from tests.fleet.polling import INTERVAL, StatusRoute
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
