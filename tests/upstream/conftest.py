"""A client for workers."""

from collections.abc import AsyncIterator

import pytest

from controller.upstream.client import WorkerClient


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run the tests of this folder on uvloop, as `controller serve` does."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def client() -> AsyncIterator[WorkerClient]:
    opened = WorkerClient(probe_timeout=60.0, worker_timeout=60.0)
    yield opened
    await opened.close()
