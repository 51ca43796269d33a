"""What FastChat's and LLaVA's workers make of an error answer to a heartbeat, with the real `requests`."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import requests
import uvicorn

from controller.domain.errors import InvalidInput, ShuttingDown, StoreRejection, StoreUnavailable
from controller.web.asgi.endpoint import MAX_BODY, Answer, HeartbeatEndpoint
from controller.web.asgi.protocol import BoundedProtocol
from tests.support.waiting import wait_until


class Failing:
    """A server whose route for heartbeats raises `error`."""

    def __init__(self) -> None:
        self.error = Exception()
        self.url = ""

    async def handle(self, _: bytes) -> Answer:
        raise self.error


@pytest.fixture
async def failing() -> AsyncIterator[Failing]:
    failing = Failing()
    app = HeartbeatEndpoint(failing.handle)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning", lifespan="off", http=BoundedProtocol))
    serving = asyncio.create_task(server.serve())
    await wait_until(lambda: server.started, "it listens")
    failing.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/receive_heart_beat"
    yield failing
    server.should_exit = True
    await serving


ERRORS = [
    (StoreUnavailable("Redis is\naway."), 503, "store_unavailable"),
    (ShuttingDown("Not for long."), 503, "shutting_down"),
    (StoreRejection("No."), 500, "store_rejection"),
    (RuntimeError("a bug"), 500, "internal_error"),
    (InvalidInput("worker_name", "is no URL"), 400, "invalid_input"),
]


@pytest.mark.parametrize(("error", "status", "code"), ERRORS, ids=[code for _, _, code in ERRORS])
async def test_an_error_is_a_line_of_text_that_requests_refuses(
    failing: Failing, error: Exception, status: int, code: str
) -> None:
    failing.error = error
    answer = await asyncio.to_thread(requests.post, failing.url, json={}, timeout=60)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "text/plain; charset=utf-8")
    assert answer.headers["x-controller-error"] == code
    assert answer.text.startswith(f"{code}: ")
    assert answer.text.splitlines() == [answer.text.rstrip("\n")], "one line"
    with pytest.raises(requests.exceptions.RequestException):
        answer.json()


async def test_a_body_that_is_too_large_is_one_too(failing: Failing) -> None:
    answer = await asyncio.to_thread(requests.post, failing.url, b" " * (MAX_BODY + 1), timeout=60)
    assert (answer.status_code, answer.text.partition(":")[0]) == (413, "body_too_large")
    with pytest.raises(requests.exceptions.RequestException):
        answer.json()


@pytest.mark.parametrize("version", ["0.14.2", "1.2.3", "2.9.1", "2.22.0", "2.26.0"])
async def test_requests_before_2_27_cannot_decode_it(failing: Failing, version: str) -> None:
    """Their `.json()` raises ValueError for text, which no worker catches."""
    failing.error = StoreUnavailable("Redis is away.")
    headers = {"User-Agent": f"python-requests/{version}"}
    with pytest.raises(requests.exceptions.ContentDecodingError):
        await asyncio.to_thread(requests.post, failing.url, json={}, headers=headers, timeout=60)


@pytest.mark.parametrize("agent", ["python-requests/2.27.0", "python-requests/2.100.0", "python-requests/10.2.0", ""])
async def test_other_clients_can(failing: Failing, agent: str) -> None:
    failing.error = StoreUnavailable("Redis is away.")
    answer = await asyncio.to_thread(requests.post, failing.url, json={}, headers={"User-Agent": agent}, timeout=60)
    assert answer.text == "store_unavailable: Redis is away.\n"
