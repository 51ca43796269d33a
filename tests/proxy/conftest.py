"""Replicas with real HTTP servers, and clients that speak to them."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest
import uvicorn

from controller.replica import Replica
from controller.store.registry import Registry
from controller.web.asgi.protocol import BoundedProtocol
from tests.conftest import Open, Store
from tests.support.waiting import wait_until

Serve = Callable[..., contextlib.AbstractAsyncContextManager[tuple[Replica, str]]]


@contextlib.asynccontextmanager
async def served(replica: Replica) -> AsyncIterator[str]:
    """Serve a replica in this process, with its background tasks. Yield its address."""
    config = uvicorn.Config(
        replica.app(), port=0, log_level="warning", lifespan="on", http=BoundedProtocol, timeout_keep_alive=600
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started or serving.done(), "the server listens")
    try:
        [listener] = server.servers[0].sockets
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        replica.end_streams()
        server.should_exit = True
        await serving


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run the tests of this folder on uvloop, as `controller serve` does."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def registry(store: Store) -> Registry:
    """Return a registry whose engines do not expire during a test, because these tests poll none."""
    return store.registry(engine_expiration=3600.0)


@pytest.fixture
def serve(replica: Open) -> Serve:
    """Return a function that opens a replica with settings, and serves it."""

    @contextlib.asynccontextmanager
    async def serve_replica(**settings: Any) -> AsyncIterator[tuple[Replica, str]]:
        opened = replica(**{"poll_interval": 0.0, "sweep_interval": 60.0, **settings})
        async with served(opened) as address:
            await opened.snapshots.take_now()
            yield opened, address

    return serve_replica


@pytest.fixture
async def http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(timeout=60.0, limits=limits, trust_env=False) as client:
        yield client
