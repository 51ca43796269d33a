"""Replicas poll the workers for their queue lengths. One replica polls each worker."""

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import pytest

from controller.fleet.poller import Poller
from controller.replica import Replica
from controller.store.registry import Report
from tests.conftest import Store
from tests.fleet.polling import INTERVAL, StatusRoute, known, queue_is, was_polled
from tests.support.outage import Link
from tests.support.samples import worker
from tests.support.waiting import wait_for_each, wait_until
from tests.support.workers import BadWorker, bad_worker


async def test_poll_sets_the_queue_length_and_does_not_extend_the_heartbeat(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker
) -> None:
    await store.registry().register(worker(target.address, queue_length=3))
    status_route.queue_length = 7
    polling()
    await wait_until(lambda: queue_is(store, target.address, 7), "the queue length is stored")
    before = await known(store, target.address)
    assert before.polled
    polls_before = status_route.polls
    await wait_until(lambda: status_route.polls > polls_before + 3, "it is polled several times")
    after = await known(store, target.address)
    assert after.expires_in is not None
    assert before.expires_in is not None
    assert after.expires_in < before.expires_in
    assert after.heartbeat_age > before.heartbeat_age


async def test_hanging_worker_is_not_polled_again_until_its_poll_has_ended(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker
) -> None:
    other = StatusRoute()
    status_route.goes_on.clear()
    async with bad_worker(worker_get_status=other) as other_target:
        for address in (target.address, other_target.address):
            await store.registry().register(worker(address))
        polling()
        await wait_until(lambda: other.polls > 10, "the other worker is polled several times")
    assert status_route.polls == 1
    status_route.goes_on.set()
    await wait_until(lambda: status_route.polls > 3, "the worker is polled again")


async def test_number_of_concurrent_polls_is_limited(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("controller.fleet.poller._MAX_POLLS", 3)
    status_route.goes_on.clear()
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(7):
            other_target = await stack.enter_async_context(bad_worker(worker_get_status=status_route))
            await store.registry().register(worker(other_target.address))
        controller = polling()
        await wait_until(lambda: len(controller.poller._polls) == 7, "all polls have started or wait for a permit")
        await wait_until(lambda: status_route.polls == 3, "three workers are polled")
        await asyncio.sleep(2 * INTERVAL)
        assert status_route.polls == 3
        monkeypatch.setattr(controller.poller, "_workers", list)  # as if all workers had moved to another replica
        controller.poller._due.clear()
        status_route.goes_on.set()
        await wait_until(lambda: not controller.poller._polls, "all polls have ended")
        assert status_route.polls == 3, "workers of another replica are not polled"


async def test_many_hanging_workers_do_not_delay_polls_of_others(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker
) -> None:
    status_route.goes_on.clear()
    other = StatusRoute()
    async with bad_worker(worker_get_status=other) as other_target:
        for i in range(200):
            await store.registry().register(worker(f"{target.address}/{i}"))
        await store.registry().register(worker(other_target.address))
        polling()
        await wait_until(lambda: status_route.polls == 200, "all are polled, and hang")
        polls_before = other.polls
        await wait_until(lambda: other.polls > polls_before + 10, "the other worker is polled several times")


async def test_workers_that_failed_before_and_hang_do_not_delay_polls_of_others(
    store: Store,
    polling: Callable[..., Replica],
    status_route: StatusRoute,
    target: BadWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controller.fleet.poller._MAX_POLLS", 2)
    other = StatusRoute()
    async with bad_worker(worker_get_status=other) as other_target:
        for i in range(5):
            await store.registry().register(worker(f"{target.address}/{i}"))
        await store.registry().register(worker(other_target.address))
        controller = polling()
        addresses = [f"{target.address}/{i}" for i in range(5)]
        await wait_for_each(addresses, partial(was_polled, store), "the worker has answered a poll")
        status_route.fails = True
        await wait_until(lambda: len(controller.poller._failures) == 5, "each worker has failed a poll")
        status_route.goes_on.clear()
        status_route.fails = False
        polls_before = status_route.polls
        await wait_until(lambda: status_route.polls == polls_before + 2, "the limit for failing workers is reached")
        polls_before = other.polls
        await wait_until(lambda: other.polls > polls_before + 10, "the other worker is polled several times")
        status_route.goes_on.set()
        await wait_until(lambda: not controller.poller._failures, "all are polled when permits are free")


async def test_report_of_a_poll_is_dated_at_the_start_of_the_poll(
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker
) -> None:
    """The worker may have counted its queue before a request that was booked during the poll arrived."""
    registry = store.registry()
    await registry.register(worker(target.address))
    status_route.goes_on.clear()
    stored: list[Report] = []

    async def take(reports: Sequence[Report]) -> list[bool]:
        stored.extend(reports)
        return [True] * len(reports)

    registry.take_poll_answers = take  # type: ignore[method-assign]
    polling(registry=registry)
    await wait_until(lambda: status_route.polls, "a poll has started")
    booked_at = time.monotonic()
    status_route.goes_on.set()
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
    store: Store, polling: Callable[..., Replica], status_route: StatusRoute, target: BadWorker, link: Link
) -> None:
    """The answers could not be stored, and two replicas might poll the same worker."""
    await store.registry().register(worker(target.address))
    controller = polling()
    await wait_until(lambda: status_route.polls > 1, "the worker is polled")
    with link.broken():
        await wait_until(lambda: not controller.poller._due, "the replica has no workers")
    await wait_until(lambda: controller.poller._due, "the replica has its worker again after the outage")


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
