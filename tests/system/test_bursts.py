"""Many concurrent calls of one kind: all succeed, and the controller does not mistake the burst for an outage."""

import asyncio
import re
import urllib.request
from typing import Any

import aiohttp
import pytest

from tests.system.conftest import Serve

pytestmark = pytest.mark.system

CALLS = 400
MODELS = [f"m{i}" for i in range(200)]


def metric(url: str, name: str) -> float:
    text = urllib.request.urlopen(f"{url}/metrics").read().decode()
    return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? ([0-9.e+]+)$", text, re.MULTILINE))


def registration(i: int, models: list[str]) -> dict[str, Any]:
    status = {"model_names": models, "speed": 1, "queue_length": 0, "capacity": 1_000}
    return {"worker_name": f"http://127.0.0.1:1/w{i}", "check_heart_beat": True, "worker_status": status}


class Client:
    """Sends concurrent requests to a controller and checks each response."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session

    async def send(self, path: str, body: dict[str, Any] | None = None, method: str = "post") -> dict[str, Any]:
        async with self.session.request(method, f"{self.url}{path}", json=body) as answer:
            assert answer.status == 200, await answer.text()
            assert "x-controller-degraded" not in answer.headers
            assert "x-controller-error" not in answer.headers
            content = await answer.json()
            return content if isinstance(content, dict) else {}

    async def leases(self, number: int) -> list[str]:
        body = {"model": "m0", "lease": 600}
        return [(await answer)["lease"] for answer in [self.send("/get_worker_address", body) for _ in range(number)]]


@pytest.mark.parametrize("models", [1, 200])
@pytest.mark.parametrize(
    "kind", ["register", "heartbeat", "lease", "release", "renew", "report_failure", "drain", "remove", "list"]
)
async def test_a_burst_does_not_look_like_an_outage(serve: Serve, kind: str, models: int) -> None:
    controller = serve("--redis-timeout", "2", "--poll-interval", "0")
    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(120)
    ) as session:
        client = Client(controller.url, session)
        workers = CALLS if kind in ("heartbeat", "report_failure", "drain", "remove") else 4
        await asyncio.gather(
            *(client.send("/register_worker", registration(i, MODELS[:models])) for i in range(workers))
        )
        leases = await client.leases(CALLS) if kind in ("release", "renew") else []

        async def call(i: int) -> dict[str, Any]:
            name = {"worker_name": f"http://127.0.0.1:1/w{i}"}
            match kind:
                case "register":
                    return await client.send("/register_worker", registration(i, MODELS[:models]))
                case "heartbeat":
                    return await client.send("/receive_heart_beat", {**name, "queue_length": 3})
                case "lease":
                    return await client.send("/get_worker_address", {"model": "m0", "lease": True})
                case "release":
                    return await client.send("/release_worker", {"lease": leases[i]})
                case "renew":
                    return await client.send("/renew_lease", {"lease": leases[i]})
                case "list":
                    paths = [("/list_models", "post"), ("/list_multimodal_models", "post"), ("/workers", "get")]
                    return await client.send(paths[i % 3][0], method=paths[i % 3][1])
            return await client.send(f"/{kind}" if kind == "report_failure" else f"/{kind}_worker", name)

        answers = await asyncio.gather(*(call(i) for i in range(CALLS)))
        expected = {"release": "released", "renew": "renewed", "lease": "lease"}.get(kind, "exist")
        assert kind in ("register", "list") or all(answer[expected] for answer in answers)
    assert metric(controller.url, "controller_store_outages_total") == 0
    assert metric(controller.url, "controller_store_failures_total") == 0
