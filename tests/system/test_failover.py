"""Clients and workers while another Redis takes over: Sentinels and a Redis Cluster."""

from pathlib import Path

import pytest

from controller.store import keys
from controller.store.connection import connect
from tests.conftest import Figure
from tests.support.clients import Client
from tests.support.invariants import check_invariants
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.load import load
from tests.system.outages import (
    FREQUENT_SNAPSHOTS,
    check_bookings,
    check_heartbeats,
    register_without_heartbeats,
    wait_for_recovery,
    wait_for_snapshots,
    workers,
)
from tests.system.servers import Cluster, Server, cluster, sentinels

pytestmark = pytest.mark.system


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
