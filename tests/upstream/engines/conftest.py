from collections.abc import AsyncIterator

import pytest

from controller.upstream.client import WorkerClient


@pytest.fixture
async def impatient_client() -> AsyncIterator[WorkerClient]:
    """Return a client with a short timeout, for engines that never answer."""
    opened = WorkerClient(probe_timeout=0.2, worker_timeout=0.2)
    yield opened
    await opened.close()


class FakeClock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()
