"""A live worker is found for requests that are not booked."""

from collections import Counter

import pytest

from controller.store import keys
from controller.store.registry import Find, Registry
from tests.conftest import Store
from tests.support.budget import small_budget
from tests.support.invariants import whole_state
from tests.support.samples import A, B, C, worker


async def found(registry: Registry, *models: str, times: int = 60) -> Counter[str]:
    names: Counter[str] = Counter()
    for _ in range(times):
        names.update(await registry.find_workers([Find(model) for model in models]))
    return names


async def test_each_live_worker_of_the_model_is_found_and_nothing_is_booked(store: Store, registry: Registry) -> None:
    for name, models in ((A, ["m"]), (B, ["m", "n"]), (C, ["n"])):
        await registry.register(worker(name, *models))
    before = await whole_state(store.client, store.namespace)
    assert (await found(registry, "m")).keys() == {A, B}
    assert (await found(registry, "n", "absent")).keys() == {B, C, ""}
    assert await whole_state(store.client, store.namespace) == before


async def test_workers_of_all_pools_are_equally_likely(store: Store) -> None:
    draws = iter([(i + 0.5) / 210 for i in range(210)])
    registry = store.registry(draw=lambda: next(draws))
    names = [f"http://127.0.0.1:1/w{i:02}" for i in range(21)]
    for i, name in enumerate(names):
        await registry.register(worker(name, *(("m", "n") if i == 0 else ("m",))))
    assert await found(registry, "m", times=210) == dict.fromkeys(names, 10)


async def test_worker_is_found_only_while_it_is_alive_and_not_draining(store: Store, registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    await registry.drain(B)
    assert (await found(registry, "m")).keys() == {A}
    await registry.drain(B, drain=False)
    await store.expire_heartbeat(A)
    assert (await found(registry, "m")).keys() == {B}
    await registry.remove(B)
    assert await registry.find_workers([Find("m")]) == [""]


async def test_excluded_workers_are_not_found(registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    finds = [Find("m", frozenset(excluded)) for excluded in ([A], [B], [A, B], [C])]
    for _ in range(20):
        first, second, none, any_of_both = await registry.find_workers(finds)
        assert (first, second, none) == (B, A, "")
        assert any_of_both in (A, B)


async def test_failing_worker_is_found_only_if_the_model_has_no_other(registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    await registry.report_failure(A)
    assert (await found(registry, "m")).keys() == {B}
    await registry.report_failure(B)
    assert (await found(registry, "m")).keys() == {A, B}


@pytest.mark.parametrize("position", [0, 20, 39])
async def test_the_only_live_worker_is_found_behind_expired_ones(
    store: Store, registry: Registry, position: int
) -> None:
    names = [f"http://127.0.0.1:1/w{i:02}" for i in range(40)]
    for name in names:
        await registry.register(worker(name))
    for name in names:
        if name != names[position]:
            await store.expire_heartbeat(name)
    assert (await found(registry, "m")).keys() == {names[position]}


async def test_many_requests_are_answered_by_several_bounded_calls(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_budget(monkeypatch)
    registry = store.registry()
    for name, model in ((A, "m"), (B, "n")):
        await registry.register(worker(name, model))
    assert await registry.find_workers([Find("m"), Find("n"), Find("absent")] * 3) == [A, B, ""] * 3


async def test_search_is_repeated_if_hundreds_of_expired_workers_hide_the_live_one(store: Store) -> None:
    draws = iter([0.01, 0.999])
    registry = store.registry(draw=lambda: next(draws))
    index = keys.lottery(store.namespace, "m")
    gone = [f"http://127.0.0.1:1/gone{i}" for i in range(600)]
    await registry.register(worker(A, speed=2))  # it stands last in the index
    await store.client.zadd(index, dict.fromkeys(gone, 1.0))
    assert await registry.find_workers([Find("m")]) == [A]
    await store.client.zrem(index, *gone)


async def test_search_among_hundreds_of_expired_workers_ends(store: Store, registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    index = keys.lottery(store.namespace, "m")
    gone = [f"http://127.0.0.1:1/gone{i}" for i in range(600)]
    await store.client.zadd(index, dict.fromkeys(gone, 1.0))
    assert (await found(registry, "m", times=3)).keys() <= {A, B, ""}
    await store.client.zrem(index, *gone)
