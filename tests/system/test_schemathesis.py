"""schemathesis generates requests from the API document of a real controller, and checks the responses.

schemathesis.toml, in this directory, has the settings and what is excluded, and schemathesis_hooks.py keeps requests on
this machine. The requests of a run are always the same. To try more and other ones:

    SCHEMATHESIS="--max-examples 300 --seed 7" make test ARGS="tests/system/test_schemathesis.py"
"""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from ports import free_port

from controller.web.openapi.document import path_of
from controller.web.routes.table import ROUTES
from tests.conftest import Figure
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, Server

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
TOKENS = {plane: f"token-of-the-plane-{plane}" for plane in ("admin", "client", "worker")}
MORE = os.environ.get("SCHEMATHESIS", "").split()
FLAGS = ("--worker-allow", "127.0.0.0/8", "--probe-timeout", "2", "--worker-timeout", "10", "--registration-rate", "0")


@pytest.fixture
def controller(request: pytest.FixtureRequest, serve: Serve, work_dir: Path) -> Iterator[ControllerProcess]:
    """Yield a controller with a worker. It needs tokens if the parameter of the fixture is "closed"."""
    closed = request.param == "closed"
    environment = {f"CONTROLLER_{plane.upper()}_TOKENS": f"{plane}={token}" for plane, token in TOKENS.items()}
    started = serve(*FLAGS, "--poll-interval", "0", **(environment if closed else {}))
    url = f"http://localhost:{free_port()}"
    address = started.url.replace("//", f"//worker:{TOKENS['worker']}@") if closed else started.url
    flags = ["--port", url.rpartition(":")[2], "--controller-address", address]
    worker = Server(url, work_dir / "worker.log", "-m", "controller.examples.worker", *flags)
    try:
        worker.wait_for(lambda: "registered at" in worker.log, "the worker is registered")
        yield started
        assert "Traceback" not in started.log
    finally:
        worker.kill()


def run(controller: ControllerProcess, *options: str, token: str = "") -> str:
    """Run schemathesis and return what it prints. Fails if it finds something."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", "tests/system/schemathesis.toml"]
    all_paths = ["--include-path-regex", ".*"]  # otherwise it leaves out the route of the document
    authorization = ["--header", f"Authorization: Bearer {token}"] if token else []
    finished = subprocess.run(
        [*command, "run", f"{controller.url}/openapi.json", "--no-color", *all_paths, *authorization, *options, *MORE],
        cwd=ROOT,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert f"Tested: {len(ROUTES)}\n" in finished.stdout
    return finished.stdout


def only_refused(output: str) -> set[str]:
    """Return the paths whose responses all had the status 401 or 403."""
    _, _, warning = output.partition("Authentication failed:")
    return set(re.findall(r"(?m)^ +- (?:GET|POST) (\S+)$", warning.partition("💡")[0]))


@pytest.mark.parametrize("controller", ["closed"], indirect=True)
def test_with_tokens(controller: ControllerProcess, figure: Figure) -> None:
    """schemathesis also sends each request without a token and with a wrong one, and expects a 401 (ignored_auth)."""
    output = run(controller, "--max-examples", "3", token=TOKENS["admin"])
    assert only_refused(output) == set()
    [generated] = re.findall(r"(\d+) generated, ", output)
    figure("requests of schemathesis with an admin token", generated)
    assert int(generated) > 1000
    public = {path_of(route) for route in ROUTES if route.plane == "public"}
    for plane in ("client", "worker"):
        output = run(controller, "--phases", "coverage", token=TOKENS[plane])
        opened = {path_of(route) for route in ROUTES if plane in (route.plane, *route.other_planes)}
        assert only_refused(output) == {path_of(route) for route in ROUTES} - opened - public


@pytest.mark.parametrize("controller", ["open"], indirect=True)
def test_without_tokens(controller: ControllerProcess) -> None:
    """An open controller accepts requests without a token, which the document cannot know."""
    output = run(controller, "--phases", "examples,coverage", "--exclude-checks", "ignored_auth")
    assert only_refused(output) == set()
