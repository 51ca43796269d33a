"""Ends the processes of a test run when its runner has ended, even after a SIGKILL.

`start_watchdog()` puts a mark into the environment, which all processes of the tests inherit. The watchdog is the
process `python -m tests.support.lifeline MARK`. It reads from a pipe of which only the runner has the other end. When
the runner ends, the pipe closes. The watchdog then kills all processes with the mark, and their children. It also
removes the Docker Compose projects with the mark in their names. Each worker of pytest-xdist is a runner with its own
mark.
"""

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import psutil

VARIABLE = "RUN_OF_CONTROLLER_TESTS"  # CONTROLLER_... would be warned of
SHELL_TIMEOUT = 10.0  # seconds


def start_watchdog() -> Callable[[], None]:
    """End all processes that are started from now on with this one. Return a function that ends them at once."""
    mark = secrets.token_hex(8)
    os.environ[VARIABLE] = ",".join(filter(None, [os.environ.get(VARIABLE), mark]))
    watchdog = subprocess.Popen(
        [sys.executable, "-m", __name__, mark],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a signal to the runner's group must not reach it
    )

    def stop() -> None:
        watchdog.communicate()  # closes the pipe

    return stop


def project(name: str) -> str:
    """Return a name for a Docker Compose project of this run."""
    return f"{name}-{os.environ[VARIABLE].rpartition(',')[2]}"


_RESOURCES = (
    ("docker ps --all", "{{.ID}}", "docker rm --force"),
    ("docker network ls", "{{.ID}}", "docker network rm"),
    ("docker volume ls", "{{.Name}}", "docker volume rm"),
)


def remove_projects(mark: str) -> None:
    """Remove containers, networks and volumes of Docker Compose projects whose names end with the mark."""
    if not shutil.which("docker"):
        return
    for list_all, column, remove in _RESOURCES:
        command = [*list_all.split(), "--format", column + ' {{.Label "com.docker.compose.project"}}']
        found = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
        left = [line.split()[0] for line in found if line.endswith(f"-{mark}")]
        if left:
            subprocess.run([*remove.split(), *left], capture_output=True, check=False)


def marked(mark: str) -> set[psutil.Process]:
    """Return the processes with the mark and all of their children, without this process."""
    found: set[psutil.Process] = set()
    for process in psutil.process_iter():
        try:
            if mark in process.environ().get(VARIABLE, "").split(","):
                # Redis overwrites its environment with its title, so it is found as a child.
                found.update([process, *process.children(recursive=True)])
        except psutil.Error:
            continue
    return {process for process in found - {psutil.Process()} if alive(process)}


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def kill_all(mark: str) -> None:
    """Kill processes until none with the mark is left.

    A shell gets time to end by itself. One ends the embedded store, after it has waited for the store's owner to end.
    """
    deadline = time.monotonic() + SHELL_TIMEOUT
    while left := marked(mark):
        for process in left:
            try:
                if process.name() != "sh" or time.monotonic() > deadline:
                    process.kill()
            except psutil.Error:
                continue
        time.sleep(0.02)


if __name__ == "__main__":
    sys.stdin.read()
    kill_all(sys.argv[1])
    remove_projects(sys.argv[1])
