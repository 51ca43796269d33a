"""The audit log."""

import json
import logging

import pytest

from controller.logs import JsonFormatter, TextFormatter
from controller.security import audit as module
from controller.security.audit import Audit, AuditEvent, log_event

REFUSED = AuditEvent("drain_worker", "refused", "", "203.0.113.5", detail="unauthorized.")


def test_events_are_one_line_even_with_hostile_names(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "controller.audit"):
        log_event(AuditEvent("remove_worker", "done", "ops", "10.0.0.1", "http://w:1", "on request"))
        log_event(AuditEvent("x\r\n2026 INFO forged", "refused", "", "", "a\x1b[2Jb\u2028c"))
    assert caplog.messages == [
        "done: remove_worker http://w:1 by token ops from 10.0.0.1: on request",
        "refused: x\r\n2026 INFO forged a\x1b[2Jb\u2028c by no token from unknown",
    ]
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    lines = [TextFormatter().format(record).partition("controller.audit: ")[2] for record in caplog.records]
    assert lines == [
        "done: remove_worker http://w:1 by token ops from 10.0.0.1: on request",
        r"refused: x\r\n2026 INFO forged a\x1b[2Jb\u2028c by no token from unknown",
    ]
    done, refused = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (done["action"], done["token"], done["address"]) == ("remove_worker", "ops", "10.0.0.1")
    assert (refused["action"], refused["target"]) == ("x\r\n2026 INFO forged", "a\x1b[2Jb\u2028c")


def test_refusals_of_one_address_are_limited_and_counted() -> None:
    now = 0.0
    events: list[AuditEvent] = []
    audit = Audit([events.append], clock=lambda: now)
    for _ in range(1_000):
        audit.refuse(REFUSED)
    audit.refuse(REFUSED._replace(address="203.0.113.6"))
    assert [event.address for event in events] == ["203.0.113.5", "203.0.113.6"]
    now = 61.0
    audit.refuse(REFUSED)
    assert events[-1].detail == "unauthorized. 999 more requests were refused since the last line."
    audit.refuse(REFUSED)
    assert len(events) == 3


def test_the_memory_for_addresses_and_workers_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_ADDRESSES", 3)
    monkeypatch.setattr(module, "_MAX_REGISTRANTS", 3)
    audit = Audit([])
    for i in range(10):
        audit.refuse(REFUSED._replace(address=f"203.0.113.{i}"))
        audit.registered(f"http://w{i}:1", "t", "10.0.0.1")
    assert len(audit._refused) == len(audit._registrants) == 3


def test_registrations_are_recorded_when_their_token_changes() -> None:
    events: list[AuditEvent] = []
    audit = Audit([events.append])
    for token in ("old", "old", "new", "new", "old"):
        audit.registered("http://w:1", token, "10.0.0.1")
    assert [event.token for event in events] == ["old", "new", "old"]


def test_refusals_of_an_ipv6_network_are_those_of_one_caller() -> None:
    events: list[AuditEvent] = []
    audit = Audit([events.append], clock=lambda: 0.0)
    for i in range(50):
        audit.refuse(REFUSED._replace(address=f"2001:db8:0:1::{i:x}"))
    audit.refuse(REFUSED._replace(address="2001:db8:0:2::1"))
    assert [event.address for event in events] == ["2001:db8:0:1::0", "2001:db8:0:2::1"]


def test_refusals_of_many_networks_are_limited_in_each_minute() -> None:
    now = 0.0
    events: list[AuditEvent] = []
    audit = Audit([events.append], clock=lambda: now)
    for i in range(3_000):
        audit.refuse(REFUSED._replace(address=f"10.0.{i // 250}.{i % 250}"))
    assert len(events) == 100
    now = 60.0
    audit.refuse(REFUSED._replace(address="10.0.11.249"))
    assert events[100].detail == "unauthorized. 1 more requests were refused since the last line."
