"""The audit log: what operators did, who was refused, and which tokens registered workers."""

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from controller.security.networks import network_of

logger = logging.getLogger("controller.audit")

_QUIET: Final = 60.0  # seconds between two events about refused requests from one address
_MAX_ADDRESSES: Final = 1_000  # that are remembered
_MAX_LINES: Final = 100  # about refused requests in a minute
_MAX_REGISTRANTS: Final = 20_000  # workers whose last token is remembered


class AuditEvent(NamedTuple):
    """One event of the audit log.

    action: the path of the route, without the slash: "drain_worker".
    outcome: "done", "refused" or "failed".
    token: name of the caller's token. "" if it had none.
    address: IP address of the caller. "" if it is unknown.
    target: what the action was about, such as a worker. "" if it was about nothing in particular.
    detail: more about it, for people.
    """

    action: str
    outcome: str
    token: str
    address: str
    target: str = ""
    detail: str = ""


Sink = Callable[[AuditEvent], None]


def who(token: str, address: str) -> str:
    """Describe a caller by the name of its token and its address."""
    return f"{f'token {token}' if token else 'no token'} from {address or 'unknown'}"


def log_event(event: AuditEvent) -> None:
    """Write an event to the log, on one line."""
    text = " ".join(part for part in ("%(outcome)s: %(action)s", event.target and "%(target)s", "by %(by)s") if part)
    text += ": %(detail)s" if event.detail else ""
    level = logging.INFO if event.outcome == "done" else logging.WARNING
    logger.log(level, text, {**event._asdict(), "by": who(event.token, event.address)})


class Audit:
    """Passes events to its sinks. Refused requests are limited to one event per address and minute.

    sinks: functions that get each event. They must not raise.
    """

    def __init__(self, sinks: Sequence[Sink] = (log_event,), clock: Callable[[], float] = time.monotonic) -> None:
        self._sinks = sinks
        self._clock = clock
        self._refused: OrderedDict[str, tuple[float, int]] = OrderedDict()  # last event and requests since, by network
        self._minute, self._lines = float("-inf"), 0  # when the current minute began, and events of refusals in it
        self._registrants: OrderedDict[str, str] = OrderedDict()  # the name of the last token, by worker

    def add_sink(self, sink: Sink) -> None:
        """Pass further events to `sink`, too. It must not raise."""
        self._sinks = (*self._sinks, sink)

    def record(self, event: AuditEvent) -> None:
        """Record an event."""
        for sink in self._sinks:
            sink(event)

    def refuse(self, event: AuditEvent) -> None:
        """Record that a request was refused, unless its network had such an event, or many had, in the last minute."""
        now = self._clock()
        caller = network_of(event.address)
        last, skipped = self._refused.pop(caller, (float("-inf"), 0))
        if now >= self._minute + _QUIET:
            self._minute, self._lines = now, 0
        if now < last + _QUIET or self._lines >= _MAX_LINES:
            self._refused[caller] = last, skipped + 1
        else:
            if skipped:
                more = f"{skipped} more requests were refused since the last line."
                event = event._replace(detail=f"{event.detail} {more}")
            self._refused[caller] = now, 0
            self._lines += 1
            self.record(event)
        if len(self._refused) > _MAX_ADDRESSES:
            self._refused.popitem(last=False)

    def registered(self, worker: str, token: str, address: str) -> None:
        """Record a registration, if the worker's last one was with another token, or is not known."""
        if self._registrants.pop(worker, None) != token:
            self.record(AuditEvent("register_worker", "done", token, address, worker))
        self._registrants[worker] = token
        if len(self._registrants) > _MAX_REGISTRANTS:
            self._registrants.popitem(last=False)
