"""Each way in which a real Redis can be there and not serve: dispatch goes on, and every one is booked once."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import pytest
from redis.exceptions import ResponseError

from controller.store.connection import connect
from controller.store.registry import Registry
from tests.conftest import Open, Store
from tests.support.outage import back, queues
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def setting(store: Store, name: str, value: str, back: str) -> AsyncIterator[None]:
    await store.aside.config_set(name, value)
    try:
        yield
    finally:
        await store.aside.config_set(name, back)


@contextlib.asynccontextmanager
async def demoted(store: Store) -> AsyncIterator[None]:
    await store.aside.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        await store.aside.replicaof("NO", "ONE")


@contextlib.asynccontextmanager
async def demoted_without_data(store: Store) -> AsyncIterator[None]:
    async with setting(store, "replica-serve-stale-data", "no", "yes"), demoted(store):
        yield


@contextlib.asynccontextmanager
async def busy(store: Store) -> AsyncIterator[None]:
    """A script that does not end: for a moment it hangs, then it says so."""
    other = connect(store.url, timeout=60.0)
    endless = asyncio.create_task(other.eval("while true do end", 0))
    try:
        await wait_until(lambda: says_busy(store), "the store is busy")
        yield
    finally:
        with contextlib.suppress(Exception):
            await store.aside.script_kill()
        with contextlib.suppress(Exception):
            await endless
        await other.aclose()


async def says_busy(store: Store) -> bool:
    try:
        await store.aside.ping()
    except ResponseError:
        return True
    return False


@contextlib.asynccontextmanager
async def refusing(store: Store) -> AsyncIterator[None]:
    """No new connections, and the old ones are cut."""
    before = (await store.aside.config_get("maxclients"))["maxclients"]
    async with setting(store, "maxclients", "1", before):
        await store.aside.client_kill_filter(_type="normal", skipme=True)
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
async def test_dispatch_goes_on(store: Store, replica: Open, fault: str) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis has none of these faults")
    await store.aside.config_set("busy-reply-threshold", "50")
    registry: Registry = store.registry(deadline=5.0)
    for name in (A, B):
        await registry.register(worker(name))
    controller = replica(registry)
    await controller.readiness.check()
    exact = [await controller.dispatcher.dispatch("m") for _ in range(2)]
    async with FAULTS[fault](store):
        degraded = [await controller.dispatcher.dispatch("m") for _ in range(10)]
        assert {answer.snapshot_age is None for answer in degraded[1:]} == {False}
        assert (await controller.readiness.check()).snapshot_age is not None
    await back(controller)
    exact += [await controller.dispatcher.dispatch("m") for _ in range(2)]
    assert {answer.value for answer in exact + degraded} == {A, B}
    assert {answer.snapshot_age for answer in exact} == {None}
    assert sum((await queues(store)).values()) == len(exact + degraded)
