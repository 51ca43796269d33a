"""Test that workers with the same set of models share their indexes."""

from collections import Counter

import pytest

from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, leases_of, workers_of
from tests.support.invariants import OVERFLOW, check_invariants
from tests.support.pools import allow_sets
from tests.support.samples import A, B, C, asks, reports, worker

MANY = [f"m{i}" for i in range(200)]


async def pool_names(store: Store) -> dict[str, list[str]]:
    return (await check_invariants(store.client, store.namespace)).pools


async def test_pool_does_not_depend_on_the_order_of_models(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "n", "m"))
    await registry.register(worker(C, "m"))
    pools = await pool_names(store)
    assert pools["n"] == pools["m"][:1]
    assert pools["m"][1:] == ["m"]
    assert workers_of(await dispatch_shortest_queue(registry, asks(["n", "n", "m"]))) == [A, B, C]


@pytest.mark.parametrize("batch", [1, 7])
async def test_dispatch_finds_the_shortest_queue_in_any_pool(store: Store, registry: Registry, batch: int) -> None:
    queues, seqs = {}, {}
    for i in range(40):
        name = f"http://w{i}:1"
        queues[name], seqs[name] = (i * 7) % 5, i
        await registry.register(worker(name, "m", *([f"own-{i // 2}"] if i < 38 else []), queue_length=queues[name]))
    for call in range(70 // batch):
        for position, chosen in enumerate(workers_of(await dispatch_shortest_queue(registry, asks(["m"] * batch)))):
            assert chosen == min(queues, key=lambda name: (queues[name], seqs[name]))
            queues[chosen] += 1
            seqs[chosen] = 1_000 + batch * call + position


async def test_lottery_draws_from_all_pools_of_a_model(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "m", speed=1))
    await registry.register(worker(B, "m", "n", speed=2))
    await registry.register(worker(C, "m", "o", speed=3))
    drawn = Counter(
        [name for _ in range(24) for name in workers_of(await dispatch_lottery(registry, asks(["m"] * 250)))]
    )
    assert 850 < drawn[A] < 1150
    assert 1800 < drawn[B] < 2200
    await registry.report_failure(C)
    drawn = Counter(
        [name for _ in range(12) for name in workers_of(await dispatch_lottery(registry, asks(["m"] * 250)))]
    )
    assert drawn[C] == 0
    assert 900 < drawn[A] < 1100
    for name in (A, B):
        await registry.drain(name)
    assert set(workers_of(await dispatch_lottery(registry, asks(["m"] * 20)))) == {C}


async def test_registration_with_other_models_changes_the_pool(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "m", "n"))
    await registry.register(worker(A, "n", "o"))
    assert await registry.list_models() == ["m", "n", "o"]
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "o", "n"]))) == [B, A, B]
    await registry.register(worker(A, "o"))
    await registry.remove(B)
    assert await registry.list_models() == ["o"]
    assert await pool_names(store) == {}
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "n", "o"]))) == ["", "", A]


async def test_model_with_too_many_pools_indexes_further_workers_itself(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow_sets(monkeypatch, 2)
    registry = store.registry()
    names = [f"http://w{i}:1" for i in range(6)]
    for i, name in enumerate(names):
        await registry.register(worker(name, "m", f"own-{i}", queue_length=6 - i))
    state = await check_invariants(store.client, store.namespace)
    assert state.overflow == set(names[2:])
    assert len(state.pools["m"]) == 3
    assert f"{OVERFLOW}m" in state.pools["m"]
    assert state.pools["own-5"] == [f"{OVERFLOW}own-5"]
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "m", "own-5", "m"]))) == [
        names[5],
        names[4],
        names[5],
        names[3],
    ]
    await registry.heartbeat(reports([(name, 0) for name in names[3:]]))
    await registry.drain(names[5])
    assert set(workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 4)))) == set(names[3:5])
    for name in names[:2]:
        await registry.remove(name)
    await registry.register(worker(names[2], "m", "own-2"))
    state = await check_invariants(store.client, store.namespace)
    assert state.overflow == {names[3], names[4]}, "the removed workers freed a pool"
    assert await registry.list_models() == ["m", "own-2", "own-3", "own-4"]


async def test_resumed_workers_do_not_exceed_the_number_of_pools(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draining workers have no pool. So all of them find room for one when they register, and not when they resume."""
    allow_sets(monkeypatch, 2)
    registry = store.registry(booking_decay=True)
    names = [f"http://w{i}:1" for i in range(5)]
    for name in names:
        await registry.register(worker(name, "m", f"own-{name}"))
    for name in names:
        await registry.drain(name)
        await registry.register(worker(name, "m", f"own-{name}"))
    for name in names:
        await registry.drain(name, False)
    state = await check_invariants(store.client, store.namespace, decays=True)
    assert state.overflow == set(names[2:])
    assert len(state.pools["m"]) == 3
    assert set(workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 5)))) == set(names)


@pytest.mark.parametrize("sets", [24, 0])
async def test_operations_use_no_more_commands_with_more_models(
    store: Store, monkeypatch: pytest.MonkeyPatch, sets: int
) -> None:
    """Count the commands on the server. Only workers that are indexed for each model need more."""
    if store.kind == "fakeredis":
        pytest.skip("fakeredis does not count commands")
    allow_sets(monkeypatch, sets)

    async def commands(models: list[str]) -> int:
        registry = store.registry(booking_decay=True)
        for name in (A, B, C):
            await registry.register(worker(name, *models, capacity=4))
        await store.client.config_resetstat()
        [lease] = leases_of(await dispatch_shortest_queue(registry, asks(models[:1], 60_000)))
        await dispatch_shortest_queue(registry, asks(models[:1] * 3))
        await registry.heartbeat(reports([(A, 1), (B, 2)]))
        await registry.take_poll_answers(reports([(A, 1), (C, 2)]))
        await registry.report_failure(A)
        await registry.heartbeat(reports([(A, 1)]))
        await registry.release([lease])
        await dispatch_lottery(registry, asks(models[:1]))
        stats = await store.client.info("commandstats")
        counted = sum(
            each["calls"] for name, each in stats.items() if not name.startswith(("cmdstat_evalsha", "cmdstat_info"))
        )
        for name in (A, B, C):
            await registry.remove(name)
        return counted

    one, many = await commands(["m"]), await commands(MANY)
    if sets:
        assert many <= one * 1.5, (one, many)
    else:
        assert many > one * 10, (one, many)
