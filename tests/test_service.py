"""The use cases that take several steps: refresh, patient registration, the sweep."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable

import pytest

from controller import service
from controller.domain.errors import NoWorker, StoreRejection, StoreUnavailable, StreamBroken
from controller.domain.worker import WorkerStatus
from controller.metrics import Metrics
from controller.service import Controller
from controller.settings import Settings
from controller.store import keys
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient
from tests.conftest import Store
from tests.store.test_registry import A, B, worker
from tests.waiting import wait_until
from tests.workers import BadWorker, answers, bad_worker, chunks, hangs, status

Open = Callable[..., Controller]


@pytest.fixture
async def replica(store: Store) -> AsyncIterator[Open]:
    """Opens replicas on the store."""
    workers: list[WorkerClient] = []

    def open_replica(registry: Registry | None = None, **changed: object) -> Controller:
        settings = Settings(**{"probe_timeout": 0.5, "sweep_interval": 0.01, "register_patience": 5.0, **changed})  # type: ignore[arg-type]
        workers.append(WorkerClient(settings.probe_timeout, settings.worker_timeout))
        return Controller(settings, registry or store.registry(), workers[-1], Metrics())

    yield open_replica
    for client in workers:
        await client.close()


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


async def fail_once(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
    behaviour = answers(b"", "500 Internal Server Error") if len(worker.requests) == 1 else status("after-all")
    await behaviour(worker, writer, body)


async def queue_lengths(controller: Controller) -> dict[str, int]:
    return {known.name: known.status.queue_length for known in await controller.list_workers()}


async def test_refresh_updates_the_living_and_removes_the_dead(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("new", queue_length=9)) as living:
        await registry.register(worker(living.address, "old", multimodal=True, check_heart_beat=False))
        await registry.register(worker("http://127.0.0.1:1"))
        await controller.refresh()
        [known] = await controller.list_workers()
        assert known.status == WorkerStatus(("new",), 1, 9)
        assert (known.name, known.multimodal, known.check_heart_beat) == (living.address, True, False)
        assert len(living.requests) == 1


async def test_refresh_of_nobody(replica: Open) -> None:
    controller = replica()
    await controller.refresh()
    assert await controller.list_workers() == []


async def test_a_failed_probe_is_tried_once_more(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=fail_once) as shaky:
        await registry.register(worker(shaky.address))
        await controller.refresh()
        assert len(shaky.requests) == 2
        assert await controller.list_models() == ["after-all"]


async def test_a_worker_whose_probe_fails_as_no_other_spoils_nothing(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica()
    status_of = WorkerClient.status

    async def fails(self: WorkerClient, name: str) -> WorkerStatus:
        if name == A:
            raise RuntimeError("nobody has thought of this")
        return await status_of(self, name)

    monkeypatch.setattr(WorkerClient, "status", fails)
    async with bad_worker(worker_get_status=status("new")) as living:
        await registry.register(worker(A))
        await registry.register(worker(living.address))
        await controller.refresh()
        assert await controller.list_models() == ["new"]


async def test_when_all_of_several_fail_nobody_is_removed(
    replica: Open, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    for port in (1, 2, 3):
        await registry.register(worker(f"http://127.0.0.1:{port}"))
    await controller.refresh()
    assert len(await controller.list_workers()) == 3
    assert "None is removed" in caplog.text
    await registry.remove("http://127.0.0.1:1")
    await controller.refresh()
    assert len(await controller.list_workers()) == 2, "two are several"
    await registry.remove("http://127.0.0.1:2")
    await controller.refresh()
    assert await controller.list_workers() == [], "one alone is no evidence against us"


async def test_hanging_workers_are_probed_at_once_and_hold_up_nobody(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=hangs) as hanging, bad_worker(worker_get_status=status()) as living:
        for i in range(40):
            await registry.register(worker(f"{hanging.address}/{i}", "hanging"))
        await registry.register(worker(living.address))
        started = time.monotonic()
        refresh = asyncio.create_task(controller.refresh())
        await wait_until(lambda: hanging.open == 40, "all are being probed at the same time")
        assert await controller.dispatch("hanging") != "", "the registry is never empty meanwhile"
        assert not refresh.done()
        await refresh
        assert time.monotonic() - started < 41 * 0.5, "not one after the other"
        assert [known.name for known in await controller.list_workers()] == [living.address]


async def test_refreshes_at_the_same_time_share_one_run_also_across_replicas(replica: Open, registry: Registry) -> None:
    replicas = [replica() for _ in range(3)]
    gate = asyncio.Event()

    async def slow(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await gate.wait()
        await status()(asked, writer, body)

    async with bad_worker(worker_get_status=slow) as living:
        await registry.register(worker(living.address))
        first = asyncio.create_task(replicas[0].refresh())
        await wait_until(lambda: living.requests, "the first run is under way")
        others = [asyncio.create_task(r.refresh()) for r in replicas for _ in range(5)]
        asyncio.get_running_loop().call_later(0.2, gate.set)
        await asyncio.gather(first, *others)
        assert len(living.requests) == 1
        await replicas[1].refresh()
        assert len(living.requests) == 2


async def test_a_caller_that_goes_away_does_not_end_the_run_of_the_others(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("new")) as living:
        await registry.register(worker(living.address))
        impatient, patient = (asyncio.create_task(controller.refresh()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert await controller.list_models() == ["new"]


async def test_a_worker_that_registers_during_a_refresh_is_not_removed_by_it(replica: Open, registry: Registry) -> None:
    controller = replica()

    async def registers_and_fails(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if len(asked.requests) == 2:
            await registry.register(worker(asked.address, "since"))
        await answers(b"", "500 Internal Server Error")(asked, writer, body)

    async with bad_worker(worker_get_status=registers_and_fails) as restarted:
        await registry.register(worker(restarted.address))
        await controller.refresh()
        assert await controller.list_models() == ["since"]


async def test_an_older_answer_does_not_overwrite_a_newer_registration(replica: Open, registry: Registry) -> None:
    controller = replica()

    async def registers_and_tells_the_old(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await registry.register(worker(asked.address, "since"))
        await status("before")(asked, writer, body)

    async with bad_worker(worker_get_status=registers_and_tells_the_old) as restarted:
        await registry.register(worker(restarted.address))
        await controller.refresh()
        assert await controller.list_models() == ["since"]


async def test_a_replica_that_died_during_a_refresh_holds_up_nobody_for_long(
    replica: Open, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_PROBE_PAUSE", 0.0)
    controller = replica(probe_timeout=0.01)
    lock = store.registry().refresh_lock(60.0)  # of a replica that will not release it
    assert await lock.acquire()
    assert 50_000 < await store.client.pttl(keys.refresh(store.namespace)) <= 60_000
    async with asyncio.timeout(10):
        await controller.refresh()
    assert await lock.held()
    await lock.release()


async def test_workers_not_reached_in_time_are_left_as_they_are(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "_MAX_PROBES_AT_ONCE", 1)
    controller = replica(probe_timeout=0.05)
    async with bad_worker(worker_get_status=hangs) as hanging, bad_worker(worker_get_status=status()) as living:
        await registry.register(worker(living.address))
        for i in range(30):
            await registry.register(worker(f"{hanging.address.replace('127.0.0.1', 'localhost')}/{i}"))
        await controller.refresh()
        assert 1 < len(await controller.list_workers()) < 31


async def test_closing_ends_a_refresh(replica: Open, registry: Registry, store: Store) -> None:
    controller = replica(probe_timeout=60.0)
    async with bad_worker(worker_get_status=hangs) as hanging:
        await registry.register(worker(hanging.address))
        refresh = asyncio.create_task(controller.refresh())
        await wait_until(lambda: hanging.open, "the probe hangs")
        await controller.close()
        with pytest.raises(asyncio.CancelledError):
            await refresh
    assert not await store.client.exists(f"{{{store.namespace}}}:refresh")


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


async def test_a_registration_waits_for_the_store(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(service, "_CALM", 0.0)
    controller = replica()
    with failing(registry, monkeypatch, after=True):  # type: ignore[attr-defined]
        call = asyncio.create_task(
            controller.register(A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False)
        )
        await wait_until(lambda: "The store is away" in caplog.text, "the first attempt has failed")
        assert not call.done()
    await call
    assert await queue_lengths(controller) == {A: 0}
    assert "The store has served for 0 s again; it failed for" in caplog.text


async def test_a_store_that_fails_now_and_then_does_not_fill_the_log(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    for _ in range(5):
        with failing(registry, monkeypatch), pytest.raises(StoreUnavailable):  # type: ignore[attr-defined]
            await controller.dispatch("m")
        assert await controller.dispatch("m") == ""
    assert [record.getMessage() for record in caplog.records] == ["The store is away."]


async def test_a_rejection_is_logged_once_with_where_it_happened(
    replica: Open, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    await store.client.set(keys.model(store.namespace, "m"), "not ours")
    for _ in range(5):
        with pytest.raises(StoreRejection):
            await controller.dispatch("m")
    await store.client.delete(keys.model(store.namespace, "m"))
    [record] = caplog.records
    assert record.exc_info
    assert "WRONGTYPE" in record.getMessage()


async def test_a_registration_does_not_wait_for_ever(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica(register_patience=0.3)
    with failing(registry, monkeypatch), pytest.raises(StoreUnavailable):  # type: ignore[attr-defined]
        await controller.register(A, check_heart_beat=True, status=WorkerStatus(("m",), 1, 0), multimodal=False)


async def test_the_sweep_goes_on_through_an_outage(
    replica: Open, registry: Registry, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    await registry.register(worker(A))
    await registry.register(worker(B))
    await store.lapse(A)
    with failing(registry, monkeypatch):  # type: ignore[attr-defined]
        sweeping = asyncio.create_task(controller.sweep_forever())
        await wait_until(lambda: "The store is away" in caplog.text, "a sweep has failed")
    await wait_until(lambda: f"heartbeat lapsed: {A}" in caplog.text, "the sweep has found the worker")
    sweeping.cancel()
    assert await queue_lengths(controller) == {B: 0}


async def test_the_sweeps_of_replicas_are_spread_in_time(replica: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 200:
            raise asyncio.CancelledError

    controller = replica(sweep_interval=10.0)
    monkeypatch.setattr(service.asyncio, "sleep", sleep)
    with pytest.raises(asyncio.CancelledError):
        await controller.sweep_forever()
    assert all(5 <= seconds <= 15 for seconds in slept)
    assert max(slept) - min(slept) > 5


async def test_removals_are_counted_by_their_reason(replica: Open, registry: Registry, store: Store) -> None:
    controller = replica()
    await registry.register(worker(A))
    await store.lapse(A)
    sweeping = asyncio.create_task(controller.sweep_forever())
    await wait_until(lambda: counted(controller, 'removals_total{reason="lapsed"} 1.0'), "the sweep is counted")
    sweeping.cancel()
    await registry.register(worker("http://127.0.0.1:1"))
    await controller.refresh()
    assert counted(controller, 'removals_total{reason="refresh"} 1.0')


def counted(controller: Controller, line: str) -> bool:
    return f"controller_{line}" in controller._metrics.render().decode()


async def test_streams_are_counted_by_their_outcome(replica: Open, registry: Registry) -> None:
    controller = replica()
    with pytest.raises(NoWorker):
        await anext(controller.stream("m", b"{}"))
    async with bad_worker(worker_generate_stream=chunks(*[b"a\0"] * 50, pause=0.01)) as living:
        await registry.register(worker(living.address))
        gone = controller.stream("m", b"{}")
        await anext(gone)
        await gone.aclose()
        assert b"".join([frame async for frame in controller.stream("m", b"{}")]) == b"a\0" * 50
    with pytest.raises(StreamBroken):
        await anext(controller.stream("m", b"{}"))
    for outcome in ("no_worker", "client_gone", "complete", "broken"):
        assert counted(controller, f'streams_total{{outcome="{outcome}"}} 1.0')


async def test_status_is_one_read_of_the_store(replica: Open, registry: Registry, script_calls: list[str]) -> None:
    controller = replica()
    await registry.register(worker(A, "m", speed=2, queue_length=3))
    await registry.register(worker(B, "n", queue_length=4))
    script_calls.clear()
    total = await controller.status()
    assert (total.model_names, total.speed, total.queue_length) == (("m", "n"), 3, 7)
    assert script_calls == ["list_workers"]


async def test_concurrent_calls_become_few(replica: Open, registry: Registry, script_calls: list[str]) -> None:
    controller = replica()
    await registry.register(worker(A))
    for call in (lambda: controller.dispatch("m"), lambda: controller.heartbeat(A, 1), controller.list_models):
        script_calls.clear()
        answers_ = await asyncio.gather(*(call() for _ in range(50)))
        assert json.dumps(answers_[0]) in ('"http://a:1"', "true", '["m"]')
        assert len(script_calls) <= 2
