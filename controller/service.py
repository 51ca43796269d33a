"""The use cases of a replica, one method each. Knows neither HTTP nor Redis."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from controller.batches import Batches
from controller.coalescer import AGAIN, Again, Coalescer
from controller.domain.errors import ShuttingDown, StoreError, StoreUnavailable
from controller.domain.way import HEADER, passed
from controller.domain.worker import (
    MAX_MODEL_NAME_LENGTH,
    Registration,
    Worker,
    WorkerStatus,
    WorkerStatusTotal,
    total_status,
)
from controller.fallback import Fallback
from controller.forwarding import Forwarded, Forwarder, Leased
from controller.metrics import Metrics
from controller.parents import Parents
from controller.poller import Poller
from controller.refresh import Refresher
from controller.settings import Settings
from controller.snapshot import Found, Snapshot
from controller.store.registry import (
    DrainCall,
    FailureCall,
    RegisterCall,
    Registry,
    RemoveCall,
    Report,
    Request,
    worker_of,
)
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

Result = TypeVar("Result")

_RETRY_INTERVAL: Final = 0.25


@dataclass
class _Underway:
    """Registrations of one worker that wait for the store: the latest that it sent, and how many calls wait."""

    latest: RegisterCall
    calls: int = 0


class Controller:
    """One replica: it keeps nothing that another could not know, so any replica can take any call.

    While the store does not serve, clients and operators are answered from a snapshot, as long as that is young enough.
    Otherwise methods raise StoreUnavailable, unless they say something else, and StoreRejection when there is a bug in
    what we ask of the store.
    """

    def __init__(self, settings: Settings, registry: Registry, workers: WorkerClient, metrics: Metrics) -> None:
        self._settings = settings
        self._registry = registry
        self._workers = workers
        self._metrics = metrics
        self._fallback = Fallback(settings, registry, metrics)
        self._guard = self._fallback.guard
        self._batches = Batches(self._guard, registry, metrics, self._fallback.release_later)
        self._refresher = Refresher(self._guard, registry, workers, metrics, settings.probe_timeout)
        self._poller = Poller(
            self._guard,
            registry,
            self._batches,
            workers,
            metrics,
            settings.poll_interval,
            self._fallback.known_workers,
        )
        self._parents = Parents(
            self._guard,
            registry,
            settings.parents,
            settings.advertise or "",
            settings.parent_interval,
            self._fallback.known_workers,
            self._fallback.look,
            lambda: self._fallback.cluster,
        )
        self._forwarder = Forwarder(self, workers, metrics, settings.lease_time, settings.forward_tries)
        self._method = settings.dispatch_method
        self._dispatches: Coalescer[Request, Found[str]] = Coalescer(self._dispatch_all)
        self._model_lists: Coalescer[bool | None, Found[list[str]]] = Coalescer(self._list_models_all)
        self._underway: dict[str, _Underway] = {}  # registrations, by worker
        self._leaving = False
        self._patience_over = asyncio.Event()

    # Clients

    async def dispatch(self, model: str) -> Found[str]:
        """Choose a worker for one request and book it; its address, or "" if the model has no live worker."""
        if len(model) > MAX_MODEL_NAME_LENGTH:
            return self._no_worker()
        return await self._dispatches.submit(Request(model))

    async def dispatch_with_lease(self, model: str, lease_time: float | None = None) -> Found[Leased]:
        """Choose a worker for one request and book it until the lease is released, or its time in seconds is over.

        While the store is away there are no leases: then the lease is "", and the booking as without.
        """
        lease_ms = max(1, round(1000 * (self._settings.lease_time if lease_time is None else lease_time)))
        if len(model) > MAX_MODEL_NAME_LENGTH:
            return Found(Leased(self._no_worker().value, ""))
        chosen, snapshot_age = await self._dispatches.submit(Request(model, lease_ms))
        address = worker_of(chosen)
        return Found(Leased(address, "" if address == chosen else chosen), snapshot_age)

    async def release(self, lease: str) -> bool:
        """End a lease: its request has ended. Whether it was out."""
        return await self._batches.release(lease)

    async def renew(self, lease: str) -> bool:
        """Let a lease last as long again, from now on, as it was to last; whether it is out."""
        return await self._batches.renew(lease)

    async def report_failure(self, name: str) -> bool:
        """Put a worker behind all others until its next heartbeat; whether there is such a live one."""
        exists = bool(await self._batches.report_failure(FailureCall(name)))
        if exists:
            self._fallback.tell_news()
        return exists

    async def list_models(self, multimodal: bool | None = None) -> Found[list[str]]:
        """The models of live workers, sorted: of all, of the multimodal ones (True) or of the others (False)."""
        return await self._model_lists.submit(multimodal)

    async def stream(self, model: str, body: bytes, way: str = "") -> Found[Forwarded]:
        """Forward a request to a worker, and its answer back, in frames; see Forwarder.stream().

        way is by which clusters it has come. Raises LoopDetected if it goes in a circle.
        """
        return await self._forwarder.stream(model, body, self.pass_through(way))

    async def call(self, model: str, path: str, body: bytes, way: str = "") -> Found[Forwarded]:
        """Forward a request of any other kind to a worker, and its answer back; see stream() and Forwarder.call()."""
        return await self._forwarder.call(model, path, body, self.pass_through(way))

    def pass_through(self, way: str) -> dict[str, str]:
        """The headers of a request that has come by `way` and goes on. Raises LoopDetected if it goes in a circle."""
        return {HEADER: passed(way, self._fallback.cluster)}

    # Workers

    async def register(
        self, name: str, *, check_heart_beat: bool, status: WorkerStatus | None, multimodal: bool, way: str = ""
    ) -> None:
        """Register a worker; without a status, ask it for one.

        Waits for a store that does not serve, up to the setting register_patience: the heartbeat thread of a
        FastChat worker ends for good when its registration fails. Raises WorkerUnreachable if it had to ask the
        worker and got no answer; LoopDetected if the worker is a cluster that this one is below, or is itself.
        """
        self.pass_through(way)
        if status is None:
            status = await self._workers.status(name, self.pass_through(""))
        registration = Registration(name, status, check_heart_beat, multimodal)
        call = RegisterCall(registration, repeatable_for=self._settings.register_patience)
        underway = self._underway.setdefault(name, _Underway(call))
        underway.latest = call
        underway.calls += 1
        try:
            # Where several of a worker wait here, as after its restart, each makes the latest of them.
            new = await self._patiently(lambda: self._batches.register(underway.latest))
        finally:
            made = underway.latest.registration.status
            underway.calls -= 1
            if not underway.calls:
                del self._underway[name]
        self._fallback.tell_news()
        self._metrics.registrations.labels("new" if new else "again").inc()
        logger.info(
            "Registered %s worker %s: models %s, speed %s, queue length %s",
            "a new" if new else "again the",
            name,
            list(made.model_names),
            made.speed,
            made.queue_length,
        )

    async def heartbeat(self, name: str, queue_length: int) -> bool:
        """Take a worker's heartbeat; whether the worker is registered. If not, it should register."""
        return await self._batches.heartbeat(Report(name, queue_length, time.monotonic()))

    async def drain(self, name: str, drain: bool = True) -> bool:
        """Send a worker no new requests, or send it some again; whether there is such a live one."""
        exists = await self._batches.drain(DrainCall(name, drain))
        if exists:
            self._fallback.tell_news()
            logger.info("Worker %s drains." if drain else "Worker %s serves again.", name)
        return exists

    async def remove(self, name: str) -> bool:
        """Remove a worker; whether it was registered."""
        removed = await self._batches.remove(RemoveCall(name))
        if removed:
            self._fallback.tell_news()  # so that no recovery restores it from an old snapshot
            self._metrics.removals.labels("request").inc()
            logger.info("Removed worker %s, as requested.", name)
        return removed

    # Operators and parents

    async def list_workers(self) -> Found[list[Worker]]:
        """All live workers, in order of name."""
        try:
            return Found(await self._batches.list_workers())
        except StoreError as error:
            return self._from_snapshot(error, lambda snapshot: snapshot.workers(time.monotonic()))

    async def status(self) -> Found[WorkerStatusTotal]:
        """All live workers seen as one."""
        workers, age = await self.list_workers()
        return Found(total_status(workers), age)

    async def refresh(self) -> None:
        """Ask all workers for their status: update those that answer, remove those that do not."""
        await self._refresher.refresh()

    async def check(self) -> Found[str | None]:
        """Whether this replica serves: None, or, if it does so from a snapshot, why.

        Raises StoreUnavailable, saying why, if it does not; ShuttingDown if it soon will not.
        """
        if self._leaving:
            raise ShuttingDown("This replica is shutting down. It answers what still comes; ask another.")
        try:
            await self._batches.check()
            return Found(None)
        except StoreError as error:
            reason = str(error)
            return self._from_snapshot(error, lambda _: reason)

    @property
    def recent_clock_jump(self) -> tuple[float, float] | None:
        """The last jump of the store's clock and how long ago it was noticed, both in seconds; None after a while."""
        return self._fallback.recent_clock_jump

    async def keep_snapshot_forever(self) -> None:
        """Take snapshots, to go by when the store does not serve."""
        await self._fallback.keep_forever()

    async def poll_forever(self) -> None:
        """Ask workers for their queue lengths again and again, sharing them with the other replicas."""
        await self._poller.poll_forever()

    async def join_parents_forever(self) -> None:
        """Send heartbeats to the controllers above this cluster, sharing the work with the other replicas."""
        await self._parents.join_forever()

    async def sweep_forever(self) -> None:
        """Tidy away lapsed workers again and again, out of step with the other replicas."""
        interval = self._settings.sweep_interval
        while True:
            await asyncio.sleep(interval * random.uniform(0.5, 1.5))  # noqa: S311 - to be out of step
            try:
                removed = await self._guard.insist(self._registry.sweep, interval)  # a full store needs it most
            except StoreError:
                continue  # the guard has told of it
            if removed:
                self._metrics.removals.labels("lapsed").inc(len(removed))
                logger.warning("Removed workers whose heartbeat lapsed: %s", ", ".join(removed))

    # The end

    @property
    def leaving(self) -> bool:
        """Whether this replica is about to end."""
        return self._leaving

    def leave(self) -> None:
        """Say from now on that this replica is not ready, so that clients are sent to others. It serves as before."""
        self._leaving = True

    def end_patience(self) -> None:
        """Answer the registrations that wait for the store: the replica will not be there when it is back."""
        self._patience_over.set()

    def end_streams(self) -> None:
        """Break off the streams that still go on; each ends as if its worker had broken it."""
        self._workers.end_streams()

    async def close(self) -> None:
        """End what is under way and close all connections."""
        await self._forwarder.close(self._settings.redis_timeout)
        await self._refresher.close()
        await self._poller.close()
        await self._parents.close()
        await self._fallback.close()
        await self._workers.close()
        await self._registry.close()

    # The calls behind the coalescers

    def _no_worker(self) -> Found[str]:
        """The answer for a model whose name is longer than a worker can register: Redis need not be asked.

        Such a name may have as many bytes as a request's body.
        """
        self._metrics.dispatches_no_worker.inc()
        return Found("")

    async def _dispatch_all(self, requests: Sequence[Request]) -> Sequence[Found[str] | Again]:
        try:
            addresses = await self._guard.ask(self._registry.dispatch_some, self._method, requests)
        except StoreError as error:
            return self._dispatch_degraded([request.model for request in requests], error)
        self._metrics.dispatch_batches.inc()
        found: list[Found[str] | Again] = [AGAIN if address is None else Found(address) for address in addresses]
        if "" in addresses:
            left = [i for i, address in enumerate(addresses) if address == ""]
            for i, each in zip(left, await self._dispatch_again([requests[i] for i in left]), strict=True):
                found[i] = each
        self._count([each for each in found if each is not AGAIN])
        return found

    def _count(self, found: Sequence[Found[str]]) -> None:
        without = sum(not each.value for each in found)
        degraded = sum(each.snapshot_age is not None for each in found if each.value)
        self._metrics.dispatches_chosen.inc(len(found) - without - degraded)
        self._metrics.dispatches_degraded.inc(degraded)
        self._metrics.dispatches_no_worker.inc(without)

    async def _dispatch_again(self, requests: Sequence[Request]) -> Sequence[Found[str] | Again]:
        """Dispatch once more where the store had no worker, in case it had only lost the model's workers."""
        none: list[Found[str] | Again] = [Found("")] * len(requests)
        models = [request.model for request in requests]
        try:
            if not await self._fallback.find_again(models):
                return none
            addresses = await self._guard.ask(self._registry.dispatch_some, self._method, requests)
        except StoreError as error:
            try:
                degraded, age = self._fallback.dispatch(models, error)
            except StoreError:
                return none  # the other requests of the batch are booked and must have their answers
            return [Found(address, age) for address in degraded]
        return [AGAIN if address is None else Found(address) for address in addresses]

    def _dispatch_degraded(self, models: Sequence[str], error: StoreError) -> list[Found[str]]:
        try:
            addresses, age = self._fallback.dispatch(models, error)
        except StoreError:
            self._metrics.dispatches_store_unavailable.inc(len(models))
            raise
        self._metrics.dispatches_degraded.inc(len(models))
        return [Found(address, age) for address in addresses]

    async def _list_models_all(self, kinds: Sequence[bool | None]) -> list[Found[list[str]]]:
        lists = {kind: await self._list_models(kind) for kind in set(kinds)}
        return [lists[kind] for kind in kinds]

    async def _list_models(self, kind: bool | None) -> Found[list[str]]:
        try:
            models = await self._guard.ask(self._registry.list_models, kind)
            if not models and await self._fallback.find_again(self._fallback.expected_models(kind)):
                models = await self._guard.ask(self._registry.list_models, kind)
            return Found(models)
        except StoreError as error:
            return self._from_snapshot(error, lambda snapshot: snapshot.list_models(kind))

    # While the store does not serve

    def _from_snapshot(self, cause: StoreError, read: Callable[[Snapshot], Result]) -> Found[Result]:
        """What is read from the snapshot. Raises `cause` if there is none to go by."""
        snapshot, age = self._fallback.snapshot(cause)
        return Found(read(snapshot), age)

    async def _patiently(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """The result of a call that may be repeated, waiting for a store that does not serve."""
        deadline = time.monotonic() + self._settings.register_patience
        while True:
            try:
                return await self._guard.ask(call)
            except StoreUnavailable:
                if self._patience_over.is_set() or time.monotonic() + _RETRY_INTERVAL > deadline:
                    raise
            pause = _RETRY_INTERVAL * random.uniform(0.5, 1.5)  # noqa: S311 - many wait; they must not come at once
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._patience_over.wait()
