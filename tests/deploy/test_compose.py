"""`docker compose up`, and everything that may then happen to it. The tests go on in one cluster, in order."""

import asyncio
import contextlib
import json
import random
import re
import time

import httpx
import pytest

from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import SCHEMA
from tests.conftest import Figure
from tests.deploy.compose import Compose, docker
from tests.deploy.conftest import redis_url
from tests.support.invariants import check_invariants
from tests.support.waiting import wait_until
from tests.system.load import load
from tests.system.processes import call, serves

KILLING = 60.0  # seconds
ASKING = 0.2  # seconds between two questions to Docker, which take time from what is tested

pytestmark = pytest.mark.timeout(400)


def addresses(cluster: Compose) -> set[str]:
    return {f"http://{cluster.address(container)}:21002" for container in cluster.containers("stock-worker")}


def heartbeating(cluster: Compose) -> set[str]:
    """The workers of which the cluster has heard lately; none if it does not answer."""
    try:
        workers = call(f"{cluster.url}/workers", method="GET", timeout=2.0)["workers"]
    except OSError:
        return set()
    return {worker["worker_name"] for worker in workers if worker["heartbeat_age"] < 2}


async def all_workers(cluster: Compose) -> set[str]:
    """Wait until all stock workers send heartbeats; their addresses."""
    expected = addresses(cluster)
    await wait_until(lambda: heartbeating(cluster) == expected, "all stock workers send heartbeats", timeout=60)
    return expected


async def whole(cluster: Compose) -> None:
    """Assert that registry and indexes agree. Heartbeats go on meanwhile, so it may take more than one look."""
    client = connect(redis_url(cluster), timeout=5.0)
    try:
        for _ in range(20):
            with contextlib.suppress(AssertionError):
                await check_invariants(client, "controller", fades=True)
                return
        await check_invariants(client, "controller", fades=True)
    finally:
        await client.aclose()


async def ready_replicas(cluster: Compose, number: int) -> None:
    """Wait until so many replicas are ready, each asked by itself."""
    there = await wait_until(lambda: of_service(cluster, number), f"{number} replicas are there", interval=ASKING)
    for container in there:
        await ready(cluster, container)


async def ready(cluster: Compose, replica: str) -> None:
    """Wait until a replica that has been started is ready, asked by itself."""
    url = f"http://{cluster.address(replica)}:21001"
    await wait_until(lambda: serves(url), "the replica is ready")


def of_service(cluster: Compose, number: int) -> list[str]:
    containers = cluster.containers("controller")
    return containers if len(containers) == number else []


async def test_every_route_through_the_load_balancer(cluster: Compose) -> None:
    await wait_until(lambda: serves(cluster.url), "the cluster is ready", timeout=60)
    workers = await all_workers(cluster)
    url = cluster.url

    def post(path: str, body: object = None) -> object:
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
    assert httpx.post(f"{url}/get_worker_address", content=b"nonsense").status_code == 400


async def test_the_replicas_are_healthy(cluster: Compose) -> None:
    """As the image's own check says, with a read-only file system and no capabilities."""
    for container in cluster.containers("controller"):
        await wait_until(lambda c=container: health(c) == "healthy", "the replica is healthy", interval=ASKING)


def health(container: str) -> str:
    return docker("inspect", container, "--format", "{{.State.Health.Status}}").strip()


async def test_a_stream_comes_through_frame_by_frame(cluster: Compose) -> None:
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
    told = [json.loads(frame) for frame in frames.split(b"\0")[:-1]]
    assert len(told) == 21
    assert told[-1]["text"].endswith(prompt)
    assert len(arrived) > 10, "they were not kept back"


async def test_what_takes_longer_than_a_check_is_asked_once(cluster: Compose) -> None:
    """A worker's answer that is no stream comes whole, after 4 s; the load balancer must not ask another meanwhile."""
    prompt = " ".join(str(i) for i in range(80))
    answer = await asyncio.to_thread(call, f"{cluster.url}/worker_generate", {"model": "m", "prompt": prompt})
    assert answer["text"].endswith(prompt)
    calls = re.compile(r'controller_calls_total\{outcome="(\w+)"\} ([0-9.]+)')
    told = [
        httpx.get(f"http://{cluster.address(container)}:21001/metrics").text
        for container in cluster.containers("controller")
    ]
    counted = [found for text in told for found in calls.findall(text) if found[1] != "0.0"]
    assert counted == [("complete", "1.0")]


async def test_three_become_six_under_load(cluster: Compose, figure: Figure) -> None:
    workers = await all_workers(cluster)
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(cluster, "up", "--detach", "--no-build", "--no-recreate", "--scale", "controller=6")
        await ready_replicas(cluster, 6)
        for container in cluster.containers("controller"):
            url = f"http://{cluster.address(container)}:21001"
            await wait_until(lambda url=url: dispatches(url) > 0, "it works, too", interval=ASKING)
    figure("scaled from 3 to 6", seen)
    assert seen.failed == []
    assert set(seen.addresses) == workers


