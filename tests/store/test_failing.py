"""Test that failing workers are chosen last and do not hide other workers."""

import asyncio
import random
from collections import Counter

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.store import keys
from controller.store.reconciliation import split
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.support.dispatches import dispatch, dispatch_lottery, dispatch_shortest_queue, leases_of, workers_of
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.waiting import wait_until

FAILING = [f"http://failing{i}:1" for i in range(12)]
SERVING = [f"http://serving{i}:1" for i in range(12)]


@pytest.mark.parametrize("lease_ms", [0, 60_000])
@pytest.mark.parametrize("decays", [True, False])
async def test_dispatch_skips_many_failing_workers(store: Store, decays: bool, lease_ms: int) -> None:
    registry = store.registry(booking_decay=decays)
    for name in [*FAILING, *SERVING]:
        await registry.register(worker(name))
    for name in FAILING:
        assert await registry.report_failure(name)
    await check_invariants(store.client, store.namespace, decays)
    chosen = await dispatch_shortest_queue(registry, asks(["m"] * 36, lease_ms))
    assert Counter(workers_of(chosen)) == dict.fromkeys(SERVING, 3)
    await check_invariants(store.client, store.namespace, decays)


@pytest.mark.parametrize("method", DispatchMethod)
async def test_failing_workers_are_chosen_when_all_fail(store: Store, method: DispatchMethod) -> None:
    registry = store.registry(booking_decay=True, draw=random.Random(2).random)
    for name in FAILING:
        await registry.register(worker(name))
        await registry.report_failure(name)
    chosen = Counter(workers_of(await dispatch(registry, method, asks(["m"] * 360))))
    assert set(chosen) == set(FAILING)


async def test_lottery_skips_a_fast_failing_worker_while_another_serves(store: Store) -> None:
    registry = store.registry(draw=random.Random(2).random)
    await registry.register(worker(A, speed=1))
    await registry.register(worker(B, speed=10_000))
    await registry.register(worker(C, speed=3))
    await registry.report_failure(B)
    drawn = Counter(workers_of(await dispatch_lottery(registry, asks(["m"] * 1000))))
    assert drawn.keys() == {A, C}
    assert 650 < drawn[C] < 850, "the odds of the other workers are unchanged"
    await check_invariants(store.client, store.namespace)
    await registry.heartbeat(reports([(B, 0)]))
    assert Counter(workers_of(await dispatch_lottery(registry, asks(["m"] * 100))))[B] > 90


async def failing(registry: Registry) -> dict[str, str]:
    return {known.name: known.failing for known in (await registry.list_workers()).workers}


async def test_poll_clears_request_failures_of_a_worker_without_heartbeats(registry: Registry) -> None:
    """Without this rule, a failing worker that sends no heartbeats would stay last."""
    await registry.register(worker(A))
    await registry.register(worker(B, check_heart_beat=False))
    for name in (A, B):
        await registry.report_failure(name)
    assert await failing(registry) == {A: "request", B: "request"}
    await registry.take_poll_answers(reports([(A, 0), (B, 0)]))
    assert await failing(registry) == {A: "request", B: ""}, "a heartbeat clears the failure of A"
    await registry.report_failure(B)
    for known in (await registry.list_workers()).workers:  # as the registry refresh does
        again = worker(known.name, check_heart_beat=known.check_heart_beat)
        assert await registry.refresh(again, known.registration)
    assert await failing(registry) == {A: "request", B: ""}
    await registry.heartbeat(reports([(A, 0)]))
    assert await failing(registry) == {A: "", B: ""}


async def test_poll_clears_only_poll_failures_of_a_worker_with_heartbeats(registry: Registry) -> None:
    await registry.register(worker(A))
    assert await registry.report_failure(A, of_polls=True) is None, "A has never answered a poll"
    assert await registry.report_failure(B, of_polls=True) is False, "B is not registered"
    await registry.take_poll_answers(reports([(A, 0)]))
    assert await registry.report_failure(A, of_polls=True)
    assert await failing(registry) == {A: "polls"}
    await registry.take_poll_answers(reports([(A, 0)]))
    assert await failing(registry) == {A: ""}
    await registry.report_failure(A, of_polls=True)
    await registry.report_failure(A)
    await registry.report_failure(A, of_polls=True)
    await registry.take_poll_answers(reports([(A, 0)]))
    assert await failing(registry) == {A: "request"}


