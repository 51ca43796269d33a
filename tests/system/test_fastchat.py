"""Stock FastChat workers and API servers work with our controller, even during outages."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import psutil
import pytest
from ports import free_port

from tests.support.faults import proxy
from tests.support.outage import expire_heartbeat
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import (
    Server,
    answers,
    call,
    fastchat,
    llava_worker,
    serves,
    stock_worker,
)
from tests.system.test_serve import stores

pytestmark = [pytest.mark.system, pytest.mark.smoke]


async def test_a_stock_worker_registers_expires_and_registers_again(serve: Serve, work_dir: Path) -> None:
    controller = serve("--sweep-interval", "0.2")
    port = free_port()
    with stock_worker(work_dir, controller.url, "--model-names", "vicuna,other", port=port) as worker:
        url = worker.url
        await wait_until(lambda: controller.names() == [url], "the worker is registered")
        assert controller.post("/list_models") == {"models": ["other", "vicuna"]}
        ages = []

        def two_heartbeats() -> bool:
            ages.append(controller.workers()[0]["heartbeat_age"])
            return sum(later < earlier for earlier, later in itertools.pairwise(ages)) >= 2

        await wait_until(two_heartbeats, "two heartbeats have arrived")
        assert controller.dispatch("vicuna") == url

        controller.post("/remove_worker", {"worker_name": url})
        await wait_until(lambda: controller.names() == [url], 'the worker registers again after "exist": false')
    await expire_heartbeat(controller.store_url, url)
    await wait_until(lambda: controller.names() == [], "the killed worker is removed")
    assert controller.dispatch("vicuna") == ""
    with stock_worker(work_dir, controller.url, port=port):
        await wait_until(lambda: controller.names() == [url], "the worker is registered at its old address")


async def test_the_stock_api_server_lists_models_and_completes_a_chat(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with (
        stock_worker(work_dir, controller.url) as worker,
        fastchat(work_dir, "openai_api_server", "--controller-address", controller.url) as api,
    ):
        url: str = api.url
        await wait_until(controller.names, "the worker is registered")
        assert models_of(url) == ["echo"]
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hello there"}]}
        completion = call(f"{url}/v1/chat/completions", chat)
        content = completion["choices"][0]["message"]["content"]
        assert content.startswith(worker.url)
        assert "hello there" in content
        assert call(f"{url}/v1/completions", {"model": "echo", "prompt": "once upon"})["choices"][0]["text"]
        assert call(f"{url}/v1/embeddings", {"model": "echo", "input": "four"})["data"][0]["embedding"] == [4.0]
        with pytest.raises(OSError, match="400"):
            call(f"{url}/v1/chat/completions", {**chat, "model": "absent"})


async def test_the_stock_register_worker_script_registers_a_worker(serve: Serve, work_dir: Path) -> None:
    """The script sends no status, so the controller polls the worker for it."""
    controller = serve()
    with stock_worker(work_dir, controller.url, interval=600) as worker:
        url = worker.url
        await wait_until(lambda: controller.names() == [url], "the worker is registered")
        controller.post("/remove_worker", {"worker_name": url})
        command = [sys.executable, "-m", "fastchat.serve.register_worker"]
        flags = ["--controller-address", controller.url, "--worker-name", url]
        subprocess.run([*command, *flags], check=True, capture_output=True)
        [shown] = controller.workers()
        assert (shown["worker_name"], shown["check_heart_beat"], shown["model_names"]) == (url, False, ["echo"])


async def test_a_stream_from_a_stock_worker_is_forwarded(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    with stock_worker(work_dir, controller.url, "--delay", "0.05") as worker:
        await wait_until(controller.names, "the worker is registered")
        body = json.dumps({"model": "echo", "prompt": "a b c"}).encode()
        with urllib.request.urlopen(f"{controller.url}/worker_generate_stream", body, timeout=60) as response:
            received = response.read()
        frames = [json.loads(frame) for frame in received.split(b"\0")[:-1]]
        url = worker.url
        assert [frame["text"] for frame in frames] == [url, f"{url} a", f"{url} a b", f"{url} a b c"]


@pytest.mark.slow
async def test_a_refresh_by_the_api_server_does_not_block_other_calls(serve: Serve, work_dir: Path) -> None:
    """The API server refreshes all workers at each GET /v1/models. Here four of five workers hang."""
    controller = serve("--probe-timeout", "60")
    with (
        stock_worker(work_dir, controller.url) as worker,
        fastchat(work_dir, "openai_api_server", "--controller-address", controller.url) as api,
    ):
        url = worker.url
        await wait_until(controller.names, "the worker is registered")
        hanging = []
        with subprocess.Popen([sys.executable, "-c", HANGS], stdout=subprocess.PIPE, text=True) as silent:
            assert silent.stdout is not None
            port = silent.stdout.readline().strip()
            for i in range(4):
                hanging.append(f"http://127.0.0.1:{port}/{i}")
                controller.register(hanging[-1], "echo")
            listing = [asyncio.create_task(asyncio.to_thread(models_of, api.url)) for _ in range(3)]
            await wait_until(
                lambda: answers(f"{controller.url}/test_connection"), "the controller responds during the refresh"
            )
            assert len(controller.names()) == 5, "all workers stay registered during the refresh"
            assert controller.dispatch("echo") in [url, *hanging]
            await wait_until(lambda: connections(silent.pid) >= 4, "hanging workers are probed at the same time")
            silent.kill()  # closes the connections of the probes
            assert await asyncio.gather(*listing) == [["echo"]] * 3
        assert controller.names() == [url]


def models_of(api: str) -> list[str]:
    return [model["id"] for model in call(f"{api}/v1/models", method="GET", timeout=60)["data"]]


def connections(pid: int) -> int:
    """Count the client connections to a process that listens but never accepts."""
    [listener] = psutil.Process(pid).net_connections("tcp")
    everywhere = psutil.net_connections("tcp")
    return sum(c.raddr == listener.laddr and c.status == psutil.CONN_ESTABLISHED for c in everywhere)


HANGS = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0), backlog=100)
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize("start_worker", [pytest.param(stock_worker, marks=pytest.mark.slow), llava_worker])
async def test_the_heartbeat_thread_survives_an_outage_of_the_store(
    serve: Serve, work_dir: Path, start_worker: Callable[[Path, str], AbstractContextManager[Server]]
) -> None:
    """A rejected registration or an unhandled exception would end the heartbeat thread of the worker."""
    controller = serve("--redis-timeout", "0.3", "--heartbeat-expiration", "60")
    with start_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: controller.names() == [worker.url], "the worker is registered")
        [store] = stores(controller)
        os.kill(store, signal.SIGSTOP)
        await wait_until(lambda: "heart beat error" in worker.log, "a heartbeat has failed")
        os.kill(store, signal.SIGCONT)
        beats = worker.log.count("Send heart beat")
        await wait_until(lambda: worker.log.count("Send heart beat") >= beats + 2, "heartbeats continue")
        os.kill(store, signal.SIGKILL)
        beats = worker.log.count("Send heart beat")
        await wait_until(lambda: worker.log.count("Send heart beat") >= beats + 2, "the heartbeat thread is alive")
        assert controller.names() == [worker.url]
        controller.post("/remove_worker", {"worker_name": worker.url})
        await wait_until(lambda: controller.names() == [worker.url], "the heartbeat thread registers again")
        assert "AssertionError" not in worker.log
        assert "KeyError" not in worker.log


@pytest.mark.slow
async def test_the_heartbeat_thread_survives_a_store_that_hangs_after_it_reports_an_unknown_worker(
    serve: Serve, work_dir: Path, embedded_url: str
) -> None:
    """The worker registers again after "exist": false. A failed registration would end its heartbeat thread."""
    async with proxy(work_dir / "front.sock", embedded_url.removeprefix("unix://")) as front:
        flags = ("--redis-url", front.url, "--namespace", "hanging-store", "--redis-timeout", "0.3")
        controller = await asyncio.to_thread(serve, *flags)
        starting = stock_worker(work_dir, controller.url)
        worker = await asyncio.to_thread(starting.__enter__)
        try:
            await wait_until(lambda: asyncio.to_thread(controller.names), "the worker is registered")
            front.hang_after(b"*1\r\n:0\r\n")  # the reply to a heartbeat of an unregistered worker
            await asyncio.to_thread(controller.post, "/remove_worker", {"worker_name": worker.url})
            await wait_until(lambda: front.hanging, "the store has replied to the heartbeat")
            await wait_until(lambda: "Redis is unavailable" in controller.log, "the controller has noticed the outage")
            assert "AssertionError" not in worker.log
            front.resume()
            await wait_until(lambda: asyncio.to_thread(controller.names), "the worker is registered again")
            beats = worker.log.count("Send heart beat")
            await wait_until(lambda: worker.log.count("Send heart beat") >= beats + 2, "the heartbeat thread is alive")
        finally:
            starting.__exit__(None, None, None)
        await asyncio.to_thread(controller.post, "/remove_worker", {"worker_name": worker.url})
        await asyncio.to_thread(controller.stop)


@pytest.mark.slow
async def test_a_registration_during_an_outage_waits_for_its_end(serve: Serve, work_dir: Path) -> None:
    """The worker starts while the store hangs. A failed registration would end the worker."""
    controller = serve("--redis-timeout", "0.3")
    [store] = stores(controller)
    os.kill(store, signal.SIGSTOP)
    with stock_worker(work_dir, controller.url, wait=False) as worker:
        await wait_until(lambda: "Register to controller" in worker.log, "the worker registers")
        await wait_until(lambda: "Redis is unavailable" in controller.log, "the controller has noticed the outage")
        assert worker.popen.poll() is None
        os.kill(store, signal.SIGCONT)
        await wait_until(controller.names, "the worker is registered")
        beats = worker.log.count("Send heart beat")
        await wait_until(lambda: worker.log.count("Send heart beat") > beats, "the worker sends heartbeats")


async def test_the_api_server_lists_no_models_during_an_outage(serve: Serve, work_dir: Path) -> None:
    """The API server ignores response statuses and would read the body of an error as the answer."""
    controller = serve("--redis-timeout", "0.3")
    with fastchat(work_dir, "openai_api_server", "--controller-address", controller.url) as api:
        url = api.url
        [store] = stores(controller)
        os.kill(store, signal.SIGSTOP)
        assert models_of(url) == []
        chat = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
        with pytest.raises(OSError, match="400"):
            call(f"{url}/v1/chat/completions", chat)
        os.kill(store, signal.SIGCONT)
        await wait_until(lambda: serves(controller.url), "the controller uses the store again")
        assert controller.dispatch("echo") == ""
