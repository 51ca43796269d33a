"""States in which a real Redis answers but does not serve. Dispatch continues, and each request is booked once."""

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.exceptions import BusyLoadingError, ResponseError

from controller.metrics import Metrics
from controller.replica import Replica
from controller.settings import Settings
from controller.store.connection import connect
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient
from tests.conftest import REDIS_SERVER, WITHOUT_DECAY, Open, Store, redis_server
from tests.support.clients import Client
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.outage import queue_lengths, wait_for_recovery
from tests.support.samples import A, B, asks, worker
from tests.support.waiting import wait_until


@contextlib.asynccontextmanager
async def setting(store: Store, name: str, value: str, original: str) -> AsyncIterator[None]:
    await store.client.config_set(name, value)
    try:
        yield
    finally:
        await store.client.config_set(name, original)


@contextlib.asynccontextmanager
async def demoted(store: Store) -> AsyncIterator[None]:
    await store.client.replicaof("127.0.0.1", "1")
    try:
        yield
    finally:
        await store.client.replicaof("NO", "ONE")


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
            await store.client.script_kill()
        with contextlib.suppress(Exception):
            await endless
        await other.aclose()


async def answers_busy(store: Store) -> bool:
    try:
        await store.client.ping()
    except ResponseError:
        return True
    return False


@contextlib.asynccontextmanager
async def refusing(store: Store) -> AsyncIterator[None]:
    """Refuse new connections, and close the existing ones."""
    before = (await store.client.config_get("maxclients"))["maxclients"]
    async with setting(store, "maxclients", "1", before):
        await store.client.client_kill_filter(_type="normal", skipme=True)
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
    await store.client.config_set("busy-reply-threshold", "50")
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


@contextlib.asynccontextmanager
async def replica_on(url: str) -> AsyncIterator[tuple[Registry, Replica]]:
    """Open a replica with a snapshot of one worker, on a server of the test's own."""
    client = connect(url, timeout=60.0)
    registry = Registry(client, "own", **{**WITHOUT_DECAY, "deadline": 5.0})
    await registry.register(worker(A))
    controller = Replica(Settings(probe_timeout=60.0), registry, WorkerClient(60.0, 60.0), Metrics())
    await controller.readiness.check()
    try:
        yield registry, controller
    finally:
        await controller.close()
        await client.aclose()


needs_redis = pytest.mark.skipif(REDIS_SERVER is None, reason="NOT TESTED: redis-server, which is not on PATH")


@pytest.fixture
async def opened() -> AsyncIterator[contextlib.AsyncExitStack]:
    """Yield a stack of what a test opens, which is closed in the reverse order."""
    async with contextlib.AsyncExitStack() as stack:
        yield stack


async def client_of(url: str, opened: contextlib.AsyncExitStack) -> Client:
    client: Client = connect(url, timeout=60.0)
    opened.push_async_callback(client.aclose)
    return client


@pytest.mark.slow
@needs_redis
async def test_dispatch_continues_while_redis_cannot_save(short_dir: Path, opened: contextlib.AsyncExitStack) -> None:
    """MISCONF: the directory for the snapshots of Redis is gone, so Redis refuses writes."""
    folder = short_dir / "misconf"
    folder.mkdir()
    options = ("--dir", str(folder), "--save", "3600 1")
    url = opened.enter_context(redis_server(short_dir / "misconf.sock", *options))
    operator = await client_of(url, opened)
    registry, controller = await opened.enter_async_context(replica_on(url))
    shutil.rmtree(folder)
    await operator.bgsave()
    await wait_until(lambda: refuses_writes(operator), "Redis refuses writes")
    degraded = [await controller.dispatcher.dispatch("m") for _ in range(5)]
    assert [choice.value for choice in degraded] == [A] * 5
    assert None not in {choice.snapshot_age for choice in degraded[1:]}
    await operator.config_set("stop-writes-on-bgsave-error", "no")
    await wait_for_recovery(controller)
    assert (await registry.list_workers()).workers[0].status.queue_length == 5


async def refuses_writes(client: Client) -> bool:
    try:
        await client.set("{own}:written", "x")
    except ResponseError as error:
        return "MISCONF" in str(error)
    return False


@pytest.mark.slow
@needs_redis
async def test_dispatch_continues_while_redis_loads_its_data(
    short_dir: Path, opened: contextlib.AsyncExitStack
) -> None:
    """LOADING: Redis was killed and reads its data again, slowly. The registration is in these data."""
    folder = short_dir / "loading"
    folder.mkdir()
    socket, file = short_dir / "loading.sock", ("--dir", str(folder))
    slowly = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
    with redis_server(socket, *file) as url:
        operator = await client_of(url, opened)
        registry, controller = await opened.enter_async_context(replica_on(url))
        await operator.mset({f"other-{i}": "x" * 100 for i in range(3_000)})
        await operator.save()
    opened.enter_context(redis_server(socket, *file, *slowly))
    await wait_until(lambda: is_loading(operator), "Redis loads its data")
    degraded = [await controller.dispatcher.dispatch("m") for _ in range(5)]
    assert await is_loading(operator), "the data are too few: Redis has read them already"
    assert [choice.value for choice in degraded] == [A] * 5
    assert None not in {choice.snapshot_age for choice in degraded}
    await wait_for_recovery(controller)
    assert (await registry.list_workers()).workers[0].status.queue_length == 5
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]


async def is_loading(client: Client) -> bool:
    try:
        await client.ping()
    except BusyLoadingError:
        return True
    except OSError:
        return False
    return False
