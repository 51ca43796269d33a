"""The circuit breaker opens at the first failure, and closes when a probe succeeds."""

import asyncio

import pytest

from controller.availability import circuit_breaker as module
from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import StoreRejection, StoreUnavailable
from controller.metrics import Metrics
from tests.support.waiting import wait_until


class FakeStore:
    """A store that fails with the error that a test sets. It counts its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PROBE_INTERVAL", 0.001)
        self.error: Exception | None = None
        self.probe_error: Exception | None = None
        self.calls = 0
        self.probes = 0
        self.probing = asyncio.Event()
        self.probing.set()
        self.metrics = Metrics()
        self.breaker = CircuitBreaker(self.probe, self.metrics)

    async def probe(self) -> None:
        self.probes += 1
        await self.probing.wait()
        if self.probe_error:
            raise self.probe_error

    async def serve(self, number: int) -> int:
        self.calls += 1
        if self.error:
            raise self.error
        return number + 1

    async def call(self) -> int:
        return await self.breaker.call(self.serve, 1)

    def has_metric(self, line: str) -> bool:
        return f"controller_{line}\n" in self.metrics.render().decode()


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> object:
    opened = FakeStore(monkeypatch)
    yield opened
    await opened.breaker.close()


async def test_first_calls_wait_for_one_probe(store: FakeStore) -> None:
    store.probing.clear()
    calls = [asyncio.create_task(store.call()) for _ in range(5)]
    await wait_until(lambda: store.probes, "a probe runs")
    assert store.calls == 0
    assert store.breaker.reason is None
    store.probing.set()
    assert await asyncio.gather(*calls) == [2] * 5
    assert (store.probes, store.calls) == (1, 5)
    assert await store.call() == 2
    assert store.probes == 1
    assert store.has_metric("store_outages_total 0.0")


async def test_calls_fail_until_a_probe_has_succeeded(store: FakeStore) -> None:
    store.probe_error = StoreUnavailable("not yet")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="not yet"):
            await store.call()
    assert store.calls == 0
    await wait_until(lambda: store.probes > 3, "probes continue")
    store.probe_error = None
    await wait_until(lambda: store.breaker.reason is None, "the breaker is closed")
    assert await store.call() == 2
    assert store.has_metric("store_outages_total 0.0"), "an outage begins only after Redis has served"


async def test_calls_fail_fast_after_one_failure(store: FakeStore) -> None:
    assert await store.call() == 2
    store.error = store.probe_error = StoreUnavailable("gone")
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match="gone"):
            await store.call()
    assert store.calls == 2
    assert store.breaker.reason is store.error
    store.error = store.probe_error = None
    await wait_until(lambda: store.breaker.reason is None, "the breaker is closed")
    assert await store.call() == 2
    assert store.has_metric("store_outages_total 1.0")


async def test_force_call_runs_while_the_breaker_is_open(store: FakeStore) -> None:
    assert await store.call() == 2
    store.error = store.probe_error = StoreUnavailable("gone")
    for calls in (2, 3):
        with pytest.raises(StoreUnavailable):
            await store.breaker.force_call(store.serve, 1)
        assert store.calls == calls
    store.error = None
    assert await store.breaker.force_call(store.serve, 1) == 2
    with pytest.raises(StoreUnavailable):
        await store.call()


async def test_rejection_does_not_open_the_breaker(store: FakeStore) -> None:
    store.error = StoreRejection("a mistake")
    for _ in range(3):
        with pytest.raises(StoreRejection):
            await store.call()
    assert (store.calls, store.probes) == (3, 1)


@pytest.mark.parametrize("error", [StoreRejection("a mistake"), RuntimeError("a bug")])
async def test_probes_continue_after_any_error(store: FakeStore, error: Exception) -> None:
    store.probe_error = error
    with pytest.raises(StoreUnavailable, match=r"a mistake|a bug"):
        await store.call()
    await wait_until(lambda: store.probes > 3, "probes continue")
    store.probe_error = None
    await wait_until(lambda: store.breaker.reason is None, "the breaker is closed")
    assert await store.call() == 2


async def test_outage_is_logged_at_its_start_at_each_new_error_and_at_its_end(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert await store.call() == 2
    assert store.breaker.failing_since is None
    store.error = store.probe_error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        await store.call()
    await wait_until(lambda: store.probes > 5, "several probes fail")
    since = store.breaker.failing_since
    store.probe_error = StoreRejection("not ours")
    await wait_until(lambda: "not ours" in caplog.text, "the change is logged")
    store.error = store.probe_error = None
    await wait_until(lambda: store.breaker.reason is None, "the breaker is closed")
    assert await store.call() == 2
    assert store.breaker.failing_since == since, "one success does not end the outage"
    monkeypatch.setattr(module, "_CALM", 0.0)
    assert await store.call() == 2
    assert store.breaker.failing_since is None
    logged = [record.getMessage().split(".")[0] for record in caplog.records]
    assert logged == ["gone", "not ours", "Redis has served every call for 0 s"]


async def test_close_ends_the_probes(store: FakeStore) -> None:
    store.probe_error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        await store.call()
    probing = store.breaker._probing
    assert probing is not None
    await store.breaker.close()
    assert probing.done()
    await store.breaker.close()
