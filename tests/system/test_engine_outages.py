"""Engines, their agents and their clients during an outage of the store that is longer than engines live."""

import asyncio
import urllib.request
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.engines import Answer, AnswerServer, answer_server
from tests.support.waiting import wait_for_each, wait_until
from tests.system.conftest import Serve
from tests.system.engines import listed
from tests.system.outages import FREQUENT_SNAPSHOTS
from tests.system.processes import ControllerProcess, serves
from tests.system.servers import Server, single

pytestmark = pytest.mark.system

EXPIRATION = 2.0
FLAGS = (*FREQUENT_SNAPSHOTS, "--engine-poll-interval", "1", "--engine-expiration", str(EXPIRATION))


def engine_of(model: str) -> dict[str, Answer]:
    return {
        "/v1/models": Answer(b'{"object":"list","data":[{"id":"%s","object":"model"}]}' % model.encode()),
        "/v1/chat/completions": Answer(b'{"choices":[]}'),
        "/health": Answer(),
        "/metrics": Answer(b"vllm:num_requests_running 0\nvllm:num_requests_waiting 0\n"),
    }


def snapshot_age(replica: ControllerProcess) -> float:
    """Return the age of the snapshot from which a replica answers. 0 if it answers from the store."""
    with urllib.request.urlopen(f"{replica.url}/workers", timeout=60) as response:
        return float(response.headers.get("X-Controller-Degraded", 0))


class Clients:
    """Clients that send requests for each model to each replica until they are stopped."""

    def __init__(self, replicas: Sequence[ControllerProcess], models: Sequence[str]) -> None:
        self.done = 0
        self.failed: list[str] = []
        self._targets = [(replica.url, model) for replica in replicas for model in models]
        self._stop = asyncio.Event()

    async def run(self) -> None:
        async with httpx.AsyncClient(timeout=60.0) as http:
            await asyncio.gather(*(self._ask(http, url, model) for url, model in self._targets))

    async def _ask(self, http: httpx.AsyncClient, url: str, model: str) -> None:
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        while not self._stop.is_set():
            response = await http.post(f"{url}/v1/chat/completions", json=body)
            self.done += 1
            if response.status_code != 200:
                self.failed.append(f"{model}: {response.status_code} {response.text}")
            await asyncio.sleep(0.01)

    async def more(self, what: str) -> None:
        wanted = self.done + 20 * len(self._targets)
        await wait_until(lambda: self.done >= wanted, what)

    def stop(self) -> None:
        self._stop.set()


@pytest.mark.parametrize("kept", [True, False], ids=["hangs", "loses its data"])
async def test_no_request_to_an_engine_fails_when_the_store_returns(serve: Serve, work_dir: Path, kept: bool) -> None:
    """Each engine is the only one of its model. One of them has died before the store returns."""
    names = ["a", "b", "dead"]
    async with single(work_dir) as store, AsyncExitStack() as stack:
        replicas = [serve("--redis-url", store.url, *FLAGS, data=f"r{i}") for i in range(2)]
        engines = {name: await stack.enter_async_context(answer_server(engine_of(name))) for name in names}
        for engine in engines.values():
            body = {"worker_name": engine.address, "engine": "vllm"}
            assert (await asyncio.to_thread(replicas[0].post, "/register_engine", body))["alive"]
        await wait_for_each(replicas, lambda each: len(listed(each)) == len(names), "the engines are alive")
        clients = Clients(replicas, ["a", "b"])
        running = asyncio.create_task(clients.run())
        try:
            await clients.more("the engines serve requests")
            await outage(store, replicas, clients, engines["dead"], kept)
            await clients.more("the engines serve requests again")
        finally:
            clients.stop()
            await running
        assert clients.failed == []
        await wait_until(lambda: engines["dead"].address not in listed(replicas[0]), "the dead engine is out")
        assert len(listed(replicas[1])) == 2


async def outage(
    store: Server, replicas: Sequence[ControllerProcess], clients: Clients, dead: AnswerServer, kept: bool
) -> None:
    if kept:
        store.pause()
    else:
        store.kill()
    await wait_for_each(replicas, lambda each: snapshot_age(each) > 2 * EXPIRATION, "the heartbeats have expired")
    dead.answers.clear()
    await clients.more("requests are served without the store")
    if kept:
        store.resume()
    else:
        store.start()
    await wait_for_each(replicas, lambda each: serves(each.url), "the replica uses the store again")
