"""Real llama.cpp servers as workers: registered by one command each, polled by the replicas, out when they die."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.llamacpp import LlamaServer, llama_server
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.engines import command, listed
from tests.system.processes import call, stock_worker

pytestmark = pytest.mark.system


@pytest.fixture
def engines(tiny_model: Path, work_dir: Path) -> Iterator[list[LlamaServer]]:
    one, other = work_dir / "one", work_dir / "other"
    one.mkdir()
    other.mkdir()
    with llama_server(one, tiny_model) as first, llama_server(other, tiny_model) as second:
        yield [first, second]


async def test_engines_are_registered_by_a_command_and_leave_when_they_die(
    serve: Serve, engines: list[LlamaServer], work_dir: Path
) -> None:
    controller = serve("--replicas", "2", "--engine-expiration", "3", "--engine-poll-interval", "0.2")
    first, second = engines
    ran = command(controller, "register", first.address)
    assert ran.returncode == 0, ran.stderr
    assert f"Registered {first.address}, an engine of the kind llamacpp." in ran.stdout
    ran = command(controller, "register", second.address, "--model", "tiny=public", "--capacity", "7")
    assert ran.returncode == 0, ran.stderr
    fields = ("model_names", "capacity", "engine")
    assert {name: tuple(map(worker.get, fields)) for name, worker in listed(controller).items()} == {
        first.address: (["tiny"], 2, "llamacpp"),
        second.address: (["public"], 7, "llamacpp"),
    }
    assert command(controller, "engines").stdout.count("ready") == 2
    with stock_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: worker.url in listed(controller), "the worker of FastChat is registered")
        assert call(f"{controller.url}/refresh_all_workers") is None
        assert set(listed(controller)) == {first.address, second.address, worker.url}, "a refresh removes no engine"
    second.kill()
    await wait_until(lambda: second.address not in listed(controller), "the dead engine is out")
    shown = json.loads(command(controller, "engines", "--json").stdout)["engines"]
    found = {engine["worker_name"]: engine for engine in shown}
    assert (found[second.address]["alive"], found[first.address]["alive"]) == (False, True)
    assert "cannot be reached" in found[second.address]["problem"]
    assert command(controller, "remove", first.address).returncode == 0
    [left] = call(f"{controller.url}/engines", method="GET")["engines"]
    assert left["worker_name"] == second.address


async def test_a_server_that_is_no_engine_is_not_registered(serve: Serve, work_dir: Path) -> None:
    controller = serve()
    ran = command(controller, "register", "http://127.0.0.1:1")
    assert ran.returncode == 1
    assert "cannot be reached" in ran.stderr
    with stock_worker(work_dir, controller.url) as worker:
        await wait_until(lambda: worker.url in listed(controller), "the worker has registered itself")
        ran = command(controller, "register", worker.url)
        assert (ran.returncode, f"Registered {worker.url}." in ran.stdout) == (0, True), "it speaks FastChat's protocol"
        assert listed(controller)[worker.url]["engine"] is None
    assert call(f"{controller.url}/engines", method="GET") == {"engines": []}


async def test_a_region_is_an_engine_of_its_parent(serve: Serve, engines: list[LlamaServer]) -> None:
    region = serve(data="region")
    parent = serve(data="parent")
    assert command(region, "register", engines[0].address).returncode == 0
    ran = command(parent, "register", region.url)
    assert ran.returncode == 0, ran.stderr
    assert [model["id"] for model in call(f"{parent.url}/v1/models", method="GET")["data"]] == ["tiny"]
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    assert call(f"{parent.url}/v1/chat/completions", chat)["usage"]["completion_tokens"] >= 1
    assert command(region, "remove", engines[0].address).returncode == 0
    await wait_until(lambda: not listed(parent), "the parent knows that the region has no models")
