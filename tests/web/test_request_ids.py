"""The request id in responses, at workers and in the log."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest

from controller.domain import request_ids
from controller.logs import JsonFormatter
from controller.web.routes.table import FALLBACK, ROUTES, Route
from tests.conftest import Store
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.support.workers import answers, bad_worker, chunks
from tests.web.conftest import Api, open_api

MADE = re.compile(r"[0-9a-f]{32}")
GIVEN = {"X-Request-Id": "req-1"}
ADMIN = {"Authorization": "Bearer admin-0123456789abcdef"}


@pytest.fixture
async def closed(store: Store) -> AsyncIterator[Api]:
    async with open_api(store.registry(), admin_tokens="ops=admin-0123456789abcdef") as opened:
        yield opened


@pytest.fixture
def events() -> Iterator[list[dict[str, object]]]:
    """The events of the log, as they are written: with the id of the request that is running then."""
    found: list[dict[str, object]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    logger, handler = logging.getLogger("controller"), Handler()
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel("INFO")
    yield found
    logger.removeHandler(handler)
    logger.setLevel(level)


Events = list[dict[str, object]]


def ids(events: Events, text: str) -> list[object]:
    """Return the request ids of the events that contain a text."""
    return [event.get("request_id") for event in events if text in str(event["message"])]


async def test_every_route_returns_the_id_that_it_was_given(api: Api) -> None:
    for route in (*ROUTES, FALLBACK):
        response = await api.http.request(route.method, _path(route), json={}, headers=GIVEN)
        assert response.headers.get_list("x-request-id") == ["req-1"], route.path


async def test_every_route_but_the_hot_ones_makes_an_id(api: Api) -> None:
    await api.register(A)
    for route in (*ROUTES, FALLBACK):
        body = {"model": "m", "worker_name": A, "queue_length": 0}
        if route.path == "/release_worker":
            body["lease"] = (await api.post("/get_worker_address", {"model": "m", "lease": True})).json()["lease"]
        for headers in ({}, {"X-Request-Id": "two words"}):
            response = await api.http.request(route.method, _path(route), json=body, headers=headers)
            found = response.headers.get_list("x-request-id")
            if route.hot and not headers:
                assert (response.status_code, found) == (200, []), route.path
            else:
                assert len(found) == 1, route.path
                assert MADE.fullmatch(found[0])


def _path(route: Route) -> str:
    return "/v1/rerank" if route.path == "*" else route.path


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/absent", 404), ("PUT", "/workers", 405)])
async def test_unknown_routes_return_the_id(api: Api, method: str, path: str, status: int) -> None:
    response = await api.http.request(method, path, headers=GIVEN)
    assert (response.status_code, response.headers["x-request-id"]) == (status, "req-1")
    assert MADE.fullmatch((await api.http.request(method, path)).headers["x-request-id"])


@pytest.mark.parametrize("path", ["/get_worker_address", "/receive_heart_beat", "/list_models"])
async def test_errors_have_an_id_that_the_log_has_too(
    closed: Api, path: str, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = await closed.http.post(path, json={"model": "m"})
    assert refused.status_code == 401
    assert ids(events, f"refused: {path[1:]}") == [refused.headers["x-request-id"]]
    malformed = await closed.http.post(path, content=b"[", headers=ADMIN)
    assert path == "/list_models" or malformed.status_code == 400
    assert MADE.fullmatch(malformed.headers["x-request-id"])

    async def fails(*_: object) -> str:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(closed.replica.dispatcher, "dispatch", fails)
    monkeypatch.setattr(closed.replica.dispatcher, "list_models", fails)
    monkeypatch.setattr(closed.replica.membership, "heartbeat", fails)
    body = {"model": "m", "worker_name": A, "queue_length": 1}
    broken = await closed.http.post(path, json=body, headers=ADMIN)
    assert broken.status_code == 500
    assert ids(events, "failed because of a bug") == [broken.headers["x-request-id"]]
    assert (
        broken.headers["x-request-id"] in broken.json()["error"]["message"] if path != "/receive_heart_beat" else True
    )


async def test_acts_of_operators_have_the_id_in_all_their_lines(closed: Api, events: Events) -> None:
    headers = {**ADMIN, **GIVEN}
    status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
    registration = {"worker_name": A, "check_heart_beat": True, "worker_status": status}
    await closed.http.post("/register_worker", json=registration, headers={**ADMIN, "X-Request-Id": "req-0"})
    assert set(ids(events, "worker http")) == {"req-0"}
    drained = await closed.http.post("/drain_worker", json={"worker_name": A, "reason": "upgrade"}, headers=headers)
    assert drained.json()["exist"]
    assert ids(events, "is draining") == ids(events, "done: drain_worker") == ["req-1"]
    [audit] = [event for event in events if event["logger"] == "controller.audit" and event["action"] == "drain_worker"]
    assert {"target": A, "token": "ops", "detail": "upgrade", "outcome": "done"}.items() <= audit.items()


@pytest.mark.parametrize("path", ["/worker_generate_stream", "/worker_generate", "/count_token", "/v1/rerank"])
async def test_the_worker_gets_the_id_and_the_trace_context(api: Api, path: str) -> None:
    trace = {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01", "tracestate": "a=1,b=2"}
    behaviours = {path.rpartition("/")[2]: chunks(b"{}\0") if "stream" in path else answers(b"{}")}
    async with bad_worker(**behaviours) as worker:
        await api.register(worker.address)
        await api.http.post(path, json={"model": "m"}, headers={**GIVEN, **trace})
        made = await api.http.post(path, json={"model": "m"})
        given_head, made_head = (httpx.Headers(_lines(head)) for head in worker.heads)
    assert given_head["x-request-id"] == "req-1"
    assert {name: given_head[name] for name in trace} == trace
    assert made_head["x-request-id"] == made.headers["x-request-id"]
    assert not {"traceparent", "tracestate"} & made_head.keys()


def _lines(head: bytes) -> list[tuple[str, str]]:
    return [(name, value) for name, _, value in (line.partition(": ") for line in head.decode().split("\r\n")[1:-2])]


async def test_lines_about_a_forwarded_request_have_its_id(api: Api, events: Events) -> None:
    await api.register("http://127.0.0.1:9")
    response = await api.http.post("/worker_generate", json={"model": "m"}, headers=GIVEN)
    assert "50006" in response.text
    assert ids(events, "failed, and its client gets an error") == ["req-1"]


async def test_lines_about_work_for_all_requests_have_no_id(
    api: Api, store: Store, events: Events, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    probe = api.replica.breaker._probe

    async def watched() -> None:
        seen.append(request_ids.current.get())
        await probe()

    monkeypatch.setattr(api.replica.breaker, "_probe", watched)
    dispatch_some = api.registry.dispatch_some

    async def observed(*arguments: object) -> object:
        seen.append(request_ids.current.get())
        return await dispatch_some(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(api.registry, "dispatch_some", observed)
    response = await api.http.post("/get_worker_address", json={"model": "m"}, headers=GIVEN)
    assert response.headers["x-request-id"] == "req-1"
    assert len(seen) >= 2
    assert set(seen) == {""}


async def test_simultaneous_requests_keep_their_ids(api: Api, events: Events) -> None:
    async def send(number: int) -> None:
        body = {"worker_name": f"http://127.0.0.1:{number}", "check_heart_beat": True}
        status = {"model_names": ["m"], "speed": 1, "queue_length": 0}
        headers = {"X-Request-Id": f"id-{number}"}
        await api.http.post("/register_worker", json={**body, "worker_status": status}, headers=headers)

    await asyncio.gather(*(send(number) for number in range(1, 51)))
    await wait_until(lambda: len(ids(events, "Registered new worker")) == 50, "all are logged")
    assert {(event["worker"], event["request_id"]) for event in events if "worker" in event} == {
        (f"http://127.0.0.1:{number}", f"id-{number}") for number in range(1, 51)
    }
