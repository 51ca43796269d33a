"""The access log: one line for each request, without secrets, if it is switched on."""

import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from controller.web.app import HotPath
from tests.conftest import Store
from tests.support.samples import A
from tests.support.workers import bad_worker, chunks
from tests.web.conftest import Api, open_api

SECRET = "0123456789abcdef-admin"


@pytest.fixture
async def logged(store: Store) -> AsyncIterator[Api]:
    settings = {"admin_tokens": f"ops={SECRET}", "trusted_proxies": "127.0.0.0/8", "access_log": True}
    async with open_api(store.registry(), **settings) as opened:
        yield opened


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [
        dict(record.args)  # type: ignore[arg-type]
        for record in caplog.records
        if record.name == "controller.access"
    ]


async def test_each_request_is_logged_with_its_caller(logged: Api, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"Authorization": f"Bearer {SECRET}", "X-Forwarded-For": "192.0.2.1, 203.0.113.5"}
    with caplog.at_level(logging.INFO, "controller.access"):
        await logged.http.post(f"/list_models?token={SECRET}", headers=headers)
        await logged.http.post("/get_worker_address", json={"model": "m"}, headers={"X-Forwarded-For": "203.0.113.6"})
        await logged.http.get(f"/absent/http://x:{SECRET}@h", headers=headers)
        await logged.http.get("/healthz")
        await logged.http.get("/x%22%20200,%200%20bytes%20by%20token%20ops")
    first, *others = lines(caplog)
    assert 0 <= first.pop("duration") < 60
    assert first == {
        "client": "203.0.113.5",
        "method": "POST",
        "path": "/list_models",
        "status": 200,
        "bytes": len(b'{"models":[]}'),
        "token": "ops",
        "complete": True,
    }
    assert [(line["path"].partition(":")[0], line["status"], line["token"], line["client"]) for line in others] == [
        ("/get_worker_address", 401, "", "203.0.113.6"),
        ("/absent/http", 404, "ops", "203.0.113.5"),
        ("/healthz", 200, "", "127.0.0.1"),
        ("/x%22%20200,%200%20bytes%20by%20token%20ops", 404, "", "127.0.0.1"),
    ]
    assert " 200, 13 bytes in 0." in caplog.messages[0]
    assert caplog.messages[0].endswith("by token ops")


async def test_a_stream_is_logged_at_its_end(logged: Api, caplog: pytest.LogCaptureFixture) -> None:
    headers = {"Authorization": f"Bearer {SECRET}"}
    async with (
        bad_worker(
            worker_generate_stream=chunks(b"abc\0", b"defg\0"), worker_generate=chunks(b"abc", end=False)
        ) as worker,
    ):
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        body = {"worker_name": worker.address, "check_heart_beat": True, "worker_status": status}
        await logged.http.post("/register_worker", json=body, headers=headers)
        caplog.clear()  # the level may be INFO before, too
        with caplog.at_level(logging.INFO, "controller.access"):
            await logged.http.post("/worker_generate_stream", json={"model": "m"}, headers=headers)
            with pytest.raises(AssertionError):  # httpx's way to say that the response has no end
                await logged.http.post("/worker_generate", json={"model": "m"}, headers=headers)
    assert [(line["status"], line["bytes"], line["complete"]) for line in lines(caplog)] == [
        (200, 9, True),
        (200, 3, False),
    ]
    assert caplog.messages[-1].endswith("by token ops, incomplete")


async def test_nothing_is_there_unless_it_is_switched_on(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "controller.access"):
        await api.register(A)
        assert await api.dispatch() == A
    assert lines(caplog) == []
    assert isinstance(api.replica.app(), HotPath), "requests reach the hot path directly"
