"""Reads the stream of events for any number of clients, and records what this replica notices."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Final, NamedTuple

from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import EventsUnavailable, StoreError
from controller.domain.events import Event
from controller.fleet.subscribers import Subscribers, Unread
from controller.security.audit import AuditEvent, who
from controller.store.registry import EventPage, NewEvent, Registry

logger = logging.getLogger("controller")

_INTERVAL: Final = 1.0  # seconds between two reads, while there are subscribers
_PAGE: Final = 500
_MAX_SUBSCRIBERS: Final = 256
_MAX_UNREAD: Final = 20  # pages of a subscriber that reads slowly
_BATCH: Final = 50  # events in a call to Redis, which it handles as a whole
_MAX_WAITING: Final = 1_000  # events that are not in Redis yet
_MAX_TEXT: Final = 1_000  # characters of a field
# The scripts of these actions record events themselves.
_RECORDED_BY_SCRIPTS: Final = {"drain_worker", "resume_worker", "remove_worker", "register_worker"}


class Events(NamedTuple):
    """Some events, oldest first. Both parts may be empty: then there was no event for a second.

    has_gap: others are missing before them.
    """

    events: list[Event]
    has_gap: bool = False


class _Read(NamedTuple):
    """The events that a read for all subscribers has found after the event `after`. last_id: as in EventPage."""

    after: str
    events: Sequence[Event]
    has_gap: bool
    last_id: str


class EventFeed:
    """The events of a cluster, on one replica.

    However many subscribers there are, the replica reads Redis once a second for all of them. Each subscriber reads the
    events from before its subscription itself.
    """

    def __init__(self, breaker: CircuitBreaker, registry: Registry) -> None:
        self._breaker = breaker
        self._registry = registry
        self._subscribers = Subscribers[_Read](_MAX_UNREAD)
        self._position = ""  # id of the last event that the subscribers have got. "" without subscribers
        self._waiting: deque[NewEvent] = deque(maxlen=_MAX_WAITING)
        self._wake = asyncio.Event()

    def record(self, kind: str, **fields: str) -> None:
        """Record an event. It is in Redis a moment later. During an outage, the last 1,000 events are kept."""
        self._waiting.append(NewEvent(kind, {name: text[:_MAX_TEXT] for name, text in fields.items() if text}))
        self._wake.set()

    def record_audit(self, event: AuditEvent) -> None:
        """Record an event of the audit log, unless a script has recorded it."""
        if event.outcome == "done" and event.action in _RECORDED_BY_SCRIPTS:
            return
        kind = "refused" if event.outcome == "refused" else "action"
        by = who(event.token, event.address)
        outcome = "" if event.outcome in ("done", "refused") else event.outcome
        self.record(kind, action=event.action, target=event.target, by=by, outcome=outcome, detail=event.detail)

    async def run_recording(self) -> None:
        """Store the events of this replica until cancelled."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await self._record_waiting()
            except StoreError:  # the circuit breaker has logged it
                await asyncio.sleep(_INTERVAL)
                self._wake.set()

    async def run_reading(self) -> None:
        """Read events for the subscribers until cancelled."""
        while True:
            await asyncio.sleep(_INTERVAL)
            try:
                await self._read()
            except (StoreError, EventsUnavailable):  # the circuit breaker has logged an outage
                # so that the connections stay open
                self._subscribers.publish(_Read(self._position, (), False, self._position))

    async def list(self, after: str, count: int) -> Events:
        """Return at most `count` events that follow the event `after`. With "", return the last ones.

        Raises StoreError.
        """
        page = await self._page(after, count)
        return Events(list(page.events), page.has_gap)

    async def _page(self, after: str, count: int = _PAGE) -> EventPage:
        return await self._breaker.call(self._registry.list_events, after, count)

    async def follow(self, after: str, count: int) -> AsyncGenerator[Events, None]:
        """Yield the events that follow `after`, or the last `count` ones for "", and then new ones as they happen.

        Yields at least once a second. Ends when the replica is about to end. Raises TooManyFollowers, StoreError or
        EventsUnavailable before the first events, and waits for Redis afterwards.
        """
        with self._subscription() as subscriber:
            if not self._position:
                last_id = (await self._page("", 1)).last_id
                # Another subscriber may have set it meanwhile, and has perhaps not read what follows it.
                self._position = self._position or last_id
            first = await self.list(after, _PAGE if after else count)
            if after and len(first.events) == _PAGE:
                subscriber.is_behind = True
            yield first
            last = first.events[-1].id if first.events else after or self._position
            while not self._subscribers.stopped:
                if subscriber.is_behind:
                    subscriber.is_behind = False
                    try:
                        page = await self._page(last)
                    except (StoreError, EventsUnavailable):
                        subscriber.is_behind = True
                    else:
                        subscriber.is_behind = subscriber.is_behind or len(page.events) == _PAGE
                        last = page.events[-1].id if page.events else page.last_id if page.has_gap else last
                        yield Events(list(page.events), page.has_gap)
                        continue
                next_page = await subscriber.get()
                if next_page is None:
                    return
                if subscriber.is_behind:  # this page may follow others that were dropped
                    yield Events([])
                    continue
                is_gap = next_page.has_gap and not _is_after(last, next_page.after)
                new = [event for event in next_page.events if is_gap or _is_after(event.id, last)]
                last = new[-1].id if new else next_page.last_id if is_gap else last
                yield Events(new, is_gap)

    @contextlib.contextmanager
    def _subscription(self) -> Iterator[Unread[_Read]]:
        refusal = f"{_MAX_SUBSCRIBERS} clients follow the events of this replica already. Try another one, or later."
        try:
            with self._subscribers.join(_MAX_SUBSCRIBERS, refusal) as subscriber:
                yield subscriber
        finally:
            if not self._subscribers:
                self._position = ""

    @property
    def followers(self) -> int:
        """The number of subscribers."""
        return len(self._subscribers)

    def stop(self) -> None:
        """End all subscriptions. The clients subscribe at another replica."""
        self._subscribers.stop()

    async def close(self) -> None:
        """Record the last events."""
        self.stop()
        with contextlib.suppress(StoreError):
            await self._record_waiting()

    async def _record_waiting(self) -> None:
        while self._waiting:
            events = [self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting)))]
            try:
                await self._breaker.call(self._registry.record_events, events)
            except BaseException:
                room = _MAX_WAITING - len(self._waiting)
                self._waiting.extendleft(reversed(events[-room:] if room else []))
                raise

    async def _read(self) -> None:
        is_full = True
        while is_full and self._position:
            after = self._position
            page = await self._page(after)
            is_full = len(page.events) == _PAGE
            if self._position == after:  # otherwise the last subscriber has left meanwhile
                self._position = page.events[-1].id if page.events else page.last_id if page.has_gap else after
                self._subscribers.publish(_Read(after, page.events, page.has_gap, page.last_id))


def _is_after(one: str, other: str) -> bool:
    return not other or _parts(one) > _parts(other)


def _parts(event_id: str) -> tuple[int, int]:
    milliseconds, _, number = event_id.partition("-")
    return int(milliseconds), int(number)
