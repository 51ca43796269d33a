"""The operations on engines, which are registered once and polled from then on."""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, NamedTuple

from controller.availability.batches import Batches
from controller.availability.circuit_breaker import CircuitBreaker
from controller.availability.snapshots import SnapshotManager
from controller.domain.engine import Engine
from controller.domain.engine_entry import AUTO, MAX_ENGINES, EngineEntry
from controller.domain.engine_status import AgentReport, EngineKind, EngineStatus
from controller.domain.errors import TooManyWorkers, WorkerError, WorkerUnreachable
from controller.domain.worker import Registration, Worker, WorkerStatus
from controller.fleet.engine_poller import AT_ONCE, EnginePoller
from controller.fleet.engine_watch import EngineWatch, entry_of
from controller.fleet.membership import check_limits
from controller.metrics import Metrics
from controller.security.access import Caller
from controller.security.audit import Audit, AuditEvent, who
from controller.security.tokens import Plane
from controller.settings import Settings
from controller.store.entries import ListName
from controller.store.registry import DrainCall, RegisterCall, Registry, Report
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_MAX_EXAMINED: Final = 64  # number of engines that one list asks for the reason why they are not alive


class EngineState(NamedTuple):
    """A registered engine.

    kind: as it is registered, or as it was found out. "auto" if it is not known.
    models: the public names of the models that it serves now.
    problem: why it gets no requests, or fewer. "" if there is no reason, or if it was not asked.
    """

    name: str
    entry: EngineEntry
    kind: str
    alive: bool
    models: tuple[str, ...]
    capacity: int | None
    problem: str = ""


