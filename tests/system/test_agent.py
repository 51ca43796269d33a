"""`controller agent` beside real llama.cpp servers: registers them, drains them, takes them out when they die."""

import asyncio
import contextlib
import json
import signal
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.llamacpp import LlamaServer, llama_server, tiny_model
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, Process, call

__all__ = ["tiny_model"]  # a fixture

pytestmark = pytest.mark.system

CHAT = {"model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": "a"}]}


@pytest.fixture
def engines(tiny_model: Path, work_dir: Path) -> Iterator[list[LlamaServer]]:
    with contextlib.ExitStack() as servers:
        started = []
        for name in ("one", "other"):
            (work_dir / name).mkdir()
            started.append(servers.enter_context(llama_server(work_dir / name, tiny_model)))
        yield started


@pytest.fixture
def agents(work_dir: Path) -> Iterator["Agents"]:
    started = Agents(work_dir)
    yield started
    for agent in started.processes:
        agent.kill()


class Agents:
    def __init__(self, work_dir: Path) -> None:
        self.processes: list[Process] = []
        self._work_dir = work_dir

    def __call__(self, engine: LlamaServer, *controllers: str, **options: str) -> Process:
        flags = [text for name, value in options.items() for text in (f"--{name}", value)]
        addresses = ("--engine", engine.address, "--controller", ",".join(controllers))
        log = self._work_dir / f"agent-{len(self.processes)}.log"
        run = ("-m", "controller", "agent", *addresses, "--interval", "0.2", "--log-format", "text", *flags)
        self.processes.append(Process(log, *run))
        return self.processes[-1]


def alive(controller: ControllerProcess) -> list[str]:
    workers = call(f"{controller.url}/workers", method="GET")["workers"]
    return sorted(worker["worker_name"] for worker in workers)


async def test_engine_is_registered_and_out_at_once_when_it_is_killed(
    serve: Serve, engines: list[LlamaServer], agents: Agents
) -> None:
    """It does not wait for its expiration, which is an hour here."""
    controller = serve("--replicas", "2", "--engine-expiration", "3600")
    engine = engines[0]
    agents(engine, controller.url)
    await wait_until(lambda: alive(controller) == [engine.address], "the engine is registered")
    [worker] = call(f"{controller.url}/workers", method="GET")["workers"]
    assert {name: worker[name] for name in ("model_names", "capacity", "engine")} == {
        "model_names": ["tiny"],
        "capacity": 2,
        "engine": "llamacpp",
    }
    assert call(f"{controller.url}/engines", method="GET") == {"engines": []}, "the controller does not poll it"
    assert call(f"{controller.url}/v1/chat/completions", CHAT)["object"] == "chat.completion"
    assert call(f"{controller.url}/refresh_all_workers") is None
    assert alive(controller) == [engine.address]
    engine.popen.send_signal(signal.SIGKILL)
    await wait_until(lambda: alive(controller) == [], "the dead engine is out")
    assert [model["id"] for model in call(f"{controller.url}/v1/models", method="GET")["data"]] == []


async def test_engine_expires_if_its_host_dies(serve: Serve, engines: list[LlamaServer], agents: Agents) -> None:
    controller = serve("--engine-expiration", "3")
    agent = agents(engines[0], controller.url)
    await wait_until(lambda: alive(controller) == [engines[0].address], "the engine is registered")
    [worker] = call(f"{controller.url}/workers", method="GET")["workers"]
    assert worker["expires_in"] <= 3, "and not --heartbeat-expiration"
    agent.popen.send_signal(signal.SIGKILL)
    await wait_until(lambda: alive(controller) == [], "the engine has expired")


async def test_controllers_that_end_or_lose_everything(
    serve: Serve, engines: list[LlamaServer], agents: Agents
) -> None:
    """The agent uses the next controller of the cluster, and registers the engine again if it is not known."""
    first = serve("--replicas", "1")
    second = serve("--redis-url", first.store_url)
    agent = agents(engines[0], "http://127.0.0.1:1", first.url, second.url)
    await wait_until(lambda: alive(second) == [engines[0].address], "the engine is registered")
    call(f"{second.url}/remove_worker", {"worker_name": engines[0].address})
    await wait_until(lambda: alive(second) == [engines[0].address], "the engine is registered again")
    first.popen.send_signal(signal.SIGKILL)  # and with it the store
    second.popen.send_signal(signal.SIGKILL)
    await wait_until(lambda: "No controller has accepted the call. Trying again." in agent.log, "all are away")
    third = serve(port=second.port, data="fresh")
    await wait_until(lambda: alive(third) == [engines[0].address], "the engine is registered in the new cluster")
    await wait_until(lambda: "A controller accepts calls again." in agent.log, "the agent says so")
    agent.popen.send_signal(signal.SIGINT)
    assert agent.popen.wait(60) == 0
    assert alive(third) == []


class Load:
    """Threads that send chat completions, one after the other, and count those that fail."""

    def __init__(self, url: str, threads: int = 6) -> None:
        self.served = 0
        self.failures: list[str] = []
        self._url = url
        self._ends = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(threads)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        body = json.dumps({**CHAT, "max_tokens": 64, "stream": True}).encode()
        while not self._ends.is_set():
            request = urllib.request.Request(self._url, data=body, headers={"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=120) as response:
                    text = response.read()
                    if b"data: [DONE]" not in text:
                        self.failures.append(repr(text[-300:]))
            except urllib.error.HTTPError as error:
                self.failures.append(f"{error.code} {error.read()[:300]!r}")
            except OSError as error:
                self.failures.append(repr(error))
            self.served += 1


async def test_sigterm_under_load_fails_no_request(serve: Serve, engines: list[LlamaServer], agents: Agents) -> None:
    controller = serve("--replicas", "2", "--forward-tries", "1")  # a retry would hide a failure
    leaving, staying = (agents(engine, controller.url) for engine in engines)
    both = sorted(engine.address for engine in engines)
    await wait_until(lambda: alive(controller) == both, "both engines are registered")
    with Load(f"{controller.url}/v1/chat/completions") as load:
        await wait_until(lambda: load.served > 20, "requests are served")
        leaving.popen.send_signal(signal.SIGTERM)
        status = await asyncio.to_thread(leaving.popen.wait, 60)
        engines[0].kill()  # as systemd does, when the agent has ended
        assert status == 0, leaving.log
        assert alive(controller) == [engines[1].address]
        after = load.served
        await wait_until(lambda: load.served > after + 20, "the other engine serves")
    assert load.failures == []
    assert staying.popen.poll() is None
