"""Requests of unmodified FastChat programs pass through the cluster. Each is booked from its start to its end."""

import asyncio
import json
import random
import signal
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import PYDANTIC_1, ControllerProcess, call, fastchat, stock_worker
from tests.system.servers import single
from tests.system.test_examples import stream

pytestmark = pytest.mark.system

CHAT = {"model": "echo", "messages": [{"role": "user", "content": "one two three four"}]}
# What a client asks the API server for, and how many generations run at once for it.
REQUESTS: dict[str, tuple[str, dict[str, Any], int]] = {
    "chat": ("/v1/chat/completions", CHAT, 1),
    "chat, n=2": ("/v1/chat/completions", {**CHAT, "n": 2}, 2),
    "chat, stream": ("/v1/chat/completions", {**CHAT, "stream": True}, 1),
    "completion": ("/v1/completions", {"model": "echo", "prompt": "one two three"}, 1),
    "completion, two prompts": ("/v1/completions", {"model": "echo", "prompt": ["one two", "three four"]}, 2),
    "embeddings": ("/v1/embeddings", {"model": "echo", "input": [f"text {i}" for i in range(9)]}, 1),
}


def leased(controller: ControllerProcess) -> int:
    leases: int = controller.workers()[0]["leased"]
    return leases


def serve_by_way(serve: Serve, *flags: str, **options: Any) -> ControllerProcess:
    port = free_port()
    return serve("--by-way", "--advertise", f"http://127.0.0.1:{port}", *flags, port=port, **options)


async def most_leased_during(controller: ControllerProcess, request: Callable[[], Any]) -> tuple[Any, int]:
    """Return the result of a blocking call, and the largest number of leases that were seen meanwhile."""
    running = asyncio.create_task(asyncio.to_thread(request))
    most = 0
    while not running.done():
        most = max(most, leased(controller))
        await asyncio.sleep(0.01)
    return await running, most


@pytest.mark.parametrize("pydantic", [1, 2])
async def test_each_generation_of_the_stock_api_server_is_booked_while_it_runs(
    serve: Serve, work_dir: Path, pydantic: int
) -> None:
    controller = serve_by_way(serve, "--replicas", "2")
    path = {"PYTHONPATH": PYDANTIC_1} if pydantic == 1 else {}
    with (
        stock_worker(work_dir, controller.url, "--delay", "0.1") as worker,
        fastchat(work_dir, "openai_api_server", "--controller-address", controller.url, **path) as api,
    ):
        await wait_until(controller.names, "the worker is registered")
        assert controller.dispatch("echo") == controller.url
        assert leased(controller) == 0
        for name, (route, body, generations) in REQUESTS.items():
            if body.get("stream") and pydantic == 2:
                continue  # FastChat's API server streams only with pydantic 1
            read = stream if body.get("stream") else call
            answer, most = await most_leased_during(controller, partial(read, api.url + route, body))
            if "embeddings" in name:
                assert len(answer["data"]) == 9
                assert most <= generations, name
            else:
                assert worker.url in json.dumps(answer), name
                assert most == generations, name
            await wait_until(lambda: leased(controller) == 0, f"all leases are released after: {name}")
        [shown] = controller.workers()
        assert shown["queue_length"] == 0


async def test_region_under_a_parent_counts_each_request_once_on_each_level(serve: Serve, work_dir: Path) -> None:
    top = serve_by_way(serve, data="top")
    region = serve_by_way(serve, "--parent", top.url, "--parent-interval", "0.5", data="region")
    with stock_worker(work_dir, region.url, "--delay", "0.1"):
        await wait_until(lambda: top.names() == [region.url], "the region is registered at its parent")
        await wait_until(lambda: top.dispatch("echo") == top.url, "the parent lists the models of the region")
        levels: list[tuple[int, int]] = []
        request = {"model": "echo", "prompt": "one two three four five"}
        for path in ("/worker_generate", "/worker_generate_stream"):
            running = asyncio.create_task(asyncio.to_thread(request_frames, top.url + path, request))
            while not running.done():
                levels.append((leased(top), leased(region)))
                await asyncio.sleep(0.01)
            await running
            await wait_until(lambda: (leased(top), leased(region)) == (0, 0), "the leases of both levels are released")
        assert max(top for top, _ in levels) == max(region for _, region in levels) == 1
        assert call(f"{top.url}/count_token", {"model": "echo", "prompt": "a b c"}) == {"count": 3, "error_code": 0}


