"""The compose files for Sentinel and for a Cluster: up, a master killed under load, down."""

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from controller.store import keys
from tests.conftest import Figure
from tests.deploy.compose import ROOT, Compose, docker, up
from tests.support.lifeline import project
from tests.support.waiting import wait_until
from tests.system.load import load
from tests.system.processes import call, serves

DEPLOY = ROOT / "deploy"
NODES = ("redis", "redis-2", "redis-3")
SENTINELS = ("sentinel-1", "sentinel-2", "sentinel-3")
NAMES = {f"http://127.0.0.1:1/w{i}" for i in range(3)}

pytestmark = pytest.mark.timeout(300)


def compose(topology: str) -> Compose:
    files = (DEPLOY / "docker-compose.yml", DEPLOY / f"docker-compose.{topology}.yml")
    return Compose(project(f"controller-test-{topology}"), *files)


def redis_cli(container: str, *command: str) -> str:
    """What an administrator is answered inside a container of Redis; "" if it is not there."""
    ask = 'REDISCLI_AUTH=$(cat /run/controller/operator-password) exec redis-cli --user admin "$@"'
    try:
        return docker("exec", container, "sh", "-c", ask, "sh", *command).strip()
    except AssertionError:
        return ""


async def killed_under_load(running: Compose, master: str, promoted: Callable[[], bool], figure: Figure) -> None:
    """Register workers, kill the master, and see that no dispatch fails until another has taken over."""
    await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=90)
    for name in NAMES:
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        body = {"worker_name": name, "check_heart_beat": False, "worker_status": status}
        assert call(f"{running.url}/register_worker", body) is None
    for replica in running.containers("controller"):
        url = f"http://{running.address(replica)}:21001"
        await wait_until(lambda url=url: serves(url), "the replica is ready")
    await asyncio.sleep(1.5)  # until each has taken a snapshot with the workers in it: nothing but time tells
    async with load([running.url]) as seen:
        await wait_until(lambda: seen.total > 100, "the load is on")
        await asyncio.to_thread(docker, "kill", master)
        await wait_until(promoted, "another master has taken over", timeout=60, interval=0.5)
        await wait_until(lambda: serves(running.url), "it is in use")
    figure(f"master killed in {running.project}", seen)
    assert seen.failed == []
    assert seen.degraded > 0
    assert set(seen.addresses) == NAMES
    await asyncio.to_thread(docker, "start", master)
    await wait_until(lambda: follows(master), "the old master follows", timeout=60, interval=0.5)


def follows(container: str) -> bool:
    """Whether it is a replica, and has what its master has."""
    role = redis_cli(container, "role").split("\n")
    return role[0] == "slave" and "connected" in role


async def test_sentinels(built: None, figure: Figure) -> None:
    with up(compose("sentinel"), "--no-build") as running:
        [master], *others = (running.containers(service) for service in ("redis", "redis-2", "redis-3"))

        def promoted() -> bool:
            return any(redis_cli(container, "role").startswith("master") for [container] in others)

        await wait_until(lambda: redis_cli(master, "info", "replication").count("state=online") == 2, "they follow")
        await killed_under_load(running, master, promoted, figure)

        # The promoted one is restarted: it remembers what it is.
        [second] = [c for [c] in others if redis_cli(c, "role").startswith("master")]
        await asyncio.to_thread(docker, "restart", "--time", "1", second)
        await one_leads_and_is_agreed_on(running)
        await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=120)
        assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES
        await everything_begins_again(running)
        await its_address_is_taken(running)
        await the_machine_reboots(running)
    assert running.leftovers() == []


async def everything_begins_again(running: Compose) -> None:
    """After `down` and `up` addresses are others, and yet the master is the one that it was."""
    led, lived = leader(running), addresses(running)
    assert led in ("redis-2", "redis-3")
    for container in nodes(running).values():
        redis_cli(container, "config", "set", "maxmemory", "1gb")
        assert redis_cli(container, "config", "rewrite") == "OK"
    running("stop", *SENTINELS)  # or they promote another master, where the others take long to stop
    running("down", "--timeout", "5")
    running("up", "--detach", "--no-build", "--no-deps", "redis-3")
    running("up", "--detach", "--no-build")
    assert addresses(running) != lived
    await one_leads_and_is_watched(running)
    assert leader(running) == led or failovers(running) > 0
    for container in nodes(running).values():
        # What the files in deploy/redis say, not what was once written into the volume.
        assert redis_cli(container, "config", "get", "maxmemory").split() == ["maxmemory", str(256 * 1024 * 1024)]
    await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=60)
    assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES


async def its_address_is_taken(running: Compose) -> None:
    """A master that comes back at another address, while another leads, is found there."""
    led, lived = leader(running), addresses(running)
    await asyncio.to_thread(docker, "kill", nodes(running)[led])
    [image] = json.loads(docker("inspect", nodes(running)[led], "--format", "[{{json .Config.Image}}]"))
    taker = docker("run", "--detach", "--rm", "--network", f"{running.project}_default", image, "sleep", "300").strip()
    try:
        assert running.address(taker) == lived[led]
        await wait_until(lambda: leader(running) not in ("", led), "another leads", timeout=60, interval=0.5)
        docker("start", nodes(running)[led])
        assert addresses(running)[led] != lived[led]
        await one_leads_and_is_watched(running)
        await the_leader_dies(running)
    finally:
        docker("kill", taker)


