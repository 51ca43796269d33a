"""Trial requests, which bring failing engines back: one at a time for the whole cluster."""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from controller.proxy.trials import Outcome, Trials
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry
from tests.conftest import Open, Store
from tests.support.openai_engines import engine_worker
from tests.support.waiting import wait_until

FAILING, GOOD = "http://127.0.0.2:8000", "http://127.0.0.3:8000"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cluster(NamedTuple):
    """Two replicas with one clock. A good engine serves `m`, and so does one that has failed."""

    one: Trials
    other: Trials
    clock: Clock
    registry: Registry
    replica: Replica

    async def next_trial(self, trials: Trials) -> str:
        """Send requests, one in each second, until one of them is a trial."""

        def taken() -> str:
            self.clock.now += 1
            return trials.take("m")

        name: str = await wait_until(taken, "a request is the trial")
        return name


@pytest.fixture
async def cluster(registry: Registry, replica: Open) -> AsyncIterator[Cluster]:
    for name in (FAILING, GOOD):
        await registry.register(engine_worker(name, "m"))
    await registry.report_failure(FAILING)
    opened = replica()
    await opened.snapshots.take_now()
    clock = Clock()
    one, other = (Trials(registry, opened.snapshots, name, clock) for name in ("one", "other"))
    yield Cluster(one, other, clock, registry, opened)
    await one.close()
    await other.close()


async def calls_ended(trials: Trials) -> None:
    await asyncio.gather(*trials._tasks)


async def test_first_trial_is_a_second_after_the_failure_and_does_not_delay_a_request(cluster: Cluster) -> None:
    assert cluster.one.take("m") == ""
    cluster.clock.now += 0.9
    assert cluster.one.take("m") == ""
    assert not cluster.one._tasks, "the lock is not asked for"
    cluster.clock.now += 0.1
    assert cluster.one.take("m") == "", "this request does not wait for the lock"
    await calls_ended(cluster.one)
    assert cluster.one.take("other") == ""
    assert cluster.one.take("m") == FAILING
    assert cluster.one.take("m") == "", "one request is enough"


async def test_one_replica_at_a_time_has_a_trial(cluster: Cluster) -> None:
    assert await cluster.next_trial(cluster.one) == FAILING
    for _ in range(3):
        cluster.clock.now += 1
        assert cluster.other.take("m") == ""
        await calls_ended(cluster.other)
    cluster.one.end(FAILING, Outcome.UNKNOWN)
    await calls_ended(cluster.one)
    assert await cluster.next_trial(cluster.other) == FAILING


async def test_next_trial_has_twice_the_time_in_all_replicas(cluster: Cluster) -> None:
    await cluster.next_trial(cluster.one)
    assert cluster.one.time_limit(FAILING) == 10
    cluster.one.end(FAILING, Outcome.FAILED)
    await calls_ended(cluster.one)
    await cluster.next_trial(cluster.other)
    assert cluster.other.time_limit(FAILING) == 20
    cluster.other.end(FAILING, Outcome.SUCCEEDED)
    await calls_ended(cluster.other)
    await cluster.next_trial(cluster.one)
    assert cluster.one.time_limit(FAILING) == 10, "the failures are over"


@pytest.mark.parametrize("is_held", [True, False])
async def test_clock_of_redis_that_is_set_back_does_not_delay_trials(
    cluster: Cluster, store: Store, is_held: bool
) -> None:
    await cluster.next_trial(cluster.one)
    if not is_held:
        cluster.one.end(FAILING, Outcome.FAILED)
        await calls_ended(cluster.one)
    lock = keys.job(store.namespace, f"trial:{FAILING}")
    assert await store.client.pexpire(lock, 3_600_000)  # as after a jump by an hour
    assert await cluster.next_trial(cluster.other) == FAILING


async def test_lock_that_no_request_uses_is_not_used_late(cluster: Cluster) -> None:
    cluster.one.take("m")
    cluster.clock.now += 1
    cluster.one.take("m")
    await calls_ended(cluster.one)
    cluster.clock.now += 50  # the lock may have expired
    assert cluster.one.take("m") == ""


async def test_engine_that_works_again_has_no_trials(cluster: Cluster) -> None:
    cluster.one.take("m")
    cluster.clock.now += 1
    cluster.one.take("m")
    await calls_ended(cluster.one)
    await cluster.registry.register(engine_worker(FAILING, "m"))
    await cluster.replica.snapshots.take_now()
    assert cluster.one.take("m") == ""
    assert cluster.one._engines == {}, "nothing is remembered"
