"""Events from real replicas: all list the same, a client resumes at another one, and an outage is recorded after it."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.servers import single

pytestmark = [pytest.mark.system, pytest.mark.smoke]

A, B = "http://127.0.0.1:1/a", "http://127.0.0.1:1/b"


def recorded(controller: ControllerProcess) -> list[dict[str, Any]]:
    """Return all events."""
    text = httpx.get(f"{controller.url}/events", params={"after": "0-0", "limit": 1000}, timeout=60.0).text
    return [json.loads(line) for line in text.splitlines()]


@asynccontextmanager
async def followed(controller: ControllerProcess, last_id: str = "") -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
    """Follow the events as a browser does, from the one after `last_id`."""
    headers = {"accept": "text/event-stream", **({"last-event-id": last_id} if last_id else {})}

    async def events(lines: AsyncIterator[str]) -> AsyncIterator[dict[str, Any]]:
        async for line in lines:
            if line.startswith("data: {"):
                yield json.loads(line.removeprefix("data: "))

    async with (
        httpx.AsyncClient(timeout=60.0) as client,
        client.stream("GET", f"{controller.url}/events", headers=headers) as response,
    ):
        assert response.status_code == 200
        yield events(response.aiter_lines())


async def next_of(events: AsyncIterator[dict[str, Any]], kind: str) -> dict[str, Any]:
    async for event in events:
        if event["kind"] == kind:
            return event
    raise AssertionError(f"the events ended without {kind}")


@pytest.mark.slow
async def test_a_client_resumes_at_another_replica(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        first, second = (serve("--redis-url", store.url, data=name) for name in ("first", "second"))
        async with followed(first) as events:
            first.register(A)
            seen = await next_of(events, "worker_registered")
            assert seen["worker"] == A
            first.register(B)
            first.kill()
        async with followed(second, seen["id"]) as events:
            assert (await next_of(events, "worker_registered"))["worker"] == B
            assert (await next_of(events, "replica_left"))["reason"] == "its heartbeat has expired"


async def test_replicas_list_the_same_and_record_an_outage(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        replicas = [serve("--redis-url", store.url, data=name) for name in ("first", "second")]
        replicas[0].register(A)
        store.kill()
        for replica in replicas:
            replica.dispatch()
        store.start()
        for replica in replicas:
            replica.wait_for(lambda url=replica.url: serves(url), "it uses the store again")
        await wait_until(
            lambda: [event["kind"] for event in recorded(replicas[0])].count("store_recovered") == 2,
            "both have recorded the outage",
        )
        # A replica may join again between the two requests.
        await wait_until(lambda: recorded(replicas[0]) == recorded(replicas[1]), "both list the same events")
        outage = next(event for event in recorded(replicas[0]) if event["kind"] == "store_recovered")
        assert outage["seconds"] >= 0
        assert "Redis" in outage["reason"]


def test_the_end_of_a_replica_ends_the_responses(serve: Serve) -> None:
    controller = serve("--shutdown-delay", "0")
    with httpx.stream("GET", f"{controller.url}/events", params={"follow": "true"}, timeout=60.0) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines))["kind"] == "store_created"
        controller.popen.terminate()
        for _ in lines:
            pass
    assert controller.popen.wait(60) == 0
