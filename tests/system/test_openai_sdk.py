"""The `openai` package through two replicas to real engines: answers, streams, tools, embeddings, errors."""

import json
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import openai
import pytest
from openai import OpenAI

from tests.support.llamacpp import CONTEXT
from tests.support.metrics import value
from tests.support.real_engines import KITS, QUESTION, WORDS, Engine, EngineKit, llama_servers
from tests.system.engines import NO_TOKEN, command, events, register, sdk
from tests.system.processes import ControllerProcess

pytestmark = [pytest.mark.system, pytest.mark.smoke]

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_time",
        "description": "Return the time in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call-1", "type": "function", "function": {"name": "get_time", "arguments": '{"city": "Oslo"}'}}
WITH_ANSWER = [
    *QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "call-1", "content": "12:00"},
]
POOLING_MEAN = 1  # of llama.cpp


class Cluster(NamedTuple):
    """Two replicas with one store. Two engines serve `tiny`, and a third one of llama.cpp serves `embedder`."""

    replicas: list[ControllerProcess]
    engines: Sequence[Engine]


@pytest.fixture(scope="module")
def started(kit: EngineKit, module_dir: Path, request: pytest.FixtureRequest) -> Iterator[Sequence[Engine]]:
    if kit.kind != "llamacpp":
        yield request.getfixturevalue("engine_pool").take(kit, 2)
        return
    embedder = {"embedding": True, "pooling_type": POOLING_MEAN}
    with llama_servers(module_dir, request.getfixturevalue("tiny_model"), {}, {}, embedder) as engines:
        yield engines


@pytest.fixture(scope="module")
def cluster(module_dir: Path, kit: EngineKit, started: Sequence[Engine]) -> Iterator[Cluster]:
    directory = Path(tempfile.mkdtemp(dir=module_dir))
    patient = "--engine-expiration", "120"  # an engine that is slow on a busy machine must stay
    first = ControllerProcess(directory / "first", *patient).ready()
    try:
        second = ControllerProcess(directory / "second", *patient, "--redis-url", first.store_url).ready()
        try:
            for engine in started[:2]:
                register(first, engine, kit=kit)
            for engine in started[2:]:
                register(second, engine, kit=kit, served_as="embedder")
            assert command(first, "route", "set", "clock", "--to", "tiny").returncode == 0
            yield Cluster([first, second], started)
        finally:
            second.stop()
    finally:
        first.stop()


@pytest.fixture(params=[0, 1], ids=["first replica", "second replica"])
def client(cluster: Cluster, request: pytest.FixtureRequest) -> Iterator[OpenAI]:
    with sdk(cluster.replicas[request.param]) as opened:
        yield opened


@pytest.fixture
def direct(cluster: Cluster) -> Iterator[OpenAI]:
    """Return a client of an engine itself."""
    with OpenAI(base_url=f"{cluster.engines[0].address}/v1", api_key=NO_TOKEN, max_retries=0) as opened:
        yield opened


def test_models_of_all_engines_are_listed(client: OpenAI, kit: EngineKit) -> None:
    embedder = set() if "embeddings" in kit.missing else {"embedder"}
    assert {model.id for model in client.models.list()} == {"clock", "tiny", *embedder}
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("absent")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")


def test_chat_is_answered(client: OpenAI, kit: EngineKit) -> None:
    assert kit.says(client) == ("tiny", WORDS)
    assert kit.says(client, "clock") == ("tiny", WORDS)


def test_both_engines_get_requests(cluster: Cluster, client: OpenAI, kit: EngineKit) -> None:
    kit.needs("metrics")
    before = [generated_tokens(engine, kit) for engine in cluster.engines[:2]]
    for _ in range(8):
        kit.says(client)
    after = [generated_tokens(engine, kit) for engine in cluster.engines[:2]]
    one, other = (count - earlier for count, earlier in zip(after, before, strict=True))
    assert one == other >= 4 * kit.tokens


def generated_tokens(engine: Engine, kit: EngineKit) -> float:
    with urllib.request.urlopen(f"{engine.address}/metrics", timeout=60) as response:
        return value(response.read().decode(), kit.generated)


def test_stream_has_the_same_words(client: OpenAI, kit: EngineKit) -> None:
    chunks = list(client.chat.completions.create(model="tiny", messages=QUESTION, stream=True, extra_body=kit.words))
    assert len(chunks) > 2, "the words come in parts"  # a slow engine sends several words in one
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == WORDS
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    if "optional usage" not in kit.missing:
        assert all(chunk.usage is None for chunk in chunks)


def test_usage_of_a_stream_is_its_last_chunk_if_the_client_asks_for_it(client: OpenAI, kit: EngineKit) -> None:
    kit.needs("optional usage")
    chunks = list(
        client.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=kit.words,
        )
    )
    assert [chunk.choices for chunk in chunks if chunk.usage is not None] == [[]]
    usage = chunks[-1].usage
    assert usage is not None
    assert usage.completion_tokens >= kit.tokens
    assert usage.total_tokens == usage.completion_tokens + usage.prompt_tokens


