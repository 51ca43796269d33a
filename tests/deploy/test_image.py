"""The image as `docker run` runs it: without rights, with a read-only file system, and without a shell."""

import contextlib
import json
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from supply import dependencies
from tests.deploy.compose import LABEL, docker, image, images
from tests.support.lifeline import project
from tests.support.waiting import wait_until
from tests.system.processes import call, serves

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

RESTRICTED = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--pids-limit", "200"]
SHELLS = ("/bin/sh", "/bin/bash", "/bin/dash")
PACKAGES = """
import importlib.metadata, json
print(json.dumps({each.name: each.version for each in importlib.metadata.distributions()}))
"""


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[str]:
    """Run a container until the block ends. Yield its id. If the test fails, print its log."""
    container = docker("run", "--detach", "--label", f"{LABEL}.project={project('controller-test-image')}", *arguments)
    try:
        yield container.strip()
    except BaseException:
        print(docker("logs", container.strip()))  # noqa: T201 - pytest shows the output of a failed test
        raise
    finally:
        docker("rm", "--force", "--volumes", container.strip())


def url(container: str) -> str:
    [state] = json.loads(docker("inspect", container))
    return f"http://{state['NetworkSettings']['IPAddress']}:21001"


@pytest.fixture
def redis(built: None) -> Iterator[str]:
    """Run a Redis with a password. Return its address."""
    name = images().get("REDIS_IMAGE", "redis:8")
    command = ["redis-server", "--protected-mode", "no", "--save", "", "--requirepass", "secret-of-redis"]
    with running(name, *command) as container:
        [state] = json.loads(docker("inspect", container))
        yield state["NetworkSettings"]["IPAddress"]


def check_dispatch(controller: str) -> None:
    """Register a worker and let it be chosen."""
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    body = {"worker_name": "http://127.0.0.1:1", "check_heart_beat": False, "worker_status": status}
    assert call(f"{controller}/register_worker", body) is None
    assert call(f"{controller}/get_worker_address", {"model": "m"}) == {"address": "http://127.0.0.1:1"}


@pytest.mark.parametrize("user", ["10001:10001", "54321:0"])
async def test_a_replica_needs_no_rights_and_no_shell(redis: str, tmp_path: Path, user: str) -> None:
    """Any user will do, as on OpenShift, which chooses one."""
    password = tmp_path / "password"
    password.write_text("secret-of-redis\n")
    password.chmod(0o444)
    tmp_path.chmod(0o755)
    mounts = ["--volume", f"{password}:/run/secrets/password:ro"]
    for shell in SHELLS:
        mounts += ["--volume", f"/dev/null:{shell}:ro"]
    variables = {
        "CONTROLLER_INSECURE": "true",
        "CONTROLLER_REDIS_URL": f"redis://{redis}",
        "CONTROLLER_REDIS_PASSWORD_FILE": "/run/secrets/password",
    }
    environment = [word for name, value in variables.items() for word in ("--env", f"{name}={value}")]
    with running(*RESTRICTED, "--user", user, *mounts, *environment, image()) as container:
        with pytest.raises(AssertionError):
            docker("exec", container, "sh", "-c", "true")
        await wait_until(lambda: serves(url(container)), "the replica is ready")
        check_dispatch(url(container))
        status = docker("exec", container, "python3", "-c", "print(open('/proc/1/status').read())")
        facts = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        assert facts["Uid"].split() == [user.partition(":")[0]] * 4
        assert {int(facts[name], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
        assert facts["NoNewPrivs"] == "1"
        with pytest.raises(AssertionError, match="Read-only file system"):
            docker("exec", "--user", "0", container, "python3", "-c", "open('/opt/controller/x', 'w')")
        assert "secret-of-redis" not in docker("inspect", container) + docker("logs", container)
        docker("stop", "--time", "60", container)
        assert docker("inspect", container, "--format", "{{.State.ExitCode}}").strip() == "0"


async def test_the_health_check_needs_no_rights(built: None) -> None:
    """The health check runs bash, and the embedded store runs sh. Both are in the image."""
    arguments = ["--tmpfs", "/tmp", "--env", "CONTROLLER_INSECURE=true", "--health-interval", "1s"]  # noqa: S108
    with running(*RESTRICTED, *arguments, image()) as container:
        await wait_until(
            lambda: docker("inspect", container, "--format", "{{.State.Health.Status}}").strip() == "healthy",
            "the replica is healthy",
            timeout=60,
            interval=0.5,
        )
        check_dispatch(url(container))


def test_the_image_contains_the_pinned_packages_only(built: None) -> None:
    run = ["run", "--rm", *RESTRICTED, "--network", "none", "--entrypoint", "python3"]
    packages = json.loads(docker(*run, image(), "-c", PACKAGES))
    packages = {canonicalize_name(name): version for name, version in packages.items()}
    own = packages.pop(dependencies.PROJECT)
    assert own == distribution(dependencies.PROJECT).version
    assert packages == {name: dependencies.pins().get(name) for name in packages}
    assert {"redis", "uvicorn", "yarl"} <= packages.keys()
    assert not {"pip", "setuptools", "hatchling", "pytest"} & packages.keys()
