"""deploy/docker-compose.yml under kills, restarts and upgrades. All tests use one cluster, in order."""

import asyncio
import json
import random
import re
import tarfile
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import Figure
from tests.deploy import dashboards, isolation, runbook
from tests.deploy.cluster_state import (
    POLL_INTERVAL,
    addresses,
    all_workers,
    check_consistency,
    containers,
    dispatches,
    health,
    names,
    ready,
    ready_replicas,
    wait_for_expiration,
)
from tests.deploy.compose import Compose, docker
from tests.deploy.conftest import redis_url
from tests.support.waiting import wait_for_each, wait_until
from tests.system.load import load
from tests.system.processes import call, serves

KILL_SECONDS = 30.0
pytestmark = [pytest.mark.deploy, pytest.mark.timeout(400)]


async def test_every_route_through_the_load_balancer(cluster: Compose) -> None:
    await wait_until(lambda: serves(cluster.url), "the cluster is ready", timeout=60)
    workers = await all_workers(cluster)
    url = cluster.url

    def post(path: str, body: object = None) -> Any:
        return call(url + path, body)

    assert call(f"{url}/test_connection", method="GET") == "success"
    assert call(f"{url}/healthz", method="GET") == {"healthy": True}
    assert post("/list_models") == {"models": ["m"]} == post("/list_language_models")
    assert post("/list_multimodal_models") == {"models": []}
    assert {post("/get_worker_address", {"model": "m"})["address"] for _ in range(3)} == workers
    assert post("/worker_get_status")["model_names"] == ["m"]
    assert post("/refresh_all_workers") is None
    assert names(cluster) == workers
    body = {"worker_name": "http://127.0.0.1:1/w", "check_heart_beat": True}
    status = {"model_names": ["other"], "speed": 1, "queue_length": 0}
    assert post("/register_worker", {**body, "worker_status": status}) is None
    assert post("/receive_heart_beat", {"worker_name": "http://127.0.0.1:1/w", "queue_length": 3}) == {"exist": True}
    assert post("/remove_worker", {"worker_name": "http://127.0.0.1:1/w"}) == {"exist": True}
    assert post("/receive_heart_beat", {"worker_name": "http://127.0.0.1:1/w", "queue_length": 3}) == {"exist": False}
    metrics = httpx.get(f"{url}/metrics").text
    assert "controller_dispatches_total" in metrics
    assert httpx.post(f"{url}/get_worker_address", content=b"invalid").status_code == 400


async def test_the_replicas_are_healthy(cluster: Compose) -> None:
    """The health check of the image works with a read-only file system and without capabilities."""
    await wait_for_each(
        cluster.containers("controller"),
        lambda container: health(container) == "healthy",
        "the replica is healthy",
        interval=POLL_INTERVAL,
    )


async def test_a_stream_arrives_frame_by_frame(cluster: Compose) -> None:
    prompt = " ".join(str(i) for i in range(20))
    arrived: list[float] = []
    frames = b""
    async with (
        httpx.AsyncClient(timeout=60.0) as http,
        http.stream("POST", f"{cluster.url}/worker_generate_stream", json={"model": "m", "prompt": prompt}) as response,
    ):
        async for part in response.aiter_raw():
            frames += part
            arrived.append(time.monotonic())
    decoded = [json.loads(frame) for frame in frames.split(b"\0")[:-1]]
    assert len(decoded) == 21
    assert decoded[-1]["text"].endswith(prompt)
    assert len(arrived) > 10, "the frames were not buffered"


async def test_a_slow_request_is_sent_to_a_worker_once(cluster: Compose) -> None:
    """A response that is not a stream arrives after 4 s. The load balancer must not retry meanwhile."""
    prompt = " ".join(str(i) for i in range(80))
    answer = await asyncio.to_thread(call, f"{cluster.url}/worker_generate", {"model": "m", "prompt": prompt})
    assert answer["text"].endswith(prompt)
    calls = re.compile(r'controller_calls_total\{outcome="(\w+)"\} ([0-9.]+)')
    metrics = [
        httpx.get(f"http://{cluster.address(container)}:21001/metrics").text
        for container in cluster.containers("controller")
    ]
    counted = [found for text in metrics for found in calls.findall(text) if found[1] != "0.0"]
    assert counted == [("complete", "1.0")]


async def test_every_panel_of_the_dashboard_has_data(cluster: Compose, prometheus_image: str) -> None:
    """Requests of each kind are in the panels, and a model that loses its worker is in the alerts."""
    if not prometheus_image:
        pytest.skip("NOT TESTED, dashboard: prometheus is not installed")
    await dashboards.check_panels(cluster)


async def test_every_container_has_limits(cluster: Compose) -> None:
    isolation.check_limits(cluster)


