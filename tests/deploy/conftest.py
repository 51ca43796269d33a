"""A cluster in containers, started by `docker compose up`, with stock FastChat workers on its network."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.compose import ROOT, Compose, docker, docker_problem, image, images, up
from tests.deploy.manifests import container, environment, pod, settings
from tests.support import network
from tests.support.lifeline import project

__all__ = ["container", "environment", "pod", "settings"]

# Three stock workers, and the ACL file with the Redis user of the tests.
EXTRA = """
services:
  redis:
    volumes:
      - {directory}/redis:/etc/redis-controller:ro
  stock-worker:
    image: controller-test-worker
    pull_policy: never
    networks: [workers]
    init: true
    entrypoint: [sh, -c]
    command:
      - >-
        cd /tmp && exec /opt/worker/bin/python /opt/worker/stock_worker.py --host 0.0.0.0 --port 21002 --delay 0.05
        --worker-address "http://$$(hostname -i):21002" --controller-address http://loadbalancer:21001
        --model-names m
    environment:
      FASTCHAT_WORKER_HEART_BEAT_INTERVAL: "1"
    deploy:
      replicas: 3
    depends_on: [controller, loadbalancer]
"""


MONITORING = """
services:
  prometheus:
    profiles: !reset []
    volumes:
      - {directory}/prometheus.yaml:/etc/prometheus/prometheus.yaml:ro
"""


@pytest.fixture(scope="module", autouse=True)
def allow_containers() -> Iterator[None]:
    """Let tests connect to containers, whose addresses are not on loopback."""
    network.anywhere = True
    yield
    network.anywhere = False


TEST_USER = "user test on >test ~* &* +@all\n"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Build the images of the controller and of a stock FastChat worker. Skips the test if Docker is unavailable.

    One test process builds at a time. The others then get the same image from Docker's cache. If two built at once, the
    tag would move to another image, and `docker compose up` would replace containers in the middle of a test.
    """
    reason = docker_problem()
    if reason:
        pytest.skip(f"NOT TESTED, containers: {reason}")
    arguments = [f"PYTHON_IMAGE={images()['PYTHON_IMAGE']}"] if "PYTHON_IMAGE" in images() else []
    build = [word for argument in arguments for word in ("--build-arg", argument)]
    context = tmp_path_factory.mktemp("worker")
    for name in ("tests/deploy/worker.Dockerfile", "tests/system/stock_worker.py", "constraints.txt"):
        shutil.copy(ROOT / name, context)
    worker = ["--tag", "controller-test-worker", "--file", str(context / "worker.Dockerfile")]
    with (Path(tempfile.gettempdir()) / "controller-test-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        docker("build", "--quiet", "--tag", image(), "--file", str(ROOT / "deploy/Dockerfile"), *build, str(ROOT))
        docker("build", "--quiet", *worker, *build, str(context))


@pytest.fixture(scope="session")
def prometheus_image(built: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the image of Prometheus: PROMETHEUS_IMAGE, or one with the installed program, or "" without either."""
    program = shutil.which("prometheus")
    if os.environ.get("PROMETHEUS_IMAGE") or program is None:
        return os.environ.get("PROMETHEUS_IMAGE", "")
    context = tmp_path_factory.mktemp("prometheus")
    shutil.copy(program, context)
    base = images().get("PYTHON_IMAGE", "python:3.13-slim")
    (context / "Dockerfile").write_text(PROMETHEUS.format(base=base))
    docker("build", "--quiet", "--tag", "controller-test-prometheus", str(context))
    return "controller-test-prometheus"


# Debian's Prometheus, as in the official image: the same path, user and directory.
PROMETHEUS = """
FROM {base}
COPY prometheus /bin/prometheus
RUN install --directory --owner 65534 --group 65534 /prometheus
USER 65534
"""


def monitoring(directory: Path) -> Path:
    """Write a Compose file that starts Prometheus without its profile, and with a shorter interval."""
    text = (ROOT / "deploy/monitoring/prometheus.yaml").read_text().replace("_interval: 15s", "_interval: 2s")
    (directory / "prometheus.yaml").write_text(text)
    file = directory / "monitoring.yml"
    file.write_text(MONITORING.format(directory=directory))
    return file


@pytest.fixture(scope="module")
def cluster(built: None, prometheus_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Run deploy/docker-compose.yml unchanged, with three replicas, and add three stock workers and Prometheus."""
    directory = tmp_path_factory.mktemp("compose")
    shutil.copytree(ROOT / "deploy/redis", directory / "redis")
    with (directory / "redis/users.acl").open("a") as users:
        users.write(TEST_USER)
    extra = directory / "extra.yml"
    extra.write_text(EXTRA.format(directory=directory))
    files = [ROOT / "deploy/docker-compose.yml", extra, *([monitoring(directory)] if prometheus_image else [])]
    variables = {"CONTROLLER_HEARTBEAT_EXPIRATION": "12", "PROMETHEUS_IMAGE": prometheus_image}
    compose = Compose(project("controller-test"), *files, **variables)
    with up(compose, "--no-build") as running:
        yield running
    assert compose.leftovers() == []


def redis_url(compose: Compose) -> str:
    """Return the URL of Redis for the user of the tests."""
    [container] = compose.containers("redis")
    return f"redis://test:test@{compose.address(container)}:6379"
