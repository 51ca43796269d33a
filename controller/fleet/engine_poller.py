"""Polls the engines that were registered, and keeps those alive that are ready. The replicas share the engines."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Final

from controller.availability.batches import Batches
from controller.availability.snapshots import SnapshotManager
from controller.domain.errors import StoreError, StoreUnavailable, WorkerError
from controller.domain.worker import Registration, Worker
from controller.fleet.engine_watch import EngineWatch, differs, entry_of
from controller.fleet.rendezvous import Share
from controller.fleet.replicas import Replicas
from controller.fleet.shared_list import INTERVAL, SharedList
from controller.metrics import Metrics
from controller.store.entries import ListName
from controller.store.registry import FailureCall, Registry, Report
from controller.tasks import end
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_MAX_POLLS: Final = 256  # at once, for engines that are alive
_MAX_OTHER_POLLS: Final = 1_024  # at once, for the others, most of which do not respond
_PART_OF_SILENCE: Final = 0.1  # an engine is polled less often, the longer it has not responded
_LONGEST_PAUSE: Final = 30.0  # seconds between two polls of such an engine
AT_ONCE: Final = 0.001  # seconds


class EnginePoller:
    """One replica's share of the polling of engines.

    An engine is alive for as long as it answers polls and is ready. An engine that is ready again is registered again.
    An engine that reports that it is not ready expires at once. An engine that does not respond is deprioritised, and
    expires later.

    interval: between two polls of an engine, in seconds.
    expiration: of an engine after its last answer, in seconds. The time limit of each question is a quarter of it, so
        a silent engine is deprioritised before it expires.
    record: records an event.
    """

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotManager,
        batches: Batches,
        client: WorkerClient,
        metrics: Metrics,
        replicas: Replicas,
        interval: float,
        expiration: float,
        record: Callable[..., None],
    ) -> None:
        self.entries = SharedList(registry, ListName.ENGINES)
        self._breaker = snapshots.breaker
        self._snapshots = snapshots
        self._registry = registry
        self._batches = batches
        self._client = client
        self._metrics = metrics
        self._replicas = replicas
        self._interval = interval
        self._expiration = expiration
        self._timeout = expiration / 4
        self._record = record
        self._permits = asyncio.Semaphore(_MAX_POLLS)
        self._other_permits = asyncio.Semaphore(_MAX_OTHER_POLLS)  # hung engines must not delay the polls of live ones
        self._shared: tuple[Mapping[str, str], tuple[str, ...]] = ({}, ())  # from which the share was made
        self._named: tuple[Mapping[str, str], frozenset[str]] = ({}, frozenset())  # and from which list
        self._watches: dict[str, tuple[str, asyncio.Task[None]]] = {}  # the record and the polls of each engine of ours
        self._ready_until: dict[str, float] = {}  # monotonic time at which each of them expires without another answer

    async def run(self) -> None:
        """Poll until cancelled."""
        try:
            while True:
                with contextlib.suppress(StoreError):  # the circuit breaker has logged it. The known engines stay
                    await self.update()
                await self._share()
                await asyncio.sleep(INTERVAL)
        finally:
            await end([task for _, task in self._watches.values()])

    async def update(self) -> None:
        """Get the list of engines from Redis if it has changed. Raises StoreError."""
        await self._breaker.call(self.entries.update)

    def named_models(self) -> frozenset[str]:
        """Return the public names that operators gave to models of engines, alive or not."""
        entries = self.entries.entries
        if entries is not self._named[0]:
            read = (entry_of(name, record) for name, record in entries.items())
            self._named = entries, frozenset(name for entry in read if entry for name in entry.names.values())
        return self._named[1]

    def time_left(self, name: str) -> float | None:
        """Return for how many seconds an engine stays alive after the last answer to a poll of this replica.

        At most 0 if it is not ready, or is not in the list any more. None if this replica does not poll it. Redis may
        have no heartbeat of it, if it was unavailable.
        """
        until = self._ready_until.get(name)
        if until is None:
            return None
        return until - time.monotonic() if name in self.entries.entries else 0.0

    async def refresh(self) -> None:
        """Poll all engines of the cluster once, with all questions. Raises StoreError."""
        await self.update()
        watches = [
            EngineWatch(self._client, name, entry, self._timeout)
            for name, record in self.entries.entries.items()
            if (entry := entry_of(name, record)) is not None
        ]
        await asyncio.gather(*map(self._poll, watches))

    async def _share(self) -> None:
        """Begin to poll the engines that belong to this replica now, and end the polls of the others.

        While Redis is unavailable, keep the share: after the outage, the last answers show which engines are ready.
        """
        entries, replicas = self.entries.entries, tuple(self._replicas.ids)
        if not replicas or (entries is self._shared[0] and replicas == self._shared[1]):
            return
        self._shared = entries, replicas
        share = Share(self._replicas.id, replicas)
        own = {name: record for name, record in entries.items() if share.has(name)}
        left = [name for name, (record, _) in self._watches.items() if own.get(name) != record]
        await end([self._watches.pop(name)[1] for name in left])
        for name in left:
            self._ready_until.pop(name, None)
        for name, record in own.items():
            if name not in self._watches:
                self._watches[name] = record, asyncio.create_task(self._watch(name, record))

    async def _watch(self, name: str, record: str) -> None:
        """Poll one engine until cancelled."""
        entry = entry_of(name, record)
        if entry is None:
            return
        watch = EngineWatch(self._client, name, entry, self._timeout)
        await asyncio.sleep(random.uniform(0, self._interval))  # noqa: S311 - engines must not be polled in step
        while True:
            began = time.monotonic()
            try:
                await self._poll(watch)
            except StoreError:
                pass  # the circuit breaker has logged it
            except Exception:  # a bug must not end the polls of this engine
                logger.exception("Polling the engine %s failed because of a bug.", name)
            silence = 0.0 if watch.silent_since is None else began - watch.silent_since
            pause = max(self._interval, min(_PART_OF_SILENCE * silence, _LONGEST_PAUSE))
            await asyncio.sleep(max(0.0, began + pause - time.monotonic()))

    async def _poll(self, watch: EngineWatch) -> None:
        """Poll an engine once, and record the result. Raises StoreError."""
        worker = self._snapshots.worker(watch.name)
        if worker is not None:
            watch.continue_from(worker)
        is_alive = not watch.silences and worker is not None
        async with self._permits if is_alive else self._other_permits:
            try:
                status = await watch.poll()
            except WorkerError as error:
                await self._record_silence(watch, error)
                return
        self._metrics.polls_answered.inc()
        registration = watch.registration(status)
        problem = status.not_ready or ("" if registration.status.model_names else "its token allows none of its models")
        if watch.name in self._watches:
            self._ready_until[watch.name] = 0.0 if problem else watch.polled_at + self._expiration
        if problem:
            await self._expire(watch, problem)
            return
        watch.note("")
        report = Report(watch.name, status.queue_length, watch.polled_at - status.lag)
        try:
            is_registered = await self._batches.take_engine_answer(report)
        except StoreUnavailable:
            self._snapshots.clear_failure(watch.name, of_polls=True)
            raise
        if not is_registered:
            # An operator may have removed it. If the list was read before that, Redis does not restore it.
            if watch.name in self.entries.entries:
                await self._breaker.call(self._registry.restore, registration, polled=True)
        elif worker is not None and differs(worker.as_registered(), registration):
            await self._refresh(registration, worker, report.written_at)

    async def _record_silence(self, watch: EngineWatch, error: WorkerError) -> None:
        self._metrics.polls_failed.inc()
        if watch.note(str(error)):
            self._record("engine_unavailable", worker=watch.name, reason=str(error))
        if self._snapshots.worker(watch.name):
            try:  # a poll without a response has asked two questions, if the first took long
                await self._batches.report_failure(FailureCall(watch.name, of_polls=True))
            except StoreUnavailable:
                self._snapshots.fail(watch.name, of_polls=True)
                raise

    async def _expire(self, watch: EngineWatch, problem: str) -> None:
        """Let an engine expire at once that says that it is not ready."""
        if watch.note(problem):
            self._record("engine_unavailable", worker=watch.name, reason=problem)
        worker = self._snapshots.worker(watch.name)
        if worker is not None and worker.engine is not None:
            await self._refresh(worker.as_registered(), worker, None, expires_in=AT_ONCE)

    async def _refresh(
        self, registration: Registration, worker: Worker, written_at: float | None, expires_in: float | None = None
    ) -> None:
        await self._breaker.call(
            lambda: self._registry.refresh(
                registration, worker.registration, written_at=written_at, expires_in=expires_in
            )
        )
