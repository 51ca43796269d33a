"""Test the choices and bookings of shortest_queue, and that repeated calls change nothing."""

import asyncio
import multiprocessing
import random

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreUnavailable
from controller.store import keys
from controller.store.connection import connect
from controller.store.reconciliation import split
from controller.store.registry import Registry
from controller.store_url import StoreUrl
from tests.conftest import CLOCK, Store
from tests.model.shortest_queue import Indexed, least_cost
from tests.support.budget import no_time_limit
from tests.support.dispatches import dispatch, dispatch_lottery, dispatch_shortest_queue, queues, workers_of
from tests.support.invariants import load_of, whole_state
from tests.support.samples import A, B, C, asks, reports, worker


async def test_dispatch_returns_no_worker_when_none_is_registered(registry: Registry) -> None:
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [""]
    assert workers_of(await dispatch_lottery(registry, asks(["m"]))) == [""]


async def test_dispatch_chooses_and_books_the_shortest_queue_per_speed(registry: Registry) -> None:
    await registry.register(worker(A, speed=1, queue_length=3))
    await registry.register(worker(B, speed=4, queue_length=8))
    await registry.register(worker(C, speed=1, queue_length=9))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 6))) == [B, B, B, B, A, B]
    assert await queues(registry) == [4, 13, 9]


async def test_dispatch_rotates_equal_workers_in_registration_order(registry: Registry) -> None:
    for name in (B, C, A):
        await registry.register(worker(name))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 7))) == [B, C, A, B, C, A, B]


async def test_heartbeat_does_not_change_the_rotation(registry: Registry) -> None:
    for name in (A, B, C):
        await registry.register(worker(name))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    await registry.heartbeat(reports([(A, 0), (B, 0), (C, 0)]))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "m", "m"]))) == [B, C, A]


async def test_booking_counts_for_all_models_of_the_worker(registry: Registry) -> None:
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "n"))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "m", "n", "n", "n", "m"]))) == [
        A,
        A,
        B,
        B,
        A,
        A,
    ]


async def test_batch_makes_the_same_choices_as_single_calls(store: Store) -> None:
    one = store.registry()
    many = store.registry("-many")
    draw = random.Random(7)
    models = [draw.choice(["m", "n", "absent"]) for _ in range(60)]
    for registry in (one, many):
        for i in range(6):
            await registry.register(worker(f"http://w{i}:1", *["m", "n"][i % 2 :], speed=1 + i % 3, queue_length=i))
    assert workers_of(await dispatch_shortest_queue(one, asks(models))) == [
        (workers_of(await dispatch_shortest_queue(many, asks([m]))))[0] for m in models
    ]
    assert await queues(one) == await queues(many)


@pytest.mark.parametrize(("script", "draw"), [("dispatch_shortest_queue", ["0"]), ("dispatch_lottery", ["0", "0.5"])])
async def test_repeated_call_returns_the_same_reply_and_books_nothing(
    store: Store, registry: Registry, script: str, draw: list[str]
) -> None:
    for name in (A, B, C):
        await registry.register(worker(name))
    arguments = ["the-id", "60000", "0", "0", *["m", *draw] * 5, "absent", *draw]
    first = await registry._run(script, *arguments)
    after_first = await whole_state(store.client, store.namespace)
    assert await registry._run(script, *arguments) == first
    assert await whole_state(store.client, store.namespace) == after_first
    assert len([worker for worker in first[::2] if worker]) == 5


async def test_dispatch_removes_an_index_entry_without_a_hash(store: Store, registry: Registry) -> None:
    """Dispatch must work after an operator or an eviction policy has deleted keys."""
    key = f"{{{store.namespace}}}"
    await registry.register(worker(B, queue_length=100))
    for lost in ([f"{key}:worker:{A}"], [f"{key}:worker:{A}", f"{key}:heartbeat:{A}"]):
        await registry.register(worker(A))
        await store.client.delete(*lost)
        assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "m"]))) == [B, B]
        await registry.register(worker(A))
        await store.client.delete(*lost)
        assert set(workers_of(await dispatch_lottery(registry, asks(["m"] * 20)))) == {B}
        await registry.heartbeat(reports([(A, 0)]))
        assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [B]
    assert [known.name for known in (await registry.list_workers()).workers] == [B]
    await store.client.delete(*await store.client.keys(f"{key}*"))


