"""The state of a cluster in containers, as its tests see it from outside."""

import contextlib
import time

import httpx

from controller.store.connection import connect
from tests.deploy.compose import Compose, docker
from tests.deploy.conftest import redis_url
from tests.support.clients import Client
from tests.support.invariants import check_invariants
from tests.support.metrics import value
from tests.support.waiting import wait_until
from tests.system.processes import call, serves

POLL_INTERVAL = 0.2  # seconds between calls to Docker, which slow down the cluster


def addresses(cluster: Compose) -> set[str]:
    return {f"http://{cluster.address(container)}:21002" for container in cluster.containers("stock-worker")}


def heartbeating(cluster: Compose) -> set[str]:
    """Return the workers whose last heartbeat is younger than 2 s. Empty if the cluster does not answer."""
    try:
        workers = call(f"{cluster.url}/workers", method="GET", timeout=2.0)["workers"]
    except OSError:
        return set()
    return {worker["worker_name"] for worker in workers if worker["heartbeat_age"] < 2}


async def all_workers(cluster: Compose) -> set[str]:
    """Wait until all stock workers send heartbeats. Return their addresses."""
    expected = addresses(cluster)
    await wait_until(lambda: heartbeating(cluster) == expected, "all stock workers send heartbeats", timeout=180)
    return expected


async def check_consistency(cluster: Compose) -> None:
    """Assert that registry and indexes agree. Heartbeats change them during the check, so up to 21 checks are made."""
    client: Client = connect(redis_url(cluster), timeout=5.0)
    try:
        for _ in range(20):
            with contextlib.suppress(AssertionError):
                await check_invariants(client, "controller", decays=True)
                return
        await check_invariants(client, "controller", decays=True)
    finally:
        await client.aclose()


async def ready_replicas(cluster: Compose, number: int) -> None:
    """Wait until `number` replicas run and each of them is ready."""
    running = await wait_until(lambda: replicas_if(cluster, number), f"{number} replicas run", interval=POLL_INTERVAL)
    for container in running:
        await ready(cluster, container)


async def ready(cluster: Compose, replica: str) -> None:
    """Wait until a replica is ready. Calls the replica without the load balancer."""
    url = f"http://{cluster.address(replica)}:21001"
    await wait_until(lambda: serves(url), "the replica is ready")


def replicas_if(cluster: Compose, number: int) -> list[str]:
    """Return the containers of the replicas if there are `number` of them, otherwise an empty list."""
    containers = cluster.containers("controller")
    return containers if len(containers) == number else []


def health(container: str) -> str:
    return docker("inspect", container, "--format", "{{.State.Health.Status}}").strip()


def dispatches(replica: str) -> float:
    """Return the number of dispatches that a replica has counted."""
    text = httpx.get(f"{replica}/metrics").text
    return value(text, "controller_dispatches_total", outcome="chosen")


async def wait_for_expiration(cluster: Compose, worker: str) -> float:
    """Wait until a worker's heartbeat has expired. Return the time."""
    await wait_until(lambda: worker not in names(cluster), "the heartbeat has expired", interval=POLL_INTERVAL)
    return time.perf_counter()


def names(cluster: Compose) -> set[str]:
    return {worker["worker_name"] for worker in call(f"{cluster.url}/workers", method="GET")["workers"]}


def containers(cluster: Compose) -> set[str]:
    return set(cluster("ps", "--all", "--quiet").split())
