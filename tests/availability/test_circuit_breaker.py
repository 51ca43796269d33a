"""The guard: calls are refused as soon as one has failed, and let through when the store proves that it serves."""

import asyncio

import pytest

from controller.availability import circuit_breaker as module
from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import StoreRejection, StoreUnavailable
from controller.metrics import Metrics
from tests.support.waiting import wait_until


class FakeStore:
    """What a guard guards: it serves or fails as it is told, and counts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "_PROBE_INTERVAL", 0.001)
        self.error: Exception | None = None
        self.proof_error: Exception | None = None
        self.calls = 0
        self.proofs = 0
        self.proving = asyncio.Event()
        self.proving.set()
        self.metrics = Metrics()
        self.guard = CircuitBreaker(self.prove, self.metrics)

    async def prove(self) -> None:
        self.proofs += 1
        await self.proving.wait()
        if self.proof_error:
            raise self.proof_error

    async def call(self, number: int) -> int:
        self.calls += 1
        if self.error:
            raise self.error
        return number + 1

    async def ask(self) -> int:
        return await self.guard.call(self.call, 1)

    def counted(self, line: str) -> bool:
        return f"controller_{line}\n" in self.metrics.render().decode()


@pytest.fixture
async def store(monkeypatch: pytest.MonkeyPatch) -> object:
    opened = FakeStore(monkeypatch)
    yield opened
    await opened.guard.close()


async def test_the_first_calls_wait_for_one_proof(store: FakeStore) -> None:
    store.proving.clear()
    calls = [asyncio.create_task(store.call()) for _ in range(5)]
    await wait_until(lambda: store.proofs, "it is proving")
    assert store.calls == 0
    assert store.guard.reason is None
    store.proving.set()
    assert await asyncio.gather(*calls) == [2] * 5
    assert (store.proofs, store.calls) == (1, 5)
    assert await store.call() == 2
    assert store.proofs == 1
    assert store.counted("store_outages_total 0.0")


async def test_nothing_goes_through_before_a_proof_has_succeeded(store: FakeStore) -> None:
    store.proof_error = StoreUnavailable("not yet")
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="not yet"):
            await store.call()
    assert store.calls == 0
    await wait_until(lambda: store.proofs > 3, "it goes on proving")
    store.proof_error = None
    await wait_until(lambda: store.guard.reason is None, "it serves")
    assert await store.call() == 2
    assert store.counted("store_outages_total 0.0"), "it had not begun to serve"


async def test_after_one_failure_calls_are_refused_without_asking(store: FakeStore) -> None:
    assert await store.call() == 2
    store.error = store.proof_error = StoreUnavailable("gone")
    for _ in range(10):
        with pytest.raises(StoreUnavailable, match="gone"):
            await store.call()
    assert store.calls == 2
    assert store.guard.reason is store.error
    store.error = store.proof_error = None
    await wait_until(lambda: store.guard.reason is None, "it serves")
    assert await store.call() == 2
    assert store.counted("store_outages_total 1.0")


async def test_one_may_insist(store: FakeStore) -> None:
    assert await store.call() == 2
    store.error = store.proof_error = StoreUnavailable("gone")
    for calls in (2, 3):
        with pytest.raises(StoreUnavailable):
            await store.guard.force_call(store.call, 1)
        assert store.calls == calls
    store.error = None
    assert await store.guard.force_call(store.call, 1) == 2
    with pytest.raises(StoreUnavailable):
        await store.call()


async def test_a_rejection_refuses_nothing(store: FakeStore) -> None:
    store.error = StoreRejection("a mistake")
    for _ in range(3):
        with pytest.raises(StoreRejection):
            await store.call()
    assert (store.calls, store.proofs) == (3, 1)


@pytest.mark.parametrize("error", [StoreRejection("a mistake"), RuntimeError("a bug")])
async def test_proofs_go_on_whatever_goes_wrong(store: FakeStore, error: Exception) -> None:
    store.proof_error = error
    with pytest.raises(StoreUnavailable, match=r"a mistake|a bug"):
        await store.call()
    await wait_until(lambda: store.proofs > 3, "it goes on proving")
    store.proof_error = None
    await wait_until(lambda: store.guard.reason is None, "it serves")
    assert await store.call() == 2


async def test_trouble_is_told_when_it_begins_when_it_changes_and_when_it_is_over(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert await store.call() == 2
    assert store.guard.failing_since is None
    store.error = store.proof_error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        await store.call()
    await wait_until(lambda: store.proofs > 5, "it fails again and again")
    since = store.guard.failing_since
    store.proof_error = StoreRejection("not ours")
    await wait_until(lambda: "not ours" in caplog.text, "the change is told")
    store.error = store.proof_error = None
    await wait_until(lambda: store.guard.reason is None, "it serves")
    assert await store.call() == 2
    assert store.guard.failing_since == since, "a single good answer is no end of trouble"
    monkeypatch.setattr(module, "_CALM", 0.0)
    assert await store.call() == 2
    assert store.guard.failing_since is None
    told = [record.getMessage().split(";")[0] for record in caplog.records]
    assert told == ["gone", "not ours", "The store has served for 0 s again"]


async def test_closing_ends_the_proofs(store: FakeStore) -> None:
    store.proof_error = StoreUnavailable("gone")
    with pytest.raises(StoreUnavailable):
        await store.call()
    await store.guard.close()
    proofs = store.proofs
    await asyncio.sleep(0.02)
    assert store.proofs == proofs
    await store.guard.close()
