"""FastChat's wire format: every route, its responses, and its behaviour while the store is unavailable."""

import asyncio
import json
import re
from typing import Any

import httpx
import pytest

from controller.metrics import Metrics
from controller.replica import Replica
from controller.settings import Settings
from controller.store import keys
from controller.upstream.client import WorkerClient
from tests.conftest import Store
from tests.support.metrics import dispatches
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until
from tests.support.workers import answers, bad_worker, chunks, status
from tests.web.conftest import Api, open_api

SERVER_ERROR_MSG = "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"


async def test_connection_test_returns_success(api: Api) -> None:
    response = await api.http.get("/test_connection")
    assert (response.status_code, response.text) == (200, '"success"')
    assert response.headers["content-type"] == "application/json"


async def test_worker_registers_serves_and_is_removed(api: Api) -> None:
    heartbeat = {"worker_name": A, "queue_length": 2}
    assert (await api.post("/receive_heart_beat", heartbeat)).json() == {"exist": False}
    await api.register(A)
    assert (await api.post("/receive_heart_beat", heartbeat)).json() == {"exist": True}
    assert await api.dispatch() == A
    assert (await api.post("/worker_get_status")).json() == {"model_names": ["m"], "speed": 1, "queue_length": 3}
    assert (await api.post("/remove_worker", {"worker_name": A})).json() == {"exist": True}
    assert (await api.post("/remove_worker", {"worker_name": A})).json() == {"exist": False}
    assert await api.dispatch() == ""


async def test_spellings_of_a_name_mean_one_worker(api: Api) -> None:
    await api.register("HTTP://LocalHost:1/")
    heartbeat = {"worker_name": "http://localhost:1", "queue_length": 5}
    assert (await api.post("/receive_heart_beat", heartbeat)).json() == {"exist": True}
    assert await api.dispatch() == "http://localhost:1"
    assert (await api.post("/remove_worker", {"worker_name": "http://LOCALHOST:1/"})).json() == {"exist": True}


async def test_lists_return_the_models_of_their_kind(api: Api) -> None:
    await api.register(A, "text")
    await api.register(B, "vision", multimodal=True)
    expected = {
        "/list_models": ["text", "vision"],
        "/list_multimodal_models": ["vision"],
        "/list_language_models": ["text"],
    }
    for path, models in expected.items():
        assert (await api.post(path)).json() == {"models": models}
        assert (await api.http.post(path)).json() == {"models": models}, "without a body"


async def test_workers_shows_all_fields(api: Api) -> None:
    await api.register(A, "m", "n", multimodal=None)
    await api.register(B, check_heart_beat=False)
    workers = (await api.http.get("/workers")).json()["workers"]
    for shown in workers:
        assert shown.pop("heartbeat_age") >= 0
    assert 0 < workers[0].pop("expires_in") <= 90
    assert workers[1].pop("expires_in") is None
    idle = {"queue_length": 0, "leased": 0, "draining": False, "drained": False, "failing": None, "polled": False}
    nothing = {"capacity": None, "capacity_source": None, "registered_by": None, "stalled_for": None, "engine": None}
    shared = {"speed": 1, "multimodal": False, **nothing, **idle}
    assert workers == [
        {"worker_name": A, "model_names": ["m", "n"], "check_heart_beat": True, **shared},
        {"worker_name": B, "model_names": ["m"], "check_heart_beat": False, **shared},
    ]


async def test_workers_names_models_that_have_lost_their_workers(api: Api) -> None:
    await api.register(A, "m", "n")
    await api.replica.snapshots.take_now()
    assert (await api.http.get("/workers")).json()["missing_models"] == []
    await api.register(A, "m")
    assert (await api.http.get("/workers")).json()["missing_models"] == [], "the snapshot is older"
    await api.replica.snapshots.take_now()
    [missing] = (await api.http.get("/workers")).json()["missing_models"]
    assert missing["model"] == "n"
    await api.register(B, "n")
    assert (await api.http.get("/workers")).json()["missing_models"] == [], "it has a worker, which no snapshot shows"


@pytest.mark.parametrize("worker_status", ["missing", None, {}])
async def test_registration_without_status_requests_it_from_the_worker(api: Api, worker_status: object) -> None:
    async with bad_worker(worker_get_status=status("own", queue_length=7)) as worker:
        body: dict[str, object] = {"worker_name": worker.address, "check_heart_beat": False}
        if worker_status != "missing":
            body["worker_status"] = worker_status
        response = await api.post("/register_worker", body)
        assert (response.status_code, response.json()) == (200, None)
        [known] = (await api.registry.list_workers()).workers
        assert (known.name, known.status.model_names, known.status.queue_length) == (worker.address, ("own",), 7)
        await api.registry.remove(worker.address)