def dispatches(replica: str) -> float:
    """How many a replica has made, by its own count."""
    text = httpx.get(f"{replica}/metrics").text
    match = re.search(r'dispatches_total\{outcome="chosen"\} ([0-9.e+]+)', text)
    return float(match[1]) if match else 0.0


async def test_replicas_are_killed_at_random_for_a_minute(cluster: Compose, figure: Figure) -> None:
    cluster("up", "--detach", "--no-build", "--no-recreate", "--scale", "controller=3")
    await ready_replicas(cluster, 3)
    workers = await all_workers(cluster)
    victim = cluster.containers("stock-worker")[0]
    dead = f"http://{cluster.address(victim)}:21002"
    kills = 0
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(docker, "kill", victim)
        lapse = asyncio.create_task(lapsed(cluster, dead))
        end = time.monotonic() + KILLING
        while time.monotonic() < end:
            replica = random.choice(cluster.containers("controller"))
            await asyncio.to_thread(docker, "kill", replica)
            kills += 1
            await asyncio.sleep(random.uniform(0.2, 1.0))
            await asyncio.to_thread(docker, "start", replica)
            await ready(cluster, replica)
        lapsed_at = await lapse
    figure(f"{kills} replicas of 3 killed in {KILLING:g} s", seen)
    assert seen.failed == []
    assert seen.last_asked[dead] < lapsed_at, "none to a dead worker"
    assert set(seen.addresses) == workers
    assert kills >= KILLING / 6
    await whole(cluster)
    docker("start", victim)
    await all_workers(cluster)


async def lapsed(cluster: Compose, worker: str) -> float:
    """Wait until a worker's heartbeat has lapsed. Return the time."""
    await wait_until(lambda: worker not in names(cluster), "its heartbeat has lapsed", interval=ASKING)
    return time.perf_counter()


def names(cluster: Compose) -> set[str]:
    return {worker["worker_name"] for worker in call(f"{cluster.url}/workers", method="GET")["workers"]}


async def test_a_rolling_restart_under_load(cluster: Compose, figure: Figure) -> None:
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        for replica in cluster.containers("controller"):
            await asyncio.to_thread(docker, "stop", "--time", "40", replica)
            [state] = json.loads(docker("inspect", replica, "--format", "[{{json .State}}]"))
            assert state["ExitCode"] == 0
            await asyncio.to_thread(docker, "start", replica)
            await ready(cluster, replica)
    figure("rolling restart of 3 replicas", seen)
    assert seen.failed == []
    await all_workers(cluster)
    await whole(cluster)


async def test_an_upgrade_under_load(cluster: Compose, figure: Figure) -> None:
    """deploy/upgrade.sh replaces the replicas by those of another environment; then `up` has nothing to do."""
    workers = await all_workers(cluster)
    old, everything = cluster.containers("controller"), containers(cluster)
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(cluster.upgrade, CONTROLLER_LOG_LEVEL="warning")
        total = seen.total
        await wait_until(lambda: seen.total > total + 100, "dispatches go on")
    figure("upgrade of 3 replicas", seen)
    assert seen.failed == []
    assert set(seen.addresses) == workers
    new = cluster.containers("controller")
    assert len(new) == 3
    assert set(new).isdisjoint(old)
    for replica in new:
        assert "CONTROLLER_LOG_LEVEL=warning" in docker("inspect", replica, "--format", "{{.Config.Env}}")
    upgraded = containers(cluster)
    assert everything - set(old) == upgraded - set(new), "nothing else has changed"
    cluster("up", "--detach", "--no-build")
    assert containers(cluster) == upgraded
    await all_workers(cluster)
    await whole(cluster)


def containers(cluster: Compose) -> set[str]:
    return set(cluster("ps", "--all", "--quiet").split())


async def test_a_replica_that_does_not_get_ready_is_no_upgrade(cluster: Compose) -> None:
    everything = containers(cluster)
    with pytest.raises(AssertionError, match="did not get ready"):
        cluster.upgrade(CONTROLLER_LOG_LEVEL="nonsense", UPGRADE_TIMEOUT="3")
    assert containers(cluster) == everything


async def test_replicas_that_are_replaced_leave_the_load_balancer_alone(cluster: Compose) -> None:
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
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(cluster, "restart", "redis")
        await ready_replicas(cluster, 3)
        total = seen.total
        await wait_until(lambda: seen.total > total + 100, "dispatches go on")
    figure("docker compose restart redis", seen)
    assert seen.failed == []
    assert set(seen.addresses) == workers
    assert call(f"{cluster.url}/get_worker_address", {"model": "kept"}) == {"address": "http://127.0.0.1:1/kept"}
    assert call(f"{cluster.url}/remove_worker", {"worker_name": "http://127.0.0.1:1/kept"}) == {"exist": True}
    await all_workers(cluster)
    await whole(cluster)


