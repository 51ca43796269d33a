"""Real engines die, drain or are refreshed while clients use two replicas."""

import asyncio
import json
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.support.metrics import value
from tests.support.openai_engines import answers, openai_engine
from tests.support.real_engines import LLAMACPP, QUESTION, WORDS, Engine, EngineKit, llama_servers
from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.engines import command, events, last_error, listed, register, sdk
from tests.system.processes import ControllerProcess, call, fastchat, stock_worker
from tests.system.test_fastchat import models_of

pytestmark = [pytest.mark.system]

Replicas = Callable[..., list[ControllerProcess]]
UNNOTICED = ("--engine-poll-interval", "600", "--engine-expiration", "3600")  # no poll shows that an engine has died


@pytest.fixture
def replicas(serve: Serve) -> Replicas:
    """Return a function that starts two replicas with one store, each on a port of its own."""

    def start(*flags: str, **environment: str) -> list[ControllerProcess]:
        first = serve(*flags, data="first", **environment)
        return [first, serve("--redis-url", first.store_url, *flags, data="second", **environment)]

    return start


def retries(controller: ControllerProcess) -> float:
    with urllib.request.urlopen(f"{controller.url}/metrics", timeout=60) as response:
        return value(response.read().decode(), "controller_forward_retries_total")


async def test_engine_is_killed_in_mid_stream(replicas: Replicas, kit: EngineKit, engines: Sequence[Engine]) -> None:
    """The client gets an error, and no [DONE]. The other engine serves the next requests."""
    first, second = replicas(*UNNOTICED)
    register(first, engines[0], kit=kit)
    with sdk(first) as client, sdk(second) as other_client:
        create = client.chat.completions.with_streaming_response.create
        with create(model="tiny", messages=QUESTION, stream=True, extra_body=kit.without_end) as response:
            stream = other_client.chat.completions.create(
                model="tiny", messages=QUESTION, stream=True, extra_body=kit.without_end
            )
            raw = response.iter_bytes()
            received = next(raw)
            assert next(stream).choices
            register(second, engines[1], kit=kit)
            engines[0].kill()
            with pytest.raises(openai.APIError, match="ended the response early") as raised:
                for _ in stream:
                    pass
            assert raised.value.code == "stream_broken"
            received += b"".join(raw)
        assert "[DONE]" not in events(received)
        assert last_error(received)["code"] == "stream_broken"
        for asked in (client, other_client):
            assert kit.says(asked) == ("tiny", WORDS)
    await wait_until(lambda: all(not worker["leased"] for worker in listed(first).values()), "no lease remains")
    assert listed(first)[engines[0].address]["failing"] == "request"


async def test_engine_is_killed_between_requests(replicas: Replicas, kit: EngineKit, engines: Sequence[Engine]) -> None:
    """No replica has noticed it yet. The requests that it would get go to the other engine."""
    first, second = replicas(*UNNOTICED)
    for engine in engines:
        register(first, engine, kit=kit)
    with sdk(first) as client, sdk(second) as other_client:
        for asked in (client, other_client, client, other_client):  # connections to both engines are kept open
            assert kit.says(asked) == ("tiny", WORDS)
        engines[0].kill()
        for asked in (client, other_client, client, other_client):
            assert kit.says(asked) == ("tiny", WORDS)
    assert retries(first) + retries(second) >= 1
    assert listed(second)[engines[0].address]["failing"] == "request"


async def test_dead_engine_leaves_the_list_of_models(
    replicas: Replicas, kit: EngineKit, engines: Sequence[Engine]
) -> None:
    first, second = replicas(*kit.polled_often)
    register(first, engines[0], kit=kit)
    register(second, engines[1], kit=kit, served_as="other")

    def models(client: OpenAI) -> list[str]:
        return [model.id for model in client.models.list()]

    with sdk(first) as client, sdk(second) as other_client:
        assert models(client) == models(other_client) == ["other", "tiny"]
        engines[1].kill()
        for asked in (client, other_client):
            await wait_until(lambda asked=asked: models(asked) == ["tiny"], "the dead engine is out")  # type: ignore[misc]
            with pytest.raises(openai.InternalServerError, match="No live engine serves the model 'other'") as raised:
                kit.says(asked, "other")
            assert (raised.value.status_code, raised.value.code) == (503, "no_worker")
            assert raised.value.response.headers["retry-after"]
            assert kit.says(asked) == ("tiny", WORDS)


async def test_no_request_fails_while_an_engine_drains(
    replicas: Replicas, kit: EngineKit, engines: Sequence[Engine]
) -> None:
    """Eight clients send requests without a pause, half of them streams, while an engine drains and is stopped."""
    both = replicas(*kit.polled_often)
    for engine in engines:
        register(both[0], engine, kit=kit)
    done = 0
    stop = asyncio.Event()

    async def ask(client: AsyncOpenAI, streams: bool) -> None:
        nonlocal done
        while not stop.is_set():
            if streams:
                stream = await client.chat.completions.create(
                    model="tiny", messages=QUESTION, stream=True, extra_body=kit.words
                )
                text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
            else:
                answer = await client.chat.completions.create(model="tiny", messages=QUESTION, extra_body=kit.words)
                text = answer.choices[0].message.content or ""
            assert text == WORDS
            done += 1

    async def more(number: int, what: str) -> None:
        wanted = done + number
        await wait_until(lambda: done >= wanted or any(task.done() for task in tasks), what)

    clients = [AsyncOpenAI(base_url=f"{each.url}/v1", api_key="none", max_retries=0, timeout=60.0) for each in both]
    tasks = [asyncio.create_task(ask(clients[number % 2], number % 4 < 2)) for number in range(8)]
    try:
        await more(20, "both engines serve requests")
        ran = await asyncio.to_thread(command, both[1], "drain", engines[0].address, "--wait", "--yes")
        assert ran.returncode == 0, ran.stderr
        await more(10, "the other engine serves the requests")
        await asyncio.to_thread(engines[0].stop)
        await more(10, "the engine is gone")
        assert command(both[0], "remove", engines[0].address).returncode == 0
        await more(10, "the engine is removed")
    finally:
        stop.set()
        failures = [each for each in await asyncio.gather(*tasks, return_exceptions=True) if each is not None]
        for client in clients:
            await client.close()
    assert failures == []
    assert list(listed(both[1])) == [engines[1].address]
    assert retries(both[0]) + retries(both[1]) == 0


