"""The stream of events in Redis."""

import json
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from controller.domain.errors import EventsUnavailable
from controller.domain.events import Event
from controller.store.runner import ScriptRunner


class NewEvent(NamedTuple):
    """An event that a replica has noticed."""

    kind: str
    fields: Mapping[str, str]


class EventPage(NamedTuple):
    """Some events, oldest first.

    last_id: the id of the last event in the stream.
    has_gap: others may be missing before them, because the stream does not have the event any more after which the
        caller asked.
    """

    events: Sequence[Event]
    last_id: str
    has_gap: bool


class EventStore(ScriptRunner):
    """The events of one namespace."""

    async def record_events(self, events: Sequence[NewEvent]) -> None:
        """Append events to the stream. The first run of a repeated call counts."""
        await self._run_each("record_events", self._repeatable, events, lambda event: (_encode(event),))

    async def list_events(self, after: str, count: int) -> EventPage:
        """Return at most `count` events that follow the event with the id `after`. With "", return the last ones.

        Raises EventsUnavailable if Redis cannot read the stream.
        """
        listed, last_id, has_gap, error = await self._run("list_events", after, count)
        if error:
            raise EventsUnavailable(
                f"Redis cannot read the stream of events: {error}. All else works. The user of Redis needs the rights "
                "to XADD, XRANGE and XREVRANGE, see deploy/redis/users.acl."
            )
        events = [_event(event_id, fields) for event_id, fields in zip(listed[::2], listed[1::2], strict=True)]
        return EventPage(events, last_id, bool(has_gap))


def _encode(event: NewEvent) -> str:
    return json.dumps([event.kind, *(text for item in event.fields.items() for text in item)])


def _event(event_id: str, fields: Sequence[str]) -> Event:
    by_name = dict(zip(fields[::2], fields[1::2], strict=True))
    return Event(event_id, by_name.pop("kind", ""), by_name)
