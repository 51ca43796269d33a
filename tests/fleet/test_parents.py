"""A cluster joins the controllers above it as one worker."""

import asyncio
import json
import logging
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
from tests.support.waiting import wait_for_each, wait_until
from tests.support.workers import BadWorker, Behaviour, answers, bad_worker, chunks, hangs, sends_without_end

INTERVAL = 0.4
OWN = "http://lb:21001"


class Parent:
    """A controller that records registrations and heartbeats.

    knows: True if the cluster is registered, so that heartbeats return `exist: true`.
    refuses: set it to True to answer every call with the status `refusal`.
    failed: number of refused calls.
    """

    def __init__(self) -> None:
        self.registrations: list[dict[str, Any]] = []
        self.heartbeats: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.knows = False
        self.refuses = False
        self.refusal = "500 Down"
        self.failed = 0
        self.address = ""

    async def register(self, server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if self.refuses:
            self.failed += 1
            return await answers(b"no", self.refusal)(server, writer, body)
        self.registrations.append(json.loads(body))
        self.knows = True
        return await answers(b"null")(server, writer, body)

    async def heartbeat(self, server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if self.refuses:
            self.failed += 1
            return await answers(b"no", self.refusal)(server, writer, body)
        self.heartbeats.append(json.loads(body))
        self.times.append(time.monotonic())
        return await answers(b'{"exist": %s}' % (b"true" if self.knows else b"false"))(server, writer, body)


@pytest.fixture
async def parent() -> AsyncIterator[Parent]:
    opened = Parent()
    async with bad_worker(register_worker=opened.register, receive_heart_beat=opened.heartbeat) as server:
        opened.address = server.address
        yield opened


@pytest.fixture
async def joining(
    replica: Open, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[..., Replica]]:
    """Return a function that opens replicas which take snapshots and send heartbeats to the parent.

    lock_ttl: as a share of the heartbeat interval. By default it is long, because on a slow machine another replica
    would otherwise take over. A test that needs an expired lock sets it.
    """
    tasks: list[asyncio.Task[None]] = []

    def start(*, lock_ttl: float = 1_000.0, **settings: object) -> Replica:
        monkeypatch.setattr("controller.fleet.parents._LOCK_TTL", lock_ttl)
        defaults = {"parent": parent.address, "advertise": OWN, "parent_interval": INTERVAL, "snapshot_interval": 0.05}
        controller = replica(**{**defaults, **settings})
        tasks.extend(asyncio.create_task(loop()) for loop in (controller.snapshots.run, controller.parents.run))
        return controller

    yield start
    await end(tasks)


async def test_replicas_register_as_one_worker_and_send_one_heartbeat_per_interval(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A, "m", speed=2, queue_length=3, capacity=4))
    await registry.register(worker(B, "n", "m", speed=1, queue_length=1, capacity=8))
    for _ in range(3):
        joining()
    await wait_until(lambda: parent.registrations, "the cluster is registered")
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
    assert min(gaps) > 0.6 * INTERVAL, "only one replica sends each heartbeat"


async def test_changed_set_of_models_is_sent_at_once(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A, "m"))
    joining(parent_interval=3_600.0)  # longer than this test
    await wait_until(lambda: parent.registrations, "the cluster is registered")
    await registry.register(worker(B, "n"))
    await wait_until(lambda: len(parent.registrations) == 2, "the new model is registered")
    assert parent.registrations[1]["worker_status"]["model_names"] == ["m", "n"]
    await registry.remove(B)
    await wait_until(lambda: len(parent.registrations) == 3, "the removal of the model is registered")
    assert parent.heartbeats == []


async def test_replica_with_an_older_snapshot_does_not_send_it(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A, "m"))
    joining(snapshot_interval=3_600.0)
    await wait_until(lambda: parent.heartbeats, "it sends heartbeats")
    joining()
    await registry.register(worker(B, "n"))
    await wait_until(lambda: len(parent.registrations) == 2, "the other replica registers the new model")
    before = len(parent.heartbeats)
    await wait_until(lambda: len(parent.heartbeats) > before + 6, "both replicas have sent heartbeats")
    models = [registration["worker_status"]["model_names"] for registration in parent.registrations]
    assert models == [["m"], ["m", "n"]]


