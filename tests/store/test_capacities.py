"""Configured capacities in the store: where a worker's capacity comes from, and when a change takes effect."""

from typing import Any

import pytest

from controller.domain.capacity import CapacityList, CapacityTarget, DefaultCapacities
from controller.domain.errors import InvalidInput, StoreUnavailable
from controller.store import capacities, keys
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.dispatches import dispatch_shortest_queue, workers_of
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.stores import register_all

OF_A, OF_M, OF_N = CapacityTarget(worker_name=A), CapacityTarget(model="m"), CapacityTarget(model="n")


async def set_and_apply(registry: Registry, target: CapacityTarget, capacity: int | None) -> None:
    await registry.set_capacity(target, capacity)
    await registry.apply_capacities((await registry.list_workers()).workers)


async def known_capacities(registry: Registry) -> dict[str, tuple[int | None, str]]:
    workers = (await registry.list_workers()).workers
    return {known.name: (known.status.capacity, known.capacity_source) for known in workers}


async def capacity_of(registry: Registry, name: str = A) -> tuple[int | None, str]:
    return (await known_capacities(registry))[name]


async def test_each_source_of_a_capacity_precedes_the_next(store: Store) -> None:
    """The last source is removed first, and each worker registers before its capacity is set."""
    registry = store.registry(default_capacities=DefaultCapacities({"m": 40, "n": 30}, 50))
    await registry.register(worker(A, "o"))
    assert await capacity_of(registry) == (50, "configured")
    await registry.register(worker(A, "m", "n"))
    assert await capacity_of(registry) == (30, "configured"), "the smallest of its models"
    await set_and_apply(registry, OF_M, 60)
    assert await capacity_of(registry) == (60, "configured"), "what was set precedes the settings"
    await set_and_apply(registry, OF_N, 70)
    assert await capacity_of(registry) == (60, "configured"), "the smallest that was set"
    await registry.register(worker(A, "m", "n", capacity=80))
    assert await capacity_of(registry) == (80, "reported")
    await set_and_apply(registry, OF_A, 90)
    assert await capacity_of(registry) == (90, "configured")
    for target in (OF_A, OF_M, OF_N):
        await set_and_apply(registry, target, None)
    assert await capacity_of(registry) == (80, "reported"), "the registry has kept the reported capacity"
    assert await capacity_of(registry) == await capacity_of(store.registry()), "every replica sees the same"
    await store.registry().register(worker(A, "m", "n"))
    assert await capacity_of(registry) == (None, "")


async def test_next_dispatch_uses_a_capacity_that_was_set_or_removed(registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name, queue_length=3 if name == A else 4))
    await set_and_apply(registry, OF_M, 9)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    await set_and_apply(registry, OF_A, 4)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 3))) == [B, B, B], "A has no free slot"
    await set_and_apply(registry, OF_A, None)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 3))) == [A, A, A]
    await set_and_apply(registry, OF_M, None)
    assert await known_capacities(registry) == {A: (None, ""), B: (None, "")}
    assert sorted(workers_of(await dispatch_shortest_queue(registry, asks(["m"] * 2)))) == [A, B]


@pytest.mark.parametrize("decays", [True, False])
async def test_capacity_survives_reports_registrations_and_refreshes(store: Store, decays: bool) -> None:
    registry = store.registry(booking_decay=decays)
    await registry.set_capacity(OF_A, 2)
    await registry.register(worker(A))
    assert await capacity_of(registry) == (2, "configured"), "it was set before the worker registered"
    await registry.heartbeat(reports([(A, 1)]))
    await registry.take_poll_answers(reports([(A, 2)]))
    assert await capacity_of(registry) == (2, "configured")
    await registry.register(worker(A, capacity=7))
    [known] = (await registry.list_workers()).workers
    assert (known.status.capacity, known.reported_capacity) == (2, 7)
    assert await registry.refresh(worker(A, "n", capacity=6), known.registration)
    [known] = (await registry.list_workers()).workers
    assert (known.status.capacity, known.reported_capacity) == (2, 6)
    await registry.drain(A)
    await set_and_apply(registry, OF_A, None)
    assert await capacity_of(registry) == (6, "reported"), "a draining worker is covered, too"
    await registry.drain(A, False)
    assert workers_of(await dispatch_shortest_queue(registry, asks(["n"]))) == [A]


async def test_removed_worker_keeps_what_was_set_for_it(registry: Registry) -> None:
    await registry.register(worker(A))
    await set_and_apply(registry, OF_A, 3)
    await registry.remove(A)
    await registry.register(worker(A))
    assert await capacity_of(registry) == (3, "configured")


async def test_worker_that_registered_again_since_the_listing_is_left_out(registry: Registry) -> None:
    for name in (A, B, C):
        await registry.register(worker(name))
    listed = (await registry.list_workers()).workers
    await registry.register(worker(A))
    await registry.remove(B)
    await registry.set_capacity(OF_M, 5)
    assert await registry.apply_capacities(listed) == 1
    assert await known_capacities(registry) == {A: (None, ""), C: (5, "configured")}