async def the_machine_reboots(running: Compose) -> None:
    """All is killed, and comes back in an order that nobody has chosen, at other addresses."""
    led, lived = leader(running), addresses(running)
    everything = running("ps", "--quiet").split()
    before = failovers(running)
    watchers = [container for sentinel in SENTINELS for container in running.containers(sentinel)]
    await asyncio.to_thread(docker, "kill", *watchers)  # first: or they promote another master meanwhile
    await asyncio.to_thread(docker, "kill", *(container for container in everything if container not in watchers))
    first = [*watchers, nodes(running)[led]]
    for container in [*first, *(container for container in reversed(everything) if container not in first)]:
        docker("start", container)
    assert addresses(running) != lived
    await one_leads_and_is_watched(running)
    assert leader(running) == led or failovers(running) > before
    await the_leader_dies(running)


async def the_leader_dies(running: Compose) -> None:
    """Kill the master: another takes over, and it follows when it is back."""
    led = leader(running)
    await asyncio.to_thread(docker, "kill", nodes(running)[led])
    await wait_until(lambda: leader(running) not in ("", led), "another leads", timeout=60, interval=0.5)
    docker("start", nodes(running)[led])
    await one_leads_and_is_watched(running)
    await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=60)
    assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES


async def one_leads_and_is_agreed_on(running: Compose) -> None:
    """Wait until one Redis leads, the others follow, and no Sentinel thinks that another one should."""
    everyone = list(nodes(running).values())
    await wait_until(
        lambda: one_leads(everyone) and all(watched(running, sentinel) == leads(running) for sentinel in SENTINELS),
        "one leads, two follow, and the Sentinels agree",
        timeout=120,
        interval=0.5,
    )


async def one_leads_and_is_watched(running: Compose) -> None:
    """Wait until one Redis leads, the others follow, and each Sentinel knows all of them."""
    await one_leads_and_is_agreed_on(running)
    expected = {address for node, address in addresses(running).items() if node != leader(running)}
    for sentinel in SENTINELS:
        known = lambda sentinel=sentinel: known_replicas(running, sentinel)  # noqa: E731
        await wait_until(lambda known=known: known() == expected, f"{sentinel} knows them", timeout=120, interval=0.5)


def failovers(running: Compose) -> int:
    """How many times the Sentinels promoted another master, as they do where it starts later than they wait for it."""
    logs = [docker("logs", container) for sentinel in SENTINELS for container in running.containers(sentinel)]
    return sum(log.count("+switch-master") for log in logs)


def nodes(running: Compose) -> dict[str, str]:
    """The containers of Redis by their names."""
    return {node: container for node in NODES for container in running.containers(node)}


def leader(running: Compose) -> str:
    """The name of the Redis that is a master; of several, all of them."""
    return " ".join(node for node, it in nodes(running).items() if redis_cli(it, "role").startswith("master"))


def leads(running: Compose) -> str:
    """The address of the Redis that is the master; "" if there are none or several."""
    return addresses(running).get(leader(running), "")


def watched(running: Compose, sentinel: str) -> str:
    """The address of a Sentinel's master; with what is wrong, such as that it is down or being replaced."""
    told = ask_sentinel(running, sentinel, "master")
    return str(told["ip"]) if told["flags"] == "master" else f"{told['ip']}: {told['flags']}"


def ask_sentinel(running: Compose, sentinel: str, what: str) -> Any:
    [container] = running.containers(sentinel)
    return json.loads(docker("exec", container, "redis-cli", "-p", "26379", "--json", "sentinel", what, "main"))


def addresses(running: Compose) -> dict[str, str]:
    return {node: running.address(container) for node, container in nodes(running).items()}


def known_replicas(running: Compose, sentinel: str) -> set[str]:
    """The addresses of the replicas that a Sentinel could make the master."""
    told = ask_sentinel(running, sentinel, "replicas")
    return {it["ip"] for it in told if it["flags"] == "slave" and it["master-link-status"] == "ok"}


def one_leads(containers: list[str]) -> bool:
    leaders = [container for container in containers if redis_cli(container, "role").startswith("master")]
    return len(leaders) == 1 and all(follows(container) for container in containers if container not in leaders)


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
        await wait_until(lambda: "state=online" in redis_cli(master, "info", "replication"), "it is followed")
        await killed_under_load(running, master, lambda: owner() not in ("", master), figure)

        # Addresses are others after a restart, and the nodes find each other again.
        lived = [running.address(node) for node in nodes]
        running("stop", "--timeout", "5")
        for node in reversed(nodes):
            docker("start", node)
        running("up", "--detach", "--no-build")
        assert running.containers("redis") == nodes
        assert [running.address(node) for node in nodes] != lived
        await wait_until(lambda: serves(running.url), "the cluster is ready", timeout=60)
        assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES

        # Each replica has found its master, so that the next death is survived, too.
        masters = [node for node in nodes if redis_cli(node, "role").startswith("master")]
        assert len(masters) == 3
        assert [node for node in nodes if node not in masters and not follows(node)] == []
        master = owner()
        docker("kill", master)
        await wait_until(lambda: owner() not in ("", master), "another has taken over", timeout=120, interval=0.5)
        await wait_until(lambda: serves(running.url), "it is in use", timeout=120)
        assert call(f"{running.url}/get_worker_address", {"model": "m"})["address"] in NAMES
    assert running.leftovers() == []
