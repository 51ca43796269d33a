"""Two real llama.cpp servers behind two real replicas."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from controller.domain.engine import Engine
from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.registry import Registry
from controller.store_url import parse_store_url
from tests.support.llamacpp import CONTEXT, NAME, LlamaServer, llama_server
from tests.support.waiting import wait_until
from tests.system.conftest import Serve

pytestmark = [pytest.mark.system, pytest.mark.smoke]

MODEL = "public/tiny"  # which the engines call NAME
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 8, "temperature": 0}
ENDLESS = {**CHAT, "max_tokens": 1_000_000, "ignore_eos": True, "stream": True}


@contextlib.asynccontextmanager
async def registry_of(url: str) -> AsyncIterator[Registry]:
    """Open the registry of a controller. The engines do not expire, because nothing polls them."""
    registry = Registry(connect(parse_store_url(url), 10.0), "controller", 90.0, 10.0, engine_expiration=3600.0)
    try:
        yield registry
    finally:
        await registry.close()


async def register(registry: Registry, server: LlamaServer) -> None:
    engine = Engine("llamacpp", {MODEL: NAME}, max_lengths={MODEL: CONTEXT})
    status = WorkerStatus((MODEL,), 1, 0, 2)
    await registry.register(Registration(server.address, status, True, False, engine=engine))


def events_in(body: bytes) -> list[Any]:
    lines = [line.removeprefix(b"data: ") for line in body.split(b"\n") if line.startswith(b"data: ")]
    return [line if line == b"[DONE]" else json.loads(line) for line in lines]


def busy_slots(server: LlamaServer) -> int:
    return sum(slot["is_processing"] for slot in server.get("/slots"))


async def test_real_engines_behind_real_replicas(serve: Serve, tiny_model: Path, work_dir: Path) -> None:
    first = serve("--poll-interval", "0")
    second = serve("--poll-interval", "0", "--redis-url", first.store_url, data="second")
    for name in ("one", "two"):
        (work_dir / name).mkdir()
    async with registry_of(first.store_url) as registry, httpx.AsyncClient(timeout=60.0) as http:

        async def leases() -> int:
            return sum(known.leased for known in (await registry.list_workers()).workers)

        async def idle() -> bool:
            return await leases() == 0

        with (
            llama_server(work_dir / "one", tiny_model) as one,
            llama_server(work_dir / "two", tiny_model) as two,
        ):
            await register(registry, one)
            await register(registry, two)
            for replica in (first, second):

                async def lists_the_model(url: str = f"{replica.url}/v1/models") -> bool:
                    models = (await http.get(url)).json()["data"]
                    return [(each["id"], each.get("max_model_len")) for each in models] == [(MODEL, CONTEXT)]

                await wait_until(lists_the_model, "the replica has a snapshot of the engines")

                # Chat, with and without a stream, and the same answer as from the engine itself.
                response = await http.post(f"{replica.url}/v1/chat/completions", json=CHAT)
                assert (response.status_code, response.headers["x-served-model"]) == (200, MODEL)
                direct = await http.post(f"{one.address}/v1/chat/completions", json={**CHAT, "model": NAME})
                assert response.json()["choices"] == direct.json()["choices"]
                options = {"stream": True, "stream_options": {"include_usage": True}}
                response = await http.post(f"{replica.url}/v1/chat/completions", json={**CHAT, **options})
                *events, done = events_in(response.content)
                assert done == b"[DONE]"
                assert [event["usage"]["completion_tokens"] for event in events if not event["choices"]] == [8]

                # Errors of the engine, and of the controller.
                too_long = {**CHAT, "messages": [{"role": "user", "content": "x" * 2 * CONTEXT}]}
                response = await http.post(f"{replica.url}/v1/chat/completions", json=too_long)
                assert (response.status_code, response.json()["error"]["type"]) == (400, "exceed_context_size_error")
                response = await http.post(f"{replica.url}/v1/embeddings", json={"model": MODEL, "input": "x"})
                assert response.status_code == 501
                response = await http.post(f"{replica.url}/v1/chat/completions", json={**CHAT, "model": "absent"})
                assert (response.status_code, response.json()["error"]["code"]) == (404, "model_not_found")
                assert {known.failing for known in (await registry.list_workers()).workers} == {""}

            # Four streams through two replicas use all four slots. A client that leaves frees its slot.
            async with contextlib.AsyncExitStack() as clients:
                for number in range(4):
                    url = f"{(first, second)[number % 2].url}/v1/chat/completions"
                    stream = await clients.enter_async_context(http.stream("POST", url, json=ENDLESS))
                    assert stream.status_code == 200
                await wait_until(lambda: busy_slots(one) == busy_slots(two) == 2, "all slots are used")
                assert await leases() == 4
            await wait_until(lambda: busy_slots(one) == busy_slots(two) == 0, "all slots are free")
            await wait_until(idle, "all leases are released")

            # A stream ends with an error if its engine is killed. Requests after that are served by the other one.
            async with http.stream("POST", f"{first.url}/v1/chat/completions", json=ENDLESS) as response:
                parts = response.aiter_bytes()
                received = await anext(parts)
                await wait_until(lambda: busy_slots(one) + busy_slots(two) == 1, "the stream is at one engine")
                killed, left = (one, two) if busy_slots(one) else (two, one)
                killed.kill()
                received += b"".join([part async for part in parts])
            assert events_in(received)[-1]["error"]["code"] == "stream_broken"
            for _ in range(10):
                found = await asyncio.gather(
                    *(http.post(f"{each.url}/v1/chat/completions", json=CHAT) for each in (first, second))
                )
                assert [each.status_code for each in found] == [200, 200]

            # The last engine dies between two requests.
            left.kill()
            response = await http.post(f"{second.url}/v1/chat/completions", json=CHAT)
            assert (response.status_code, response.json()["error"]["code"]) == (502, "worker_unreachable")
            for server in (one, two):
                await registry.remove(server.address)
            response = await http.post(f"{second.url}/v1/chat/completions", json=CHAT)
            assert (response.status_code, response.json()["error"]["code"]) == (503, "no_worker")
            assert "retry-after" in response.headers
            await wait_until(idle, "all leases are released")
    assert "because of a bug" not in first.log + second.log
