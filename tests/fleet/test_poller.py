"""Replicas poll the workers for their queue lengths. One replica polls each worker."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import pytest

from controller.domain.worker import Worker
from controller.fleet.poller import Poller
from controller.replica import Replica
from controller.store.registry import FailureCall, Report
from controller.tasks import end
from tests.conftest import Open, Store
from tests.support.outage import Link
from tests.support.samples import worker
from tests.support.waiting import wait_for_each, wait_until
from tests.support.workers import BadWorker, answers, bad_worker

INTERVAL = 0.1


class Engine:
    """The status route of a worker. It counts polls, and can fail or hang.

    fails: it answers 500.
    fails_every_other: it answers 500 to every second poll.
    goes_on: it hangs until this event is set.
    """

    def __init__(self) -> None:
        self.polls = 0
        self.queue_length = 0
        self.fails = False
        self.fails_every_other = False
        self.failed_in_a_row = 0
        self.goes_on = asyncio.Event()
        self.goes_on.set()

    async def __call__(self, server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        self.polls += 1
        if self.fails_every_other:
            self.fails = self.polls % 2 == 0
        self.failed_in_a_row = self.failed_in_a_row + 1 if self.fails else 0
        await self.goes_on.wait()
        status = json.dumps({"model_names": ["m"], "speed": 1, "queue_length": self.queue_length}).encode()
        await answers(status, "500 Down" if self.fails else "200 OK")(server, writer, body)


@pytest.fixture
async def engine() -> Engine:
    return Engine()


@pytest.fixture
async def target(engine: Engine) -> AsyncIterator[BadWorker]:
    async with bad_worker(worker_get_status=engine) as server:
        yield server


@pytest.fixture
async def polling(replica: Open) -> AsyncIterator[Callable[..., Replica]]:
    """Return a function that opens replicas which take snapshots and poll."""
    tasks: list[asyncio.Task[None]] = []

    def start(snapshot_interval: float = 0.05, **settings: object) -> Replica:
        controller = replica(poll_interval=INTERVAL, snapshot_interval=snapshot_interval, **settings)
        loops = (controller.snapshots.run, controller.replicas.run, controller.poller.run)
        tasks.extend(asyncio.create_task(loop()) for loop in loops)
        return controller

    yield start
    await end(tasks)


async def known(store: Store, name: str) -> Worker:
    return {found.name: found for found in (await store.registry().list_workers()).workers}[name]


async def test_poll_sets_the_queue_length_and_does_not_extend_the_heartbeat(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    await store.registry().register(worker(target.address, queue_length=3))
    engine.queue_length = 7
    polling()
    await wait_until(lambda: queue_is(store, target.address, 7), "the queue length is stored")
    before = await known(store, target.address)
    assert before.polled
    polls_before = engine.polls
    await wait_until(lambda: engine.polls > polls_before + 3, "it is polled several times")
    after = await known(store, target.address)
    assert after.expires_in is not None
    assert before.expires_in is not None
    assert after.expires_in < before.expires_in
    assert after.heartbeat_age > before.heartbeat_age


async def queue_is(store: Store, name: str, queue_length: int) -> bool:
    return (await known(store, name)).status.queue_length == queue_length


async def test_worker_that_fails_polls_is_deprioritised_until_it_answers(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await store.registry().register(worker(target.address))
    controller = polling()
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    engine.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")
    await store.registry().register(worker("http://127.0.0.1:9", queue_length=50))
    assert [(await controller.dispatcher.dispatch("m")).value for _ in range(3)] == ["http://127.0.0.1:9"] * 3
    await wait_until(
        lambda: "has never answered a status poll" in caplog.text, "the other worker is reported as unreachable"
    )
    engine.fails = False
    await wait_until(lambda: is_not_failing(store, target.address), "its failure is cleared")
    assert (await controller.dispatcher.dispatch("m")).value == target.address
    assert caplog.text.count("it gets requests only if no other worker can") == 1
    assert caplog.text.count("has never answered a status poll") == 1
    assert not (await known(store, "http://127.0.0.1:9")).failing, "a worker that never answered is not deprioritised"


async def test_worker_that_fails_soon_after_its_first_answer_is_deprioritised(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    """The replica's snapshot is older than that answer."""
    await store.registry().register(worker(target.address))
    polling(snapshot_interval=60.0)
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    engine.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")


async def was_polled(store: Store, name: str) -> bool:
    return (await known(store, name)).polled


async def is_deprioritised(store: Store, name: str) -> bool:
    return (await known(store, name)).failing == "polls"


async def is_not_failing(store: Store, name: str) -> bool:
    return not (await known(store, name)).failing


