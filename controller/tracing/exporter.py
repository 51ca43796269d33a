"""Reports once when spans cannot be sent, and once when they can be sent again."""

import logging
from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

logger = logging.getLogger("controller.tracing")


class ReportedExporter(SpanExporter):
    """Exports spans through another exporter, and logs when that begins or ceases to fail.

    OpenTelemetry itself logs each attempt. These lines are hidden. Our line quotes the first one, which often has the
    cause, and the last one.
    """

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._failing = False
        self._messages = _Messages()
        theirs = logging.getLogger("opentelemetry.exporter")
        theirs.handlers, theirs.propagate = [self._messages], False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export spans. Spans that cannot be exported are dropped."""
        self._messages.texts.clear()
        result = self._exporter.export(spans)
        failing = result is not SpanExportResult.SUCCESS
        if failing and not self._failing:
            texts = self._messages.texts or ["unknown reason"]
            reason = " ".join(dict.fromkeys([texts[-1], texts[0]]))
            logger.warning("Traces cannot be sent, and are dropped until they can be: %(reason)s", {"reason": reason})
        elif self._failing and not failing:
            logger.info("Traces are sent again.")
        self._failing = failing
        return result

    def shutdown(self) -> None:
        """Stop exporting."""
        self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Export what the other exporter holds back."""
        return self._exporter.force_flush(timeout_millis)


class _Messages(logging.Handler):
    """Keeps the messages of one export."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
