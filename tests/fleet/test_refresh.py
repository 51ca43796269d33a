"""Refresh: all workers are asked at once, in one shared run, and nothing is decided on old knowledge."""

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


async def test_refresh_updates_the_living_and_removes_the_dead(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("new", queue_length=9)) as living:
        await registry.register(worker(living.address, "old", multimodal=True, check_heart_beat=False))
        await registry.register(worker("http://127.0.0.1:1"))
        await controller.refresher.refresh()
        [known] = (await controller.membership.list_workers()).value
        assert known.status == WorkerStatus(("new",), 1, 9)
        assert (known.name, known.multimodal, known.check_heart_beat) == (living.address, True, False)
        assert len(living.requests) == 1


async def test_who_is_removed_because_it_restarts_drains_on(replica: Open, registry: Registry) -> None:
    """It was told to drain so that it can be restarted; and FastChat's API server refreshes all the time."""
    controller = replica()
    async with bad_worker(worker_get_status=status("m")) as living:
        await registry.register(worker(living.address))
        await registry.register(worker("http://127.0.0.1:1"))
        await registry.drain("http://127.0.0.1:1")
        await controller.refresher.refresh()
        assert [known.name for known in (await controller.membership.list_workers()).value] == [living.address]
    await registry.register(worker("http://127.0.0.1:1"))
    drains = {known.name: known.draining for known in (await controller.membership.list_workers()).value}
    assert drains == {living.address: False, "http://127.0.0.1:1": True}


async def test_who_is_removed_by_request_drains_no_more(registry: Registry) -> None:
    await registry.register(worker(A))
    await registry.drain(A)
    await registry.remove(A)
    await registry.register(worker(A))
    assert not (await registry.list_workers()).workers[0].draining


async def test_refresh_of_nobody(replica: Open) -> None:
    controller = replica()
    await controller.refresher.refresh()
    assert (await controller.membership.list_workers()).value == []


async def test_a_failed_probe_is_tried_once_more(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=fail_once) as shaky:
        await registry.register(worker(shaky.address))
        await controller.refresher.refresh()
        assert len(shaky.requests) == 2
        assert (await controller.dispatcher.list_models()).value == ["after-all"]


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
        await controller.refresher.refresh()
        assert (await controller.dispatcher.list_models()).value == ["new"]


