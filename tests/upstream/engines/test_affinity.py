"""The next turn of a conversation goes to the llama.cpp server that has the earlier ones in its cache."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from controller.dispatch.affinity_rules import AffinityRules
from controller.domain.engine import Engine, Protocol
from controller.domain.worker import Registration, WorkerStatus
from controller.metrics import Metrics
from controller.replica import Replica, create_worker_client
from controller.settings import Settings
from controller.store.connection import connect
from controller.store.registry import Registry
from tests.support.llamacpp import NAME, LlamaServer, llama_server

pytestmark = [pytest.mark.system, pytest.mark.smoke]


@pytest.fixture
def servers(tiny_model: Path, tmp_path: Path) -> Iterator[list[LlamaServer]]:
    with ExitStack() as stack:
        directories = [tmp_path / "one", tmp_path / "two"]
        for directory in directories:
            directory.mkdir()
        yield [stack.enter_context(llama_server(directory, tiny_model)) for directory in directories]


async def test_second_turn_costs_the_server_only_its_own_tokens(servers: list[LlamaServer], embedded_url: str) -> None:
    """Without affinity, it would go to the other server, which was used less recently."""
    settings = Settings(affinity="prefix")
    rules = AffinityRules.of(settings)
    registry = Registry(connect(embedded_url, 60.0), "affinity", 90.0, 60.0)
    replica = Replica(settings, registry, create_worker_client(settings), Metrics())
    for server in servers:
        status = WorkerStatus((NAME,), 1, 0, 2)
        await registry.register(Registration(server.address, status, False, False, engine=Engine("llamacpp")))

    async def ask(messages: list[dict[str, str]]) -> tuple[str, int, int]:
        """Return the server, how many tokens of the prompt it processed, and how many it had in its cache."""
        body = {"model": NAME, "messages": messages, "max_tokens": 4, "temperature": 0}
        affinity = rules.find(NAME, {}, body)
        chosen, _ = await replica.dispatcher.dispatch_with_lease(NAME, 60.0, "", Protocol.OPENAI, affinity)
        url = f"{chosen.address}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)
        await replica.dispatcher.release(chosen.lease)
        messages.append(answer["choices"][0]["message"])
        return chosen.address, answer["timings"]["prompt_n"], answer["timings"]["cache_n"]

    messages = [{"role": "system", "content": "Answer briefly. " * 30}, {"role": "user", "content": "What is a lease?"}]
    first, processed, cached = await ask(messages)
    assert processed > 400
    assert cached == 0
    messages.append({"role": "user", "content": "And a lock?"})
    second, processed_again, cached_again = await ask(messages)
    assert second == first
    assert processed_again < processed / 4
    assert cached_again > processed * 3 / 4
    await replica.close()