async def test_report_failure_returns_false_for_an_expired_worker(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await store.expire_heartbeat(A)
    for of_polls in (False, True):
        assert await registry.report_failure(A, of_polls=of_polls) is False
        assert await registry.report_failure(B, of_polls=of_polls) is False


async def test_leased_dispatch_finds_capacity_freed_by_decay(store: Store) -> None:
    """Both workers were full when their loads were written. Since then, the untracked load of B has decayed."""
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A, capacity=2))
    await registry.register(worker(B, capacity=2, queue_length=3))
    assert set(workers_of(await dispatch_shortest_queue(registry, asks(["m", "m"], 60_000)))) == {A}
    index = keys.cost_index(store.namespace, "m")
    decay_key = keys.decay(store.namespace, "m")
    reading, rest = (await store.client.get(decay_key)).split(" ", 1)
    await store.client.set(decay_key, f"{float(reading) + 20} {rest}")  # simulate elapsed time
    scores = {member[16:]: score for member, score in await store.client.zrange(index, 0, -1, withscores=True)}
    assert 1e9 < scores[A] < scores[B], "A has no untracked load and is first"
    [chosen] = await dispatch_shortest_queue(registry, asks(["m"], 60_000))
    assert chosen.worker == B


async def test_restore_keeps_a_worker_draining(registry: Registry) -> None:
    assert await registry.restore(worker(A), draining=True)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [""]
    await registry.register(worker(A))
    assert [known.draining for known in (await registry.list_workers()).workers] == [True]
    assert await registry.drain(A, False)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]


async def test_worker_is_not_drained_when_drawn_since_its_last_report(registry: Registry) -> None:
    await registry.register(worker(A))
    assert workers_of(await dispatch_lottery(registry, asks(["m"]))) == [A]
    await registry.drain(A)
    assert [known.drained for known in (await registry.list_workers()).workers] == [False]
    await registry.heartbeat(reports([(A, 0)]))
    assert [known.drained for known in (await registry.list_workers()).workers] == [True]
    await registry.drain(A, False)
    await dispatch_lottery(registry, asks(["m"]))
    await registry.register(worker(A))
    await registry.drain(A)
    assert [known.drained for known in (await registry.list_workers()).workers] == [True], (
        "the registration reset its counts"
    )


async def test_bookings_decay_after_a_resume_without_a_decay_key(store: Store) -> None:
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A))
    await registry.drain(A)
    await store.client.delete(keys.decay(store.namespace, "m"))  # as if it had expired after an hour
    await registry.drain(A, False)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    assert await store.client.exists(keys.decay(store.namespace, "m"))


