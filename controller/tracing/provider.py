"""The tracing of one replica: it collects spans, and sends them in the background."""

import asyncio
import contextlib
import logging
import os
import threading
from typing import Any, Final

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.environment_variables import OTEL_EXPORTER_OTLP_PROTOCOL, OTEL_EXPORTER_OTLP_TRACES_PROTOCOL
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SimpleSpanProcessor, SpanExporter
from starlette.types import ASGIApp

from controller import __version__
from controller.dispatch.dispatcher import Dispatcher
from controller.domain.errors import SettingsError
from controller.security.access import Access
from controller.security.forward_paths import ForwardPaths
from controller.tracing.dispatcher import TracedDispatcher
from controller.tracing.exporter import ReportedExporter
from controller.tracing.logs import add_trace_ids
from controller.tracing.requests import TracedRequests
from controller.tracing.workers import TracedWorkerClient

_EXPORTER: Final = "OTEL_TRACES_EXPORTER"
_EXPORTERS: Final = ("otlp", "console", "none")
_LAST_EXPORT: Final = 2.0  # seconds, for the spans that have not been sent when the replica ends
_UNNAMED: Final = "unknown_service"


def check_environment() -> None:
    """Raise SettingsError if the variables of OpenTelemetry ask for something that is not supported."""
    if _exporter_name() not in _EXPORTERS:
        raise SettingsError(f"{_EXPORTER} must be one of {', '.join(_EXPORTERS)}, not {_exporter_name()}.")
    for name in (OTEL_EXPORTER_OTLP_TRACES_PROTOCOL, OTEL_EXPORTER_OTLP_PROTOCOL):
        if protocol := os.environ.get(name, "").strip():
            if protocol != "http/protobuf":
                raise SettingsError(
                    f"{name} is {protocol}, but the controller sends traces by http/protobuf only. Collectors accept "
                    "it on port 4318."
                )
            return


class Tracing:
    """The tracing of a replica. Call close() at the end.

    exporter: gets the spans at once, for tests. None chooses what the environment says.
    """

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self._provider = TracerProvider(resource=_resource(), shutdown_on_exit=False)
        if exporter is not None:
            self._provider.add_span_processor(SimpleSpanProcessor(exporter))
        elif _exporter_name() == "otlp":
            self._provider.add_span_processor(BatchSpanProcessor(ReportedExporter(OTLPSpanExporter())))
        elif _exporter_name() == "console":
            self._provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
        self._tracer = self._provider.get_tracer("controller", __version__)
        add_trace_ids(logging.getLogger("controller").handlers)

    def app(self, app: ASGIApp, access: Access, paths: ForwardPaths) -> ASGIApp:
        """Return an application that traces the requests of clients to `app`."""
        return TracedRequests(app, self._tracer, access, paths)

    def dispatcher(self, *arguments: Any) -> Dispatcher:
        """Return a dispatcher that traces its choices. It takes the arguments of Dispatcher."""
        return TracedDispatcher(self._tracer, *arguments)

    def worker_client(self, *arguments: Any) -> TracedWorkerClient:
        """Return a client that traces the forwarded requests. It takes the arguments of WorkerClient."""
        return TracedWorkerClient(self._tracer, *arguments)

    async def close(self) -> None:
        """Send the last spans, for 2 s at most."""
        loop, ended = asyncio.get_running_loop(), asyncio.Event()

        def shut_down() -> None:
            self._provider.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(ended.set)

        # A daemon: the process must not wait at its end for a collector that does not answer.
        threading.Thread(target=shut_down, daemon=True).start()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LAST_EXPORT):
                await ended.wait()


def _exporter_name() -> str:
    return os.environ.get(_EXPORTER, "").strip() or "otlp"


def _resource() -> Resource:
    """Return what the spans say about their service. OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES come first."""
    ours = {SERVICE_NAME: "controller-cluster", SERVICE_VERSION: __version__}
    theirs = dict(Resource.create().attributes)
    if str(theirs[SERVICE_NAME]).startswith(_UNNAMED):
        del theirs[SERVICE_NAME]
    return Resource({**ours, **theirs})
