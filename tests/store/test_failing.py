"""Workers that fail: they come behind all others, and stand in nobody's way."""

import asyncio
import random
from collections import Counter

import pytest

from controller.store import keys
from controller.store.reconciliation import split
from controller.store.registry import Registry
from tests.conftest import CLOCK, Store
from tests.support.dispatches import leases_of, workers_of
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.waiting import wait_until

FAILING = [f"http://failing{i}:1" for i in range(12)]
SERVING = [f"http://serving{i}:1" for i in range(12)]


@pytest.mark.parametrize("lease_ms", [0, 60_000])
@pytest.mark.parametrize("fades", [True, False])
async def test_many_that_fail_hide_nobody(store: Store, fades: bool, lease_ms: int) -> None:
    registry = store.registry(booking_decay=fades)
    for name in [*FAILING, *SERVING]:
        await registry.register(worker(name))
    for name in FAILING:
        assert await registry.report_failure(name)
    await check_invariants(store.client, store.namespace, fades)
    chosen = await registry.dispatch_shortest_queue(asks(["m"] * 36, lease_ms))
    assert Counter(workers_of(chosen)) == dict.fromkeys(SERVING, 3)
    await check_invariants(store.client, store.namespace, fades)


@pytest.mark.parametrize("operation", ["dispatch_shortest_queue", "dispatch_lottery"])
async def test_where_all_fail_they_serve(store: Store, operation: str) -> None:
    registry = store.registry(booking_decay=True, draw=random.Random(2).random)
    for name in FAILING:
        await registry.register(worker(name))
        await registry.report_failure(name)
    chosen = Counter(workers_of(await getattr(registry, operation)(asks(["m"] * 360))))
    assert set(chosen) == set(FAILING)


async def test_a_fast_worker_that_fails_is_never_drawn_while_another_serves(store: Store) -> None:
    registry = store.registry(draw=random.Random(2).random)
    await registry.register(worker(A, speed=1))
    await registry.register(worker(B, speed=10_000))
    await registry.register(worker(C, speed=3))
    await registry.report_failure(B)
    drawn = Counter(workers_of(await registry.dispatch_lottery(asks(["m"] * 1000))))
    assert drawn.keys() == {A, C}
    assert 650 < drawn[C] < 850, "the others keep their odds"
    await check_invariants(store.client, store.namespace)
    await registry.heartbeat(reports([(B, 0)]))
    assert Counter(workers_of(await registry.dispatch_lottery(asks(["m"] * 100))))[B] > 90


async def failing(registry: Registry) -> dict[str, str]:
    return {known.name: known.failing for known in (await registry.list_workers()).workers}


async def test_an_answer_to_us_forgives_what_nothing_else_would(registry: Registry) -> None:
    """A worker without heartbeats would be behind the others for ever."""
    await registry.register(worker(A))
    await registry.register(worker(B, check_heart_beat=False))
    for name in (A, B):
        await registry.report_failure(name)
    assert await failing(registry) == {A: "request", B: "request"}
    await registry.heartbeat(reports([(A, 0), (B, 0)]), of_polls=True)
    assert await failing(registry) == {A: "request", B: ""}, "a heartbeat will tell of A"
    await registry.report_failure(B)
    for known in (await registry.list_workers()).workers:  # a refresh
        again = worker(known.name, check_heart_beat=known.check_heart_beat)
        assert await registry.refresh(again, known.registration)
    assert await failing(registry) == {A: "request", B: ""}
    await registry.heartbeat(reports([(A, 0)]))
    assert await failing(registry) == {A: "", B: ""}


async def test_an_answer_to_a_poll_forgives_only_the_failures_of_polls(registry: Registry) -> None:
    await registry.register(worker(A))
    assert await registry.report_failure(A, of_polls=True) is None, "it has never answered one"
    assert await registry.report_failure(B, of_polls=True) is False, "it is not there"
    await registry.heartbeat(reports([(A, 0)]), of_polls=True)
    assert await registry.report_failure(A, of_polls=True)
    assert await failing(registry) == {A: "polls"}
    await registry.heartbeat(reports([(A, 0)]), of_polls=True)
    assert await failing(registry) == {A: ""}
    await registry.report_failure(A, of_polls=True)
    await registry.report_failure(A)
    await registry.report_failure(A, of_polls=True)
    await registry.heartbeat(reports([(A, 0)]), of_polls=True)
    assert await failing(registry) == {A: "request"}


