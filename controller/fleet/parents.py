"""Registers this cluster as one worker at its parent controllers. Its replicas share the sending of heartbeats."""

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from controller.availability.snapshots import SnapshotManager
from controller.domain.errors import ParentUnreachable, StoreError
from controller.domain.hops import HEADER
from controller.domain.worker import Worker, WorkerStatusTotal, total_status
from controller.metrics import Metrics
from controller.security.parent_addresses import ParentAddress
from controller.store.registry import Registry
from controller.upstream.parent import ParentClient

logger = logging.getLogger("controller")

# As shares of the heartbeat interval. If a replica crashes while it holds the lock, the lock expires after _LOCK_TTL,
# and another replica notices within _CHECK. Each interval still gets a heartbeat, because the sum with _DUE is below 1.
_DUE: Final = 0.7
_LOCK_TTL: Final = 0.15
_CHECK: Final = 0.05
_RETRY: Final = 0.1  # after a failed heartbeat
_MAX_CHECK_INTERVAL: Final = 1.0  # seconds until a parent learns of a changed set of models


class ParentState(NamedTuple):
    """The state of a parent, as one replica knows it. Another replica may have sent the latest heartbeat.

    sent_at: when this replica sent its last heartbeat, in seconds since 1970. None if it has sent none.
    is_failing: True if the parent did not accept that heartbeat.
    """

    address: str
    sent_at: float | None
    is_failing: bool


class Parents:
    """One replica's share of the heartbeats to the parents.

    parents: their addresses, each with credentials that are sent only to this parent.
    name: address under which the parents reach this cluster.
    interval: between heartbeats, in seconds.
    record: records an event, as EventFeed.record().

    While Redis is unavailable, there is no lock and each replica sends its own heartbeats from its snapshot. When the
    snapshot is too old to dispatch from, it stops, so that the parents do not send it requests any more.
    """

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotManager,
        parents: Sequence[ParentAddress],
        name: str,
        interval: float,
        record: Callable[..., None],
        metrics: Metrics,
    ) -> None:
        self._registry = registry
        self._breaker = snapshots.breaker
        self._snapshots = snapshots
        self._parents = [parent.address for parent in parents]
        self._name = name
        self._interval = interval
        self._record = record
        self._metrics = metrics
        self._replica_id = secrets.token_hex(8)
        self._client = ParentClient(max(0.05, interval * _LOCK_TTL * 0.9), parents)
        self._sent_without_lock_at: dict[str, float] = {}  # by parent
        self._sent_at: dict[str, float] = {}  # of the last heartbeat of this replica, by parent
        self._failing: dict[str, set[type[ParentUnreachable]]] = {}  # the kinds of errors that were logged, by parent
        # Parents updated after our lock had expired. The update may have overwritten a newer one of another replica, so
        # the current status is registered again.
        self._late: set[str] = set()

    async def run(self) -> None:
        """Send heartbeats to all parents until cancelled."""
        tasks = [asyncio.create_task(self._serve(parent)) for parent in self._parents]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()  # if one has failed because of a bug, the caller restarts all

    def states(self) -> Sequence[ParentState]:
        """Return what this replica knows of its parents."""
        return [ParentState(each, self._sent_at.get(each), each in self._failing) for each in self._parents]

    async def close(self) -> None:
        """Close all connections. The parents keep this cluster until its last heartbeat expires."""
        await self._client.close()

    async def _serve(self, parent: str) -> None:
        while True:
            pause = min(self._interval * _CHECK, _MAX_CHECK_INTERVAL)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 - replicas must not check in step
            try:
                locked, last_sent = await self._acquire(parent, urgent=False)
                # This reads the snapshot after the call to Redis: before the first call there is no snapshot.
                workers, status = self._status()
                # A changed set of models is sent at once. Changed speed or capacity waits for the next heartbeat.
                models_changed = last_sent and json.loads(last_sent)[0] != json.loads(status)[0]
                if not locked and (parent in self._late or models_changed):
                    locked, last_sent = await self._acquire(parent, urgent=True)
                if locked and last_sent != status:
                    await self._snapshots.take_now()  # another replica may have sent a newer status than ours
                    workers, status = self._status()
            except StoreError:
                await self._send_without_lock(parent, self._snapshots.workers())
                continue
            if locked:
                await self._send_and_complete(parent, workers, "" if parent in self._late else last_sent, status)

    def _status(self) -> tuple[Sequence[Worker], str]:
        """Return the live workers, and the part of their status that heartbeats lack, as JSON."""
        workers = self._snapshots.workers()
        status = total_status(workers)
        return workers, json.dumps([status.model_names, status.speed, status.capacity])

    async def _acquire(self, parent: str, urgent: bool) -> tuple[bool, str]:
        return await self._breaker.call(
            lambda: self._registry.acquire_job(
                parent,
                self._replica_id,
                self._interval * _LOCK_TTL,
                max_pause=self._interval * max(_DUE, _LOCK_TTL),
                urgent=urgent,
            )
        )

    async def _send_and_complete(self, parent: str, workers: Sequence[Worker], last_sent: str, status: str) -> None:
        sent = await self._send(parent, workers, register=last_sent != status)
        due_in = self._interval * (_DUE if sent else _RETRY)
        self._late.discard(parent)
        try:
            in_time = await self._breaker.call(
                lambda: self._registry.complete_job(
                    parent, self._replica_id, due_in, status if sent else "", 10 * self._interval
                )
            )
        except StoreError:
            return  # another replica sends the heartbeat again when the lock has expired
        if sent and not in_time:
            self._late.add(parent)

    async def _send_without_lock(self, parent: str, workers: Sequence[Worker]) -> None:
        now = time.monotonic()
        is_due = now >= self._sent_without_lock_at.get(parent, float("-inf")) + self._interval * _DUE
        if workers and is_due and self._snapshots.can_dispatch:
            self._sent_without_lock_at[parent] = now
            await self._send(parent, workers, register=False)

    async def _send(self, parent: str, workers: Sequence[Worker], register: bool) -> bool:
        """Send a heartbeat, or a registration. Return True if the parent accepted it."""
        status = total_status(workers)
        self._sent_at[parent] = round(time.time(), 1)
        try:
            if register or not await self._client.heartbeat(parent, self._name, status.queue_length):
                await self._register(parent, workers, status)
        except ParentUnreachable as error:
            self._metrics.parent_heartbeats.labels("failed").inc()
            logged = self._failing.setdefault(parent, set())
            if not logged:
                self._record("parent_failing", parent=parent, reason=type(error).__name__)
            if type(error) not in logged:
                logger.warning(
                    "Heartbeat to parent %(parent)s failed; retrying every %(interval)g s: %(reason)s",
                    {"parent": parent, "interval": self._interval * _RETRY, "reason": error},
                )
            logged.add(type(error))
            return False
        self._metrics.parent_heartbeats.labels("accepted").inc()
        if parent in self._failing:
            logger.info("Parent %(parent)s accepts heartbeats again.", {"parent": parent})
            del self._failing[parent]
            self._record("parent_recovered", parent=parent)
        return True

    async def _register(self, parent: str, workers: Sequence[Worker], status: WorkerStatusTotal) -> None:
        multimodal = bool(workers) and all(worker.multimodal for worker in workers)
        hops = {HEADER: self._snapshots.cluster_id}
        await self._client.register(parent, self._name, status, multimodal, hops)
        logger.info(
            "Registered at parent %(parent)s: models %(models)s", {"parent": parent, "models": list(status.model_names)}
        )
