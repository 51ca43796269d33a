"""With --affinity, requests of one session, or with one beginning of their prompts, go to one engine."""

import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest

from controller.store.registry import Registry
from tests.proxy.conftest import Serve
from tests.support.openai_engines import answers, engine_worker, openai_engine

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "You are the assistant of a shop. " * 100}


@pytest.fixture
async def engines(registry: Registry) -> AsyncIterator[list[str]]:
    """Yield the addresses of three engines, each of which answers with its number."""
    async with contextlib.AsyncExitStack() as stack:
        addresses = []
        for number in range(3):
            engine = await stack.enter_async_context(openai_engine(answers(b"%d" % number)))
            await registry.register(engine_worker(engine.address))
            addresses.append(engine.address)
        yield addresses


async def served_by(http: httpx.AsyncClient, address: str, session: str = "", **body: object) -> str:
    headers = {"X-Session-Id": session} if session else {}
    response = await http.post(f"{address}{CHAT}", json={"model": "m", **body}, headers=headers)
    assert response.status_code == 200
    return response.text


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("kind", ["session", "both", "off,m=session"])
async def test_requests_of_a_session_go_to_one_engine(serve: Serve, http: httpx.AsyncClient, kind: str) -> None:
    async with serve(affinity=kind) as (_, address):
        sessions: dict[str, set[str]] = {name: set() for name in "abcdef"}
        for _ in range(4):
            for name, chosen in sessions.items():
                chosen.add(await served_by(http, address, name))
        assert all(len(chosen) == 1 for chosen in sessions.values()), sessions
        assert len(set().union(*sessions.values())) == 3, "the sessions share the engines"
        users = {await served_by(http, address, user="someone") for _ in range(6)}
        assert len(users) == 1


@pytest.mark.usefixtures("engines")
async def test_prompts_with_one_beginning_go_to_one_engine(serve: Serve, http: httpx.AsyncClient) -> None:
    async with serve(affinity="prefix") as (_, address):
        asked = [[SYSTEM, {"role": "user", "content": f"question {number}"}] for number in range(6)]
        assert len({await served_by(http, address, messages=messages) for messages in asked}) == 1


@pytest.mark.usefixtures("engines")
async def test_beginnings_of_responses_and_of_anthropics_messages_count_but_no_texts_to_embed(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    text = SYSTEM["content"]
    async with serve(affinity="prefix") as (_, address):
        for path, bodies, expected in (
            ("/v1/responses", [{"instructions": text, "input": f"question {number}"} for number in range(6)], 1),
            ("/v1/messages", [{"system": "S" + text, "messages": [{"content": str(i)}]} for i in range(6)], 1),
            ("/v1/embeddings", [{"input": text}] * 6, 3),
        ):
            served = {(await http.post(address + path, json={"model": "m", **body})).text for body in bodies}
            assert len(served) == expected, path


@pytest.mark.usefixtures("engines")
@pytest.mark.parametrize("kind", ["off", "both,m=off", "off,other=both"])
async def test_without_affinity_the_engines_take_turns(serve: Serve, http: httpx.AsyncClient, kind: str) -> None:
    async with serve(affinity=kind) as (_, address):
        assert len({await served_by(http, address, "a", user="u", messages=[SYSTEM]) for _ in range(6)}) == 3


@pytest.mark.usefixtures("engines")
async def test_bodies_that_are_no_conversation_have_no_affinity_but_the_header(
    serve: Serve, http: httpx.AsyncClient
) -> None:
    async with serve(affinity="both") as (_, address):
        for body in (
            b'{"model": "m", "messages": 5, "user": {"a": []}}',
            b'{"model": "m", "messages": [[], null, {"content": [1, {"text": 2}]}]}',
            b'{"model": "m", "prompt": "\\ud800"}',
        ):
            response = await http.post(f"{address}{CHAT}", content=body, headers={"X-Session-Id": "a" * 5000})
            assert response.status_code == 200, body
        form = {"model": "m", "user": "u"}
        chosen = set()
        for _ in range(4):
            sent = await http.post(
                f"{address}/v1/audio/transcriptions", data=form, files={"file": b"x"}, headers={"X-Session-Id": "form"}
            )
            chosen.add(sent.text)
        assert len(chosen) == 1
