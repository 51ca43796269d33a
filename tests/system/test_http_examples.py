"""The examples of docs/reference/http-api.md: each request is sent, and its response compared."""

import http.client
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from controller.web.routes.table import FALLBACK, ROUTES
from docs.scripts.http_examples import CONTROLLER, EXAMPLES, LEASE, VARIABLE, WORKER, Example, Frames, Text
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, Server

pytestmark = [pytest.mark.system, pytest.mark.smoke]

TOKEN = "a-token-for-this-test"
METHODS = {route.path: route.method for route in (*ROUTES, FALLBACK)}


def test_each_example_gets_its_response(serve: Serve, work_dir: Path) -> None:
    controller = serve("--poll-interval", "0")  # a poll would change what GET /workers shows
    url = f"http://localhost:{free_port()}"
    flags = ["--port", url.rpartition(":")[2], "--controller-address", controller.url]
    worker = Server(url, work_dir / "worker.log", "-m", "controller.examples.worker", *flags)
    try:
        worker.wait_for(lambda: url in controller.names(), "the worker is registered")
        actual = {WORKER: url, CONTROLLER: controller.url}
        closed = serve(data="closed", CONTROLLER_ADMIN_TOKENS=f"ops={TOKEN}")
        for example in EXAMPLES:
            status, body = send(closed if example.by_admin else controller, example, actual)
            assert status == example.status, (example, body)
            compare(example, body, actual)
    finally:
        worker.kill()


def send(controller: ControllerProcess, example: Example, actual: dict[str, str]) -> tuple[int, str]:
    """The status and the body of the response."""
    sent = None if example.body is None else replaced(json.dumps(example.body), actual)
    connection = http.client.HTTPConnection("127.0.0.1", controller.port, timeout=20)
    try:
        headers = {"Authorization": f"Bearer {TOKEN}"} if example.by_admin else {}
        connection.request(METHODS[example.path], example.url_path, sent, headers)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def replaced(text: str, actual: dict[str, str]) -> str:
    """The text of an example with the lease and the addresses of this run."""
    for documented in (LEASE, WORKER, CONTROLLER):
        text = text.replace(documented, actual.get(documented, documented))
    return text


def compare(example: Example, body: str, actual: dict[str, str]) -> None:
    expected = example.response
    if isinstance(expected, Text):
        for line in expected.lines:
            pattern = ".*".join(map(re.escape, line.split("...")))
            assert re.search(pattern, body), (example.path, body)
    elif isinstance(expected, Frames):
        *frames, rest = body.split("\0")
        assert rest == ""
        assert [json.loads(frame) for frame in frames] == expected.frames
    else:
        received = json.loads(body)
        if example.body is not None and LEASE in json.dumps(expected):
            actual[LEASE] = received["lease"]
        documented = json.loads(replaced(json.dumps(expected), actual))
        assert comparable(received) == comparable(documented), example.path


def comparable(value: Any) -> Any:
    """The value, with the types of the fields that differ from run to run."""
    if isinstance(value, list):
        return [comparable(item) for item in value]
    if isinstance(value, dict):
        return {name: type(item) if name in VARIABLE else comparable(item) for name, item in value.items()}
    return value