@pytest.mark.parametrize("lease_ms", [0, 60_000])
async def test_dispatch_skips_a_draining_worker_that_an_index_lists(store: Store, lease_ms: int) -> None:
    """An operator may have added the index entry by hand."""
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A))
    await registry.register(worker(B, queue_length=100))
    await registry.drain(A)
    seq = int(await store.client.hget(keys.worker(store.namespace, A), "index_seq"))
    await store.client.zadd(keys.cost_index(store.namespace, "m"), {f"{seq:016d}{A}": -1.0})
    await store.client.zadd(keys.decay_index(store.namespace, "m"), {A: -(2**53)})
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "m"], lease_ms))) == [B, B]
    await store.client.zrem(keys.cost_index(store.namespace, "m"), f"{seq:016d}{A}")
    await store.client.zrem(keys.decay_index(store.namespace, "m"), A)


@pytest.mark.parametrize("method", DispatchMethod)
async def test_dispatch_purges_many_expired_workers_in_several_calls(
    store: Store, method: DispatchMethod, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each call blocks Redis only briefly. Together the calls return the result of a single one."""
    no_time_limit(monkeypatch)
    registry = store.registry()
    dead = [f"http://dead{i}:1" for i in range(100)]
    for name in dead:
        await registry.register(worker(name, "m", *(f"m{i}" for i in range(9))))
        await store.expire_heartbeat(name)
    await registry.register(worker(A, "m", queue_length=1000, speed=0.001))
    calls: list[str | int] = []
    run = Registry._run

    async def counting(self: Registry, script: str, *arguments: str | int) -> object:
        calls.extend(arguments[:1])
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", counting)
    assert workers_of(await dispatch(registry, method, asks(["absent", "m", "m"]))) == ["", A, A]
    assert len(calls) == len(set(calls)) == 1 + 100 * 6 // 128, "each call has its own request ID"
    assert [known.name for known in (await registry.list_workers()).workers] == [A]


@pytest.mark.parametrize("method", DispatchMethod)
async def test_remaining_requests_receive_their_own_replies_after_a_retry(
    store: Store, registry: Registry, method: DispatchMethod
) -> None:
    for i in range(60):
        await registry.register(worker(f"http://dead{i}:1", "m", "n", *(f"m{j}" for j in range(8))))
        await store.expire_heartbeat(f"http://dead{i}:1")
    for name, model in ((A, "m"), (B, "n"), (C, "o")):
        await registry.register(worker(name, model, queue_length=1000, speed=0.001))
    choices = await dispatch(registry, method, asks(["o", "m", "n", "m", "o", "absent", "n"]))
    assert workers_of(choices) == [C, A, B, A, C, "", B]


async def test_reconciliation_undoes_only_the_call_that_failed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that an earlier call has answered stay booked, because their clients have got the answers."""
    no_time_limit(monkeypatch)
    registry = store.registry()
    for i in range(60):
        await registry.register(worker(f"http://dead{i}:1", "m", *(f"m{j}" for j in range(9))))
        await store.expire_heartbeat(f"http://dead{i}:1")
    await registry.register(worker(A, "m", "o"))
    unanswered: list[str] = []
    registry.on_unanswered = unanswered.append
    first = await registry.dispatch_some(DispatchMethod.SHORTEST_QUEUE, asks(["o", "m", "o"]))
    assert [choice and choice.worker for choice in first] == [A, None, A]
    run = Registry._run

    async def unanswered_run(self: Registry, script: str, *arguments: str | int) -> object:
        await run(self, script, *arguments)
        raise StoreUnavailable("The reply was lost.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", unanswered_run)
        with pytest.raises(StoreUnavailable):
            await registry.dispatch_some(DispatchMethod.SHORTEST_QUEUE, asks(["o"]))
    assert await queues(registry) == [3]
    [reconciliation] = split({}, unanswered, 0)
    assert len(reconciliation.unanswered) == 1
    await registry.reconcile(reconciliation)
    assert await queues(registry) == [2]


async def fleet(store: Store, namespace: str) -> dict[str, Indexed]:
    """Return the workers of the model m from the cost index and their hashes."""
    state = await whole_state(store.client, namespace)
    workers = {}
    for member, score in state.indexes["m"]:
        name = member[16:]
        load, seq = load_of(state.hashes[name]), int(state.hashes[name]["seq"])
        workers[name] = Indexed(load, seq, int(member[:16]), score, load.decay_key(), name)
    return workers


@pytest.mark.slow_on_fakeredis
@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize("capacity", [None, 4])
async def test_dispatch_compares_the_fronts_of_both_indexes_when_only_some_requests_are_leased(
    store: Store, capacity: int | None
) -> None:
    namespace = f"{store.namespace}-decaying"
    registry = store.registry("-decaying", deadline=60.0, booking_decay=True, booking_delay=0.2)
    now = 1_800_000_000_000
    await store.client.set(CLOCK, now)
    for i in range(20):
        await registry.register(worker(f"http://w{i}:1", queue_length=i % 7, speed=1 + i % 2, capacity=capacity))
    order = random.Random(3)
    for _ in range(60):
        now += order.randrange(20)
        await store.client.set(CLOCK, now)
        workers = await fleet(store, namespace)
        leased = order.random() < 0.5
        [chosen] = await dispatch_shortest_queue(registry, asks(["m"], 60_000 * leased))
        reading, read_at, time_constant = map(float, (await store.client.get(keys.decay(namespace, "m"))).split()[:3])
        reading += (now - read_at) / time_constant
        best = least_cost(workers.values(), leased=leased, decays=True, reading=reading, rate=1.0)
        assert best is not None
        costs = [each.load.cost(reading, each.load.speed) for each in (best, workers[chosen.worker])]
        assert costs[0] == pytest.approx(costs[1], rel=1e-5)
    await store.client.delete(CLOCK, *await store.client.keys(f"{{{namespace}}}*"))


@pytest.mark.usefixtures("store_clock")
async def test_sequence_breaks_ties_between_leased_and_untracked_load(store: Store) -> None:
    """A has an untracked request, B a leased one. B is first in the index, but A was dispatched to earlier."""
    await store.client.set(CLOCK, 1_800_000_000_000)
    registry = store.registry(booking_decay=True)
    for name in (A, B):
        await registry.register(worker(name, check_heart_beat=False))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"], 60_000))) == [B]
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    await store.client.delete(CLOCK)


def dispatch_many(url: StoreUrl, namespace: str, times: int) -> None:
    """Dispatch requests one after the other. Runs in a separate process."""

    async def run() -> None:
        client = connect(url, timeout=60.0)
        registry = Registry(client, namespace, 90.0, 60.0, booking_decay=False, booking_delay=0.0)
        for _ in range(times):
            [name] = workers_of(await dispatch_shortest_queue(registry, asks(["m"])))
            assert name
        await client.aclose()

    asyncio.run(run())


@pytest.mark.slow
async def test_four_concurrent_processes_dispatch_evenly(store: Store) -> None:
    if store.kind == "fakeredis":
        pytest.skip("fakeredis works in one process only")
    registry = store.registry()
    for i in range(10):
        await registry.register(worker(f"http://w{i}:1"))
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=dispatch_many, args=(store.replica_url, store.namespace, 500)) for _ in range(4)
    ]
    for process in processes:
        process.start()
    for process in processes:
        await asyncio.to_thread(process.join)
    assert [process.exitcode for process in processes] == [0] * 4
    booked = await queues(registry)
    assert sum(booked) == 2000
    assert max(booked) - min(booked) <= 1
