"""Logging to standard error: lines of text for people, or one JSON object for each event.

The standard library does it: structlog would be a second way of logging beside that of uvicorn and the other packages.
python-json-logger would need a formatter of our own, too, for the request id, for exceptions and against secrets.

Both formats write an event as one line, whatever its text contains, because names come from the network. The exception
is the traceback in the text format, whose lines are indented. Passwords and tokens in URLs and in `Authorization`
headers are replaced, in case an error of another package contains them.

A call such as `logger.info("Worker %(worker)s drains.", {"worker": name})` gives its values names. They become fields
of the JSON object.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

from controller.domain import request_ids

_SECRETS: Final = (
    (re.compile(r"(?<=://)[^/\s]*@"), "***@"),
    (re.compile(r"(?i)\b(bearer|basic)( +)[\w.~+/=-]{12,}", re.ASCII), r"\1\2***"),
)


def logging_config(level: str, log_format: str = "auto") -> dict[str, Any]:
    """Return the configuration of logging for the controller, uvicorn, and the warnings of all other packages.

    log_format: "text", "json" or "auto", which is text if standard error is a terminal, and JSON otherwise.
    """
    if log_format == "auto":
        log_format = "text" if sys.stderr is not None and sys.stderr.isatty() else "json"
    formatter = TextFormatter if log_format == "text" else JsonFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"()": f"{formatter.__module__}.{formatter.__qualname__}"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": level.upper(), "propagate": False}
            for name in ("controller", "uvicorn")
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
    }


class TextFormatter(logging.Formatter):
    """Writes time, level, process, logger, the id of the request if there is one, and the message."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s [%(process)d] %(name)s%(request)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of an event, followed by the indented lines of its traceback."""
        request_id = without_secrets(request_ids.current.get())
        values = {
            **vars(record),
            "name": _logger(record),
            "asctime": self.formatTime(record),
            "message": escaped(_message(record)),
            "request": f" request_id={request_id}" if request_id else "",
        }
        lines = [str(self._fmt) % values]
        if record.exc_info:
            # Every line is indented, so that no line of an error's text can look like an event.
            stack = without_secrets(self.formatException(record.exc_info))
            lines += [f"    {escaped(line)}" for line in stack.splitlines()]
        return "\n".join(lines)


class JsonFormatter(logging.Formatter):
    """Writes a JSON object in ASCII, on one line. Fields that are empty are left out."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the object of an event."""
        event = {
            "time": _rfc3339(record.created),
            "level": record.levelname.lower(),
            "logger": _logger(record),
            "message": _message(record),
            "process": record.process,
            "request_id": without_secrets(request_ids.current.get()),
            # Set by controller/tracing/logs.py.
            "trace_id": getattr(record, "trace_id", ""),
            "span_id": getattr(record, "span_id", ""),
        }
        if isinstance(record.args, Mapping):
            event = {**{str(name): _clean(value) for name, value in record.args.items()}, **event}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            event["exception"] = {
                "type": type(error).__qualname__,
                "message": without_secrets(str(error)),
                "stack": without_secrets(self.formatException(record.exc_info)),
            }
        # The fields of all events come first.
        order = ("time", "level", "logger", "message", *event)
        return json.dumps({name: event[name] for name in order if event[name] not in ("", None)})


def escaped(text: str) -> str:
    """Return text on one line. Characters that are not printable, such as line breaks, become escapes like \\n."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def without_secrets(text: str) -> str:
    """Return text without the passwords in URLs and the secrets of `Authorization` headers."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def _message(record: logging.LogRecord) -> str:
    return without_secrets(record.getMessage().rstrip("\n"))


def _logger(record: logging.LogRecord) -> str:
    """Return the name of the logger. uvicorn's main logger is called uvicorn.error, whatever the level."""
    return "uvicorn" if record.name == "uvicorn.error" else record.name


def _clean(value: object) -> object:
    """Return a value for JSON."""
    if isinstance(value, list | tuple):
        return [_clean(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float) else without_secrets(str(value))


def _rfc3339(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
