"""A cluster in containers, started by `docker compose up`, with stock FastChat workers on its network."""

import shutil
from collections.abc import Iterator

import pytest

from tests.deploy.compose import ROOT, Compose, docker, docker_problem, image, images, up
from tests.support import network
from tests.support.lifeline import project

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


@pytest.fixture(scope="module", autouse=True)
def allow_containers() -> Iterator[None]:
    """Let tests connect to containers, whose addresses are not on loopback."""
    network.anywhere = True
    yield
    network.anywhere = False


TEST_USER = "user test on >test ~* &* +@all\n"


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Build the images of the controller and of a stock FastChat worker. Skips the test if Docker is unavailable."""
    reason = docker_problem()
    if reason:
        pytest.skip(f"NOT TESTED, containers: {reason}")
    arguments = [f"PYTHON_IMAGE={images()['PYTHON_IMAGE']}"] if "PYTHON_IMAGE" in images() else []
    build = [word for argument in arguments for word in ("--build-arg", argument)]
    docker("build", "--quiet", "--tag", image(), "--file", str(ROOT / "deploy/Dockerfile"), *build, str(ROOT))
    context = tmp_path_factory.mktemp("worker")
    for name in ("tests/deploy/worker.Dockerfile", "tests/system/stock_worker.py", "constraints.txt"):
        shutil.copy(ROOT / name, context)
    worker = ["--tag", "controller-test-worker", "--file", str(context / "worker.Dockerfile")]
    docker("build", "--quiet", *worker, *build, str(context))


@pytest.fixture(scope="module")
def cluster(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:
    """Run deploy/docker-compose.yml unchanged, with three replicas, and add three stock workers."""
    directory = tmp_path_factory.mktemp("compose")
    shutil.copytree(ROOT / "deploy/redis", directory / "redis")
    with (directory / "redis/users.acl").open("a") as users:
        users.write(TEST_USER)
    extra = directory / "extra.yml"
    extra.write_text(EXTRA.format(directory=directory))
    files = (ROOT / "deploy/docker-compose.yml", extra)
    compose = Compose(project("controller-test"), *files, CONTROLLER_HEARTBEAT_EXPIRATION="12")
    with up(compose, "--no-build") as running:
        yield running
    assert compose.leftovers() == []


def redis_url(compose: Compose) -> str:
    """Return the URL of Redis for the user of the tests."""
    [container] = compose.containers("redis")
    return f"redis://test:test@{compose.address(container)}:6379"
