"""Replicas ask workers for their queue lengths, each worker one replica."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest

from controller.domain.worker import Worker
from controller.poller import Poller
from controller.service import Controller
from controller.web.app import _end as end
from tests.conftest import Open, Store
from tests.samples import worker
from tests.waiting import wait_until
from tests.workers import BadWorker, answers, bad_worker

INTERVAL = 0.1


class Engine:
    """A worker that tells how often it was asked, and fails when it is told to."""

    def __init__(self) -> None:
        self.asked = 0
        self.queue_length = 0
        self.fails = False

    async def __call__(self, living: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        self.asked += 1
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
async def polling(replica: Open) -> AsyncIterator[Callable[..., Controller]]:
    """Opens replicas that take snapshots and poll."""
    chores: list[asyncio.Task[None]] = []

    def start(snapshot_interval: float = 0.05) -> Controller:
        controller = replica(poll_interval=INTERVAL, snapshot_interval=snapshot_interval)
        chores.extend(
            asyncio.create_task(chore()) for chore in (controller.keep_snapshot_forever, controller.poll_forever)
        )
        return controller

    yield start
    await end(chores)


async def known(store: Store, name: str) -> Worker:
    return {found.name: found for found in (await store.registry().list_workers()).workers}[name]


async def test_a_poll_sets_the_queue_length_and_prolongs_no_life(
    store: Store, polling: Callable[..., Controller], engine: Engine, asked: BadWorker
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
    polling: Callable[..., Controller],
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
    assert [(await controller.dispatch("m")).value for _ in range(3)] == ["http://127.0.0.1:9"] * 3
    await wait_until(lambda: "is not asked again" in caplog.text, "the other cannot be asked at all")
    engine.fails = False
    await wait_until(lambda: serves(store, asked.address), "it is forgiven")
    assert (await controller.dispatch("m")).value == asked.address
    assert caplog.text.count("comes behind all others") == 1
    assert caplog.text.count("is not asked again") == 1
    assert not (await known(store, "http://127.0.0.1:9")).failing, "who cannot be asked is left alone"


async def test_who_stops_answering_soon_after_its_first_answer_is_not_left_alone(
    store: Store, polling: Callable[..., Controller], engine: Engine, asked: BadWorker
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


async def test_who_was_left_alone_is_asked_again_when_it_registers_again(
    store: Store,
    polling: Callable[..., Controller],
    engine: Engine,
    asked: BadWorker,
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine.fails = True
    await store.registry().register(worker(asked.address))
    polling()
    with caplog.at_level("INFO"):
        await wait_until(lambda: "is not asked again" in caplog.text, "it is left alone")
    asked_before = engine.asked
    await asyncio.sleep(5 * INTERVAL)
    assert engine.asked == asked_before
    engine.fails = False
    await store.registry().register(worker(asked.address))
    await wait_until(lambda: polled(store, asked.address), "it is asked, and answers")


async def test_replicas_share_the_workers_and_take_over(store: Store, polling: Callable[..., Controller]) -> None:
    registry = store.registry()
    names = [f"http://127.0.0.1:{port}" for port in range(1, 41)]
    for name in names:
        await registry.register(worker(name))
    replicas = [polling() for _ in range(3)]
    pollers: list[Poller] = [replica._poller for replica in replicas]

    def shares() -> list[set[str]]:
        return [set(poller._due) | set(poller._left_alone) for poller in pollers]

    def shared() -> bool:
        counts = Counter(name for share in shares() for name in share)
        return len(counts) == len(names) and set(counts.values()) == {1} and all(shares())

    await wait_until(shared, "each worker is with one of the replicas")
    before = shares()
    await pollers[0].close()
    del pollers[0]
    await registry.meet(replicas[0]._poller._id, 0.0)
    replicas[0]._poller._meet = asyncio.Event().wait  # type: ignore[method-assign,assignment] # it is gone
    await wait_until(shared, "the others have taken over")
    for share, had in zip(shares(), before[1:], strict=True):
        assert had <= share, "nobody gives up what it had"
