"""Asks all workers for their status, as FastChat's API server wants it each time that somebody lists its models."""

import asyncio
import contextlib
import logging
import time
from typing import Final, NamedTuple

from controller.cancellation import end
from controller.domain.errors import StoreError, WorkerError
from controller.domain.worker import Registration, Worker, WorkerStatus
from controller.guard import StoreGuard
from controller.metrics import Metrics
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_MAX_PROBES_AT_ONCE: Final = 256
_PROBE_PAUSE: Final = 0.25
_LOCK_POLL: Final = 0.05


class _Answer(NamedTuple):
    """What a worker told of itself, and when it was asked, by the monotonic clock."""

    status: WorkerStatus
    asked_at: float


class Refresher:
    """Updates the workers that answer, removes those that do not.

    probe_timeout, in seconds, is how long a worker may take. Calls that come while a refresh is under way, here or in
    another replica, share that one.
    """

    def __init__(
        self, guard: StoreGuard, registry: Registry, workers: WorkerClient, metrics: Metrics, probe_timeout: float
    ) -> None:
        self._guard = guard
        self._registry = registry
        self._workers = workers
        self._metrics = metrics
        self._bound = 2 * probe_timeout + _PROBE_PAUSE + 1.0
        self._refreshing: asyncio.Task[None] | None = None

    async def refresh(self) -> None:
        """Return when all workers were asked, or the time for it is over. Raises StoreUnavailable."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)

    async def close(self) -> None:
        """End a refresh that is under way."""
        if self._refreshing is not None:
            await end([self._refreshing])

    def _refreshed(self, task: "asyncio.Task[None]") -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # those who waited have got it; if all of them went away, nobody need

    async def _refresh(self) -> None:
        lock = self._registry.refresh_lock(self._bound + 10.0)
        if await self._guard.ask(lock.acquire):
            try:
                await self._refresh_all()
            finally:
                with contextlib.suppress(StoreError):  # then it is given up by itself
                    await lock.release()
            return
        deadline = time.monotonic() + self._bound
        while time.monotonic() < deadline and await self._guard.ask(lock.held):  # noqa: ASYNC110 - maybe held elsewhere
            await asyncio.sleep(_LOCK_POLL)

    async def _refresh_all(self) -> None:
        """Probe all workers at once, for so long at most; those not reached by then are left as they are."""
        workers = (await self._guard.ask(self._registry.list_workers)).workers
        if not workers:
            return
        places = asyncio.Semaphore(_MAX_PROBES_AT_ONCE)
        probes = {asyncio.create_task(self._probe(worker.name, places)): worker for worker in workers}
        try:
            done, _ = await asyncio.wait(probes, timeout=self._bound)
        finally:
            for probe in probes:
                probe.cancel()
        # _probe() turns every failure that it knows of into None; one that it does not know of is that worker's alone.
        answers = [(probes[probe], None if probe.exception() else probe.result()) for probe in done]
        silent = [worker for worker, answer in answers if answer is None]
        if len(silent) > 1 and len(silent) == len(answers):
            logger.error(
                "Not one of %d workers answered a probe: more likely this controller's network is at fault than all "
                "of them. None is removed; those that are dead will be, when their heartbeat lapses.",
                len(silent),
            )
            return
        for worker, answer in answers:
            await self._guard.ask(self._refreshed_worker, worker, answer)

    async def _refreshed_worker(self, worker: Worker, answer: _Answer | None) -> None:
        """Act on the answer to a probe, unless the worker has registered again since it was asked."""
        if answer is None:
            if await self._registry.remove(worker.name, only_if=worker.registration):
                self._metrics.removals.labels("refresh").inc()
                logger.warning("Removed worker %s: it did not answer two probes.", worker.name)
            return
        registration = Registration(worker.name, answer.status, worker.check_heart_beat, worker.multimodal)
        await self._registry.register(registration, only_if=worker.registration, written_at=answer.asked_at)

    async def _probe(self, name: str, places: asyncio.Semaphore) -> _Answer | None:
        """A worker's status, or None if it failed to tell it twice."""
        async with places:
            try:
                return await self._ask(name)
            except WorkerError as error:
                logger.warning("A probe failed, trying once more: %s", error)
            await asyncio.sleep(_PROBE_PAUSE)  # so that one blip does not fail both
            try:
                return await self._ask(name)
            except WorkerError as error:
                logger.warning("A probe failed twice: %s", error)
            return None

    async def _ask(self, name: str) -> _Answer:
        asked_at = time.monotonic()
        return _Answer(await self._workers.status(name), asked_at)
