"""Clusters of real processes are workers of other controllers, ours and FastChat's."""

import contextlib
import json
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import psutil
import pytest
from ports import free_port

from tests.support.faults import TcpProxy, proxy_in_thread
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, Server, call, fastchat, stock_worker

pytestmark = pytest.mark.system

INTERVAL = 1.0


def frames_of(url: str, model: str, prompt: str) -> list[dict[str, object]]:
    body = json.dumps({"model": model, "prompt": prompt}).encode()
    request = urllib.request.Request(f"{url}/worker_generate_stream", body)
    with urllib.request.urlopen(request, timeout=60) as response:
        return [json.loads(frame) for frame in response.read().split(b"\0")[:-1]]


@contextlib.contextmanager
def workers(work_dir: Path, controller: str, number: int, *flags: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(stock_worker(work_dir, controller, *flags)) for _ in range(number)]


def start_cluster(serve: Serve, parent: str, name: str, *flags: str) -> str:
    """Start a cluster of one replica below a parent. Return its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    joins = ["--parent", parent, "--advertise", url, "--parent-interval", str(INTERVAL), *flags]
    return serve(*joins, data=name, port=port).url


async def test_under_a_stock_controller(serve: Serve, work_dir: Path) -> None:
    """A stock controller forwards streams to our cluster and polls its status."""
    with fastchat(work_dir, "controller") as top:
        own = start_cluster(serve, top.url, "own")
        with workers(work_dir, own, 1):
            await wait_until(lambda: call(f"{top.url}/list_models") == {"models": ["echo"]}, "the cluster has joined")
            assert call(f"{top.url}/get_worker_address", {"model": "echo"}) == {"address": own}
            assert [frame["error_code"] for frame in frames_of(top.url, "echo", "a b")] == [0, 0, 0]
            call(f"{top.url}/refresh_all_workers")
            assert call(f"{top.url}/list_models") == {"models": ["echo"]}


async def test_a_stock_controller_without_workers_stays_registered(serve: Serve, work_dir: Path) -> None:
    """The stock controller reports no models and speed 0. A refresh of our controller updates its models."""
    top = serve()
    with fastchat(work_dir, "controller") as below:
        top.post("/register_worker", {"worker_name": below.url, "check_heart_beat": False})
        assert top.names() == [below.url]
        with workers(work_dir, below.url, 1) as [worker]:
            await wait_until(
                lambda: call(f"{below.url}/list_models") == {"models": ["echo"]}, "the stock controller has a worker"
            )
            top.post("/refresh_all_workers")
            assert top.dispatch("echo") == below.url
            worker.kill()
        call(f"{below.url}/refresh_all_workers")  # the stock controller removes workers that do not answer a refresh
        top.post("/refresh_all_workers")
        assert top.names() == [below.url]
        assert top.post("/list_models") == {"models": []}


async def test_a_stock_controller_as_a_worker(serve: Serve, work_dir: Path) -> None:
    top = serve()
    with fastchat(work_dir, "controller") as below, workers(work_dir, below.url, 1):
        await wait_until(
            lambda: call(f"{below.url}/list_models") == {"models": ["echo"]}, "the stock controller has a worker"
        )
        top.post("/register_worker", {"worker_name": below.url, "check_heart_beat": False})
        assert top.post("/list_models") == {"models": ["echo"]}
        assert [frame["error_code"] for frame in frames_of(top.url, "echo", "a b")] == [0, 0, 0]


async def test_a_cluster_that_joins_itself_is_rejected(serve: Serve) -> None:
    port = free_port()
    parent, url = f"http://localhost:{port}", f"http://127.0.0.1:{port}"
    controller = serve("--parent", parent, "--advertise", url, "--parent-interval", "0.5", port=port)
    controller.register("http://127.0.0.1:9", check=False)
    await wait_until(lambda: "returned status 508" in controller.log, "the controller logs the rejection")
    assert controller.names() == ["http://127.0.0.1:9"]


@pytest.mark.slow
async def test_another_replica_takes_over_the_heartbeats_of_a_killed_one(serve: Serve, embedded_url: str) -> None:
    """One of three replicas is killed while it sends a heartbeat, three times in all.

    tests/fleet/test_parents.py checks how soon another replica takes over.
    """
    top = serve(data="top")
    advertised = "http://127.0.0.1:1"
    interval = 2.0
    with proxy_in_thread(TcpProxy(free_port(), top.port)) as link:
        flags = ["--redis-url", embedded_url, "--namespace", "below", "--parent", link.url, "--advertise", advertised]
        flags += ["--parent-interval", str(interval)]
        replicas = [serve(*flags, data=f"below-{i}") for i in range(3)]
        replicas[0].register("http://127.0.0.1:9", check=False)
        await wait_until(lambda: top.names() == [advertised], "the cluster has joined")
        ages: list[float] = []

        def age() -> float:
            ages.append(top.workers()[0]["heartbeat_age"])
            return ages[-1]

        def is_younger_than(check: int) -> bool:
            return age() < ages[check]

        for i in range(3):
            link.hang()
            await wait_until(lambda: age() and link.held, "a heartbeat is in flight")
            # On a busy machine, the sender of the first one may have given up.
            sender = await wait_until(
                lambda: next(
                    (each for each in replicas for _, port in link.held if has_connection_from(each, port)), None
                ),
                "a replica waits for the answer to its heartbeat",
            )
            sender.kill()
            link.cut()  # its heartbeat is lost
            await wait_until(partial(is_younger_than, len(ages) - 1), "the parent receives another heartbeat")
            replicas.remove(sender)
            replicas.append(serve(*flags, data=f"below-again-{i}"))


def has_connection_from(process: ControllerProcess, port: int) -> bool:
    connections = psutil.Process(process.popen.pid).net_connections("tcp")
    return any(connection.laddr.port == port for connection in connections)