async def leaving_client(port: int, rng: random.Random) -> None:
    """Send a request and leave at any point: before its end, before the answer, or within it."""
    path, prompt = rng.choice(["/worker_generate_stream", "/worker_generate", "/count_token"]), "word " * 6
    body = json.dumps({"model": "echo", "prompt": prompt}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    sent = head + body
    with suppress(OSError, asyncio.IncompleteReadError):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            phase = rng.choice(["request", "before the answer", "answer", "stays"])
            writer.write(sent[: rng.randrange(len(sent))] if phase == "request" else sent)
            await writer.drain()
            if phase == "before the answer":
                await asyncio.sleep(rng.random() * 0.2)
            elif phase == "answer":
                await reader.readexactly(rng.randrange(1, 300))
            elif phase == "stays":
                await reader.read()
        finally:
            writer.transport.abort() if rng.random() < 0.5 else writer.close()


@pytest.mark.slow
async def test_clients_that_leave_in_every_phase_leave_no_lease(serve: Serve, work_dir: Path) -> None:
    controller = serve_by_way(serve, "--replicas", "2")
    rng = random.Random(7)
    flags = ("--delay", "0.02", "--limit-worker-concurrency", "50")
    with stock_worker(work_dir, controller.url, *flags), stock_worker(work_dir, controller.url, *flags):
        await wait_until(lambda: len(controller.names()) == 2, "the workers are registered")
        for _ in range(20):
            await asyncio.gather(*(leaving_client(controller.port, rng) for _ in range(50)))
            assert all(worker["leased"] >= 0 for worker in controller.workers())
        await wait_until(
            lambda: [worker["leased"] for worker in controller.workers()] == [0, 0], "all leases are released"
        )
        assert call(f"{controller.url}/worker_generate", {"model": "echo", "prompt": "x"})["error_code"] == 0
        assert "Traceback" not in controller.log


@pytest.mark.slow
async def test_killed_replica_loses_only_what_it_forwarded(serve: Serve, work_dir: Path) -> None:
    async with single(work_dir) as store:
        flags = ("--redis-url", store.url, "--lease-time", "3")
        killed, other = (serve_by_way(serve, *flags, data=name) for name in ("killed", "other"))
        with stock_worker(work_dir, other.url, "--delay", "0.2", "--limit-worker-concurrency", "50"):
            await wait_until(other.names, "the worker is registered")
            body = {"model": "echo", "prompt": "word " * 30}

            def stream_by(replica: ControllerProcess) -> list[dict[str, Any]]:
                with suppress(OSError):
                    frames = request_frames(f"{replica.url}/worker_generate_stream", body)
                    return [json.loads(frame) for frame in frames]
                return []

            streams = [asyncio.create_task(asyncio.to_thread(stream_by, each)) for each in [killed, other] * 3]
            await wait_until(lambda: leased(other) == 6, "all streams run")
            killed.popen.send_signal(signal.SIGKILL)
            assert call(f"{other.url}/worker_generate", {"model": "echo", "prompt": "x"})["error_code"] == 0
            await wait_until(lambda: leased(other) <= 3, "the leases of the killed replica have expired")
            received = await asyncio.gather(*streams)
            assert [len(frames) == 31 for frames in received] == [False, True] * 3
            await wait_until(lambda: leased(other) == 0, "the other streams have ended")


def request_frames(url: str, body: object) -> list[bytes]:
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=120) as response:
        received: bytes = response.read()
    return received.split(b"\0")[:-1]
