"""Keeps the requests of schemathesis on this machine, and lets each of them end."""

from typing import Any
from urllib.parse import urlsplit

import schemathesis

from controller.domain.errors import InvalidInput
from controller.domain.worker import worker_name
from tests.support import network

_ABSENT = "http://127.9.9.9:1"  # nothing listens there


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Change a generated request.

    A worker on another machine becomes one on this machine. An invalid name in a positive case becomes a valid one. A
    forwarded request gets a prompt and an input. GET `/events` does not follow.
    """
    if isinstance(case.body, dict) and isinstance(name := case.body.get("worker_name"), str):
        try:
            if not network.is_here(urlsplit(worker_name(name)).hostname or ""):
                case.body["worker_name"] = _ABSENT
        except InvalidInput:
            # The schema cannot express all rules about hosts and ports.
            if case.meta.generation.mode.is_positive:
                case.body["worker_name"] = _ABSENT
    if isinstance(case.body, dict) and "Forwarded requests" in case.operation.tags:
        # Without these, the worker fails, as FastChat's does.
        case.body.setdefault("prompt", "hello")
        case.body.setdefault("input", ["hello"])
    if isinstance(case.query, dict) and str(case.query.get("follow")).lower() == "true":
        case.query["follow"] = "false"
