"""Tokens with real processes: FastChat's programs with credentials in URLs, and hosts without any right."""

import itertools
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from controller.security.tokens import Plane
from controller.web.routes.table import FALLBACK, ROUTES
from tests.support.outage import expire_heartbeat
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call, fastchat, llava_worker, stock_worker

pytestmark = [pytest.mark.system]

# "METHOD /path" of each route that is not public, with its planes.
PLANES = {
    f"{route.method} {route.path.replace('{model:path}', 'm')}": {route.plane, *route.other_planes}
    for route in (*ROUTES, FALLBACK._replace(path="/v1/chat/completions"))
    if route.plane is not Plane.PUBLIC
}
SECRETS = {plane: f"{plane}-secret-of-this-test" for plane in ("worker", "client", "admin")}
ENVIRONMENT = {f"CONTROLLER_{plane.upper()}_TOKENS": f"{plane}={secret}" for plane, secret in SECRETS.items()}
RUN = (sys.executable, "-m", "controller")


def address(controller: ControllerProcess, plane: str) -> str:
    return controller.url.replace("://", f"://{plane}:{SECRETS[plane]}@")


@pytest.fixture
def closed(serve: Serve) -> Iterator[ControllerProcess]:
    """Two replicas with a token for each plane. No secret may be in their log at the end."""
    controller = serve("--replicas", "2", "--sweep-interval", "0.2", **ENVIRONMENT)
    yield controller
    for secret in SECRETS.values():
        assert secret not in controller.log


def command(controller: ControllerProcess, *arguments: str, plane: str = "admin") -> subprocess.CompletedProcess[str]:
    at = ("--controller-address", address(controller, plane))
    return subprocess.run([*RUN, *arguments, *at], capture_output=True, text=True, check=False)


def names(controller: ControllerProcess) -> list[str]:
    _, body = raw(controller, "GET /workers HTTP/1.1", SECRETS["admin"])
    return [worker["worker_name"] for worker in json.loads(body)["workers"]]


def raw(
    controller: ControllerProcess, line: str, secret: str = "", body: Any = None, headers: str = ""
) -> tuple[int, str]:
    """Send a request line as it is. Return the status and the body of the response."""
    sent = json.dumps(body or {})
    head = f"{line}\r\nContent-Length: {len(sent)}\r\nConnection: close\r\n{headers}"
    head += "" if "host:" in headers.lower() else "Host: controller\r\n"
    head += f"Authorization: Bearer {secret}\r\n" if secret else ""
    with socket.create_connection(("127.0.0.1", controller.port), timeout=60) as connection:
        connection.sendall(f"{head}\r\n{sent}".encode())
        answer = b""
        while part := connection.recv(65536):
            answer += part
    head, _, answered = answer.decode().partition("\r\n\r\n")
    return int(head.split()[1]), answered


async def test_stock_programs_authenticate_by_the_address_of_the_controller(
    closed: ControllerProcess, work_dir: Path
) -> None:
    with (
        stock_worker(work_dir, address(closed, "worker")) as worker,
        llava_worker(work_dir, address(closed, "worker")) as llava,
        fastchat(work_dir, "openai_api_server", "--controller-address", address(closed, "client")) as api,
    ):
        await wait_until(lambda: sorted(names(closed)) == sorted([worker.url, llava.url]), "the workers are registered")
        assert "echo" in [model["id"] for model in call(f"{api.url}/v1/models", method="GET")["data"]]
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}
        content = call(f"{api.url}/v1/chat/completions", chat)["choices"][0]["message"]["content"]
        assert "hello there" in content
        await expire_heartbeat(closed.store_url, worker.url)
        await wait_until(lambda: worker.url in names(closed), 'the worker registers again after "exist": false')
        listed = command(closed, "workers").stdout
        assert worker.url in listed
        assert not any(secret in listed for secret in SECRETS.values())


async def test_a_stock_worker_with_a_wrong_token_is_not_registered(closed: ControllerProcess, work_dir: Path) -> None:
    wrong = closed.url.replace("://", "://worker:a-wrong-secret@")
    with stock_worker(work_dir, wrong, wait=False) as worker:
        await wait_until(lambda: "refused: register_worker by no token" in closed.log, "the refusal is logged")
        await wait_until(lambda: worker.popen.poll() is not None or "AssertionError" in worker.log, "the worker fails")
    assert names(closed) == []
    assert "a-wrong-secret" not in closed.log


