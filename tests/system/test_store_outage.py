"""Clients and workers during outages of the store, and the consistency of the store afterwards."""

import asyncio
import os
import signal
from pathlib import Path

import pytest
from redis.asyncio import Redis

from controller.store import keys
from controller.store.registry import SCHEMA
from tests.conftest import Figure
from tests.support.faults import Proxy, proxy_in_thread
from tests.support.waiting import wait_for_each, wait_until
from tests.system.conftest import Serve
from tests.system.load import load
from tests.system.outages import (
    FREQUENT_SNAPSHOTS,
    PERSISTENT,
    check_bookings,
    check_heartbeats,
    register_without_heartbeats,
    wait_for_growth,
    wait_for_recovery,
    wait_for_snapshots,
    workers,
)
from tests.system.processes import serves
from tests.system.servers import single

pytestmark = pytest.mark.system


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
