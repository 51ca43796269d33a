"""Test the limits that the scripts check: how many workers are alive, and how many leases are active."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from controller.domain.dispatch import DispatchMethod
from controller.domain.worker import Registration
from controller.store import keys
from controller.store.registry import REFUSED, TOKEN_REFUSED, Choice, Refusal, RegisterCall, Request
from tests.conftest import CLOCK, Store
from tests.support.dispatches import dispatch, leases_of, workers_of
from tests.support.invariants import whole_state
from tests.support.samples import A, B, C, asks, worker

every_method = pytest.mark.parametrize("method", list(DispatchMethod))


async def names(store: Store) -> Sequence[str]:
    return [known.name for known in (await store.registry().list_workers()).workers]


async def test_another_worker_than_max_workers_is_refused_and_nothing_is_written(store: Store) -> None:
    registry = store.registry(max_workers=2)
    assert await registry.register(worker(A)) is True
    assert await registry.register(worker(B)) is True
    before = await whole_state(store.client, store.namespace)
    assert await registry.register(worker(C)) is Refusal.WORKER_LIMIT
    assert not await registry.restore(worker(C))
    assert await whole_state(store.client, store.namespace) == before
    assert await names(store) == [A, B]


async def test_registered_workers_register_again_at_the_limit(store: Store) -> None:
    registry = store.registry(max_workers=2)
    for name in (A, B, A, B):
        assert await registry.register(worker(name)) is not Refusal.WORKER_LIMIT
    calls = [RegisterCall(worker(name, "n")) for name in (C, A, B)]
    assert await registry.register_many(calls) == [Refusal.WORKER_LIMIT, False, False]


async def test_a_batch_reaches_the_limit_in_order(store: Store) -> None:
    registry = store.registry(max_workers=2)
    calls = [RegisterCall(worker(name)) for name in (B, C, A)]
    assert await registry.register_many(calls) == [True, True, Refusal.WORKER_LIMIT]
    assert await names(store) == [B, C]


async def test_removed_and_expired_workers_do_not_count(store: Store) -> None:
    registry = store.registry(max_workers=1)
    await registry.register(worker(A))
    await registry.remove(A)
    assert await registry.register(worker(B)) is True
    await store.expire_heartbeat(B)
    assert await registry.register(worker(C)) is True, "B is in the set of workers until the sweep purges it"
    assert await registry.register(worker(B)) is Refusal.WORKER_LIMIT, "an expired worker competes with the others"


async def test_workers_without_heartbeats_count(store: Store) -> None:
    registry = store.registry(max_workers=1)
    await registry.register(worker(A, check_heart_beat=False))
    assert await registry.register(worker(B)) is Refusal.WORKER_LIMIT


async def test_all_registries_of_a_namespace_share_the_number(store: Store) -> None:
    first, second = store.registry(max_workers=1), store.registry(max_workers=1)
    assert await first.register(worker(A)) is True
    assert await second.register(worker(B)) is Refusal.WORKER_LIMIT


async def test_without_limits_there_are_none(store: Store) -> None:
    registry = store.registry(max_workers=0, max_leases=0)
    for name in (A, B, C):
        assert await registry.register(worker(name)) is True
    assert REFUSED not in leases_of(await dispatch(registry, DispatchMethod.SHORTEST_QUEUE, asks(["m"] * 20, 60_000)))


@every_method
async def test_another_lease_than_max_leases_is_refused(store: Store, method: DispatchMethod) -> None:
    registry = store.registry(max_leases=3)
    await registry.register(worker(A))
    choices = await dispatch(registry, method, asks(["m"] * 5, 60_000))
    assert workers_of(choices) == [A, A, A, "", ""]
    assert [choice.lease for choice in choices[3:]] == [REFUSED] * 2
    assert await store.client.zcard(keys.leases(store.namespace)) == 3
    [known] = (await registry.list_workers()).workers
    assert known.leased == 3, "a refused request is not booked"


@every_method
async def test_requests_without_a_lease_are_served_at_the_limit(store: Store, method: DispatchMethod) -> None:
    registry = store.registry(max_leases=1)
    await registry.register(worker(A))
    await dispatch(registry, method, asks(["m"], 60_000))
    choices = await dispatch(registry, method, [*asks(["m"]), *asks(["m"], 60_000), *asks(["m"])])
    assert choices == [Choice(A), Choice("", REFUSED), Choice(A)]


@every_method
@pytest.mark.usefixtures("store_clock")
async def test_released_and_expired_leases_make_room(store: Store, method: DispatchMethod) -> None:
    seconds, microseconds = await store.client.time()
    now = 1000 * seconds + microseconds // 1000
    await store.client.set(CLOCK, now)
    registry = store.registry(max_leases=2)
    await registry.register(worker(A, check_heart_beat=False))
    leases = leases_of(await dispatch(registry, method, asks(["m"] * 2, 60_000)))
    assert leases_of(await dispatch(registry, method, asks(["m"], 60_000))) == [REFUSED]
    await registry.release(leases[:1])
    assert leases_of(await dispatch(registry, method, asks(["m"], 60_000))) != [REFUSED]
    assert leases_of(await dispatch(registry, method, asks(["m"], 60_000))) == [REFUSED]
    await store.client.set(CLOCK, now + 60_000)
    assert REFUSED not in leases_of(await dispatch(registry, method, asks(["m"] * 2, 60_000)))


@every_method
async def test_a_refusal_is_repeated_to_a_repeated_call_and_can_be_taken_back(
    store: Store, method: DispatchMethod
) -> None:
    registry = store.registry(max_leases=1)
    await registry.register(worker(A))
    draw: list[str | int] = ["0.5"] if method is DispatchMethod.LOTTERY else []
    script = "dispatch_lottery" if draw else "dispatch_shortest_queue"
    arguments: list[str | int] = ["id", 60_000, 0, 1, *["m", 60_000, *draw] * 2]
    first = await registry._run(script, *arguments)
    assert first[2:] == ["", REFUSED]
    assert await registry._run(script, *arguments) == first


def of_token(name: str, token: str) -> Registration:
    return replace(worker(name), registered_by=token)


async def counts(store: Store, key: Callable[[str], str]) -> dict[str, str]:
    counted: dict[str, str] = await store.client.hgetall(key(store.namespace))
    return counted


async def test_a_token_registers_no_more_workers_than_it_may(store: Store) -> None:
    registry = store.registry(max_workers_per_token=2)
    for name in (A, B, A):
        assert await registry.register(of_token(name, "rack-1")) is not Refusal.TOKEN_WORKER_LIMIT
    before = await whole_state(store.client, store.namespace)
    assert await registry.register(of_token(C, "rack-1")) is Refusal.TOKEN_WORKER_LIMIT
    assert await whole_state(store.client, store.namespace) == before
    assert await registry.register(of_token(C, "rack-2")) is True, "each token has a limit of its own"
    assert await registry.register(worker("http://w4:1")) is True, "a worker without a token has none"
    assert await counts(store, keys.token_workers) == {"rack-1": "2", "rack-2": "1"}
    await registry.remove(A)
    await store.expire_heartbeat(B)
    await registry.sweep(0.001)
    assert await counts(store, keys.token_workers) == {"rack-2": "1"}
    assert await registry.register(of_token(A, "rack-1")) is True


async def test_a_worker_that_registers_with_another_token_counts_for_that(store: Store) -> None:
    registry = store.registry(max_workers_per_token=1)
    await registry.register(of_token(A, "rack-1"))
    await registry.register(of_token(B, "rack-2"))
    assert await registry.register(of_token(A, "rack-2")) is Refusal.TOKEN_WORKER_LIMIT, "rack-2 has a worker"
    await registry.remove(B)
    assert await registry.register(of_token(A, "rack-2")) is False
    assert await counts(store, keys.token_workers) == {"rack-2": "1"}
    assert await registry.register(worker(A)) is False
    assert await counts(store, keys.token_workers) == {}


async def test_a_lost_worker_is_restored_beyond_the_limit_of_its_token(store: Store) -> None:
    registry = store.registry(max_workers_per_token=1)
    await registry.register(of_token(A, "rack-1"))
    assert await registry.restore(of_token(B, "rack-1"))
    assert await counts(store, keys.token_workers) == {"rack-1": "2"}


@every_method
async def test_a_token_gets_no_more_leases_than_it_may(store: Store, method: DispatchMethod) -> None:
    registry = store.registry(max_leases_per_token=2)
    await registry.register(worker(A))
    mine, others = [Request("m", 60_000, "chat")] * 3, [Request("m", 60_000, "batch"), Request("m", 60_000)]
    choices = await dispatch(registry, method, [*mine, *others, Request("m")])
    assert workers_of(choices) == [A, A, "", A, A, A]
    assert choices[2].lease == TOKEN_REFUSED
    assert await counts(store, keys.token_leases) == {"chat": "2", "batch": "1"}
    assert await registry.renew(leases_of(choices)[0])
    assert await registry.release(leases_of(choices)[:1]) == [True]
    assert TOKEN_REFUSED not in leases_of(await dispatch(registry, method, mine[:1]))
    assert leases_of(await dispatch(registry, method, mine[:1])) == [TOKEN_REFUSED]


@every_method
@pytest.mark.usefixtures("store_clock")
async def test_leases_of_a_token_that_end_without_a_release_make_room(store: Store, method: DispatchMethod) -> None:
    seconds, microseconds = await store.client.time()
    now = 1000 * seconds + microseconds // 1000
    await store.client.set(CLOCK, now)
    registry = store.registry(max_leases_per_token=2)
    await registry.register(worker(A, check_heart_beat=False))
    mine = [Request("m", 60_000, "chat")] * 3
    assert leases_of(await dispatch(registry, method, mine)).count(TOKEN_REFUSED) == 1
    await store.client.set(CLOCK, now + 60_000)
    assert leases_of(await dispatch(registry, method, mine)).count(TOKEN_REFUSED) == 1, "the others have expired"
    await registry.remove(A)
    await registry.register(worker(A, check_heart_beat=False))
    await store.client.set(CLOCK, now + 120_000)
    assert leases_of(await dispatch(registry, method, mine)).count(TOKEN_REFUSED) == 1, (
        "so have those of the removed one"
    )
    assert await counts(store, keys.token_leases) == {"chat": "2"}
