"""The use cases that take several steps: patient registration, the sweep, calls that become few; and what is told."""

import asyncio
import contextlib
import time
from collections.abc import Sequence

import pytest

from controller.availability import circuit_breaker as guard
from controller.availability.snapshot import MaybeStale
from controller.domain.errors import (
    NoWorker,
    StoreRejection,
    StoreUnavailable,
    StreamBroken,
    WorkerRefused,
    WorkerUnreachable,
)
from controller.domain.worker import WorkerStatus
from controller.fleet import membership
from controller.replica import Replica
from controller.store import keys
from controller.store.registry import Registry, Report
from tests.conftest import Open, Store
from tests.support.samples import A, B, worker
from tests.support.streams import streamed
from tests.support.waiting import cancelled, wait_until
from tests.support.workers import answers, bad_worker, chunks, hangs


@pytest.fixture
def script_calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the scripts that are run."""
    calls: list[str] = []
    run = Registry._run

    async def counting(self: Registry, script: str, *arguments: str | int) -> object:
        calls.append(script)
        return await run(self, script, *arguments)

    monkeypatch.setattr(Registry, "_run", counting)
    return calls


async def queue_lengths(controller: Replica) -> dict[str, int]:
    return {known.name: known.status.queue_length for known in (await controller.membership.list_workers()).value}


@contextlib.contextmanager
def failing(registry: Registry, monkeypatch: pytest.MonkeyPatch, *, after: bool = False) -> object:
    """Let the registry's calls fail, before they are made or after."""
    run = Registry._run

    async def fail(self: Registry, script: str, *arguments: str | int) -> object:
        if after:
            await run(self, script, *arguments)
        raise StoreUnavailable("The store is away.")

    with monkeypatch.context() as patch:
        patch.setattr(Registry, "_run", fail)
        yield


async def serves(controller: Replica) -> bool:
    try:
        return (await controller.readiness.check()).snapshot_age is None
    except StoreUnavailable:
        return False