async def test_who_is_not_alive_does_not_fail(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await store.expire_heartbeat(A)
    for of_polls in (False, True):
        assert await registry.report_failure(A, of_polls=of_polls) is False
        assert await registry.report_failure(B, of_polls=of_polls) is False


async def test_a_lease_finds_the_slot_that_fading_has_made_free(store: Store) -> None:
    """Both were full when they were last touched. Since, what one was sent without leases has faded."""
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A, capacity=2))
    await registry.register(worker(B, capacity=2, queue_length=3))
    assert set(workers_of(await registry.dispatch_shortest_queue(asks(["m", "m"], 60_000)))) == {A}
    index = keys.cost_index(store.namespace, "m")
    fade = keys.decay(store.namespace, "m")
    phase, rest = (await store.client.get(fade)).split(" ", 1)
    await store.client.set(fade, f"{float(phase) + 20} {rest}")  # as if much time had passed
    scores = {member[16:]: score for member, score in await store.client.zrange(index, 0, -1, withscores=True)}
    assert 1e9 < scores[A] < scores[B], "A, which has nothing that fades, stands first"
    [chosen] = await registry.dispatch_shortest_queue(asks(["m"], 60_000))
    assert chosen.worker == B


async def test_a_worker_that_the_store_forgot_drains_on_when_it_is_restored(registry: Registry) -> None:
    assert await registry.restore(worker(A), draining=True)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [""]
    await registry.register(worker(A))
    assert [known.draining for known in (await registry.list_workers()).workers] == [True]
    assert await registry.drain(A, False)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A]


async def test_who_was_drawn_since_it_last_spoke_is_not_drained(registry: Registry) -> None:
    await registry.register(worker(A))
    assert workers_of(await registry.dispatch_lottery(asks(["m"]))) == [A]
    await registry.drain(A)
    assert [known.drained for known in (await registry.list_workers()).workers] == [False]
    await registry.heartbeat(reports([(A, 0)]))
    assert [known.drained for known in (await registry.list_workers()).workers] == [True]
    await registry.drain(A, False)
    await registry.dispatch_lottery(asks(["m"]))
    await registry.register(worker(A))
    await registry.drain(A)
    assert [known.drained for known in (await registry.list_workers()).workers] == [True], "it has begun anew"


async def test_bookings_fade_when_a_worker_serves_again_after_all_was_forgotten(store: Store) -> None:
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A))
    await registry.drain(A)
    await store.client.delete(keys.decay(store.namespace, "m"))  # as after an hour
    await registry.drain(A, False)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A]
    assert await store.client.exists(keys.decay(store.namespace, "m"))


