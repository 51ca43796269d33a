"""The commands of docs/guides/runbook.md, run on a cluster in Docker Compose."""

import re
import textwrap
from pathlib import Path

import pytest

from controller.store.connection import connect
from tests.deploy.compose import ROOT, Compose, docker
from tests.support.clients import Client
from tests.support.waiting import wait_until
from tests.system.processes import call

RUNBOOK = ROOT / "docs/guides/runbook.md"


def run(cluster: Compose, contained: str, directory: Path = ROOT) -> None:
    """Run the commands of the runbook that contain some words, for the project of a test, in a directory."""
    blocks = re.findall(r"(?m)(?:^    .*\n)+", RUNBOOK.read_text())
    [commands] = [textwrap.dedent(block) for block in blocks if contained in block]
    cluster.script(commands, directory)


def degraded(cluster: Compose) -> list[str]:
    """Return why each degraded replica is so."""
    replicas = [f"http://{cluster.address(container)}:21001" for container in cluster.containers("controller")]
    states = [call(f"{replica}/readyz", method="GET") for replica in replicas]
    return [state["degraded"] for state in states if "degraded" in state]


async def check_rotation(cluster: Compose, admin_url: str) -> None:
    """Change the password of the replicas. New connections use the new one, and the old one is refused."""
    replica = cluster.containers("controller")[0]
    old = docker("exec", replica, "cat", "/run/controller/password")
    run(cluster, "ACL SETUSER controller")
    new = docker("exec", replica, "cat", "/run/controller/password")
    assert len(new) > 30
    assert new != old
    outdated: Client = connect(admin_url.replace("test:test", f"controller:{old}"), timeout=5.0)
    with pytest.raises(Exception, match=r"(?i)wrongpass|invalid"):
        await outdated.execute_command("PING")
    await outdated.aclose()
    admin: Client = connect(admin_url, timeout=5.0)
    assert await admin.execute_command("CLIENT", "KILL", "USER", "controller") > 0
    await admin.aclose()
    await wait_until(lambda: degraded(cluster) == [], "all replicas have connected with the new password")
    assert call(f"{cluster.url}/get_worker_address", {"model": "m"})["address"]


async def check_full_redis(cluster: Compose, admin_url: str, workers: set[str]) -> None:
    """Fill Redis. The replicas dispatch from snapshots until the limit is raised."""
    admin: Client = connect(admin_url, timeout=5.0)
    await admin.config_set("maxmemory", "1mb")
    await wait_until(lambda: len(degraded(cluster)) == 3, "all replicas are degraded")
    assert all("maxmemory" in reason for reason in degraded(cluster))
    assert call(f"{cluster.url}/get_worker_address", {"model": "m"})["address"] in workers
    run(cluster, "CONFIG SET maxmemory")
    assert await admin.config_get("maxmemory") == {"maxmemory": str(384 * 1024 * 1024)}
    await admin.aclose()
    await wait_until(lambda: degraded(cluster) == [], "no replica is degraded")
