"""What clients and workers see while the store is away, and that it is whole afterwards."""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import SCHEMA
from tests.conftest import Figure
from tests.support.faults import Proxy, proxy_in_thread
from tests.support.invariants import check_invariants
from tests.support.outage import queue_length
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.load import Seen, load
from tests.system.processes import ControllerProcess, serves, stock_worker
from tests.system.processes import Server as WorkerProcess
from tests.system.servers import Server, cluster, sentinels, single

LOOKS_OFTEN = (
    "--snapshot-interval",
    "0.2",
    "--redis-timeout",
    "0.25",
)  # the latter as by default: it is in the figures
PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@contextlib.asynccontextmanager
async def workers(work_dir: Path, controller: ControllerProcess) -> AsyncIterator[list[WorkerProcess]]:
    """Three stock workers, which send heartbeats every second."""
    with contextlib.ExitStack() as stack:
        flags = ("--model-names", "m")
        started = [stack.enter_context(stock_worker(work_dir, controller.url, *flags)) for _ in range(3)]
        await wait_until(lambda: set(controller.names()) == {w.url for w in started}, "the workers are registered")
        yield started


async def all_heartbeat(controller: ControllerProcess, started: list[WorkerProcess]) -> None:
    """Assert that every worker is there and sends heartbeats, and that none was restarted."""
    began = time.monotonic()

    def heard_since() -> set[str]:
        asked = time.monotonic()
        return {w["worker_name"] for w in controller.workers() if w["heartbeat_age"] < asked - began}

    await wait_until(lambda: heard_since() == {w.url for w in started}, "all workers send heartbeats")
    assert all(w.popen.poll() is None for w in started)


async def snapshots_taken(controllers: list[ControllerProcess], number: int = 3) -> None:
    """Wait until every replica knows so many workers without the store."""
    for controller in controllers:
        await wait_until(lambda c=controller: len(c.names()) == number, "the replica knows the workers")
    await asyncio.sleep(1.5)  # and has taken a snapshot since, for which it needs 0.2 s: nothing but time tells


async def all_booked(url: str, number: int) -> None:
    """Wait until so many dispatches are booked: a replica may have to tell the store of its last ones."""
    client = connect(url, timeout=60.0)

    async def booked() -> int:
        names = await client.zrange(keys.workers("controller"), 0, -1)
        return sum([await queue_length(client, "controller", name) for name in names])

    async def all_are() -> bool:
        return await booked() == number

    try:
        await wait_until(all_are, "every dispatch is booked")
        await check_invariants(client, "controller")
        assert await booked() == number, "each once"
    finally:
        await client.aclose()


def registered_for_good(controller: ControllerProcess) -> set[str]:
    """Three workers that send no heartbeats: nobody but us sets their queue length."""
    names = {f"http://127.0.0.1:1/w{i}" for i in range(3)}
    for name in names:
        controller.register(name, check=False)
    return names


async def test_a_store_that_hangs_for_several_heartbeats(serve: Serve, work_dir: Path, figure: Figure) -> None:
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await snapshots_taken(replicas)
            async with load([replica.url for replica in replicas]) as seen:
                await wait_until(lambda: seen.total > 100, "the load is on")
                store.stop()
                for worker in started:
                    await wait_until(
                        lambda w=worker: w.log.count("heart beat error") >= 2, "two of its heartbeats are refused"
                    )
                await wait_until(lambda: seen.degraded > 100, "dispatches go on without the store")
                store.go_on()
                await returned(replicas, seen)
            await all_heartbeat(replicas[0], started)
    figure("Redis stopped for several heartbeats (SIGSTOP)", seen)
    assert seen.failed == []
    assert set(seen.addresses) == {w.url for w in started}


async def returned(replicas: list[ControllerProcess], seen: Seen) -> None:
    """Wait until all replicas dispatch by the store again."""
    for replica in replicas:
        await wait_until(lambda r=replica: serves(r.url), "the replica dispatches by the store again")
    mark = {"degraded": -1, "total": 0}

    def exact() -> bool:
        if seen.degraded > mark["degraded"]:
            mark.update(degraded=seen.degraded, total=seen.total)
        return seen.total > mark["total"] + 50

    await wait_until(exact, "dispatches go on, all of them by the store")


async def test_every_dispatch_through_an_outage_is_booked_once(serve: Serve, work_dir: Path, figure: Figure) -> None:
    """SIGSTOP three times: what waits in the sockets runs late, and what was made without the store is told."""
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        names = registered_for_good(replicas[0])
        await snapshots_taken(replicas)
        async with load([replica.url for replica in replicas]) as seen:
            for _ in range(3):
                total = seen.total
                await wait_until(lambda total=total: seen.total > total + 100, "dispatches go on")
                store.stop()
                degraded = seen.degraded
                await wait_until(lambda before=degraded: seen.degraded > before + 100, "they go on without the store")
                store.go_on()
                await returned(replicas, seen)
        figure("Redis stopped three times; every dispatch booked once", seen)
        assert seen.failed == []
        assert set(seen.addresses) == names
        await all_booked(store.url, seen.total)


