"""The spans of a request to a worker: the whole exchange, and the wait for its first part."""

from collections.abc import Awaitable, Mapping
from math import inf
from typing import Any, Final
from urllib.parse import urlsplit

from opentelemetry import propagate, trace
from opentelemetry.semconv.attributes.error_attributes import ERROR_TYPE
from opentelemetry.semconv.attributes.http_attributes import HTTP_REQUEST_METHOD, HTTP_RESPONSE_STATUS_CODE
from opentelemetry.semconv.attributes.server_attributes import SERVER_ADDRESS, SERVER_PORT
from opentelemetry.semconv.attributes.url_attributes import URL_FULL
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer

from controller.upstream.client import NO_HEADERS, WorkerClient
from controller.upstream.response import ReadRules, WorkerResponse
from controller.upstream.session import Response

_BODY_SIZE: Final = "http.response.body.size"
_TRACE_CONTEXT: Final = ("traceparent", "tracestate")


class TracedWorkerClient(WorkerClient):
    """A client whose forwarded requests are spans. Workers get the context of the span, so that theirs follow it."""

    def __init__(self, tracer: Tracer, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._tracer = tracer

    async def post(self, name: str, path: str, body: bytes, headers: Mapping[str, str] = NO_HEADERS) -> WorkerResponse:
        """Call WorkerClient.post() in a span."""
        exchange = _Exchange(self._tracer, name, path)
        return await exchange.run(super().post(name, path, body, exchange.headers(headers)))

    async def post_to_engine(
        self,
        name: str,
        target: str,
        body: bytes,
        headers: Mapping[str, str],
        key: str = "",
        trial_limit: float = inf,
    ) -> WorkerResponse:
        """Call WorkerClient.post_to_engine() in a span, which has the path without the query."""
        exchange = _Exchange(self._tracer, name, target.partition("?")[0])
        return await exchange.run(
            super().post_to_engine(name, target, body, exchange.headers(headers), key, trial_limit)
        )

    def _opened(self, url: str, response: Response, rules: ReadRules) -> WorkerResponse:
        return _TracedResponse(url, response, rules, self._responses.discard)


class _Exchange:
    """The spans of a request to a worker."""

    def __init__(self, tracer: Tracer, name: str, path: str) -> None:
        worker = urlsplit(name)
        attributes: dict[str, Any] = {
            HTTP_REQUEST_METHOD: "POST",
            URL_FULL: name + path,
            SERVER_ADDRESS: worker.hostname or "",
            SERVER_PORT: worker.port or (443 if worker.scheme == "https" else 80),
        }
        self._span: Span = tracer.start_span("POST", kind=SpanKind.CLIENT, attributes=attributes)
        self._context = trace.set_span_in_context(self._span)
        self._wait = tracer.start_span("wait", self._context)
        self._waits = True
        self._size = 0
        self._ended = False

    def headers(self, headers: Mapping[str, str]) -> Mapping[str, str]:
        """Return headers with the trace context of this span instead of the client's."""
        ours: dict[str, str] = {}
        propagate.inject(ours, self._context)
        replaced = _TRACE_CONTEXT if "traceparent" in ours else ()
        return {**{name: value for name, value in headers.items() if name not in replaced}, **ours}

    async def run(self, request: Awaitable[WorkerResponse]) -> WorkerResponse:
        """Return the response to a request, which ends the spans when it is closed."""
        try:
            response = await request
        except BaseException as error:
            self.fail(error)
            self.end()
            raise
        self.begin(response.status)
        if isinstance(response, _TracedResponse):
            response.exchange = self
        return response

    def begin(self, status: int) -> None:
        """Record the status of the response, whose head has arrived."""
        self._span.set_attribute(HTTP_RESPONSE_STATUS_CODE, status)
        if status >= 400:
            self._span.set_attribute(ERROR_TYPE, str(status))
            self._span.set_status(Status(StatusCode.ERROR))

    def receive(self, size: int) -> None:
        """Record a part of the response's body."""
        self._size += size
        self._end_wait()

    def fail(self, error: BaseException) -> None:
        """Record an error, unless the request was cancelled, because its client has left."""
        if isinstance(error, Exception):
            self._span.set_attribute(ERROR_TYPE, type(error).__qualname__)
            self._span.set_status(Status(StatusCode.ERROR, str(error)))

    def end(self) -> None:
        """End the spans. Further calls do nothing."""
        if not self._ended:
            self._ended = True
            self._end_wait()
            self._span.set_attribute(_BODY_SIZE, self._size)
            self._span.end()

    def _end_wait(self) -> None:
        if self._waits:
            self._waits = False
            self._wait.end()


class _TracedResponse(WorkerResponse):
    exchange: _Exchange | None = None

    async def _receive(self) -> bytes:
        try:
            piece = await super()._receive()
        except BaseException as error:
            if self.exchange:
                self.exchange.fail(error)
            raise
        if self.exchange:
            self.exchange.receive(len(piece))
        return piece

    def close(self) -> None:
        super().close()
        if self.exchange:
            self.exchange.end()
