"""Measure how many prompt tokens real llama.cpp servers process, with affinity and without.

    python benchmarks/affinity_llamacpp.py [--servers 2] [--conversations 8] [--turns 6]

Conversations grow turn by turn. Each turn goes to the server that the scripts choose, in an embedded store, and the
server says how many tokens it processed and how many it had in its cache. The servers run a tiny model with random
weights, which the tests use, too. Needs the packages xllamacpp and gguf.
"""

import argparse
import asyncio
import random
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import aiohttp
from rich.console import Console
from rich.table import Table

from controller.domain.affinity import prefix_keys, prompt_of
from controller.domain.dispatch import DispatchMethod
from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.embedded.store import EmbeddedStore
from controller.store.registry import Registry, Request
from tests.support.llamacpp import NAME, LlamaServer, llama_server, write_model

SYSTEM: Final = "{} tools are what our shop sells. You are its helpful assistant. " * 8
SLOTS: Final = 4


class Tokens(NamedTuple):
    """Prompt tokens that servers processed, and that they had in their caches."""

    processed: int
    cached: int


async def converse(
    session: aiohttp.ClientSession, registry: Registry, number: int, turns: int, affine: bool
) -> list[Tokens]:
    """Hold one conversation. Return the tokens of each turn."""
    # The system prompt begins with another word in each run, so that no cache has it yet.
    system = SYSTEM.replace("{}", "Kitchen" if affine else "Garden")
    messages: list[dict[str, str]] = [{"role": "system", "content": system}]
    words = random.Random(number)
    tokens = []
    for turn in range(turns):
        question = " ".join(str(words.randrange(10**6)) for _ in range(20))
        messages.append({"role": "user", "content": f"{number}: {question}"})
        body = {"model": NAME, "messages": messages, "max_tokens": 24, "temperature": 0}
        keys = prefix_keys(NAME, prompt_of(body)) if affine else ()
        [choice] = await registry.dispatch_some(DispatchMethod.SHORTEST_QUEUE, [Request(NAME, 60_000, "", keys)])
        if choice is None or not choice.worker:
            raise RuntimeError(f"turn {turn} of conversation {number} got no worker")
        async with session.post(f"{choice.worker}/v1/chat/completions", json=body) as response:
            answer: dict[str, Any] = await response.json()
        await registry.release([choice.lease])
        timings = answer["timings"]
        tokens.append(Tokens(timings["prompt_n"], timings["cache_n"]))
        messages.append({"role": "assistant", "content": answer["choices"][0]["message"]["content"]})
    return tokens


async def measure(url: str, servers: list[LlamaServer], conversations: int, turns: int, affine: bool) -> Tokens:
    registry = Registry(connect(url, 60.0), f"affine-{affine}", 3600.0, 60.0)
    for server in servers:
        status = WorkerStatus((NAME,), 1, 0, SLOTS)
        await registry.register(Registration(server.address, status, check_heart_beat=True, multimodal=False))
    async with aiohttp.ClientSession() as session:
        numbers = range(
            conversations * affine, conversations * affine + conversations
        )  # conversations that no cache has yet
        each = await asyncio.gather(*(converse(session, registry, n, turns, affine) for n in numbers))
    await registry.close()
    return Tokens(*(sum(values) for values in zip(*(turn for one in each for turn in one), strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--servers", type=int, default=2)
    parser.add_argument("--conversations", type=int, default=8)
    parser.add_argument("--turns", type=int, default=6)
    arguments = parser.parse_args()
    table = Table("", "prompt tokens processed", "from the cache", "share processed")
    with tempfile.TemporaryDirectory() as name, ExitStack() as opened:
        directory = Path(name)
        write_model(directory / "tiny.gguf")
        store = opened.enter_context(EmbeddedStore(directory))
        servers = []
        for number in range(arguments.servers):
            (directory / str(number)).mkdir()
            server = llama_server(directory / str(number), directory / "tiny.gguf", SLOTS)
            servers.append(opened.enter_context(server))
        for affine in (False, True):
            tokens = asyncio.run(measure(store.url, servers, arguments.conversations, arguments.turns, affine))
            table.add_row(
                "with affinity" if affine else "without affinity",
                f"{tokens.processed:,}",
                f"{tokens.cached:,}",
                f"{100 * tokens.processed / (tokens.processed + tokens.cached):.0f} %",
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