async def test_a_refresh_by_fastchats_api_server_removes_no_engine(
    replicas: Replicas, kit: EngineKit, engines: Sequence[Engine], work_dir: Path
) -> None:
    first, second = replicas(*kit.polled_often)
    for engine in engines:
        register(first, engine, kit=kit)
    with (
        stock_worker(work_dir, first.url) as worker,
        fastchat(work_dir, "openai_api_server", "--controller-address", second.url) as api,
        sdk(second) as client,
    ):
        await wait_until(lambda: worker.url in listed(first), "the worker of FastChat is registered")
        alive = {worker.url, *(engine.address for engine in engines)}
        for _ in range(3):
            assert "echo" in models_of(api.url), "the API server refreshes all workers, and lists their models"
            assert set(listed(first)) == alive
            assert kit.says(client) == ("tiny", WORDS)
        assert [model.id for model in client.models.list()] == ["tiny"]
        chat = call(f"{api.url}/v1/chat/completions", {"model": "echo", "messages": QUESTION})
        assert chat["choices"][0]["message"]["content"].startswith(worker.url)


async def test_route_has_a_fallback_when_its_target_dies(
    replicas: Replicas, kit: EngineKit, engines: Sequence[Engine]
) -> None:
    first, second = replicas(*kit.polled_often)
    register(first, engines[0], kit=kit, served_as="large")
    register(first, engines[1], kit=kit, served_as="small")
    assert command(first, "route", "set", "gpt", "--to", "large", "--fallback", "small").returncode == 0
    with sdk(first) as client, sdk(second) as other_client:
        for asked in (client, other_client):
            await wait_until(lambda asked=asked: has_model(asked, "gpt"), "the replica has the route")  # type: ignore[misc]
            assert kit.says(asked, "gpt") == ("large", WORDS)
        engines[0].kill()
        for asked in (client, other_client):
            assert kit.says(asked, "gpt") == ("small", WORDS), "at once, by a retry"
        await wait_until(lambda: list(listed(second)) == [engines[1].address], "the dead engine is out")
        for asked in (client, other_client):
            assert kit.says(asked, "gpt") == ("small", WORDS)
            assert "gpt" in [model.id for model in asked.models.list()]
        assert command(second, "route", "remove", "gpt").returncode == 0
        await wait_until(lambda: not has_model(client, "gpt"), "the route is removed")
        with pytest.raises(openai.NotFoundError):
            kit.says(client, "gpt")


def has_model(client: OpenAI, name: str) -> bool:
    return name in [model.id for model in client.models.list()]


SECRETS = {"worker": "secret-of-workers", "client": "secret-of-clients", "admin": "secret-of-admins"}
ENGINE_KEY = "key-of-the-engine"


async def test_engine_gets_its_own_key_and_never_the_token_of_a_client(
    replicas: Replicas, tiny_model: Path, work_dir: Path
) -> None:
    kit = LLAMACPP
    tokens = {f"CONTROLLER_{plane.upper()}_TOKENS": f"{plane}={secret}" for plane, secret in SECRETS.items()}
    first, second = replicas(*kit.polled_often, **tokens)
    key_file = work_dir / "key"
    key_file.write_text(f"{ENGINE_KEY}\n")
    as_worker = first.url.replace("://", f"://worker:{SECRETS['worker']}@")
    reply = json.dumps({"object": "list", "data": [{"id": "recorder", "object": "model"}], "choices": []}).encode()
    with llama_servers(work_dir, tiny_model, {"api_keys": [ENGINE_KEY]}) as [engine]:
        async with openai_engine(answers(reply)) as recorder:
            # This token gives the right to register engines, but not to list them.
            register(first, engine, "--api-key-file", str(key_file), kit=kit, address=as_worker)
            options = ("--engine", "generic", "--api-key-file", str(key_file))
            ran = await asyncio.to_thread(command, first, "register", recorder.address, *options, address=as_worker)
            assert ran.returncode == 0, ran.stderr
            for replica in (first, second):
                with sdk(replica, SECRETS["client"]) as client:
                    assert kit.says(client) == ("tiny", WORDS), "llama.cpp accepts only its own key"
                    await asyncio.to_thread(says_to_recorder, client)
                with sdk(replica, ENGINE_KEY) as stranger, pytest.raises(openai.AuthenticationError):
                    kit.says(stranger)
                with sdk(replica, SECRETS["worker"]) as worker, pytest.raises(openai.PermissionDeniedError):
                    kit.says(worker)
    chats = [request for request, _ in recorder.requests if request.path == "/v1/chat/completions"]
    assert [request.headers.getall("Authorization") for request in chats] == 2 * [[f"Bearer {ENGINE_KEY}"]]
    sent = b"".join(body for _, body in recorder.requests) + repr([r.headers for r, _ in recorder.requests]).encode()
    for log in (first.log.encode(), second.log.encode(), engine.log.encode(), sent):
        assert not any(secret.encode() in log for secret in SECRETS.values())
    assert ENGINE_KEY not in first.log + second.log


def says_to_recorder(client: OpenAI) -> None:
    client.chat.completions.create(model="recorder", messages=QUESTION)