@pytest.mark.parametrize("secret", ["", "a-wrong-secret"])
async def test_a_rogue_host_can_do_nothing(closed: ControllerProcess, secret: str) -> None:
    registration = {
        "worker_name": "http://127.0.0.1:1/own",
        "check_heart_beat": True,
        "worker_status": {"model_names": ["m"], "speed": 1, "queue_length": 0},
    }
    assert raw(closed, "POST /register_worker HTTP/1.1", SECRETS["worker"], registration)[0] == 200
    rogue = {**registration, "worker_name": "http://127.0.0.1:1/rogue"}
    attempts: dict[str, Any] = {
        "POST /register_worker": rogue,
        "POST /register_worker ": {**registration, "worker_status": None},  # the controller would fetch a URL
        "POST /register_engine": {"worker_name": "http://127.0.0.1:1/rogue"},
        "POST /receive_heart_beat": {"worker_name": "http://127.0.0.1:1/own", "queue_length": 10**6},
        "POST /get_worker_address": {"model": "m"},
        "POST /worker_generate_stream": {"model": "m", "prompt": "x"},
        "POST /v1/chat/completions": {"model": "m"},
        "POST /create_token": {"plane": "admin", "name": "rogue"},
        "POST /remove_worker": {"worker_name": "http://127.0.0.1:1/own"},
        "POST /drain_worker": {"worker_name": "http://127.0.0.1:1/own"},
        "POST /set_capacity": {"model": "m", "capacity": 1},
        "POST /set_model_route": {"model": "m", "targets": {"rogue": 1}},
        "POST /remove_model_route": {"model": "m"},
        "POST /report_failure": {"worker_name": "http://127.0.0.1:1/own"},
    }
    for line, body in [*attempts.items(), *((line, {}) for line in PLANES)]:
        status, answer = raw(closed, f"{line.strip()} HTTP/1.1", secret, body)
        assert (status, "unauthorized" in answer) == (401, True), line
    _, answer = raw(closed, "GET /workers HTTP/1.1", SECRETS["admin"])
    [known] = json.loads(answer)["workers"]
    assert (known["worker_name"], known["queue_length"], known["draining"], known["failing"], known["capacity"]) == (
        "http://127.0.0.1:1/own",
        0,
        False,
        None,
        None,
    )
    assert known["registered_by"] == "worker"


REPORTED = {"check_heart_beat": True, "worker_status": {"model_names": ["own"], "speed": 1, "queue_length": 0}}
OTHERS = {"worker_name": "http://127.0.0.1:1/others"}
# What the holders of a client token and of a bound worker token have no right to do.
ONLY_ADMINS: dict[str, Any] = {
    "POST /set_capacity": {"model": "others", "capacity": 1},
    "POST /set_model_route": {"model": "others", "targets": {"own": 1}},  # to get the requests of a model
    "POST /remove_model_route": {"model": "others"},
    "POST /create_token": {"plane": "admin", "name": "rogue"},
    "POST /revoke_token": {"name": "rack"},
}
ONLY_OWNERS: dict[str, Any] = {
    "POST /register_worker": {**OTHERS, **REPORTED},  # to replace the worker
    "POST /register_engine": {**OTHERS, "engine": "vllm", "api_key": "stolen"},
    "POST /receive_heart_beat": {**OTHERS, "queue_length": 10**6},
    "POST /drain_worker": OTHERS,
    "POST /resume_worker": OTHERS,
    "POST /remove_worker": OTHERS,
}
NOT_FOR_WORKERS: dict[str, Any] = {
    "POST /get_worker_address": {"model": "others"},
    "POST /report_failure": OTHERS,
    "POST /worker_generate_stream": {"model": "others", "prompt": "x"},
    "POST /v1/chat/completions": {"model": "others"},
    "POST /register_worker": {**REPORTED, "worker_name": "http://127.0.0.2:1", "worker_status": {
        "model_names": ["others"], "speed": 1, "queue_length": 0}},  # to get the requests of a model
    "POST /register_worker ": {**REPORTED, "worker_name": "http://169.254.169.254"},
    "POST /register_engine ": {"worker_name": "http://169.254.169.254", "engine": "vllm"},
    "POST /register_worker  ": {**OTHERS, "check_heart_beat": True, "worker_status": None},  # to have it fetched
}  # fmt: skip


