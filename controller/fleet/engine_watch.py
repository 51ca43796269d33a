"""Watches one engine: polls it, and derives its registration from the answers."""

import logging
import time
from collections.abc import Mapping
from typing import Final

from controller.domain.engine import Engine
from controller.domain.engine_entry import AUTO, EngineEntry
from controller.domain.engine_status import EngineKind, EngineStatus, LearnedCapacity
from controller.domain.errors import InvalidInput, WorkerError
from controller.domain.worker import MAX_CAPACITY, Registration, Worker, WorkerStatus
from controller.upstream.client import WorkerClient
from controller.upstream.engines.detection import detect
from controller.upstream.engines.probe import EngineProbe

logger = logging.getLogger("controller")

_DETECT_AGAIN_AFTER: Final = 3  # consecutive polls without a response: it may be another engine when it comes back
_TOLERANCE: Final = 0.1  # by which part a learned capacity may differ from the registered one


class EngineWatch:
    """Polls one engine, and says how it should be registered. Create a new one if its entry changes.

    timeout: as in EngineProbe.
    silences: consecutive polls without a response.
    silent_since: start of the first of them, on the monotonic clock. None if the last poll got a response.
    polled_at: start of the last poll, on the monotonic clock.
    kind: of the engine. None until it is known.
    """

    def __init__(self, client: WorkerClient, name: str, entry: EngineEntry, timeout: float | None = None) -> None:
        self.name = name
        self.entry = entry
        self.silences = 0
        self.silent_since: float | None = None
        self.polled_at = 0.0
        self.kind = None if entry.kind == AUTO else EngineKind(entry.kind)
        self._client = client
        self._timeout = timeout
        self._probe: EngineProbe | None = None
        self._learned = LearnedCapacity()
        self._problem = ""  # what was logged last: why it is not ready, "" if it is

    def continue_from(self, worker: Worker) -> None:
        """Begin with the capacity that another replica has learned. `worker` is the engine in the registry."""
        if worker.engine is not None and worker.engine.capacity_learned and worker.reported_capacity:
            self._learned.continue_from(worker.reported_capacity)

    async def poll(self) -> EngineStatus:
        """Ask the engine for its state. Raises WorkerError if it does not respond. Run one poll at a time."""
        self.polled_at = time.monotonic()
        try:
            if self._probe is None:
                entry = self.entry
                kind = (
                    await detect(self._client, self.name, entry.key) if entry.kind == AUTO else EngineKind(entry.kind)
                )
                self._probe = EngineProbe(
                    self._client, self.name, kind, entry.key, models=tuple(entry.names), timeout=self._timeout
                )
                self.kind = kind
            status = await self._probe.poll()
        except WorkerError:
            self.silences += 1
            if self.silent_since is None:
                self.silent_since = self.polled_at
            if self.silences >= _DETECT_AGAIN_AFTER:
                self._probe = None
            raise
        self.silences, self.silent_since = 0, None
        self._learned.observe(status, self.polled_at)
        return status

    def registration(self, status: EngineStatus) -> Registration:
        """Return how the engine is registered with this state. It lacks the models that its token forbids."""
        entry = self.entry
        names = {public: own for own, public in entry.public_names(model.name for model in status.models).items()}
        capacity = entry.capacity or status.capacity or self._learned.value
        return Registration(
            self.name,
            WorkerStatus(
                tuple(names),
                entry.speed,
                status.queue_length or 0,
                None if capacity is None else min(capacity, MAX_CAPACITY),
            ),
            check_heart_beat=True,
            multimodal=False,
            registered_by=entry.registered_by,
            engine=Engine(
                self.kind or EngineKind.GENERIC,
                {public: own for public, own in names.items() if public != own},
                entry.key,
                capacity_learned=not (entry.capacity or status.capacity) and capacity is not None,
                max_lengths=_max_lengths(status, names),
                hops=_hops(status, names),
            ),
        )

    def note(self, problem: str) -> bool:
        """Log that the engine is ready again, or why it is not ready, once for each change between the two.

        problem: why it is not ready, or that it does not respond, as a sentence. "" if it is ready.

        Return True if the engine is not ready since this poll. It is taken to have been ready before the first one.
        """
        changed = bool(problem) != bool(self._problem)
        self._problem = problem
        if changed and problem:
            logger.warning(
                "Engine %(worker)s is not ready: %(reason)s.", {"worker": self.name, "reason": problem.rstrip(".")}
            )
        elif changed:
            logger.info("Engine %(worker)s is ready.", {"worker": self.name})
        return changed and bool(problem)


def differs(known: Registration, registration: Registration) -> bool:
    """Return True if the registration of an engine differs from what the engine says now.

    Small changes of learned values do not count. Otherwise, each poll of a busy engine could register it again.
    """
    before, now = known.status.capacity, registration.status.capacity
    if before and now and registration.engine and registration.engine.capacity_learned:
        is_other_capacity = abs(now - before) > max(1, _TOLERANCE * before)
    else:
        is_other_capacity = before != now
    return (
        is_other_capacity
        or known.engine != registration.engine
        or known.status.model_names != registration.status.model_names
        or known.status.speed != registration.status.speed
        or known.registered_by != registration.registered_by
    )


def _max_lengths(status: EngineStatus, own_names: Mapping[str, str]) -> Mapping[str, int]:
    lengths = {model.name: model.max_length for model in status.models}
    return {public: length for public, own in own_names.items() if (length := lengths.get(own)) is not None}


def _hops(status: EngineStatus, own_names: Mapping[str, str]) -> Mapping[str, str]:
    hops = {model.name: model.hops for model in status.models if model.hops}
    return {public: hops[own] for public, own in own_names.items() if own in hops}


def entry_of(name: str, record: str) -> EngineEntry | None:
    """Return the entry that Redis holds for an engine. None if it is unreadable, which is logged."""
    try:
        return EngineEntry.decode(record)
    except InvalidInput as error:
        logger.error("The engine %s cannot be polled, because its entry is wrong: %s. Register it again.", name, error)  # noqa: TRY400 - no traceback needed
        return None
