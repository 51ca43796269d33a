"""Clients and workers during outages of the store, and the consistency of the store afterwards."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import SCHEMA
from tests.conftest import Figure
from tests.support.clients import Client
from tests.support.faults import Proxy, proxy_in_thread
from tests.support.invariants import check_invariants
from tests.support.outage import queue_length
from tests.support.waiting import wait_for_each, wait_until
from tests.system.conftest import Serve
from tests.system.load import LoadResults, load
from tests.system.processes import ControllerProcess, serves, stock_worker
from tests.system.processes import Server as WorkerProcess
from tests.system.servers import Cluster, Server, cluster, sentinels, single

pytestmark = pytest.mark.system

# The timeout is the default, because it determines the latencies that are printed.
FREQUENT_SNAPSHOTS = ("--snapshot-interval", "0.2", "--redis-timeout", "0.25")
PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@contextlib.asynccontextmanager
async def workers(work_dir: Path, controller: ControllerProcess) -> AsyncIterator[list[WorkerProcess]]:
    """Run three stock workers that send heartbeats every second."""
    with contextlib.ExitStack() as stack:
        flags = ("--model-names", "m")
        started = [stack.enter_context(stock_worker(work_dir, controller.url, *flags)) for _ in range(3)]
        await wait_until(lambda: set(controller.names()) == {w.url for w in started}, "the workers are registered")
        yield started


async def check_heartbeats(controller: ControllerProcess, started: list[WorkerProcess]) -> None:
    """Assert that every worker sends heartbeats and that none has ended."""
    began = time.monotonic()

    def heard_from() -> set[str]:
        now = time.monotonic()
        return {w["worker_name"] for w in controller.workers() if w["heartbeat_age"] < now - began}

    await wait_until(lambda: heard_from() == {w.url for w in started}, "all workers send heartbeats")
    assert all(w.popen.poll() is None for w in started)


async def wait_for_snapshots(controllers: list[ControllerProcess], number: int = 3) -> None:
    """Wait until the snapshot of every replica contains `number` workers."""
    await wait_for_each(controllers, lambda each: len(each.names()) == number, "the replica lists the workers")
    await asyncio.sleep(1.5)  # several snapshot intervals, because no route shows the workers of a snapshot


async def check_bookings(url: str, number: int) -> None:
    """Wait until the store holds `number` bookings. Replicas may still reconcile those made in degraded mode."""
    client: Client = connect(url, timeout=60.0)

    async def booked() -> int:
        names = await client.zrange(keys.workers("controller"), 0, -1)
        return sum([await queue_length(client, "controller", name) for name in names])

    async def is_complete() -> bool:
        return await booked() == number

    try:
        await wait_until(is_complete, "every dispatch is booked")
        await check_invariants(client, "controller")
        assert await booked() == number, "no dispatch is booked twice"
    finally:
        await client.aclose()


def register_without_heartbeats(controller: ControllerProcess) -> set[str]:
    """Register three workers without heartbeats, so that only dispatches change their queues. Return their names."""
    names = {f"http://127.0.0.1:1/w{i}" for i in range(3)}
    for name in names:
        controller.register(name, check=False)
    return names


@pytest.mark.slow
async def test_a_store_that_hangs_for_several_heartbeats(serve: Serve, work_dir: Path, figure: Figure) -> None:
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await wait_for_snapshots(replicas)
            async with load([replica.url for replica in replicas]) as results:
                await wait_until(lambda: results.total > 100, "the load has started")
                store.pause()
                await wait_for_each(
                    started,
                    lambda worker: worker.log.count("heart beat error") >= 2,
                    "two heartbeats of the worker have failed",
                )
                await wait_until(lambda: results.degraded > 100, "dispatches continue without the store")
                store.resume()
                await wait_for_recovery(replicas, results)
            await check_heartbeats(replicas[0], started)
    figure("Redis stopped for several heartbeats (SIGSTOP)", results)
    assert results.failed == []
    assert set(results.addresses) == {w.url for w in started}


async def wait_for_growth(count: Callable[[], int], description: str) -> None:
    """Wait until a count has grown by more than 100."""
    before = count()
    await wait_until(lambda: count() > before + 100, description)


async def wait_for_recovery(replicas: list[ControllerProcess], results: LoadResults) -> None:
    """Wait until all replicas dispatch through the store again."""
    await wait_for_each(replicas, lambda replica: serves(replica.url), "the replica uses the store again")
    last = {"degraded": -1, "total": 0}

    def none_degraded() -> bool:
        if results.degraded > last["degraded"]:
            last.update(degraded=results.degraded, total=results.total)
        return results.total > last["total"] + 50

    await wait_until(none_degraded, "50 dispatches in a row use the store")


async def test_every_dispatch_during_an_outage_is_booked_once(serve: Serve, work_dir: Path, figure: Figure) -> None:
    """Redis hangs three times. Calls that wait in its sockets run late, and replicas reconcile degraded dispatches."""
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        names = register_without_heartbeats(replicas[0])
        await wait_for_snapshots(replicas)
        async with load([replica.url for replica in replicas]) as results:
            for _ in range(3):
                await wait_for_growth(lambda: results.total, "dispatches continue")
                store.pause()
                await wait_for_growth(lambda: results.degraded, "dispatches continue without the store")
                store.resume()
                await wait_for_recovery(replicas, results)
        figure("Redis stopped three times (every dispatch booked once)", results)
        assert results.failed == []
        assert set(results.addresses) == names
        await check_bookings(store.url, results.total)


@pytest.mark.slow
async def test_one_replica_loses_its_connection_to_the_store(serve: Serve, work_dir: Path, figure: Figure) -> None:
    """This replica dispatches in degraded mode and reconciles afterwards. The other replica keeps using the store."""
    socket = str(work_dir / "redis.sock")
    async with single(work_dir, "--save", "", "--unixsocket", socket) as store:
        with proxy_in_thread(Proxy(work_dir / "cut.sock", socket)) as link:
            disconnected = serve("--redis-url", link.url, *FREQUENT_SNAPSHOTS, data="disconnected")
            other = serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data="other")
            register_without_heartbeats(other)
            await wait_for_snapshots([disconnected, other])
            async with load([disconnected.url, other.url]) as results:
                await wait_until(lambda: results.total > 100, "the load has started")
                link.hang()
                await wait_until(
                    lambda: results.degraded > 200, "the disconnected replica dispatches without the store"
                )
                assert serves(other.url)
                assert not serves(disconnected.url)
                link.resume()
                await wait_for_recovery([disconnected, other], results)
        figure("one of two replicas disconnected (every dispatch booked once)", results)
        assert results.failed == []
        await check_bookings(store.url, results.total)


async def test_a_killed_store_that_keeps_its_data(serve: Serve, work_dir: Path, figure: Figure) -> None:
    async with single(work_dir, *PERSISTENT) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        register_without_heartbeats(replicas[0])
        await wait_for_snapshots(replicas)
        async with load([replica.url for replica in replicas]) as results:
            await wait_until(lambda: results.total > 100, "the load has started")
            store.kill()
            await wait_until(lambda: results.degraded > 100, "dispatches continue without the store")
            store.start()
            await wait_for_recovery(replicas, results)
        figure("Redis killed and started again, with its data (every dispatch booked once)", results)
        assert results.failed == []
        assert len(replicas[0].names()) == 3
        await check_bookings(store.url, results.total)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_store_that_loses_its_data_gets_the_workers_again(
    serve: Serve, work_dir: Path, figure: Figure, at_once: bool
) -> None:
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await wait_for_snapshots(replicas)
            async with load([replica.url for replica in replicas]) as results:
                await wait_until(lambda: results.total > 100, "the load has started")
                store.kill()
                if not at_once:
                    await wait_until(lambda: results.degraded > 100, "dispatches continue without the store")
                store.start()
                await wait_for_recovery(replicas, results)
            figure(f"Redis killed and started again {'at once' if at_once else 'later'}, without data", results)
            assert results.failed == []
            assert set(results.addresses) == {w.url for w in started}
            await check_heartbeats(replicas[0], started)
            assert any("registering 3 workers again" in replica.log for replica in replicas)


@pytest.mark.slow
async def test_heartbeats_restore_the_workers_if_all_else_is_lost(serve: Serve, work_dir: Path) -> None:
    """The store and the replica are killed and keep no data. The workers register again at their next heartbeats."""
    async with single(work_dir) as store:
        first = serve("--redis-url", store.url, data="first")
        async with workers(work_dir, first) as started:
            store.kill()
            first.kill()
            store.start()
            again = serve("--redis-url", store.url, data="again", port=first.port)
            await check_heartbeats(again, started)


async def test_a_replica_starts_without_its_store_and_waits_for_it(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        store.kill()
        controller = serve("--redis-url", store.url, ready=False)
        controller.wait_for(lambda: "Application startup complete" in controller.log, "the replica has started")
        with pytest.raises(OSError, match="503"):
            controller.post("/receive_heart_beat", {"worker_name": "http://127.0.0.1:1/a", "queue_length": 0})
        assert controller.dispatch() == ""
        assert not serves(controller.url)
        store.start()
        controller.ready()
        controller.register("http://127.0.0.1:1/a")
        assert controller.dispatch() == "http://127.0.0.1:1/a"
        assert controller.popen.poll() is None


@pytest.mark.slow
async def test_sentinel_promotes_another_server_if_the_master_is_killed(
    serve: Serve, work_dir: Path, figure: Figure
) -> None:
    async with sentinels(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await wait_for_snapshots(replicas)
            async with load([replica.url for replica in replicas]) as results:
                await wait_until(lambda: results.total > 100, "the load has started")
                store.first.kill()
                await wait_until(lambda: store.new_master(store.first), "another server is promoted")
                await wait_for_recovery(replicas, results)
            await check_heartbeats(replicas[0], started)
        master = await store.master()
        assert master is not None
        client: Client = connect(master.url, timeout=60.0)
        await check_invariants(client, "controller")
        await client.aclose()
    figure("Sentinel failover, master killed", results)
    assert results.failed == []
    assert results.degraded > 0


@pytest.mark.slow
async def test_a_planned_failover_loses_nothing(serve: Serve, work_dir: Path, figure: Figure) -> None:
    """The procedure of docs/guides/redis.md: first pause the writes, then fail over."""
    async with sentinels(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        register_without_heartbeats(replicas[0])
        await wait_for_snapshots(replicas)
        async with load([replica.url for replica in replicas]) as results:
            await wait_until(lambda: results.total > 100, "the load has started")
            await store.first.execute("CLIENT", "PAUSE", "60000", "WRITE")
            await store.sentinels[0].execute("SENTINEL", "FAILOVER", "main")
            await wait_until(lambda: store.new_master(store.first), "another server is promoted")
            await wait_for_recovery(replicas, results)
        master = await store.master()
        assert master is not None
        figure("Sentinel failover, planned (every dispatch booked once)", results)
        assert results.failed == []
        await check_bookings(master.url, results.total)


@pytest.mark.slow
@pytest.mark.parametrize("planned", [True, False])
async def test_a_cluster_replaces_the_master_of_the_slot(
    serve: Serve, work_dir: Path, figure: Figure, planned: bool
) -> None:
    async with cluster(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *FREQUENT_SNAPSHOTS, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await wait_for_snapshots(replicas)
            before = await store.owner(keys.namespace("controller"))
            assert before is not None
            async with load([replica.url for replica in replicas]) as results:
                await wait_until(lambda: results.total > 100, "the load has started")
                if planned:
                    follower = store.nodes[store.nodes.index(before) + 3]
                    await follower.execute("CLUSTER", "FAILOVER")
                else:
                    before.kill()
                await wait_until(lambda: has_new_owner(store, before), "another node is the master of the slot")
                await wait_for_recovery(replicas, results)
            await check_heartbeats(replicas[0], started)
        figure(f"Cluster failover, {'planned' if planned else 'master killed'}", results)
        assert results.failed == []
        if not planned:
            assert results.degraded > 0


async def has_new_owner(store: Cluster, before: Server) -> bool:
    owner = await store.owner(keys.namespace("controller"))
    return owner is not None and owner is not before


async def test_two_namespaces_are_isolated(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        one, other = (serve("--redis-url", store.url, "--namespace", name, data=name) for name in ("one", "other"))
        one.register("http://127.0.0.1:1/a")
        other.register("http://127.0.0.1:1/b", queue_length=3)
        assert [one.dispatch(), other.dispatch()] == ["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"]
        assert (one.names(), other.names()) == (["http://127.0.0.1:1/a"], ["http://127.0.0.1:1/b"])
        assert one.post("/remove_worker", {"worker_name": "http://127.0.0.1:1/b"}) == {"exist": False}
        assert other.workers()[0]["queue_length"] == 4


async def test_a_replica_does_not_start_on_another_key_layout(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        client: Redis = store.client()
        await client.set(keys.schema("controller"), "999")
        controller = serve("--redis-url", store.url, ready=False)
        assert controller.popen.wait(60) == 1
        assert f"has key layout version 999. This program needs version {SCHEMA}" in controller.log
        assert "Traceback" not in controller.log
        await wait_until(lambda: only_the_schema(client), "the schema is the only key")
        await client.aclose()


async def only_the_schema(client: Redis) -> bool:
    return bool(await client.keys("*") == [keys.schema("controller")])


async def test_a_registration_waits_while_the_store_hangs(serve: Serve, work_dir: Path) -> None:
    """A failed registration would end a stock worker, so the registration waits."""
    async with single(work_dir) as store:
        controller = serve("--redis-url", store.url)
        store.pause()
        call = asyncio.get_running_loop().run_in_executor(None, controller.register, "http://127.0.0.1:1/a")
        await wait_until(lambda: "Redis is unavailable" in controller.log, "the replica has noticed the outage")
        assert not call.done()
        store.resume()
        await call
        assert controller.dispatch() == "http://127.0.0.1:1/a"


async def test_sigterm_ends_a_waiting_registration_with_503(serve: Serve, work_dir: Path) -> None:
    """A load balancer then sends the registration to another replica."""
    async with single(work_dir) as store:
        controller = serve("--redis-url", store.url)
        store.kill()
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        body = {"worker_name": "http://127.0.0.1:1/a", "check_heart_beat": True, "worker_status": status}
        call = asyncio.get_running_loop().run_in_executor(None, controller.post, "/register_worker", body)
        await wait_until(lambda: "Redis is unavailable" in controller.log, "the replica has noticed the outage")
        os.kill(controller.popen.pid, signal.SIGTERM)
        with pytest.raises(OSError, match="503"):
            await call
        assert controller.popen.wait(60) == 0
