"""Remembers the models that had a live worker recently. So an unavailable model is not reported as unknown."""

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from typing import Final

from controller.availability.snapshots import SnapshotManager
from controller.domain.engine import Protocol, indexed_name, model_of
from controller.domain.errors import ControllerError
from controller.domain.events import FIRST, Event
from controller.domain.worker import is_model_name
from controller.store.registry import Registry

_REMEMBERED: Final = 12 * 3600.0  # seconds
_INTERVAL: Final = 1.0
_MAX_MODELS: Final = 10_000
_PAGE: Final = 1_000
_MAX_PAGES: Final = 20  # Redis keeps some more than 10,000 events


class KnownModels:
    """The models that had a live worker in the last 12 hours, and those with an entry or a route in the cluster.

    All replicas see the same snapshots, so they remember the same models. A replica that has started since reads in the
    cluster's events which models have vanished. Two replicas may differ only if the events of a model are not in Redis
    any more, which has the last 10,000, or if the event of a worker with many models has only the first ones.

    named: returns the models that the lists of the cluster name, such as those with a route.
    """

    def __init__(
        self,
        snapshots: SnapshotManager,
        registry: Registry,
        named: Callable[[], Collection[str]] = frozenset,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._snapshots = snapshots
        self._registry = registry
        self._named = named
        self._clock = clock
        self._seen_at: dict[str, float] = {}  # by indexed_name(), in seconds since 1970, the oldest first
        self._has_read_events = False

    async def run(self) -> None:
        """Remember the models of the snapshots, and once those of the events, until cancelled."""
        while True:
            self.observe()
            if not self._has_read_events and self._snapshots.snapshot is not None:
                with contextlib.suppress(ControllerError):  # the next round tries it again
                    await self._read_events()
            await asyncio.sleep(_INTERVAL)

    def observe(self) -> None:
        """Remember the models of the last snapshot."""
        self._see(self._snapshots.models(None), self._clock())

    def missing(self) -> dict[str, float]:
        """Return the models that had a live worker in the last 12 hours and have none now, sorted by name.

        The values are the times at which the last worker was gone, or began to drain, in seconds since 1970.
        """
        self.observe()
        oldest = self._clock() - _REMEMBERED
        found: dict[str, float] = {}
        for name, at in self._seen_at.items():
            if at > oldest:
                model = model_of(name)
                found[model] = max(at, found.get(model, 0.0))
        for name in self._snapshots.models(None):
            found.pop(model_of(name), None)
        for worker in self._snapshots.workers() if found else ():
            if worker.draining:
                for model in worker.status.model_names:
                    found.pop(model, None)
        return dict(sorted(found.items()))

    async def has(self, model: str, protocol: Protocol | None = None) -> bool:
        """Return True if a model is known. Call this only for a model without a live worker: it may call Redis.

        protocol: only workers of this protocol count. By default, those of all protocols do. A list names models of
            engines.
        """
        if not is_model_name(model):  # it might be the name of an index
            return False
        self.observe()
        if self._is_known(model, protocol):
            return True
        if not self._has_read_events:
            with contextlib.suppress(ControllerError):  # the next call tries it again
                await self._read_events()
        return self._is_known(model, protocol)

    def _is_known(self, model: str, protocol: Protocol | None) -> bool:
        if protocol is not Protocol.FASTCHAT and model in self._named():
            return True
        names = [indexed_name(model, each) for each in Protocol if protocol in (None, each)]
        return any(self._clock() - self._seen_at.get(name, 0.0) < _REMEMBERED for name in names)

    async def _read_events(self) -> None:
        vanished: dict[str, float] = {}  # time of the event, by each model that has vanished and not appeared since
        async for event in self._events():
            for name in _models(event) if event.kind in ("models_vanished", "models_appeared") else ():
                vanished.pop(name, None)
                if event.kind == "models_vanished":
                    vanished[name] = event.time
                    self._see((name,), event.time)
        # Events do not name the protocol. If a model's last event says that it has vanished, and workers of FastChat's
        # protocol serve it now, the event was about its engines.
        snapshot = self._snapshots.snapshot
        for name, at in vanished.items():
            if snapshot is not None and snapshot.serves(name):
                self._see((indexed_name(name, Protocol.OPENAI),), at)
        self._has_read_events = True

    async def _events(self) -> AsyncIterator[Event]:
        """Yield the events of the cluster, oldest first. Raises ControllerError."""
        after = FIRST
        for _ in range(_MAX_PAGES):
            page = await self._snapshots.breaker.call(self._registry.list_events, after, _PAGE)
            for event in page.events:
                yield event
            if len(page.events) < _PAGE:
                return
            after = page.events[-1].id

    def _see(self, models: Iterable[str], at: float) -> None:
        for model in models:
            self._seen_at[model] = max(at, self._seen_at.pop(model, 0.0))
        while len(self._seen_at) > _MAX_MODELS:
            del self._seen_at[next(iter(self._seen_at))]


def _models(event: Event) -> list[str]:
    """Return the models of an event. It has only the first ones of many."""
    try:
        names = json.loads(event.fields.get("models", "[]"))
    except ValueError:  # written by another program
        return []
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
