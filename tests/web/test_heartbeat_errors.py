"""The `requests` library of FastChat's and LLaVA's workers can read the error responses to heartbeats."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import requests
import uvicorn

from controller.domain.errors import InvalidInput, ShuttingDown, StoreRejection, StoreUnavailable
from controller.security.access import Caller
from controller.web.asgi.endpoint import MAX_BODY, Answer, HeartbeatEndpoint
from controller.web.asgi.protocol import BoundedProtocol
from tests.support.waiting import wait_until


class Failing:
    """A server with a heartbeat route that raises `error`."""

    def __init__(self) -> None:
        self.error = Exception()
        self.url = ""

    async def handle(self, _: bytes, __: Caller) -> Answer:
        raise self.error


@pytest.fixture
async def failing() -> AsyncIterator[Failing]:
    failing = Failing()
    app = HeartbeatEndpoint(failing.handle)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", http=BoundedProtocol))
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started, "the server listens")
    failing.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/receive_heart_beat"
    yield failing
    server.should_exit = True
    await serving


ERRORS = [
    (StoreUnavailable("Redis is\naway."), 503, "store_unavailable"),
    (ShuttingDown("Not for long."), 503, "shutting_down"),
    (StoreRejection("No."), 500, "store_rejection"),
    (RuntimeError("a bug"), 500, "internal_error"),
    (InvalidInput("worker_name", "is not a URL"), 400, "invalid_input"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[code for _, _, code in ERRORS])
async def test_error_is_a_line_of_text_that_requests_cannot_decode(
    failing: Failing, error: Exception, status: int, code: str
) -> None:
    failing.error = error
    response = await asyncio.to_thread(requests.post, failing.url, json={}, timeout=60)
    assert (response.status_code, response.headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert response.headers["x-controller-error"] == code
    assert response.text.startswith(f"{code}: ")
    assert response.text.splitlines() == [response.text.rstrip("\n")], "it is one line"
    with pytest.raises(requests.exceptions.RequestException):
        response.json()


async def test_too_large_body_is_a_line_of_text_too(failing: Failing) -> None:
    response = await asyncio.to_thread(requests.post, failing.url, b" " * (MAX_BODY + 1), timeout=60)
    assert (response.status_code, response.text.partition(":")[0]) == (413, "body_too_large")
    with pytest.raises(requests.exceptions.RequestException):
        response.json()


@pytest.mark.parametrize("version", ["0.14.2", "1.2.3", "2.9.1", "2.22.0", "2.26.0"])
async def test_requests_before_2_27_raises_an_error_that_workers_catch(failing: Failing, version: str) -> None:
    """In these versions, `.json()` raises ValueError for text. Workers do not catch it, so the post fails instead."""
    failing.error = StoreUnavailable("Redis is away.")
    headers = {"User-Agent": f"python-requests/{version}"}
    with pytest.raises(requests.exceptions.ContentDecodingError):
        await asyncio.to_thread(requests.post, failing.url, json={}, headers=headers, timeout=60)


@pytest.mark.parametrize("agent", ["python-requests/2.27.0", "python-requests/2.100.0", "python-requests/10.2.0", ""])
async def test_other_clients_can_read_the_error(failing: Failing, agent: str) -> None:
    failing.error = StoreUnavailable("Redis is away.")
    response = await asyncio.to_thread(requests.post, failing.url, json={}, headers={"User-Agent": agent}, timeout=60)
    assert response.text == "store_unavailable: Redis is away.\n"
