"""A cluster joins the controllers above it as one worker."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from controller.fleet import parents
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry
from controller.tasks import end
from tests.conftest import Open, Store
from tests.support.outage import Link
from tests.support.samples import A, B, worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, Behaviour, answers, bad_worker, chunks, hangs, sends_without_end

INTERVAL = 0.4
OWN = "http://lb:21001"


class Parent:
    """A controller that remembers what it is told."""

    def __init__(self) -> None:
        self.registrations: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.knows = False
        self.refuses = False
        self.address = ""

    async def register(self, living: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if self.refuses:
            return await answers(b"no", "500 Down")(living, writer, body)
        self.registrations.append(json.loads(body))
        self.knows = True
        return await answers(b"null")(living, writer, body)

    async def heartbeat(self, living: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if self.refuses:
            return await answers(b"no", "500 Down")(living, writer, body)
        self.heartbeats.append(json.loads(body))
        self.times.append(time.monotonic())
        return await answers(b'{"exist": %s}' % (b"true" if self.knows else b"false"))(living, writer, body)


@pytest.fixture
async def parent() -> AsyncIterator[Parent]:
    told = Parent()
    async with bad_worker(register_worker=told.register, receive_heart_beat=told.heartbeat) as living:
        told.address = living.address
        yield told


@pytest.fixture
async def joining(
    replica: Open, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Replica]]:
    """Opens replicas that take snapshots and join.

    A replica that sends a heartbeat may take its time: a slow machine must not make another one take over. Each test
    that needs a replica to be late says so with `hold`.
    """
    chores: list[asyncio.Task[None]] = []

    def start(*, hold: float = 1_000.0, **settings: object) -> Replica:
        monkeypatch.setattr("controller.fleet.parents._LOCK_TTL", hold)
        told = {"parent": parent.address, "advertise": OWN, "parent_interval": INTERVAL, "snapshot_interval": 0.05}
        controller = replica(**{**told, **settings})
        chores.extend(asyncio.create_task(chore()) for chore in (controller.snapshots.run, controller.parents.run))
        return controller

    yield start
    await end(chores)


async def test_replicas_join_as_one_worker_and_send_one_heartbeat(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A, "m", speed=2, queue_length=3, capacity=4))
    await registry.register(worker(B, "n", "m", speed=1, queue_length=1, capacity=8))
    for _ in range(3):
        joining()
    await wait_until(lambda: parent.registrations, "it is registered")
    assert parent.registrations[0] == {
        "worker_name": OWN,
        "check_heart_beat": True,
        "worker_status": {"model_names": ["m", "n"], "speed": 3, "queue_length": 4, "capacity": 12},
        "multimodal": False,
    }
    await wait_until(lambda: len(parent.heartbeats) >= 3, "heartbeats are sent")
    assert parent.heartbeats[-1] == {"worker_name": OWN, "queue_length": 4}
    assert len(parent.registrations) == 1
    gaps = [later - earlier for earlier, later in zip(parent.times, parent.times[1:], strict=False)]
    assert min(gaps) > 0.6 * INTERVAL, "each is sent by one of them, and is then not due for a while"


async def test_what_changes_is_told_at_once(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A, "m"))
    joining(parent_interval=3_600.0)  # long after the end of this test
    await wait_until(lambda: parent.registrations, "it is registered")
    await registry.register(worker(B, "n"))
    await wait_until(lambda: len(parent.registrations) == 2, "it is told of another model")
    assert parent.registrations[1]["worker_status"]["model_names"] == ["m", "n"]
    await registry.remove(B)
    await wait_until(lambda: len(parent.registrations) == 3, "and that it is gone")
    assert parent.heartbeats == []


async def test_a_replica_that_has_seen_less_takes_nothing_back(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A, "m"))
    joining(snapshot_interval=3_600.0)
    await wait_until(lambda: parent.heartbeats, "it has joined")
    joining()
    await registry.register(worker(B, "n"))
    await wait_until(lambda: len(parent.registrations) == 2, "the other tells of another model")
    heard = len(parent.heartbeats)
    await wait_until(lambda: len(parent.heartbeats) > heard + 6, "either has sent heartbeats")
    told = [registration["worker_status"]["model_names"] for registration in parent.registrations]
    assert told == [["m"], ["m", "n"]]


async def test_a_parent_that_has_forgotten_is_told_again(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A))
    joining()
    await wait_until(lambda: parent.heartbeats, "heartbeats are sent")
    parent.knows = False
    await wait_until(lambda: parent.knows, "it is registered again")
    assert len(parent.registrations) == 2


async def test_a_parent_that_is_away_is_tried_again(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, caplog: pytest.LogCaptureFixture
) -> None:
    await registry.register(worker(A))
    parent.refuses = True
    joining()
    await wait_until(lambda: "failed; retrying every" in caplog.text, "it is told")
    parent.refuses = False
    await wait_until(lambda: parent.registrations, "it is registered")
    assert caplog.text.count("failed; retrying every") == 1


async def test_another_takes_over_who_died_with_the_duty(
    store: Store, joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A))
    taken, _ = await registry.acquire_job(parent.address, "dead", 60.0)
    assert taken
    assert await registry.acquire_job(parent.address, "living", 60.0) == (False, "")
    await store.client.pexpire(keys.job(store.namespace, parent.address), 50)  # as if the rest of its time had passed
    joining()
    await wait_until(lambda: parent.registrations, "it is registered")
    assert not await registry.complete_job(parent.address, "dead", 1.0, "late", 1.0), "its time is over"


async def test_a_duty_is_held_for_so_short_that_another_is_in_time(
    store: Store, joining: Callable[..., Replica], registry: Registry
) -> None:
    """From one heartbeat to the next it is an interval at most, though the replica that should send it dies."""
    hold, interval = parents._LOCK_TTL, 1_000.0
    assert parents._DUE + hold + parents._CHECK <= 1.0 - parents._RETRY
    await registry.register(worker(A))
    async with bad_worker(register_worker=hangs) as hanging:
        joining(hold=hold, parent=hanging.address, parent_interval=interval)
        await wait_until(lambda: hanging.requests, "it is being registered")
        assert 0 < await store.client.pttl(keys.job(store.namespace, hanging.address)) <= 1000 * hold * interval


async def test_what_is_told_too_late_is_told_once_more(
    store: Store,
    joining: Callable[..., Replica],
    registry: Registry,
    parent: Parent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As by a replica that was stopped in the middle of it: another has told of other models meanwhile."""
    await registry.register(worker(A, "m"))
    stopped, goes_on = asyncio.Event(), asyncio.Event()
    late = joining()
    register = late.parents._client.register

    async def stops(*arguments: Any) -> None:
        stopped.set()
        await goes_on.wait()
        await register(*arguments)

    monkeypatch.setattr(late.parents._client, "register", stops)
    await stopped.wait()
    await registry.register(worker(B, "n"))
    await store.client.delete(keys.job(store.namespace, parent.address))  # as if its time had passed
    joining()
    await wait_until(lambda: parent.registrations, "another tells of them")
    goes_on.set()
    await wait_until(lambda: len(parent.registrations) > 1, "it goes on")
    assert [told["worker_status"]["model_names"] for told in parent.registrations] == [["m", "n"], ["m"]]
    await wait_until(lambda: len(parent.registrations) > 2, "it is told once more")
    assert parent.registrations[2]["worker_status"]["model_names"] == ["m", "n"]


