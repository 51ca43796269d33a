"""`docker compose --profile engines up`: llama.cpp servers behind the gateway, registered without further steps."""

import fcntl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from tests.deploy.cluster_state import names
from tests.deploy.compose import ROOT, Compose, docker, up
from tests.support.lifeline import project
from tests.support.waiting import wait_until
from tests.system.processes import call

pytestmark = [pytest.mark.deploy, pytest.mark.timeout(400)]
QUESTION: list[Any] = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def cluster(built: None) -> Iterator[Compose]:
    compose = Compose(project("controller-engines"), ROOT / "deploy/docker-compose.yml", COMPOSE_PROFILES="engines")
    with (Path(tempfile.gettempdir()) / "controller-test-build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        compose("build", "--quiet", "llamacpp")
    with up(compose, "--no-build") as running:
        yield running
    assert compose.leftovers() == []


async def test_engines_serve_chats_without_further_steps(cluster: Compose) -> None:
    engines = {f"http://{cluster.address(container)}:8080" for container in cluster.containers("llamacpp")}
    assert len(engines) == 2
    await wait_until(lambda: set(names(cluster)) == engines, "both engines are registered", timeout=120)
    with OpenAI(base_url=f"{cluster.url}/v1", api_key="none", max_retries=0, timeout=60.0) as client:
        assert [model.id for model in client.models.list()] == ["tiny"]
        for _ in range(4):
            chat = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8)
            assert chat.usage is not None
            assert chat.usage.completion_tokens == 8
            stream = client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8, stream=True)
            assert [chunk.choices[0].finish_reason for chunk in stream][-1] == "length"
        listed = call(f"{cluster.url}/engines", method="GET")["engines"]
        assert {(engine["engine"], engine["capacity"], engine["alive"]) for engine in listed} == {("llamacpp", 4, True)}

        killed = cluster.containers("llamacpp")[0]
        docker("kill", killed)
        for _ in range(4):
            assert client.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=8).usage
        left = engines - {f"http://{cluster.address(cluster.containers('llamacpp')[1])}:8080"}
        await wait_until(lambda: not left & set(names(cluster)), "the killed engine is out")
        docker("start", killed)
        await wait_until(lambda: len(names(cluster)) == 2, "it is back, because it is still registered")