async def test_one_replica_is_cut_off(serve: Serve, work_dir: Path, figure: Figure) -> None:
    """The others dispatch exactly; the one dispatches too, and tells of it when it is back."""
    socket = str(work_dir / "redis.sock")
    async with single(work_dir, "--save", "", "--unixsocket", socket) as store:
        with proxy_in_thread(Proxy(work_dir / "cut.sock", socket)) as line:
            lonely = serve("--redis-url", line.url, *LOOKS_OFTEN, data="lonely")
            other = serve("--redis-url", store.url, *LOOKS_OFTEN, data="other")
            registered_for_good(other)
            await snapshots_taken([lonely, other])
            async with load([lonely.url, other.url]) as seen:
                await wait_until(lambda: seen.total > 100, "the load is on")
                line.hang()
                await wait_until(lambda: seen.degraded > 200, "it goes on without the store")
                assert serves(other.url)
                assert not serves(lonely.url)
                line.resume()
                await returned([lonely, other], seen)
        figure("one of two replicas cut off; every dispatch booked once", seen)
        assert seen.failed == []
        await all_booked(store.url, seen.total)


async def test_a_store_that_is_killed_and_keeps_its_data(serve: Serve, work_dir: Path, figure: Figure) -> None:
    async with single(work_dir, *PERSISTENT) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        registered_for_good(replicas[0])
        await snapshots_taken(replicas)
        async with load([replica.url for replica in replicas]) as seen:
            await wait_until(lambda: seen.total > 100, "the load is on")
            store.kill()
            await wait_until(lambda: seen.degraded > 100, "they go on without the store")
            store.start()
            await returned(replicas, seen)
        figure("Redis killed and started again, with its data; every dispatch booked once", seen)
        assert seen.failed == []
        assert len(replicas[0].names()) == 3
        await all_booked(store.url, seen.total)


@pytest.mark.parametrize("quickly", [True, False])
async def test_a_store_that_loses_everything_is_given_the_workers_again(
    serve: Serve, work_dir: Path, figure: Figure, quickly: bool
) -> None:
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await snapshots_taken(replicas)
            async with load([replica.url for replica in replicas]) as seen:
                await wait_until(lambda: seen.total > 100, "the load is on")
                store.kill()
                if not quickly:
                    await wait_until(lambda: seen.degraded > 100, "they go on without the store")
                store.start()
                await returned(replicas, seen)
            figure(f"Redis killed and started again {'at once' if quickly else 'later'}, without data", seen)
            assert seen.failed == []
            assert set(seen.addresses) == {w.url for w in started}
            await all_heartbeat(replicas[0], started)
            assert any("registering 3 workers again" in replica.log for replica in replicas)


async def test_everybody_comes_back_when_nobody_remembers(serve: Serve, work_dir: Path) -> None:
    """The store and all replicas are killed, and nothing is kept: the workers' heartbeats bring them back."""
    async with single(work_dir) as store:
        first = serve("--redis-url", store.url, data="first")
        async with workers(work_dir, first) as started:
            store.kill()
            first.kill()
            store.start()
            again = serve("--redis-url", store.url, data="again", port=first.port)
            await all_heartbeat(again, started)


