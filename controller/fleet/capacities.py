"""Sets capacities of workers on behalf of operators, and applies those of the settings."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final, NamedTuple

from controller.availability.circuit_breaker import CircuitBreaker
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.domain.capacity import CapacityList, CapacityTarget
from controller.domain.errors import StoreError
from controller.domain.worker import Worker
from controller.security.access import Caller
from controller.security.audit import Audit, AuditEvent
from controller.store.registry import Registry

logger = logging.getLogger("controller")

_RETRY_INTERVAL: Final = 1.0


class CapacityChange(NamedTuple):
    """The result of Capacities.set().

    before: what was set before. None if nothing was.
    workers: the number of live workers that the target covers.
    """

    before: int | None
    workers: int


class Capacities:
    """The capacities of the workers, on one replica."""

    def __init__(self, breaker: CircuitBreaker, registry: Registry, snapshots: SnapshotManager, audit: Audit) -> None:
        self._breaker = breaker
        self._registry = registry
        self._snapshots = snapshots
        self._audit = audit

    async def run(self) -> None:
        """Apply the settings of this replica to workers that registered before it started, then return."""
        while True:
            with contextlib.suppress(StoreError):  # the circuit breaker has logged it
                await self._apply((await self._breaker.call(self._registry.list_workers)).workers)
                return
            await asyncio.sleep(_RETRY_INTERVAL)

    async def set(self, target: CapacityTarget, capacity: int | None, caller: Caller) -> CapacityChange:
        """Set a capacity, or remove it with None. The next dispatch uses it.

        A call that failed halfway can be repeated. Raises InvalidInput if capacities are set for too many targets, and
        StoreUnavailable.
        """
        await self._snapshots.take_now()  # restores lost capacities first, because later they would replace this one
        before = await self._breaker.call(self._registry.set_capacity, target, capacity)
        workers = (await self._breaker.call(self._registry.list_workers)).workers
        covered = [worker for worker in workers if target.covers(worker)]
        await self._apply(covered)
        self._snapshots.request()
        kind, name = ("worker", target.worker_name) if target.worker_name else ("model", target.model)
        value = "none" if capacity is None else capacity
        logger.info(
            "The configured capacity of %(kind)s %(target)s is now %(capacity)s. Live workers: %(live)d.",
            {"kind": kind, "target": name, "capacity": value, "live": len(covered)},
        )
        self._audit.record(
            AuditEvent("set_capacity", "done", caller.name, caller.address, f"{kind} {name}", f"capacity {value}")
        )
        return CapacityChange(before, len(covered))

    async def list(self) -> MaybeStale[CapacityList]:
        """Return the capacities that were set. While Redis is unavailable, they come from the snapshot."""
        try:
            return MaybeStale(await self._breaker.call(self._registry.list_capacities))
        except StoreError as error:
            _, age = self._snapshots.get(error)
            return MaybeStale(self._snapshots.capacities, age)

    async def _apply(self, workers: Sequence[Worker]) -> None:
        if workers:
            await self._breaker.call(self._registry.apply_capacities, workers)
