"""A real controller sends its spans to a collector, by OTLP over HTTP."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from ports import free_port

from tests.support.waiting import wait_until
from tests.support.workers import bad_worker, chunks
from tests.system.conftest import Serve

pytestmark = pytest.mark.system

TRACE = "ab" * 16
PARENT = {"traceparent": f"00-{TRACE}-{'cd' * 8}-01"}


class Collector:
    """An OTLP receiver. requests: the path and the headers of each request."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.exports: list[ExportTraceServiceRequest] = []

    def spans(self) -> dict[str, Span]:
        """Return the last span of each name. Names of client spans begin with `to worker: `."""
        return {
            span.name if span.kind != Span.SpanKind.SPAN_KIND_CLIENT else f"to worker: {span.name}": span
            for export in self.exports
            for resource in export.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        }

    def services(self) -> set[str]:
        return {
            attribute.value.string_value
            for export in self.exports
            for resource in export.resource_spans
            for attribute in resource.resource.attributes
            if attribute.key == "service.name"
        }


@contextmanager
def collector(port: int = 0) -> Iterator[tuple[Collector, str]]:
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            body = gzip.decompress(body) if self.headers["Content-Encoding"] == "gzip" else body
            found.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
            found.exports.append(ExportTraceServiceRequest.FromString(body))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield found, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.smoke
async def test_a_collector_gets_all_spans_of_a_request(serve: Serve) -> None:
    with collector() as (found, url):
        settings = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": url,
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret-of-the-collector",
            "OTEL_SERVICE_NAME": "front",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        controller = serve("--tracing", "--poll-interval", "0", **settings)
        async with bad_worker(worker_generate_stream=chunks(b"a\0")) as worker:
            controller.register(worker.address)
            async with httpx.AsyncClient() as http:
                url = f"{controller.url}/worker_generate_stream"
                response = await http.post(url, json={"model": "m"}, headers=PARENT)
            assert response.content == b"a\0"
            await wait_until(lambda: len(found.spans()) == 4, "the collector has the spans")
            [head] = worker.heads
        spans = found.spans()
        assert set(spans) == {"POST /worker_generate_stream", "choose", "to worker: POST", "wait"}
        assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
        assert spans["POST /worker_generate_stream"].parent_span_id.hex() == "cd" * 8
        assert f"traceparent: 00-{TRACE}-{spans['to worker: POST'].span_id.hex()}-01".encode() in head
        assert {path for path, _ in found.requests} == {"/v1/traces"}
        assert {headers["api-key"] for _, headers in found.requests} == {"secret-of-the-collector"}
        assert found.services() == {"front"}
        assert "secret-of-the-collector" not in controller.log


@pytest.mark.smoke
async def test_the_last_spans_are_sent_when_the_controller_ends(serve: Serve) -> None:
    with collector() as (found, url):
        controller = serve("--tracing", OTEL_EXPORTER_OTLP_ENDPOINT=url, OTEL_BSP_SCHEDULE_DELAY="3600000")
        controller.dispatch()
        assert found.exports == []
        assert controller.stop() == 0
        assert set(found.spans()) == {"POST /get_worker_address", "choose"}


async def test_an_unreachable_collector_is_logged_once_and_delays_nothing(serve: Serve, work_dir: Path) -> None:
    port = free_port()
    settings = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}", "OTEL_BSP_SCHEDULE_DELAY": "10"}
    controller = serve("--tracing", OTEL_EXPORTER_OTLP_TRACES_TIMEOUT="2", **settings)
    controller.dispatch()
    await wait_until(lambda: "Traces cannot be sent" in controller.log, "the failure is logged")
    for _ in range(20):
        controller.dispatch()
    with collector(port) as (found, _):

        def sent() -> bool:
            controller.dispatch()
            return bool(found.exports)

        await wait_until(sent, "spans are sent again")
        await wait_until(lambda: "Traces are sent again." in controller.log, "the recovery is logged")
    events = [json.loads(line) for line in controller.log.splitlines()]
    about_traces = [event for event in events if "race" in event["message"] or "opentelemetry" in event["logger"]]
    assert [event["logger"] for event in about_traces] == ["controller.tracing"] * 2
    assert str(port) in about_traces[0]["reason"]
    assert controller.stop() == 0