@pytest.mark.usefixtures("store_clock")
async def test_bookings_fade_from_the_new_phase_when_a_worker_serves_again(store: Store) -> None:
    """The phase that it had when it was drained would be far ahead of the new one."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A, check_heart_beat=False))
    await store.client.incrby(CLOCK, 10_000_000)
    await registry.heartbeat(reports([(A, 0)]))
    await registry.drain(A)
    await store.client.delete(keys.decay(store.namespace, "m"))  # as after an hour
    await registry.drain(A, False)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A]
    await store.client.incrby(CLOCK, 100_000)
    assert [known.status.queue_length for known in (await registry.list_workers()).workers] == [0]
    await store.client.delete(CLOCK)


async def test_that_a_worker_drained_is_remembered_for_an_hour(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    await store.expire_heartbeat(A)
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [""]
    assert await registry.heartbeat(reports([(A, 0)])) == [False]
    assert 3_500_000 < await store.client.pttl(keys.draining(store.namespace, A)) <= 3_600_000
    await registry.register(worker(A))
    assert [known.draining for known in (await registry.list_workers()).workers] == [True]


@pytest.mark.parametrize("swept", [True, False])
async def test_who_is_resumed_while_it_is_dead_serves_when_it_is_back(
    store: Store, registry: Registry, swept: bool
) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    await store.expire_heartbeat(A)
    if swept:
        assert await registry.sweep(60.0) == [A]
    assert not await registry.drain(A, False)
    await registry.register(worker(A))
    assert workers_of(await registry.dispatch_shortest_queue(asks(["m"]))) == [A]


async def test_in_a_new_life_it_has_not_answered_a_poll_yet(registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.heartbeat(reports([(A, 0)]), of_polls=True)
    await registry.register(worker(A))
    assert await registry.report_failure(A, of_polls=True) is None
    assert await registry.restore(worker(B), polled=True), "restored, and known to answer"
    assert await registry.report_failure(B, of_polls=True)


@pytest.mark.parametrize("operation", ["dispatch_shortest_queue", "dispatch_lottery"])
async def test_a_lease_whose_time_is_over_is_counted_out_by_the_next(
    store: Store, registry: Registry, operation: str
) -> None:
    await registry.register(worker(A))
    await getattr(registry, operation)(asks(["m", "m"], 1))
    await getattr(registry, operation)(asks(["m"], 60_000))
    await wait_until(lambda: leases_are(registry, operation), "the first two are over")


@pytest.mark.parametrize("operation", ["dispatch_shortest_queue", "dispatch_lottery"])
async def test_leases_that_nobody_releases_do_not_pile_up(registry: Registry, operation: str) -> None:
    """A client may name a time instead of releasing, and no sweep has to come for its leases to end."""
    await registry.register(worker(A))
    for _ in range(4):
        await getattr(registry, operation)(asks(["m"] * 256, 1))
        await asyncio.sleep(0.01)
    await getattr(registry, operation)(asks(["m"], 60_000))
    [known] = (await registry.list_workers()).workers
    assert known.leased <= 256, "each call ends more leases than it grants"


async def leases_are(registry: Registry, operation: str) -> bool:
    [lease] = leases_of(await getattr(registry, operation)(asks(["m"], 60_000)))
    await registry.release([lease])
    return [known.leased for known in (await registry.list_workers()).workers] == [1]


async def test_what_a_report_told_of_and_a_release_tells_again_is_not_below_zero(store: Store) -> None:
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A))
    leases = leases_of(await registry.dispatch_shortest_queue(asks(["m", "m"], 60_000)))
    await asyncio.sleep(0.01)  # times are told to a millisecond
    await registry.heartbeat(reports([(A, 0)]))  # both have ended
    key = keys.worker(store.namespace, A)
    told = await store.client.hget(key, "reported_at")
    await store.client.hset(key, "reported_at", int(told) - 1_500)  # as if that was a while ago
    await registry.release(leases[:1])
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length) == (1, 0)


@pytest.mark.parametrize("lease_ms", [0, 60_000])
async def test_a_lottery_whose_answer_was_lost_takes_back_the_leases_alone(store: Store, lease_ms: int) -> None:
    registry = store.registry()
    await registry.register(worker(A, queue_length=4))
    arguments: list[str | int] = ["m", lease_ms, "0.5"] * 2
    choices = await registry._run("dispatch_lottery", "lost", 6_000, 0, *arguments)
    assert len({lease for _, lease in choices}) == (2 if lease_ms else 1), "leases are unique"
    assert await registry._run("dispatch_lottery", "lost", 6_000, 0, *arguments) == choices
    for settlement in split({}, ["lost"], 0):
        await registry.reconcile(settlement)
    [known] = (await registry.list_workers()).workers
    assert (known.status.queue_length, known.leased) == (4, 0)
    assert await registry._run("dispatch_lottery", "lost", 6_000, 0, *arguments) == []


async def test_what_is_taken_back_after_a_report_makes_no_count_negative(registry: Registry) -> None:
    await registry.register(worker(A))
    assert await registry._run("dispatch_shortest_queue", "lost", 6_000, 0, "m", 0) == [[A, ""]]
    await asyncio.sleep(0.01)  # times are told to a millisecond
    await registry.heartbeat(reports([(A, 0)]))
    for settlement in split({}, ["lost"], 0):
        await registry.reconcile(settlement)
    [known] = (await registry.list_workers()).workers
    assert (known.booked, known.status.queue_length) == (0, 0)