def test_stream_ends_with_done(client: OpenAI, kit: EngineKit) -> None:
    kit.needs("[DONE]")
    with client.chat.completions.with_streaming_response.create(
        model="tiny", messages=QUESTION, stream=True, extra_body=kit.words
    ) as response:
        received = response.read()
    *chunks, done = events(received)
    assert done == "[DONE]"
    assert "".join(json.loads(chunk)["choices"][0]["delta"].get("content") or "" for chunk in chunks) == WORDS


def test_tools_reach_the_engine(client: OpenAI, direct: OpenAI, kit: EngineKit) -> None:
    """The engine writes tools and their calls into its prompt, so its length shows what the engine has read."""

    def prompt_tokens(asked: OpenAI, messages: list[Any], **options: Any) -> int:
        model = kit.model if asked is direct else "tiny"
        answer = asked.chat.completions.create(model=model, messages=messages, max_tokens=1, **options)
        assert answer.usage is not None
        return answer.usage.prompt_tokens

    for messages in (QUESTION, WITH_ANSWER):
        found = prompt_tokens(client, messages, tools=[TOOL], tool_choice="auto")
        assert found == prompt_tokens(direct, messages, tools=[TOOL], tool_choice="auto")
        assert found > prompt_tokens(client, messages) + len(json.dumps(TOOL["function"]["parameters"]))
    assert prompt_tokens(client, WITH_ANSWER) > prompt_tokens(client, QUESTION)


def test_completion_is_answered(client: OpenAI, kit: EngineKit) -> None:
    answer = client.completions.create(model="tiny", prompt=kit.prompt, extra_body=kit.words)
    assert answer.choices[0].text == WORDS
    stream = client.completions.create(model="tiny", prompt=kit.prompt, stream=True, extra_body=kit.words)
    assert "".join(chunk.choices[0].text for chunk in stream) == WORDS


def test_responses_are_answered(client: OpenAI, kit: EngineKit) -> None:
    answer = client.responses.create(model="tiny", input="What time is it?", max_output_tokens=4, stream=False)
    assert answer.object == "response"
    assert answer.model.startswith(kit.model)


def test_embeddings_come_from_the_engine_that_has_them(client: OpenAI, cluster: Cluster, kit: EngineKit) -> None:
    kit.needs("embeddings")
    assert kit.says(client, "embedder") == ("embedder", WORDS)
    [one, other] = client.embeddings.create(model="embedder", input=["Oslo", "twelve"]).data
    with OpenAI(base_url=f"{cluster.engines[2].address}/v1", api_key=NO_TOKEN) as engine:
        [expected] = engine.embeddings.create(model="embedder", input="Oslo").data
    assert one.embedding == pytest.approx(expected.embedding, abs=1e-4)
    assert other.embedding != one.embedding
    with pytest.raises(openai.InternalServerError) as raised:
        client.embeddings.create(model="tiny", input="Oslo")
    assert raised.value.status_code == 501
    assert "does not support embeddings" in raised.value.message


def raised_by(client: OpenAI, **request: Any) -> openai.APIStatusError:
    with pytest.raises(openai.APIStatusError) as raised:
        client.chat.completions.create(**{"model": "tiny", "messages": QUESTION, "max_tokens": 1, **request})
    return raised.value


@pytest.mark.parametrize(
    "request_",
    [
        {"messages": "no list"},
        {"messages": [{"role": "user", "content": "x" * (CONTEXT + 1)}]},
        {"tools": [TOOL], "tool_choice": "unknown"},
        {"tools": "no list"},
    ],
    ids=["bad body", "too long", "bad choice of tools", "bad tools"],
)
def test_errors_of_an_engine_pass_unchanged(
    client: OpenAI, direct: OpenAI, cluster: Cluster, kit: EngineKit, request_: Any
) -> None:
    kit.needs("checks of requests")
    kind: type[Exception] = openai.BadRequestError
    if kit.kind == "llamacpp" and request_ == {"tools": "no list"}:
        kind = openai.InternalServerError  # it calls this an error of its own
    for _ in range(3):
        error, expected = raised_by(client, **request_), raised_by(direct, **request_)
        assert type(error) is kind
        assert (error.status_code, error.body) == (expected.status_code, expected.body)
    assert all(worker["failing"] is None for worker in cluster.replicas[0].workers()), "the engines are not at fault"


@pytest.mark.parametrize("kit", [param for param in KITS if param.id == "transformers-serve"], indirect=True)
def test_request_with_an_unknown_field_is_refused_by_the_engine(
    client: OpenAI, direct: OpenAI, cluster: Cluster, kit: EngineKit
) -> None:
    """An engine whose errors do not have OpenAI's form."""
    unknown = {"extra_body": {"unknown": 1}}
    error, expected = raised_by(client, **unknown), raised_by(direct, model=kit.model, **unknown)
    assert (error.status_code, error.body) == (expected.status_code, expected.body)
    assert error.status_code == 422
    assert all(worker["failing"] is None for worker in cluster.replicas[0].workers())


def test_errors_of_the_controller_are_read_by_the_sdk(client: OpenAI) -> None:
    error = raised_by(client, model="absent")
    assert type(error) is openai.NotFoundError
    assert (error.code, error.param, error.type) == ("model_not_found", "model", "invalid_request_error")
    error = raised_by(client, model=7)
    assert type(error) is openai.BadRequestError
    assert "`$.model`" in error.message
