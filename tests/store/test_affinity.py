"""Requests with an affinity go to the worker that got an earlier one with the same keys, within limits."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.domain.engine import Engine, Protocol, indexed_name
from controller.store import keys
from controller.store.reconciliation import Reconciliation
from controller.store.registry import Choice, Registry, Request
from tests.conftest import CLOCK, Store
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, workers_of
from tests.support.pools import allow_sets
from tests.support.samples import A, B, C, reports, worker

LEASE_MS = 60_000
NOW = 1_800_000_000_000


def affine(*names: str, model: str = "m", lease_ms: int = LEASE_MS, token: str = "") -> Request:
    return Request(model, lease_ms, token, names)


async def one(registry: Registry, *names: str) -> tuple[str, str]:
    """Dispatch a request with these keys. Return its worker and the outcome."""
    [choice] = await dispatch_shortest_queue(registry, [affine(*names)])
    return choice.worker, choice.affinity


async def load(registry: Registry, name: str, requests: int) -> None:
    await registry.heartbeat(reports([(name, requests)]))


async def remembered(store: Store) -> list[dict[str, str]]:
    """Return the maps of all generations, the oldest one first."""
    prefix = keys.affinity(store.namespace, "")
    found = sorted(await store.client.keys(f"{prefix}*"))
    for key in found:
        assert await store.client.pttl(key) > 0
    return [await store.client.hgetall(key) for key in found]


async def test_next_request_goes_to_the_remembered_worker(registry: Registry) -> None:
    """Without an affinity, they go to the other workers."""
    for name in (A, B, C):
        await registry.register(worker(name))
    assert await one(registry, "session") == (A, "new")
    assert await one(registry, "session") == (A, "hit")
    assert workers_of(await dispatch_shortest_queue(registry, [Request("m", LEASE_MS)])) == [B]
    assert await one(registry, "another") == (C, "new")
    assert await one(registry, "session") == (A, "hit")


async def test_requests_of_one_batch_remember_each_other(registry: Registry) -> None:
    """Requests without an affinity and for models without workers are among them."""
    for name in (A, B):
        await registry.register(worker(name))
    requests = [affine("x"), Request("m"), affine("x"), affine("y", model="absent"), affine("y", lease_ms=0)]
    choices = await dispatch_shortest_queue(registry, requests)
    assert [(choice.worker, choice.affinity) for choice in choices] == [
        (A, "new"), (B, ""), (A, "hit"), ("", ""), (B, "new"),
    ]  # fmt: skip
    assert [bool(choice.lease) for choice in choices] == [True, False, True, False, False]


async def test_most_specific_key_counts_and_all_are_written(registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    assert await one(registry, "short") == (A, "new")
    assert await one(registry, "long") == (B, "new")
    assert await one(registry, "long", "short") == (B, "hit")
    assert await one(registry, "other", "long") == (B, "hit")
    assert await one(registry, "other") == (B, "hit")


async def test_key_of_several_workers_goes_to_the_one_with_the_lowest_cost(store: Store, registry: Registry) -> None:
    for name in (A, B, C):
        await registry.register(worker(name))
    assert await one(registry, "x") == (A, "new")
    await load(registry, A, 9)
    assert await one(registry, "x") == (B, "overloaded")
    await load(registry, B, 1)
    await load(registry, A, 2)
    assert await one(registry, "x") == (B, "hit")
    assert await remembered(store) == [{"x": f"{B}\n{A}"}]
    # With two workers, each may have 1 request more than the best one.
    await load(registry, A, 3)
    await load(registry, B, 4)
    assert await one(registry, "x") == (C, "overloaded")
    assert await remembered(store) == [{"x": f"{C}\n{B}\n{A}"}]


async def test_key_of_four_workers_is_no_reason_for_one_of_them(store: Store, registry: Registry) -> None:
    """Requests that all begin in the same way are spread evenly."""
    names = [f"http://127.0.0.1:{port}" for port in range(1, 11)]
    for name in names:
        await registry.register(worker(name))
    requests = [affine("x") for _ in range(100)]
    chosen = workers_of(await dispatch_shortest_queue(registry, requests))
    assert max(map(chosen.count, names)) - min(map(chosen.count, names)) <= 1
    [generation] = await remembered(store)
    assert len(generation["x"].split("\n")) == 4


async def test_overloaded_worker_is_left_and_the_new_one_is_remembered(registry: Registry) -> None:
    """At most 1.25 times the cost of the best worker and 2 requests more."""
    for name in (A, B):
        await registry.register(worker(name))
    assert await one(registry, "x") == (A, "new")
    await load(registry, B, 8)
    await load(registry, A, 11)  # one of them is the leased request
    assert await one(registry, "x") == (A, "hit")
    await load(registry, A, 14)
    assert await one(registry, "x") == (B, "overloaded")
    await load(registry, A, 20)
    assert await one(registry, "x") == (B, "hit")


async def test_worker_without_a_free_slot_is_left_for_one_that_has(registry: Registry) -> None:
    await registry.register(worker(A, capacity=2))
    await registry.register(worker(B, capacity=2))
    chosen = [await one(registry, "x") for _ in range(6)]
    # Both are full after four requests. Then their waits are compared.
    assert chosen == [(A, "new"), (A, "hit"), (B, "overloaded"), (B, "hit"), (B, "hit"), (A, "hit")]


@pytest.mark.parametrize("change", ["expires", "is removed", "drains", "fails", "serves another model"])
async def test_worker_that_cannot_be_chosen_is_left(store: Store, registry: Registry, change: str) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    assert await one(registry, "x") == (A, "new")
    match change:
        case "expires":
            await store.expire_heartbeat(A)
        case "is removed":
            await registry.remove(A)
        case "drains":
            await registry.drain(A)
        case "fails":
            await registry.report_failure(A)
        case _:
            await registry.register(worker(A, "other"))
    assert await one(registry, "x") == (B, "gone")
    assert await one(registry, "x") == (B, "hit")


async def test_a_less_specific_key_counts_if_the_worker_of_the_first_one_is_gone(registry: Registry) -> None:
    for name in (A, B, C):
        await registry.register(worker(name))
    assert await one(registry, "long", "middle") == (A, "new")
    assert await one(registry, "short") == (B, "new")
    await registry.remove(A)
    assert await one(registry, "long", "middle", "short") == (B, "hit")


async def test_all_workers_failing_the_best_one_is_chosen(registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    assert await one(registry, "x") == (A, "new")
    for name in (A, B):
        await registry.report_failure(name)
    assert await one(registry, "x") == (B, "gone")


@pytest.mark.parametrize("max_sets", [24, 0])
async def test_worker_of_another_pool_of_the_model_is_remembered(
    monkeypatch: pytest.MonkeyPatch, store: Store, max_sets: int
) -> None:
    allow_sets(monkeypatch, max_sets)
    registry = store.registry(booking_decay=True)
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "m", "o"))
    await registry.register(worker(C, "m"))
    for number, name in enumerate((A, B, C)):
        assert await one(registry, f"session-{number}") == (name, "new")
    for number, name in enumerate((A, B, C)):
        assert await one(registry, f"session-{number}") == (name, "hit")
    [choice] = await dispatch_shortest_queue(registry, [affine("session-1", model="n")])
    assert (choice.worker, choice.affinity) == (A, "gone")


async def test_protocols_do_not_mix(registry: Registry) -> None:
    """Both workers serve the model, each in its own protocol."""
    await registry.register(worker(A))
    engine = replace(worker(B), engine=Engine("vllm"))
    await registry.register(engine)
    assert await one(registry, "x") == (A, "new")
    [choice] = await dispatch_shortest_queue(registry, [affine("x", model=indexed_name("m", Protocol.OPENAI))])
    assert (choice.worker, choice.affinity) == (B, "gone")


async def test_repeated_call_gets_the_first_reply_with_its_outcomes(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    call = "id", 60_000, 0, 0, "m", f"{LEASE_MS}#60000#1000#x,y", "m", "0", "m", "0#60000#1000#y"
    first = await registry._run("dispatch_shortest_queue", *call)
    assert [first[0], *first[2:]] == [A, A, "", A, "", "new", "hit"]
    assert await registry._run("dispatch_shortest_queue", *call) == first
    [generation] = await remembered(store)
    assert generation == {"x": A, "y": A}
    await registry.reconcile(Reconciliation("reconciliation", 0, ["id"], {}))
    assert await registry._run("dispatch_shortest_queue", *call) == []
    [listed] = (await registry.list_workers()).workers
    assert (listed.leased, listed.booked) == (0, 0)


async def test_refused_lease_remembers_nothing(store: Store) -> None:
    registry = store.registry(max_leases=1, max_leases_per_token=1)
    await registry.register(worker(A))
    assert await one(registry, "x") == (A, "new")
    [choice] = await dispatch_shortest_queue(registry, [affine("z")])
    assert choice == Choice("", "refused")
    [choice] = await dispatch_shortest_queue(registry, [affine("z", token="chat")])
    assert choice == Choice("", "refused")
    assert await remembered(store) == [{"x": A}]


async def test_tokens_and_affinity_go_together(store: Store) -> None:
    registry = store.registry(max_leases_per_token=2)
    for name in (A, B):
        await registry.register(worker(name))
    requests = [affine("x", token="chat"), affine("x", token="chat"), affine("x", token="chat")]
    choices = await dispatch_shortest_queue(registry, requests)
    assert [(choice.worker, choice.affinity) for choice in choices] == [(A, "new"), (A, "hit"), ("", "")]
    assert choices[2].lease == "token_refused"


async def test_lottery_ignores_affinity(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    [choice] = await dispatch_lottery(registry, [affine("x")])
    assert (choice.worker, choice.affinity) == (A, "")
    assert await remembered(store) == []


@pytest.mark.usefixtures("store_clock")
async def test_worker_is_remembered_for_the_ttl_after_the_last_request(store: Store) -> None:
    await store.client.set(CLOCK, NOW + 59_999)  # at the end of a generation
    registry = store.registry(affinity_ttl=60.0)
    for name in (A, B):
        await registry.register(worker(name))
    assert await one(registry, "x") == (A, "new")
    for _ in range(3):
        await store.client.incrby(CLOCK, 60_000)
        assert await one(registry, "x") == (A, "hit")
        assert len(await remembered(store)) <= 2
    await store.client.incrby(CLOCK, 120_000)
    assert (await one(registry, "x"))[1] == "new"
    for name in (A, B):
        await registry.remove(name)  # their heartbeats have another clock


async def test_flood_of_keys_uses_bounded_memory_and_keeps_the_latest(store: Store) -> None:
    registry = store.registry(max_affinity_keys=1_000)
    for name in (A, B):
        await registry.register(worker(name))
    for first in range(0, 6_000, 240):
        await dispatch_shortest_queue(registry, _flood(range(first, first + 240)))
        assert sum(map(len, await remembered(store))) <= 1_000 + 2 * 12
    latest = [f"key-{number}" for number in range(5_988, 6_000)]
    assert (await one(registry, *latest))[1] == "hit"
    assert (await one(registry, "key-0"))[1] == "new"


def _flood(numbers: Sequence[int]) -> list[Request]:
    """Return requests without a lease, with 12 of the keys each."""
    names = [f"key-{number}" for number in numbers]
    return [Request("m", 0, "", tuple(names[i : i + 12])) for i in range(0, len(names), 12)]


async def test_a_call_with_many_keys_stops_at_its_budget(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request reads many remembered workers, which are all gone."""
    names = [f"http://127.0.0.1:{port}" for port in range(1, 13)]
    for name in names:
        await registry.register(worker(name))
    for number, name in enumerate(names):
        for other in names:
            await load(registry, other, 0 if other == name else 9)
        assert await one(registry, f"key-{number}") == (name, "new")
    for name in names:
        await registry.drain(name)
    await registry.register(worker(A))
    every = tuple(f"key-{number}" for number in range(12))
    requests = [affine(f"own-{i}", *every) for i in range(128)]
    choices = await registry.dispatch_some(DispatchMethod.SHORTEST_QUEUE, requests)
    assert choices[0] == Choice(A, choices[0].lease if choices[0] else "", "gone")
    assert None in choices
    answered = [choice for choice in choices if choice]
    assert {choice.affinity for choice in answered[1:]} <= {"hit"}