async def test_cluster_registers_again_at_a_parent_that_lost_it(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A))
    joining()
    await wait_until(lambda: parent.heartbeats, "heartbeats are sent")
    parent.knows = False
    await wait_until(lambda: parent.knows, "the cluster is registered again")
    assert len(parent.registrations) == 2


async def test_failed_registration_is_retried_and_logged_once(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, caplog: pytest.LogCaptureFixture
) -> None:
    await registry.register(worker(A))
    parent.refuses = True
    replica = joining()
    assert replica.parents.states() == [(parent.address, None, False)]
    await wait_until(lambda: "failed; retrying every" in caplog.text, "the failure is logged")
    [(_, sent_at, is_failing)] = replica.parents.states()
    assert (time.time() - (sent_at or 0) < 60, is_failing) == (True, True)
    parent.refuses = False
    await wait_until(lambda: parent.registrations, "the cluster is registered")
    await wait_until(lambda: not replica.parents.states()[0].is_failing, "the parent accepts heartbeats")
    assert caplog.text.count("failed; retrying every") == 1


async def test_another_replica_takes_over_when_the_lock_of_a_dead_one_expires(
    store: Store, joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    await registry.register(worker(A))
    acquired, _ = await registry.acquire_job(parent.address, "dead", 60.0)
    assert acquired
    assert await registry.acquire_job(parent.address, "live", 60.0) == (False, "")
    await store.client.pexpire(keys.job(store.namespace, parent.address), 50)  # let its lock expire soon
    joining()
    await wait_until(lambda: parent.registrations, "the cluster is registered")
    assert not await registry.complete_job(parent.address, "dead", 1.0, "late", 1.0), "its lock has expired"


async def test_lock_expires_soon_enough_for_another_replica_to_send_the_heartbeat(
    store: Store, joining: Callable[..., Replica], registry: Registry
) -> None:
    """A heartbeat is sent in each interval, even if the replica that holds the lock dies."""
    lock_ttl, interval = parents._LOCK_TTL, 1_000.0
    assert parents._DUE + lock_ttl + parents._CHECK <= 1.0 - parents._RETRY
    await registry.register(worker(A))
    async with bad_worker(register_worker=hangs) as hanging:
        joining(lock_ttl=lock_ttl, parent=hanging.address, parent_interval=interval)
        await wait_until(lambda: hanging.requests, "a registration is in progress")
        assert 0 < await store.client.pttl(keys.job(store.namespace, hanging.address)) <= 1000 * lock_ttl * interval


async def test_update_sent_after_the_lock_expired_is_followed_by_a_newer_one(
    store: Store,
    joining: Callable[..., Replica],
    registry: Registry,
    parent: Parent,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A replica is stopped while it registers, and another replica registers other models meanwhile."""
    await registry.register(worker(A, "m"))
    stopped, resumed = asyncio.Event(), asyncio.Event()
    late = joining()
    register = late.parents._client.register

    async def register_after_a_stop(*arguments: Any) -> None:
        stopped.set()
        await resumed.wait()
        await register(*arguments)

    monkeypatch.setattr(late.parents._client, "register", register_after_a_stop)
    await stopped.wait()
    await registry.register(worker(B, "n"))
    await store.client.delete(keys.job(store.namespace, parent.address))  # as if the lock had expired
    joining()
    await wait_until(lambda: parent.registrations, "another replica registers both models")
    resumed.set()
    await wait_until(lambda: len(parent.registrations) > 1, "the stopped replica sends its registration")
    assert [sent["worker_status"]["model_names"] for sent in parent.registrations] == [["m", "n"], ["m"]]
    await wait_until(lambda: len(parent.registrations) > 2, "the newer status is sent again")
    assert parent.registrations[2]["worker_status"]["model_names"] == ["m", "n"]


async def test_replica_without_a_snapshot_sends_nothing(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, monkeypatch: pytest.MonkeyPatch
) -> None:
    await registry.register(worker(A, "m"))
    joining()
    await wait_until(lambda: parent.registrations, "the cluster is registered")
    check, may_answer = Registry.check, asyncio.Event()

    async def slow_check(self: Registry) -> None:
        await may_answer.wait()
        await check(self)

    monkeypatch.setattr(Registry, "check", slow_check)
    started = joining()
    attempts: list[bool] = []  # False at the start of an attempt to get the lock, True at its end
    acquire = started.parents._acquire

    async def counting(parent: str, urgent: bool) -> tuple[bool, str]:
        attempts.append(False)
        acquired = await acquire(parent, urgent)
        attempts.append(True)
        return acquired

    monkeypatch.setattr(started.parents, "_acquire", counting)
    await wait_until(lambda: attempts, "it tries to get the lock")
    assert not started.snapshots.workers()
    may_answer.set()
    await wait_until(lambda: attempts.count(True) > 3, "it has tried several times")
    assert len(parent.registrations) == 1


async def test_replica_sends_heartbeats_from_its_snapshot_while_redis_is_unavailable(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, link: Link
) -> None:
    await registry.register(worker(A, queue_length=2))
    joining()
    await wait_until(lambda: parent.heartbeats, "heartbeats are sent")
    with link.broken():
        before = len(parent.heartbeats)
        await wait_until(lambda: len(parent.heartbeats) > before + 2, "heartbeats continue")
    assert parent.heartbeats[-1]["queue_length"] == 2


async def test_replica_that_cannot_dispatch_any_more_sends_no_heartbeats(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, link: Link
) -> None:
    await registry.register(worker(A))
    replica = joining(heartbeat_expiration=1.0)
    await wait_until(lambda: parent.heartbeats, "heartbeats are sent")
    with link.broken():
        await wait_until(lambda: not replica.snapshots.can_dispatch, "the snapshot is too old")
        before = len(parent.heartbeats)
        await asyncio.sleep(3 * INTERVAL)
        assert len(parent.heartbeats) <= before + 1, "a heartbeat may have been in flight"
        assert replica.snapshots.workers(), "the last snapshot has a worker"


def paths(server: BadWorker) -> list[str]:
    return [path for path, _ in server.requests]


@pytest.mark.parametrize(
    ("answer", "accepted"),
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
async def test_heartbeat_is_accepted_only_with_a_valid_answer(
    joining: Callable[..., Replica],
    registry: Registry,
    parent: Parent,
    answer: Behaviour,
    accepted: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An invalid answer does not delay the heartbeats to another parent."""
    async with bad_worker(register_worker=answers(b"null"), receive_heart_beat=answer) as other:
        await registry.register(worker(A))
        lock_ttl = {"lock_ttl": parents._LOCK_TTL} if answer is hangs else {}
        joining(parent=f"{parent.address},{other.address}", **lock_ttl)
        await wait_until(lambda: paths(other).count("receive_heart_beat") > 2, "the other parent gets heartbeats")
        before = len(parent.heartbeats)
        await wait_until(lambda: len(parent.heartbeats) > before, "the first parent gets heartbeats, too")
        assert ("failed; retrying every" in caplog.text) != accepted
    assert "because of a bug" not in caplog.text


async def test_each_of_several_parents_gets_heartbeats(
    joining: Callable[..., Replica], registry: Registry, parent: Parent
) -> None:
    other = Parent()
    async with bad_worker(register_worker=other.register, receive_heart_beat=other.heartbeat) as server:
        await registry.register(worker(A))
        joining(parent=f"{parent.address},{server.address}")
        await wait_for_each((parent, other), lambda each: each.heartbeats, "it gets heartbeats")


async def test_refused_token_is_reported_also_after_another_failure(
    joining: Callable[..., Replica], registry: Registry, parent: Parent, caplog: pytest.LogCaptureFixture
) -> None:
    """Each kind of failure is logged once, until the parent accepts a heartbeat."""
    caplog.set_level(logging.INFO)
    await registry.register(worker(A, "m"))
    parent.refuses = True
    joining(parent=parent.address.replace("//", "//region:wrong@"))
    await wait_until(lambda: "returned status 500" in caplog.text, "the failure is logged")
    parent.refusal = "401 Unauthorized"
    await wait_until(lambda: "returned status 401" in caplog.text, "the refused token is logged")
    parent.refusal = "500 Down"
    failed = parent.failed
    await wait_until(lambda: parent.failed > failed + 2, "more heartbeats fail")
    warnings = [message for message in caplog.messages if message.startswith("Heartbeat to parent")]
    assert len(warnings) == 2
    assert "the parent does not accept the token in --parent. Write a token" in warnings[1]
    assert "wrong" not in caplog.text
    parent.refuses = False
    await wait_until(lambda: "accepts heartbeats again" in caplog.text, "the parent accepts again")
