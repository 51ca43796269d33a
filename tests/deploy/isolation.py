"""The limits of what the containers of a cluster may use and reach."""

import json

import pytest

from controller.store import keys
from controller.store.connection import connect
from controller.store.registry import SCHEMA
from tests.deploy.compose import Compose, docker
from tests.deploy.conftest import redis_url
from tests.support.clients import Client


def check_limits(cluster: Compose) -> None:
    """Assert that each container has limits of processors, memory, processes, files and logs."""
    for service in ("controller", "redis", "loadbalancer", "prometheus"):
        for container in cluster.containers(service):
            [state] = json.loads(docker("inspect", container))
            host = state["HostConfig"]
            assert (host["NanoCpus"], host["LogConfig"]["Config"]["max-size"]) == (1_000_000_000, "10m"), service
            assert min(host["Memory"], host["PidsLimit"]) > 0, service
            assert host["Ulimits"] == [{"Name": "nofile", "Hard": 16384, "Soft": 16384}], service


def check_networks(cluster: Compose) -> None:
    """Assert that a worker reaches only the load balancer.

    Redis and Prometheus are on other networks, and HAProxy's page and metrics are not on that of the workers.
    """
    [redis], worker = cluster.containers("redis"), cluster.containers("stock-worker")[0]
    connect_to = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)"
    unreachable = {"redis": 6379, cluster.address(redis): 6379, "prometheus": 9090, "loadbalancer-metrics": 8405}
    for host, port in (*unreachable.items(), ("loadbalancer", 8404), ("loadbalancer", 8405)):
        with pytest.raises(AssertionError, match=r"gaierror|TimeoutError|unreachable|refused"):
            docker("exec", worker, "python3", "-c", connect_to, host, str(port))
    docker("exec", worker, "python3", "-c", connect_to, "loadbalancer", "21001")
    page = "exec 3<>/dev/tcp/127.0.0.1/8404; printf 'GET /;csv HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"
    assert "controllers,controller-1," in docker("exec", *cluster.containers("loadbalancer"), "bash", "-c", page)


async def check_privileges(cluster: Compose) -> None:
    """Assert that a replica is no root, may write no files, and may use only the keys of its namespace."""
    replica = cluster.containers("controller")[0]
    [container] = json.loads(docker("inspect", replica))
    assert container["Config"]["User"] == "10001:10001"
    assert container["HostConfig"]["ReadonlyRootfs"] is True
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    password = docker("exec", replica, "cat", "/run/controller/password").strip()
    assert len(password) > 30
    assert password not in json.dumps(container)
    assert password not in cluster("logs", "--no-color")
    client: Client = connect(redis_url(cluster).replace("test:test", f"controller:{password}"), timeout=5.0)
    for command in (["KEYS", "*"], ["GET", "other"], ["FLUSHALL"], ["CONFIG", "GET", "*"], ["ACL", "LIST"], ["DBSIZE"]):
        with pytest.raises(Exception, match=r"(?i)no permissions"):
            await client.execute_command(*command)
    assert await client.get(keys.schema("controller")) == SCHEMA
    await client.aclose()
    assert "127.0.0.1" in docker("port", cluster.containers("loadbalancer")[0], "21001")
    assert docker("ps", "--quiet", "--filter", "publish=6379") == ""
