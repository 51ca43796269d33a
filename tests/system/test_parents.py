"""Clusters as workers of other controllers, ours and FastChat's, with real processes."""

import contextlib
import itertools
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, Server, call, fastchat, free_port, stock_worker
from tests.waiting import wait_until

INTERVAL = 1.0


def frames_of(url: str, model: str, prompt: str) -> list[dict[str, object]]:
    body = json.dumps({"model": model, "prompt": prompt}).encode()
    request = urllib.request.Request(f"{url}/worker_generate_stream", body)
    with urllib.request.urlopen(request, timeout=15) as response:
        return [json.loads(frame) for frame in response.read().split(b"\0")[:-1]]


@contextlib.contextmanager
def workers(work_dir: Path, controller: str, number: int, *flags: str) -> Iterator[list[Server]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(stock_worker(work_dir, controller, *flags)) for _ in range(number)]


def joined(serve: Serve, parent: str, name: str, *flags: str) -> str:
    """A cluster of one replica under a parent; its address."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    below = ["--parent", parent, "--advertise", url, "--parent-interval", str(INTERVAL), *flags]
    return serve(*below, data=name, port=port).url


async def test_three_levels_and_a_region_that_is_cut_off(serve: Serve, work_dir: Path) -> None:
    """A top, two regions and their workers: to FastChat's API server the regions are workers like others."""
    top = serve("--heartbeat-expiration", "4", "--sweep-interval", "0.2", data="top")
    east = joined(serve, top.url, "east")
    west_port = free_port()
    west_url = f"http://127.0.0.1:{west_port}"
    flags = ("--parent", top.url, "--advertise", west_url, "--parent-interval", str(INTERVAL), "--replicas", "2")
    west = serve(*flags, data="west", port=west_port)
    with (
        workers(work_dir, east, 1, "--model-names", "echo,east"),
        workers(work_dir, west_url, 2, "--model-names", "echo,west") as western,
        fastchat(work_dir, "openai_api_server", "--controller-address", top.url) as api,
    ):
        names = {east, west_url}
        await wait_until(lambda: set(top.names()) >= names, "the regions have joined")
        await wait_until(
            lambda: top.post("/list_models") == {"models": ["east", "echo", "west"]}, "and told of their models"
        )
        await wait_until(lambda: speeds(top) == {east: 1, west_url: 2}, "and how much they can do")
        frames = frames_of(top.url, "west", "a b c")
        assert [frame["text"] for frame in frames][-1] in {f"{worker.url} a b c" for worker in western}
        assert len(frames) == 4
        for model in ("echo", "east", "west"):
            chat = {"model": model, "messages": [{"role": "user", "content": "hello there"}]}
            content = call(f"{api.url}/v1/chat/completions", chat)["choices"][0]["message"]["content"]
            assert "hello there" in content
            assert call(f"{api.url}/v1/completions", {"model": model, "prompt": "x"})["choices"][0]["text"]
            embedding = call(f"{api.url}/v1/embeddings", {"model": model, "input": "four"})
            assert embedding["data"][0]["embedding"] == [4.0]

        west.kill()  # both of its replicas, and their store after them
        await wait_until(lambda: top.names() == [east], "the region that is cut off is forgotten")
        assert top.post("/list_models") == {"models": ["east", "echo"]}
        assert frames_of(top.url, "echo", "a")[-1]["error_code"] == 0
        west = serve(*flags, data="west", port=west_port)
        await wait_until(lambda: set(top.names()) == names, "it is back")
        await wait_until(lambda: "west" in top.post("/list_models")["models"], "with its models")


def speeds(controller: ControllerProcess) -> dict[str, float]:
    return {worker["worker_name"]: worker["speed"] for worker in controller.workers()}


async def test_under_a_stock_controller(serve: Serve, work_dir: Path) -> None:
    """Which forwards streams to us, and asks for our status when it likes."""
    with fastchat(work_dir, "controller") as top:
        own = joined(serve, top.url, "own")
        with workers(work_dir, own, 1):
            await wait_until(lambda: call(f"{top.url}/list_models") == {"models": ["echo"]}, "it has joined")
            assert call(f"{top.url}/get_worker_address", {"model": "echo"}) == {"address": own}
            assert [frame["error_code"] for frame in frames_of(top.url, "echo", "a b")] == [0, 0, 0]
            call(f"{top.url}/refresh_all_workers")
            assert call(f"{top.url}/list_models") == {"models": ["echo"]}


async def test_a_stock_controller_as_a_worker(serve: Serve, work_dir: Path) -> None:
    top = serve()
    with fastchat(work_dir, "controller") as below, workers(work_dir, below.url, 1):
        await wait_until(lambda: call(f"{below.url}/list_models") == {"models": ["echo"]}, "it has a worker")
        top.post("/register_worker", {"worker_name": below.url, "check_heart_beat": False})
        assert top.post("/list_models") == {"models": ["echo"]}
        assert [frame["error_code"] for frame in frames_of(top.url, "echo", "a b")] == [0, 0, 0]


async def test_a_cluster_that_joins_itself_is_refused(serve: Serve) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    controller = serve("--parent", url, "--advertise", url, "--parent-interval", "0.5", port=port)
    controller.register("http://127.0.0.1:9", check=False)
    await wait_until(lambda: "answered 508" in controller.log, "it is told why")
    assert controller.names() == ["http://127.0.0.1:9"]


@pytest.mark.parametrize("kills", [3])
async def test_replicas_that_are_killed_leave_no_gap(serve: Serve, embedded_url: str, kills: int) -> None:
    """One of three dies again and again; the parent hears of the cluster in each interval."""
    top = serve(data="top")
    advertised = "http://127.0.0.1:1"
    flags = ("--redis-url", embedded_url, "--parent", top.url, "--advertise", advertised, "--parent-interval", "2")
    replicas = [serve(*flags, "--namespace", "below", data=f"below-{i}") for i in range(3)]
    replicas[0].register("http://127.0.0.1:9", check=False)
    await wait_until(lambda: top.names() == [advertised], "it has joined")
    ages: list[float] = []

    def heard(times: int) -> bool:
        ages.append(top.workers()[0]["heartbeat_age"])
        return sum(later < earlier for earlier, later in itertools.pairwise(ages)) >= times

    for i in range(kills):
        replicas[i % 3].kill()
        await wait_until(lambda i=i: heard(i + 1), "the parent hears of it")
        replicas[i % 3] = serve(*flags, "--namespace", "below", data=f"below-again-{i}")
    assert max(ages) <= 2.0, "no gap is longer than the interval"
