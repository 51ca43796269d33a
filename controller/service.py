"""The use cases of a replica, one method each. Knows neither HTTP nor Redis."""

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Final, TypeVar

from controller.coalescer import Coalescer
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import NoWorker, StoreError, StoreRejection, WorkerError
from controller.domain.worker import Registration, Worker, WorkerStatus, WorkerStatusTotal, total_status
from controller.metrics import Metrics
from controller.settings import Settings
from controller.store.registry import Registry
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

Result = TypeVar("Result")

_MAX_PROBES_AT_ONCE: Final = 256
_RETRY_INTERVAL: Final = 0.25
_PROBE_PAUSE: Final = 0.25
_CALM: Final = 5.0
_REFRESH_POLL: Final = 0.05


class Controller:
    """One replica: it keeps nothing that another could not know, so any replica can take any call.

    Methods raise StoreUnavailable when the store does not serve, unless they say otherwise, and StoreRejection when
    there is a bug in what we ask of it.
    """

    def __init__(self, settings: Settings, registry: Registry, workers: WorkerClient, metrics: Metrics) -> None:
        self._settings = settings
        self._registry = registry
        self._workers = workers
        self._metrics = metrics
        self._dispatch_batch = {
            DispatchMethod.SHORTEST_QUEUE: registry.dispatch_shortest_queue,
            DispatchMethod.LOTTERY: registry.dispatch_lottery,
        }[settings.dispatch_method]
        self._dispatches: Coalescer[str, str] = Coalescer(self._dispatch_all)
        self._heartbeats: Coalescer[tuple[str, int], bool] = Coalescer(self._heartbeat_all, limit=64)
        self._model_lists: Coalescer[bool | None, list[str]] = Coalescer(self._list_models_all)
        self._refreshing: asyncio.Task[None] | None = None
        self._store_failed_at: float | None = None  # since when, and
        self._store_failed_last = 0.0  # when last

    # Clients

    async def dispatch(self, model: str) -> str:
        """Choose a worker for one request and book it; its address, or "" if the model has no live worker."""
        return await self._dispatches.submit(model)

    async def list_models(self, multimodal: bool | None = None) -> list[str]:
        """The models of live workers, sorted: of all, of the multimodal ones (True) or of the others (False)."""
        return await self._model_lists.submit(multimodal)

    async def stream(self, model: str, body: bytes) -> AsyncGenerator[bytes]:
        """Forward a request to a worker and its answer back; each piece is one or more whole frames.

        Raises NoWorker before the first frame if the model has no live worker, StreamBroken when the worker
        cannot be reached or breaks off.
        """
        address = await self.dispatch(model)
        if not address:
            self._metrics.streams.labels("no_worker").inc()
            raise NoWorker(f"No live worker serves the model {model[:100]!r}.")
        outcome = "client_gone"
        try:
            async with aclosing(self._workers.stream(address, body)) as frames:
                async for frame in frames:
                    yield frame
            outcome = "complete"
        except WorkerError as error:
            outcome = "broken"
            logger.warning("A stream from a worker broke: %s", error)
            raise
        finally:
            self._metrics.streams.labels(outcome).inc()

    # Workers

    async def register(
        self, name: str, *, check_heart_beat: bool, status: WorkerStatus | None, multimodal: bool
    ) -> None:
        """Register a worker; without a status, ask it for one.

        Waits for a store that does not serve, up to the setting register_patience: the heartbeat thread of a
        FastChat worker ends for good when its registration fails. Raises WorkerUnreachable if it had to ask the
        worker and got no answer.
        """
        if status is None:
            status = await self._workers.status(name)
        registration = Registration(name, status, check_heart_beat, multimodal)
        new = await self._patiently(lambda: self._registry.register(registration))
        self._metrics.registrations.labels("new" if new else "again").inc()
        logger.info(
            "Registered %s worker %s: models %s, speed %s, queue length %s",
            "a new" if new else "again the",
            name,
            list(status.model_names),
            status.speed,
            status.queue_length,
        )

    async def heartbeat(self, name: str, queue_length: int) -> bool:
        """Take a worker's heartbeat; whether the worker is registered. If not, it should register."""
        return await self._heartbeats.submit((name, queue_length))

    async def remove(self, name: str) -> bool:
        """Remove a worker; whether it was registered."""
        removed = await self._ask(self._registry.remove(name))
        if removed:
            self._metrics.removals.labels("request").inc()
            logger.info("Removed worker %s, as requested.", name)
        return removed

    # Operators and parents

    async def list_workers(self) -> list[Worker]:
        """All live workers, in order of name."""
        return await self._ask(self._registry.list_workers())

    async def status(self) -> WorkerStatusTotal:
        """All live workers seen as one."""
        return total_status(await self.list_workers())

    async def refresh(self) -> None:
        """Ask all workers for their status: update those that answer, remove those that do not.

        Calls that come while a refresh is under way, here or in another replica, share that one.
        """
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        await asyncio.shield(self._refreshing)

    async def check(self) -> None:
        """Raise StoreUnavailable, saying why, unless this replica can serve."""
        await self._registry.check()

    async def sweep_forever(self) -> None:
        """Tidy away lapsed workers again and again, out of step with the other replicas."""
        interval = self._settings.sweep_interval
        while True:
            await asyncio.sleep(interval * random.uniform(0.5, 1.5))  # noqa: S311 - to be out of step
            try:
                removed = await self._ask(self._registry.sweep(interval))
            except StoreError:
                continue  # _ask() has told of it
            if removed:
                self._metrics.removals.labels("lapsed").inc(len(removed))
                logger.warning("Removed workers whose heartbeat lapsed: %s", ", ".join(removed))

    async def close(self) -> None:
        """End what is under way and close all connections."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.wait([self._refreshing])
        await self._workers.close()
        await self._registry.close()

    # The calls behind the coalescers

    async def _dispatch_all(self, models: Sequence[str]) -> list[str]:
        try:
            addresses = await self._ask(self._dispatch_batch(models))
        except StoreError:
            self._metrics.dispatches_store_unavailable.inc(len(models))
            raise
        without = addresses.count("")
        self._metrics.dispatch_batches.inc()
        self._metrics.dispatches_chosen.inc(len(addresses) - without)
        self._metrics.dispatches_no_worker.inc(without)
        return addresses

    async def _heartbeat_all(self, reports: Sequence[tuple[str, int]]) -> list[bool]:
        try:
            known = await self._ask(self._registry.heartbeat(reports))
        except StoreError:
            self._metrics.heartbeats_store_unavailable.inc(len(reports))
            raise
        self._metrics.heartbeats_known.inc(sum(known))
        self._metrics.heartbeats_unknown.inc(len(known) - sum(known))
        return known

    async def _list_models_all(self, kinds: Sequence[bool | None]) -> list[list[str]]:
        lists = {kind: await self._ask(self._registry.list_models(kind)) for kind in set(kinds)}
        return [lists[kind] for kind in kinds]

    # Refresh

    def _refreshed(self, task: "asyncio.Task[None]") -> None:
        self._refreshing = None
        if not task.cancelled():
            task.exception()  # those who waited have got it; if all of them went away, nobody need

    async def _refresh(self) -> None:
        bound = 2 * self._settings.probe_timeout + _PROBE_PAUSE + 1.0
        lock = self._registry.refresh_lock(bound + 10.0)
        if await self._ask(lock.acquire()):
            try:
                await self._refresh_all(bound)
            finally:
                await lock.release()
            return
        deadline = time.monotonic() + bound
        while time.monotonic() < deadline and await self._ask(lock.held()):  # noqa: ASYNC110 - maybe held elsewhere
            await asyncio.sleep(_REFRESH_POLL)

    async def _refresh_all(self, bound: float) -> None:
        """Probe all workers at once, for `bound` seconds at most; those not reached by then are left as they are."""
        workers = await self.list_workers()
        if not workers:
            return
        places = asyncio.Semaphore(_MAX_PROBES_AT_ONCE)
        probes = {asyncio.create_task(self._probe(worker.name, places)): worker for worker in workers}
        try:
            done, _ = await asyncio.wait(probes, timeout=bound)
        finally:
            for probe in probes:
                probe.cancel()
        # _probe() turns every failure that it knows of into None; one that it does not know of is that worker's alone.
        answers = [(probes[probe], None if probe.exception() else probe.result()) for probe in done]
        silent = [worker for worker, status in answers if status is None]
        if len(silent) > 1 and len(silent) == len(answers):
            logger.error(
                "Not one of %d workers answered a probe: more likely this controller's network is at fault than all "
                "of them. None is removed; those that are dead will be, when their heartbeat lapses.",
                len(silent),
            )
            return
        for worker, status in answers:
            await self._ask(self._refreshed_worker(worker, status))

    async def _refreshed_worker(self, worker: Worker, status: WorkerStatus | None) -> None:
        """Act on the answer to a probe, unless the worker has registered again since it was asked."""
        if status is None:
            if await self._registry.remove(worker.name, only_if=worker.registration):
                self._metrics.removals.labels("refresh").inc()
                logger.warning("Removed worker %s: it did not answer two probes.", worker.name)
            return
        registration = Registration(worker.name, status, worker.check_heart_beat, worker.multimodal)
        await self._registry.register(registration, only_if=worker.registration)

    async def _probe(self, name: str, places: asyncio.Semaphore) -> WorkerStatus | None:
        """A worker's status, or None if it failed to tell it twice."""
        async with places:
            try:
                return await self._workers.status(name)
            except WorkerError as error:
                logger.warning("A probe failed, trying once more: %s", error)
            await asyncio.sleep(_PROBE_PAUSE)  # so that one blip does not fail both
            try:
                return await self._workers.status(name)
            except WorkerError as error:
                logger.warning("A probe failed twice: %s", error)
            return None

    # The store's bad days

    async def _ask(self, call: Awaitable[Result]) -> Result:
        """The result of a call to the store. The beginning and the end of its failing are logged, once each.

        It may refuse some calls and serve others, so it is well again only after a while without a failure.
        """
        try:
            result = await call
        except StoreError as error:
            self._metrics.store_failures.inc()
            self._store_failed_last = time.monotonic()
            if self._store_failed_at is None:
                self._store_failed_at = self._store_failed_last
                # A rejection is a bug, or keys of ours hold what is not ours: where it happened is of interest.
                logger.log(logging.ERROR, "%s", error, exc_info=isinstance(error, StoreRejection))
            raise
        if self._store_failed_at is not None and time.monotonic() - self._store_failed_last > _CALM:
            failed_for = self._store_failed_last - self._store_failed_at
            logger.warning("The store has served for %g s again; it failed for %.1f s before.", _CALM, failed_for)
            self._store_failed_at = None
        return result

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a call that may be repeated, waiting for a store that does not serve."""
        deadline = time.monotonic() + self._settings.register_patience
        while True:
            try:
                return await self._ask(call())
            except StoreError:
                if time.monotonic() + _RETRY_INTERVAL > deadline:
                    raise
            await asyncio.sleep(_RETRY_INTERVAL)
