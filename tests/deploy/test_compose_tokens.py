"""Tokens in the containers: a file turns them on, a changed file is read again, and without one no port opens."""

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.compose import ROOT, Compose, docker, image, up
from tests.deploy.conftest import monitoring
from tests.deploy.dashboards import Prometheus
from tests.deploy.test_image import RESTRICTED
from tests.support.lifeline import project
from tests.support.waiting import wait_until
from tests.system.processes import serves

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

TOKENS = {plane: f"{plane}-secret-of-the-tests" for plane in ("worker", "client", "admin")}
OTHER = "another-secret-of-the-tests"
STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
WORKER = {"worker_name": "http://127.0.0.1:1", "check_heart_beat": False, "worker_status": STATUS}


def lines(**changed: str) -> str:
    return "".join(f"{plane} {plane}-1 {secret}\n" for plane, secret in {**TOKENS, **changed}.items())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text(lines())
    path.chmod(0o444)  # the replicas run as user 10001
    return path


@pytest.fixture
def cluster(built: None, prometheus_image: str, file: Path, tmp_path: Path) -> Iterator[Compose]:
    metrics_token = tmp_path / "metrics-token"
    metrics_token.write_text(f"{TOKENS['admin']}\n")
    metrics_token.chmod(0o444)  # Prometheus runs as user 65534
    compose = Compose(
        project("controller-test-tokens"),
        *(ROOT / "deploy/docker-compose.yml", *([monitoring(tmp_path)] if prometheus_image else [])),
        CONTROLLER_TOKENS_FILE=str(file),
        METRICS_TOKEN_FILE=str(metrics_token),
        PROMETHEUS_IMAGE=prometheus_image,
    )
    with up(compose, "--no-build", "--scale", "controller=2") as running:
        yield running
    assert compose.leftovers() == []


def status(url: str, path: str, secret: str = "", body: Any = None) -> int:
    """Call a route with a token. Return the status of the response."""
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url + path, data, headers), timeout=30) as response:
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code


def is_known(url: str, secret: str) -> bool:
    """Return True if a secret is that of a client."""
    return status(url, "/get_worker_address", secret, {"model": "m"}) == 200


async def test_one_variable_turns_tokens_on(cluster: Compose, prometheus_image: str, file: Path) -> None:
    await wait_until(lambda: serves(cluster.url), "the cluster is ready", timeout=60)
    url, dispatch = cluster.url, ("/get_worker_address", {"model": "m"})
    assert status(url, "/register_worker", body=WORKER) == 401
    assert status(url, "/register_worker", TOKENS["client"], WORKER) == 403
    assert status(url, "/register_worker", TOKENS["worker"], WORKER) == 200
    assert status(url, dispatch[0], body=dispatch[1]) == 401
    assert status(url, dispatch[0], TOKENS["client"], dispatch[1]) == 200
    assert status(url, "/workers") == 401
    assert status(url, "/workers", TOKENS["admin"]) == 200

    if prometheus_image:
        prometheus = Prometheus(cluster.prometheus_url)
        await wait_until(
            lambda: prometheus.targets() == {"controller": 2, "haproxy": 1}, "Prometheus has a valid token"
        )

    # The same file with another text. A new file in its place would not be seen in the containers.
    file.chmod(0o644)
    file.write_text(lines(client=OTHER))
    for replica in cluster.containers("controller"):
        address = f"http://{cluster.address(replica)}:21001"
        await wait_until(partial(is_known, address, OTHER), "the token is known")
        assert status(address, dispatch[0], TOKENS["client"], dispatch[1]) == 401

    replicas = cluster.containers("controller")
    with pytest.raises(AssertionError, match="nothing was replaced"):
        cluster.upgrade(CONTROLLER_TOKENS_FILE="")
    assert cluster.containers("controller") == replicas

    everything = cluster("logs", "--no-color") + docker("inspect", *cluster.containers("controller"))
    assert not [secret for secret in (*TOKENS.values(), OTHER) if secret in everything]


def test_variables_in_a_file_beside_the_compose_file_are_used(built: None, file: Path, tmp_path: Path) -> None:
    """docs/guides/compose.md says to write them there, so that each later command uses them, too."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy", ignore=shutil.ignore_patterns(".env"))
    (tmp_path / "deploy/.env").write_text(f"CONTROLLER_TOKENS_FILE={file}\n")
    compose = Compose(project("controller-test-env"), tmp_path / "deploy/docker-compose.yml")
    text = compose("config", COMPOSE_DISABLE_ENV_FILE="false")
    assert "CONTROLLER_TOKENS_FILE: /run/secrets/tokens" in text
    assert f"file: {file}" in text
    assert str(file) not in compose("config"), "the other tests ignore the file of the developer"


@pytest.mark.parametrize("published", ["", "0.0.0.0:21001", "21001", "192.0.2.1:21001"])
def test_a_container_without_tokens_does_not_start_for_other_machines(built: None, published: str) -> None:
    arguments = ["run", "--rm", *RESTRICTED, "--tmpfs", "/tmp", "--network", "none"]  # noqa: S108
    with pytest.raises(AssertionError, match=r"CONTROLLER_WORKER_TOKENS.*--tokens-file.*--insecure"):
        docker(*arguments, "--env", f"CONTROLLER_PUBLISHED_HOST={published}", image(), timeout=60.0)
