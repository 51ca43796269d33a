"""Three levels of real processes: a top cluster, two regions of two replicas, and three stock workers per region.

FastChat's API server uses the regions like any other workers.
"""

import asyncio
import contextlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ports import free_port

from tests.support.faults import TcpProxy, proxy_in_thread
from tests.support.outage import expire_heartbeat
from tests.support.waiting import wait_for_each, wait_until
from tests.system.conftest import Serve
from tests.system.processes import PYDANTIC_1, ControllerProcess, call, fastchat, stock_worker

pytestmark = pytest.mark.system

MODELS = ("east", "echo", "west")


class Region:
    """A cluster with its workers, and the two links between it and the top. Both links can be blocked."""

    def __init__(self, name: str, serve: Serve, top: ControllerProcess, work_dir: Path, stack: Any) -> None:
        port = free_port()
        self.to_top = stack.enter_context(proxy_in_thread(TcpProxy(free_port(), top.port)))
        self.from_top = stack.enter_context(proxy_in_thread(TcpProxy(free_port(), port)))
        joins = ("--parent", self.to_top.url, "--advertise", self.from_top.url, "--parent-interval", "1")
        self.controller = serve(*joins, "--replicas", "2", data=name, port=port)
        for _ in range(3):
            flags = ("--model-names", f"echo,{name}", "--delay", "0.01")
            stack.enter_context(stock_worker(work_dir, self.controller.url, *flags))

    def hang(self) -> None:
        """Block both links. Their connections stay open."""
        self.to_top.hang()
        self.from_top.hang()

    def resume(self) -> None:
        self.to_top.resume()
        self.from_top.resume()


def frames_of(url: str, model: str, prompt: str, received: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return all frames of a stream, and append each to `received` as it arrives."""
    frames = [] if received is None else received
    request = urllib.request.Request(
        f"{url}/worker_generate_stream", json.dumps({"model": model, "prompt": prompt}).encode()
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        rest = b""
        while part := response.read1():
            *complete, rest = (rest + part).split(b"\0")
            frames += map(json.loads, complete)
    assert rest == b"", "the stream ends with a complete frame"
    return frames


def events_of(url: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the events of a stream from the API server."""
    request = urllib.request.Request(url, json.dumps({**body, "stream": True}).encode())
    request.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(request, timeout=60) as response:
        lines = response.read().decode().splitlines()
    assert lines[-2:] == ["data: [DONE]", ""]
    for line in lines[:-2]:
        if line:
            yield json.loads(line.removeprefix("data: "))


def check_api(api: str, model: str) -> None:
    """Check chats, completions and embeddings, with and without streaming."""
    chat = {"model": model, "messages": [{"role": "user", "content": "hello there"}]}
    content = call(f"{api}/v1/chat/completions", chat)["choices"][0]["message"]["content"]
    assert "hello there" in content
    deltas = [
        event["choices"][0]["delta"].get("content") or "" for event in events_of(f"{api}/v1/chat/completions", chat)
    ]
    assert len(deltas) > 3
    assert "hello there" in "".join(deltas)
    completion = {"model": model, "prompt": "one two"}
    assert call(f"{api}/v1/completions", completion)["choices"][0]["text"].endswith(" one two")
    texts = [event["choices"][0]["text"] for event in events_of(f"{api}/v1/completions", completion)]
    assert "".join(texts).endswith(" one two")
    embedding = call(f"{api}/v1/embeddings", {"model": model, "input": "four"})
    assert embedding["data"][0]["embedding"] == [4.0]


@pytest.mark.slow
async def test_a_region_is_disconnected_and_joins_again(serve: Serve, work_dir: Path) -> None:
    top = serve("--sweep-interval", "0.2", "--worker-timeout", "3", "--replicas", "2", data="top", port=free_port())
    with contextlib.ExitStack() as stack:
        east, west = (Region(name, serve, top, work_dir, stack) for name in ("east", "west"))
        flags = ("--controller-address", top.url)
        api = stack.enter_context(fastchat(work_dir, "openai_api_server", *flags, PYTHONPATH=PYDANTIC_1)).url
        names = sorted([east.from_top.url, west.from_top.url])
        await wait_until(lambda: top.post("/list_models") == {"models": list(MODELS)}, "the regions have joined")
        await wait_until(
            lambda: [worker["speed"] for worker in top.workers()] == [3, 3], "both regions report three workers"
        )
        assert top.names() == names
        assert sorted(model["id"] for model in call(f"{api}/v1/models", method="GET")["data"]) == list(MODELS)
        for model in MODELS:
            check_api(api, model)

        frames: list[dict[str, Any]] = []
        streaming = asyncio.create_task(asyncio.to_thread(frames_of, top.url, "west", "a " * 500, frames))
        await wait_until(lambda: len(frames) > 3, "the stream has begun")
        assert sum(worker["leased"] for worker in west.controller.workers()) == 1
        west.hang()
        await streaming
        assert [frame["error_code"] for frame in frames] == [0] * (len(frames) - 1) + [50006]
        assert len(frames) < 500
        assert [frame["text"].split(" ", 1)[1:] for frame in frames[:3]] == [[], ["a"], ["a a"]], (
            "the frames are complete and in order"
        )
        await expire_heartbeat(top.store_url, west.from_top.url)
        await wait_until(lambda: top.names() == [east.from_top.url], "the disconnected region is removed")
        assert top.post("/list_models") == {"models": ["east", "echo"]}
        for model in ("east", "echo"):
            check_api(api, model)
        assert frames_of(top.url, "west", "a")[-1]["error_code"] == 50005
        assert frames_of(west.controller.url, "west", "a")[-1]["error_code"] == 0, (
            "the disconnected region still serves its own clients"
        )

        west.resume()
        await wait_until(lambda: top.names() == names, "the region has joined again")
        await wait_until(
            lambda: top.post("/list_models") == {"models": list(MODELS)}, "the models of both regions are listed"
        )
        for model in MODELS:
            check_api(api, model)
        await wait_for_each(
            (top, east.controller, west.controller),
            lambda cluster: {worker["leased"] for worker in cluster.workers()} == {0},
            "no lease remains",
        )
