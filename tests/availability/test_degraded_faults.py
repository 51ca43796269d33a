"""States in which a real Redis answers but does not serve. Dispatch continues, and each request is booked once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from redis.exceptions import ResponseError

from controller.store.connection import connect
from controller.store.registry import Registry
from tests.conftest import Open, Store
from tests.support.clients import Client
from tests.support.outage import queue_lengths, wait_for_recovery
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def setting(store: Store, name: str, value: str, original: str) -> AsyncIterator[None]:
    await store.test_client.config_set(name, value)
    try:
        yield
    finally:
        await store.test_client.config_set(name, original)


@contextlib.asynccontextmanager
async def demoted(store: Store) -> AsyncIterator[None]:
    await store.test_client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        await store.test_client.replicaof("NO", "ONE")


@contextlib.asynccontextmanager
async def demoted_without_data(store: Store) -> AsyncIterator[None]:
    async with setting(store, "replica-serve-stale-data", "no", "yes"), demoted(store):
        yield


@contextlib.asynccontextmanager
async def busy(store: Store) -> AsyncIterator[None]:
    """Run an endless script. Redis hangs first, and answers BUSY after the threshold."""
    other: Client = connect(store.url, timeout=60.0)
    endless = asyncio.create_task(other.eval("while true do end", 0))
    try:
        await wait_until(lambda: answers_busy(store), "the store is busy")
        yield
    finally:
        with contextlib.suppress(Exception):
            await store.test_client.script_kill()
        with contextlib.suppress(Exception):
            await endless
        await other.aclose()


async def answers_busy(store: Store) -> bool:
    try:
        await store.test_client.ping()
    except ResponseError:
        return True
    return False


@contextlib.asynccontextmanager
async def refusing(store: Store) -> AsyncIterator[None]:
    """Refuse new connections, and close the existing ones."""
    before = (await store.test_client.config_get("maxclients"))["maxclients"]
    async with setting(store, "maxclients", "1", before):
        await store.test_client.client_kill_filter(_type="normal", skipme=True)
        yield


FAULTS: dict[str, Callable[[Store], contextlib.AbstractAsyncContextManager[None]]] = {
    "OOM": lambda store: setting(store, "maxmemory", "1", "0"),
    "NOREPLICAS": lambda store: setting(store, "min-replicas-to-write", "1", "0"),
    "READONLY": demoted,
    "MASTERDOWN": demoted_without_data,
    "BUSY": busy,
    "maxclients": refusing,
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_dispatch_continues_during_a_fault_and_books_each_request_once(
    store: Store, replica: Open, fault: str
) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis cannot simulate these faults")
    await store.test_client.config_set("busy-reply-threshold", "50")
    registry: Registry = store.registry(deadline=5.0)
    for name in (A, B):
        await registry.register(worker(name))
    controller = replica(registry)
    await controller.readiness.check()
    exact = [await controller.dispatcher.dispatch("m") for _ in range(2)]
    async with FAULTS[fault](store):
        degraded = [await controller.dispatcher.dispatch("m") for _ in range(10)]
        assert {choice.snapshot_age is None for choice in degraded[1:]} == {False}
        assert (await controller.readiness.check()).snapshot_age is not None
    await wait_for_recovery(controller)
    exact += [await controller.dispatcher.dispatch("m") for _ in range(2)]
    assert {choice.value for choice in exact + degraded} == {A, B}
    assert {choice.snapshot_age for choice in exact} == {None}
    assert sum((await queue_lengths(store)).values()) == len(exact + degraded)
