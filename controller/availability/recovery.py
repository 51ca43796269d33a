"""Repairs Redis from this replica's last listing of the workers: after lost data, outages and jumps of its clock."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Final

from controller.domain.capacity import CapacityList
from controller.domain.errors import InvalidInput, StoreRejection
from controller.domain.worker import Worker, worker_name
from controller.metrics import Metrics
from controller.store.registry import Registry, WorkerList

logger = logging.getLogger("controller")

_REGISTERED_AT_ONCE: Final = 16  # leaves permits of the registry for other calls
# Seconds. A heartbeat with more time left is from before a clock jump back, even if none was noticed. The limit
# is high, so that replicas with different heartbeat expirations do not shorten each other's heartbeats.
_MIN_OVERLONG: Final = 7_200.0
_REPEATED: Final = "Redis had lost this change"


async def _no_engines() -> None:
    """Do nothing: a replica that polls no engines needs no list of them."""


class Recovery:
    """Restores workers, operators' changes and heartbeat expirations in Redis from a listing of one replica.

    Each repair can be repeated, and several replicas can make it at once. A worker that registered meanwhile stays
    unchanged. A worker that was removed meanwhile stays removed.

    heartbeat_expiration, engine_expiration: in seconds.
    replica_id: of this replica.
    update_engines: gets the list of the polled engines from Redis. Raises StoreError.
    engine_time_left: returns for how many seconds an engine stays alive after this replica's last poll of it, at most 0
        if it is not ready or is not in the list, and None if this replica does not poll it.
    """

    def __init__(
        self,
        registry: Registry,
        metrics: Metrics,
        heartbeat_expiration: float,
        engine_expiration: float,
        replica_id: str,
    ) -> None:
        self._registry = registry
        self._metrics = metrics
        self._replica_id = replica_id
        self._heartbeat_expiration = heartbeat_expiration
        self._engine_expiration = engine_expiration
        self.update_engines: Callable[[], Awaitable[object]] = _no_engines
        self.engine_time_left: Callable[[str], float | None] = lambda _name: None
        self._last_jump: tuple[float, float] | None = None
        self._canonical: set[str] = set()  # the names of the last listing that need no change

    @property
    def recent_clock_jump(self) -> tuple[float, float] | None:
        """The last jump of the clock of Redis and the time since it was noticed, in seconds. None after a while."""
        if self._last_jump is None:
            return None
        jump, noticed_at = self._last_jump
        age = time.monotonic() - noticed_at
        return (jump, age) if age <= self._heartbeat_expiration else None

    async def restore_capacities(self, before: CapacityList, now: WorkerList, lost_data: bool) -> bool:
        """If Redis lost capacities set at runtime, restore them and apply them to the workers in it.

        After a loss, an equal version may be of another change. Then only what Redis does not have is restored.

        Call this before repair(), so that the restored workers get these capacities. Return True if something was
        restored. Raises StoreError.
        """
        if now.capacities_version > before.version:
            return False
        lost = before
        if now.capacities_version == before.version:
            if not lost_data or not before.by_target:
                return False
            kept = (await self._registry.list_capacities()).by_target
            lost = before._replace(by_target={key: value for key, value in before.by_target.items() if key not in kept})
            if not lost.by_target:
                return False
        logger.warning("Redis lost capacities: setting %d of them again.", len(lost.by_target))
        await self._registry.restore_capacities(lost)
        await self._registry.apply_capacities(now.workers)
        return True

    async def repair(
        self, before: WorkerList, age: float, now: WorkerList, lost_data: bool, until_outage: float | None = None
    ) -> bool:
        """Compare two listings and repair Redis. Return True if something was repaired. Raises StoreError.

        If Redis lost data, the caller must reconcile with `before.sequence` afterwards.

        age: of the listing `before`, in seconds.
        lost_data: True if Redis has lost something that `before` has.
        until_outage: the seconds from the listing `before` until Redis became unavailable. None if it was available.
        """
        jump = now.clock.jump_since(before.clock)
        if jump:
            self._report_jump(jump)
        engines = {} if until_outage is None else await self._engines_after_outage(before, age, until_outage)
        restored = 0
        if lost_data or jump > 0:
            left = _times_left(before, age) | engines
            reason = "lost data" if lost_data else "expired heartbeats too early"
            await self._registry.check()  # sets the epoch of an empty Redis before the first registration
            restored = await self._restore(before, left, now, reason)
        elif engines:
            restored = await self._restore(before, engines, now, "could not renew the heartbeats of engines")
        if lost_data:
            await self._repeat_operations(before, age, now)
        if jump:
            expected = self._expected_heartbeats(before, age, now, ahead=jump > 0)
        else:
            expected = self._overlong_heartbeats(now)
        if expected:
            await self._registry.correct_heartbeats(expected)
        if jump < 0:
            await self._registry.shorten_leases()
        return bool(lost_data or jump or expected or restored)

    async def correct_overlong_heartbeats(self, now: WorkerList) -> None:
        """Correct impossibly long heartbeat expirations, if there is no earlier listing to compare with."""
        expected = self._overlong_heartbeats(now)
        if expected:
            await self._registry.correct_heartbeats(expected)

    async def rename(self, workers: Sequence[Worker]) -> bool:
        """Rename workers that an older version stored under a name that is not canonical.

        Requests use canonical names, so such a worker could not be removed or drained. Returns True if a worker was
        renamed. Raises StoreError.

        A worker is first registered under its canonical name and then removed under its old name, so dispatches always
        find it. If another replica renames it too, one of the two registrations does nothing. If a replica crashes
        between the two steps, the next listing has both names, and the older registration is removed.

        Workers with heartbeats are renamed even while a replica of the older version runs. That replica answers
        `exist: false` to a heartbeat under the old name, so the worker registers again. If the older replica also
        receives the registration, the worker is renamed again after the next listing. So a worker registers at most
        once for each heartbeat that reaches an older replica.

        Without the renaming, one worker could have two entries. It would get twice its share of the requests, and
        draining one entry would not stop the other.
        """
        by_name = {worker.name: worker for worker in workers}
        noncanonical = [
            (worker, name)
            for worker in workers
            if worker.name not in self._canonical and (name := _canonical_name(worker.name)) != worker.name
        ]
        self._canonical = by_name.keys() - {worker.name for worker, _ in noncanonical}
        # If a name has several spellings, the latest registration is renamed, and others after later listings.
        noncanonical.sort(key=lambda each: each[0].registration, reverse=True)
        renamed = [await self._rename(worker, name, by_name.get(name)) for worker, name in noncanonical]
        return any(renamed)

    async def _rename(self, worker: Worker, name: str, canonical: Worker | None) -> bool:
        """Move a worker to its canonical name, under which `canonical` is registered. Return True if it was moved."""
        if canonical is None:
            renamed = await self._restore_worker(worker, worker.expires_in, name)
        else:
            renamed = True
            if canonical.registration < worker.registration:
                registration = worker.as_registered(name)
                expires_in = _longer(worker, canonical)
                renamed = await self._registry.refresh(registration, canonical.registration, expires_in=expires_in)
            if worker.draining and not canonical.draining:  # a worker drains if it was drained under either name
                await self._registry.drain(name, reason=_REPEATED)
        if not renamed:  # it registered or was removed meanwhile: the next listing decides
            return False
        if await self._registry.remove(worker.name, only_if=worker.registration, reason=f"renamed to {name}"):
            logger.info(
                "Renamed worker %(old)s to %(worker)s, its canonical name.", {"old": worker.name, "worker": name}
            )
        return True

    def _report_jump(self, jump: float) -> None:
        self._last_jump = jump, time.monotonic()
        direction = "ahead" if jump > 0 else "back"
        self._metrics.store_clock_jumps.labels(direction).inc()
        logger.warning(
            "The clock of Redis was set %s by %.1f s. The expirations of heartbeats are corrected. Check the time "
            "synchronisation of the Redis host.",
            direction,
            abs(jump),
        )

    def _expected_heartbeats(self, before: WorkerList, age: float, now: WorkerList, ahead: bool) -> dict[str, float]:
        """Return the seconds until heartbeats should expire, by worker. `before` is the listing from before a jump."""
        left = {
            worker.name: worker.expires_in - age
            for worker in before.workers
            if worker.expires_in is not None and worker.expires_in > age
        }
        if ahead:
            return left
        overlong = self._overlong_heartbeats(now, limit=self._heartbeat_expiration)
        return {name: left.get(name, longest) for name, longest in overlong.items()}

    def _overlong_heartbeats(self, now: WorkerList, limit: float | None = None) -> dict[str, float]:
        longest = self._heartbeat_expiration
        limit = max(_MIN_OVERLONG, 2 * longest) if limit is None else limit
        overlong = (w for w in now.workers if w.expires_in is not None and w.expires_in > limit)
        return {worker.name: longest for worker in overlong}

    async def _engines_after_outage(
        self, before: WorkerList, age: float, until_outage: float
    ) -> dict[str, float | None]:
        """Return the seconds until engines should expire that were alive when an outage began.

        This replica knows which of the engines that it polls are ready. If Redis was unavailable to all replicas, none
        could renew the heartbeats of the other engines. They get a whole expiration, in which their replicas or agents
        renew them.

        If another replica is alive in Redis, it has passed on the heartbeats meanwhile, or has restored the engines
        when it returned first. An engine that is missing then was taken out, removed or has expired.
        """
        with contextlib.suppress(StoreRejection):  # the poller logs it, and keeps the list that it has
            await self.update_engines()
        own: dict[str, float | None] = {}
        others: dict[str, float | None] = {}
        for worker in before.workers:
            if worker.engine is None or worker.expires_in is None:
                continue
            left = self.engine_time_left(worker.name)
            if left is not None:
                if left > 0:
                    own[worker.name] = left
            # Without the outage, a heartbeat that had time left would still exist, unless the engine was taken out.
            elif until_outage < worker.expires_in <= age <= self._heartbeat_expiration:
                others[worker.name] = self._engine_expiration
        if others and await self._is_only_replica():
            return own | others
        return own

    async def _is_only_replica(self) -> bool:
        """Return True if no other replica is alive in Redis. After an outage for all, the first one to return is."""
        return all(replica == self._replica_id for replica, _ in await self._registry.list_replicas())

    async def _restore(self, before: WorkerList, left: Mapping[str, float | None], now: WorkerList, reason: str) -> int:
        """Register the workers of `left` that are missing in Redis. Return how many are missing.

        left: the seconds until the heartbeat expires, by name. None for a worker that sends no heartbeats.
        """
        known = {worker.name for worker in now.workers}
        missing = [(w, left[w.name]) for w in before.workers if w.name in left and w.name not in known]
        if missing:
            logger.warning(
                "Redis %(reason)s: registering %(workers)d workers again from the last snapshot.",
                {"reason": reason, "workers": len(missing)},
            )
        for first in range(0, len(missing), _REGISTERED_AT_ONCE):
            batch = missing[first : first + _REGISTERED_AT_ONCE]
            await asyncio.gather(*(self._restore_worker(worker, seconds, worker.name) for worker, seconds in batch))
        return len(missing)

    async def _repeat_operations(self, before: WorkerList, age: float, now: WorkerList) -> None:
        """Repeat the drains, resumes and removals that Redis lost."""
        current = {worker.name: worker for worker in now.workers}
        for worker in before.workers:
            found = current.get(worker.name)
            if found is None or found.draining == worker.draining:
                continue
            # A worker that registered or was restored after the loss may have been drained after it, too.
            is_same = now.epoch == before.epoch and found.registration == worker.registration
            if worker.draining or is_same:
                await self._registry.drain(worker.name, worker.draining, reason=_REPEATED)
        names = {worker.name for worker in before.workers}
        for worker in now.workers:
            # A worker that has registered or sent a heartbeat since the snapshot is not removed.
            if worker.name not in names and worker.registration <= before.sequence and worker.heartbeat_age > age:
                await self._registry.remove(worker.name, only_if=worker.registration, reason=_REPEATED)

    async def _restore_worker(self, worker: Worker, expires_in: float | None, name: str) -> bool:
        """Register a worker as the listing has it. Return False if it has registered or was removed meanwhile."""
        restored = await self._registry.restore(
            worker.as_registered(name), expires_in=expires_in, draining=worker.draining, polled=worker.polled
        )
        if not restored and worker.draining:
            await self._registry.drain(name, reason=_REPEATED)
        if restored and worker.failing:
            await self._registry.report_failure(name, of_polls=worker.failing == "polls")
        return restored


def _times_left(before: WorkerList, age: float) -> dict[str, float | None]:
    """Return the seconds until the heartbeats of a listing expire, by worker. Expired ones are left out."""
    return {
        worker.name: None if worker.expires_in is None else worker.expires_in - age
        for worker in before.workers
        if worker.expires_in is None or worker.expires_in > age
    }


def _canonical_name(name: str) -> str:
    """Return the canonical form of a stored name, or the name itself if it is not valid any more."""
    try:
        return worker_name(name)
    except InvalidInput:
        return name


def _longer(worker: Worker, other: Worker) -> float | None:
    """Return the longer of the times until two entries of one worker expire."""
    if worker.expires_in is None or other.expires_in is None:
        return worker.expires_in
    return max(worker.expires_in, other.expires_in)