async def test_the_cluster_is_scaled_from_3_to_6_under_load(cluster: Compose, figure: Figure) -> None:
    workers = await all_workers(cluster)
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(cluster, "up", "--detach", "--no-build", "--no-recreate", "--scale", "controller=6")
        await ready_replicas(cluster, 6)
        urls = [f"http://{cluster.address(container)}:21001" for container in cluster.containers("controller")]
        await wait_for_each(urls, lambda url: dispatches(url) > 0, "each replica dispatches", interval=POLL_INTERVAL)
    figure("scaled from 3 to 6", results)
    assert results.failed == []
    assert set(results.addresses) == workers


async def test_replicas_are_killed_at_random(cluster: Compose, figure: Figure) -> None:
    cluster("up", "--detach", "--no-build", "--no-recreate", "--scale", "controller=3")
    await ready_replicas(cluster, 3)
    workers = await all_workers(cluster)
    victim = cluster.containers("stock-worker")[0]
    dead = f"http://{cluster.address(victim)}:21002"
    kills = 0
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(docker, "kill", victim)
        expiration = asyncio.create_task(wait_for_expiration(cluster, dead))
        end = time.monotonic() + KILL_SECONDS
        while time.monotonic() < end or kills < KILL_SECONDS / 6:  # on a busy machine, a start takes long
            replica = random.choice(cluster.containers("controller"))
            await asyncio.to_thread(docker, "kill", replica)
            kills += 1
            await asyncio.sleep(random.uniform(0.2, 1.0))
            await asyncio.to_thread(docker, "start", replica)
            await ready(cluster, replica)
        expired_at = await expiration
    figure(f"{kills} replicas of 3 killed in {KILL_SECONDS:g} s", results)
    assert results.failed == []
    assert results.last_sent[dead] < expired_at, "no dispatch to the dead worker after its expiration"
    assert set(results.addresses) == workers
    await check_consistency(cluster)
    docker("start", victim)
    await all_workers(cluster)


async def test_a_rolling_restart_under_load(cluster: Compose, figure: Figure) -> None:
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        for replica in cluster.containers("controller"):
            await asyncio.to_thread(docker, "stop", "--time", "40", replica)
            [state] = json.loads(docker("inspect", replica, "--format", "[{{json .State}}]"))
            assert state["ExitCode"] == 0
            await asyncio.to_thread(docker, "start", replica)
            await ready(cluster, replica)
    figure("rolling restart of 3 replicas", results)
    assert results.failed == []
    await all_workers(cluster)
    await check_consistency(cluster)


async def test_an_upgrade_under_load(cluster: Compose, figure: Figure) -> None:
    """deploy/upgrade.sh replaces all replicas to change their environment. Afterwards `up` changes nothing."""
    workers = await all_workers(cluster)
    old, everything = cluster.containers("controller"), containers(cluster)
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(cluster.upgrade, CONTROLLER_LOG_LEVEL="warning")
        total = results.total
        await wait_until(lambda: results.total > total + 100, "dispatches continue")
    figure("upgrade of 3 replicas", results)
    assert results.failed == []
    assert set(results.addresses) == workers
    new = cluster.containers("controller")
    assert len(new) == 3
    assert set(new).isdisjoint(old)
    for replica in new:
        assert "CONTROLLER_LOG_LEVEL=warning" in docker("inspect", replica, "--format", "{{.Config.Env}}")
    upgraded = containers(cluster)
    assert everything - set(old) == upgraded - set(new), "only the replicas have changed"
    cluster("up", "--detach", "--no-build")
    assert containers(cluster) == upgraded
    await all_workers(cluster)
    await check_consistency(cluster)


async def test_an_upgrade_stops_if_a_new_replica_does_not_get_ready(cluster: Compose) -> None:
    everything = containers(cluster)
    with pytest.raises(AssertionError, match="did not become ready"):
        cluster.upgrade(CONTROLLER_LOG_LEVEL="invalid", UPGRADE_TIMEOUT="3")
    assert containers(cluster) == everything


async def test_replacing_replicas_does_not_replace_the_load_balancer(cluster: Compose) -> None:
    [balancer], replicas = cluster.containers("loadbalancer"), cluster.containers("controller")
    cluster("up", "--detach", "--no-build", "controller", "loadbalancer", CONTROLLER_LOG_LEVEL="error")
    assert cluster.containers("loadbalancer") == [balancer]
    assert set(cluster.containers("controller")).isdisjoint(replicas)
    cluster("up", "--detach", "--no-build")
    await ready_replicas(cluster, 3)
    await all_workers(cluster)


