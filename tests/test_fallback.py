"""A replica whose store goes away: it dispatches on, and nothing that it did is lost or counted twice."""

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator
from types import SimpleNamespace

import pytest

from controller import fallback
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreIncompatible, StoreUnavailable
from controller.domain.worker import WorkerStatus
from controller.service import Controller, Found
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Open, Store
from tests.samples import A, B, C, worker
from tests.waiting import wait_until


class Link:
    """The way between a registry and its store: it can be cut, before a call is made or after."""

    def __init__(self) -> None:
        self.cut: str | None = None
        self.passed: list[str] = []

    @contextlib.contextmanager
    def broken(self, when: str = "before") -> Iterator[None]:
        self.cut = when
        try:
            yield
        finally:
            self.cut = None


@pytest.fixture
def link(monkeypatch: pytest.MonkeyPatch) -> Link:
    way = Link()
    run = Registry._run

    async def pass_on(self: Registry, script: str, *arguments: str | int) -> object:
        if way.cut == "before":
            raise StoreUnavailable("The store is away.")
        result = await run(self, script, *arguments)
        way.passed.append(script)
        if way.cut:
            raise StoreUnavailable("The answer was lost.")
        return result

    monkeypatch.setattr(Registry, "_run", pass_on)
    return way


async def queues(store: Store) -> dict[str, int]:
    client = store.aside
    names = await client.zrange(keys.workers(store.namespace), 0, -1)
    return {name: int(await client.hget(keys.worker(store.namespace, name), "queue_length")) for name in names}


async def back(controller: Controller) -> None:
    await wait_until(lambda: served_by_store(controller), "the store is in use again")


async def served_by_store(controller: Controller) -> bool:
    try:
        return (await controller.check()).snapshot_age is None
    except StoreUnavailable:
        return False


@pytest.fixture
async def controller(store: Store, link: Link, replica: Open) -> Controller:
    """A replica with a snapshot of two workers."""
    registry = store.registry()
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "m", multimodal=True))
    opened = replica()
    await opened.check()
    return opened


async def test_dispatch_goes_on_and_says_how_old_its_knowledge_is(controller: Controller, link: Link) -> None:
    with link.broken():
        first, second, third = [await controller.dispatch("m") for _ in range(3)]
        assert {first.value, second.value} == {A, B}
        assert third.value in (A, B)
        assert third.snapshot_age is not None
        assert 0 <= third.snapshot_age < 5
        assert (await controller.dispatch("n")).value == A
        assert (await controller.dispatch("nobody's")).value == ""


async def test_everything_that_is_read_goes_on(controller: Controller, link: Link) -> None:
    with link.broken():
        await controller.dispatch("n")
        assert (await controller.list_models()).value == ["m", "n"]
        assert (await controller.list_models(multimodal=True)).value == ["m"]
        workers, age = await controller.list_workers()
        assert [(known.name, known.status.queue_length) for known in workers] == [(A, 1), (B, 0)]
        assert age is not None
        status = await controller.status()
        assert (status.value.queue_length, status.snapshot_age is not None) == (1, True)
        reason, age = await controller.check()
        assert (reason, age is not None) == ("The store is away.", True)
        with pytest.raises(StoreUnavailable):
            await controller.heartbeat(A, 0)
        with pytest.raises(StoreUnavailable):
            await controller.remove(A)
        with pytest.raises(StoreUnavailable):
            await controller.refresh()


async def test_a_lottery_goes_on_too_and_books_nothing(store: Store, link: Link, replica: Open) -> None:
    await store.registry().register(worker(A))
    controller = replica(dispatch_method=DispatchMethod.LOTTERY)
    await controller.check()
    with link.broken():
        assert [(await controller.dispatch("m")).value for _ in range(3)] == [A, A, A]
    with link.broken("after"):
        assert (await controller.dispatch("m")).value == A
    await back(controller)
    assert await queues(store) == {A: 0}


async def test_the_store_is_told_what_was_dispatched_without_it(
    controller: Controller, link: Link, store: Store
) -> None:
    with link.broken():
        chosen = [(await controller.dispatch("m")).value for _ in range(10)]
    assert await queues(store) == {A: 0, B: 0}
    await back(controller)
    assert chosen.count(A) == 5
    assert await queues(store) == {A: 5, B: 5}
    assert (await controller.dispatch("n")).value == A
    assert await queues(store) == {A: 6, B: 5}


