"""The compose files for Sentinel and for a Cluster, with a master killed under load, restarts and a reboot."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from controller.store import keys
from tests.conftest import Figure
from tests.deploy.compose import ROOT, Compose, docker, up
from tests.support.lifeline import project
from tests.support.waiting import wait_for_each, wait_until
from tests.system.load import load
from tests.system.processes import call, serves

DEPLOY = ROOT / "deploy"
NODES = ("redis", "redis-2", "redis-3")
SENTINELS = ("sentinel-1", "sentinel-2", "sentinel-3")
NAMES = {f"http://127.0.0.1:1/w{i}" for i in range(3)}

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(900)]


def compose(topology: str) -> Compose:
    files = (DEPLOY / "docker-compose.yml", DEPLOY / f"docker-compose.{topology}.yml")
    return Compose(project(f"controller-test-{topology}"), *files)


def redis_cli(container: str, *command: str) -> str:
    """Run redis-cli as administrator in a container of Redis. Return the reply, or "" if the container has ended."""
    script = 'REDISCLI_AUTH=$(cat /run/controller/operator-password) exec redis-cli --user admin "$@"'
    try:
        return docker("exec", container, "sh", "-c", script, "sh", *command).strip()
    except AssertionError:
        return ""


async def kill_master_under_load(running: Compose, master: str, promoted: Callable[[], bool], figure: Figure) -> None:
    """Register workers and kill the master. No dispatch may fail while another Redis takes over."""
    await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=90)
    for name in NAMES:
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        body = {"worker_name": name, "check_heart_beat": False, "worker_status": status}
        assert call(f"{running.url}/register_worker", body) is None
    urls = [f"http://{running.address(replica)}:21001" for replica in running.containers("controller")]
    await wait_for_each(urls, serves, "the replica is ready")
    await asyncio.sleep(1.5)  # several snapshot intervals, because no route shows the workers of a snapshot
    async with load([running.url]) as results:
        await wait_until(lambda: results.total > 100, "the load has started")
        await asyncio.to_thread(docker, "kill", master)
        await wait_until(promoted, "another Redis is the master", timeout=60, interval=0.5)
        await wait_until(lambda: serves(running.url), "the controllers use the new master")
    figure(f"master killed in {running.project}", results)
    assert results.failed == []
    assert results.degraded > 0
    assert set(results.addresses) == NAMES
    await asyncio.to_thread(docker, "start", master)
    await wait_until(lambda: is_connected_replica(master), "the old master is a replica", timeout=60, interval=0.5)


def is_connected_replica(container: str) -> bool:
    """Return True if a container of Redis is a replica that is connected to its master."""
    role = redis_cli(container, "role").split("\n")
    return role[0] == "slave" and "connected" in role


async def test_sentinel(built: None, figure: Figure) -> None:
    with up(compose("sentinel"), "--no-build") as running:
        [master], *others = (running.containers(service) for service in ("redis", "redis-2", "redis-3"))

        def promoted() -> bool:
            return any(redis_cli(container, "role").startswith("master") for [container] in others)

        await wait_until(
            lambda: redis_cli(master, "info", "replication").count("state=online") == 2, "both replicas are connected"
        )
        await kill_master_under_load(running, master, promoted, figure)

        # The new master is still the master after a restart.
        [second] = [c for [c] in others if redis_cli(c, "role").startswith("master")]
        await asyncio.to_thread(docker, "restart", "--time", "1", second)
        await wait_for_one_master(running)
        await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=120)
        assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES
        await recreate_containers(running)
        await restart_master_at_another_address(running)
        await reboot(running)
    assert running.leftovers() == []


async def recreate_containers(running: Compose) -> None:
    """Run `down` and `up`. Addresses change. The master stays unless the Sentinels promote another Redis."""
    old_master, old_addresses = master_names(running), addresses(running)
    for container in nodes(running).values():
        redis_cli(container, "config", "set", "maxmemory", "1gb")
        assert redis_cli(container, "config", "rewrite") == "OK"
    running("stop", *SENTINELS)  # otherwise they promote another master while the containers stop
    running("down", "--timeout", "5")
    running("up", "--detach", "--no-build", "--no-deps", "redis-3")
    running("up", "--detach", "--no-build")
    assert addresses(running) != old_addresses
    await wait_for_known_replicas(running)
    assert master_names(running) == old_master or failovers(running) > 0
    for container in nodes(running).values():
        # deploy/redis sets this value. A rewritten configuration in the volume must not override it.
        assert redis_cli(container, "config", "get", "maxmemory").split() == ["maxmemory", str(256 * 1024 * 1024)]
    await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=60)
    assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES


async def restart_master_at_another_address(running: Compose) -> None:
    """Give the address of a killed master to another container. The master restarts at another address as a replica."""
    old_master, old_addresses = master_names(running), addresses(running)
    await asyncio.to_thread(docker, "kill", nodes(running)[old_master])
    [image] = json.loads(docker("inspect", nodes(running)[old_master], "--format", "[{{json .Config.Image}}]"))
    occupant = docker("run", "--detach", "--rm", "--network", f"{running.project}_store", image, "sleep", "300").strip()
    try:
        assert running.address(occupant) == old_addresses[old_master]
        await wait_until(
            lambda: master_names(running) not in ("", old_master),
            "another Redis is the master",
            timeout=60,
            interval=0.5,
        )
        docker("start", nodes(running)[old_master])
        assert addresses(running)[old_master] != old_addresses[old_master]
        await wait_for_known_replicas(running)
        await kill_master(running)
    finally:
        docker("kill", occupant)


async def reboot(running: Compose) -> None:
    """Kill all containers and start them in another order. Addresses change."""
    old_master, old_addresses = master_names(running), addresses(running)
    everything = running("ps", "--quiet").split()
    before = failovers(running)
    watchers = [container for sentinel in SENTINELS for container in running.containers(sentinel)]
    await asyncio.to_thread(docker, "kill", *watchers)  # first, so that they do not promote another master
    await asyncio.to_thread(docker, "kill", *(container for container in everything if container not in watchers))
    first = [*watchers, nodes(running)[old_master]]
    for container in [*first, *(container for container in reversed(everything) if container not in first)]:
        docker("start", container)
    assert addresses(running) != old_addresses
    await wait_for_known_replicas(running)
    assert master_names(running) == old_master or failovers(running) > before
    await kill_master(running)


async def kill_master(running: Compose) -> None:
    """Kill the master. Another Redis takes over, and the old master restarts as its replica."""
    old_master = master_names(running)
    await asyncio.to_thread(docker, "kill", nodes(running)[old_master])
    await wait_until(
        lambda: master_names(running) not in ("", old_master), "another Redis is the master", timeout=60, interval=0.5
    )
    docker("start", nodes(running)[old_master])
    await wait_for_known_replicas(running)
    await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=60)
    assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES


async def wait_for_one_master(running: Compose) -> None:
    """Wait until one Redis is the master, the others are its replicas, and all Sentinels report this master."""
    everyone = list(nodes(running).values())
    await wait_until(
        lambda: (
            has_one_master(everyone)
            and all(reported_master(running, sentinel) == master_address(running) for sentinel in SENTINELS)
        ),
        "one master has two replicas and the Sentinels agree",
        timeout=120,
        interval=0.5,
    )


async def wait_for_known_replicas(running: Compose) -> None:
    """Wait until one Redis is the master and each Sentinel lists the others as its replicas."""
    await wait_for_one_master(running)
    expected = {address for node, address in addresses(running).items() if node != master_names(running)}
    for sentinel in SENTINELS:
        lists_all = partial(lists_replicas, running, sentinel, expected)
        await wait_until(lists_all, f"{sentinel} lists the replicas", timeout=120, interval=0.5)


def lists_replicas(running: Compose, sentinel: str, expected: set[str]) -> bool:
    return known_replicas(running, sentinel) == expected


def failovers(running: Compose) -> int:
    """Count the promotions in the logs of the Sentinels. They promote another master if the old one starts too late."""
    logs = [docker("logs", container) for sentinel in SENTINELS for container in running.containers(sentinel)]
    return sum(log.count("+switch-master") for log in logs)


def nodes(running: Compose) -> dict[str, str]:
    """Return the containers of Redis by service name."""
    return {node: container for node in NODES for container in running.containers(node)}


def master_names(running: Compose) -> str:
    """Return the service name of the master. Several masters are separated by spaces."""
    return " ".join(
        node for node, container in nodes(running).items() if redis_cli(container, "role").startswith("master")
    )


def master_address(running: Compose) -> str:
    """Return the address of the master, or "" if there is no master or more than one."""
    return addresses(running).get(master_names(running), "")


def reported_master(running: Compose, sentinel: str) -> str:
    """Return the master's address according to a Sentinel. Flags such as "s_down" are appended."""
    reported = sentinel_reply(running, sentinel, "master")
    return str(reported["ip"]) if reported["flags"] == "master" else f"{reported['ip']}: {reported['flags']}"


