"""Spans are sent to the collector. If it cannot be reached, nothing else suffers."""

import logging
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from controller import __version__
from controller.domain.errors import SettingsError
from controller.tracing import Tracing, check_environment
from controller.tracing.exporter import ReportedExporter


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = ("TRACES_EXPORTER", "EXPORTER_OTLP_PROTOCOL", "EXPORTER_OTLP_TRACES_PROTOCOL", "SERVICE_NAME")
    for name in (*names, "RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    exporters = logging.getLogger("opentelemetry.exporter")
    handlers, propagate = exporters.handlers, exporters.propagate
    yield
    exporters.handlers, exporters.propagate = handlers, propagate


@pytest.mark.parametrize(
    ("variable", "value", "complaint"),
    [
        ("OTEL_TRACES_EXPORTER", "zipkin", "OTEL_TRACES_EXPORTER must be one of otlp, console, none, not zipkin."),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, but"),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is http/json, but"),
        ("OTEL_TRACES_EXPORTER", "", ""),
        ("OTEL_TRACES_EXPORTER", "none", ""),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", ""),
    ],
)
def test_the_environment_is_checked(monkeypatch: pytest.MonkeyPatch, variable: str, value: str, complaint: str) -> None:
    monkeypatch.setenv(variable, value)
    if not complaint:
        check_environment()
        return
    with pytest.raises(SettingsError, match=complaint):
        check_environment()


def test_the_protocol_of_traces_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    check_environment()


def resource(tracing: Tracing) -> dict[str, object]:
    return dict(tracing._provider.resource.attributes)


async def test_spans_name_the_service_and_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    tracing = Tracing(InMemorySpanExporter())
    assert resource(tracing)["service.name"] == "controller-cluster"
    assert resource(tracing)["service.version"] == __version__
    assert resource(tracing)["service.instance.id"]
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=one,deployment.environment.name=test")
    named = resource(Tracing(InMemorySpanExporter()))
    assert (named["service.name"], named["service.instance.id"]) == ("ours", "one")
    assert named["deployment.environment.name"] == "test"


class Collector(SpanExporter):
    """An exporter that fails while `fails` is true, as OpenTelemetry's does."""

    fails = True

    def export(self, _: object) -> SpanExportResult:
        if not self.fails:
            return SpanExportResult.SUCCESS
        logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        for attempt in range(3):
            logger.warning("Transient error %s", "refused" if not attempt else "again")
        logger.error("Failed to export spans batch.")
        return SpanExportResult.FAILURE


def test_a_collector_that_fails_is_logged_once_and_its_recovery_too(caplog: pytest.LogCaptureFixture) -> None:
    collector = Collector()
    exporter = ReportedExporter(collector)
    with caplog.at_level(logging.INFO):
        for fails in (True, True, True, False, False, True):
            collector.fails = fails
            exporter.export([])
    reason = "Failed to export spans batch. Transient error refused"
    failure = f"Traces cannot be sent, and are dropped until they can be: {reason}"
    assert caplog.messages == [failure, "Traces are sent again.", failure]


async def test_closing_does_not_wait_for_a_collector_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()
    monkeypatch.setattr(TracerProvider, "shutdown", lambda _: released.wait(60))
    await Tracing(InMemorySpanExporter()).close()
    assert not released.is_set()
    released.set()


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "opentelemetry":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
sys.argv[0] = "controller"
from controller.__main__ import main
main()
"""


def test_without_the_extra_one_sentence_says_what_to_install() -> None:
    command = [sys.executable, "-c", WITHOUT, "serve", "--port", "0", "--tracing"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: --tracing needs OpenTelemetry, and the module opentelemetry is not installed. Run: "
        "pip install 'controller-cluster[otel]'\n"
    )


IMPORTED = """
import sys
from controller.metrics import Metrics
import controller.server.run
# redis-py imports other parts of OpenTelemetry if it is installed.
rooms = ("controller.tracing", "opentelemetry.sdk.trace", "opentelemetry.exporter")
print(sorted(name for name in sys.modules if name.startswith(rooms)))
"""


def test_nothing_of_it_is_imported_unless_it_is_switched_on() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
