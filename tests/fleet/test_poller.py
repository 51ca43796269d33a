"""Replicas ask workers for their queue lengths, each worker one replica."""

import asyncio
import contextlib
import json
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from controller.domain.worker import Worker
from controller.fleet.poller import Poller
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import FailureCall, Report
from controller.tasks import end
from tests.conftest import Open, Store
from tests.support.outage import Link
from tests.support.samples import worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker

INTERVAL = 0.1


class Engine:
    """A worker that tells how often it was asked, and fails, always or now and then, or hangs when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.queue_length = 0
        self.fails = False
        self.fails_every_other = False
        self.failed_in_a_row = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, living: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        self.asked += 1
        if self.fails_every_other:
            self.fails = self.asked % 2 == 0
        self.failed_in_a_row = self.failed_in_a_row + 1 if self.fails else 0
        await self.goes_on.wait()
        told = json.dumps({"model_names": ["m"], "speed": 1, "queue_length": self.queue_length}).encode()
        await answers(told, "500 Down" if self.fails else "200 OK")(living, writer, body)


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@pytest.fixture
async def asked(engine: Engine) -> AsyncIterator[BadWorker]:
    async with bad_worker(worker_get_status=engine) as living:
        yield living


@pytest.fixture
async def polling(replica: Open) -> AsyncIterator[Callable[..., Replica]]:
    """Opens replicas that take snapshots and poll."""
    chores: list[asyncio.Task[None]] = []

    def start(snapshot_interval: float = 0.05, **settings: object) -> Replica:
        controller = replica(poll_interval=INTERVAL, snapshot_interval=snapshot_interval, **settings)
        chores.extend(asyncio.create_task(chore()) for chore in (controller.snapshots.run, controller.poller.run))
        return controller

    yield start
    await end(chores)


async def known(store: Store, name: str) -> Worker:
    return {found.name: found for found in (await store.registry().list_workers()).workers}[name]


async def test_a_poll_sets_the_queue_length_and_prolongs_no_life(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    await store.registry().register(worker(asked.address, queue_length=3))
    engine.queue_length = 7
    polling()
    await wait_until(lambda: queue_is(store, asked.address, 7), "the queue length is told")
    before = await known(store, asked.address)
    assert before.polled
    asked_before = engine.asked
    await wait_until(lambda: engine.asked > asked_before + 3, "it is asked again and again")
    after = await known(store, asked.address)
    assert after.expires_in is not None
    assert before.expires_in is not None
    assert after.expires_in < before.expires_in
    assert after.heartbeat_age > before.heartbeat_age


async def queue_is(store: Store, name: str, queue_length: int) -> bool:
    return (await known(store, name)).status.queue_length == queue_length


async def test_who_stops_answering_comes_behind_all_others_until_it_answers(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    asked: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await store.registry().register(worker(asked.address))
    controller = polling()
    await wait_until(lambda: polled(store, asked.address), "it has answered")
    engine.fails = True
    await wait_until(lambda: fails(store, asked.address), "it is known to fail")
    await store.registry().register(worker("http://127.0.0.1:9", queue_length=50))
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == ["http://127.0.0.1:9"] * 3
    await wait_until(lambda: "has never answered a status poll" in caplog.text, "the other cannot be asked at all")
    engine.fails = False
    await wait_until(lambda: serves(store, asked.address), "it is forgiven")
    assert (await controller.dispatcher.dispatch("m")).value == asked.address
    assert caplog.text.count("it gets requests only if no other worker can") == 1
    assert caplog.text.count("has never answered a status poll") == 1
    assert not (await known(store, "http://127.0.0.1:9")).failing, "who cannot be asked is left alone"


async def test_who_stops_answering_soon_after_its_first_answer_is_not_left_alone(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    """What the replica knows of the workers was true before that answer."""
    await store.registry().register(worker(asked.address))
    polling(snapshot_interval=60.0)
    await wait_until(lambda: polled(store, asked.address), "it has answered")
    engine.fails = True
    await wait_until(lambda: fails(store, asked.address), "it is known to fail")


async def polled(store: Store, name: str) -> bool:
    return (await known(store, name)).polled


async def fails(store: Store, name: str) -> bool:
    return (await known(store, name)).failing == "polls"


async def serves(store: Store, name: str) -> bool:
    return not (await known(store, name)).failing


async def test_of_who_lapsed_nobody_says_that_it_cannot_be_asked(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    asked: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await store.registry().register(worker(asked.address))
    controller = polling(snapshot_interval=60.0)
    await wait_until(lambda: polled(store, asked.address), "it has answered")
    await store.lapse(asked.address)
    engine.fails = True
    await wait_until(lambda: max(controller.poller._failures.values(), default=0) > 3, "it fails to answer")
    assert "has never answered a status poll" not in caplog.text
    assert "it gets requests only if no other worker can" not in caplog.text


async def test_one_failure_now_and_then_is_none(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    await store.registry().register(worker(asked.address))
    engine.fails_every_other = True
    reports = []
    controller = polling()
    report_failure = controller.poller._batches.report_failure

    def report(call: FailureCall) -> "asyncio.Future[bool | None]":
        reports.append(engine.failed_in_a_row)
        return report_failure(call)

    controller.poller._batches.report_failure = report  # type: ignore[method-assign]
    await wait_until(lambda: engine.asked > 8, "it has failed now and then")
    assert reports == [], "only those that come in a row count"
    engine.fails_every_other = False
    await wait_until(lambda: queue_is(store, asked.address, 0), "it answers")
    engine.fails = True
    await wait_until(lambda: reports, "two in a row")
    assert reports[0] == 2


async def test_who_hangs_is_not_asked_again_until_the_last_poll_has_ended(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    other = Engine()
    engine.goes_on.clear()
    async with bad_worker(worker_get_status=other) as living:
        for address in (asked.address, living.address):
            await store.registry().register(worker(address))
        polling()
        await wait_until(lambda: other.asked > 10, "the other is asked again and again")
    assert engine.asked == 1
    engine.goes_on.set()
    await wait_until(lambda: engine.asked > 3, "it is asked again")


async def test_no_more_than_so_many_are_asked_at_once(
    store: Store, polling: Callable[..., Replica], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.poller._MAX_POLLS", 3)
    engine.goes_on.clear()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(7):
            living = await stack.enter_async_context(bad_worker(worker_get_status=engine))
            await store.registry().register(worker(living.address))
        controller = polling()
        await wait_until(lambda: len(controller.poller._polls) == 7, "all are due")
        await wait_until(lambda: engine.asked == 3, "three are asked")
        await asyncio.sleep(2 * INTERVAL)
        assert engine.asked == 3
        await controller.poller._share_workers()  # so that none is under way
        controller.poller._met_at = math.inf
        controller.poller._due.clear()  # as if all of them went to another replica
        engine.goes_on.set()
        await wait_until(lambda: not controller.poller._polls, "the polls that were under way have ended")
        assert engine.asked == 3, "nobody asks for what is another's"


async def test_hundreds_that_hang_at_once_delay_nobody(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    engine.goes_on.clear()
    other = Engine()
    async with bad_worker(worker_get_status=other) as living:
        for i in range(200):
            await store.registry().register(worker(f"{asked.address}/{i}"))
        await store.registry().register(worker(living.address))
        polling()
        await wait_until(lambda: engine.asked == 200, "all are asked, and hang")
        asked_before = other.asked
        await wait_until(lambda: other.asked > asked_before + 10, "the other is asked again and again")


async def test_those_that_hang_again_delay_nobody_however_many_they_are(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    asked: BadWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.fleet.poller._MAX_POLLS", 2)
    other = Engine()
    async with bad_worker(worker_get_status=other) as living:
        for i in range(5):
            await store.registry().register(worker(f"{asked.address}/{i}"))
        await store.registry().register(worker(living.address))
        controller = polling()
        for i in range(5):
            await wait_until(lambda i=i: polled(store, f"{asked.address}/{i}"), "it has answered")
        engine.fails = True
        await wait_until(lambda: len(controller.poller._failures) == 5, "each has failed")
        engine.goes_on.clear()
        engine.fails = False
        asked_before = engine.asked
        await wait_until(lambda: engine.asked == asked_before + 2, "as many as may hang")
        asked_before = other.asked
        await wait_until(lambda: other.asked > asked_before + 10, "the other is asked again and again")
        engine.goes_on.set()
        await wait_until(lambda: not controller.poller._failures, "all are asked when there are places")


async def test_what_is_booked_while_a_poll_is_under_way_is_not_taken_for_seen(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    """The report is as old as the poll: the worker may have counted its queue before a later request arrived."""
    registry = store.registry()
    await registry.register(worker(asked.address))
    engine.goes_on.clear()
    reports: list[Report] = []

    async def take(batch: Sequence[Report], *, of_polls: bool = False) -> list[bool]:
        reports.extend(batch)
        return [True] * len(batch)

    registry.heartbeat = take  # type: ignore[method-assign]
    polling(registry=registry)
    await wait_until(lambda: engine.asked, "a poll is under way")
    booked_at = time.monotonic()
    engine.goes_on.set()
    await wait_until(lambda: reports, "the answer is reported")
    assert reports[0].written_at is not None
    assert reports[0].written_at < booked_at


async def test_polls_of_many_are_spread_in_time(store: Store, polling: Callable[..., Replica]) -> None:
    for i in range(40):
        await store.registry().register(worker(f"http://127.0.0.1:{i + 1}"))
    poller = polling().poller
    poller._interval = 100.0
    await wait_until(lambda: len(poller._due) == 40, "all are this one's")
    due = sorted(poller._due.values())
    assert due[0] < time.monotonic() + 50 < due[-1], "and not all at once"


async def test_without_a_store_nobody_is_asked(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker, link: Link
) -> None:
    """What they would tell could not be written down, and two replicas might ask the same."""
    await store.registry().register(worker(asked.address))
    controller = polling()
    await wait_until(lambda: engine.asked > 1, "it is asked")
    with link.broken():
        await wait_until(lambda: not controller.poller._due, "nobody is this one's")
    await wait_until(lambda: controller.poller._due, "and when the store is back, it is again")


async def test_a_replica_that_ends_leaves_at_once(store: Store, polling: Callable[..., Replica]) -> None:
    controller = polling()
    await wait_until(lambda: controller.poller._replicas, "it is there")
    assert controller.poller._replica_id in await store.registry().join_replicas("another", 60.0)
    believed_until = await store.client.zscore(keys.replicas(store.namespace), controller.poller._replica_id)
    seconds, microseconds = await store.client.time()
    left = believed_until / 1000 - (seconds + microseconds / 1e6)
    assert left <= 3.0, "should it die, others have its workers within seconds"
    await controller.poller.close()
    assert await store.registry().join_replicas("another", 60.0) == ["another"]


async def test_a_replica_that_died_is_believed_to_be_there_for_its_time(store: Store) -> None:
    registry = store.registry()
    assert await registry.join_replicas("dying", 60.0) == ["dying"]
    assert set(await registry.join_replicas("living", 60.0)) == {"dying", "living"}
    await store.client.zadd(keys.replicas(store.namespace), {"dying": 1.0})  # as if its time had passed
    assert await registry.join_replicas("living", 60.0) == ["living"]


async def test_who_did_not_listen_yet_is_asked_again_now_and_then(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    asked: BadWorker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    seldom = 4
    monkeypatch.setattr("controller.fleet.poller._UNREACHABLE_FACTOR", seldom)
    engine.fails = True
    await store.registry().register(worker(asked.address))
    controller = polling()
    began = time.monotonic()
    await wait_until(lambda: engine.asked >= 4, "it is asked twice, and seldom then")
    assert time.monotonic() - began > 2 * seldom * INTERVAL
    assert caplog.text.count("has never answered a status poll") == 1
    engine.fails = False
    await wait_until(lambda: polled(store, asked.address), "it is asked, and answers")
    asked_before = engine.asked
    await wait_until(lambda: engine.asked >= asked_before + 5, "it is asked as any other")
    engine.fails = True
    await wait_until(lambda: fails(store, asked.address), "and is known to fail as any other")
    assert caplog.text.count("has never answered a status poll") == 1
    await wait_until(lambda: caplog.text.count("it gets requests only if no other worker can") == 1, "the log says so")
    assert not controller.poller._unreachable


async def test_a_new_registration_has_not_failed_yet(
    store: Store, polling: Callable[..., Replica], engine: Engine, asked: BadWorker
) -> None:
    """Nor is it left alone when its first poll comes too early."""
    registry = store.registry()
    await registry.register(worker(asked.address))
    controller = polling()
    await wait_until(lambda: polled(store, asked.address), "it has answered")
    engine.fails = True
    await wait_until(lambda: fails(store, asked.address), "it is known to fail")
    await registry.register(worker(asked.address))
    life = asked.address, (await known(store, asked.address)).registration
    assert await wait_until(lambda: controller.poller._failures.get(life), "it fails anew") == 1
    assert not controller.poller._unreachable


async def test_who_was_left_alone_is_asked_again_when_it_registers_again(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    asked: BadWorker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.fleet.poller._UNREACHABLE_FACTOR", 1_000)
    engine.fails = True
    await store.registry().register(worker(asked.address))
    polling()
    with caplog.at_level("INFO"):
        await wait_until(lambda: "has never answered a status poll" in caplog.text, "it is left alone")
    asked_before = engine.asked
    await asyncio.sleep(5 * INTERVAL)
    assert engine.asked == asked_before
    engine.fails = False
    await store.registry().register(worker(asked.address))
    await wait_until(lambda: polled(store, asked.address), "it is asked, and answers")


async def test_replicas_share_the_workers_and_take_over(store: Store, polling: Callable[..., Replica]) -> None:
    registry = store.registry()
    names = [f"http://127.0.0.1:{port}" for port in range(1, 41)]
    for name in names:
        await registry.register(worker(name))
    replicas = [polling() for _ in range(3)]
    pollers: list[Poller] = [replica.poller for replica in replicas]

    def shares() -> list[set[str]]:
        return [set(poller._due) | set(poller._unreachable) for poller in pollers]

    def shared() -> bool:
        counts = Counter(name for share in shares() for name in share)
        return len(counts) == len(names) and set(counts.values()) == {1} and all(shares())

    await wait_until(shared, "each worker is with one of the replicas")
    before = shares()
    await pollers[0].close()
    del pollers[0]
    await registry.join_replicas(replicas[0].poller._replica_id, 0.0)
    replicas[0].poller._share_workers = asyncio.Event().wait  # type: ignore[method-assign,assignment] # it is gone
    await wait_until(shared, "the others have taken over")
    for share, had in zip(shares(), before[1:], strict=True):
        assert had <= share, "nobody gives up what it had"
