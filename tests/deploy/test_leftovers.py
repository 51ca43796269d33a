"""A test run that is killed leaves no containers or networks."""

import subprocess
import sys

import pytest

from tests.deploy.compose import ROOT, docker, docker_problem, images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.deploy

RUNNER = """
import subprocess, sys, time
from tests.support import lifeline
lifeline.start_watchdog()
label = "com.docker.compose.project=" + lifeline.project("controller-test-killed")
for command in (["run", "--detach", sys.argv[1], "sleep", "600"], ["network", "create", "controller-test-killed"]):
    at = 1 if command[0] == "run" else 2
    subprocess.run(["docker", *command[:at], "--label", label, *command[at:]], check=True, stdout=sys.stderr)
print(label, flush=True)
time.sleep(600)
"""


async def test_containers_and_networks_of_a_killed_run_are_removed() -> None:
    reason = docker_problem() or ("" if "REDIS_IMAGE" in images() else "no image of Redis is available")
    if reason:
        pytest.skip(f"NOT TESTED, containers: {reason}")
    command = [sys.executable, "-c", RUNNER, images()["REDIS_IMAGE"]]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as runner:
        assert runner.stdout is not None
        label = f"label={runner.stdout.readline().strip()}"
        assert docker("ps", "--quiet", "--filter", label)
        assert docker("network", "ls", "--quiet", "--filter", label)
        runner.kill()
    await wait_until(lambda: not docker("ps", "--all", "--quiet", "--filter", label), "the container is removed")
    await wait_until(lambda: not docker("network", "ls", "--quiet", "--filter", label), "the network is removed")
