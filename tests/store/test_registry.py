"""Test each operation of the registry against the complete state that it leaves."""

import pytest

from controller.domain.worker import MAX_QUEUE_LENGTH, Registration, WorkerStatus
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, workers_of
from tests.support.invariants import check_invariants, whole_state
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.stores import register_all


async def names(registry: Registry) -> list[str]:
    return [worker.name for worker in (await registry.list_workers()).workers]


async def test_list_workers_caps_a_queue_of_the_maximum_length(registry: Registry) -> None:
    """Bookings are added to the reported queue length."""
    await registry.register(worker(A, queue_length=MAX_QUEUE_LENGTH))
    await registry.register(worker(B, "n"))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m"]))) == [A]
    lengths = {known.name: known.status.queue_length for known in (await registry.list_workers()).workers}
    assert lengths == {A: MAX_QUEUE_LENGTH, B: 0}


async def test_register_stores_all_fields_of_a_worker(store: Store, registry: Registry) -> None:
    assert await registry.register(worker(A, "m", 'ü"\\ {x}:y', speed=2.5, queue_length=3, multimodal=True)) is True
    [known] = (await registry.list_workers()).workers
    assert known.name == A
    assert known.status == WorkerStatus(("m", 'ü"\\ {x}:y'), 2.5, 3)
    assert (known.multimodal, known.check_heart_beat, known.registration) == (True, True, 1)
    assert known.heartbeat_age >= 0
    assert known.expires_in is not None
    assert 0 < known.expires_in <= 90
    state = await check_invariants(store.client, store.namespace)
    [pool] = state.indexes
    assert state.indexes == {pool: [(f"{1:016d}{A}", 1.2)]}
    assert state.pools == {model: [pool] for model in known.status.model_names}


async def test_register_is_idempotent(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, speed=2))
    before = await whole_state(store.client, store.namespace)
    assert await registry.register(worker(A, speed=2)) is False
    after = await whole_state(store.client, store.namespace)
    for state in (before, after):
        state.workers.clear()  # the expiry time differs
        for field in ("registration", "incarnation", "reported_at", "heartbeat_at"):
            del state.hashes[A][field]
    assert after == before


async def test_registration_replaces_the_models(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "old", "both"))
    await registry.register(worker(A, "both", "new"))
    assert await registry.list_models() == ["both", "new"]
    assert workers_of(await dispatch_shortest_queue(registry, asks(["old", "both", "new"]))) == ["", A, A]
    assert workers_of(await dispatch_lottery(registry, asks(["old", "both", "new"]))) == ["", A, A]
    state = await check_invariants(store.client, store.namespace)
    assert state.models == {"both", "new"}


async def test_registrations_with_changing_models_do_not_accumulate_keys(store: Store, registry: Registry) -> None:
    async def lasting_keys() -> int:
        names = await store.client.keys(f"{{{store.namespace}}}*")
        return len([name for name in names if ":reply:" not in name])  # replies expire

    await registry.register(worker(A, "m-first"))
    keys = await lasting_keys()
    for i in range(1_000 if store.kind.startswith("redis-server") else 200):
        await registry.register(worker(A, f"m{i}"))
    assert await lasting_keys() == keys


async def test_worker_may_serve_no_model(registry: Registry) -> None:
    await registry.register(Registration(A, WorkerStatus((), 1, 0), True, False))
    assert await names(registry) == [A]
    assert await registry.list_models() == []


async def test_refresh_does_not_restore_an_expired_worker(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    [listed_worker] = (await registry.list_workers()).workers
    await store.expire_heartbeat(A)
    assert not await registry.refresh(worker(A), listed_worker.registration)
    assert await names(registry) == []


async def test_worker_that_registers_again_is_last_among_equal_loads(store: Store, registry: Registry) -> None:
    for name in (A, B):
        await registry.register(worker(name))
    await store.expire_heartbeat(A)
    await registry.register(worker(A))
    assert workers_of(await dispatch_shortest_queue(registry, asks(["m", "m"]))) == [B, A]


async def test_refresh_does_nothing_after_a_newer_registration(store: Store, registry: Registry) -> None:
    await registry.register(worker(A))
    [listed_worker] = (await registry.list_workers()).workers
    assert await registry.refresh(worker(A, "newer"), listed_worker.registration)
    before = await whole_state(store.client, store.namespace)
    assert not await registry.refresh(worker(A, "stale"), listed_worker.registration)
    assert await whole_state(store.client, store.namespace) == before
    await registry.remove(A)
    assert not await registry.refresh(worker(A, "stale"), listed_worker.registration + 1)
    assert await names(registry) == []


async def test_remove_deletes_all_keys_of_a_worker(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "m", "n"))
    await registry.register(worker(B, "m"))
    assert await registry.remove(A) is True
    assert await registry.remove(A) is False
    assert await registry.list_models() == ["m"]
    state = await check_invariants(store.client, store.namespace)
    assert set(state.hashes) == {B}


async def test_remove_keeps_a_worker_that_registered_after_the_decision(registry: Registry) -> None:
    await registry.register(worker(A))
    [listed_worker] = (await registry.list_workers()).workers
    await registry.register(worker(A))
    assert await registry.remove(A, only_if=listed_worker.registration) is False
    assert await names(registry) == [A]
    [listed_worker] = (await registry.list_workers()).workers
    assert await registry.remove(A, only_if=listed_worker.registration) is True