async def test_a_replica_that_has_just_started_does_not_tell_of_nobody(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.register(worker(A, "m"))
    joining()
    await wait_until(lambda: parent.registrations, "it is registered")
    check, answers_now = Registry.check, asyncio.Event()

    async def slowly(self: Registry) -> None:
        await answers_now.wait()
        await check(self)

    monkeypatch.setattr(Registry, "check", slowly)
    started = joining()
    looks: list[bool] = []
    take = started.parents._acquire

    async def counting(parent: str, urgent: bool) -> tuple[bool, str]:
        looks.append(False)
        taken = await take(parent, urgent)
        looks.append(True)
        return taken

    monkeypatch.setattr(started.parents, "_acquire", counting)
    await wait_until(lambda: looks, "it would like to tell what it knows")
    assert not started.snapshots.workers()
    answers_now.set()
    await wait_until(lambda: looks.count(True) > 3, "it has looked again and again")
    assert len(parent.registrations) == 1


async def test_without_the_store_each_tells_what_it_knows(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, link: Link
) -> None:
    await registry.register(worker(A, queue_length=2))
    joining()
    await wait_until(lambda: parent.heartbeats, "heartbeats are sent")
    with link.broken():
        before = len(parent.heartbeats)
        await wait_until(lambda: len(parent.heartbeats) > before + 2, "and go on")
    assert parent.heartbeats[-1]["queue_length"] == 2


def paths(parent: BadWorker) -> list[str]:
    return [path for path, _ in parent.requests]


@pytest.mark.parametrize(
    ("answer", "taken"),
    [
        (chunks(b'{"exist"', b": true}", pause=0.005), True),
        (sends_without_end, False),
        (answers(b'{"exist": true, "x": ' + b"[" * 60_000), False),
        (answers(b"<html>"), False),
        (answers(b"store_unavailable: Redis is away.\n", "503 Service Unavailable"), False),
        (answers(b'{"exist": 1}'), False),
        (answers(b"", "307 Moved", "Location: /"), False),
        (hangs, False),
    ],
)
async def test_whatever_a_parent_answers_to_a_heartbeat(
    joining: Callable[..., Replica],
    registry: Registry,
    parent: Parent,
    answer: Behaviour,
    taken: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is taken for what it is, and holds up no other parent."""
    async with bad_worker(register_worker=answers(b"null"), receive_heart_beat=answer) as odd:
        await registry.register(worker(A))
        hold = {"hold": parents._LOCK_TTL} if answer is hangs else {}
        joining(parent=f"{parent.address},{odd.address}", **hold)
        await wait_until(lambda: paths(odd).count("receive_heart_beat") > 2, "it is told again and again")
        heard = len(parent.heartbeats)
        await wait_until(lambda: len(parent.heartbeats) > heard, "the other is, too")
        assert ("failed; retrying every" in caplog.text) != taken
    assert "because of a bug" not in caplog.text


async def test_several_parents(joining: Callable[..., Replica], registry: Registry, parent: Parent) -> None:
    other = Parent()
    async with bad_worker(register_worker=other.register, receive_heart_beat=other.heartbeat) as living:
        await registry.register(worker(A))
        joining(parent=f"{parent.address},{living.address}")
        for told in (parent, other):
            await wait_until(lambda told=told: told.heartbeats, "each is told")


async def test_a_duty_is_one_s_until_it_is_due_again(registry: Registry) -> None:
    assert await registry.acquire_job("x", "a", 60.0) == (True, "")
    assert await registry.acquire_job("x", "b", 60.0, urgent=True) == (False, ""), "it is under way"
    assert await registry.acquire_job("x", "a", 60.0) == (True, ""), "the same replica repeats a call without an answer"
    assert await registry.complete_job("x", "a", 60.0, "told", 60.0)
    assert not await registry.complete_job("x", "a", 60.0, "twice", 60.0)
    assert await registry.acquire_job("x", "b", 60.0) == (False, "told"), "it is not due"
    assert await registry.acquire_job("x", "b", 60.0, urgent=True) == (True, "told")
    assert await registry.complete_job("x", "b", 0.001, "", 60.0), "it could not be done"

    async def due() -> bool:
        return (await registry.acquire_job("x", "c", 60.0))[0]

    await wait_until(due, "it is due again")
    assert await registry.acquire_job("x", "a", 1.0) == (False, ""), "what was told before is not so any more"