def sentinel_reply(running: Compose, sentinel: str, command: str) -> Any:
    [container] = running.containers(sentinel)
    return json.loads(docker("exec", container, "redis-cli", "-p", "26379", "--json", "sentinel", command, "main"))


def addresses(running: Compose) -> dict[str, str]:
    return {node: running.address(container) for node, container in nodes(running).items()}


def known_replicas(running: Compose, sentinel: str) -> set[str]:
    """Return the addresses of the replicas that a Sentinel can promote."""
    reported = sentinel_reply(running, sentinel, "replicas")
    return {
        replica["ip"] for replica in reported if replica["flags"] == "slave" and replica["master-link-status"] == "ok"
    }


def has_one_master(containers: list[str]) -> bool:
    masters = [container for container in containers if redis_cli(container, "role").startswith("master")]
    return len(masters) == 1 and all(
        is_connected_replica(container) for container in containers if container not in masters
    )


async def test_a_cluster(built: None, figure: Figure) -> None:
    with up(compose("cluster"), "--no-build") as running:
        nodes = running.containers("redis")

        def owner() -> str:
            for node in nodes:
                if redis_cli(node, "exists", keys.schema("controller")) == "1" and "slave" not in redis_cli(
                    node, "role"
                ):
                    return node
            return ""

        await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=90)
        master = owner()
        await wait_until(lambda: "state=online" in redis_cli(master, "info", "replication"), "the master has a replica")
        await kill_master_under_load(running, master, lambda: owner() not in ("", master), figure)

        # The nodes find each other again after a restart, although their addresses change.
        old_addresses = [running.address(node) for node in nodes]
        running("stop", "--timeout", "5")
        for node in reversed(nodes):
            docker("start", node)
        running("up", "--detach", "--no-build")
        assert running.containers("redis") == nodes
        assert [running.address(node) for node in nodes] != old_addresses
        await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=60)
        assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES

        # Each replica has found its master, so the cluster survives the loss of another master.
        masters = [node for node in nodes if redis_cli(node, "role").startswith("master")]
        assert len(masters) == 3
        assert [node for node in nodes if node not in masters and not is_connected_replica(node)] == []
        master = owner()
        docker("kill", master)
        await wait_until(lambda: owner() not in ("", master), "another node is the master", timeout=120, interval=0.5)
        await wait_until(lambda: serves(running.url), "the controllers use the new master", timeout=120)
        assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES
    assert running.leftovers() == []
