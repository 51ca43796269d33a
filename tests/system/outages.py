"""Replicas under load during an outage of their store, and what must hold afterwards."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from controller.store import keys
from controller.store.connection import connect
from tests.support.clients import Client
from tests.support.invariants import check_invariants
from tests.support.outage import queue_length
from tests.support.waiting import wait_for_each, wait_until
from tests.system.load import LoadResults
from tests.system.processes import ControllerProcess, serves, stock_worker
from tests.system.processes import Server as WorkerProcess

# The timeout is the default, because it determines the latencies that are printed.
FREQUENT_SNAPSHOTS = ("--snapshot-interval", "0.2", "--redis-timeout", "0.25")
PERSISTENT = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")


@contextlib.asynccontextmanager
async def workers(work_dir: Path, controller: ControllerProcess) -> AsyncIterator[list[WorkerProcess]]:
    """Run three stock workers that send heartbeats every second."""
    with contextlib.ExitStack() as stack:
        flags = ("--model-names", "m")
        started = [stack.enter_context(stock_worker(work_dir, controller.url, *flags)) for _ in range(3)]
        await wait_until(lambda: set(controller.names()) == {w.url for w in started}, "the workers are registered")
        yield started


async def check_heartbeats(controller: ControllerProcess, started: list[WorkerProcess]) -> None:
    """Assert that every worker sends heartbeats and that none has ended."""
    began = time.monotonic()

    def heard_from() -> set[str]:
        now = time.monotonic()
        return {w["worker_name"] for w in controller.workers() if w["heartbeat_age"] < now - began}

    await wait_until(lambda: heard_from() == {w.url for w in started}, "all workers send heartbeats")
    assert all(w.popen.poll() is None for w in started)


async def wait_for_snapshots(controllers: list[ControllerProcess], number: int = 3) -> None:
    """Wait until the snapshot of every replica contains `number` workers."""
    await wait_for_each(controllers, lambda each: len(each.names()) == number, "the replica lists the workers")
    await asyncio.sleep(1.5)  # several snapshot intervals, because no route shows the workers of a snapshot


async def check_bookings(url: str, number: int) -> None:
    """Wait until the store holds `number` bookings. Replicas may still reconcile those made in degraded mode."""
    client: Client = connect(url, timeout=60.0)

    async def booked() -> int:
        names = await client.zrange(keys.workers("controller"), 0, -1)
        return sum([await queue_length(client, "controller", name) for name in names])

    async def is_complete() -> bool:
        return await booked() == number

    try:
        await wait_until(is_complete, "every dispatch is booked")
        await check_invariants(client, "controller")
        assert await booked() == number, "no dispatch is booked twice"
    finally:
        await client.aclose()


def register_without_heartbeats(controller: ControllerProcess) -> set[str]:
    """Register three workers without heartbeats, so that only dispatches change their queues. Return their names."""
    names = {f"http://127.0.0.1:1/w{i}" for i in range(3)}
    for name in names:
        controller.register(name, check=False)
    return names


async def wait_for_growth(count: Callable[[], int], description: str) -> None:
    """Wait until a count has grown by more than 100."""
    before = count()
    await wait_until(lambda: count() > before + 100, description)


async def wait_for_recovery(replicas: list[ControllerProcess], results: LoadResults) -> None:
    """Wait until all replicas dispatch through the store again."""
    await wait_for_each(replicas, lambda replica: serves(replica.url), "the replica uses the store again")
    last = {"degraded": -1, "total": 0}

    def none_degraded() -> bool:
        if results.degraded > last["degraded"]:
            last.update(degraded=results.degraded, total=results.total)
        return results.total > last["total"] + 50

    await wait_until(none_degraded, "50 dispatches in a row use the store")
