"""The in-memory exporter gets the spans of requests."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from controller.logs import JsonFormatter
from controller.tracing import Tracing
from controller.tracing.logs import add_trace_ids
from tests.conftest import Store
from tests.support.samples import A
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, chunks, hangs
from tests.web.conftest import Api, open_api

TRACE = "ab" * 16
PARENT = {"traceparent": f"00-{TRACE}-{'cd' * 8}-01", "tracestate": "vendor=1"}
DEAD = "http://127.0.0.1:9"


class Traced:
    """A replica whose spans are kept."""

    def __init__(self, api: Api, exporter: InMemorySpanExporter) -> None:
        self.api = api
        self._exporter = exporter

    @property
    def spans(self) -> list[ReadableSpan]:
        """The spans in the order of their beginnings."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: (span.start_time or 0, span.name != "POST"))

    @property
    def names(self) -> list[str]:
        return [span.name for span in self.spans]

    def tree(self) -> dict[str, list[str]]:
        """The names of the children of each span that has some. Spans from elsewhere are called "client"."""
        names = {span.context.span_id: span.name for span in self.spans}
        tree: dict[str, list[str]] = {}
        for span in self.spans:
            if span.parent:
                tree.setdefault(names.get(span.parent.span_id, "client"), []).append(span.name)
        return tree

    def span(self, name: str, kind: SpanKind = SpanKind.INTERNAL) -> ReadableSpan:
        [found] = [span for span in self.spans if span.name == name and span.kind is kind]
        return found


@pytest.fixture
async def traced(store: Store, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Traced]:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_on")
    exporter = InMemorySpanExporter()
    async with open_api(store.registry(), Tracing(exporter)) as api:
        yield Traced(api, exporter)


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def headers(worker: BadWorker) -> list[dict[str, str]]:
    """Return the headers of the requests that a worker has got."""
    heads = [head.decode().split("\r\n")[1:-2] for head in worker.heads]
    return [dict(line.lower().split(": ", 1) for line in head) for head in heads]


async def test_a_route_with_a_parameter_is_traced_under_the_path_of_the_route(traced: Traced) -> None:
    assert (await traced.api.http.get("/v1/models/none/such")).status_code == 404
    span = traced.span("GET /v1/models/{model:path}", SpanKind.SERVER)
    assert attributes(span)["http.route"] == "/v1/models/{model:path}"
    assert attributes(span)["url.path"] == "/v1/models/none/such"
    await traced.api.http.get("/page/main.js")
    await traced.api.http.post("/page/main.js")
    assert not [each for each in traced.spans if "page" in each.name]


async def test_a_stream_has_spans_for_choice_exchange_and_wait(traced: Traced) -> None:
    async with bad_worker(worker_generate_stream=chunks(b"a\0", b"b\0")) as worker:
        await traced.api.register(worker.address)
        response = await traced.api.http.post(
            "/worker_generate_stream", json={"model": "m"}, headers={**PARENT, "X-Request-Id": "req-1"}
        )
        assert response.content == b"a\0b\0"
        [sent] = headers(worker)
    assert traced.tree() == {
        "client": ["POST /worker_generate_stream"],
        "POST /worker_generate_stream": ["choose", "POST"],
        "POST": ["wait"],
    }
    assert {f"{span.context.trace_id:032x}" for span in traced.spans} == {TRACE}
    request = traced.span("POST /worker_generate_stream", SpanKind.SERVER)
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/worker_generate_stream",
        "url.path": "/worker_generate_stream",
        "url.scheme": "http",
        "client.address": "127.0.0.1",
        "http.response.status_code": 200,
        "controller.request_id": "req-1",
    }
    assert attributes(traced.span("choose")) == {"gen_ai.request.model": "m", "controller.worker": worker.address}
    upstream = traced.span("POST", SpanKind.CLIENT)
    host, _, port = worker.address.removeprefix("http://").partition(":")
    assert attributes(upstream) == {
        "http.request.method": "POST",
        "url.full": f"{worker.address}/worker_generate_stream",
        "server.address": host,
        "server.port": int(port),
        "http.response.status_code": 200,
        "http.response.body.size": 4,
    }
    assert sent["traceparent"] == f"00-{TRACE}-{upstream.context.span_id:016x}-01", "the worker's span follows ours"
    assert sent["tracestate"] == "vendor=1"
    wait = traced.span("wait")
    assert upstream.start_time <= wait.start_time <= wait.end_time <= upstream.end_time  # type: ignore[operator]
    assert upstream.end_time <= request.end_time  # type: ignore[operator]
    assert all(span.status.status_code is StatusCode.UNSET for span in traced.spans)


async def test_each_worker_that_is_tried_has_a_span(traced: Traced) -> None:
    async with bad_worker(worker_generate=answers(b"{}")) as healthy:
        await traced.api.register(DEAD)
        await traced.api.register(healthy.address, queue_length=5)
        await traced.api.post("/worker_generate", {"model": "m"})
    tried = [span for span in traced.spans if span.kind is SpanKind.CLIENT]
    assert {attributes(span)["url.full"] for span in tried} == {
        f"{DEAD}/worker_generate",
        f"{healthy.address}/worker_generate",
    }
    [failed] = [span for span in tried if span.status.status_code is StatusCode.ERROR]
    assert attributes(failed)["error.type"] == "WorkerUnreachable"
    assert DEAD in str(failed.status.description)
    assert traced.names.count("wait") == 2


