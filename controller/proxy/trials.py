"""Brings failing engines back: one trial request at a time for the whole cluster.

An engine that has failed gets no requests while others serve its models. Without a trial, it would never get one again.
A replica that sees in its snapshot that an engine is failing takes the lock of the engine's trial in Redis. The next
request for one of the engine's models is then the trial. It is retried on another engine like any other request.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from enum import Enum
from typing import Final

from controller.availability.snapshots import SnapshotManager
from controller.domain.errors import StoreError
from controller.store.registry import Registry
from controller.tasks import end, start_shared

_FIRST_PAUSE: Final = 1.0  # seconds from a failure to the first trial, doubled by each trial that fails
_MAX_PAUSE: Final = 60.0
_LOCK_TIME: Final = 60.0  # seconds, after which a trial may overlap with the next one
_WAIT_FOR_REQUEST: Final = 50.0  # seconds: less than the time of the lock
_FIRST_LIMIT: Final = 10.0  # seconds until the first byte of a trial's response, doubled by each trial that fails
_MAX_LIMIT: Final = 50.0  # seconds: less than the time of the lock
_NEXT_LOOK: Final = 0.5  # seconds until this replica asks for a lock again that it did not get
_REMEMBERED: Final = 600.0  # seconds for which the number of failed trials is kept


class Outcome(Enum):
    """The outcome of a trial. UNKNOWN: it shows nothing about the engine, for example because the client has left."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass
class _Engine:
    """A failing engine, as one replica sees it.

    next_at: monotonic time from which this replica asks for the lock.
    ready_at: monotonic time at which it got the lock. None if it does not have it.
    failed: number of consecutive failed trials, when it got the lock.
    busy: this replica is asking for the lock, or its trial is running.
    """

    next_at: float
    ready_at: float | None = None
    failed: int = 0
    busy: bool = False


class Trials:
    """The trials of one replica.

    replica: the id of the replica.
    """

    def __init__(
        self,
        registry: Registry,
        snapshots: SnapshotManager,
        replica: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._snapshots = snapshots
        self._replica = replica
        self._clock = clock
        self._engines: dict[str, _Engine] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, model: str) -> str:
        """Return a failing engine that a request for the model must try, or "". The caller must call end() for it.

        This does not wait for Redis: a request that finds that a trial is due goes its usual way, and a later one is
        the trial.
        """
        snapshot = self._snapshots.snapshot
        if snapshot is None or not snapshot.failing_engines:
            if self._engines:
                self._engines = {name: engine for name, engine in self._engines.items() if engine.busy}
            return ""
        now = self._clock()
        for name in snapshot.failing_engines.get(model, ()):
            engine = self._engines.setdefault(name, _Engine(now + _FIRST_PAUSE))
            if engine.busy:
                continue
            if engine.ready_at is not None:
                is_valid, engine.ready_at = now - engine.ready_at < _WAIT_FOR_REQUEST, None
                if is_valid:
                    engine.busy = True
                    return name
            if now >= engine.next_at:
                engine.busy = True
                self._start(self._acquire(name, engine))
        return ""

    def time_limit(self, name: str) -> float:
        """Return the time limit for the first byte of a running trial, in seconds.

        Without a limit, the request would wait for an engine that has hung. But the first byte may take long, above all
        without streaming, so the limit grows.
        """
        return _doubled(_FIRST_LIMIT, self._engines[name].failed, _MAX_LIMIT)

    def end(self, name: str, outcome: Outcome) -> None:
        """Release the lock of a trial that has ended."""
        self._start(self._complete(name, self._engines[name], outcome))

    async def close(self) -> None:
        """End the calls to Redis that are running."""
        await end(list(self._tasks))

    async def _acquire(self, name: str, engine: _Engine) -> None:
        acquired, result = False, ""
        try:
            acquired, result = await self._snapshots.breaker.call(
                self._registry.acquire_job, _job(name), self._replica, _LOCK_TIME, max_pause=max(_LOCK_TIME, _MAX_PAUSE)
            )
        except StoreError:
            pass  # the circuit breaker has logged it
        finally:
            engine.busy = False
            engine.next_at = self._clock() + _NEXT_LOOK
            if acquired:
                engine.ready_at, engine.failed = self._clock(), int(result or 0)

    async def _complete(self, name: str, engine: _Engine, outcome: Outcome) -> None:
        pause, result = _NEXT_LOOK, str(engine.failed)
        if outcome is Outcome.FAILED:
            pause, result = _doubled(_FIRST_PAUSE, engine.failed, _MAX_PAUSE), str(engine.failed + 1)
        elif outcome is Outcome.SUCCEEDED:
            pause, result = _FIRST_PAUSE, ""  # the snapshots of the others may still show the failure
        try:
            await self._snapshots.breaker.call(
                self._registry.complete_job, _job(name), self._replica, pause, result, _REMEMBERED
            )
        except StoreError:
            pass  # the lock expires
        finally:
            engine.busy = False
            engine.next_at = self._clock() + pause

    def _start(self, coroutine: Coroutine[None, None, None]) -> None:
        task = start_shared(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _doubled(first: float, times: int, limit: float) -> float:
    return min(first * 2.0 ** min(times, 30), limit)  # the exponent of an engine that fails for a day would overflow


def _job(name: str) -> str:
    return f"trial:{name}"
