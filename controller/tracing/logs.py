"""The ids of the current trace and span in the JSON events of the log."""

import logging
from collections.abc import Iterable

from opentelemetry import trace


def add_trace_ids(handlers: Iterable[logging.Handler]) -> None:
    """Add the ids to the events that these handlers write from now on."""
    for handler in handlers:
        if _add not in handler.filters:
            handler.addFilter(_add)


def _add(record: logging.LogRecord) -> bool:
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        record.trace_id = trace.format_trace_id(context.trace_id)
        record.span_id = trace.format_span_id(context.span_id)
    return True
