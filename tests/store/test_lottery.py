"""Test that the lottery draws in proportion to speed, whatever the share of failing workers, and books nothing."""

import random
from collections import Counter
from collections.abc import Callable, Mapping

import pytest

from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Store
from tests.support.dispatches import dispatch_lottery, queues, workers_of
from tests.support.invariants import check_invariants
from tests.support.samples import A, B, C, asks, reports, worker
from tests.support.stores import register_all

SPEEDS = {f"http://serving{i}:1": speed for i, speed in enumerate((0.5, 1, 2, 3, 5))}
FAILING = {f"http://failing{i}:1": 1 + i % 4 for i in range(195)}
CHI_SQUARE_4 = 18.47  # the 99.9th percentile with 4 degrees of freedom


def chi_square(drawn: Mapping[str, int], speeds: Mapping[str, float]) -> float:
    assert set(drawn) <= set(speeds)
    expected = {name: sum(drawn.values()) * speed / sum(speeds.values()) for name, speed in speeds.items()}
    return sum((drawn.get(name, 0) - number) ** 2 / number for name, number in expected.items())


async def draws(registry: Registry, number: int) -> Counter[str]:
    drawn: Counter[str] = Counter()
    for _ in range(number // 250):
        drawn.update(workers_of(await dispatch_lottery(registry, asks(["m"] * 250))))
    return drawn


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize("lost", ["nothing", "the odds", "the serving workers"])
async def test_195_failing_workers_of_200_are_not_drawn(store: Store, lost: str) -> None:
    registry = store.registry(draw=random.Random(11).random)
    for name, speed in {**SPEEDS, **FAILING}.items():
        await registry.register(worker(name, speed=speed))
    for name in FAILING:
        assert await registry.report_failure(name)
    drawn = await draws(registry, 20_000 if store.kind.startswith("redis-server") else 4_000)
    assert chi_square(drawn, SPEEDS) < CHI_SQUARE_4, drawn
    await check_invariants(store.client, store.namespace)
    if lost == "the odds":
        await store.client.delete(keys.odds(store.namespace, "m"))
        assert set(await draws(registry, 250)) == set(SPEEDS)
    elif lost == "the serving workers":
        await store.client.delete(keys.lottery(store.namespace, "m"))
        assert set(await draws(registry, 250)) <= set(FAILING)
        await store.client.delete(*await store.client.keys(f"{{{store.namespace}}}*"))


async def test_odds_are_proportional_to_speed_when_all_workers_fail(store: Store) -> None:
    registry = store.registry(draw=random.Random(12).random)
    for name, speed in SPEEDS.items():
        await registry.register(worker(name, speed=speed))
        await registry.report_failure(name)
    drawn = await draws(registry, 10_000 if store.kind != "fakeredis" else 4_000)
    assert chi_square(drawn, SPEEDS) < CHI_SQUARE_4, drawn


async def test_failing_worker_is_drawn_when_all_others_have_expired(store: Store) -> None:
    registry = store.registry(draw=random.Random(13).random)
    for name in (A, B, C):
        await registry.register(worker(name))
    await registry.report_failure(A)
    for name in (B, C):
        await store.expire_heartbeat(name)
    assert workers_of(await dispatch_lottery(registry, asks(["m"] * 3))) == [A] * 3


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize("loses", ["heartbeats", "hashes"])
async def test_lottery_finds_the_only_live_worker_among_many_expired_ones(store: Store, loses: str) -> None:
    registry = store.registry(draw=random.Random(15).random)
    await registry.register(worker(A, "m", "n"))
    dead = [f"http://dead{i}:1" for i in range(300)]
    await register_all(registry, [worker(name, "m", "n", speed=3) for name in dead])
    if loses == "heartbeats":
        await store.expire_heartbeat(*dead)
    else:
        await store.client.delete(*(keys.worker(store.namespace, name) for name in dead))
    assert workers_of(await dispatch_lottery(registry, asks(["m", "n"] * 20))) == [A] * 40
    if loses == "hashes":
        await store.client.delete(*await store.client.keys(f"{{{store.namespace}}}*"))


async def heartbeat(registry: Registry, name: str, _: float) -> None:
    await registry.heartbeat(reports([(name, 0)]))


async def poll(registry: Registry, name: str, _: float) -> None:
    await registry.take_poll_answers(reports([(name, 0)]))


async def registration(registry: Registry, name: str, speed: float) -> None:
    await registry.register(worker(name, speed=speed, check_heart_beat=False))


@pytest.mark.slow_on_fakeredis
@pytest.mark.parametrize(
    "clear_failure", [heartbeat, poll, registration], ids=lambda clear_failure: clear_failure.__name__
)
async def test_odds_stay_exact_when_workers_repeatedly_fail_and_recover(
    store: Store, clear_failure: Callable[..., object]
) -> None:
    registry = store.registry(draw=random.Random(14).random)
    for name, speed in SPEEDS.items():
        await registry.register(worker(name, speed=speed, check_heart_beat=False))
    drawn: Counter[str] = Counter()
    flapping = list(SPEEDS)[1::2]
    for _ in range(400 if store.kind.startswith("redis-server") else 100):
        for name in flapping:
            await registry.report_failure(name)
        assert not set(workers_of(await dispatch_lottery(registry, asks(["m"] * 2)))) & set(flapping)
        for name in flapping:
            await clear_failure(registry, name, SPEEDS[name])  # type: ignore[misc]
        drawn.update(workers_of(await dispatch_lottery(registry, asks(["m"] * 10))))
    assert chi_square(drawn, SPEEDS) < CHI_SQUARE_4, drawn


async def test_lottery_skips_a_failing_worker_in_all_of_its_models(store: Store, registry: Registry) -> None:
    await registry.register(worker(A, "m", "n", "only-a"))
    await registry.register(worker(B, "m", "n"))
    both = asks(["m", "n"] * 20)
    await dispatch_lottery(registry, both)
    await registry.report_failure(A)
    assert set(workers_of(await dispatch_lottery(registry, both))) == {B}
    assert workers_of(await dispatch_lottery(registry, asks(["only-a"]))) == [A]
    await registry.drain(A)
    assert workers_of(await dispatch_lottery(registry, asks(["only-a", "m"]))) == ["", B]
    await check_invariants(store.client, store.namespace)
    await registry.drain(A, False)
    assert set(workers_of(await dispatch_lottery(registry, both))) == {B}, "A fails until its next report"
    await registry.refresh(worker(A, "n", "new"), (await registry.list_workers()).workers[0].registration)
    await check_invariants(store.client, store.namespace)
    assert set(workers_of(await dispatch_lottery(registry, asks(["n"] * 20)))) == {B}
    await registry.heartbeat(reports([(A, 0)]))
    assert set(workers_of(await dispatch_lottery(registry, asks(["n"] * 40)))) == {A, B}
    assert workers_of(await dispatch_lottery(registry, asks(["new", "only-a"]))) == [A, ""]


async def test_draw_for_a_model_without_workers_creates_no_lasting_key(store: Store, registry: Registry) -> None:
    await dispatch_lottery(registry, asks(["absent"]))
    kinds = {key.split(":")[1] for key in await store.client.keys(f"{{{store.namespace}}}*")}
    assert kinds <= {"reply", "sequence"}


async def test_drawn_requests_are_listed_until_the_next_report(registry: Registry) -> None:
    """So a worker with drawn requests is not drained yet."""
    await registry.register(worker(A))
    await dispatch_lottery(registry, asks(["m"] * 3))
    [listed] = (await registry.list_workers()).workers
    assert listed.booked == 3
    await registry.heartbeat(reports([(A, 3)]))
    [listed] = (await registry.list_workers()).workers
    assert (listed.booked, listed.reported) == (0, 3)


async def test_lottery_books_nothing(registry: Registry) -> None:
    await registry.register(worker(A, queue_length=2))
    assert workers_of(await dispatch_lottery(registry, asks(["m"] * 5))) == [A] * 5
    assert await queues(registry) == [2]


async def test_lottery_is_proportional_to_speed(store: Store) -> None:
    """Run a chi-square test of 20,000 draws at the 99.9 % level. One worker has expired, one registers late."""
    registry = store.registry(draw=random.Random(11).random)
    speeds = {f"http://w{speed}:1": speed for speed in (1, 2, 3, 4, 10)}
    for name, speed in speeds.items():
        if speed != 4:
            await registry.register(worker(name, speed=speed))
    await registry.register(worker("http://dead:1", speed=50))
    await dispatch_lottery(registry, asks(["m"] * 250))
    await store.expire_heartbeat("http://dead:1")
    await registry.register(worker("http://w4:1", speed=4))
    drawn = await draws(registry, 20_000 if store.kind != "fakeredis" else 4_000)
    assert chi_square(drawn, speeds) < CHI_SQUARE_4, f"chi-square exceeds the 99.9th percentile: {drawn}"


async def test_lottery_draws_do_not_depend_on_each_other(store: Store) -> None:
    """Count pairs of draws among two equal workers: 4 pairs, 3 degrees of freedom."""
    number = 10_000 if store.kind != "fakeredis" else 2_000
    registry = store.registry(draw=random.Random(5).random)
    await registry.register(worker(A))
    await registry.register(worker(B))
    winners = [
        name for _ in range(number // 250) for name in workers_of(await dispatch_lottery(registry, asks(["m"] * 250)))
    ]
    pairs = Counter(zip(winners[::2], winners[1::2], strict=True))
    expected = number / 2 / 4
    assert sum((pairs[x, y] - expected) ** 2 / expected for x in (A, B) for y in (A, B)) < 16.27


async def test_lottery_follows_a_change_of_speed(store: Store) -> None:
    registry = store.registry(draw=random.Random(3).random)
    await registry.register(worker(A, speed=1000))
    await registry.register(worker(B, speed=1))
    await dispatch_lottery(registry, asks(["m"] * 200))
    await registry.register(worker(A, speed=1e-6))
    await dispatch_lottery(registry, asks(["m"]))
    assert Counter(workers_of(await dispatch_lottery(registry, asks(["m"] * 200))))[B] == 200


async def test_lottery_does_not_treat_a_decayed_booking_as_a_failure(store: Store) -> None:
    registry = store.registry(draw=random.Random(2).random)
    for name in (A, B):
        await registry.register(worker(name))
    key = keys.worker(store.namespace, A)
    await store.client.hset(key, "untracked", "1e-07")
    drawn = Counter(workers_of(await dispatch_lottery(registry, asks(["m"] * 1000))))
    assert 400 < drawn[A] < 600


async def test_lottery_stays_exact_when_fast_workers_join_a_slow_one(store: Store) -> None:
    """Use the lowest and the highest speed."""
    registry = store.registry(draw=random.Random(2).random)
    await registry.register(worker(A, speed=1e-6))
    await dispatch_lottery(registry, asks(["m"] * 250))
    for name in (B, C):
        await registry.register(worker(name, speed=1e9))
    drawn = Counter(workers_of(await dispatch_lottery(registry, asks(["m"] * 1000))))
    assert set(drawn) == {B, C}
    assert 400 < drawn[B] < 600
