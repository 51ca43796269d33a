"""Bodies that FastChat accepts because it reads them with `json.loads`. They are invalid JSON, or have floats."""

import json

import pytest

from tests.support.samples import A
from tests.support.workers import answers, bad_worker, chunks
from tests.web.conftest import Api

# Python's json module accepts each of these. RFC 8259 forbids them.
PASSED_ON = {
    "first half of an emoji": rb'{"model": "m", "prompt": "hi \ud83e"}',
    "second half": rb'{"model": "m", "prompt": "\udd99 there"}',
    "halves in the wrong order": rb'{"model": "m", "prompt": "\udd99\ud83e"}',
    "nested": rb'{"model": "m", "messages": [{"content": {"text": "\ud83e and"}}]}',
    "in a key": rb'{"\ud83e": 1, "model": "m"}',
    "half in UTF-8": b'{"model": "m", "prompt": "\xed\xa0\xbe"}',
    "byte order mark": b'\xef\xbb\xbf{"model": "m", "prompt": "p"}',
    "NaN": b'{"model": "m", "temperature": NaN}',
    "Infinity": b'{"top_p": [Infinity, -Infinity], "model": "m"}',
    "1e309": b'{"model": "m", "temperature": 1e309}',
    "UTF-16": '{"model": "m", "prompt": "é"}'.encode("utf-16"),
    "UTF-32": '{"model": "m", "prompt": "é"}'.encode("utf-32"),
    "a long prompt": rb'{"model": "m", "prompt": "\ud83e' + b", and so on" * 90_000 + b'"}',
}


@pytest.mark.parametrize("body", PASSED_ON.values(), ids=PASSED_ON)
async def test_forwarded_body_is_passed_on_byte_for_byte(api: Api, body: bytes) -> None:
    assert json.loads(body)["model"] == "m", "FastChat accepts it"
    frames, answer = chunks(b'{"text": "a"}\0'), answers(b'{"text": "a"}')
    async with bad_worker(worker_generate_stream=frames, worker_generate=answer, rerank=answer) as worker:
        await api.register(worker.address)
        for path in ("/worker_generate_stream", "/worker_generate", "/v1/rerank"):
            response = await api.http.post(path, content=body)
            assert (response.status_code, json.loads(response.content.rstrip(b"\0"))) == (200, {"text": "a"})
        assert [sent for _, sent in worker.requests] == [body] * 3
        dispatched = await api.http.post("/get_worker_address", content=body)
        assert (dispatched.status_code, dispatched.json()) == (200, {"address": worker.address})


async def test_invalid_json_with_a_million_values_is_400(api: Api) -> None:
    values = b"[" + b"1," * 1_000_000 + b"1]"
    response = await api.http.post("/worker_generate", content=b'{"model": "absent", "x": %s}' % values)
    assert response.json()["error"]["code"] == "no_worker"
    response = await api.http.post("/worker_generate", content=b'{"model": "absent", "x": %s, "y": NaN}' % values)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_input")


@pytest.mark.parametrize(
    ("sent", "stored"), [("1.0", 1), ("2.5", 3), ("0.0", 0), ("-0.0", 0), ("1e3", 1000), ("0.001", 1)]
)
async def test_queue_length_may_be_a_float(api: Api, sent: str, stored: int) -> None:
    status = f'{{"model_names": ["m"], "speed": 1.0, "queue_length": {sent}, "capacity": 4.0}}'
    body = f'{{"worker_name": "{A}", "check_heart_beat": true, "worker_status": {status}}}'
    assert (await api.http.post("/register_worker", content=body)).json() is None
    [worker] = (await api.registry.list_workers()).workers
    assert (worker.status.queue_length, worker.status.capacity) == (stored, 4)

    heartbeat = f'{{"worker_name": "{A}", "queue_length": {sent}, "load": NaN}}'
    assert (await api.http.post("/receive_heart_beat", content=heartbeat)).json() == {"exist": True}
    [worker] = (await api.registry.list_workers()).workers
    assert worker.status.queue_length == stored


async def test_status_may_contain_floats_and_invalid_json_in_other_fields(api: Api) -> None:
    status = rb'{"model_names": ["m"], "speed": 1.0, "queue_length": 2.5, "capacity": 8.0, "x": ["\ud800", NaN]}'
    async with bad_worker(worker_get_status=answers(status)) as worker:
        body = {"worker_name": worker.address, "check_heart_beat": False}
        assert (await api.post("/register_worker", body)).json() is None
        assert (await api.http.post("/refresh_all_workers")).json() is None
        [known] = (await api.registry.list_workers()).workers
        assert (known.status.queue_length, known.status.capacity) == (3, 8)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (rb'{"model_names": ["m\ud800"], "speed": 1, "queue_length": 0}', "model_names: has an unpaired surrogate"),
        (b'{"model_names": ["m"], "speed": NaN, "queue_length": 0}', "speed: must be a number"),
        (b'{"model_names": ["m"], "speed": 1, "queue_length": Infinity}', "queue_length: must be a number"),
        (b'{"model_names": ["m"], "speed": 1, "queue_length": 0, "capacity": 1.5}', "capacity: must be a whole number"),
        (b'{"model_names": ["m"], "speed": 1, "queue_length": true}', "queue_length"),
    ],
)
async def test_invalid_status_is_refused_with_the_name_of_the_field(api: Api, status: bytes, reason: str) -> None:
    async with bad_worker(worker_get_status=answers(status)) as worker:
        body = {"worker_name": worker.address, "check_heart_beat": False}
        response = await api.post("/register_worker", body)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "worker_unreachable")
    assert reason in response.json()["error"]["message"]
    assert (await api.registry.list_workers()).workers == []
