"""The keys of requests: equal beginnings have equal keys, and no body can do harm."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.affinity import (
    BOUNDARIES,
    LAST_ENDS,
    MAX_LENGTH,
    MAX_PREFIX_KEYS,
    MIN_SHARED,
    prefix_keys,
    prompt_of,
    prompt_of_response,
    session_keys,
    session_of,
)

SYSTEM: dict[str, object] = {"role": "system", "content": "You answer briefly. " * 20}


def turn(number: int, length: int = 40) -> list[dict[str, object]]:
    return [
        {"role": "user", "content": f"question {number} " * length},
        {"role": "assistant", "content": f"answer {number} " * length},
    ]


def keys_of(*messages: object, model: str = "m") -> tuple[str, ...]:
    return prefix_keys(model, prompt_of({"messages": list(messages)}))


def test_next_turn_of_a_conversation_has_the_longest_key_of_the_one_before() -> None:
    conversation: list[dict[str, object]] = [SYSTEM]
    before: tuple[str, ...] = ()
    for number in range(30):
        question, answer = turn(number)
        keys = keys_of(*conversation, question)
        assert before[:1] == tuple(key for key in keys if key in before)[:1], "its longest key is found first"
        assert len(keys) == len(set(keys)) <= MAX_PREFIX_KEYS
        conversation += [question, answer]
        before = keys


def test_calls_of_tools_between_two_turns_leave_the_key_in_reach() -> None:
    start = keys_of(SYSTEM, {"role": "user", "content": "weather?" * 50})
    calls = [{"role": "assistant", "content": None, "tool_calls": [{"id": str(i)} for i in range(3)]}]
    results = [{"role": "tool", "content": f"{i} degrees" * 30} for i in range(3)]
    after = keys_of(SYSTEM, {"role": "user", "content": "weather?" * 50}, *calls, *results)
    assert start[0] in after
    assert len(calls + results) < LAST_ENDS


def test_other_conversations_share_the_keys_of_the_system_prompt_only() -> None:
    one, other = keys_of(SYSTEM, *turn(1)), keys_of(SYSTEM, *turn(2))
    shared = [key for key in one if key in other]
    assert keys_of(SYSTEM) == tuple(shared)[-1:]
    assert one[-len(shared) :] == tuple(shared), "the shared ones are the shortest"


def test_text_after_a_boundary_does_not_change_its_key() -> None:
    text = "".join(chr(33 + i % 90) for i in range(BOUNDARIES[-1] + 10))
    keys = prefix_keys("m", [text])
    assert len(keys) == len(BOUNDARIES) + 1
    for i, boundary in enumerate(BOUNDARIES):
        assert prefix_keys("m", [text[:boundary] + "other"])[1] == keys[-i - 1]
        assert prefix_keys("m", ["x" + text[1:boundary]])[0] != keys[-i - 1]


def test_short_prompts_have_no_key() -> None:
    assert prefix_keys("m", ["x" * (MIN_SHARED - 1)]) == ()
    assert len(prefix_keys("m", ["x" * MIN_SHARED])) == 1
    assert prefix_keys("m", []) == ()


def test_text_beyond_the_longest_length_has_no_key() -> None:
    keys = prefix_keys("m", ["x" * MAX_LENGTH, "y" * 1000])
    assert len(keys) == len(BOUNDARIES) + 1
    assert keys == prefix_keys("m", ["x" * MAX_LENGTH, "z"])


def test_models_sessions_and_prompts_have_keys_of_their_own() -> None:
    found = {*keys_of(SYSTEM), *keys_of(SYSTEM, model="n"), *session_keys("m", "a"), *session_keys("n", "a")}
    assert len(found) == 4
    assert session_keys("m", "") == ()
    assert session_keys("m", "a") == session_keys("m", "a") != session_keys("m", "b")
    assert session_keys("m", "a") != prefix_keys("m", ["a" * MIN_SHARED])


def test_roles_and_ends_of_messages_count() -> None:
    text = "x" * MIN_SHARED
    found = [
        keys_of({"role": "user", "content": text + "ab"}),
        keys_of({"role": "tool", "content": text + "ab"}),
        keys_of({"role": "user", "content": text + "a"}, {"role": "user", "content": "b"}),
        keys_of({"role": "user", "content": text}, {"role": "user", "content": "ab"}),
    ]
    assert len({keys[0] for keys in found}) == 4


def test_parts_and_images_count() -> None:
    text = {"type": "text", "text": "x" * MIN_SHARED}

    def key(*parts: object) -> str:
        return keys_of({"role": "user", "content": [text, *parts]})[0]

    data = "data:image/png;base64," + "A" * 50_000
    images = [
        {"type": "image_url", "image_url": {"url": "http://host/a.png"}},
        {"type": "image_url", "image_url": "http://host/b.png"},
        {"type": "image_url", "image_url": {"url": data}},
        {"type": "image_url", "image_url": {"url": data + "A"}},
        {"type": "image_url", "image_url": {"url": data[:-1] + "B"}},
        {"type": "image", "source": {"type": "base64", "data": "AAAA"}},
        {"type": "input_audio", "input_audio": {"data": "AAAB", "format": "wav"}},
    ]
    assert len({key(), *(key(image) for image in images)}) == len(images) + 1
    assert key(images[0]) == key(images[0])


def test_system_text_of_anthropic_counts() -> None:
    messages = [{"role": "user", "content": "x" * MIN_SHARED}]
    one = prefix_keys("m", prompt_of({"messages": messages, "system": "a"}))
    other = prefix_keys("m", prompt_of({"messages": messages, "system": [{"type": "text", "text": "b"}]}))
    assert one != other != prefix_keys("m", prompt_of({"messages": messages})) != one


def test_a_beginning_of_512_characters_has_a_key() -> None:
    text = "x" * BOUNDARIES[0]
    [key] = prefix_keys("m", [text])
    assert prefix_keys("m", [text + "y"])[-1] == prefix_keys("m", [text[:9], text[9:], ""])[-1] == key
    assert prefix_keys("m", [text[1:] + "y"]) != (key,)


def test_prompts_of_responses() -> None:
    user, result = "weather? " * 60, "rain " * 100
    said = [{"role": "user", "content": user}]
    first = prompt_of_response({"input": user, "instructions": "Be brief. " * 50})
    assert first == prompt_of_response({"input": said, "instructions": [{"type": "text", "text": "Be brief. " * 50}]})
    parts = [{"type": "message", "role": "user", "content": [{"type": "input_text", "text": user}]}]
    assert first == prompt_of_response({"input": parts, "instructions": "Be brief. " * 50})
    assert first != prompt_of_response({"input": user, "instructions": "Be long. " * 50})
    assert prompt_of_response({"input": user}) == prompt_of({"messages": said})
    call = {"type": "function_call", "call_id": "1", "name": "look", "arguments": '{"city": "a"}'}
    answer = {"type": "function_call_output", "call_id": "1", "output": result}
    second = prompt_of_response({"input": [*said, call, answer], "instructions": "Be brief. " * 50})
    assert second[: len(first)] == first
    assert prefix_keys("m", first)[0] in prefix_keys("m", second), "the next turn finds the key"
    for other in ({**call, "arguments": '{"city": "b"}'}, {**call, "type": "reasoning"}):
        assert prompt_of_response({"input": [*said, other, answer]}) != prompt_of_response(
            {"input": [*said, call, answer]}
        )
    as_parts = {**answer, "output": [{"type": "input_text", "text": result}]}
    assert prompt_of_response({"input": [as_parts]}) == prompt_of_response({"input": [answer]})
    hostiles: list[object] = [None, 5, {}, [5, None, {}, {"content": 5}, {"output": {}}]]
    for hostile in hostiles:
        prefix_keys("m", prompt_of_response({"input": hostile, "instructions": hostile}))
    assert prompt_of_response({"messages": said}) == prompt_of_response({}) == []


def test_prompts_of_completions() -> None:
    assert prompt_of({"prompt": "text"}) == ["text"]
    assert prompt_of({"prompt": ["first", "second"]}) == ["first"]
    assert prompt_of({"prompt": [1, 20, 300]}) == prompt_of({"prompt": [[1, 20, 300], [4]]}) == ["1,14,12c,"]
    others: list[dict[str, object]] = [{}, {"input": "text"}, {"prompt": None}, {"prompt": []}, {"messages": "text"}]
    for other in others:
        assert prompt_of(other) == []


def test_session_is_the_first_field_that_is_a_text() -> None:
    body = {"user": "u", "other": 5, "empty": "", "key": "k"}
    assert session_of(body, ["other", "empty", "absent", "key", "user"]) == "k"
    assert session_of(body, ["other", "empty"]) == ""


@pytest.mark.parametrize(
    "text",
    [
        '{"messages": [' + "[" * 500 + "]" * 500 + "]}",
        '{"messages": [{"role": 5, "content": {"a": 1}}, null, 7, "text", [], {}]}',
        '{"messages": [{"role": "user", "content": [null, 5, "text", [], {"text": 5}, {"image_url": {"url": 5}}]}]}',
        '{"messages": [{"role": "\\ud800", "content": "\\udfff' + "x" * 300 + '"}], "system": 5}',
        '{"prompt": [1, "a", null, -1, true, 1e999, ' + "9" * 4000 + "]}",
        '{"prompt": [null, 1]}',
        '{"prompt": [[[[]]]]}',
        '{"messages": [' + ",".join(["{}"] * 10_000) + "]}",
    ],
)
def test_hostile_bodies_have_keys_or_none(text: str) -> None:
    body = json.loads(text)
    keys = prefix_keys("\ud800", prompt_of(body)) + session_keys("\ud800", session_of(body, ["\ud800"]) or "\ud800")
    assert all(key.isalnum() and key.isascii() for key in keys)


FIELDS = st.sampled_from(["role", "content", "text", "image_url", "url", "source", "data", "input_audio"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text() | FIELDS, inner, max_size=5),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["messages", "prompt", "system", "user"]), JSON))
def test_no_body_raises(body: dict[str, object]) -> None:
    keys = prefix_keys("m", prompt_of(body)) + session_keys("m", session_of(body, ["user"]))
    assert len(keys) <= MAX_PREFIX_KEYS + 1