async def test_worker_that_returns_no_status_is_not_registered(api: Api) -> None:
    async with bad_worker(worker_get_status=answers(b"no")) as worker:
        response = await api.post("/register_worker", {"worker_name": worker.address, "check_heart_beat": True})
    assert response.status_code == 502
    assert response.json()["error"]["code"] == "worker_unreachable"
    assert (await api.registry.list_workers()).workers == []


async def stream(api: Api, model: str = "m") -> list[object]:
    response = await api.http.post("/worker_generate_stream", json={"model": model, "prompt": "p"})
    assert response.status_code == 200
    assert response.content.endswith(b"\0")
    return [json.loads(frame) for frame in response.content.split(b"\0")[:-1]]


async def test_stream_is_forwarded(api: Api) -> None:
    async with bad_worker(worker_generate_stream=chunks(b'{"text":', b'"a"}\0{"text":"ab"}\0')) as worker:
        await api.register(worker.address)
        assert await stream(api) == [{"text": "a"}, {"text": "ab"}]
        [(_, body)] = worker.requests
        assert json.loads(body) == {"model": "m", "prompt": "p"}
    assert 'controller_streams_total{outcome="complete"} 1.0' in api.metrics.render().decode()


async def test_stream_without_a_worker_is_one_error_frame(api: Api) -> None:
    assert await stream(api) == [{"text": SERVER_ERROR_MSG, "error_code": 50005}]


async def test_stream_from_an_unreachable_worker_is_one_error_frame(api: Api) -> None:
    await api.register("http://127.0.0.1:1")
    assert await stream(api) == [{"text": SERVER_ERROR_MSG, "error_code": 50006}]


async def test_stream_that_breaks_off_ends_with_one_error_frame(api: Api) -> None:
    async with bad_worker(worker_generate_stream=chunks(b'{"text":"a"}\0{"te', end=False)) as worker:
        await api.register(worker.address)
        assert await stream(api) == [{"text": "a"}, {"text": SERVER_ERROR_MSG, "error_code": 50006}]


async def test_lottery_dispatches_and_books_nothing(store: Store) -> None:
    async with open_api(store.registry(), dispatch_method="lottery") as api:
        await api.register(A)
        assert [await api.dispatch() for _ in range(3)] == [A] * 3
        assert (await api.post("/worker_get_status")).json()["queue_length"] == 0


async def test_health_and_readiness_are_200(api: Api) -> None:
    assert (await api.http.get("/healthz")).json() == {"healthy": True}
    ready = await api.http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True})


async def test_unknown_route_is_404_and_wrong_method_is_405(api: Api) -> None:
    missing = await api.http.get("/nothing")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "not_found")
    for path in ("/get_worker_address", "/receive_heart_beat", "/list_models", "/worker_generate_stream"):
        wrong = await api.http.get(path)
        assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_metrics_count_calls_by_outcome(api: Api) -> None:
    await api.register(A)
    await api.register(A)
    await api.dispatch()
    await api.dispatch("absent")
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    await api.post("/receive_heart_beat", {"worker_name": B, "queue_length": 0})
    await api.post("/remove_worker", {"worker_name": A})
    response = await api.http.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    for line in (
        'controller_dispatches_total{method="shortest_queue",model="m",outcome="chosen"} 1.0',
        'controller_dispatches_total{method="shortest_queue",model="(unknown)",outcome="no_worker"} 1.0',
        "controller_dispatch_batches_total 2.0",
        'controller_heartbeats_total{outcome="known"} 1.0',
        'controller_heartbeats_total{outcome="unknown"} 1.0',
        'controller_registrations_total{outcome="new"} 1.0',
        'controller_registrations_total{outcome="again"} 1.0',
        'controller_removals_total{reason="request"} 1.0',
    ):
        assert line in response.text


async def test_stream_reports_the_age_of_the_snapshot_in_a_header(api: Api, link: Link) -> None:
    async with bad_worker(worker_generate_stream=chunks(b"a\0")) as worker:
        await api.register(worker.address)
        await api.replica.snapshots.take_now()
        response = await api.post("/worker_generate_stream", {"model": "m"})
        assert (response.content, "x-controller-degraded" in response.headers) == (b"a\0", False)
        with link.broken():
            response = await api.post("/worker_generate_stream", {"model": "m"})
    assert (response.content, float(response.headers["x-controller-degraded"]) < 60) == (b"a\0", True)


