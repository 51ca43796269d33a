"""Refresh: all workers are probed at once, in one shared run. Newer registrations are not overwritten."""

import asyncio
import time
from typing import Any

import pytest

from controller.domain.worker import WorkerStatus
from controller.fleet import refresh
from controller.store import keys
from controller.store.refresh_lock import RefreshLock
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient
from tests.conftest import Open, Store
from tests.support.samples import A, worker
from tests.support.waiting import wait_until
from tests.support.workers import BadWorker, answers, bad_worker, hangs, status


async def fail_once(worker: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
    behaviour = answers(b"", "500 Internal Server Error") if len(worker.requests) == 1 else status("after-all")
    await behaviour(worker, writer, body)


async def test_refresh_updates_live_workers_and_removes_unreachable_ones(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("new", queue_length=9)) as healthy:
        await registry.register(worker(healthy.address, "old", multimodal=True, check_heart_beat=False))
        await registry.register(worker("http://127.0.0.1:1"))
        await controller.refresher.refresh()
        [known] = (await controller.membership.list_workers()).value
        assert known.status == WorkerStatus(("new",), 1, 9)
        assert (known.name, known.multimodal, known.check_heart_beat) == (healthy.address, True, False)
        assert len(healthy.requests) == 1


async def test_draining_worker_that_a_refresh_removed_drains_after_its_restart(
    replica: Open, registry: Registry
) -> None:
    """Operators drain a worker to restart it. FastChat's API server may send a refresh during the restart."""
    controller = replica()
    async with bad_worker(worker_get_status=status("m")) as healthy:
        await registry.register(worker(healthy.address))
        await registry.register(worker("http://127.0.0.1:1"))
        await registry.drain("http://127.0.0.1:1")
        await controller.refresher.refresh()
        assert [known.name for known in (await controller.membership.list_workers()).value] == [healthy.address]
    await registry.register(worker("http://127.0.0.1:1"))
    draining = {known.name: known.draining for known in (await controller.membership.list_workers()).value}
    assert draining == {healthy.address: False, "http://127.0.0.1:1": True}


async def test_worker_removed_by_request_does_not_drain_when_it_registers_again(registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    await registry.remove(A)
    await registry.register(worker(A))
    assert not (await registry.list_workers()).workers[0].draining


async def test_refresh_without_workers_does_nothing(replica: Open) -> None:
    controller = replica()
    await controller.refresher.refresh()
    assert (await controller.membership.list_workers()).value == []


async def test_failed_probe_is_repeated_once(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=fail_once) as unstable:
        await registry.register(worker(unstable.address))
        await controller.refresher.refresh()
        assert len(unstable.requests) == 2
        assert (await controller.dispatcher.list_models()).value == ["after-all"]


async def test_unexpected_error_of_one_probe_does_not_affect_other_workers(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = replica()
    status_of = WorkerClient.status

    async def fails(self: WorkerClient, name: str) -> WorkerStatus:
        if name == A:
            raise RuntimeError("an unexpected error")
        return await status_of(self, name)

    monkeypatch.setattr(WorkerClient, "status", fails)
    async with bad_worker(worker_get_status=status("new")) as healthy:
        await registry.register(worker(A))
        await registry.register(worker(healthy.address))
        await controller.refresher.refresh()
        assert (await controller.dispatcher.list_models()).value == ["new"]


async def test_no_worker_is_removed_if_all_of_several_probes_fail(
    replica: Open, registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    controller = replica()
    for port in (1, 2, 3):
        await registry.register(worker(f"http://127.0.0.1:{port}"))
    await controller.refresher.refresh()
    assert len((await controller.membership.list_workers()).value) == 3
    assert "No worker is removed" in caplog.text
    await registry.remove("http://127.0.0.1:1")
    await controller.refresher.refresh()
    assert len((await controller.membership.list_workers()).value) == 2, "two workers that both fail are kept"
    await registry.remove("http://127.0.0.1:2")
    await controller.refresher.refresh()
    assert (await controller.membership.list_workers()).value == [], "a single worker that fails is removed"


async def test_hanging_workers_are_probed_at_once_and_do_not_delay_dispatch(replica: Open, registry: Registry) -> None:
    controller = replica()
    may_fail = asyncio.Event()

    async def hang_then_fail(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        await may_fail.wait()
        writer.transport.abort()

    async with (
        bad_worker(worker_get_status=hang_then_fail) as hanging,
        bad_worker(worker_get_status=status()) as healthy,
    ):
        for i in range(40):
            await registry.register(worker(f"{hanging.address}/{i}", "hanging"))
        await registry.register(worker(healthy.address))
        refresh = asyncio.create_task(controller.refresher.refresh())
        await wait_until(lambda: hanging.open == 40, "all workers are being probed")
        assert (await controller.dispatcher.dispatch("hanging")).value != "", (
            "the registry is not empty during a refresh"
        )
        assert not refresh.done()
        may_fail.set()
        await refresh
        assert [known.name for known in (await controller.membership.list_workers()).value] == [healthy.address]


async def test_concurrent_refreshes_of_all_replicas_share_one_run(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = [replica() for _ in range(3)]
    gate = asyncio.Event()
    locked: list[bool] = []
    acquire = RefreshLock.acquire

    async def recording(lock: RefreshLock) -> bool:
        locked.append(await acquire(lock))
        return locked[-1]

    monkeypatch.setattr(RefreshLock, "acquire", recording)

    async def slow(server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await gate.wait()
        await status()(server, writer, body)

    async with bad_worker(worker_get_status=slow) as healthy:
        await registry.register(worker(healthy.address))
        first = asyncio.create_task(replicas[0].refresher.refresh())
        await wait_until(lambda: healthy.requests, "the first run has started")
        others = [asyncio.create_task(r.refresher.refresh()) for r in replicas for _ in range(5)]
        await wait_until(lambda: locked == [True, False, False], "the other replicas wait for the first run")
        gate.set()
        await asyncio.gather(first, *others)
        assert len(healthy.requests) == 1
        await replicas[1].refresher.refresh()
        assert len(healthy.requests) == 2


async def test_status_of_a_probe_is_dated_at_the_start_of_the_probe(replica: Open, registry: Registry) -> None:
    # The worker may have counted its queue before a request that was booked during the probe arrived.
    controller = replica(registry)
    refresh = registry.refresh
    booked_at: list[float] = []
    written_at: list[float] = []

    async def slow(server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        booked_at.append(time.monotonic())
        await status("m", queue_length=5)(server, writer, body)

    async def recording(*arguments: Any, **options: Any) -> bool:
        written_at.append(options["written_at"])
        return await refresh(*arguments, **options)

    async with bad_worker(worker_get_status=slow) as busy:
        await registry.register(worker(busy.address))
        registry.refresh = recording  # type: ignore[method-assign]
        await controller.refresher.refresh()
    assert written_at[0] < booked_at[0]
    assert len(written_at) == len(booked_at) == 1


async def test_cancelled_caller_does_not_end_the_shared_run(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("new")) as healthy:
        await registry.register(worker(healthy.address))
        cancelled, waiting = (asyncio.create_task(controller.refresher.refresh()) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await waiting
        assert (await controller.dispatcher.list_models()).value == ["new"]


async def test_worker_that_registers_during_a_refresh_is_not_removed(replica: Open, registry: Registry) -> None:
    controller = replica()

    async def register_and_fail(server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if len(server.requests) == 2:
            await registry.register(worker(server.address, "since"))
        await answers(b"", "500 Internal Server Error")(server, writer, body)

    async with bad_worker(worker_get_status=register_and_fail) as restarted:
        await registry.register(worker(restarted.address))
        await controller.refresher.refresh()
        assert (await controller.dispatcher.list_models()).value == ["since"]


async def test_older_status_does_not_overwrite_a_newer_registration(replica: Open, registry: Registry) -> None:
    controller = replica()

    async def register_and_return_the_old_status(server: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await registry.register(worker(server.address, "since"))
        await status("before")(server, writer, body)

    async with bad_worker(worker_get_status=register_and_return_the_old_status) as restarted:
        await registry.register(worker(restarted.address))
        await controller.refresher.refresh()
        assert (await controller.dispatcher.list_models()).value == ["since"]


async def test_refresh_returns_in_time_if_a_dead_replica_holds_the_lock(
    replica: Open, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_PROBE_PAUSE", 0.0)
    controller = replica(probe_timeout=0.01)
    lock = store.registry().refresh_lock(60.0)  # a replica that never releases it
    assert await lock.acquire()
    assert 50_000 < await store.client.pttl(keys.refresh(store.namespace)) <= 60_000
    await controller.refresher.refresh()
    assert await lock.held()
    await lock.release()


async def test_workers_not_probed_within_the_time_limit_are_kept(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_MAX_PROBES", 1)
    monkeypatch.setattr(refresh, "_PROBE_PAUSE", 0.0)
    controller = replica()
    wait = asyncio.wait

    async def wait_until_one_hangs(tasks: Any, *, timeout: float | None = None, **options: Any) -> Any:
        if timeout != controller.refresher._time_limit:
            return await wait(tasks, timeout=timeout, **options)
        await wait_until(lambda: hanging.open, "the first hanging worker is being probed")
        return await wait(tasks, timeout=0)

    monkeypatch.setattr(asyncio, "wait", wait_until_one_hangs)
    async with bad_worker(worker_get_status=hangs) as hanging, bad_worker(worker_get_status=status()) as healthy:
        names = [f"{hanging.address.replace('127.0.0.1', 'localhost')}/{i}" for i in range(30)]
        for name in ["http://127.0.0.1:1", healthy.address, *names]:  # they are probed in this order
            await registry.register(worker(name))
        await controller.refresher.refresh()
        names_left = [known.name for known in (await controller.membership.list_workers()).value]
        assert names_left == sorted([healthy.address, *names])


async def test_close_ends_a_refresh(replica: Open, registry: Registry, store: Store) -> None:
    controller = replica(probe_timeout=60.0)
    async with bad_worker(worker_get_status=hangs) as hanging:
        await registry.register(worker(hanging.address))
        refresh = asyncio.create_task(controller.refresher.refresh())
        await wait_until(lambda: hanging.open, "the probe hangs")
        await controller.close()
        with pytest.raises(asyncio.CancelledError):
            await refresh
    assert not await store.client.exists(f"{{{store.namespace}}}:refresh")
