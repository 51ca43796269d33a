"""Registers the engines that --workers-file and --workers-dns list. Removes engines that left these lists."""

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Final

from controller.availability.batches import Batches
from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.engine_entry import EngineEntry, EngineSource
from controller.domain.errors import ControllerError, StoreError, TooManyWorkers
from controller.domain.worker import Worker
from controller.fleet.engine_poller import EnginePoller
from controller.fleet.engine_sources import Proposal, Source
from controller.fleet.engine_watch import entry_of
from controller.fleet.engines import Engines
from controller.store.registry import DrainCall, Registry, RemoveCall
from controller.tasks import end, start_shared

logger = logging.getLogger("controller")

_INTERVAL: Final = 1.0  # seconds between two checks of a source
_PAUSE: Final = 0.2  # the same, if a check has left changes to make
_LOCK_TTL: Final = 5.0  # seconds after which another replica decides if the deciding one has ended
_MAX_CHANGES: Final = 500  # in one check, so that the lock is renewed in time
_MAX_CALLS: Final = 64  # at once
_DRAIN_TIMEOUT: Final = 600.0  # seconds after which an engine that has left its source is removed even if it is busy
_RETRY_INTERVAL: Final = 10.0  # seconds until an engine that could not be registered is tried again
_LEAST_DRAIN: Final = 2.0  # seconds in which the engine reports its load once more