async def test_a_replica_starts_without_its_store_and_waits_for_it(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        store.kill()
        controller = serve("--redis-url", store.url, ready=False)
        controller.wait_for(lambda: "Application startup complete" in controller.log, "it is up")
        with pytest.raises(OSError, match="503"):
            controller.post("/receive_heart_beat", {"worker_name": "http://127.0.0.1:1/a", "queue_length": 0})
        assert controller.dispatch() == ""
        assert not serves(controller.url)
        store.start()
        controller.ready()
        controller.register("http://127.0.0.1:1/a")
        assert controller.dispatch() == "http://127.0.0.1:1/a"
        assert controller.popen.poll() is None


async def test_sentinel_promotes_another_when_the_master_is_killed(
    serve: Serve, work_dir: Path, figure: Figure
) -> None:
    async with sentinels(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await snapshots_taken(replicas)
            async with load([replica.url for replica in replicas]) as seen:
                await wait_until(lambda: seen.total > 100, "the load is on")
                store.first.kill()
                await wait_until(lambda: store.other_master(store.first), "another is promoted")
                await returned(replicas, seen)
            await all_heartbeat(replicas[0], started)
        master = await store.master()
        assert master is not None
        client = connect(master.url, timeout=60.0)
        await check_invariants(client, "controller")
        await client.aclose()
    figure("Sentinel failover, master killed", seen)
    assert seen.failed == []
    assert seen.degraded > 0


async def test_a_planned_failover_loses_nothing(serve: Serve, work_dir: Path, figure: Figure) -> None:
    """The README's procedure: first hold the writes, then fail over."""
    async with sentinels(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        registered_for_good(replicas[0])
        await snapshots_taken(replicas)
        async with load([replica.url for replica in replicas]) as seen:
            await wait_until(lambda: seen.total > 100, "the load is on")
            await store.first.ask("CLIENT", "PAUSE", "60000", "WRITE")
            await store.sentinels[0].ask("SENTINEL", "FAILOVER", "main")
            await wait_until(lambda: store.other_master(store.first), "another is promoted")
            await returned(replicas, seen)
        master = await store.master()
        assert master is not None
        figure("Sentinel failover, planned; every dispatch booked once", seen)
        assert seen.failed == []
        await all_booked(master.url, seen.total)


@pytest.mark.parametrize("planned", [True, False])
async def test_a_cluster_fails_over_the_slot_s_master(
    serve: Serve, work_dir: Path, figure: Figure, planned: bool
) -> None:
    async with cluster(work_dir) as store:
        replicas = [serve("--redis-url", store.url, *LOOKS_OFTEN, data=f"r{i}") for i in range(2)]
        async with workers(work_dir, replicas[0]) as started:
            await snapshots_taken(replicas)
            before = await store.owner(keys.namespace("controller"))
            assert before is not None
            async with load([replica.url for replica in replicas]) as seen:
                await wait_until(lambda: seen.total > 100, "the load is on")
                if planned:
                    follower = store.nodes[store.nodes.index(before) + 3]
                    await follower.ask("CLUSTER", "FAILOVER")
                else:
                    before.kill()
                await wait_until(lambda: changed(store, before), "another is the master of the slot")
                await returned(replicas, seen)
            await all_heartbeat(replicas[0], started)
        figure(f"Cluster failover, {'planned' if planned else 'master killed'}", seen)
        assert seen.failed == []
        if not planned:
            assert seen.degraded > 0


async def changed(store: object, before: Server) -> bool:
    owner = await store.owner(keys.namespace("controller"))
    return owner is not None and owner is not before


async def test_two_namespaces_do_not_see_each_other(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        one, other = (serve("--redis-url", store.url, "--namespace", name, data=name) for name in ("one", "other"))
        one.register("http://127.0.0.1:1/a")
        other.register("http://127.0.0.1:1/b", queue_length=3)
        assert [one.dispatch(), other.dispatch()] == ["http://127.0.0.1:1/a", "http://127.0.0.1:1/b"]
        assert (one.names(), other.names()) == (["http://127.0.0.1:1/a"], ["http://127.0.0.1:1/b"])
        assert one.post("/remove_worker", {"worker_name": "http://127.0.0.1:1/b"}) == {"exist": False}
        assert other.workers()[0]["queue_length"] == 4


async def test_a_store_with_another_layout_stops_a_replica_with_a_clear_word(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        client: Redis = store.client()
        await client.set(keys.schema("controller"), "999")
        controller = serve("--redis-url", store.url, ready=False)
        assert controller.popen.wait(60) == 1
        assert f"laid out in version 999, this program works with version {SCHEMA}" in controller.log
        assert "Traceback" not in controller.log
        await wait_until(lambda: only_the_schema(client), "nothing else is left")
        await client.aclose()


async def only_the_schema(client: Redis) -> bool:
    return bool(await client.keys("*") == [keys.schema("controller")])


async def test_a_store_that_stops_while_a_worker_registers(serve: Serve, work_dir: Path) -> None:
    """Trap 1: the registration waits, and is then made."""
    async with single(work_dir) as store:
        controller = serve("--redis-url", store.url)
        store.stop()
        call = asyncio.get_running_loop().run_in_executor(None, controller.register, "http://127.0.0.1:1/a")
        await wait_until(lambda: "does not serve" in controller.log, "the store is known to be away")
        assert not call.done()
        store.go_on()
        await call
        assert controller.dispatch() == "http://127.0.0.1:1/a"


async def test_sigterm_ends_a_registration_that_waits_with_a_503(serve: Serve, work_dir: Path) -> None:
    """So that a load balancer gives it to another replica."""
    async with single(work_dir) as store:
        controller = serve("--redis-url", store.url)
        store.kill()
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        body = {"worker_name": "http://127.0.0.1:1/a", "check_heart_beat": True, "worker_status": status}
        call = asyncio.get_running_loop().run_in_executor(None, controller.post, "/register_worker", body)
        await wait_until(lambda: "does not serve" in controller.log, "the store is known to be away")
        os.kill(controller.popen.pid, signal.SIGTERM)
        with pytest.raises(OSError, match="503"):
            await call
        assert controller.popen.wait(60) == 0