async def test_redis_is_restarted_under_load(cluster: Compose, figure: Figure) -> None:
    workers = await all_workers(cluster)
    registered = {"model_names": ["kept"], "speed": 1, "queue_length": 0}
    body = {"worker_name": "http://127.0.0.1:1/kept", "check_heart_beat": False, "worker_status": registered}
    assert call(f"{cluster.url}/register_worker", body) is None
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(cluster, "restart", "redis")
        await ready_replicas(cluster, 3)
        total = results.total
        await wait_until(lambda: results.total > total + 100, "dispatches continue")
    figure("docker compose restart redis", results)
    assert results.failed == []
    assert set(results.addresses) == workers
    assert call(f"{cluster.url}/get_worker_address", {"model": "kept"}) == {"address": "http://127.0.0.1:1/kept"}
    assert call(f"{cluster.url}/remove_worker", {"worker_name": "http://127.0.0.1:1/kept"}) == {"exist": True}
    await all_workers(cluster)
    await check_consistency(cluster)


async def test_redis_is_killed_under_load(cluster: Compose, figure: Figure) -> None:
    [redis] = cluster.containers("redis")
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(docker, "kill", redis)
        await wait_until(lambda: results.degraded > 100, "dispatches continue without Redis")
        await asyncio.to_thread(docker, "start", redis)
        await ready_replicas(cluster, 3)
    figure("redis killed and started again", results)
    assert results.failed == []
    await all_workers(cluster)
    await check_consistency(cluster)


async def test_redis_restores_the_registry_from_disk(cluster: Compose) -> None:
    """Redis and all replicas are killed, so the registry is only on the disk of Redis."""
    registered = {"model_names": ["kept"], "speed": 1, "queue_length": 0}
    body = {"worker_name": "http://127.0.0.1:1/kept", "check_heart_beat": False, "worker_status": registered}
    assert call(f"{cluster.url}/register_worker", body) is None
    dispatch = {"model": "kept", "lease": True}  # a lease does not decay during the restart
    assert call(f"{cluster.url}/get_worker_address", dispatch)["address"] == "http://127.0.0.1:1/kept"
    replicas, [redis] = cluster.containers("controller"), cluster.containers("redis")
    await asyncio.to_thread(docker, "kill", *replicas)
    await asyncio.to_thread(docker, "kill", redis)
    await asyncio.to_thread(docker, "start", redis, *replicas)
    await ready_replicas(cluster, 3)
    listed = call(f"{cluster.url}/workers", method="GET")["workers"]
    assert call(f"{cluster.url}/remove_worker", {"worker_name": "http://127.0.0.1:1/kept"}) == {"exist": True}
    assert [w["queue_length"] for w in listed if w["worker_name"] == "http://127.0.0.1:1/kept"] == [1]
    logs = docker("logs", redis)
    assert "NOPERM" not in logs
    assert "CRITICAL" not in logs
    await all_workers(cluster)


async def test_all_replicas_are_killed_at_once(cluster: Compose, figure: Figure) -> None:
    await all_workers(cluster)
    replicas = cluster.containers("controller")
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(docker, "kill", *replicas)
        await asyncio.to_thread(docker, "start", *replicas)
        await ready_replicas(cluster, 3)
        total = results.total
        await wait_until(lambda: results.total > total + 100, "dispatches continue")
    figure("all replicas killed at once and started again", results)
    assert set(results.addresses) - {""} == addresses(cluster)
    await all_workers(cluster)


async def test_a_replica_hangs_under_load(cluster: Compose, figure: Figure) -> None:
    workers = await all_workers(cluster)
    replica = cluster.containers("controller")[0]
    async with load([cluster.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(docker, "pause", replica)
        try:
            answers = [asyncio.to_thread(call, f"{cluster.url}/workers", method="GET", timeout=30.0) for _ in range(9)]
            assert all(len(answer["workers"]) == 3 for answer in await asyncio.gather(*answers))
            total = results.total
            await wait_until(lambda: results.total > total + 300, "dispatches continue")
        finally:
            await asyncio.to_thread(docker, "unpause", replica)
    figure("a replica paused and resumed", results)
    assert results.failed == []
    assert set(results.addresses) == workers
    await ready_replicas(cluster, 3)


async def test_a_worker_reaches_the_load_balancer_only(cluster: Compose) -> None:
    isolation.check_networks(cluster)


async def test_a_replica_has_few_privileges(cluster: Compose) -> None:
    await isolation.check_privileges(cluster)


async def test_the_runbook_rotates_the_password_of_redis(cluster: Compose) -> None:
    await all_workers(cluster)
    await runbook.check_rotation(cluster, redis_url(cluster))


async def test_the_runbook_helps_a_full_redis(cluster: Compose) -> None:
    workers = await all_workers(cluster)
    await runbook.check_full_redis(cluster, redis_url(cluster), workers)


def test_the_runbook_backs_up_redis(cluster: Compose, tmp_path: Path) -> None:
    runbook.run(cluster, "> backup.tar", tmp_path)
    with tarfile.open(tmp_path / "backup.tar") as backup:
        assert "appendonlydir/appendonly.aof.manifest" in backup.getnames()
