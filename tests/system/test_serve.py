"""`controller serve` as a process: start, shutdown, replicas and store."""

import asyncio
import contextlib
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest
import trustme

from controller.store.connection import connect
from tests.support.clients import Client
from tests.support.invariants import check_invariants
from tests.support.metrics import dispatches
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, answers, call, listens, serves

pytestmark = [pytest.mark.system, pytest.mark.smoke]

A, B = "http://127.0.0.1:1/a", "http://127.0.0.1:1/b"


def children(process: ControllerProcess) -> list[int]:
    return [child.pid for child in psutil.Process(process.popen.pid).children()]


def command_line(pid: int) -> str:
    """Return the command line of a process, or "" if it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())
    return ""


def replicas(process: ControllerProcess) -> list[int]:
    return [pid for pid in children(process) if "spawn_main" in command_line(pid)]


def stores(process: ControllerProcess) -> list[int]:
    return [pid for pid in children(process) if f"{process.data_dir}/store.sock" in command_line(pid)]


async def check_consistency(process: ControllerProcess) -> None:
    client: Client = connect(process.store_url, timeout=60.0)
    await check_invariants(client, "controller")
    await client.aclose()


async def test_a_controller_starts_serves_and_stops(serve: Serve) -> None:
    controller = serve()
    assert call(f"{controller.url}/test_connection", method="GET") == "success"
    [store] = stores(controller)
    controller.register(A)
    assert controller.dispatch() == A
    assert controller.stop() == 0
    assert not psutil.pid_exists(store)
    assert "Traceback" not in controller.log


def test_dispatches_and_heartbeats_are_not_logged(serve: Serve) -> None:
    controller = serve()
    controller.register(A)
    before = controller.log
    for _ in range(20):
        assert controller.dispatch() == A
        assert controller.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0}) == {"exist": True}
    assert controller.log == before


async def test_ctrl_c_shuts_down_cleanly(serve: Serve) -> None:
    controller = serve()
    controller.register(A)
    os.killpg(controller.popen.pid, signal.SIGINT)  # as a terminal, which signals the whole process group
    await wait_until(lambda: controller.popen.poll() is not None, "the controller has ended")
    assert controller.popen.returncode == 0
    assert "Redis is unavailable" not in controller.log
    assert "died" not in controller.log, "Ctrl-C does not end the store"
    assert "Traceback" not in controller.log
    assert serve(data="data").names() == [A]


@pytest.mark.slow
@pytest.mark.parametrize("flags", [(), ("--replicas", "2")])
async def test_workers_are_kept_when_the_controller_is_killed_and_restarted(
    serve: Serve, flags: tuple[str, ...]
) -> None:
    controller = serve(*flags)
    controller.register(A)
    controller.register(B)
    assert [controller.dispatch() for _ in range(3)] == [A, B, A]
    controller.kill()
    await wait_until(lambda: not listens(controller.port), "the last replica has ended")
    again = serve(*flags, port=controller.port)
    assert [(w["worker_name"], w["queue_length"]) for w in again.workers()] == [(A, 2), (B, 1)]
    assert again.dispatch() == B
    await check_consistency(again)


async def test_a_killed_controller_leaves_no_processes(serve: Serve) -> None:
    controller = serve("--replicas", "2")
    pids = children(controller)
    assert len(pids) >= 4  # two replicas, the store, and the process that ends the store with the controller
    controller.kill()

    def running() -> list[str]:
        return [line for pid in pids if (line := command_line(pid))]

    await wait_until(lambda: not running(), "replicas and store have ended")
    assert not listens(controller.port)


async def test_replicas_share_the_port_and_the_registry(serve: Serve) -> None:
    controller = serve("--replicas", "3")
    assert len(replicas(controller)) == 3
    for i in range(6):
        controller.register(f"http://127.0.0.1:1/w{i}")
    chosen = [controller.dispatch() for _ in range(60)]
    assert all(chosen.count(f"http://127.0.0.1:1/w{i}") == 10 for i in range(6))
    metrics = httpx.get(f"{controller.url}/metrics").text
    assert dispatches(metrics, "chosen") == 60, "the sum over all replicas"
    await check_consistency(controller)


async def test_a_killed_replica_is_replaced_and_the_store_keeps_running(serve: Serve) -> None:
    controller = serve("--replicas", "2")
    controller.register(A)
    before, store = set(replicas(controller)), stores(controller)
    os.kill(min(before), signal.SIGKILL)
    await wait_until(lambda: len(set(replicas(controller)) - before) == 1, "the replica has been replaced")
    await wait_until(lambda: serves(controller.url), "the new replica is ready")
    assert stores(controller) == store
    assert controller.names() == [A]


async def test_a_killed_store_is_restarted_with_its_data(serve: Serve) -> None:
    controller = serve()
    controller.register(A)
    [store] = stores(controller)
    os.kill(store, signal.SIGKILL)
    await wait_until(lambda: serves(controller.url), "the controller is ready again")
    assert controller.names() == [A]
    assert controller.dispatch() == A
    assert "restarting the store on the same data" in controller.log
    await check_consistency(controller)


def test_a_data_directory_in_use_is_rejected_with_one_line(serve: Serve) -> None:
    first = serve()
    second = serve(ready=False)
    assert second.popen.wait(60) == 1
    line = second.log.splitlines()[-1]
    assert line.startswith("Error: The data directory")
    assert f"in use by another controller (process {first.popen.pid})" in line
    assert "Traceback" not in second.log
    assert first.names() == []


@pytest.mark.parametrize("flags", [(), ("--replicas", "2")])
def test_a_port_in_use_is_rejected(serve: Serve, flags: tuple[str, ...]) -> None:
    first = serve()
    second = serve(*flags, data="other", port=first.port, ready=False)
    assert second.popen.wait(60) == 1
    options = f"--port {first.port} on --host 127.0.0.1"
    [line] = second.log.splitlines()
    assert line.startswith(f"Error: {options} cannot be opened: Address already in use. Is another controller running")


def test_a_host_of_another_machine_is_rejected(work_dir: Path) -> None:
    for host in ("no.such.host.invalid", "192.0.2.1", "a..b", "a" * 70):
        command = [sys.executable, "-m", "controller", "serve", "--host", host, "--data-dir", str(work_dir / "data")]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert f"--host {host}" in result.stderr


def test_https(serve: Serve, work_dir: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.private_key_pem.write_to_path(work_dir / "key.pem")
    with (work_dir / "certificate.pem").open("wb") as file:
        for blob in certificate.cert_chain_pems:
            file.write(blob.bytes())
    context = ssl.create_default_context()
    authority.configure_trust(context)
    files = {"SSL_KEYFILE": str(work_dir / "key.pem"), "SSL_CERTFILE": str(work_dir / "certificate.pem")}
    controller = serve("--ssl", ready=False, scheme="https", **files)

    def secure() -> bool:
        try:
            return httpx.get(f"{controller.url}/test_connection", verify=context).json() == "success"
        except httpx.TransportError:
            return False

    controller.wait_for(secure, "the controller answers over TLS")
    assert controller.stop() == 0


async def test_a_redis_given_by_url_is_used_and_keeps_running(serve: Serve, embedded_url: str) -> None:
    namespace = ("--namespace", "given-by-url")
    one = serve("--redis-url", embedded_url, *namespace, data="one")
    two = serve("--redis-url", embedded_url, *namespace, data="two")
    assert stores(one) == []
    one.register(A)
    assert (two.names(), two.dispatch()) == ([A], A)
    assert one.workers()[0]["queue_length"] == 1
    assert (one.stop(), two.names()) == (0, [A])
    two.post("/remove_worker", {"worker_name": A})
    client: Client = connect(embedded_url, timeout=60.0)
    assert await client.ping()
    await client.aclose()


async def test_the_controller_starts_while_redis_is_unavailable(serve: Serve, short_dir: Path) -> None:
    controller = serve("--redis-url", f"unix://{short_dir}/nowhere/redis.sock", "--register-timeout", "0", ready=False)
    controller.wait_for(lambda: answers(f"{controller.url}/healthz"), "the process answers")
    assert not serves(controller.url)
    assert controller.dispatch() == ""
    assert controller.post("/list_models") == {"models": []}
    with pytest.raises(OSError, match="503"):
        controller.register(A)
    assert controller.stop() == 0


async def test_a_large_body_is_rejected_without_using_memory(serve: Serve) -> None:
    controller = serve()

    def resident() -> int:
        return int(psutil.Process(controller.popen.pid).memory_info().rss)

    controller.post("/list_models")
    before = resident()
    for _ in range(3):
        reader, writer = await asyncio.open_connection("127.0.0.1", controller.port)
        writer.write(b"POST /register_worker HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            for _ in range(3200):  # 200 MB
                writer.write(b"10000\r\n" + b" " * 65536 + b"\r\n")
                await writer.drain()
        assert b"413" in await reader.readline()
        writer.close()
    assert resident() - before < 30_000_000
    assert call(f"{controller.url}/test_connection", method="GET") == "success"


def test_workers_are_shown_as_a_table(serve: Serve) -> None:
    controller = serve()
    controller.register(A, "vicuna-7b", speed=2)
    controller.register(B, check=False)
    shown = subprocess.run(
        [sys.executable, "-m", "controller", "workers", "--controller-address", controller.url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "2 live workers" in shown
    for text in (A, "vicuna-7b", B, "never"):
        assert text in shown
