"""examples/regions: two regions below a top cluster. One region is disconnected and joins again."""

import json
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from ports import free_port

from tests.deploy.compose import ROOT, Compose, docker, up
from tests.support.lifeline import project
from tests.support.waiting import wait_until
from tests.system.processes import call

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(300)]

EAST, WEST = "http://east-loadbalancer:21001", "http://west-loadbalancer:21001"


def stream(url: str, model: str) -> list[dict[str, Any]]:
    body = json.dumps({"model": model, "prompt": "a b"}).encode()
    with urllib.request.urlopen(f"{url}/worker_generate_stream", body, timeout=120) as response:
        return [json.loads(frame) for frame in response.read().split(b"\0")[:-1]]


def served(url: str) -> Callable[[], list[str]]:
    def models() -> list[str]:
        try:
            names: list[str] = call(f"{url}/list_models")["models"]
        except OSError:
            return []
        return names

    return models


async def test_a_region_is_disconnected_and_joins_again(built: None) -> None:
    addresses = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    top, east, west = (f"http://{address}" for address in addresses)
    compose = Compose(
        project("controller-test-regions"),
        ROOT / "examples/regions/docker-compose.yml",
        **dict(zip(("TOP_PORT", "EAST_PORT", "WEST_PORT"), addresses, strict=True)),
        CONTROLLER_HEARTBEAT_EXPIRATION="9",
        CONTROLLER_PARENT_INTERVAL="3",
    )
    between_regions = f"{compose.project}_between"
    with up(compose, "--no-build") as running:
        await wait_until(lambda: served(top)() == ["east", "echo", "west"], "both regions have joined", timeout=90)
        regions = call(f"{top}/workers", method="GET")["workers"]
        assert [region["worker_name"] for region in regions] == [EAST, WEST], "each region is one worker"
        for model in ("east", "echo", "west"):
            assert [frame["text"] for frame in stream(top, model)] == ["a", "a b"]

        between = [*running.containers("east-controller"), *running.containers("east-loadbalancer")]
        for container in between:
            docker("network", "disconnect", between_regions, container)
        assert [frame["text"] for frame in stream(top, "echo")] == ["a", "a b"], "the dispatch uses the other region"
        assert [frame["text"] for frame in stream(east, "east")] == ["a", "a b"], (
            "the disconnected region still serves its own clients"
        )
        await wait_until(lambda: served(top)() == ["echo", "west"], "the top cluster has removed the region")
        assert [frame["error_code"] for frame in stream(top, "east")] == [50005]
        assert served(east)() == ["east", "echo"]
        assert served(west)() == ["echo", "west"]

        for container in between[:-1]:
            docker("network", "connect", between_regions, container)
        docker("network", "connect", "--alias", "east-loadbalancer", between_regions, between[-1])
        await wait_until(lambda: served(top)() == ["east", "echo", "west"], "the region has joined again")
        assert [frame["text"] for frame in stream(top, "east")] == ["a", "a b"]
    assert running.leftovers() == []