@pytest.mark.parametrize("holder", ["worker", "client"])
async def test_a_host_with_a_token_can_do_nothing_beyond_it(closed: ControllerProcess, holder: str) -> None:
    bounds = {"plane": "worker", "name": "rack", "workers": ["127.0.0.2/32"], "models": ["own"]}
    _, created = raw(closed, "POST /create_token HTTP/1.1", SECRETS["admin"], bounds)
    others = {**OTHERS, "check_heart_beat": True, "worker_status": {
        "model_names": ["others"], "speed": 1, "queue_length": 0}}  # fmt: skip
    assert raw(closed, "POST /register_worker HTTP/1.1", SECRETS["worker"], others)[0] == 200
    own = {**REPORTED, "worker_name": "http://127.0.0.2:1"}
    secret = json.loads(created)["token"] if holder == "worker" else SECRETS["client"]
    assert raw(closed, "POST /register_worker HTTP/1.1", secret, own)[0] == (200 if holder == "worker" else 403)
    attempts = [*ONLY_ADMINS.items(), *ONLY_OWNERS.items(), *(NOT_FOR_WORKERS.items() if holder == "worker" else ())]
    attempts += [(line, {}) for line, planes in PLANES.items() if Plane(holder) not in planes]
    for line, body in attempts:
        status, answer = raw(closed, f"{line.strip()} HTTP/1.1", secret, body)
        assert (status, "forbidden" in answer) == (403, True), line
    [known, *_] = json.loads(raw(closed, "GET /workers HTTP/1.1", SECRETS["admin"])[1])["workers"]
    expected = {**OTHERS, "model_names": ["others"], "queue_length": 0, "draining": False, "failing": None}
    expected |= {"capacity": None, "registered_by": "worker"}
    assert {name: known[name] for name in expected} == expected


SPELLINGS = (
    "{}",
    "{}?",
    "{}?x=/healthz",
    "{}#/healthz",
    "/{}",
    "{}/",
    "/healthz/..{}",
    "/healthz/%2e%2e{}",
    "{};/healthz",
    "{}%00",
    "{}%20",
    "http://controller/healthz{}",
    "http://healthz{}",
    "http://controller{}",
    "http://x@controller{}",
    "{}%3f",
    "/./{}",
)
HOSTS = (
    "controller",
    "x/healthz?",
    "controller/healthz",
    "x/healthz#",
    "healthz:80@x",
    "",
    "[::1",
    "127.0.0.1:1/test_connection?",
)


async def test_no_spelling_of_a_request_gets_around_the_tokens(serve: Serve) -> None:
    """The routed path decides, and not a URL that is made from the header Host."""
    closed = serve(**ENVIRONMENT)
    protected = ("capacities", "metrics", "tokens", "workers")
    methods = ("GET", "HEAD", "POST", "OPTIONS")
    for path, spelling, method, host in itertools.product(protected, SPELLINGS, methods, HOSTS):
        line = f"{method} {spelling.format(f'/{path}')} HTTP/1.1"
        status, answer = raw(closed, line, headers=f"Host: {host}\r\n")
        assert status in (400, 401, 404, 405), (line, host, status)
        assert "worker_name" not in answer
        assert "# HELP" not in answer


async def test_tokens_are_created_listed_and_revoked_by_command(closed: ControllerProcess) -> None:
    created = command(closed, "token", "create", "--plane", "worker", "--name", "gpu", "--workers", "127.0.0.0/8")
    assert created.returncode == 0
    secret = created.stdout.strip()
    assert len(secret) == 43
    assert secret not in created.stderr
    registration = {
        "worker_name": "http://127.0.0.1:1/own",
        "check_heart_beat": True,
        "worker_status": {"model_names": ["m"], "speed": 1, "queue_length": 0},
    }
    statuses = [raw(closed, "POST /register_worker HTTP/1.1", secret, registration)[0] for _ in range(20)]
    assert statuses == [200] * 20, "both replicas know the token when the command has ended"
    listed = command(closed, "token", "list")
    assert secret not in listed.stdout
    assert "127.0.0.0/8" in listed.stdout
    assert command(closed, "token", "revoke", "gpu").stdout == "Revoked the token gpu. All replicas refuse it now.\n"
    statuses = [raw(closed, "POST /register_worker HTTP/1.1", secret, registration)[0] for _ in range(20)]
    assert statuses == [401] * 20
    refused = command(closed, "token", "list", plane="client")
    assert refused.returncode == 1
    assert "The token client is of the plane client, and this route needs one of the plane admin" in refused.stderr
    assert SECRETS["client"] not in refused.stderr
    assert secret not in closed.log


@pytest.mark.slow
async def test_other_machines_are_served_only_with_tokens_or_on_demand(serve: Serve, work_dir: Path) -> None:
    refused = serve("--host", "0.0.0.0", data="open", ready=False)
    assert refused.popen.wait(60) == 1
    [line] = refused.log.splitlines()
    assert "Other machines can reach 0.0.0.0" in line
    for number, (flags, environment) in enumerate(
        (
            (("--insecure",), {}),
            (("--published-host", "127.0.0.1:21001"), {}),
            (("--client-networks", "127.0.0.0/8"), {}),
            ((), {"CONTROLLER_CLIENT_TOKENS": f"web={SECRETS['client']}"}),
        )
    ):
        serve("--host", "0.0.0.0", *flags, data=f"data-{number}", **environment).stop()
    refused = serve("--host", "0.0.0.0", "--published-host", "0.0.0.0:21001", data="published", ready=False)
    assert refused.popen.wait(60) == 1
