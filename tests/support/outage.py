"""Outages of the store as a replica sees them, and what is there when they are over."""

import contextlib
from collections.abc import Iterator
from typing import Any

from controller.domain.errors import StoreUnavailable
from controller.replica import Replica
from controller.store import keys
from controller.store.connection import connect
from tests.support.invariants import load_of
from tests.support.waiting import wait_until


class Link:
    """The way between a registry and its store: it can be cut for one script or all, before a call is made or after."""

    def __init__(self) -> None:
        self.cut: str | None = None
        self.script: str | None = None
        self.passed: list[str] = []

    @contextlib.contextmanager
    def broken(self, when: str = "before", script: str | None = None) -> Iterator[None]:
        self.cut, self.script = when, script
        try:
            yield
        finally:
            self.cut = None


async def queues(store: Any) -> dict[str, int]:
    client = store.aside
    names = await client.zrange(keys.workers(store.namespace), 0, -1)
    return {name: await queue_length(client, store.namespace, name) for name in names}


async def queue_length(client: Any, namespace: str, name: str) -> int:
    """Return the estimated queue length of a worker, if bookings do not decay."""
    load = load_of(await client.hgetall(keys.worker(namespace, name)))
    return round(load.queue(load.decayed_at, 1.0))


async def lapse(url: str, name: str, namespace: str = "controller") -> None:
    """Let a worker's heartbeat lapse: leave behind what its expiration would."""
    client = connect(url, timeout=60.0)
    await client.delete(keys.heartbeat(namespace, name))
    await client.zadd(keys.workers(namespace), {name: 1.0}, xx=True)
    await client.aclose()


async def back(controller: Replica) -> None:
    await wait_until(lambda: served_by_store(controller), "the store is in use again")


async def served_by_store(controller: Replica) -> bool:
    try:
        return (await controller.readiness.check()).snapshot_age is None
    except StoreUnavailable:
        return False
