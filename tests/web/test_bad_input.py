"""Invalid values in every field of every route get a 400 that names the field, and change nothing."""

import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from controller.web.asgi.endpoint import MAX_BODY, Answer, Endpoint
from tests.conftest import Store
from tests.support.invariants import whole_state
from tests.support.samples import A, B
from tests.web.conftest import Api

STATUS = {"model_names": ["m"], "speed": 1, "queue_length": 0}
GOOD: dict[str, dict[str, Any]] = {
    "/register_worker": {
        "worker_name": B,
        "check_heart_beat": True,
        "worker_status": STATUS,
        "multimodal": False,
    },
    "/receive_heart_beat": {"worker_name": A, "queue_length": 1},
    "/remove_worker": {"worker_name": A},
    "/drain_worker": {"worker_name": A},
    "/resume_worker": {"worker_name": A},
    "/report_failure": {"worker_name": A},
    "/release_worker": {"lease": f"1800000000000-1000-1-1@{A}"},
    "/renew_lease": {"lease": f"1800000000000-1000-1-1@{A}"},
    "/get_worker_address": {"model": "m"},
    "/worker_generate_stream": {"model": "m"},
    "/set_capacity": {"worker_name": A, "capacity": 1},
    "/set_model_route": {"model": "m", "targets": {"n": 1}, "fallbacks": ["o"]},
    "/remove_model_route": {"model": "m"},
}
REQUIRED = {
    "/register_worker": ["worker_name", "check_heart_beat"],
    "/set_model_route": ["model", "targets"],
    **{path: list(GOOD[path]) for path in GOOD if path not in ("/register_worker", "/set_model_route")},
}

NOT_JSON = [
    b"",
    b"{",
    b"nonsense",
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"model": "\xff", "worker_name": "\xff"}',
    b"[" * 200_000,
    b'{"x": ' + b'{"x": ' * 100_000,
    b'{"model": "m"} trailing',
    b'{"model": "m", "worker_name": "http://a:1", "queue_length": 1, "other": "\xff"}',
    b'{"model": "m", "worker_name": "http://a:1", "queue_length": 1, "\xff": 1}',
]
NOT_AN_OBJECT = [b"[]", b"null", b"1", b'"text"', b"true"]
WRONG: dict[str, list[bytes]] = {
    "worker_name": [
        b"1",
        b"null",
        b"[]",
        b"{}",
        b"true",
        b'"not a url"',
        b'"ftp://h"',
        b'"http://h\\r\\n"',
        b'"http://h\\ud800"',
        b'""',
    ],
    "check_heart_beat": [b"1", b"0", b'"true"', b"null", b"[]"],
    "multimodal": [b"1", b'"x"', b"[]"],
    "queue_length": [b"-1", b"-0.5", b"true", b'"1"', b"null", b"NaN", b"-Infinity", b"1e309", b"[]", b"9" * 5000],
    "model": [b"1", b"null", b"[]", b"{}", b"true", b'"\\ud800"', b'"a\\udc00b"', b"NaN"],
    "lease": [
        b"1",
        b"null",
        b"[]",
        b"true",
        b'""',
        b'"x"',
        b'"1-1-1-1@"',
        b'"1800000000000-1-1-1@http://a:1\\n"',
        b'"\\ud800"',
    ],
    "capacity": [b"0", b"-1", b"true", b"1.5", b'"1"', b"NaN", b"Infinity", b"1e309", b"1000001", b"[]"],
    "targets": [
        b"1",
        b'"n"',
        b"null",
        b'["n"]',
        b"{}",
        b'{"n": 0}',
        b'{"n": 0, "o": 0}',
        b'{"n": -1}',
        b'{"n": 0.5}',
        b'{"n": true}',
        b'{"n": null}',
        b'{"n": "1"}',
        b'{"n": NaN}',
        b'{"n": 1000001}',
        b'{"n": 1' + b"0" * 5000 + b"}",
        b'{"": 1}',
        b'{"a\\nb": 1}',
        b'{"\\u001dm": 1}',
        b'{"\\ud800": 1}',
        json.dumps({"n" * 513: 1}).encode(),
        json.dumps({f"n{i}": 1 for i in range(17)}).encode(),
    ],
    "fallbacks": [
        b"1",
        b'"n"',
        b"null",
        b"[1]",
        b"[null]",
        b'[""]',
        b'["a\\nb"]',
        b'["a\\udfff"]',
        b'["n", "n"]',
        json.dumps(["n" * 513]).encode(),
        json.dumps([f"n{i}" for i in range(17)]).encode(),
    ],
    "worker_status": [b"1", b'"x"', b"[]", b"[1]", b'{"speed": 1}', b"true"],
    "worker_status.model_names": [
        b"1",
        b'"m"',
        b"[1]",
        b"[null]",
        b'[""]',
        b'["a\\nb"]',
        b'["a\\udfff"]',
        b"null",
        json.dumps([f"{i:0512}" for i in range(129)]).encode(),
    ],
    "worker_status.speed": [b"0", b"-1", b"true", b'"1"', b"NaN", b"1e309", b"null", b"9" * 5000],
    "worker_status.capacity": [b"0", b"-1", b"true", b"1.5", b'"1"', b"NaN", b"Infinity", b"1e309", b"1000001"],
    "worker_status.queue_length": [b"-1", b"-0.5", b"true", b'"1"', b"null", b"NaN", b"1e309", b"1000000000.5"],
}