class TestWithoutStore:
    """Responses while the store is unavailable, in a form that FastChat's workers and servers can use."""

    @pytest.fixture
    async def api(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> object:
        from redis.exceptions import ConnectionError as RedisConnectionError

        registry = store.registry()

        async def refuse(*_: object, **__: object) -> None:
            raise RedisConnectionError("refused")

        async with open_api(registry) as opened:
            with monkeypatch.context() as patch:
                for command in ("evalsha", "ping", "set"):
                    patch.setattr(registry._client, command, refuse)
                yield opened

    @pytest.mark.parametrize(
        ("path", "body", "answer"),
        [
            ("/get_worker_address", {"model": "m"}, {"address": ""}),
            ("/list_models", None, {"models": []}),
            ("/list_multimodal_models", None, {"models": []}),
            ("/list_language_models", None, {"models": []}),
            ("/refresh_all_workers", None, None),
        ],
    )
    async def test_client_routes_are_200_with_an_error_header(
        self, api: Api, path: str, body: object, answer: object
    ) -> None:
        response = await api.post(path, body)
        assert (response.status_code, response.json()) == (200, answer)
        assert response.headers["x-controller-error"] == "store_unavailable"

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/remove_worker", {"worker_name": A}),
            ("/worker_get_status", None),
            (
                "/register_worker",
                {
                    "worker_name": A,
                    "check_heart_beat": True,
                    "worker_status": {"model_names": ["m"], "speed": 1, "queue_length": 0},
                },
            ),
        ],
    )
    async def test_worker_routes_are_503_and_say_nothing_about_the_registration(
        self, api: Api, path: str, body: object
    ) -> None:
        response = await api.post(path, body)
        assert response.status_code == 503
        assert response.json().keys() == {"error"}
        assert response.json()["error"]["code"] == "store_unavailable"

    async def test_heartbeat_is_503_and_not_json(self, api: Api) -> None:
        response = await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
        assert (response.status_code, response.headers["content-type"]) == (503, "text/plain; charset=utf-8")
        assert response.headers["x-controller-error"] == "store_unavailable"
        assert re.fullmatch("store_unavailable: [^\n]+\n", response.text)

    async def test_readiness_is_503_and_health_is_200(self, api: Api) -> None:
        ready = await api.http.get("/readyz")
        assert (ready.status_code, ready.json()["error"]["code"]) == (503, "store_unavailable")
        assert (await api.http.get("/healthz")).status_code == 200
        assert (await api.http.get("/test_connection")).text == '"success"'

    async def test_stream_is_one_error_frame(self, api: Api) -> None:
        assert await stream(api) == [{"text": SERVER_ERROR_MSG, "error_code": 50005}]

    async def test_outage_is_logged_once_and_each_request_is_counted(
        self, api: Api, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            await api.dispatch()
            await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
        assert len([record for record in caplog.records if "Redis is unavailable (" in record.getMessage()]) == 1
        text = api.metrics.render().decode()
        assert dispatches(text, "store_unavailable") == 3
        assert 'controller_heartbeats_total{outcome="store_unavailable"} 3.0' in text
        # The first request calls the store. All later attempts are background probes, not requests.
        assert re.search(r"controller_store_failures_total [1-3]\.0", text)


async def test_dispatch_returns_no_address_if_the_store_rejects_the_call(
    api: Api, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Another program wrote to our key. FastChat's API server would use the body of a 500 as an address."""
    await store.client.set(keys.cost_index(store.namespace, "m"), "foreign value")
    assert await api.dispatch() == ""
    await store.client.set(keys.workers(store.namespace), "foreign value")
    response = await api.http.get("/workers")
    assert (response.status_code, response.json()["error"]["code"]) == (500, "store_rejection")
    assert "Redis rejected a call" in caplog.text
    await store.client.delete(keys.cost_index(store.namespace, "m"), keys.workers(store.namespace))


async def test_application_sweeps_and_closes_its_connections(store: Store) -> None:
    metrics = Metrics()
    settings = Settings(sweep_interval=0.01)
    workers = WorkerClient(1.0, 1.0)
    registry = store.registry()
    app = Replica(settings, registry, workers, metrics).app()
    await registry.register(worker(A))
    await store.expire_heartbeat(A)
    messages: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    sent: list[str] = []

    async def send(message: Any) -> None:
        sent.append(message["type"])

    running = asyncio.ensure_future(app({"type": "lifespan", "state": {}}, messages.get, send))
    messages.put_nowait({"type": "lifespan.startup"})

    async def swept() -> bool:
        return not await store.client.exists(keys.worker(store.namespace, A))

    await wait_until(swept, "the worker is swept")
    messages.put_nowait({"type": "lifespan.shutdown"})
    await running
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert workers._session._kept.closed
    assert workers._session._fresh.closed


async def test_unexpected_error_is_500_without_details(
    api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fails(_: str) -> str:
        raise RuntimeError("inner secret")

    monkeypatch.setattr(api.replica.dispatcher, "dispatch", fails)
    response: httpx.Response = await api.post("/get_worker_address", {"model": "m"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "internal_error")
    assert "inner secret" not in response.text
    assert "RuntimeError: inner secret" in caplog.text
