"""Outages of the store as a replica sees them, and the state after them."""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from controller.domain.errors import StoreUnavailable
from controller.replica import Replica
from controller.store import keys
from controller.store.connection import connect
from tests.support.clients import Client
from tests.support.invariants import load_of
from tests.support.waiting import wait_until


class Link:
    """The connection between a registry and its store. A test can cut it for one script or for all.

    cut: "before" fails calls before they reach the store, "after" loses their replies. None while the link works.
    script: the script that the cut affects. None for all.
    delivered: names of the scripts that reached the store.
    """

    def __init__(self) -> None:
        self.cut: str | None = None
        self.script: str | None = None
        self.delivered: list[str] = []

    @contextlib.contextmanager
    def broken(self, when: str = "before", script: str | None = None) -> Iterator[None]:
        self.cut, self.script = when, script
        try:
            yield
        finally:
            self.cut = None


@contextlib.contextmanager
def cut_off(replica: Replica) -> Iterator[None]:
    """Fail the scripts of one replica. The store serves the others."""

    async def fail(_script: str, *_arguments: str | int) -> object:
        raise StoreUnavailable("Redis is away.")

    with patch.object(replica.registry, "_run", fail):
        yield


async def queue_lengths(store: Any) -> dict[str, int]:
    """Return the estimated queue length of each worker, without decay."""
    client = store.client
    names = await client.zrange(keys.workers(store.namespace), 0, -1)
    return {name: await queue_length(client, store.namespace, name) for name in names}


async def queue_length(client: Client, namespace: str, name: str) -> int:
    """Return the estimated queue length of a worker, without decay."""
    load = load_of(await client.hgetall(keys.worker(namespace, name)))
    return round(load.queue(load.decayed_at, 1.0))


async def expire_heartbeat(url: str, name: str, namespace: str = "controller") -> None:
    """Expire a worker's heartbeat. Its other keys stay, as after an expiration in Redis."""
    client = connect(url, timeout=60.0)
    await client.delete(keys.heartbeat(namespace, name))
    await client.zadd(keys.workers(namespace), {name: 1.0}, xx=True)
    await client.aclose()


async def wait_for_recovery(replica: Replica) -> None:
    """Wait until a replica is out of degraded mode."""
    await wait_until(lambda: served_by_store(replica), "the replica uses the store again")


async def served_by_store(replica: Replica) -> bool:
    try:
        return (await replica.readiness.check()).snapshot_age is None
    except StoreUnavailable:
        return False