@pytest.mark.usefixtures("store_clock")
async def test_bookings_decay_by_the_new_decay_clock_after_a_resume(store: Store) -> None:
    """The reading stored when the worker was drained is far ahead of the new decay clock."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A, check_heart_beat=False))
    await store.client.incrby(CLOCK, 10_000_000)
    await registry.heartbeat(reports([(A, 0)]))
    await registry.drain(A)
    await store.client.delete(keys.decay(store.namespace, "m"))  # as if it had expired after an hour
    await registry.drain(A, False)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    await store.client.incrby(CLOCK, 100_000)
    assert [known.status.queue_length for known in (await registry.list_workers()).workers] == [0]
    await store.client.delete(CLOCK)


async def test_draining_state_lasts_an_hour_after_expiry(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    await store.expire_heartbeat(A)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [""]
    assert await registry.heartbeat(reports([(A, 0)])) == [False]
    assert 3_500_000 < await store.client.pttl(keys.draining(store.namespace, A)) <= 3_600_000
    await registry.register(worker(A))
    assert [known.draining for known in (await registry.list_workers()).workers] == [True]


@pytest.mark.parametrize("swept", [True, False])
async def test_worker_resumed_while_expired_serves_after_registration(
    store: Store, registry: Registry, swept: bool
) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    await store.expire_heartbeat(A)
    if swept:
        assert await registry.sweep(60.0) == [A]
    assert not await registry.drain(A, False)
    await registry.register(worker(A))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]


async def test_registration_resets_whether_a_worker_answered_a_poll(registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.take_poll_answers(reports([(A, 0)]))
    await registry.register(worker(A))
    assert await registry.report_failure(A, of_polls=True) is None
    assert await registry.restore(worker(B), polled=True), "B is restored as a worker that answers polls"
    assert await registry.report_failure(B, of_polls=True)


@pytest.mark.parametrize("method", DispatchMethod)
async def test_dispatch_ends_expired_leases(store: Store, registry: Registry, method: DispatchMethod) -> None:
    await registry.register(worker(A))
    await dispatch(registry, method, asks(["m", "m"], 1))
    await dispatch(registry, method, asks(["m"], 60_000))
    await wait_until(lambda: is_only_the_new_lease_counted(registry, method), "the first two leases have ended")


@pytest.mark.parametrize("method", DispatchMethod)
async def test_unreleased_leases_do_not_accumulate(registry: Registry, method: DispatchMethod) -> None:
    """A client may rely on the lease duration instead of releasing. Leases end without a sweep."""
    await registry.register(worker(A))
    for _ in range(4):
        await dispatch(registry, method, asks(["m"] * 256, 1))
        await asyncio.sleep(0.01)
    await dispatch(registry, method, asks(["m"], 60_000))
    [known] = (await registry.list_workers()).workers
    assert known.leased <= 256, "each call ends more leases than it grants"


async def is_only_the_new_lease_counted(registry: Registry, method: DispatchMethod) -> bool:
    [lease] = leases_of(await dispatch(registry, method, asks(["m"], 60_000)))
    await registry.release([lease])
    return [known.leased for known in (await registry.list_workers()).workers] == [1]


async def test_release_after_a_report_does_not_make_the_count_negative(store: Store) -> None:
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A))
    leases = leases_of(await dispatch_shortest_queue(registry, asks(["m", "m"], 60_000)))
    await asyncio.sleep(0.01)  # Redis stores times in whole milliseconds
    await registry.heartbeat(reports([(A, 0)]))  # both requests have ended
    key = keys.worker(store.namespace, A)
    reported_at = await store.client.hget(key, "reported_at")
    await store.client.hset(key, "reported_at", int(reported_at) - 1_500)  # simulate elapsed time
    await registry.release(leases[:1])
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length) == (1, 0)


@pytest.mark.parametrize("lease_ms", [0, 60_000])
async def test_reconciliation_of_a_lottery_undoes_only_its_leases(store: Store, lease_ms: int) -> None:
    registry = store.registry()
    await registry.register(worker(A, queue_length=4))
    await dispatch_shortest_queue(registry, asks(["m"] * 3))  # the lottery has not booked these
    arguments: list[str | int] = ["m", lease_ms, "0.5"] * 2
    choices = await registry._run("dispatch_lottery", "lost", 6_000, 0, 0, *arguments)
    assert len(set(choices[1::2])) == (2 if lease_ms else 1), "leases are unique"
    assert await registry._run("dispatch_lottery", "lost", 6_000, 0, 0, *arguments) == choices
    for reconciliation in split({}, ["lost"], 0):
        await registry.reconcile(reconciliation)
    [known] = (await registry.list_workers()).workers
    assert (known.status.queue_length, known.leased) == (7, 0)
    assert await store.client.hget(keys.worker(store.namespace, A), "dispatched_by_lottery") == "0"
    assert await registry._run("dispatch_lottery", "lost", 6_000, 0, 0, *arguments) == []


async def test_reconciliation_after_a_report_does_not_make_the_count_negative(registry: Registry) -> None:
    await registry.register(worker(A))
    assert await registry._run("dispatch_shortest_queue", "lost", 6_000, 0, 0, "m", 0) == [A, ""]
    await asyncio.sleep(0.01)  # Redis stores times in whole milliseconds
    await registry.heartbeat(reports([(A, 0)]))
    for reconciliation in split({}, ["lost"], 0):
        await registry.reconcile(reconciliation)
    [known] = (await registry.list_workers()).workers
    assert (known.booked, known.status.queue_length) == (0, 0)
