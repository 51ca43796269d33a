"""GET /events: what happened, in the order in which Redis recorded it, for any number of clients."""

import asyncio
import json
from typing import Any
from unittest.mock import AsyncMock

import pytest

from controller.domain.errors import StoreUnavailable
from controller.domain.events import FIRST, KINDS
from controller.fleet.events import EventFeed, Events
from controller.store import keys
from controller.store.registry import NewEvent, Registry
from tests.conftest import Store
from tests.support.samples import A, B
from tests.support.waiting import wait_until
from tests.web.conftest import Api

STREAM = {"accept": "text/event-stream"}


async def listed(api: Api, **query: Any) -> list[dict[str, Any]]:
    response = await api.http.get("/events", params=query)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/x-ndjson")
    return [json.loads(line) for line in response.text.splitlines()]


def story(events: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Return the kind of each event and its subject."""
    return [(event["kind"], event.get("worker") or ",".join(event.get("models", ()))) for event in events]


async def test_events_of_a_worker(api: Api) -> None:
    await api.register(A, "m", "n")
    await api.register(A, "m")
    await api.post("/report_failure", {"worker_name": A})
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 0})
    await api.post("/drain_worker", {"worker_name": A, "reason": "new driver"})
    await api.post("/drain_worker", {"worker_name": A})
    await api.post("/resume_worker", {"worker_name": A})
    await api.post("/remove_worker", {"worker_name": A, "reason": "sold"})
    events = await listed(api)
    assert story(events) == [
        ("store_created", ""),
        ("models_appeared", "m,n"),
        ("worker_registered", A),
        ("models_vanished", "n"),
        ("worker_changed", A),
        ("worker_failing", A),
        ("worker_recovered", A),
        ("models_vanished", "m"),
        ("worker_draining", A),
        ("models_appeared", "m"),
        ("worker_resumed", A),
        ("models_vanished", "m"),
        ("worker_removed", A),
    ]
    assert {event["kind"] for event in events} <= set(KINDS)
    [draining] = [event for event in events if event["kind"] == "worker_draining"]
    assert (draining["reason"], draining["by"]) == ("new driver", "no token from 127.0.0.1")
    assert events[-1]["reason"] == "sold"


async def test_an_expired_worker_is_one_event(api: Api, store: Store) -> None:
    await api.register(A)
    await store.client.delete(keys.heartbeat(store.namespace, A))
    assert await api.dispatch() == ""
    await api.registry.sweep(0.001)
    assert story(await listed(api))[-2:] == [("models_vanished", "m"), ("worker_expired", A)]


async def test_dispatches_and_heartbeats_are_no_events(api: Api) -> None:
    await api.register(A)
    before = await listed(api)
    await api.dispatch()
    await api.post("/receive_heart_beat", {"worker_name": A, "queue_length": 1})
    assert await listed(api) == before


async def test_events_after_another_one(api: Api) -> None:
    for name in (A, B):
        await api.register(name)
    events = await listed(api)
    assert await listed(api, after=events[0]["id"]) == events[1:]
    assert await listed(api, after=FIRST) == events
    assert await listed(api, after=FIRST, limit=1) == events[:1]
    assert await listed(api, limit=1) == events[-1:]
    assert await listed(api, after=events[-1]["id"]) == []


@pytest.mark.parametrize("recorded_by", ["script", "replica"])
async def test_the_oldest_of_many_events_are_removed(api: Api, store: Store, recorded_by: str) -> None:
    name = keys.events(store.namespace)
    async with store.client.pipeline() as commands:
        for _ in range(11_000):
            commands.xadd(name, {"kind": "store_recovered", "reason": "a"})
        await commands.execute()
    if recorded_by == "script":
        await api.register(A)
    else:
        await api.registry.record_events([NewEvent("store_recovered", {"reason": "a"})])
    assert 10_000 <= await store.client.xlen(name) <= 10_200, "Redis removes whole blocks of entries"


async def test_a_gap_is_reported(api: Api, store: Store) -> None:
    await api.register(A)
    events = await listed(api)
    await store.client.xdel(keys.events(store.namespace), events[0]["id"])
    assert await listed(api, after=events[0]["id"]) == [{"kind": "gap"}, *events[1:]]
    assert await listed(api, after="99999999999999-0") == [{"kind": "gap"}], "the clock of Redis was set back"


@pytest.mark.parametrize(
    "query",
    [
        *({"after": after} for after in ("x", "1", f"{2**64}-0")),
        *({"limit": limit} for limit in ("0", "1001", "²")),
        {"follow": "1"},
    ],
)
async def test_nonsense_gets_a_400(api: Api, query: dict[str, str]) -> None:
    response = await api.http.get("/events", params=query)
    assert (response.status_code, response.json()["error"]["code"]) == (400, "invalid_input")


async def test_a_reason_is_bounded(api: Api) -> None:
    await api.register(A)
    response = await api.post("/drain_worker", {"worker_name": A, "reason": "x" * 501})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith("reason: has 501 characters")


async def test_many_long_names_are_cut(api: Api) -> None:
    models = [f"{number:03}" + "x" * 500 for number in range(100)]
    await api.register(A, *models)
    for event in (await listed(api))[-2:]:
        assert (event["models"], event["count"]) == (models[:2], 100)


async def test_a_cluster_without_models_is_a_worker_too(api: Api) -> None:
    body = {
        "worker_name": A,
        "check_heart_beat": True,
        "worker_status": {"model_names": [], "speed": 0, "queue_length": 0},
    }
    await api.post("/register_worker", body)
    event = (await listed(api))[-1]
    assert (event["kind"], event["models"], event["count"]) == ("worker_registered", [], 0)


async def test_the_last_events_of_redis_are_lost(api: Api, store: Store) -> None:
    """After a failover. The events that the client has seen must not come again."""
    await api.register(A)
    events = await listed(api)
    await store.client.xdel(keys.events(store.namespace), events[-1]["id"])
    assert await listed(api, after=events[-1]["id"]) == [{"kind": "gap"}]


async def test_models_of_a_drained_worker_vanish_once(api: Api) -> None:
    await api.register(A)
    await api.post("/drain_worker", {"worker_name": A})
    await api.post("/remove_worker", {"worker_name": A})
    assert [kind for kind, _ in story(await listed(api))].count("models_vanished") == 1


async def test_events_of_an_outage_are_kept_in_order(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = api.replica.events
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "record_events", AsyncMock(side_effect=StoreUnavailable("away")))
        for number in range(1_100):
            feed.record("store_recovered", reason=str(number))
        with pytest.raises(StoreUnavailable):
            await feed._record_waiting()
        feed.record("store_recovered", reason="last")
    await wait_until(lambda: api.replica.breaker.reason is None, "Redis is used again")
    await api.replica.snapshots.take_now()
    await feed._record_waiting()
    events = await listed(api, after=FIRST, limit=1000)
    events += await listed(api, after=events[-1]["id"], limit=1000)
    reasons = [event["reason"] for event in events if event["kind"] == "store_recovered"]
    expected = [*(str(number) for number in range(100, 1_100)), "last", "away"]
    assert reasons == expected[-1_000:], "the oldest give way"


async def test_a_follower_that_is_behind_misses_nothing_in_an_outage(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = api.replica.events
    pages = feed.follow("", 100)
    found = list((await anext(pages)).events)
    for number in range(30):
        await api.registry.record_events([NewEvent("store_recovered", {"reason": str(number)})])
        await feed._read()
    with monkeypatch.context() as patch:
        patch.setattr(EventFeed, "_page", AsyncMock(side_effect=StoreUnavailable("away")))
        assert (await anext(pages)) == Events([])
    while len(found) < 30:
        found += (await anext(pages)).events
    assert [event.fields["reason"] for event in found[-30:]] == [str(number) for number in range(30)]
    await pages.aclose()


async def test_changes_by_registration(api: Api) -> None:
    await api.register(A, "m", "n")
    await api.register(A, "m", "n")
    await api.post("/report_failure", {"worker_name": A})
    await api.register(A, "m", "n")
    await api.register(A, "n", "m", "o")
    kinds = [kind for kind, subject in story(await listed(api)) if subject == A]
    assert kinds == ["worker_registered", "worker_failing", "worker_recovered", "worker_changed"]


async def test_hostile_names_stay_in_their_line(api: Api) -> None:
    await api.register(A, "a\u2028b", '"}\\', "<script>")
    [event] = [event for event in await listed(api) if event["kind"] == "worker_registered"]
    assert event["models"] == ["a\u2028b", '"}\\', "<script>"]


async def collect(feed: EventFeed, after: str, found: list[Any]) -> None:
    async for page in feed.follow(after, 100):
        found.append(page)


async def test_followers_get_each_event_once(api: Api) -> None:
    feed = api.replica.events
    reading = asyncio.create_task(feed.run_reading())
    await api.register(A)
    found: list[list[Events]] = [[], []]
    followers = [
        asyncio.create_task(collect(feed, after, pages)) for after, pages in zip(("", FIRST), found, strict=True)
    ]
    for name in (B, A, B):
        await api.register(name, name[-1])
        await asyncio.sleep(0)
    expected = [event["id"] for event in await listed(api)]
    for pages in found:
        await wait_until(lambda pages=pages: [e.id for page in pages for e in page.events] == expected, "all arrive")  # type: ignore[misc]
    feed.stop()
    await asyncio.gather(*followers)
    reading.cancel()


async def test_a_follower_that_reads_slowly_misses_nothing(api: Api) -> None:
    feed = api.replica.events
    await api.register(A)
    pages = feed.follow("", 100)
    first = await anext(pages)
    waiting = asyncio.ensure_future(anext(pages))
    await asyncio.sleep(0)
    for number in range(50):
        await api.registry.record_events([NewEvent("store_recovered", {"reason": str(number)})])
        await feed._read()
    found = [*first.events, *(await waiting).events]
    while len(found) < len(await listed(api)):
        found += (await anext(pages)).events
    assert [event.id for event in found] == [event["id"] for event in await listed(api)]
    await pages.aclose()


async def test_followers_are_limited(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.fleet.events._MAX_SUBSCRIBERS", 1)
    pages = api.replica.events.follow("", 1)
    await anext(pages)
    response = await api.http.get("/events", headers=STREAM)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "too_many_followers")
    assert (await api.http.get("/events")).status_code == 200, "lists are not limited"
    await pages.aclose()


@pytest.mark.parametrize(
    ("headers", "path", "name"),
    [({"last-event-id": "x"}, "/events", "Last-Event-ID"), ({}, "/events?after=x", "after")],
)
async def test_a_bad_position_is_named_as_it_was_sent(api: Api, headers: dict[str, str], path: str, name: str) -> None:
    response = await api.http.get(path, headers={**STREAM, **headers})
    assert response.status_code == 400
    assert response.json()["error"]["message"].startswith(f"{name}: must be the id of an event")


async def test_a_gap_is_an_ordinary_message(api: Api) -> None:
    """EventSource.onmessage gets it."""
    await api.register(A)
    api.replica.events.stop()
    response = await api.http.get("/events", headers={**STREAM, "last-event-id": "99999999999999-0"})
    assert 'data: {"kind": "gap"}\n\n' in response.text


async def test_server_sent_events(api: Api) -> None:
    await api.register(A)
    api.replica.events.stop()  # ends the response after the first events
    response = await api.http.get("/events", headers=STREAM)
    assert response.headers["content-type"].startswith("text/event-stream")
    retry, *blocks = response.text.removesuffix("\n\n").split("\n\n")
    assert retry == "retry: 2000"
    events = await listed(api)
    assert [dict(line.split(": ", 1) for line in block.split("\n"))["id"] for block in blocks] == [
        event["id"] for event in events
    ]
    resumed = await api.http.get("/events", headers={**STREAM, "last-event-id": events[0]["id"]})
    assert resumed.text == "retry: 2000\n\n" + "".join(f"{block}\n\n" for block in blocks[1:])
