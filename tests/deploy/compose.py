"""Docker Compose as an operator uses it, in a project of the test's own."""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from ports import free_port

ROOT = Path(__file__).parents[2]
LABEL = "com.docker.compose"
# Local images with these names replace the ones in the compose files, for machines that cannot pull images.
IMAGES = {
    "PYTHON_IMAGE": "docker-lab/python:3.13",
    "REDIS_IMAGE": "docker-lab/redis:8",
    "HAPROXY_IMAGE": "docker-lab/haproxy:3.0",
}


def docker(*arguments: str, timeout: float = 300.0) -> str:
    """Run a docker command and return its output. Fails with its error output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}{done.stdout}"
    return done.stdout


def docker_problem() -> str:
    """Return why containers cannot run on this machine, or "" if they can."""
    if not shutil.which("docker"):
        return "docker is not installed"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"{' '.join(command)} failed: {done.stderr.strip()}"
    return ""


def image() -> str:
    """Return the name of the image of the controller."""
    return os.environ.get("CONTROLLER_IMAGE", "controller-cluster")


def images() -> dict[str, str]:
    """Return the images to use instead of those in the compose files, as environment variables."""
    found = {name: os.environ.get(name, "") for name in IMAGES}
    for name, local in IMAGES.items():
        if (
            not found[name]
            and not subprocess.run(["docker", "image", "inspect", local], capture_output=True).returncode
        ):
            found[name] = local
    return {name: image for name, image in found.items() if image}


class Compose:
    """A Docker Compose project on a port of its own."""

    def __init__(self, project: str, *files: Path, **env: str) -> None:
        self.project = project
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        prometheus_port = free_port()
        self.prometheus_url = f"http://127.0.0.1:{prometheus_port}"
        self._options = ["-p", project, *(argument for file in files for argument in ("-f", str(file)))]
        self._env = {
            **os.environ,
            **images(),
            "CONTROLLER_PORT": f"127.0.0.1:{self.port}",
            "PROMETHEUS_PORT": f"127.0.0.1:{prometheus_port}",
            "DOCKER_BUILDKIT": os.environ.get("DOCKER_BUILDKIT", "0"),
            "COMPOSE_DISABLE_ENV_FILE": "true",  # deploy/.env is of the developer's own cluster
            **env,
        }

    def __call__(self, *arguments: str, timeout: float = 300.0, **env: str) -> str:
        """Run `docker compose ...` with additional environment variables. Return its output."""
        return self._run("docker", "compose", *self._options, *arguments, timeout=timeout, env=env)

    def upgrade(self, **env: str) -> str:
        """Run deploy/upgrade.sh and return its output. Later commands use the same variables if it succeeds."""
        output = self._run("sh", str(ROOT / "deploy/upgrade.sh"), *self._options, timeout=300.0, env=env)
        self._env.update(env)
        return output

    def script(self, commands: str, directory: Path) -> None:
        """Run commands of the documentation for this project, in a directory."""
        ours = shlex.join(["docker", "compose", *self._options])
        text = commands.replace("docker compose -f deploy/docker-compose.yml", ours)
        assert text != commands
        self._run("sh", "-c", text, timeout=60.0, env={}, cwd=directory)

    def _run(self, *command: str, timeout: float, env: Mapping[str, str], cwd: Path | None = None) -> str:
        variables = {**self._env, **env}
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout, env=variables, cwd=cwd)
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}{done.stdout}"
        return done.stdout

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's containers, including those that have ended.

        Calls `docker ps`, because `docker compose ps` takes ten times as long.
        """
        wanted = {"project": self.project, "service": service, "oneoff": "False"}
        labels = [word for name, value in wanted.items() for word in ("--filter", f"label={LABEL}.{name}={value}")]
        columns = f'{{{{.Label "{LABEL}.container-number"}}}} {{{{.ID}}}}'
        found = docker("ps", "--all", "--no-trunc", "--format", columns, *labels).splitlines()
        return [
            container
            for _, container in sorted((int(number), container) for number, container in map(str.split, found))
        ]

    def address(self, container: str) -> str:
        """Return the IP address of a container on the network of the workers, or on its only network."""
        [state] = json.loads(docker("inspect", container))
        networks = state["NetworkSettings"]["Networks"]
        [network] = [networks[name] for name in networks if len(networks) == 1 or name.endswith("_workers")]
        return str(network["IPAddress"])

    def leftovers(self) -> list[str]:
        """Return the ids of the remaining containers, volumes and networks of the project."""
        label = f"label={LABEL}.project={self.project}"
        kinds = (("ps", "--all"), ("volume", "ls"), ("network", "ls"))
        return [line for kind in kinds for line in docker(*kind, "--quiet", "--filter", label).split()]


@contextlib.contextmanager
def up(compose: Compose, *arguments: str) -> Iterator[Compose]:
    """Run the project from `up` to `down`. If the test fails, print the logs of the project."""
    try:
        compose("up", "--detach", *arguments)
        yield compose
    except BaseException:
        print(compose("logs", "--no-color", "--tail", "60"))  # noqa: T201 - pytest shows the output of a failed test
        raise
    finally:
        compose("down", "--volumes", "--timeout", "5")