async def test_failed_polls_of_an_expired_worker_are_not_logged(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    await store.registry().register(worker(target.address))
    controller = polling(snapshot_interval=60.0)
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    await store.expire_heartbeat(target.address)
    engine.fails = True
    await wait_until(lambda: max(controller.poller._failures.values(), default=0) > 3, "it fails several polls")
    assert "has never answered a status poll" not in caplog.text
    assert "it gets requests only if no other worker can" not in caplog.text


async def test_single_failed_polls_do_not_deprioritise_a_worker(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    await store.registry().register(worker(target.address))
    engine.fails_every_other = True
    reports = []
    controller = polling()
    report_failure = controller.poller._batches.report_failure

    def report(call: FailureCall) -> "asyncio.Future[bool | None]":
        reports.append(engine.failed_in_a_row)
        return report_failure(call)

    controller.poller._batches.report_failure = report  # type: ignore[method-assign]
    await wait_until(lambda: engine.polls > 8, "every second poll has failed")
    assert reports == [], "only consecutive failures count"
    engine.fails_every_other = False
    await wait_until(lambda: queue_is(store, target.address, 0), "the worker answers")
    engine.fails = True
    await wait_until(lambda: reports, "two consecutive polls fail")
    assert reports[0] == 2


async def test_hanging_worker_is_not_polled_again_until_its_poll_has_ended(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    other = Engine()
    engine.goes_on.clear()
    async with bad_worker(worker_get_status=other) as other_target:
        for address in (target.address, other_target.address):
            await store.registry().register(worker(address))
        polling()
        await wait_until(lambda: other.polls > 10, "the other worker is polled several times")
    assert engine.polls == 1
    engine.goes_on.set()
    await wait_until(lambda: engine.polls > 3, "the worker is polled again")


async def test_number_of_concurrent_polls_is_limited(
    store: Store, polling: Callable[..., Replica], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.poller._MAX_POLLS", 3)
    engine.goes_on.clear()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(7):
            other_target = await stack.enter_async_context(bad_worker(worker_get_status=engine))
            await store.registry().register(worker(other_target.address))
        controller = polling()
        await wait_until(lambda: len(controller.poller._polls) == 7, "all polls have started or wait for a permit")
        await wait_until(lambda: engine.polls == 3, "three workers are polled")
        await asyncio.sleep(2 * INTERVAL)
        assert engine.polls == 3
        monkeypatch.setattr(controller.poller, "_workers", list)  # as if all workers had moved to another replica
        controller.poller._due.clear()
        engine.goes_on.set()
        await wait_until(lambda: not controller.poller._polls, "all polls have ended")
        assert engine.polls == 3, "workers of another replica are not polled"


async def test_many_hanging_workers_do_not_delay_polls_of_others(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    engine.goes_on.clear()
    other = Engine()
    async with bad_worker(worker_get_status=other) as other_target:
        for i in range(200):
            await store.registry().register(worker(f"{target.address}/{i}"))
        await store.registry().register(worker(other_target.address))
        polling()
        await wait_until(lambda: engine.polls == 200, "all are polled, and hang")
        polls_before = other.polls
        await wait_until(lambda: other.polls > polls_before + 10, "the other worker is polled several times")


async def test_workers_that_failed_before_and_hang_do_not_delay_polls_of_others(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    target: BadWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.fleet.poller._MAX_POLLS", 2)
    other = Engine()
    async with bad_worker(worker_get_status=other) as other_target:
        for i in range(5):
            await store.registry().register(worker(f"{target.address}/{i}"))
        await store.registry().register(worker(other_target.address))
        controller = polling()
        addresses = [f"{target.address}/{i}" for i in range(5)]
        await wait_for_each(addresses, partial(was_polled, store), "the worker has answered a poll")
        engine.fails = True
        await wait_until(lambda: len(controller.poller._failures) == 5, "each worker has failed a poll")
        engine.goes_on.clear()
        engine.fails = False
        polls_before = engine.polls
        await wait_until(lambda: engine.polls == polls_before + 2, "the limit for failing workers is reached")
        polls_before = other.polls
        await wait_until(lambda: other.polls > polls_before + 10, "the other worker is polled several times")
        engine.goes_on.set()
        await wait_until(lambda: not controller.poller._failures, "all are polled when permits are free")


async def test_report_of_a_poll_is_dated_at_the_start_of_the_poll(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    """The worker may have counted its queue before a request that was booked during the poll arrived."""
    registry = store.registry()
    await registry.register(worker(target.address))
    engine.goes_on.clear()
    stored: list[Report] = []

    async def take(reports: Sequence[Report]) -> list[bool]:
        stored.extend(reports)
        return [True] * len(reports)

    registry.take_poll_answers = take  # type: ignore[method-assign]
    polling(registry=registry)
    await wait_until(lambda: engine.polls, "a poll has started")
    booked_at = time.monotonic()
    engine.goes_on.set()
    await wait_until(lambda: stored, "the answer is stored")
    assert stored[0].written_at is not None
    assert stored[0].written_at < booked_at


async def test_polls_of_many_workers_are_spread_in_time(store: Store, polling: Callable[..., Replica]) -> None:
    for i in range(40):
        await store.registry().register(worker(f"http://127.0.0.1:{i + 1}"))
    poller = polling().poller
    poller._interval = 100.0
    await wait_until(lambda: len(poller._due) == 40, "this replica has all workers")
    due = sorted(poller._due.values())
    assert due[0] < time.monotonic() + 50 < due[-1], "the polls are spread over the interval"


async def test_no_worker_is_polled_while_the_store_is_away(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker, link: Link
) -> None:
    """The answers could not be stored, and two replicas might poll the same worker."""
    await store.registry().register(worker(target.address))
    controller = polling()
    await wait_until(lambda: engine.polls > 1, "the worker is polled")
    with link.broken():
        await wait_until(lambda: not controller.poller._due, "the replica has no workers")
    await wait_until(lambda: controller.poller._due, "the replica has its worker again after the outage")


async def test_worker_that_has_never_answered_is_polled_less_often_until_it_answers(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    caplog.set_level("INFO")
    factor = 4
    monkeypatch.setattr("controller.fleet.poller._UNREACHABLE_FACTOR", factor)
    engine.fails = True
    await store.registry().register(worker(target.address))
    controller = polling()
    began = time.monotonic()
    await wait_until(lambda: engine.polls >= 4, "it is polled twice, and then less often")
    assert time.monotonic() - began > 2 * factor * INTERVAL
    assert caplog.text.count("has never answered a status poll") == 1
    engine.fails = False
    await wait_until(lambda: was_polled(store, target.address), "the worker answers a poll")
    polls_before = engine.polls
    await wait_until(lambda: engine.polls >= polls_before + 5, "it is polled at the usual interval")
    engine.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")
    assert caplog.text.count("has never answered a status poll") == 1
    await wait_until(
        lambda: caplog.text.count("it gets requests only if no other worker can") == 1, "the failure is logged"
    )
    assert not controller.poller._unreachable


async def test_new_registration_starts_without_failures(
    store: Store, polling: Callable[..., Replica], engine: Engine, target: BadWorker
) -> None:
    """One failed poll does not make it unreachable."""
    registry = store.registry()
    await registry.register(worker(target.address))
    controller = polling()
    await wait_until(lambda: was_polled(store, target.address), "the worker has answered a poll")
    engine.fails = True
    await wait_until(lambda: is_deprioritised(store, target.address), "the worker is deprioritised")
    await registry.register(worker(target.address))
    incarnation = target.address, (await known(store, target.address)).registration
    assert (
        await wait_until(lambda: controller.poller._failures.get(incarnation), "a poll of the new registration fails")
        == 1
    )
    assert not controller.poller._unreachable


async def test_unreachable_worker_is_polled_soon_after_it_registers_again(
    store: Store,
    polling: Callable[..., Replica],
    engine: Engine,
    target: BadWorker,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.fleet.poller._UNREACHABLE_FACTOR", 1_000)
    engine.fails = True
    await store.registry().register(worker(target.address))
    polling()
    with caplog.at_level("INFO"):
        await wait_until(
            lambda: "has never answered a status poll" in caplog.text, "the worker is reported as unreachable"
        )
    polls_before = engine.polls
    await asyncio.sleep(5 * INTERVAL)
    assert engine.polls == polls_before
    engine.fails = False
    await store.registry().register(worker(target.address))
    await wait_until(lambda: was_polled(store, target.address), "the worker answers a poll")


async def test_replicas_share_the_workers_and_take_over_those_of_a_closed_replica(
    store: Store, polling: Callable[..., Replica]
) -> None:
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

    await wait_until(shared, "each worker belongs to one replica")
    before = shares()
    await pollers[0].close()
    del pollers[0]
    replicas[0].replicas.join = asyncio.Event().wait  # type: ignore[method-assign,assignment] # it does not join again
    await replicas[0].replicas.close()
    await wait_until(shared, "the others have taken over")
    for share, share_before in zip(shares(), before[1:], strict=True):
        assert share_before <= share, "each replica keeps its workers"
