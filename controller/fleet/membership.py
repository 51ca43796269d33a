"""Manages the set of workers: registration, heartbeats, draining, removal and listing."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from controller.availability.batches import Batches
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.domain.engine_status import AGENT_ENDS
from controller.domain.errors import ControllerError, Forbidden, StoreError, StoreUnavailable, TooManyWorkers
from controller.domain.hops import append_hop, hop_headers
from controller.domain.worker import Registration, Worker, WorkerStatus, WorkerStatusTotal, total_status
from controller.metrics import Metrics
from controller.security.access import Caller
from controller.security.audit import Audit, AuditEvent, who
from controller.settings import Settings
from controller.store.registry import DrainCall, Refusal, RegisterCall, RemoveCall, Report
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

Result = TypeVar("Result")

_RETRY_INTERVAL: Final = 0.25


@dataclass
class _Waiting:
    """Registrations of one worker that are not in Redis yet: the latest one, and the number of calls."""

    latest: RegisterCall
    calls: int = 0


class Membership:
    """The operations of workers and operators, on one replica.

    Unless documented otherwise, methods raise StoreUnavailable while Redis is unavailable. StoreRejection means a bug
    in the controller or foreign data in Redis.
    """

    def __init__(
        self,
        settings: Settings,
        batches: Batches,
        snapshots: SnapshotManager,
        workers: WorkerClient,
        metrics: Metrics,
        audit: Audit,
    ) -> None:
        self._settings = settings
        self._batches = batches
        self._snapshots = snapshots
        self._workers = workers
        self._metrics = metrics
        self._audit = audit
        self._waiting: dict[str, _Waiting] = {}  # by worker
        self._stop_waiting = asyncio.Event()

    async def register(
        self,
        name: str,
        *,
        check_heart_beat: bool,
        status: WorkerStatus | None,
        multimodal: bool,
        hops: str = "",
        caller: Caller,
    ) -> None:
        """Register a worker. If `status` is None, request the status from the worker.

        While Redis is unavailable, the call waits up to the setting register_timeout. If a registration fails, the
        heartbeat thread of a FastChat worker ends for good.

        hops: hop list of the request, because the worker may be a cluster.

        Raises TooManyWorkers if as many other workers are alive as the settings max_workers and max_workers_per_token
        allow.
        Raises WorkerNotAllowed if the controller does not connect to the address of the worker. Raises
        WorkerUnreachable if the worker does not return its status. Raises LoopDetected if the worker is this cluster,
        or a cluster above it. Raises Forbidden if the caller's token does not allow the worker or its models.
        """
        try:
            caller.check_worker(name)
            append_hop(hops, self._snapshots.cluster_id)
            await self._workers.check_address(name)
            if status is None:
                status = await self._workers.status(name, hop_headers("", self._snapshots.cluster_id))
            caller.check_models(status.model_names)
            registered, new = await self._register(name, status, check_heart_beat, multimodal, caller.name)
        except Forbidden:
            self._metrics.registrations.labels("failed").inc()
            raise  # the audit log has it
        except ControllerError as error:
            self._metrics.registrations.labels("failed").inc()
            logger.warning(
                "Registration of worker %(worker)s failed. It has to register again: %(reason)s",
                {"worker": name, "reason": error},
            )
            raise
        self._snapshots.request()
        self._metrics.registrations.labels("new" if new else "again").inc()
        if caller.token is not None:
            self._audit.registered(name, caller.name, caller.address)
        logger.info(
            "Registered %(kind)s worker %(worker)s: models %(models)s, speed %(speed)s, queue length %(queue_length)s",
            {
                "kind": "new" if new else "known",
                "worker": name,
                "models": list(registered.model_names),
                "speed": registered.speed,
                "queue_length": registered.queue_length,
            },
        )

    async def _register(
        self, name: str, status: WorkerStatus, check_heart_beat: bool, multimodal: bool, token: str
    ) -> tuple[WorkerStatus, bool]:
        """Register a worker as soon as Redis is available. Return the registered status and whether it is new."""
        registration = Registration(name, status, check_heart_beat, multimodal, token)
        call = RegisterCall(registration, repeatable_for=self._settings.register_timeout)
        waiting = self._waiting.setdefault(name, _Waiting(call))
        waiting.latest = call
        waiting.calls += 1
        try:
            # A worker that restarts may wait here several times. Each of its calls registers the latest status.
            new = await self._retry(lambda: self._batches.register(waiting.latest))
        finally:
            registered = waiting.latest.registration.status
            waiting.calls -= 1
            if not waiting.calls:
                del self._waiting[name]
        return registered, check_limits(new, token, self._settings)

    async def heartbeat(self, name: str, queue_length: int | None, engine_age: float | None = None) -> bool:
        """Record a heartbeat. Return True if the worker is registered. Otherwise the worker should register again.

        queue_length: None if an engine does not say it.
        engine_age: the age of the queue length in seconds, if the agent of an engine has sent it. The engine expires
            after the setting engine_expiration.
        """
        if engine_age is not None:
            return await self._batches.take_engine_answer(Report(name, queue_length, time.monotonic() - engine_age))
        return await self._batches.heartbeat(Report(name, queue_length, time.monotonic()))

    async def drain(self, name: str, drain: bool = True, *, caller: Caller, reason: str = "") -> bool:
        """Stop dispatching to a worker, or resume. Return True if the worker is alive.

        reason: why, for the events and the audit log. If it is AGENT_ENDS, the next registration by an agent ends the
            drain.
        """
        by = who(caller.name, caller.address)
        exists = await self._batches.drain(DrainCall(name, drain, by, reason, by_agent=drain and reason == AGENT_ENDS))
        if exists:
            self._snapshots.request()
            logger.info(
                "Worker %(worker)s is draining." if drain else "Worker %(worker)s serves again.", {"worker": name}
            )
            self._record("drain_worker" if drain else "resume_worker", name, caller, reason)
        return exists

    async def remove(self, name: str, *, caller: Caller, reason: str = "") -> bool:
        """Remove a worker. Return True if it was registered. reason: as in drain()."""
        removed = await self._batches.remove(RemoveCall(name, by=who(caller.name, caller.address), reason=reason))
        if removed:
            self._snapshots.request()  # a recovery must not restore the worker from an old snapshot
            self._metrics.removals.labels("request").inc()
            logger.info("Removed worker %(worker)s on request.", {"worker": name})
            self._record("remove_worker", name, caller, reason)
        return removed

    def _record(self, action: str, name: str, caller: Caller, reason: str) -> None:
        self._audit.record(AuditEvent(action, "done", caller.name, caller.address, name, reason))

    async def list_workers(self) -> MaybeStale[list[Worker]]:
        """Return all live workers, sorted by name. While Redis is unavailable, they come from the snapshot."""
        try:
            return MaybeStale(await self._batches.list_workers())
        except StoreError as error:
            snapshot, age = self._snapshots.get(error)
            return MaybeStale(snapshot.workers(time.monotonic()), age)

    def has_drained(self, name: str) -> bool:
        """Return True if the last snapshot has a worker as drained, as Worker.drained says. It may be a while old."""
        worker = self._snapshots.worker(name)
        return worker is not None and worker.drained

    def stalled_for(self, worker: Worker) -> float | None:
        """Return Stalls.stalled_for() of this replica."""
        return self._snapshots.stalls.stalled_for(worker)

    async def status(self, hops: str = "") -> MaybeStale[WorkerStatusTotal]:
        """Return the whole cluster as one worker, for a parent controller.

        hops: hop list of the request. Raises LoopDetected if the parent is this cluster.
        """
        append_hop(hops, self._snapshots.cluster_id)
        workers, age = await self.list_workers()
        return MaybeStale(total_status(workers), age)

    def stop_waiting(self) -> None:
        """Fail the registrations that wait for Redis, because this replica is about to end."""
        self._stop_waiting.set()

    async def _retry(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of a repeatable call, retried while Redis is unavailable."""
        deadline = time.monotonic() + self._settings.register_timeout
        while True:
            try:
                return await call()
            except StoreUnavailable:
                if self._stop_waiting.is_set() or time.monotonic() + _RETRY_INTERVAL > deadline:
                    raise
            pause = _RETRY_INTERVAL * random.uniform(0.5, 1.5)  # noqa: S311 - waiting calls must not retry in step
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stop_waiting.wait()


def check_limits(result: bool | Refusal, token: str, settings: Settings) -> bool:
    """Return the result of a registration. Raises TooManyWorkers if it was refused. token: the name of its token."""
    if result is Refusal.TOKEN_WORKER_LIMIT:
        raise TooManyWorkers(
            f"The token {token} has registered {settings.max_workers_per_token} workers, which is the limit "
            "--max-workers-per-token of this cluster. The worker was not registered. Remove workers of this token, "
            "use another token, or raise the limit on all replicas."
        )
    if result is Refusal.WORKER_LIMIT:
        raise TooManyWorkers(
            f"{settings.max_workers} other workers are alive, which is the limit --max-workers of this "
            "cluster. The worker was not registered. Remove workers, or raise the limit on all replicas."
        )
    return result