async def test_redis_is_killed_under_load(cluster: Compose, figure: Figure) -> None:
    [redis] = cluster.containers("redis")
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(docker, "kill", redis)
        await wait_until(lambda: seen.degraded > 100, "dispatches go on without it")
        await asyncio.to_thread(docker, "start", redis)
        await ready_replicas(cluster, 3)
    figure("redis killed, and started again", seen)
    assert seen.failed == []
    await all_workers(cluster)
    await whole(cluster)


async def test_redis_remembers_when_nobody_else_does(cluster: Compose) -> None:
    """All replicas are gone while Redis is killed: what it has on disk is all that is left."""
    registered = {"model_names": ["kept"], "speed": 1, "queue_length": 0}
    body = {"worker_name": "http://127.0.0.1:1/kept", "check_heart_beat": False, "worker_status": registered}
    assert call(f"{cluster.url}/register_worker", body) is None
    asked = {"model": "kept", "lease": True}  # which counts the same after any time that the restart takes
    assert call(f"{cluster.url}/get_worker_address", asked)["address"] == "http://127.0.0.1:1/kept"
    replicas, [redis] = cluster.containers("controller"), cluster.containers("redis")
    await asyncio.to_thread(docker, "kill", *replicas)
    await asyncio.to_thread(docker, "kill", redis)
    await asyncio.to_thread(docker, "start", redis, *replicas)
    await ready_replicas(cluster, 3)
    listed = call(f"{cluster.url}/workers", method="GET")["workers"]
    assert call(f"{cluster.url}/remove_worker", {"worker_name": "http://127.0.0.1:1/kept"}) == {"exist": True}
    assert [w["queue_length"] for w in listed if w["worker_name"] == "http://127.0.0.1:1/kept"] == [1]
    told = docker("logs", redis)
    assert "NOPERM" not in told
    assert "CRITICAL" not in told
    await all_workers(cluster)


async def test_all_replicas_are_killed_at_once(cluster: Compose, figure: Figure) -> None:
    await all_workers(cluster)
    replicas = cluster.containers("controller")
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(docker, "kill", *replicas)
        await asyncio.to_thread(docker, "start", *replicas)
        await ready_replicas(cluster, 3)
        total = seen.total
        await wait_until(lambda: seen.total > total + 100, "dispatches go on")
    figure("all replicas killed at once, and started again", seen)
    assert set(seen.addresses) - {""} == addresses(cluster)
    await all_workers(cluster)


async def test_a_replica_hangs_under_load(cluster: Compose, figure: Figure) -> None:
    workers = await all_workers(cluster)
    replica = cluster.containers("controller")[0]
    async with load([cluster.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(docker, "pause", replica)
        try:
            answers = [asyncio.to_thread(call, f"{cluster.url}/workers", method="GET", timeout=30.0) for _ in range(9)]
            assert all(len(answer["workers"]) == 3 for answer in await asyncio.gather(*answers))
            total = seen.total
            await wait_until(lambda: seen.total > total + 300, "dispatches go on")
        finally:
            await asyncio.to_thread(docker, "unpause", replica)
    figure("a replica paused, and let go on", seen)
    assert seen.failed == []
    assert set(seen.addresses) == workers
    await ready_replicas(cluster, 3)


async def test_what_a_replica_may_do_is_little(cluster: Compose) -> None:
    replica = cluster.containers("controller")[0]
    [told] = json.loads(docker("inspect", replica))
    assert told["Config"]["User"] == "10001:10001"
    assert told["HostConfig"]["ReadonlyRootfs"] is True
    assert told["HostConfig"]["CapDrop"] == ["ALL"]
    password = docker("exec", replica, "cat", "/run/controller/password").strip()
    assert len(password) > 30
    assert password not in json.dumps(told)
    assert password not in cluster("logs", "--no-color")
    client = connect(redis_url(cluster).replace("test:test", f"controller:{password}"), timeout=5.0)
    for command in (["KEYS", "*"], ["GET", "other"], ["FLUSHALL"], ["CONFIG", "GET", "*"], ["ACL", "LIST"], ["DBSIZE"]):
        with pytest.raises(Exception, match=r"(?i)no permissions"):
            await client.execute_command(*command)
    assert await client.get(keys.schema("controller")) == SCHEMA
    await client.aclose()
    assert "127.0.0.1" in docker("port", cluster.containers("loadbalancer")[0], "21001")
    assert docker("ps", "--quiet", "--filter", "publish=6379") == ""
