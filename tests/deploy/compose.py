"""Docker Compose, driven as an operator does it, in a project of the test's own."""

import contextlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.system.processes import free_port

ROOT = Path(__file__).parents[2]
LABEL = "com.docker.compose"
# Stand-ins of the same names are used where there are any, such as on a machine that can pull no image.
IMAGES = {
    "PYTHON_IMAGE": "docker-lab/python:3.13",
    "REDIS_IMAGE": "docker-lab/redis:8",
    "HAPROXY_IMAGE": "docker-lab/haproxy:3.0",
}


def docker(*arguments: str, timeout: float = 300.0) -> str:
    """The output of a docker command; fails with what it said."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout


def why_not() -> str:
    """Why no container can be run here; "" if they can."""
    if not shutil.which("docker"):
        return "docker is not installed"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command)} says: {done.stderr.strip()}"
    return ""


def images() -> dict[str, str]:
    """The images to use, as environment variables; those that the compose file names, where nothing else is there."""
    found = {name: os.environ.get(name, "") for name in IMAGES}
    for name, stand_in in IMAGES.items():
        if (
            not found[name]
            and not subprocess.run(["docker", "image", "inspect", stand_in], capture_output=True).returncode
        ):
            found[name] = stand_in
    return {name: image for name, image in found.items() if image}


class Compose:
    """A project of compose files."""

    def __init__(self, project: str, *files: Path, **env: str) -> None:
        self.project = project
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._options = ["-p", project, *(argument for file in files for argument in ("-f", str(file)))]
        self._env = {
            **os.environ,
            **images(),
            "CONTROLLER_PORT": f"127.0.0.1:{self.port}",
            "DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "0"),
            **env,
        }

    def __call__(self, *arguments: str, timeout: float = 300.0, **env: str) -> str:
        """The output of `docker compose ...`, with these variables besides its own; fails with what it said."""
        return self._run("docker", "compose", *self._options, *arguments, timeout=timeout, **env)

    def upgrade(self, **env: str) -> str:
        """Run deploy/upgrade.sh with this environment, which stays if all goes well; what it said."""
        said = self._run("sh", str(ROOT / "deploy/upgrade.sh"), *self._options, timeout=300.0, **env)
        self._env.update(env)
        return said

    def _run(self, *command: str, timeout: float, **env: str) -> str:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env={**self._env, **env})
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """The ids of a service's containers, those that do not run among them.

        Asked of the engine: `docker compose ps` takes ten times as long.
        """
        wanted = {"project": self.project, "service": service, "oneoff": "False"}
        labels = [word for name, value in wanted.items() for word in ("--filter", f"label={LABEL}.{name}={value}")]
        columns = f'{{{{.Label "{LABEL}.container-number"}}}} {{{{.ID}}}}'
        found = docker("ps", "--all", "--no-trunc", "--format", columns, *labels).splitlines()
        return [identity for _, identity in sorted((int(number), it) for number, it in map(str.split, found))]

    def address(self, container: str) -> str:
        """The IP address of a container, which this machine reaches."""
        [told] = json.loads(docker("inspect", container))
        [network] = told["NetworkSettings"]["Networks"].values()
        return str(network["IPAddress"])

    def leftovers(self) -> list[str]:
        """What is left of the project: containers, volumes and networks."""
        label = f"label={LABEL}.project={self.project}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [line for kind in kinds for line in docker(*kind, "--quiet", "--filter", label).split()]


@contextlib.contextmanager
def up(compose: Compose, *arguments: str) -> Iterator[Compose]:
    """The project, from `up` to `down`; when the test fails, its logs are in the output."""
    try:
        compose("up", "--detach", *arguments)
        yield compose
    except BaseException:
        print(compose("logs", "--no-color", "--tail", "60"))  # noqa: T201 - pytest shows it with the failure
        raise
    finally:
        compose("down", "--volumes", "--timeout", "5")