async def test_list_models_filters_by_kind_of_worker(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "text", "both"))
    await registry.register(worker(B, "vision", "both", multimodal=True))
    await registry.register(worker(C, "dead", "both"))
    await store.expire_heartbeat(C)
    assert await registry.list_models() == ["both", "text", "vision"]
    assert await registry.list_models(multimodal=True) == ["both", "vision"]
    assert await registry.list_models(multimodal=False) == ["both", "text"]


async def test_list_models_finds_a_worker_after_any_number_of_others(registry: Registry) -> None:
    await registry.register(worker(A, queue_length=9, multimodal=True))
    for i in range(131):
        assert await registry.list_models(multimodal=True) == ["m"], f"after {i} other workers"
        await registry.register(worker(f"http://w{i}:1"))
    await registry.remove(A)
    assert await registry.list_models(multimodal=True) == []


async def test_speeds_keep_their_value_and_type(registry: Registry) -> None:
    speeds = [1, 3, 0.1, 1e-6, 123456.789, 10**9]
    for i, speed in enumerate(speeds):
        await registry.register(worker(f"http://w{i}:1", speed=speed))
    listed = [known.status.speed for known in (await registry.list_workers()).workers]
    assert listed == speeds
    assert [type(speed) for speed in listed] == [type(speed) for speed in speeds]


async def test_namespaces_are_isolated(store: Store, registry: Registry) -> None:
    other = store.registry("-other")
    await registry.register(worker(A))
    assert (await other.list_workers()).workers == []
    assert workers_of(await dispatch_shortest_queue(other, asks(["m"]))) == [""]
    assert await other.heartbeat(reports([(A, 0)])) == [False]
    assert await other.remove(A) is False
    assert await names(registry) == [A]


@pytest.mark.parametrize(
    "name", ["http://a:1}:models", "http://{other}:1", "http://a:1:workers", "http://a:1:heartbeat:x"]
)
async def test_worker_names_cannot_address_other_keys(store: Store, registry: Registry, name: str) -> None:
    await registry.register(worker(A))
    await registry.register(worker(name, name))
    assert workers_of(await dispatch_shortest_queue(registry, asks([name, "m"]))) == [name, A]
    assert sorted(await names(registry)) == sorted([A, name])


async def test_scores_keep_all_digits(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, speed=3.0, queue_length=1))
    state = await whole_state(store.client, store.namespace)
    [(_, load)] = state.indexes["m"]
    assert load == 1 / 3
    assert state.lotteries["m"] == {A: 3}


async def test_worker_without_models_may_have_speed_zero(registry: Registry) -> None:
    """A cluster without workers registers no models. Later registrations add models and remove them again."""
    for models in ((), ("m",), ()):
        status = WorkerStatus(models, 1 if models else 0, 0)
        await registry.register(Registration(A, status, True, False))
        await registry.heartbeat(reports([(A, 2)]))
        [known] = (await registry.list_workers()).workers
        assert (known.status.model_names, known.status.queue_length) == (models, 2)
        assert await registry.list_models() == list(models)
        assert workers_of(await dispatch_lottery(registry, asks(["m"]))) == [A if models else ""]
        assert await registry.drain(A)
        assert await registry.drain(A, drain=False)


@pytest.mark.slow_on_fakeredis
async def test_list_workers_reads_many_workers_in_parts(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part blocks Redis only briefly. The list contains every worker registered throughout."""
    registry = store.registry()
    names = sorted(f"http://w{i}:1" for i in range(900))
    await register_all(registry, [worker(name) for name in names])
    parts: list[int] = []
    run = Registry._run

    async def counting(self: Registry, script: str, *arguments: str | int) -> list[object]:
        result = await run(self, script, *arguments)
        parts.append(len(result[4]))
        heartbeat = f"id-{len(parts)}", 6_000, 90_000, 0, 0, 0, names[len(parts)], 1, 0
        assert await run(self, "heartbeat", *heartbeat) == [1], (
            "the heartbeat moves the worker within the set being listed"
        )
        return result

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", counting)
        workers, sequence, epoch, *_ = await registry.list_workers()
    assert [known.name for known in workers] == names
    assert (sequence, epoch) == (900, ""), "no replica has set an epoch"
    assert max(parts) < 500
    assert len(parts) > 2


async def test_restore_does_nothing_for_a_live_worker(registry: Registry, store: Store) -> None:
    assert await registry.restore(worker(A), expires_in=30.0)
    assert not await registry.restore(worker(A, "other"))
    [known] = (await registry.list_workers()).workers
    assert known.status.model_names == ("m",)
    assert known.expires_in is not None
    assert 0 < known.expires_in <= 30
    await store.expire_heartbeat(A)
    assert await registry.restore(worker(A, "other"))
    [known] = (await registry.list_workers()).workers
    assert known.status.model_names == ("other",)


async def test_registration_clears_the_record_of_a_removal(registry: Registry, store: Store) -> None:
    """Otherwise no replica would restore the worker if Redis lost it afterwards."""
    await registry.register(worker(A))
    assert await registry.remove(A)
    assert not await registry.restore(worker(A))
    await registry.register(worker(A))
    await store.expire_heartbeat(A)
    assert await registry.restore(worker(A))


@pytest.mark.parametrize("conditional", [True, False])
async def test_only_an_unconditional_removal_ends_a_drain(registry: Registry, conditional: bool) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    [known] = (await registry.list_workers()).workers
    assert await registry.remove(A, only_if=known.registration if conditional else None)
    await registry.register(worker(A))
    assert [known.draining for known in (await registry.list_workers()).workers] == [conditional]
    await registry.drain(A, False)