async def test_a_registration_waits_for_the_store(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(guard, "_CALM", 0.0)
    controller = replica()
    with failing(registry, monkeypatch, after=True):
        call = asyncio.create_task(
            controller.membership.register(
                A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False
            )
        )
        await wait_until(lambda: "The store is away" in caplog.text, "the first attempt has failed")
        assert not call.done()
    await call
    assert await queue_lengths(controller) == {A: 0}
    assert "Redis has served every call for 0 s. Before that, it failed for" in caplog.text


async def test_a_store_that_fails_now_and_then_does_not_fill_the_log(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    for _ in range(5):
        with failing(registry, monkeypatch), pytest.raises(StoreUnavailable):
            await controller.membership.heartbeat(A, 0)
        await wait_until(lambda: serves(controller), "the store is in use again")
    assert [record.getMessage() for record in caplog.records] == ["The store is away."]


async def test_a_rejection_is_logged_once_with_where_it_happened(
    replica: Open, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    await store.client.set(keys.cost_index(store.namespace, "m"), "not ours")
    for _ in range(5):
        with pytest.raises(StoreRejection):
            await controller.dispatcher.dispatch("m")
    await store.client.delete(keys.cost_index(store.namespace, "m"))
    [record] = caplog.records
    assert record.exc_info
    assert "WRONGTYPE" in record.getMessage()


async def test_a_registration_does_not_wait_for_ever(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica(register_timeout=0.3)
    with failing(registry, monkeypatch), pytest.raises(StoreUnavailable):
        await controller.membership.register(
            A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False
        )


async def test_the_sweep_goes_on_through_an_outage(
    replica: Open, registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    await registry.register(worker(A))
    await registry.register(worker(B))
    await store.lapse(A)
    with failing(registry, monkeypatch):
        sweeping = asyncio.create_task(controller.sweeper.run())
        await wait_until(lambda: "The store is away" in caplog.text, "a sweep has failed")
    await wait_until(lambda: f"heartbeat expired: {A}" in caplog.text, "the sweep has found the worker")
    await cancelled(sweeping)
    await wait_until(lambda: serves(controller), "the store is in use again")
    assert await queue_lengths(controller) == {B: 0}


async def test_the_sweeps_of_replicas_are_spread_in_time(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 200:
            raise asyncio.CancelledError

    controller = replica(sweep_interval=10.0)
    monkeypatch.setattr(membership.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await controller.sweeper.run()
    assert all(5 <= seconds <= 15 for seconds in slept)
    assert max(slept) - min(slept) > 5


async def test_removals_are_counted_by_their_reason(replica: Open, registry: Registry, store: Store) -> None:
    controller = replica()
    await registry.register(worker(A))
    await store.lapse(A)
    sweeping = asyncio.create_task(controller.sweeper.run())
    await wait_until(lambda: counted(controller, 'removals_total{reason="lapsed"} 1.0'), "the sweep is counted")
    await cancelled(sweeping)
    await registry.register(worker("http://127.0.0.1:1"))
    await controller.refresher.refresh()
    assert counted(controller, 'removals_total{reason="refresh"} 1.0')


def counted(controller: Replica, line: str) -> bool:
    return f"controller_{line}" in controller.metrics.render().decode()


async def test_streams_are_counted_by_their_outcome(replica: Open, registry: Registry) -> None:
    controller = replica()
    with pytest.raises(NoWorker):
        await anext(streamed(controller))
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 50, pause=0.01)) as living:
        await registry.register(worker(living.address))
        gone = streamed(controller)
        await anext(gone)
        await gone.aclose()
        assert b"".join([frame async for frame in streamed(controller)]) == b"a\0" * 50
    with pytest.raises(WorkerUnreachable):
        await anext(streamed(controller))
    for outcome in ("no_worker", "client_gone", "complete", "broken"):
        assert counted(controller, f'streams_total{{outcome="{outcome}"}} 1.0')
    await wait_until(lambda: not controller.forwarder._background, "the ends of the streams are told")
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length, known.failing) == (0, 0, "request"), "on every way out"


async def test_only_a_worker_that_cannot_be_reached_is_put_behind_the_others(replica: Open, registry: Registry) -> None:
    """Not one that refuses a request, and not one whose answer this replica does not wait for."""
    controller = replica()
    async with bad_worker(worker_generate_stream=answers(b"", "400 Bad Request")) as refusing:
        await registry.register(worker(refusing.address))
        with pytest.raises(WorkerRefused):
            await anext(streamed(controller))
    await registry.remove(refusing.address)
    async with bad_worker(worker_generate_stream=hangs) as busy:
        await registry.register(worker(busy.address))
        waiting = asyncio.create_task(anext(streamed(controller)))
        await wait_until(lambda: busy.requests, "it is asked")
        controller.end_streams()
        with pytest.raises(StreamBroken):
            await waiting
    await wait_until(lambda: not controller.forwarder._background, "the ends of the streams are told")
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.failing) == (0, "")


async def test_a_stream_leases_its_worker_while_it_goes_on(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 50, pause=0.01)) as living:
        await registry.register(worker(living.address))
        frames = streamed(controller)
        await anext(frames)
        [known] = (await registry.list_workers()).workers
        assert (known.leased, known.status.queue_length) == (1, 1)
        async for _ in frames:
            pass
    await wait_until(lambda: not controller.forwarder._background, "the end of the stream is told")
    [known] = (await registry.list_workers()).workers
    assert (known.leased, known.status.queue_length, known.failing) == (0, 0, "")


async def test_status_is_one_read_of_the_store(replica: Open, registry: Registry, script_calls: list[str]) -> None:
    controller = replica()
    await registry.register(worker(A, "m", speed=2, queue_length=3))
    await registry.register(worker(B, "n", queue_length=4))
    await controller.readiness.check()
    script_calls.clear()
    total = (await controller.membership.status()).value
    assert (total.model_names, total.speed, total.queue_length) == (("m", "n"), 3, 7)
    assert script_calls == ["list_workers"]


async def test_concurrent_calls_become_few(replica: Open, registry: Registry, script_calls: list[str]) -> None:
    controller = replica()
    await registry.register(worker(A))
    await controller.readiness.check()
    for call in (
        lambda: controller.dispatcher.dispatch("m"),
        lambda: controller.membership.heartbeat(A, 1),
        controller.dispatcher.list_models,
    ):
        script_calls.clear()
        answers_ = await asyncio.gather(*(call() for _ in range(50)))
        assert answers_[0] in (MaybeStale(A), True, MaybeStale(["m"]))
        assert len(script_calls) <= 2


async def test_of_two_registrations_that_wait_the_newer_counts(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that was started again while the store was away."""
    controller = replica()
    with failing(registry, monkeypatch):
        calls = []
        for model in ("old", "new"):
            status = WorkerStatus((model,), 1, 0)
            call = controller.membership.register(A, check_heart_beat=True, status=status, multimodal=False)
            calls.append(asyncio.create_task(call))
            await wait_until(lambda: waiting(controller) == len(calls), "it waits")
    for call in asyncio.as_completed(calls):
        await call
        assert (await controller.dispatcher.list_models()).value == ["new"], "no answer before the latest is made"
    assert controller.membership._waiting == {}


def waiting(controller: Replica) -> int:
    underway = controller.membership._waiting.get(A)
    return underway.calls if underway else 0


async def test_what_changes_the_choice_is_news_for_the_snapshot(replica: Open, registry: Registry) -> None:
    controller = replica()
    await registry.register(worker(A))
    news = controller.snapshots._requested
    for change in (controller.membership.drain, controller.dispatcher.report_failure):
        news.clear()
        assert await change(A)
        assert news.is_set()
        news.clear()
        assert not await change(B)
        assert not news.is_set()


async def test_a_heartbeat_is_from_when_it_came_though_it_waits(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bookings made while it waits for a place are not in it."""
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


async def test_a_model_name_that_no_worker_can_have_is_not_sent_to_the_store(
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
