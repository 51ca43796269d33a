"""Probes all workers concurrently. FastChat's API server requests this whenever a client lists the models."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from typing import Final, NamedTuple

from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import StoreError, WorkerError
from controller.domain.worker import Registration, Worker, WorkerStatus
from controller.metrics import Metrics
from controller.security.access import Access
from controller.store.registry import Registry
from controller.tasks import end
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_MAX_PROBES: Final = 256  # concurrent
_PROBE_PAUSE: Final = 0.25
_LOCK_CHECK_INTERVAL: Final = 0.05
_REQUEST_INTERVAL: Final = 10.0  # seconds


class _Answer(NamedTuple):
    """A worker's status, and the monotonic time at which its probe was sent."""

    status: WorkerStatus
    sent_at: float


class Refresher:
    """Probes all workers, updates each worker that answers, and removes each worker that fails two.

    No worker is removed if all of several workers fail, or by a refresh that request() starts. Concurrent refreshes
    share one run, even on different replicas.

    Engines are asked in their own way. They are never removed: one that is not ready expires.

    probe_timeout: in seconds.
    refresh_engines: polls all engines.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        registry: Registry,
        client: WorkerClient,
        metrics: Metrics,
        probe_timeout: float,
        access: Access,
        refresh_engines: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._breaker = breaker
        self._registry = registry
        self._client = client
        self._metrics = metrics
        self._access = access
        self._refresh_engines = refresh_engines
        self._requested_at = float("-inf")
        self._removes = False  # the running refresh removes workers
        self._time_limit = 2 * probe_timeout + _PROBE_PAUSE + 1.0
        self._refreshing: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Update all workers, and remove each worker that fails two probes. Return at the time limit at the latest.

        Raises StoreError.
        """
        if self._refreshing is not None and not self._removes:
            with contextlib.suppress(StoreError):
                await asyncio.shield(self._refreshing)
        await asyncio.shield(self._refreshing or self._start(removes=True))

    def request(self) -> None:
        """Start a refresh that removes no worker, unless one runs or was requested recently. Return at once."""
        now = time.monotonic()
        if self._refreshing is None and now >= self._requested_at + _REQUEST_INTERVAL:
            self._requested_at = now
            self._start(removes=False)

    def _start(self, *, removes: bool) -> "asyncio.Task[None]":
        self._removes = removes
        self._refreshing = asyncio.create_task(self._refresh())
        self._refreshing.add_done_callback(self._refreshed)
        return self._refreshing

    async def close(self) -> None:
        """End the refresh that is running."""
        if self._refreshing is not None:
            await end([self._refreshing])

    def _refreshed(self, task: "asyncio.Task[None]") -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # mark it as retrieved: all callers may have disconnected

    async def _refresh(self) -> None:
        lock = self._registry.refresh_lock(self._time_limit + 10.0)
        if await self._breaker.call(lock.acquire):
            try:
                await self._refresh_all()
            finally:
                with contextlib.suppress(StoreError):  # the lock expires
                    await lock.release()
            return
        deadline = time.monotonic() + self._time_limit
        while time.monotonic() < deadline and await self._breaker.call(lock.held):  # noqa: ASYNC110 - another replica may hold it
            await asyncio.sleep(_LOCK_CHECK_INTERVAL)

    async def _refresh_all(self) -> None:
        engines = asyncio.create_task(self._refresh_engines())
        try:
            await self._refresh_workers()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._time_limit):
                    await engines
        finally:
            await end([engines])

    async def _refresh_workers(self) -> None:
        """Probe all workers. A worker whose probes have not ended by the time limit stays as it is."""
        listed = (await self._breaker.call(self._registry.list_workers)).workers
        workers = [worker for worker in listed if worker.engine is None]
        if not workers:
            return
        permits = asyncio.Semaphore(_MAX_PROBES)
        probes = {asyncio.create_task(self._probe(worker.name, permits)): worker for worker in workers}
        try:
            done, _ = await asyncio.wait(probes, timeout=self._time_limit)
        finally:
            for probe in probes:
                probe.cancel()
        # _probe() returns None for each expected failure. An unexpected exception counts as a failure, too, but only of
        # its own worker.
        answers = [(probes[probe], None if probe.exception() else probe.result()) for probe in done]
        failed = [worker for worker, answer in answers if answer is None]
        if len(failed) > 1 and len(failed) == len(answers):
            logger.error(
                "All %d probed workers failed, which points to a network fault of this controller. No worker is "
                "removed now. A worker that is down is removed when its heartbeat expires, if it sends heartbeats.",
                len(failed),
            )
            return
        for worker, answer in answers:
            await self._breaker.call(self._apply, worker, answer)

    async def _apply(self, worker: Worker, answer: _Answer | None) -> None:
        """Apply the result of a probe, unless the worker has registered again since."""
        if answer is None:
            if not self._removes:
                return
            removed = await self._registry.remove(worker.name, worker.registration, reason="it failed two probes")
            if removed:
                self._metrics.removals.labels("refresh").inc()
                logger.warning("Removed worker %(worker)s: it failed two probes.", {"worker": worker.name})
            return
        status = answer.status
        if forbidden := self._forbidden_models(worker, status):
            logger.warning(
                "Worker %(worker)s reports the model %(model)s, which the token %(token)s does not allow. Its "
                "registration stays as it was.",
                {"worker": worker.name, "model": forbidden[0], "token": worker.registered_by},
            )
            return
        registration = Registration(
            worker.name, status, worker.check_heart_beat, worker.multimodal, worker.registered_by
        )
        await self._registry.refresh(registration, worker.registration, written_at=answer.sent_at)

    def _forbidden_models(self, worker: Worker, status: WorkerStatus) -> list[str]:
        """Return the reported models that are forbidden by the token that registered the worker.

        If the token was revoked, its patterns of models are unknown, so new models are refused until the worker
        registers again.
        """
        if not worker.registered_by or not self._access.is_closed:
            return []
        token = self._access.token_named(worker.registered_by)
        if token is not None:
            return token.forbidden_models(status.model_names)
        return [model for model in status.model_names if model not in worker.status.model_names]

    async def _probe(self, name: str, permits: asyncio.Semaphore) -> _Answer | None:
        """Return a worker's status, or None if it failed two probes."""
        async with permits:
            try:
                return await self._request_status(name)
            except WorkerError as error:
                logger.warning(
                    "Worker %(worker)s failed a probe; trying once more: %(reason)s", {"worker": name, "reason": error}
                )
            await asyncio.sleep(_PROBE_PAUSE)  # one short network fault must not fail both probes
            try:
                return await self._request_status(name)
            except WorkerError as error:
                logger.warning("Worker %(worker)s failed two probes: %(reason)s", {"worker": name, "reason": error})
            return None

    async def _request_status(self, name: str) -> _Answer:
        sent_at = time.monotonic()
        return _Answer(await self._client.status(name), sent_at)
