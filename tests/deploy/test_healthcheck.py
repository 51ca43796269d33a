"""deploy/healthcheck.sh, which Docker runs in each container of a replica. Here it checks replicas as processes."""

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from ports import free_port

from tests.deploy.compose import ROOT
from tests.support.workers import answers, bad_worker
from tests.system.processes import ControllerProcess

pytestmark = pytest.mark.deploy

SCRIPT = ROOT / "deploy/healthcheck.sh"
Replica = Callable[..., ControllerProcess]


def healthy(port: int, **env: str) -> bool:
    done = subprocess.run(
        ["bash", str(SCRIPT)], env={**os.environ, "CONTROLLER_PORT": str(port), **env}, capture_output=True, timeout=60
    )
    return done.returncode == 0


@pytest.fixture
def replica(short_dir: Path) -> Iterator[Replica]:
    """Yield a function that starts a replica. The replicas end with the test."""
    started: list[ControllerProcess] = []
    directory = short_dir / "healthcheck"

    def start(*flags: str, **options: Any) -> ControllerProcess:
        started.append(ControllerProcess(directory / "data", *flags, **options))
        return started[-1]

    yield start
    for process in started:
        process.popen.send_signal(signal.SIGCONT)
        process.stop()
    shutil.rmtree(directory)


@pytest.mark.parametrize("host", ["", "127.0.0.1", "localhost", "0.0.0.0"])
def test_a_replica_that_answers_is_healthy(replica: Replica, host: str) -> None:
    controller = replica().ready()
    assert healthy(controller.port, CONTROLLER_HOST=host)


def test_a_replica_that_hangs_or_has_ended_is_unhealthy(replica: Replica) -> None:
    controller = replica().ready()
    controller.popen.send_signal(signal.SIGSTOP)
    assert not healthy(controller.port)
    controller.popen.send_signal(signal.SIGCONT)
    assert healthy(controller.port)
    controller.stop()
    assert not healthy(controller.port)


@pytest.mark.parametrize("status", ["500 Internal Server Error", "404 Not Found"])
async def test_a_replica_that_answers_with_an_error_is_unhealthy(status: str) -> None:
    async with bad_worker(healthz=answers(b"", status)) as server:
        port = int(server.address.rpartition(":")[2])
        assert not await asyncio.to_thread(healthy, port)
        assert [path for path, _ in server.requests] == ["healthz"]


@pytest.mark.parametrize("value", ["1", "true", "ON"])
def test_a_replica_with_tls_is_checked(replica: Replica, tmp_path: Path, value: str) -> None:
    issued = trustme.CA().issue_cert("localhost")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "certificate.pem")
    files = {"SSL_KEYFILE": str(tmp_path / "key.pem"), "SSL_CERTFILE": str(tmp_path / "certificate.pem")}
    controller = replica(scheme="https", CONTROLLER_SSL=value, **files)
    controller.wait_for(lambda: healthy(controller.port, CONTROLLER_SSL=value), "the replica is healthy")
    controller.popen.send_signal(signal.SIGSTOP)
    assert not healthy(controller.port, CONTROLLER_SSL=value)
    controller.popen.send_signal(signal.SIGCONT)


def test_tls_without_a_server_is_unhealthy() -> None:
    assert not healthy(free_port(), CONTROLLER_SSL="true")


def test_the_image_runs_the_script_without_python() -> None:
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    [check] = [line for line in dockerfile.splitlines() if line.startswith("HEALTHCHECK")]
    assert check.endswith('CMD ["bash", "/opt/controller/healthcheck.sh"]')
    assert "COPY deploy/healthcheck.sh /opt/controller/" in dockerfile
