"""The state of the cluster for the page at `/`, for any number of viewers."""

import asyncio
import contextlib
import heapq
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from itertools import islice
from typing import Final, NamedTuple

import msgspec

from controller import __version__
from controller.availability.known_models import KnownModels
from controller.availability.snapshots import SnapshotManager
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreError
from controller.domain.stalls import STALLED_AFTER
from controller.fleet.observations import Changes, DispatchRate, WorkerRows
from controller.fleet.parents import Parents
from controller.fleet.replicas import ReplicaDescription, Replicas
from controller.fleet.subscribers import Subscribers
from controller.metrics import Metrics

_INTERVAL: Final = 1.0
_MAX_VIEWERS: Final = 256
_MAX_STATES: Final = 8  # that are sent at once
_MAX_UNREAD: Final = 5  # messages of a viewer that reads slowly. Then it gets the whole state instead
_MAX_MISSING: Final = 100
_RATES: Final = 60  # seconds of dispatch rates

_encode: Final = msgspec.json.Encoder().encode


class Update(NamedTuple):
    """The state of the cluster, or what has changed since the last update, as a server-sent event.

    kind: "state" or "changes".
    frame: the event, with a JSON object. All viewers share it.
    """

    kind: str
    frame: bytes


class Overview:
    """The cluster as one replica knows it, once a second.

    The workers come from the snapshot that the replica takes anyway. The replicas are read when one has joined or left.
    So viewers cost Redis nothing else. Each update is built and encoded once for all viewers.

    engines: returns the names of the registered engines, alive or not.
    """

    def __init__(
        self,
        method: DispatchMethod,
        metrics: Metrics,
        snapshots: SnapshotManager,
        replicas: Replicas,
        parents: Parents,
        engines: Callable[[], Iterable[str]],
        known: KnownModels,
    ) -> None:
        self._method = method
        self._metrics = metrics
        self._snapshots = snapshots
        self._replicas = replicas
        self._parents = parents
        self._engines = engines
        self._known = known
        self._rows = WorkerRows()
        self._rate = DispatchRate()
        self._described: Sequence[ReplicaDescription] = ()
        self._rates: deque[float | None] = deque(maxlen=_RATES)
        self._counted: tuple[float, float] | None = None  # dispatches of this controller, and when
        self._viewers = Subscribers[Update](_MAX_UNREAD)
        self._state: bytes | None = None  # encoded since the last tick
        self._frame: bytes | None = None  # the same as a server-sent event
        # Each of the viewers that are sent a state may be sent another one, of some megabytes.
        self._sending = asyncio.Semaphore(_MAX_STATES)
        self._lock = asyncio.Lock()  # so that the state and the changes that follow it are made from the same rows

    @property
    def viewers(self) -> int:
        """The number of streams."""
        return len(self._viewers)

    async def run(self) -> None:
        """Measure the dispatch rate, and update the viewers, until cancelled."""
        while True:
            await self.tick()
            await asyncio.sleep(_INTERVAL)

    async def tick(self) -> None:
        """Measure the dispatch rate, and send what has changed to the viewers."""
        async with self._lock:
            self._rates.append(self._dispatch_rate())
            self._state = self._frame = None
            if self._viewers:
                await self._read_replicas()
                self._publish(await self._update_rows())

    async def state(self) -> bytes:
        """Return the whole state as a JSON object. It is at most a second old."""
        async with self._lock:
            if self._state is None:
                await self._read_replicas()
                changes = await self._update_rows()
                if changes != Changes():  # there was a snapshot since the last tick, which the other viewers lack
                    self._publish(changes)
                self._state = _encode({**self._head(), "workers": self._rows.all()})
            return self._state

    async def follow(self) -> AsyncGenerator[Update, None]:
        """Yield the state, and then once a second what has changed.

        Ends when the replica is about to end. Raises TooManyFollowers.
        """
        refusal = f"{_MAX_VIEWERS} pages are open at this replica already. Use another replica, or close some of them."
        with self._viewers.join(_MAX_VIEWERS, refusal, is_behind=True) as viewer:
            while True:
                if viewer.is_behind:
                    async with self._sending:  # until the viewer has been sent the state
                        state = await self.state()
                        # No `await` until here: what waits is older than the state, or a part of it.
                        viewer.is_behind = False
                        viewer.drop()
                        if self._frame is None:
                            self._frame = _server_sent("state", state)
                        yield Update("state", self._frame)
                if self._viewers.stopped:
                    return
                update = await viewer.get()
                if update is None:
                    return
                if not viewer.is_behind:  # otherwise updates before this one were dropped
                    yield update

    def stop(self) -> None:
        """End all streams. The pages connect to another replica."""
        self._viewers.stop()

    def _publish(self, changes: Changes) -> None:
        """Send changes to all viewers."""
        body = {**self._head(), "workers": changes.changed, "removed": changes.removed}
        self._viewers.publish(Update("changes", _server_sent("changes", _encode(body))))

    async def _update_rows(self) -> Changes:
        snapshots, listing = self._snapshots, self._snapshots.listing
        if listing is None:
            return Changes()
        return await self._rows.update(listing, time.time() - snapshots.age, snapshots.stalls.stalled_for)

    async def _read_replicas(self) -> None:
        """Read what the replicas are, if the set of live replicas has changed. Without Redis, keep what is known."""
        ids = set(self._replicas.ids)
        if ids and ids != {replica.id for replica in self._described}:
            with contextlib.suppress(StoreError):  # the circuit breaker has logged it
                self._described = await self._replicas.list()

    def _dispatch_rate(self) -> float | None:
        """Return the dispatches per second of the cluster. In the lottery, Redis does not number them: see `_head`."""
        if self._method is not DispatchMethod.LOTTERY:
            if self._snapshots.listing is not None:
                self._rate.observe(self._snapshots.listing, self._snapshots.taken_at)
            return self._rate.value if self._snapshots.breaker.reason is None else None
        before, now = self._counted, (self._metrics.count_dispatches(), time.monotonic())
        self._counted = now
        return None if before is None else round((now[0] - before[0]) / (now[1] - before[1]), 1)

    def _head(self) -> dict[str, object]:
        """Return what each update has."""
        reason = self._snapshots.breaker.reason
        is_lottery = self._method is DispatchMethod.LOTTERY
        return {
            "time": round(time.time(), 1),
            "seen_at": None if self._rows.seen_at is None else round(self._rows.seen_at, 1),
            "replica": {"id": self._replicas.id, "name": self._replicas.name, "version": __version__},
            "degraded": None if reason is None else str(reason),
            "can_dispatch": self._snapshots.can_dispatch,
            "dispatch_method": self._method,
            "stalled_after": STALLED_AFTER,
            "dispatches": {"scope": "controller" if is_lottery else "cluster", "per_second": list(self._rates)},
            "replicas": [
                {"id": each.id, "name": each.name, "version": each.version, "started_at": each.started_at}
                for each in self._described
            ],
            "missing_engines": self._missing_engines(),
            "missing_models": self._missing_models(),
            "parents": [state._asdict() for state in self._parents.states()],
        }

    def _missing_engines(self) -> list[str]:
        """Return the engines that are registered and not alive, sorted. At most 100, because each update has them."""
        missing = (name for name in self._engines() if self._snapshots.worker(name) is None)
        return heapq.nsmallest(_MAX_MISSING, missing) if self._snapshots.listing is not None else []

    def _missing_models(self) -> list[dict[str, object]]:
        """Return the models that had a worker and have none now. At most 100, because each update has them."""
        missing = islice(self._known.missing().items(), _MAX_MISSING)
        return [{"model": model, "since": round(since, 1)} for model, since in missing]


def _server_sent(kind: str, body: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (kind.encode(), body)