async def test_capacities_of_many_workers_are_applied_in_several_calls(
    store: Store, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"http://w{i}:1" for i in range(600)]
    await registry.set_capacity(OF_M, 5)
    await register_all(registry, [worker(name, check_heart_beat=False) for name in names])
    await registry.set_capacity(OF_M, 6)
    sizes: list[int] = []
    run = Registry._run

    async def counting(self: Registry, script: str, *arguments: str | int) -> list[int]:
        result = await run(self, script, *arguments)
        sizes.append(len(result))
        return result

    listed = (await registry.list_workers()).workers
    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", counting)
        assert await registry.apply_capacities(listed) == len(names)
    assert sum(sizes) == len(names)
    assert max(sizes) <= 250
    assert set((await known_capacities(registry)).values()) == {(6, "configured")}


async def test_settings_of_a_replica_apply_to_registered_workers(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.register(worker(B, capacity=2))
    other = store.registry(default_capacities=DefaultCapacities({}, 5))
    await other.apply_capacities((await other.list_workers()).workers)
    assert await known_capacities(registry) == {A: (5, "configured"), B: (2, "reported")}


async def test_set_capacity_returns_what_was_set_before(registry: Registry) -> None:
    assert [await registry.set_capacity(OF_M, capacity) for capacity in (None, 3, 4, None, None)] == [
        None,
        None,
        3,
        4,
        None,
    ]


async def test_number_of_capacities_is_limited(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacities, "MAX_CAPACITIES", 2)
    await registry.set_capacity(OF_M, 1)
    await registry.set_capacity(OF_A, 2)
    with pytest.raises(InvalidInput, match="model: 2 capacities are set already"):
        await registry.set_capacity(OF_N, 3)
    with pytest.raises(InvalidInput, match="worker_name: 2 capacities are set already"):
        await registry.set_capacity(CapacityTarget(worker_name=B), 3)
    await registry.set_capacity(OF_M, 4)
    assert (await registry.list_capacities()).by_target == {OF_M: 4, OF_A: 2}
    await registry.set_capacity(OF_M, None)
    await registry.set_capacity(OF_N, 3)
    assert (await registry.list_capacities()).by_target == {OF_N: 3, OF_A: 2}


async def test_listing_and_restoring_take_several_calls(store: Store, registry: Registry) -> None:
    many = {CapacityTarget(model=f"m{i}"): i for i in range(1, 700)}
    await registry.restore_capacities(CapacityList(9, many))
    assert await registry.list_capacities() == (9, many)
    await registry.set_capacity(OF_M, 1)
    assert (await registry.list_capacities()).version == 10
    assert (await registry.list_workers()).capacities_version == 10


async def test_restoration_that_failed_between_two_calls_begins_again(
    registry: Registry,
) -> None:
    many = {CapacityTarget(model=f"m{i}"): i for i in range(1, 700)}
    run = registry._run
    calls = 0

    async def fail_in_the_second_call(script: str, *arguments: str | int) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StoreUnavailable("Redis is away.")
        return await run(script, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_run", fail_in_the_second_call)
        with pytest.raises(StoreUnavailable):
            await registry.restore_capacities(CapacityList(9, many))
    assert (await registry.list_workers()).capacities_version < 9, "so that a replica restores them again"
    await registry.restore_capacities(CapacityList(9, many))
    assert await registry.list_capacities() == (9, many)


async def test_replicas_that_restore_at_once_lose_nothing(registry: Registry) -> None:
    """Another replica begins between two calls of the first one: with the same version, or with an older one."""
    many = {CapacityTarget(model=f"m{i}"): i for i in range(1, 251)}
    older = {CapacityTarget(model="m1"): 99}
    run = registry._run
    for other in (CapacityList(9, older), CapacityList(10, many)):
        await registry._client.delete(keys.capacities(registry._namespace))
        calls = 0

        async def interrupted(script: str, *arguments: str | int, other: CapacityList = other) -> Any:
            nonlocal calls
            calls += 1
            result = await run(script, *arguments)
            if calls == 2:
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(registry, "_run", run)
                    await registry.restore_capacities(other)
            return result

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(registry, "_run", interrupted)
            await registry.restore_capacities(CapacityList(10, many))
        assert await registry.list_capacities() == (10, many)


async def test_restored_capacities_replace_earlier_ones_and_no_later_ones(registry: Registry) -> None:
    await registry.set_capacity(OF_M, 1)
    await registry.set_capacity(OF_A, 2)
    await registry.restore_capacities(CapacityList(1, {OF_M: 3}))
    assert await registry.list_capacities() == (2, {OF_M: 1, OF_A: 2})
    await registry.restore_capacities(CapacityList(5, {OF_M: 4}))
    assert await registry.list_capacities() == (5, {OF_M: 4})
    await registry.restore_capacities(CapacityList(6, {}))
    assert await registry.list_capacities() == (6, {})


async def test_worker_of_an_older_version_keeps_its_reported_capacity(store: Store, registry: Registry) -> None:
    """Before capacities could be configured, a worker's hash had only the field `capacity`."""
    await registry.register(worker(A, capacity=4))
    await registry.register(worker(B))
    for name in (A, B):
        await store.client.hdel(keys.worker(store.namespace, name), "capacity_source", "reported_capacity")
    expected = {A: (4, "reported"), B: (None, "")}
    assert await known_capacities(registry) == expected
    assert [known.reported_capacity for known in (await registry.list_workers()).workers] == [4, None]
    await set_and_apply(registry, OF_M, 9)
    assert await known_capacities(registry) == {**expected, B: (9, "configured")}
