"""The end of a replica: it says so first, serves on for a moment, and lets what is under way come to its end."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, free_port, listens, stock_worker
from tests.system.test_serve import replicas

MODEL = ("--model-names", "m")
A = "http://127.0.0.1:1/a"


def ready(controller: ControllerProcess) -> tuple[int, str]:
    response = httpx.get(f"{controller.url}/readyz")
    return response.status_code, response.json().get("error", {}).get("code", "")


def terminate(controller: ControllerProcess) -> None:
    os.kill(controller.popen.pid, signal.SIGTERM)


async def test_it_says_so_first_and_serves_on_for_a_moment(serve: Serve) -> None:
    controller = serve("--shutdown-delay", "60")
    controller.register(A)
    async with httpx.AsyncClient(base_url=controller.url) as kept:
        assert "connection" not in (await kept.post("/get_worker_address", json={"model": "m"})).headers
        terminate(controller)
        await wait_until(lambda: ready(controller) == (503, "shutting_down"), "it says so")
        answer = await kept.post("/get_worker_address", json={"model": "m"})
        assert answer.json() == {"address": A}
        assert answer.headers["connection"] == "close", "the client's next call goes elsewhere"
        assert controller.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0}) == {"exist": True}
        assert httpx.get(f"{controller.url}/healthz").status_code == 200
    terminate(controller)
    assert controller.popen.wait(60) == 0
    assert "serving for 60 s more" in controller.log
    assert "Traceback" not in controller.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_asked_twice_it_does_not_dally(serve: Serve, second: signal.Signals) -> None:
    controller = serve("--shutdown-delay", "60")
    terminate(controller)
    await wait_until(lambda: ready(controller) == (503, "shutting_down"), "it says so")
    os.kill(controller.popen.pid, second)
    assert controller.popen.wait(60) == 0


async def test_ctrl_c_does_not_dally(serve: Serve) -> None:
    controller = serve("--shutdown-delay", "60")
    os.kill(controller.popen.pid, signal.SIGINT)
    assert controller.popen.wait(60) == 0


async def stream(controller: ControllerProcess, words: int, begun: asyncio.Event) -> tuple[int, dict[str, object]]:
    """How many frames came, and the last."""
    body = {"model": "m", "prompt": "word " * words}
    frames = b""
    async with (
        httpx.AsyncClient(timeout=60.0) as http,
        http.stream("POST", f"{controller.url}/worker_generate_stream", json=body) as response,
    ):
        async for part in response.aiter_raw():
            frames += part
            begun.set()
    told = frames.split(b"\0")
    assert told.pop() == b"", "whole frames only"
    return len(told), json.loads(told[-1])


async def streaming(controller: ControllerProcess, words: int) -> "asyncio.Task[tuple[int, dict[str, object]]]":
    """A stream that is under way."""
    begun = asyncio.Event()
    task = asyncio.create_task(stream(controller, words, begun))
    await begun.wait()
    return task


async def test_a_stream_that_is_under_way_comes_to_its_end(serve: Serve, work_dir: Path) -> None:
    controller = serve("--shutdown-delay", "0.2", "--shutdown-timeout", "30")
    with stock_worker(work_dir, controller.url, *MODEL, "--delay", "0.1", interval=60):
        task = await streaming(controller, 20)
        terminate(controller)
        frames, last = await task
        assert (frames, last["error_code"]) == (21, 0)
        assert controller.popen.wait(60) == 0


async def test_a_stream_that_takes_too_long_ends_with_a_frame_that_says_so(serve: Serve, work_dir: Path) -> None:
    controller = serve("--shutdown-delay", "0.2", "--shutdown-timeout", "1")
    with stock_worker(work_dir, controller.url, *MODEL, "--delay", "0.1", interval=60):
        task = await streaming(controller, 1000)
        began = time.monotonic()
        terminate(controller)
        frames, last = await task
        assert 0 < frames < 1001
        assert last["error_code"] == 50006
        assert controller.popen.wait(60) == 0
        assert time.monotonic() - began > 1.0, "it had its time"


@pytest.fixture
async def three_replicas(serve: Serve, delay: str) -> ControllerProcess:
    controller = serve("--replicas", "3", "--shutdown-delay", delay)
    assert len(replicas(controller)) == 3
    await wait_until(lambda: controller.log.count("Application startup complete") == 3, "all serve")
    return controller


@pytest.mark.parametrize("delay", ["60"])
async def test_several_replicas_say_so_as_one_does(three_replicas: ControllerProcess) -> None:
    terminate(three_replicas)
    await wait_until(lambda: three_replicas.log.count("serving for 60 s more") == 3, "all say so")
    assert ready(three_replicas) == (503, "shutting_down")
    three_replicas.kill()


@pytest.mark.parametrize("delay", ["0.2"])
async def test_several_replicas_leave_as_one_does(three_replicas: ControllerProcess) -> None:
    controller = three_replicas
    terminate(controller)
    assert controller.popen.wait(60) == 0
    assert controller.log.count("serving for 0.2 s more") == 3
    assert "Traceback" not in controller.log


async def test_replicas_whose_parent_was_killed_leave_the_port_at_once(serve: Serve) -> None:
    controller = serve("--replicas", "2", "--shutdown-delay", "60")
    controller.kill()
    await wait_until(lambda: not listens(controller.port), "the port is free")
    assert free_port() != controller.port
