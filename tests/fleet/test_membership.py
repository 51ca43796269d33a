"""Registration that waits for the store, the sweep, batched calls, and their metrics and logs."""

import asyncio
import contextlib
import functools
import time
from collections.abc import Iterator, Sequence

import pytest

from controller.availability import circuit_breaker
from controller.availability.snapshot import MaybeStale
from controller.domain.errors import (
    NoWorker,
    StoreRejection,
    StoreUnavailable,
    WorkerUnreachable,
)
from controller.domain.worker import WorkerStatus
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry, Report
from tests.conftest import Open, Store
from tests.support.metrics import has_metric
from tests.support.outage import served_by_store
from tests.support.samples import OPERATOR, A, B, worker
from tests.support.waiting import cancelled, wait_until


@pytest.fixture
def script_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the scripts that are run."""
    calls: list[str] = []
    run = Registry._run

    async def recording(self: Registry, script: str, *arguments: str | int) -> object:
        calls.append(script)
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", recording)
    return calls


async def queue_lengths(replica: Replica) -> dict[str, int]:
    return {known.name: known.status.queue_length for known in (await replica.membership.list_workers()).value}


@contextlib.contextmanager
def failing(registry: Registry, monkeypatch: pytest.MonkeyPatch, *, after: bool = False) -> Iterator[None]:
    """Let the registry's calls fail: before they reach the store, or `after` it has run them."""
    run = Registry._run

    async def fail(self: Registry, script: str, *arguments: str | int) -> object:
        if after:
            await run(self, script, *arguments)
        raise StoreUnavailable("Redis is away.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", fail)
        yield