async def test_a_divided_trace_state_is_passed_on_as_a_whole(traced: Traced) -> None:
    state = [("traceparent", PARENT["traceparent"]), ("tracestate", "a=1"), ("tracestate", "b=2")]
    async with bad_worker(worker_generate=answers(b"{}")) as worker:
        await traced.api.register(worker.address)
        await traced.api.http.post("/worker_generate", json={"model": "m"}, headers=state)
        [sent] = headers(worker)
    assert sent["tracestate"] == "a=1,b=2"
    assert {f"{span.context.trace_id:032x}" for span in traced.spans} == {TRACE}


async def test_requests_without_a_trace_begin_one(traced: Traced) -> None:
    await traced.api.register(A)
    repeated = [("traceparent", PARENT["traceparent"])] * 2
    for given in ({}, {"traceparent": "nonsense", "tracestate": "a=1"}, repeated):
        await traced.api.http.post("/get_worker_address", json={"model": "m"}, headers=given)
    traces = [span.context.trace_id for span in traced.spans if span.kind is SpanKind.SERVER]
    assert len(set(traces)) == 3
    assert traced.tree() == {"POST /get_worker_address": ["choose"] * 3}
    assert all(attributes(span)["controller.worker"] == A for span in traced.spans if span.name == "choose")


@pytest.mark.parametrize("path", ["/v1/rerank", "/unknown/path"])
async def test_names_of_spans_come_from_lists(traced: Traced, path: str) -> None:
    async with bad_worker(rerank=answers(b"{}")) as worker:
        await traced.api.register(worker.address)
        await traced.api.post(path, {"model": "m"})
    request = next(span for span in traced.spans if span.kind is SpanKind.SERVER)
    assert request.name == ("POST /v1/rerank" if path == "/v1/rerank" else "POST")
    assert attributes(request)["url.path"] == path


async def test_errors_are_marked(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: object) -> str:
        raise RuntimeError("a bug")

    assert (await traced.api.post("/v1/rerank", {"model": "m"})).status_code == 404
    monkeypatch.setattr(traced.api.replica.dispatcher, "list_models", fails)
    assert (await traced.api.post("/list_models", {})).status_code == 500
    missing, broken = (span for span in traced.spans if span.kind is SpanKind.SERVER)
    assert missing.status.status_code is StatusCode.UNSET, "a 4xx is the client's error"
    assert broken.status.status_code is StatusCode.ERROR
    assert attributes(broken)["error.type"] == "500"


async def test_a_broken_response_and_an_error_status_are_marked(traced: Traced) -> None:
    async with bad_worker(
        worker_generate_stream=chunks(b"a\0", end=False), rerank=answers(b"no", "429 Too Many Requests")
    ) as worker:
        await traced.api.register(worker.address)
        await traced.api.post("/worker_generate_stream", {"model": "m"})
        await traced.api.post("/v1/rerank", {"model": "m"})
    broken, refused = (span for span in traced.spans if span.kind is SpanKind.CLIENT)
    assert broken.status.status_code is StatusCode.ERROR
    assert attributes(broken)["http.response.body.size"] == 2
    assert attributes(refused)["error.type"] == "429"
    assert traced.names.count("wait") == 2


async def test_spans_of_a_client_that_leaves_end(traced: Traced) -> None:
    async with bad_worker(worker_generate_stream=hangs) as worker:
        await traced.api.register(worker.address)
        request = asyncio.create_task(traced.api.post("/worker_generate_stream", {"model": "m"}))
        await wait_until(lambda: worker.requests, "the worker has the request")
        request.cancel()
        await wait_until(lambda: "POST /worker_generate_stream" in traced.names, "the request has ended")
        await wait_until(lambda: len(traced.names) == 4, "all spans have ended")
    assert all(span.status.status_code is StatusCode.UNSET for span in traced.spans)


async def test_other_requests_are_not_traced(traced: Traced) -> None:
    await traced.api.register(A)
    await traced.api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    for path in ("/healthz", "/readyz", "/metrics", "/workers", "/absent"):
        await traced.api.http.get(path)
    assert traced.names == []


async def test_a_trace_that_is_not_sampled_is_passed_on(traced: Traced) -> None:
    given = {"traceparent": f"00-{TRACE}-{'cd' * 8}-00", "tracestate": "vendor=1"}
    async with bad_worker(worker_generate=answers(b"{}")) as worker:
        await traced.api.register(worker.address)
        await traced.api.http.post("/worker_generate", json={"model": "m"}, headers=given)
        [sent] = headers(worker)
    assert traced.names == []
    version, trace, span, flags = sent["traceparent"].split("-")
    assert (version, trace, flags, sent["tracestate"]) == ("00", TRACE, "00", "vendor=1")
    assert int(span, 16)


@pytest.fixture
def events() -> Iterator[list[dict[str, Any]]]:
    found: list[dict[str, Any]] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(json.loads(JsonFormatter().format(record)))

    handler = Handler()
    add_trace_ids([handler])
    logging.getLogger("controller").addHandler(handler)
    yield found
    logging.getLogger("controller").removeHandler(handler)


async def test_events_of_the_log_have_the_ids_of_the_trace(traced: Traced, events: list[dict[str, Any]]) -> None:
    await traced.api.register(DEAD)
    await traced.api.http.post("/worker_generate", json={"model": "m"}, headers={**PARENT, "X-Request-Id": "req-1"})
    [event] = [event for event in events if "its client gets an error" in event["message"]]
    request = traced.span("POST /worker_generate", SpanKind.SERVER)
    assert (event["trace_id"], event["span_id"]) == (TRACE, f"{request.context.span_id:016x}")
    assert event["request_id"] == "req-1"
