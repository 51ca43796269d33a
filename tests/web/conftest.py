"""An application on each store, and a client for it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from controller.fleet import tokens as fleet_tokens
from controller.metrics import Metrics
from controller.replica import Replica, create_worker_client
from controller.settings import Settings
from controller.store.registry import Registry
from controller.tracing import Tracing
from tests.conftest import Store
from tests.support.api_document import check_response


@dataclass
class Api:
    """A replica without its HTTP server. Requests go to the application directly."""

    http: httpx.AsyncClient
    replica: Replica
    registry: Registry
    metrics: Metrics

    async def post(self, path: str, body: object = None, token: str = "") -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return await self.http.post(path, json=body, headers=headers)

    async def register(self, name: str, *models: str, **changed: object) -> None:
        status = {"model_names": models or ("m",), "speed": 1, "queue_length": 0}
        body = {"worker_name": name, "check_heart_beat": True, "worker_status": status, **changed}
        response = await self.post("/register_worker", body)
        assert (response.status_code, response.json()) == (200, None)

    async def dispatch(self, model: str = "m") -> str:
        response = await self.post("/get_worker_address", {"model": model})
        assert response.status_code == 200
        address: str = response.json()["address"]
        return address


async def check_documented(response: httpx.Response) -> None:
    """Compare a response with the API document, so that all tests of this directory are tests of the document."""
    request = response.request
    is_json = response.headers.get("content-type") == "application/json"
    body = await response.aread() if is_json and "content-encoding" not in response.headers else b""
    headers = {name.lower(): value for name, value in response.headers.items()}
    check_response(request.method, request.url.path, response.status_code, headers, body)


@asynccontextmanager
async def open_api(registry: Registry, tracing: Tracing | None = None, /, **settings: Any) -> AsyncIterator[Api]:
    """Run the application of a replica with the given settings."""
    defaults: dict[str, Any] = {"probe_timeout": 60.0, "worker_timeout": 60.0, "register_timeout": 0.0}
    options = Settings(**{**defaults, **settings})
    metrics = Metrics()
    replica = Replica(options, registry, create_worker_client(options, tracing), metrics, tracing)
    transport = httpx.ASGITransport(replica.app(), raise_app_exceptions=False)
    hooks = {"response": [check_documented]}
    async with httpx.AsyncClient(transport=transport, base_url="http://controller", event_hooks=hooks) as http:
        yield Api(http, replica, registry, metrics)
    await replica.close()


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Run the tests of this folder on uvloop, as `controller serve` does."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
async def api(store: Store) -> AsyncIterator[Api]:
    async with open_api(store.registry()) as opened:
        yield opened


@pytest.fixture
def fast_token_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let replicas look for changed tokens all the time."""
    monkeypatch.setattr(fleet_tokens, "INTERVAL", 0.02)
