"""The lines of the log: text and JSON, in which nothing can be forged, and which show no secret."""

import io
import json
import logging
import logging.config
import sys
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from controller.domain import request_ids
from controller.logs import JsonFormatter, TextFormatter, logging_config

HOSTILE = 'm\n2026-01-01 00:00:00,000 ERROR [1] controller: forged\r\x1b[2J\u2028\x00"{}\u202e é %s'
SECRETS = [
    ("redis://user:p@ss@host:6379/0", "p@ss"),
    ("redis+sentinel://:sesame@a:1,b:2/main", "sesame"),
    ("cannot connect to http://web:0123456789abcdef@10.0.0.1:21001.", "0123456789abcdef"),
    ("Authorization: Bearer 0123456789abcdef", "0123456789abcdef"),
    ("{'authorization': 'Basic d2ViOjAxMjM0NTY3ODlhYmNkZWY='}", "d2ViOjAxMjM0NTY3ODlhYmNkZWY="),
    ("bearer  0123456789abcdef", "0123456789abcdef"),
]


class Log:
    """A logger whose lines a formatter writes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        self.stream = io.StringIO()
        self.logger = logging.getLogger(f"controller.{type(formatter).__name__}")
        self.handler = logging.StreamHandler(self.stream)
        self.handler.setFormatter(formatter)
        self.logger.addHandler(self.handler)
        self.logger.setLevel("INFO")
        self.logger.propagate = False

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def event(self) -> dict[str, Any]:
        """The only event. Fails if there is another line."""
        [line] = self.text.splitlines()
        event: dict[str, Any] = json.loads(line)
        return event


def opened(formatter: logging.Formatter) -> Iterator[Log]:
    log = Log(formatter)
    yield log
    log.logger.removeHandler(log.handler)


@pytest.fixture
def text() -> Iterator[Log]:
    yield from opened(TextFormatter())


@pytest.fixture
def json_log() -> Iterator[Log]:
    yield from opened(JsonFormatter())


@pytest.fixture
def request_id() -> Iterator[str]:
    before = request_ids.current.set("req-1")
    yield "req-1"
    request_ids.current.reset(before)


def fail(logger: logging.Logger, text: str) -> None:
    try:
        raise ValueError(text)  # noqa: TRY301 - it is logged here
    except ValueError:
        logger.exception("It failed.")


def test_text_is_for_people(text: Log, request_id: str) -> None:
    text.logger.info("Worker %(worker)s drains.", {"worker": "http://w:1"})
    time, _, rest = text.text.partition(" INFO ")
    assert datetime.fromisoformat(time.replace(",", "."))
    process = logging.makeLogRecord({}).process
    assert rest == f"[{process}] controller.TextFormatter request_id={request_id}: Worker http://w:1 drains.\n"


def test_a_json_event_has_the_named_values_as_fields(json_log: Log, request_id: str) -> None:
    json_log.logger.warning(
        "Worker %(worker)s of %(models)s: %(reason)s",
        {
            "worker": "http://w:1",
            "models": ["a", "é"],
            "reason": OSError("gone"),
            "age": 1.5,
            "token": "",
            "level": "x",
        },
    )
    event = json_log.event
    time = event.pop("time")
    assert time.endswith("Z")
    assert len(time) == len("2026-01-01T00:00:00.000Z")
    assert datetime.fromisoformat(time).utcoffset() == timedelta(0)
    assert event == {
        "level": "warning",
        "logger": "controller.JsonFormatter",
        "message": "Worker http://w:1 of ['a', 'é']: gone",
        "process": logging.makeLogRecord({}).process,
        "request_id": request_id,
        "worker": "http://w:1",
        "models": ["a", "é"],
        "reason": "gone",
        "age": 1.5,
    }
    assert list(json.loads(json_log.text))[:4] == ["time", "level", "logger", "message"]
    assert json_log.text.isascii()


def test_a_json_event_has_its_exception_in_parts(json_log: Log) -> None:
    fail(json_log.logger, "first\nsecond")
    exception = json_log.event["exception"]
    assert (exception["type"], exception["message"]) == ("ValueError", "first\nsecond")
    assert exception["stack"].startswith("Traceback")
    assert "raise ValueError(text)" in exception["stack"]
    assert "request_id" not in json_log.event


def test_text_from_the_network_forges_no_line(text: Log, json_log: Log) -> None:
    for log in (text, json_log):
        log.logger.info("Model %(model)s", {"model": HOSTILE})
        log.logger.info("Model %s", HOSTILE)
        log.logger.info(HOSTILE.replace("%", ""))
        fail(log.logger, HOSTILE)
    events = [line for line in text.text.split("\n") if line and not line.startswith("    ")]
    assert len(events) == 4
    assert all(" controller.TextFormatter: " in line for line in events)
    assert all(line.isprintable() for line in text.text.split("\n"))
    assert r"m\n2026-01-01 00:00:00,000 ERROR [1] controller: forged\r\x1b[2J\u2028\x00" in events[0]
    parsed = [json.loads(line) for line in json_log.text.splitlines()]
    assert [event["message"] for event in parsed[:2]] == [f"Model {HOSTILE}"] * 2
    assert parsed[0]["model"] == parsed[3]["exception"]["message"] == HOSTILE


def test_text_that_is_no_unicode_is_escaped() -> None:
    record = logging.makeLogRecord({"msg": "caf\udce9"})  # as Python decodes a path or an argument
    assert TextFormatter().format(record).endswith(r": caf\udce9")
    assert r'"message": "caf\udce9"' in JsonFormatter().format(record)


@pytest.mark.parametrize(("shown", "secret"), SECRETS)
def test_secrets_are_not_shown(text: Log, json_log: Log, shown: str, secret: str) -> None:
    for log in (text, json_log):
        log.logger.info(shown)
        log.logger.info("%s", shown)
        log.logger.info("%(url)s %(urls)s", {"url": shown, "urls": [shown], "reason": ValueError(shown)})
        fail(log.logger, shown)
        assert secret not in log.text
        assert log.text.count("***") >= 5


def test_addresses_without_a_secret_are_shown(text: Log) -> None:
    text.logger.info("http://10.0.0.1:21001/a@b and redis://host/0, for a bearer token or basic things")
    assert "http://10.0.0.1:21001/a@b and redis://host/0, for a bearer token or basic things" in text.text


def test_long_text_is_searched_for_secrets_in_linear_time(text: Log) -> None:
    for part in ("://", "a", "://a", "bearer ", "@", "a://a@"):
        text.logger.info(part * (1_000_000 // len(part)))
    assert len(text.text) > 1_000_000


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "log_format", "formatter"),
    [
        (Terminal(), "auto", "TextFormatter"),
        (io.StringIO(), "auto", "JsonFormatter"),
        (None, "auto", "JsonFormatter"),
        (Terminal(), "json", "JsonFormatter"),
        (io.StringIO(), "text", "TextFormatter"),
    ],
)
def test_a_terminal_gets_text_and_everything_else_gets_json(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None, log_format: str, formatter: str
) -> None:
    monkeypatch.setattr(sys, "stderr", stream)
    assert logging_config("info", log_format)["formatters"]["line"] == {"()": f"controller.logs.{formatter}"}