class Engines:
    """The engines of the cluster, as operators see them. Methods raise StoreError."""

    def __init__(
        self,
        settings: Settings,
        breaker: CircuitBreaker,
        registry: Registry,
        batches: Batches,
        snapshots: SnapshotManager,
        client: WorkerClient,
        poller: EnginePoller,
        metrics: Metrics,
        audit: Audit,
    ) -> None:
        self._settings = settings
        self._breaker = breaker
        self._registry = registry
        self._batches = batches
        self._snapshots = snapshots
        self._client = client
        self._poller = poller
        self._metrics = metrics
        self._audit = audit

    async def register(self, name: str, entry: EngineEntry, caller: Caller) -> EngineState:
        """Register an engine, or register it with other values. It is asked for its state first.

        An engine that responds but is not ready, for example because it loads its model, is registered and gets
        requests when it is ready.

        Raises WorkerUnreachable if it does not respond, or if its kind should be found out and it lists no models.
        Raises WorkerNotAllowed if its address is not allowed. Raises Forbidden if the caller's token does not allow it
        or its models. Raises TooManyWorkers at a limit. Nothing is registered then.
        """
        caller.check_worker(name)
        await self._client.check_address(name)
        entry = replace(
            entry, registered_by=caller.name, allowed=tuple(caller.token.models) if caller.token is not None else ()
        )
        watch = EngineWatch(self._client, name, entry)
        try:
            status = await _first_status(watch)
        except WorkerUnreachable as error:
            if caller.plane is Plane.ADMIN:
                raise
            # The caller chose the address, and may have no right to see what that host returns.
            logger.warning("Registration of engine %(worker)s failed: %(reason)s", {"worker": name, "reason": error})
            raise WorkerUnreachable(
                f"{name} does not answer as an engine does. Nothing was registered. The log of the controller has the "
                "reason, which only a token for admins may read."
            ) from error
        caller.check_models(replace(entry, allowed=()).public_names(model.name for model in status.models).values())
        registration = watch.registration(status)
        before = (await self._entries()).get(name)
        await self._write(name, entry.encode())
        if status.ready:
            try:
                await self._admit(registration)
            except TooManyWorkers:
                await self._write(name, before or "")
                raise
        self._audit.record(
            AuditEvent("register_engine", "done", caller.name, caller.address, name, f"kind {watch.kind}")
        )
        logger.info(
            "Registered engine %(worker)s (%(kind)s): models %(models)s",
            {"worker": name, "kind": watch.kind, "models": list(registration.status.model_names)},
        )
        return EngineState(
            name,
            entry,
            str(watch.kind),
            status.ready,
            registration.status.model_names,
            registration.status.capacity,
            status.not_ready if caller.plane is Plane.ADMIN else status.not_ready and "it is not ready",
        )

    async def register_unpolled(
        self, name: str, entry: EngineEntry, report: AgentReport, caller: Caller
    ) -> EngineState:
        """Register an engine whose agent polls it and sends heartbeats. It is not in the list of polled engines.

        If the agent reports a problem, the engine expires at once instead. If an agent drained the engine and was
        killed, the engine gets requests again. If an operator drained it, it still drains.

        entry: with a kind and the models. Raises as register(), but does not ask the engine.
        """
        caller.check_worker(name)
        if report.problem:
            await self._expire(name, report.problem, caller)
            return EngineState(name, entry, entry.kind, False, (), None, report.problem)
        caller.check_models(entry.names.values())
        await self._client.check_address(name)
        registration = Registration(
            name,
            WorkerStatus(tuple(entry.names.values()), entry.speed, report.queue_length or 0, entry.capacity),
            check_heart_beat=True,
            multimodal=False,
            registered_by=caller.name,
            engine=Engine(
                entry.kind,
                {public: own for own, public in entry.names.items() if public != own},
                entry.key,
                capacity_learned=report.capacity_learned and entry.capacity is not None,
                max_lengths=report.max_lengths,
            ),
        )
        await self._admit(registration)
        await self._batches.take_engine_answer(Report(name, report.queue_length, time.monotonic() - report.age))
        by = who(caller.name, caller.address)
        await self._batches.drain(DrainCall(name, False, by, "its agent has started again", by_agent=True))
        await self.remove(name)  # last: until now, polls may have kept it alive
        self._audit.record(
            AuditEvent("register_engine", "done", caller.name, caller.address, name, f"kind {entry.kind}, by its agent")
        )
        logger.info(
            "Registered engine %(worker)s (%(kind)s) of an agent: models %(models)s",
            {"worker": name, "kind": entry.kind, "models": list(registration.status.model_names)},
        )
        status = registration.status
        return EngineState(name, entry, entry.kind, True, status.model_names, status.capacity)

    async def _expire(self, name: str, problem: str, caller: Caller) -> None:
        """Let an engine of the caller expire at once. If it was drained, it still drains when it returns."""
        worker = {worker.name: worker for worker in await self._batches.list_workers()}.get(name)
        is_own = worker is not None and (worker.registered_by == caller.name or caller.plane is Plane.ADMIN)
        if worker is None or worker.engine is None or not is_own:
            return
        registration = worker.as_registered()
        await self._breaker.call(lambda: self._registry.refresh(registration, worker.registration, expires_in=AT_ONCE))
        self._snapshots.request()
        logger.warning(
            "Engine %(worker)s gets no requests, as its agent reports: %(reason)s.",
            {"worker": name, "reason": problem.rstrip(".")},
        )

    async def check_address(self, name: str) -> None:
        """Call WorkerClient.check_address()."""
        await self._client.check_address(name)

    async def add(self, name: str, entry: EngineEntry) -> None:
        """Write the entry of an engine without asking the engine. The replicas poll it when they read the list again.

        Raises TooManyWorkers.
        """
        await self._set_entry(name, entry.encode())

    async def admit(self, name: str, entry: EngineEntry) -> None:
        """Let an engine of the list serve now if it is ready, even if it was removed a short while ago.

        Raises WorkerError if it does not respond, and TooManyWorkers.
        """
        watch = EngineWatch(self._client, name, entry)
        status = await watch.poll()
        registration = watch.registration(status)
        if status.ready and registration.status.model_names:
            await self._admit(registration)

    async def remove(self, name: str) -> bool:
        """Delete an engine from the list, so that it is polled no more. Return False if it is not registered.

        Its worker stays for the caller to remove.
        """
        removed = await self._breaker.force_call(
            lambda: self._registry.set_entry(ListName.ENGINES, name, "", limit=MAX_ENGINES)
        )
        if removed:
            await self._poller.update()
        return bool(removed)

    async def list(self) -> list[EngineState]:
        """Return the registered engines, sorted by name. Those that are not alive or fail are asked for the reason."""
        entries = await self._entries()
        alive = {worker.name: worker for worker in await self._batches.list_workers() if worker.engine is not None}
        states = []
        silent = []
        for name, record in sorted(entries.items()):
            entry = entry_of(name, record)
            if entry is None:
                continue
            worker = alive.get(name)
            if worker is not None and not worker.failing:
                states.append(_state_of(worker, entry))
            else:
                silent.append((name, entry, worker))
        examined = await asyncio.gather(*(self._examine(*each) for each in silent[:_MAX_EXAMINED]))
        unknown = [
            EngineState(name, entry, entry.kind, worker is not None, (), None)
            for name, entry, worker in silent[_MAX_EXAMINED:]
        ]
        return sorted([*states, *examined, *unknown])

    async def _examine(self, name: str, entry: EngineEntry, worker: Worker | None) -> EngineState:
        """Return the state of an engine that is not alive or fails, with the reason."""
        watch = EngineWatch(self._client, name, entry)
        models: Sequence[str] = ()
        try:
            status = await watch.poll()
            problem = status.not_ready or ("requests to it have failed" if worker else "it has just become ready")
            models = watch.registration(status).status.model_names
        except WorkerError as error:
            problem = str(error)
        kind = str(watch.kind or entry.kind)
        return EngineState(name, entry, kind, worker is not None, tuple(models), None, problem)

    async def _entries(self) -> dict[str, str]:
        await self._poller.update()
        return dict(self._poller.entries.entries)

    async def _write(self, name: str, record: str) -> None:
        await self._set_entry(name, record)
        await self._poller.update()

    async def _set_entry(self, name: str, record: str) -> None:
        written = await self._breaker.call(
            lambda: self._registry.set_entry(ListName.ENGINES, name, record, limit=MAX_ENGINES)
        )
        if written is None:
            raise TooManyWorkers(
                f"{MAX_ENGINES} engines are registered, which is the limit. Nothing was registered. Remove the "
                "engines that have ended."
            )

    async def _admit(self, registration: Registration) -> None:
        """Let an engine serve from now on. Raises TooManyWorkers.

        The requests of an engine that is alive stay booked.
        """
        alive = {worker.name: worker for worker in await self._batches.list_workers()}.get(registration.name)
        if alive is not None and alive.engine is not None:
            await self._breaker.call(lambda: self._registry.refresh(registration, alive.registration))
        else:
            result = await self._batches.register(RegisterCall(registration))
            new = check_limits(result, registration.registered_by, self._settings)
            self._metrics.registrations.labels("new" if new else "again").inc()
            # It has answered. An engine that never has is not deprioritised while it is silent.
            await self._batches.take_engine_answer(Report(registration.name, registration.status.queue_length))
        self._snapshots.request()


async def _first_status(watch: EngineWatch) -> EngineStatus:
    """Return the state of an engine that is to be registered. Raises WorkerUnreachable."""
    status = await watch.poll()
    if watch.entry.kind == AUTO and watch.kind is EngineKind.GENERIC and not status.models:
        raise WorkerUnreachable(
            f"{watch.name} does not answer as an engine: {status.not_ready}. Nothing was registered. Register the URL "
            "below which it serves /v1/models, or name its kind."
        )
    return status


def _state_of(worker: Worker, entry: EngineEntry) -> EngineState:
    kind = worker.engine.kind if worker.engine is not None else entry.kind
    return EngineState(worker.name, entry, kind, True, worker.status.model_names, worker.status.capacity)