async def test_a_dispatch_whose_answer_was_lost_is_booked_once(
    controller: Controller, link: Link, store: Store
) -> None:
    with link.broken("after"):
        answer = await controller.dispatch("m")
    assert answer.snapshot_age is not None, "it was answered from the snapshot"
    await back(controller)
    assert await queues(store) == {A: 0, B: 0, answer.value: 1}


async def test_a_dispatch_that_is_still_on_its_way_books_nothing_when_it_arrives(
    controller: Controller, link: Link, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a request does that waits in the socket of a stopped server."""
    late: list[tuple[Registry, tuple[str | int, ...]]] = []
    run = Registry._run

    async def delay(self: Registry, script: str, *arguments: str | int) -> object:
        if script == "dispatch_shortest_queue":
            late.append((self, arguments))
            raise StoreUnavailable("No answer in time.")
        return await run(self, script, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", delay)
        answer = await controller.dispatch("m")
    await back(controller)
    before = await queues(store)
    [(registry, arguments)] = late
    assert await registry._run("dispatch_shortest_queue", *arguments) == []
    assert await queues(store) == before == {A: 0, B: 0, answer.value: 1}


async def test_what_was_told_and_not_acknowledged_counts_once(controller: Controller, link: Link, store: Store) -> None:
    with link.broken():
        for _ in range(6):
            await controller.dispatch("m")
    link.passed.clear()
    with link.broken("after"):
        await wait_until(lambda: "settle" not in link.passed and "check" in link.passed, "the store is tried")
    run_settle = wait_until(lambda: "settle" in link.passed, "the settlement has arrived")
    await run_settle
    await back(controller)
    assert await queues(store) == {A: 3, B: 3}


async def test_a_settlement_counts_once_however_often_it_is_sent(store: Store) -> None:
    registry = store.registry()
    for name in (A, B):
        await registry.register(worker(name, queue_length=1))
    [settlement] = registry.settlements({A: 2, B: 3, C: 4}, 0)
    for _ in range(3):
        await registry.settle(settlement)
    assert await queues(store) == {A: 3, B: 4}
    assert await registry.dispatch_shortest_queue(["m"]) == [A], "the indexes were brought up to date"


async def test_there_is_nothing_to_settle_where_nothing_happened(store: Store) -> None:
    registry = store.registry()
    assert registry.settlements({}, 0) == []
    [settlement] = registry.settlements({}, 1000)
    await registry.settle(settlement)
    assert await store.aside.get(keys.sequence(store.namespace)) == "1000"
    [settlement] = registry.settlements({}, 10)
    await registry.settle(settlement)
    assert await store.aside.get(keys.sequence(store.namespace)) == "1000", "it never goes back"


async def test_a_large_settlement_is_sent_in_parts(store: Store) -> None:
    registry = store.registry()
    parts = registry.settlements({f"http://w{i}:1": 1 for i in range(2500)}, 3)
    assert [len(part.bookings) for part in parts] == [1000, 1000, 500]
    assert len({part.request_id for part in parts}) == 3


async def test_a_booking_is_never_taken_back_below_zero(store: Store) -> None:
    registry = store.registry()
    await registry.register(worker(A))
    assert await registry.dispatch_shortest_queue(["m"]) == [A]
    [reply] = await store.aside.keys(f"{keys.namespace(store.namespace)}:reply:*")
    registry._unanswered.append(reply.rpartition(":")[2])
    await registry.heartbeat([(A, 0)])
    [settlement] = registry.settlements({}, 0)
    await registry.settle(settlement)
    assert await queues(store) == {A: 0}


async def test_the_snapshot_serves_for_the_heartbeat_expiration_at_most(
    store: Store, link: Link, replica: Open
) -> None:
    await store.registry().register(worker(A))
    controller = replica(heartbeat_expiration=0.5)
    await controller.check()
    with link.broken():
        assert (await controller.dispatch("m")).value == A
        await wait_until(lambda: refused(controller), "the snapshot is too old", timeout=5)
        with pytest.raises(StoreUnavailable):
            await controller.list_models()
        with pytest.raises(StoreUnavailable):
            await controller.check()


async def refused(controller: Controller) -> bool:
    try:
        await controller.dispatch("m")
    except StoreUnavailable:
        return True
    return False


async def test_snapshots_are_taken_again_and_again(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=0.01)
    keeping = asyncio.create_task(controller.keep_snapshot_forever())
    await controller.check()
    await store.registry().register(worker(A))
    await wait_until(lambda: knows(controller, A), "the worker is in the snapshot")
    with link.broken():
        assert (await controller.dispatch("m")).value == A
    await back(controller)
    await wait_until(lambda: link.passed.count("list_workers") > 5, "it goes on")
    keeping.cancel()


def knows(controller: Controller, name: str) -> bool:
    snapshot = controller._fallback._snapshot
    return snapshot is not None and name in snapshot._workers


async def test_an_outage_is_logged_once_and_counted(
    controller: Controller, link: Link, caplog: pytest.LogCaptureFixture
) -> None:
    with link.broken():
        for _ in range(5):
            await controller.dispatch("m")
    await back(controller)
    with link.broken():
        await controller.dispatch("m")
    told = [record.getMessage() for record in caplog.records]
    assert told[0] == "The store is away."
    assert told[1].startswith("Dispatching by a snapshot of 2 workers, 0.")
    assert len(told) == 2
    text = controller._metrics.render().decode()
    assert 'controller_dispatches_total{outcome="degraded"} 6.0' in text
    assert "controller_store_outages_total 2.0" in text


async def test_a_store_that_lost_its_memory_is_given_the_workers_again(
    controller: Controller, link: Link, store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    other = replica()  # it has the same snapshot
    await other.check()
    with link.broken():
        assert (await controller.dispatch("n")).value == A
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
        await store.aside.hset("unrelated", "x", "y")
    await back(controller)
    assert "giving it back 2 workers" in caplog.text
    assert await queues(store) == {A: 1, B: 0}
    workers = (await store.registry().list_workers()).workers
    assert [(known.name, known.multimodal, known.check_heart_beat) for known in workers] == [
        (A, False, True),
        (B, True, True),
    ]
    assert all(known.expires_in and 80 < known.expires_in < 90 for known in workers), "no heartbeat was invented"
    assert await controller.heartbeat(A, 3) is True
    await other._fallback._look()
    assert caplog.text.count("giving it back") == 1, "one replica's word is enough"
    await store.aside.delete("unrelated")


async def test_what_has_registered_since_is_not_overwritten(controller: Controller, link: Link, store: Store) -> None:
    with link.broken():
        await controller.dispatch("n")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    link.cut = "before"
    registry = store.registry()
    link.cut = None
    await registry.register(worker(A, "new", queue_length=7))
    await back(controller)
    workers = (await registry.list_workers()).workers
    assert {known.name: known.status for known in workers} == {
        A: WorkerStatus(("new",), 1, workers[0].status.queue_length),
        B: WorkerStatus(("m",), 1, 0),
    }
    assert workers[0].status.queue_length in (7, 8)


async def test_workers_whose_time_is_over_are_not_given_back(
    store: Store, link: Link, replica: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store.registry(heartbeat_expiration=0.2).register(worker(A))
    await store.registry().register(worker(B, check_heart_beat=False))
    controller = replica()
    await controller.check()
    with link.broken():
        await controller.dispatch("m")
        await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
        await wait_until(lambda: lapsed(controller, A), "its time is over")
    await back(controller)
    [known] = (await store.registry().list_workers()).workers
    assert (known.name, known.expires_in) == (B, None)


async def lapsed(controller: Controller, name: str) -> bool:
    return {known.name: known.expires_in for known in (await controller.list_workers()).value}[name] == 0


async def test_a_layout_of_another_version_is_not_touched(
    store: Store, replica: Open, caplog: pytest.LogCaptureFixture
) -> None:
    await store.aside.set(keys.schema(store.namespace), "999")
    controller = replica()
    with pytest.raises(StoreIncompatible, match="laid out in version 999, this program works with version 1"):
        await controller.check()
    with pytest.raises(StoreIncompatible):
        await controller.dispatch("m")
    with pytest.raises(StoreIncompatible):
        await controller.heartbeat(A, 1)
    assert "laid out in version 999" in caplog.text
    await store.aside.delete(keys.schema(store.namespace))
    await back(controller)
    assert await store.aside.get(keys.schema(store.namespace)) == "1"
    assert await controller.dispatch("m") == Found("")


async def test_time_for_snapshots_is_a_small_share(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to list the workers: a fiftieth of the time at most goes into it."""
    keeper = replica(snapshot_interval=1.0)._fallback
    pauses: list[float] = []
    clock = iter([0.0, 0.001, 10.0, 10.1, 20.0, 20.5])

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def wait_for(news: Coroutine[object, object, object], timeout: float) -> None:
        news.close()
        pauses.append(timeout)
        if len(pauses) == 6:
            raise asyncio.CancelledError

    async def take(_: object) -> None: ...

    monkeypatch.setattr(keeper.guard, "ask", take)
    monkeypatch.setattr(fallback, "asyncio", SimpleNamespace(sleep=sleep, wait_for=wait_for))
    monkeypatch.setattr(fallback, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    with pytest.raises(asyncio.CancelledError):
        await keeper.keep_forever()
    assert pauses[0] == pytest.approx(0.05)
    assert 0.9 * 0.95 <= pauses[1] <= 1.1 * 0.95
    assert pauses[2:4] == [pytest.approx(5.0), 0.0]
    assert pauses[4:] == [pytest.approx(90 / 8), 0.0], "but not so little that a snapshot is never of use"


async def test_a_worker_that_registers_is_soon_in_the_snapshot(store: Store, link: Link, replica: Open) -> None:
    controller = replica(snapshot_interval=60.0)
    keeping = asyncio.create_task(controller.keep_snapshot_forever())
    await wait_until(lambda: link.passed.count("list_workers") == 2, "the first snapshots are taken")
    await controller.register(A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False)
    await wait_until(lambda: knows(controller, A), "the worker is in the snapshot", timeout=10)
    keeping.cancel()


async def test_a_model_that_is_missing_is_looked_for_once(controller: Controller, link: Link, store: Store) -> None:
    """The store has lost its memory without being away: it is found out by the first who gets no worker."""
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    link.passed.clear()
    answers = await asyncio.gather(*(controller.dispatch(model) for model in ["m", "n", "m", "nobody's"]))
    assert [bool(answer.value) for answer in answers] == [True, True, True, False]
    assert {answer.snapshot_age for answer in answers} == {None}
    assert link.passed.count("list_workers") == 2
    assert sum((await queues(store)).values()) == 3
    await store.aside.delete(*await store.aside.keys(f"{keys.namespace(store.namespace)}*"))
    assert (await controller.list_models()).value == ["m", "n"]


async def test_a_model_that_is_gone_is_looked_for_once(controller: Controller, link: Link, store: Store) -> None:
    for name in (A, B):
        await store.lapse(name)
    link.passed.clear()
    for _ in range(5):
        assert await controller.dispatch("m") == Found("")
    assert link.passed.count("list_workers") == 1
    assert (await controller.list_models()).value == []


async def test_what_cannot_be_read_keeps_nobody_from_being_served(
    controller: Controller, link: Link, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    await store.aside.hset(keys.worker(store.namespace, B), "models", "no JSON")
    with link.broken():
        await controller.dispatch("n")
    await back(controller)
    assert "is not of our making" in caplog.text
    assert await controller.dispatch("n") == Found(A)
    await store.aside.hset(keys.worker(store.namespace, B), "models", '["m"]')


async def test_two_that_tell_the_store_at_once_tell_everything_once(
    controller: Controller, link: Link, store: Store
) -> None:
    with link.broken():
        for _ in range(4):
            await controller.dispatch("m")
    keeper = controller._fallback
    await asyncio.gather(keeper._return_to_store(), keeper._look(), keeper._return_to_store())
    await back(controller)
    assert await queues(store) == {A: 2, B: 2}
