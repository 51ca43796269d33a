"""Compares snapshots, for the page: the changes of workers, and the dispatch rate."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from controller.domain.worker import Worker
from controller.store.registry import WorkerList

Row = Mapping[str, object]

_SLICE: Final = 500  # workers between two pauses, so that dispatches do not wait for thousands of workers
# Seconds. The ages in a listing are as exact as its calls are fast. A smaller difference is not a new heartbeat.
_TOLERANCE: Final = 0.5


class Changes(NamedTuple):
    """The differences between rows and those before them.

    changed: the whole rows of new workers. Of others, their name and the changed fields.
    removed: the names of workers that are gone.
    """

    changed: Sequence[Row] = ()
    removed: Sequence[str] = ()


class WorkerRows:
    """The workers as GET `/overview` lists them. Rows have times instead of ages, so they change only if workers do.

    seen_at: the time of the snapshot from which the rows were made, in seconds since 1970. None before the first one.
    """

    def __init__(self) -> None:
        self.seen_at: float | None = None
        self._rows: Mapping[str, Row] = {}
        self._listing: WorkerList | None = None

    def all(self) -> list[Row]:
        """Return the rows as of the last update."""
        return list(self._rows.values())

    async def update(
        self, listing: WorkerList, seen_at: float, stalled_for: Callable[[Worker], float | None]
    ) -> Changes:
        """Make the rows of another snapshot, and return what has changed.

        stalled_for: as Stalls.stalled_for().
        """
        if listing is self._listing:
            return Changes()
        before = self._rows
        rows: dict[str, Row] = {}
        changed: list[Row] = []
        for number, worker in enumerate(listing.workers, 1):
            if number % _SLICE == 0:
                await asyncio.sleep(0)
            name = worker.name
            known = before.get(name)
            rows[name] = row = _row(worker, seen_at, stalled_for(worker), known or {})
            if known is None:
                changed.append(row)
            elif known != row:
                changed.append({"worker_name": name, **{key: row[key] for key in row if row[key] != known[key]}})
        self._rows, self._listing, self.seen_at = rows, listing, seen_at
        return Changes(tuple(changed), tuple(name for name in before if name not in rows))


def _row(worker: Worker, seen_at: float, stalled_for: float | None, known: Row) -> Row:
    """Return a worker as GET `/overview` lists it. known: its row before."""
    times = {
        "heartbeat_at": seen_at - worker.heartbeat_age if worker.check_heart_beat else None,
        "expires_at": None if worker.expires_in is None else seen_at + worker.expires_in,
        "stalled_since": None if stalled_for is None else seen_at - stalled_for,
    }
    return {
        "worker_name": worker.name,
        "model_names": worker.status.model_names,
        "speed": worker.status.speed,
        "queue_length": worker.status.queue_length,
        "reported": worker.reported,
        "leased": worker.leased,
        "capacity": worker.status.capacity,
        "capacity_source": worker.capacity_source or None,
        "draining": worker.draining,
        "drained": worker.drained,
        "failing": worker.failing or None,
        "polled": worker.polled,
        "multimodal": worker.multimodal,
        "engine": worker.engine.kind if worker.engine else None,
        "registered_by": worker.registered_by or None,
        **{key: _steady(time, known.get(key)) for key, time in times.items()},
    }


def _steady(time: float | None, known: object) -> float | None:
    """Return a time that was measured, or the known one if it is the same within the tolerance."""
    if time is not None and isinstance(known, float) and abs(time - known) < _TOLERANCE:
        return known
    return None if time is None else round(time, 1)


class DispatchRate:
    """Measures how many requests for a worker Redis numbers per second, from one snapshot to the next.

    value: None if it is unknown.
    """

    def __init__(self) -> None:
        self.value: float | None = None
        self._listing: WorkerList | None = None
        self._taken_at = 0.0

    def observe(self, listing: WorkerList, taken_at: float) -> None:
        """Take note of a snapshot. taken_at: in seconds on the monotonic clock."""
        before, seconds = self._listing, taken_at - self._taken_at
        if listing is before:
            return
        self._listing, self._taken_at = listing, taken_at
        if before is None or before.epoch != listing.epoch or listing.sequence < before.sequence or seconds <= 0:
            self.value = None
            return
        # The sequence also counts registrations, which the workers' own numbers show, and the few drains and removals.
        registrations = sum(before.sequence < worker.registration <= listing.sequence for worker in listing.workers)
        self.value = round(max(0, listing.sequence - before.sequence - registrations) / seconds, 1)
