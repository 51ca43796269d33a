"""Attacks that were made on systems like this one, and that no other file performs."""

import ast
import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

import controller
from tests.conftest import Store
from tests.support.samples import A
from tests.support.workers import bad_worker, hangs
from tests.web.conftest import Api, api, open_api

__all__ = ["api"]
SECRET = "admin-0123456789abcdef"
HOSTILE = (
    "}:tokens",
    "entry:ops",
    "\r\nFLUSHALL\r\n",
    "*1\r\n$8\r\nFLUSHALL\r\n",
    "' return redis.call('FLUSHALL') --",
    "a" * 1_500,
    "\x00\x01",
    "é" * 20,
)


@pytest.fixture
async def closed(store: Store) -> AsyncIterator[Api]:
    async with open_api(store.registry(), admin_tokens=f"ops={SECRET}") as opened:
        yield opened


async def test_wrong_tokens_never_reach_redis(closed: Api, store: Store) -> None:
    """CVE-2026-42208: a key of a request was put into a query before it was checked."""
    before = await store.client.info("commandstats")
    for secret in HOSTILE:
        for scheme in (b"Bearer ", b"Basic "):
            headers = [(b"authorization", scheme + secret.encode().replace(b"\r\n", b" ").replace(b"\x00", b""))]
            refused = await closed.http.post("/get_worker_address", json={"model": "m"}, headers=headers)
            assert refused.status_code == 401
    after = await store.client.info("commandstats")
    ours = {name: stats for name, stats in after.items() if "info" not in name}
    assert {name: stats["calls"] for name, stats in ours.items()} == {
        name: stats["calls"] for name, stats in before.items() if "info" not in name
    }


@pytest.mark.parametrize("name", HOSTILE)
async def test_hostile_names_of_tokens_create_nothing(closed: Api, store: Store, name: str) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    for path, body in (("/create_token", {"plane": "worker", "name": name}), ("/revoke_token", {"name": name})):
        answer = await closed.http.post(path, json=body, headers=headers)
        assert answer.status_code == 400 or answer.json() == {"exist": False}, (path, answer.text)
    assert not await store.client.exists(f"{{{store.namespace}}}:tokens")


async def test_a_slow_worker_delays_no_other_request(api: Api) -> None:
    """CVE-2026-6607: a blocking call to one slow worker stopped the whole controller."""
    async with bad_worker(worker_get_status=hangs) as slow:
        body = {"worker_name": slow.address, "check_heart_beat": True}
        waiting = [asyncio.create_task(api.post("/register_worker", body)) for _ in range(20)]
        refresh = asyncio.create_task(api.post("/refresh_all_workers"))
        await asyncio.sleep(0.1)
        await api.register(A)
        assert [await api.dispatch() for _ in range(10)] == [A] * 10
        assert not any(task.done() for task in waiting), "the slow worker has not answered yet"
        for task in (*waiting, refresh):
            task.cancel()
        await asyncio.gather(*waiting, refresh, return_exceptions=True)


def test_nothing_is_unpickled_and_no_path_comes_from_a_request() -> None:
    """VU#777338: a router unpickled what the network sent. Only files that an operator names are opened."""
    forbidden = {"pickle", "marshal", "shelve", "dill"}  # tests/security/test_code.py says what YAML may do
    files = list(Path(controller.__file__).parent.rglob("*.py"))
    assert len(files) > 50
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            module = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            assert not forbidden & {name.partition(".")[0] for name in (*names, *module)}, file
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec", "open"), f"{file}:{node.lineno}"
    web = [file for file in files if "web" in file.parts or "dispatch" in file.parts]
    assert web
    for file in web:
        assert "pathlib" not in file.read_text(), f"{file} handles requests, and needs no file"


async def test_models_and_workers_are_no_labels_of_metrics(api: Api) -> None:
    """Names from the network as labels would let a client create any number of time series."""
    for i in range(50):
        await api.post("/get_worker_address", {"model": f"model-{i}"})
        await api.register(f"http://127.0.0.1:{i + 1}/w", f"model-{i}")
    text = (await api.http.get("/metrics")).text
    assert "model-" not in text
    assert "127.0.0.1" not in text
