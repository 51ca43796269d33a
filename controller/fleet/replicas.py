"""Makes this replica known to the others, and knows which of them are alive."""

import asyncio
import contextlib
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

from controller import __version__
from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import StoreError
from controller.settings import Settings, public_values
from controller.store.registry import Registry

_INTERVAL: Final = 1.0
_TTL: Final = 3.0  # a replica silent for this long has left


class ReplicaDescription(NamedTuple):
    """A live replica.

    name: host name, port and process id, for people. It is the id if the replica did not tell its name.
    started_at: in seconds since the epoch. None if it is unknown.
    settings: those without secrets, by name.
    """

    id: str
    name: str
    version: str
    started_at: float | None
    settings: Mapping[str, Any]


class Replicas:
    """The live replicas of a cluster, as one of them knows them.

    id: of this replica. A new process has a new one.
    name: of this replica, for people: host name, port and process id.
    ids: of the live replicas, with this one. Empty while Redis is unavailable.
    last_count: the number of live replicas. While Redis is unavailable, the last known one.
    """

    def __init__(self, settings: Settings, breaker: CircuitBreaker, registry: Registry, replica_id: str) -> None:
        self._breaker = breaker
        self._registry = registry
        # A worker moves to another replica faster if it is polled more often than once a second.
        self._interval = min(_INTERVAL, settings.poll_interval or _INTERVAL)
        self.id = replica_id
        self.name = f"{socket.gethostname()[:100]}:{settings.port}/{os.getpid()}"
        self.ids: Sequence[str] = ()
        self.last_count = 0
        self._description = json.dumps(
            {
                "name": self.name,
                "version": __version__,
                "started_at": round(time.time(), 1),
                "settings": public_values(settings),
            }
        )

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        while True:
            await self.join()
            await asyncio.sleep(self._interval)

    async def join(self) -> None:
        """Send one heartbeat.

        If Redis hangs, it may execute a call when this replica has given it up. Such a call must not show that this
        replica was alive meanwhile, so only the first call after an outage may begin a membership.
        """
        try:
            ids = await self._send("" if self.ids else self._description)
            self.ids = ids if self.id in ids else await self._send(self._description)
            self.last_count = len(self.ids)
        except StoreError:
            self.ids = ()

    async def _send(self, description: str) -> Sequence[str]:
        return await self._breaker.call(self._registry.join_replicas, self.id, _TTL, description)

    async def list(self) -> list[ReplicaDescription]:
        """Return the live replicas, sorted by name. Raises StoreError while Redis is unavailable."""
        listed = await self._breaker.call(self._registry.list_replicas)
        return sorted((_describe(id_, text) for id_, text in listed), key=lambda each: (each.name, each.id))

    async def close(self) -> None:
        """Leave the cluster. Without Redis, the membership expires."""
        if self.ids:
            with contextlib.suppress(StoreError):
                await self._breaker.call(self._registry.leave_replicas, self.id)


def _describe(id_: str, text: str) -> ReplicaDescription:
    """Return the description that a replica has written, without what has another type in other versions."""
    try:
        fields = json.loads(text)
    except ValueError:
        fields = None
    fields = fields if isinstance(fields, dict) else {}
    name, version, started_at, settings = (fields.get(key) for key in ("name", "version", "started_at", "settings"))
    return ReplicaDescription(
        id_,
        name if isinstance(name, str) else id_,
        version if isinstance(version, str) else "",
        started_at if isinstance(started_at, int | float) else None,
        settings if isinstance(settings, dict) else {},
    )