async def test_when_all_of_several_fail_nobody_is_removed(
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
    assert len((await controller.membership.list_workers()).value) == 2, "two are several"
    await registry.remove("http://127.0.0.1:2")
    await controller.refresher.refresh()
    assert (await controller.membership.list_workers()).value == [], "one alone is no evidence against us"


async def test_hanging_workers_are_probed_at_once_and_hold_up_nobody(replica: Open, registry: Registry) -> None:
    controller = replica()
    gives_up = asyncio.Event()

    async def hangs_until_then(_: BadWorker, writer: asyncio.StreamWriter, __: bytes) -> None:
        await gives_up.wait()
        writer.transport.abort()

    async with (
        bad_worker(worker_get_status=hangs_until_then) as hanging,
        bad_worker(worker_get_status=status()) as living,
    ):
        for i in range(40):
            await registry.register(worker(f"{hanging.address}/{i}", "hanging"))
        await registry.register(worker(living.address))
        refresh = asyncio.create_task(controller.refresher.refresh())
        await wait_until(lambda: hanging.open == 40, "all are being probed at the same time")
        assert (await controller.dispatcher.dispatch("hanging")).value != "", "the registry is never empty meanwhile"
        assert not refresh.done()
        gives_up.set()
        await refresh
        assert [known.name for known in (await controller.membership.list_workers()).value] == [living.address]


async def test_refreshes_at_the_same_time_share_one_run_also_across_replicas(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = [replica() for _ in range(3)]
    gate = asyncio.Event()
    locked: list[bool] = []
    acquire = RefreshLock.acquire

    async def counting(lock: RefreshLock) -> bool:
        locked.append(await acquire(lock))
        return locked[-1]

    monkeypatch.setattr(RefreshLock, "acquire", counting)

    async def slow(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await gate.wait()
        await status()(asked, writer, body)

    async with bad_worker(worker_get_status=slow) as living:
        await registry.register(worker(living.address))
        first = asyncio.create_task(replicas[0].refresher.refresh())
        await wait_until(lambda: living.requests, "the first run is under way")
        others = [asyncio.create_task(r.refresher.refresh()) for r in replicas for _ in range(5)]
        await wait_until(lambda: locked == [True, False, False], "the other replicas wait for the first run")
        gate.set()
        await asyncio.gather(first, *others)
        assert len(living.requests) == 1
        await replicas[1].refresher.refresh()
        assert len(living.requests) == 2


async def test_what_is_booked_while_a_probe_is_under_way_is_not_lost(replica: Open, registry: Registry) -> None:
    # The answer is as old as the probe: the worker may have counted its queue before a later request arrived.
    controller = replica(registry)
    refresh = registry.refresh
    booked_at: list[float] = []
    written_at: list[float] = []

    async def slow(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        booked_at.append(time.monotonic())
        await status("m", queue_length=5)(asked, writer, body)

    async def noting(*arguments: Any, **options: Any) -> bool:
        written_at.append(options["written_at"])
        return await refresh(*arguments, **options)

    async with bad_worker(worker_get_status=slow) as busy:
        await registry.register(worker(busy.address))
        registry.refresh = noting  # type: ignore[method-assign]
        await controller.refresher.refresh()
    assert written_at[0] < booked_at[0]
    assert len(written_at) == len(booked_at) == 1


async def test_a_caller_that_goes_away_does_not_end_the_run_of_the_others(replica: Open, registry: Registry) -> None:
    controller = replica()
    async with bad_worker(worker_get_status=status("new")) as living:
        await registry.register(worker(living.address))
        impatient, patient = (asyncio.create_task(controller.refresher.refresh()) for _ in range(2))
        await asyncio.sleep(0)
        impatient.cancel()
        await patient
        assert (await controller.dispatcher.list_models()).value == ["new"]


async def test_a_worker_that_registers_during_a_refresh_is_not_removed_by_it(replica: Open, registry: Registry) -> None:
    controller = replica()

    async def registers_and_fails(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        if len(asked.requests) == 2:
            await registry.register(worker(asked.address, "since"))
        await answers(b"", "500 Internal Server Error")(asked, writer, body)

    async with bad_worker(worker_get_status=registers_and_fails) as restarted:
        await registry.register(worker(restarted.address))
        await controller.refresher.refresh()
        assert (await controller.dispatcher.list_models()).value == ["since"]


async def test_an_older_answer_does_not_overwrite_a_newer_registration(replica: Open, registry: Registry) -> None:
    controller = replica()

    async def registers_and_tells_the_old(asked: BadWorker, writer: asyncio.StreamWriter, body: bytes) -> None:
        await registry.register(worker(asked.address, "since"))
        await status("before")(asked, writer, body)

    async with bad_worker(worker_get_status=registers_and_tells_the_old) as restarted:
        await registry.register(worker(restarted.address))
        await controller.refresher.refresh()
        assert (await controller.dispatcher.list_models()).value == ["since"]


async def test_a_replica_that_died_during_a_refresh_holds_up_nobody_for_long(
    replica: Open, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_PROBE_PAUSE", 0.0)
    controller = replica(probe_timeout=0.01)
    lock = store.registry().refresh_lock(60.0)  # of a replica that will not release it
    assert await lock.acquire()
    assert 50_000 < await store.client.pttl(keys.refresh(store.namespace)) <= 60_000
    await controller.refresher.refresh()
    assert await lock.held()
    await lock.release()


async def test_workers_not_reached_in_time_are_left_as_they_are(
    replica: Open, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(refresh, "_MAX_PROBES", 1)
    monkeypatch.setattr(refresh, "_PROBE_PAUSE", 0.0)
    controller = replica()
    wait = asyncio.wait

    async def until_one_hangs(tasks: Any, *, timeout: float | None = None, **options: Any) -> Any:
        if timeout != controller.refresher._time_limit:
            return await wait(tasks, timeout=timeout, **options)
        await wait_until(lambda: hanging.open, "the first of those that hang is probed")
        return await wait(tasks, timeout=0)

    monkeypatch.setattr(asyncio, "wait", until_one_hangs)
    async with bad_worker(worker_get_status=hangs) as hanging, bad_worker(worker_get_status=status()) as living:
        names = [f"{hanging.address.replace('127.0.0.1', 'localhost')}/{i}" for i in range(30)]
        for name in ["http://127.0.0.1:1", living.address, *names]:  # in the order in which they are probed
            await registry.register(worker(name))
        await controller.refresher.refresh()
        left = [known.name for known in (await controller.membership.list_workers()).value]
        assert left == sorted([living.address, *names])


async def test_closing_ends_a_refresh(replica: Open, registry: Registry, store: Store) -> None:
    controller = replica(probe_timeout=60.0)
    async with bad_worker(worker_get_status=hangs) as hanging:
        await registry.register(worker(hanging.address))
        refresh = asyncio.create_task(controller.refresher.refresh())
        await wait_until(lambda: hanging.open, "the probe hangs")
        await controller.close()
        with pytest.raises(asyncio.CancelledError):
            await refresh
    assert not await store.client.exists(f"{{{store.namespace}}}:refresh")