class Discovery:
    """Keeps the list of engines equal to what the sources list. Each replica has one.

    For each source, one replica makes the changes until it ends. So replicas with different files do not undo each
    other's changes. A source only lists engines. The polls decide which of them are alive.

    replica_id: of this replica.
    """

    def __init__(
        self,
        breaker: CircuitBreaker,
        registry: Registry,
        batches: Batches,
        engines: Engines,
        poller: EnginePoller,
        replica_id: str,
        sources: Iterable[Source],
    ) -> None:
        self._breaker = breaker
        self._registry = registry
        self._batches = batches
        self._engines = engines
        self._poller = poller
        self._replica_id = replica_id
        self._sources = tuple(sources)
        self._permits = asyncio.Semaphore(_MAX_CALLS)
        self._admissions: set[asyncio.Task[None]] = set()
        # By source, the list of engines and the proposal that agreed at the last check. Comparing 10,000 engines takes
        # a while.
        self._done: dict[str, tuple[Mapping[str, str], Mapping[str, EngineEntry]]] = {}
        self._decoded: dict[str, tuple[str, EngineEntry | None]] = {}  # records and entries of the list
        self._removed: set[str] = set()  # by this replica
        self._retry_at: dict[str, float] = {}  # monotonic time, by engine that could not be registered
        self._logged: set[tuple[str, str]] = set()  # engines and why they cannot be registered, or are left alone

    async def run(self) -> None:
        """Follow the sources until cancelled. Return at once if there are none."""
        followed = [asyncio.create_task(self._follow(source)) for source in self._sources]
        try:
            await asyncio.gather(*followed)
        finally:
            await end([*followed, *self._admissions])
            for source in self._sources:
                await source.close()

    async def _follow(self, source: Source) -> None:
        while True:
            has_more = False
            try:
                proposal = await source.read()
                if proposal is not None:
                    has_more = await self._decide(source, proposal)
            except StoreError:
                pass  # the circuit breaker has logged it
            except Exception:  # a bug must not end the discovery
                logger.exception("The engines of %s could not be compared because of a bug.", source.flag)
            await asyncio.sleep(min(_PAUSE, _INTERVAL) if has_more else _INTERVAL)

    async def close(self) -> None:
        """Let another replica decide at once."""
        for source in self._sources:
            try:
                await self._breaker.call(
                    lambda job: self._registry.complete_job(job, self._replica_id, 0.001, "", 1.0), _job(source)
                )
            except StoreError:
                return

    async def _decide(self, source: Source, proposal: Proposal) -> bool:
        """Apply a source to the list of engines, if this replica decides. Return True if changes are left."""
        job, replica = _job(source), self._replica_id
        decides, _ = await self._breaker.call(self._registry.acquire_job, job, replica, _LOCK_TTL, max_pause=_LOCK_TTL)
        if not decides:
            return False
        await self._poller.update()
        listed = self._poller.entries.entries
        if (done := self._done.get(source.kind)) and done[0] is listed and done[1] is proposal.engines:
            return False
        known = self._read(listed)
        wanted = [
            (name, entry)
            for name, entry in proposal.engines.items()
            if name not in known or (known[name] != entry and self._may_replace(source, name, known[name]))
        ]
        changes = [(name, entry) for name, entry in wanted if self._retry_at.get(name, 0.0) <= time.monotonic()]
        calls = (self._write(source, name, entry, known.get(name)) for name, entry in changes[:_MAX_CHANGES])
        written = sum(await asyncio.gather(*calls))
        if written:
            logger.info("%s: registered or changed %d engines.", source.flag, written)
        gone = {
            name: entry
            for name, entry in known.items()
            if entry.source == source.kind and name not in proposal.engines and proposal.is_complete
        }
        steps = await self._steps(gone) if gone else []
        await asyncio.gather(*(self._leave(source, *step) for step in steps[:_MAX_CHANGES]))
        if not wanted and not gone and proposal.is_complete:
            self._done[source.kind] = listed, proposal.engines
        await self._poller.update()
        return len(changes) > _MAX_CHANGES or len(steps) > _MAX_CHANGES

    def _read(self, listed: Mapping[str, str]) -> dict[str, EngineEntry]:
        """Return the entries of the list. Only new records are decoded, because that takes a while for 10,000."""
        before = self._decoded
        self._decoded = {
            name: before[name] if name in before and before[name][0] == record else (record, entry_of(name, record))
            for name, record in listed.items()
        }
        return {name: entry for name, (_, entry) in self._decoded.items() if entry is not None}

    def _may_replace(self, source: Source, name: str, known: EngineEntry) -> bool:
        """Return True if a source may change a known engine. The file has priority over the names."""
        if known.source == source.kind:
            return True
        if known.source == EngineSource.HAND:
            if self._is_new(name, "hand"):
                logger.info(
                    "%(flag)s lists the engine %(worker)s, which was registered by hand and stays as it is. "
                    "`controller remove` hands it over.",
                    {"flag": source.flag, "worker": name},
                )
            return False
        return source.kind is EngineSource.FILE or bool(known.leaving_since)

    async def _write(self, source: Source, name: str, entry: EngineEntry, known: EngineEntry | None) -> bool:
        """Register an engine, or change its entry. Return False if it cannot be registered, which is logged once."""
        async with self._permits:
            try:
                await self._engines.check_address(name)
                await self._engines.add(name, entry)
            except StoreError:
                raise
            except ControllerError as error:
                # At the limit, one message stands for all engines.
                if self._is_new("" if isinstance(error, TooManyWorkers) else name, str(error)):
                    logger.error("%s: %s was not registered: %s", source.flag, name, error)  # noqa: TRY400 - no traceback needed
                self._retry_at[name] = time.monotonic() + _RETRY_INTERVAL
                return False
            self._retry_at.pop(name, None)
            if known is not None and known.leaving_since and not known.was_draining:
                await self._batches.drain(DrainCall(name, False, source.flag, "it is listed again"))
        if known is None and name in self._removed:
            self._removed.discard(name)
            admission = start_shared(self._admit(name, entry))
            self._admissions.add(admission)
            admission.add_done_callback(self._admissions.discard)
        return True

    async def _admit(self, name: str, entry: EngineEntry) -> None:
        """Let an engine serve at once if it is ready. The polls alone do not restore it while its removal is recent."""
        async with self._permits:
            try:
                await self._engines.admit(name, entry)
            except ControllerError as error:
                logger.info("Engine %(worker)s does not serve yet: %(reason)s", {"worker": name, "reason": error})

    async def _steps(self, gone: Mapping[str, EngineEntry]) -> list[tuple[str, EngineEntry, Worker | None]]:
        """Return the engines that have left and need a step now: a drain, or with None as the worker, the removal.

        They are removed when they are idle or dead, or have been busy for too long.
        """
        alive = {worker.name: worker for worker in await self._batches.list_workers()}
        steps: list[tuple[str, EngineEntry, Worker | None]] = []
        for name, entry in gone.items():
            worker = alive.get(name)
            waited = abs(time.time() - entry.leaving_since)  # abs: a clock that was set back must not keep it
            if worker is None or (
                entry.leaving_since and waited >= (_LEAST_DRAIN if worker.drained else _DRAIN_TIMEOUT)
            ):
                steps.append((name, entry, None))
            elif not entry.leaving_since or not worker.draining:
                steps.append((name, entry, worker))
        return steps

    async def _leave(self, source: Source, name: str, entry: EngineEntry, worker: Worker | None) -> None:
        """Drain or remove an engine, as _steps() says."""
        reason = f"{source.flag} does not list it any more"
        async with self._permits:
            if worker is None:
                await self._engines.remove(name)  # first, or a replica could register it again
                await self._batches.remove(RemoveCall(name, by=source.flag, reason=reason))
                self._removed.add(name)
                logger.info("Removed engine %(worker)s: %(reason)s.", {"worker": name, "reason": reason})
                return
            if not entry.leaving_since:
                left = replace(entry, leaving_since=time.time(), was_draining=worker.draining)
                await self._engines.add(name, left)
                logger.info("Engine %(worker)s drains: %(reason)s.", {"worker": name, "reason": reason})
            if not worker.draining:
                await self._batches.drain(DrainCall(name, True, source.flag, reason))

    def _is_new(self, name: str, problem: str) -> bool:
        """Return True if a problem of an engine was not logged yet."""
        is_new = (name, problem) not in self._logged
        if len(self._logged) >= 10_000:
            self._logged.clear()
        self._logged.add((name, problem))
        return is_new


def _job(source: Source) -> str:
    return f"discovery:{source.kind}"
