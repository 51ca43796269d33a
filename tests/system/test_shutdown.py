"""A replica shuts down: it becomes unready, serves for --shutdown-delay, and finishes its running requests."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import httpx
import pytest
from ports import free_port

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, listens, stock_worker
from tests.system.test_serve import replicas

pytestmark = pytest.mark.system

MODEL = ("--model-names", "m")
A = "http://127.0.0.1:1/a"


def readiness(controller: ControllerProcess) -> tuple[int, str]:
    """Return the status of /readyz, and its error code or ""."""
    response = httpx.get(f"{controller.url}/readyz")
    return response.status_code, response.json().get("error", {}).get("code", "")


def terminate(controller: ControllerProcess) -> None:
    os.kill(controller.popen.pid, signal.SIGTERM)


async def test_a_replica_becomes_unready_and_keeps_serving(serve: Serve) -> None:
    controller = serve("--shutdown-delay", "60")
    controller.register(A)
    async with httpx.AsyncClient(base_url=controller.url) as http:
        assert "connection" not in (await http.post("/get_worker_address", json={"model": "m"})).headers
        terminate(controller)
        await wait_until(lambda: readiness(controller) == (503, "shutting_down"), "the replica is unready")
        answer = await http.post("/get_worker_address", json={"model": "m"})
        assert answer.json() == {"address": A}
        assert answer.headers["connection"] == "close", "the next call opens another connection"
        assert controller.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0}) == {"exist": True}
        assert httpx.get(f"{controller.url}/healthz").status_code == 200
    terminate(controller)
    assert controller.popen.wait(60) == 0
    assert "serving for another 60 s" in controller.log
    assert "Traceback" not in controller.log


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_a_second_signal_skips_the_delay(serve: Serve, second: signal.Signals) -> None:
    controller = serve("--shutdown-delay", "60")
    terminate(controller)
    await wait_until(lambda: readiness(controller) == (503, "shutting_down"), "the replica is unready")
    os.kill(controller.popen.pid, second)
    assert controller.popen.wait(60) == 0


async def test_ctrl_c_skips_the_delay(serve: Serve) -> None:
    controller = serve("--shutdown-delay", "60")
    os.kill(controller.popen.pid, signal.SIGINT)
    assert controller.popen.wait(60) == 0


async def stream(controller: ControllerProcess, words: int, begun: asyncio.Event) -> tuple[int, dict[str, object]]:
    """Return the number of frames and the last frame. Sets `begun` when data arrives."""
    body = {"model": "m", "prompt": "word " * words}
    frames = b""
    async with (
        httpx.AsyncClient(timeout=60.0) as http,
        http.stream("POST", f"{controller.url}/worker_generate_stream", json=body) as response,
    ):
        async for part in response.aiter_raw():
            frames += part
            begun.set()
    complete = frames.split(b"\0")
    assert complete.pop() == b"", "the stream ends with a complete frame"
    return len(complete), json.loads(complete[-1])


async def start_stream(controller: ControllerProcess, words: int) -> "asyncio.Task[tuple[int, dict[str, object]]]":
    """Start a stream. Return its task after the first frame has arrived."""
    begun = asyncio.Event()
    task = asyncio.create_task(stream(controller, words, begun))
    await begun.wait()
    return task


async def test_a_running_stream_is_finished(serve: Serve, work_dir: Path) -> None:
    controller = serve("--shutdown-delay", "0.2", "--shutdown-timeout", "30")
    with stock_worker(work_dir, controller.url, *MODEL, "--delay", "0.1", interval=60):
        task = await start_stream(controller, 20)
        terminate(controller)
        frames, last = await task
        assert (frames, last["error_code"]) == (21, 0)
        assert controller.popen.wait(60) == 0


async def test_a_stream_beyond_the_shutdown_timeout_ends_with_an_error_frame(serve: Serve, work_dir: Path) -> None:
    controller = serve("--shutdown-delay", "0.2", "--shutdown-timeout", "1")
    with stock_worker(work_dir, controller.url, *MODEL, "--delay", "0.1", interval=60):
        task = await start_stream(controller, 1000)
        began = time.monotonic()
        terminate(controller)
        frames, last = await task
        assert 0 < frames < 1001
        assert last["error_code"] == 50006
        assert controller.popen.wait(60) == 0
        assert time.monotonic() - began > 1.0, "the stream has had the whole timeout"


@pytest.fixture
async def three_replicas(serve: Serve, delay: str) -> ControllerProcess:
    controller = serve("--replicas", "3", "--shutdown-delay", delay)
    assert len(replicas(controller)) == 3
    await wait_until(lambda: controller.log.count("Application startup complete") == 3, "all replicas serve")
    return controller


@pytest.mark.parametrize("delay", ["60"])
async def test_several_replicas_become_unready_as_one_does(three_replicas: ControllerProcess) -> None:
    terminate(three_replicas)
    await wait_until(lambda: three_replicas.log.count("serving for another 60 s") == 3, "all replicas log the delay")
    assert readiness(three_replicas) == (503, "shutting_down")
    three_replicas.kill()


@pytest.mark.parametrize("delay", ["0.2"])
async def test_several_replicas_shut_down_as_one_does(three_replicas: ControllerProcess) -> None:
    controller = three_replicas
    terminate(controller)
    assert controller.popen.wait(60) == 0
    assert controller.log.count("serving for another 0.2 s") == 3
    assert "Traceback" not in controller.log


async def test_replicas_free_the_port_when_their_supervisor_is_killed(serve: Serve) -> None:
    controller = serve("--replicas", "2", "--shutdown-delay", "60")
    controller.kill()
    await wait_until(lambda: not listens(controller.port), "the port is free")
    assert free_port() != controller.port
