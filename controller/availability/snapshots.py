"""Keeps a snapshot of the live workers, and repairs Redis from it."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterable, Sequence
from typing import Final

from controller.availability.circuit_breaker import CircuitBreaker
from controller.availability.listings import Listings
from controller.availability.reconciler import Reconciler
from controller.availability.recovery import Recovery
from controller.availability.snapshot import Snapshot
from controller.domain.capacity import CapacityList
from controller.domain.errors import StoreError, StoreIncompatible, StoreRejection, StoreUnavailable
from controller.domain.stalls import Stalls
from controller.domain.worker import Worker
from controller.metrics import Metrics
from controller.settings import Settings
from controller.store.registry import Registry, WorkerList

logger = logging.getLogger("controller")

_MIN_PAUSE: Final = 0.02
_PAUSE_PER_WORKER: Final = 0.75e-3  # 50 times the cost of listing one worker: 15 us, see benchmarks/scripts.py


class SnapshotManager:
    """One replica's snapshot of the live workers, and the circuit breaker that decides when it is used.

    breaker: all calls of the replica to Redis go through it. Its probe reconnects, checks Redis, takes a snapshot and
        reconciles.
    stalls: which workers finish no requests, as the snapshots show it.
    recovery: repairs Redis after an outage.
    """

    def __init__(
        self, settings: Settings, registry: Registry, reconciler: Reconciler, metrics: Metrics, replica_id: str
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._reconciler = reconciler
        self._snapshot: Snapshot | None = None
        self._listing: WorkerList | None = None  # from which the snapshot was made
        self._capacities = CapacityList()
        self.stalls = Stalls()
        self._requested = asyncio.Event()
        self._lost_data = False  # of `_listing`, and not repaired yet
        self._replica_id = replica_id
        self._listings = Listings(registry, replica_id)
        # Taking a snapshot may restore lost data and reconcile. Two of these at once would do it twice.
        self._lock = asyncio.Lock()
        self.recovery = Recovery(
            registry, metrics, settings.heartbeat_expiration, settings.engine_expiration, replica_id
        )
        self.breaker = CircuitBreaker(self._return_to_redis, metrics)

    def get(self, cause: StoreError) -> tuple[Snapshot, float]:
        """Return the snapshot and its age in seconds, to answer a call that failed with `cause`.

        Re-raises `cause` if there is no fresh snapshot, or if `cause` is not an availability error (a rejected call is
        a bug and must surface).
        """
        if (
            self._snapshot is not None
            and isinstance(cause, StoreUnavailable)
            and not isinstance(cause, StoreIncompatible)
        ):
            age = time.monotonic() - self._snapshot.taken_at
            if age <= self._settings.heartbeat_expiration:
                return self._snapshot, age
        raise cause

    @property
    def can_dispatch(self) -> bool:
        """True if this replica dispatches: with Redis, or from a snapshot that is fresh enough."""
        reason = self.breaker.reason
        if reason is None:
            return True
        try:
            self.get(reason)
        except StoreError:
            return False
        return True

    async def run(self) -> None:
        """Take snapshots until cancelled. The cost grows with the number of workers, not with that of dispatches."""
        while True:
            self._requested.clear()
            with contextlib.suppress(StoreError):  # the circuit breaker has logged it
                await self.breaker.call(self._take_and_release)
            # The pause depends on the number of workers, not on the duration of the last snapshot. Otherwise one busy
            # moment of the machine could delay the next snapshot for too long.
            workers = len(self._snapshot) if self._snapshot is not None else 0
            rest = min(_MIN_PAUSE + _PAUSE_PER_WORKER * workers, self._settings.heartbeat_expiration / 8)
            await asyncio.sleep(rest)
            pause = min(self._settings.snapshot_interval, self._settings.heartbeat_expiration / 4) - rest
            jitter = random.uniform(0.9, 1.1)  # noqa: S311 - replicas must not take snapshots in step
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause) * jitter):  # wait_for() may lose a cancellation
                    await self._requested.wait()

    async def take_now(self) -> None:
        """Take a snapshot now. Raises StoreError."""
        await self.breaker.call(self._take_another)

    def request(self) -> None:
        """Wake the snapshot loop before its next tick."""
        self._requested.set()

    @property
    def cluster_id(self) -> str:
        """A random id that all replicas on this Redis share. Before the first snapshot, an id of this replica."""
        return self._listing.epoch if self._listing is not None and self._listing.epoch else self._replica_id

    @property
    def recent_clock_jump(self) -> tuple[float, float] | None:
        """The value of Recovery.recent_clock_jump."""
        return self.recovery.recent_clock_jump

    def workers(self) -> Sequence[Worker]:
        """Return the live workers of the last snapshot."""
        return self._listing.workers if self._listing is not None else ()

    def worker(self, name: str) -> Worker | None:
        """Return a live worker of the last snapshot, or None."""
        return self._snapshot.worker(name) if self._snapshot is not None else None

    def fail(self, name: str, of_polls: bool = False) -> None:
        """Deprioritise a worker in the last snapshot, if there is one. As Snapshot.fail()."""
        if self._snapshot is not None:
            self._snapshot.fail(name, of_polls)

    def clear_failure(self, name: str, of_polls: bool = False) -> None:
        """Clear the failure of a worker in the last snapshot, if there is one. As Snapshot.clear_failure()."""
        if self._snapshot is not None:
            self._snapshot.clear_failure(name, of_polls)

    @property
    def listing(self) -> WorkerList | None:
        """The listing from which the last snapshot was made. None before the first one."""
        return self._listing

    @property
    def taken_at(self) -> float:
        """Monotonic time of the last snapshot. 0 if there is none."""
        return self._snapshot.taken_at if self._snapshot is not None else 0.0

    @property
    def age(self) -> float:
        """Age of the last snapshot in seconds. 0 if there is none."""
        return time.monotonic() - self._snapshot.taken_at if self._snapshot is not None else 0.0

    @property
    def capacities(self) -> CapacityList:
        """The capacities set at runtime, as of the last snapshot."""
        return self._capacities

    @property
    def snapshot(self) -> Snapshot | None:
        """The last snapshot. None if there is none yet."""
        return self._snapshot

    async def find(self, name: str) -> Worker | None:
        """Return a worker as of the last snapshot. If the snapshot lacks it, take another one first.

        Returns None if there is no such worker, or if Redis is unavailable.
        """
        before = self._snapshot
        found = before.worker(name) if before is not None else None
        if found is None:
            with contextlib.suppress(StoreError):
                await self.breaker.call(self._take_unless_newer, before)
            found = self._snapshot.worker(name) if self._snapshot is not None else None
        return found

    def models(self, multimodal: bool | None) -> list[str]:
        """Return the models of the last snapshot, as Registry.list_models()."""
        return self._snapshot.list_models(multimodal) if self._snapshot is not None else []

    async def verify_missing(self, models: Iterable[str]) -> bool:
        """Verify a "no worker" result. If Redis lost the registry, restore it.

        Return True if any of the models has a worker now. Raises StoreUnavailable.
        """
        before = self._snapshot
        if before is None:
            return False
        missing = [model for model in models if before.serves(model)]
        if not missing:
            return False
        await self.breaker.call(self._take_unless_newer, before)
        now = self._snapshot
        return now is not None and any(now.serves(model) for model in missing)

    async def close(self) -> None:
        """End the background work."""
        await self.breaker.close()

    async def _return_to_redis(self) -> None:
        """Reconnect, check Redis, take a snapshot and reconcile. Raises StoreError while Redis is unavailable."""
        async with self._lock:
            await self._registry.reconnect()
            await self._registry.check()
            try:
                await self._take()
            except StoreRejection as error:  # one unreadable worker must not stop dispatches to the others
                logger.error("Taking a snapshot failed; retrying at the next interval: %s", error)  # noqa: TRY400 - no traceback needed
            await self._reconciler.release_leases()
            # The last step: the breaker closes without another `await`, so few bookings are left for the next snapshot.
            await self._reconciler.reconcile()

    async def _take_another(self) -> None:
        """Take a snapshot, even if one has just been taken."""
        async with self._lock:
            self.breaker.check()  # calls that hold the lock one after the other must not each wait for a hung Redis
            await self._take()

    async def _take_unless_newer(self, known: Snapshot | None) -> None:
        """Take a snapshot, unless there is a newer one than `known`, which is None if there was none."""
        async with self._lock:
            if self._snapshot is known:
                self.breaker.check()  # as in _take_another()
                await self._take()

    async def _take_and_release(self) -> None:
        await self._take_another()
        # Leases may have ended, and requests been dispatched, between the last calls of _return_to_redis() and the
        # moment in which the breaker closed.
        await self._reconciler.release_leases()
        async with self._lock:
            await self._reconciler.reconcile()

    async def _take(self) -> None:
        taken_at = time.monotonic()
        listing, lost_data = await self._listings.take()
        self._lost_data = self._lost_data or lost_data
        before = self._listing
        repaired = await self.recovery.restore_capacities(self._capacities, listing, self._lost_data)
        if before is None or self._snapshot is None:
            await self.recovery.correct_overlong_heartbeats(listing)
        elif await self.recovery.repair(
            before, taken_at - self._snapshot.taken_at, listing, self._lost_data, self._until_outage()
        ):
            if self._lost_data:
                await self._reconciler.reconcile(before.sequence)
            repaired = True
        if repaired:
            listing = await self._list_again()
        self._lost_data = False
        self._keep(listing, taken_at)  # before the next calls, which may fail
        if repaired or listing.capacities_version != self._capacities.version:
            self._capacities = await self._registry.list_capacities()
        if await self.recovery.rename(listing.workers):
            taken_at = time.monotonic()
            self._keep(await self._list_again(), taken_at)

    def _until_outage(self) -> float | None:
        """Return the seconds from the last snapshot until Redis became unavailable. None if it was available since."""
        opened_at, taken_at = self.breaker.opened_at, self.taken_at
        if opened_at is None or (opened_at <= taken_at and self.breaker.reason is None):
            return None
        return max(0.0, opened_at - taken_at)  # 0 if the snapshot is of an earlier attempt to return to Redis

    async def _list_again(self) -> WorkerList:
        listing, lost_data = await self._listings.take()
        if lost_data:
            self._lost_data = True
            raise StoreUnavailable("Redis lost data again during its repair. The repair begins again by itself.")
        return listing

    def _keep(self, listing: WorkerList, taken_at: float) -> None:
        self._listing = listing
        self.stalls.observe(listing.workers, taken_at)
        self._snapshot = Snapshot(listing.workers, taken_at, random.random)