def cases() -> list[Any]:
    found = []
    for path, good in GOOD.items():
        for body in [*NOT_JSON, *NOT_AN_OBJECT]:
            found.append(pytest.param(path, body, "body", id=f"{path} {body[:20]!r}"))
        for field in REQUIRED[path]:
            without = {key: value for key, value in good.items() if key != field}
            found.append(pytest.param(path, json.dumps(without).encode(), field, id=f"{path} without {field}"))
        for field, values in WRONG.items():
            outer, _, inner = field.partition(".")
            if outer not in good:
                continue
            for value in values:
                mark = {**good, outer: {**STATUS, inner: "MARK"} if inner else "MARK"}
                body = json.dumps(mark).encode().replace(b'"MARK"', value)
                found.append(pytest.param(path, body, inner or outer, id=f"{path} {field}={value[:20]!r}"))
    return found


@pytest.fixture
async def registered(api: Api, store: Store) -> AsyncIterator[Api]:
    """Return an API with one worker. Check at the end that the store is unchanged."""
    await api.register(A)
    before = await whole_state(store.client, store.namespace)
    yield api
    assert await whole_state(store.client, store.namespace) == before


def error_in(response: httpx.Response) -> str:
    """Return the code and the message of an error. The heartbeat route returns text, all others return JSON."""
    if response.url.path == "/receive_heart_beat":
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        return response.text
    error = response.json()["error"]
    return f"{error['code']}: {error['message']}"


async def test_invalid_body_is_400_and_names_the_field(registered: Api) -> None:
    wrong = []
    for case in cases():
        path, body, field = case.values
        response = await registered.http.post(path, content=body)
        error = error_in(response)
        if response.status_code != 400 or not error.startswith("invalid_input: ") or field not in error:
            wrong.append((case.id, response.status_code, response.text[:200]))
    assert len(cases()) > 150
    assert not wrong


async def test_body_over_the_limit_is_413_before_it_is_read(registered: Api) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 65536
            yield b" " * 65536

    for path in ("/get_worker_address", "/register_worker"):
        sent = 0
        response = await registered.http.post(path, content=endless())
        assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")
        assert sent < 2 * MAX_BODY + 65536
        announced = {"content-length": str(10**12)}
        sent = 0
        response = await registered.http.post(path, content=endless(), headers=announced)
        assert response.status_code == 413
        assert sent <= 2 * 65536
        response = await registered.http.post(path, content=b" " * (MAX_BODY + 1))
        assert response.status_code == 413


async def test_stream_request_has_a_higher_limit(registered: Api) -> None:
    response = await registered.http.post("/worker_generate_stream", content=b" " * (33 * 1024 * 1024))
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


async def test_prompt_with_images_is_accepted(api: Api) -> None:
    body = json.dumps({"model": "absent", "images": ["a" * (20 * 1024 * 1024)]}).encode()
    response = await api.http.post("/worker_generate_stream", content=body)
    assert (response.status_code, json.loads(response.content[:-1])["error_code"]) == (200, 50005)


@pytest.mark.parametrize("announced", [True, False])
async def test_limit_applies_to_a_body_in_one_piece(announced: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Endpoint, "max_body", 10)

    async def handle(body: bytes) -> Answer:
        return Answer(b"%d" % len(body))

    async def call(size: int) -> list[Any]:
        sent: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": b" " * size}

        async def send(message: Any) -> None:
            sent.append(message)

        headers = [(b"content-length", b"%d" % size)] if announced else []
        await Endpoint(handle)({"type": "http", "path": "/", "headers": headers}, receive, send)
        return sent

    start, end = await call(10)
    assert (start["status"], end["body"]) == (200, b"10")
    start, end = await call(11)
    assert start["status"] == 413


async def test_client_that_disconnects_gets_no_response() -> None:
    async def handle(_: bytes) -> Answer:
        raise AssertionError

    for messages in (["http.disconnect"], ["http.request", "http.disconnect"]):
        sent: list[Any] = []
        arriving = iter(messages)

        async def receive(arriving: Any = arriving) -> dict[str, Any]:
            return {"type": next(arriving), "body": b"x", "more_body": True}

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        await Endpoint(handle)({"type": "http", "path": "/", "headers": []}, receive, send)
        assert sent == []


async def test_unknown_fields_are_ignored(api: Api) -> None:
    await api.register(A)
    body = {**GOOD["/receive_heart_beat"], "more": [1, {"x": None}]}
    response = await api.post("/receive_heart_beat", body)
    assert response.json() == {"exist": True}