async def test_registration_waits_for_the_store(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(circuit_breaker, "_CALM", 0.0)
    controller = replica()
    with failing(registry, monkeypatch, after=True):
        call = asyncio.create_task(
            controller.membership.register(
                A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False, caller=OPERATOR
            )
        )
        await wait_until(lambda: "Redis is away" in caplog.text, "the first attempt has failed")
        assert not call.done()
    await call
    assert await queue_lengths(controller) == {A: 0}
    assert "Redis has served every call for 0 s. Before that, it failed for" in caplog.text


async def test_repeated_short_outages_are_logged_once(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    for _ in range(5):
        with failing(registry, monkeypatch), pytest.raises(StoreUnavailable):
            await controller.membership.heartbeat(A, 0)
        await wait_until(lambda: served_by_store(controller), "the replica uses the store again")
    assert [record.getMessage() for record in caplog.records] == ["Redis is away."]


async def test_rejection_is_logged_once_with_a_traceback(
    replica: Open, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    await store.client.set(keys.cost_index(store.namespace, "m"), "foreign value")
    for _ in range(5):
        with pytest.raises(StoreRejection):
            await controller.dispatcher.dispatch("m")
    await store.client.delete(keys.cost_index(store.namespace, "m"))
    [record] = caplog.records
    assert record.exc_info
    assert "WRONGTYPE" in record.getMessage()


async def test_registration_fails_after_the_register_timeout(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica(register_timeout=0.3)
    with failing(registry, monkeypatch), pytest.raises(StoreUnavailable):
        await controller.membership.register(
            A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False, caller=OPERATOR
        )


async def test_failed_registration_is_logged_and_counted(replica: Open, caplog: pytest.LogCaptureFixture) -> None:
    controller = replica()
    with pytest.raises(WorkerUnreachable):
        await controller.membership.register(A, check_heart_beat=True, status=None, multimodal=False, caller=OPERATOR)
    [record] = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.getMessage().startswith(f"Registration of worker {A} failed. It has to register again: {A}")
    assert 'controller_registrations_total{outcome="failed"} 1.0' in controller.metrics.render().decode()


async def test_one_failed_call_counts_once_however_many_registrations_waited_for_it(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica(register_timeout=0.0)
    await controller.readiness.check()
    monkeypatch.setattr(circuit_breaker, "_PROBE_INTERVAL", 60.0)  # no second probe while this test runs
    with failing(registry, monkeypatch):
        registrations = [
            controller.membership.register(
                f"http://127.0.0.1:1/{i}",
                check_heart_beat=True,
                status=WorkerStatus(("m",), 1, 0),
                multimodal=False,
                caller=OPERATOR,
            )
            for i in range(10)
        ]
        results = await asyncio.gather(*registrations, return_exceptions=True)
        await wait_until(lambda: controller.breaker.reason is not None, "the circuit breaker is open")
        await asyncio.sleep(0.05)
    assert all(isinstance(result, StoreUnavailable) for result in results)
    failures = controller.metrics.store_failures
    assert failures._cells[failures._cell] == 2, "the call and the probe after it"


async def test_sweep_continues_after_an_outage(
    replica: Open, registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    await registry.register(worker(A))
    await registry.register(worker(B))
    await store.expire_heartbeat(A)
    with failing(registry, monkeypatch):
        sweeping = asyncio.create_task(controller.sweeper.run())
        await wait_until(lambda: "Redis is away" in caplog.text, "a sweep has failed")
    await wait_until(lambda: f"heartbeat expired: {A}" in caplog.text, "the sweep has found the worker")
    await cancelled(sweeping)
    await wait_until(lambda: served_by_store(controller), "the replica uses the store again")
    assert await queue_lengths(controller) == {B: 0}


async def test_sweeps_of_replicas_are_spread_in_time(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 200:
            raise asyncio.CancelledError

    controller = replica(sweep_interval=10.0)
    monkeypatch.setattr(asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await controller.sweeper.run()
    assert all(5 <= seconds <= 15 for seconds in pauses)
    assert max(pauses) - min(pauses) > 5


async def test_removals_are_counted_by_reason(replica: Open, registry: Registry, store: Store) -> None:
    controller = replica()
    await registry.register(worker(A))
    await store.expire_heartbeat(A)
    sweeping = asyncio.create_task(controller.sweeper.run())
    await wait_until(lambda: has_metric(controller, 'removals_total{reason="expired"} 1.0'), "the sweep is counted")
    await cancelled(sweeping)
    await registry.register(worker("http://127.0.0.1:1"))
    await controller.refresher.refresh()
    assert has_metric(controller, 'removals_total{reason="refresh"} 1.0')


async def test_status_runs_one_script(replica: Open, registry: Registry, script_calls: list[str]) -> None:
    controller = replica()
    await registry.register(worker(A, "m", speed=2, queue_length=3))
    await registry.register(worker(B, "n", queue_length=4))
    await controller.readiness.check()
    script_calls.clear()
    total = (await controller.membership.status()).value
    assert (total.model_names, total.speed, total.queue_length) == (("m", "n"), 3, 7)
    assert script_calls == ["list_workers"]


async def test_concurrent_calls_share_scripts(replica: Open, registry: Registry, script_calls: list[str]) -> None:
    controller = replica()
    await registry.register(worker(A))
    await controller.readiness.check()
    for call in (
        lambda: controller.dispatcher.dispatch("m"),
        lambda: controller.membership.heartbeat(A, 1),
        controller.dispatcher.list_models,
    ):
        script_calls.clear()
        results = await asyncio.gather(*(call() for _ in range(50)))
        assert results[0] in (MaybeStale(A), True, MaybeStale(["m"]))
        assert len(script_calls) <= 2


async def test_waiting_registrations_of_one_worker_register_the_latest_status(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker restarted during an outage."""
    controller = replica()
    with failing(registry, monkeypatch):
        calls = []
        for model in ("old", "new"):
            status = WorkerStatus((model,), 1, 0)
            call = controller.membership.register(
                A, check_heart_beat=True, status=status, multimodal=False, caller=OPERATOR
            )
            calls.append(asyncio.create_task(call))
            await wait_until(lambda: waiting_calls(controller) == len(calls), "the call waits")
    for ended in asyncio.as_completed(calls):
        await ended
        assert (await controller.dispatcher.list_models()).value == ["new"], (
            "each call returns after the latest status is registered"
        )
    assert controller.membership._waiting == {}


def waiting_calls(replica: Replica) -> int:
    waiting = replica.membership._waiting.get(A)
    return waiting.calls if waiting else 0


async def test_drain_and_failure_report_request_a_snapshot(replica: Open, registry: Registry) -> None:
    controller = replica()
    await registry.register(worker(A))
    requested = controller.snapshots._requested
    drain = functools.partial(controller.membership.drain, caller=OPERATOR)
    for change in (drain, controller.dispatcher.report_failure):
        requested.clear()
        assert await change(A)
        assert requested.is_set()
        requested.clear()
        assert not await change(B)
        assert not requested.is_set()


async def test_heartbeat_is_dated_at_its_arrival_even_if_it_waits_for_a_permit(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not include the bookings that are made while it waits."""
    controller = replica()
    taken: list[Report] = []

    async def take(reports: Sequence[Report]) -> list[bool]:
        taken.extend(reports)
        return [True] * len(reports)

    await controller.readiness.check()
    monkeypatch.setattr(controller.registry, "heartbeat", take)
    before = time.monotonic()
    assert await controller.membership.heartbeat(A, 3)
    [report] = taken
    assert report.written_at is not None
    assert before <= report.written_at <= time.monotonic()


async def test_model_name_that_is_too_long_runs_no_script(
    replica: Open, registry: Registry, script_calls: list[str]
) -> None:
    longest = "x" * 512
    await registry.register(worker(A, longest))
    controller = replica()
    await controller.readiness.check()
    assert (await controller.dispatcher.dispatch(longest)).value == A
    script_calls.clear()
    assert (await controller.dispatcher.dispatch(longest + "x")).value == ""
    assert (await controller.dispatcher.dispatch_with_lease("x" * 30_000_000)).value == ("", "")
    with pytest.raises(NoWorker):
        await controller.forwarder.call(longest + "x", "/worker_generate", b"{}")
    assert script_calls == []
