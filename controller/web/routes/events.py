"""The route that lists events and follows them."""

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Final

from starlette.responses import Response

from controller.domain.errors import InvalidInput
from controller.domain.events import Event, event_id
from controller.fleet.events import Events
from controller.web.asgi.endpoint import Answer
from controller.web.routes.streams import EVENT_STREAM, FollowResponse, wants_events
from controller.web.services import Services

_MAX_LIMIT: Final = 1_000
_DEFAULT_LIMIT: Final = 100
_KEEPALIVE: Final = 15  # seconds without events, after which an empty line keeps proxies from closing the connection


async def events(
    services: Services, query: Mapping[str, str], headers: Mapping[str, str], is_admitted: Callable[[], bool]
) -> Answer | Response:
    """List events of the cluster, oldest first: those later than the event `after`, or else the last ones.

    `limit` is the number of events, 100 by default and 1,000 at most. Each line of the response is a JSON object. With
    `follow=true` the response continues with new events as they happen, and with `after` it begins with all that
    follow. It ends when the replica ends, or when the token is revoked.

    With the header `Accept: text/event-stream` they are server-sent events, which always continue. A browser's
    EventSource resumes after a lost connection with the header `Last-Event-ID`, at any replica. The kind `gap` means
    that events are missing there, because the cluster keeps only about the last 10,000, or because Redis lost its data.
    """
    sent = {"Last-Event-ID": headers.get("last-event-id"), "after": query.get("after")}
    after = next(iter([event_id(text, name) for name, text in sent.items() if text]), "")
    limit = _limit(query.get("limit", ""))
    is_stream = wants_events(headers)
    follow = query.get("follow", "false")
    if follow not in ("true", "false"):
        raise InvalidInput("follow", "must be true or false")
    if not is_stream and follow == "false":
        listed = await services.events.list(after, limit)
        return Answer("".join(_json_lines(listed)).encode(), content_type=b"application/x-ndjson")
    pages = services.events.follow(after, limit)
    first = await anext(pages)  # raises StoreError before the response begins
    media_type = EVENT_STREAM if is_stream else "application/x-ndjson"
    return FollowResponse(_pieces(first, pages, is_stream, is_admitted), pages, media_type)


async def _pieces(
    first: Events, pages: AsyncIterator[Events], is_stream: bool, is_admitted: Callable[[], bool]
) -> AsyncIterator[str]:
    encode = _server_sent if is_stream else _json_lines
    if is_stream:
        yield "retry: 2000\n\n"
    yield "".join(encode(first))
    quiet = 0
    async for page in pages:
        if not is_admitted():
            return
        text = "".join(encode(page))
        quiet = 0 if text else quiet + 1
        if text:
            yield text
        elif quiet % _KEEPALIVE == 0:
            yield ":\n\n" if is_stream else "\n"


def _limit(text: str) -> int:
    if not text:
        return _DEFAULT_LIMIT
    if not (len(text) <= 4 and text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_LIMIT):
        raise InvalidInput("limit", f"must be a whole number from 1 to {_MAX_LIMIT}")
    return int(text)


def _json_lines(events: Events) -> list[str]:
    gap = [json.dumps({"kind": "gap"}) + "\n"] if events.has_gap else []
    return gap + [_encode(event) + "\n" for event in events.events]


def _server_sent(events: Events) -> list[str]:
    gap = ['data: {"kind": "gap"}\n\n'] if events.has_gap else []
    return gap + [f"id: {event.id}\ndata: {_encode(event)}\n\n" for event in events.events]


def _encode(event: Event) -> str:
    """Return an event as one line of JSON."""
    return json.dumps({"id": event.id, "time": event.time, "kind": event.kind, **_fields(event)})


def _fields(event: Event) -> dict[str, object]:
    """Return the fields of an event, with lists and numbers as such."""
    fields: dict[str, object] = dict(event.fields)
    if "models" in event.fields:
        fields["models"] = json.loads(event.fields["models"])
    if "count" in event.fields:
        fields["count"] = int(event.fields["count"])
    if "seconds" in event.fields:
        fields["seconds"] = float(event.fields["seconds"])
    return fields
