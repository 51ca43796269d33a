"""What one replica observes of the workers from snapshot to snapshot: changes that no single snapshot shows."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from controller.domain.worker import Worker
from controller.store.registry import WorkerList

Row = Mapping[str, object]

_SLICE: Final = 500  # workers between two pauses, so that dispatches do not wait for thousands of workers
# Seconds. The ages in a listing are as exact as its calls are fast. Smaller differences are not a new heartbeat.
_TOLERANCE: Final = 0.5


@dataclass(frozen=True, slots=True)
class _Seen:
    """What was observed of a worker until a snapshot. Times are in seconds since 1970.

    not_shrunk_since: None while its reported queue is empty.
    """

    registration: int
    reported: int
    leased: int
    heartbeat_at: float
    expires_at: float | None
    not_shrunk_since: float | None


class Changes(NamedTuple):
    """How rows differ from those before.

    changed: the whole rows of new workers. Of others, their name and the changed fields.
    removed: the names of workers that are gone.
    """

    changed: Sequence[Row]
    removed: Sequence[str]


class Observations:
    """The live workers, as rows for the page, and the dispatch rate of the cluster.

    seen_at: the time of the last snapshot. None before the first one.
    dispatch_rate: requests for a worker per second, between the last two snapshots. None if it is unknown.
    """

    def __init__(self) -> None:
        self.seen_at: float | None = None
        self.dispatch_rate: float | None = None
        self._listing: WorkerList | None = None
        self._taken_at = 0.0
        self._seen: Mapping[str, _Seen] = {}
        self._rows: Mapping[str, Row] = {}
        self._rows_of: WorkerList | None = None  # from which the rows were made

    async def observe(self, listing: WorkerList, taken_at: float, seen_at: float) -> None:
        """Take note of a snapshot, unless it is the last one. This is cheap, because it runs without viewers, too.

        taken_at: its time on the monotonic clock.
        seen_at: its time in seconds since 1970.
        """
        before = self._listing
        if listing is before:
            return
        seen: dict[str, _Seen] = {}
        async for worker in _in_slices(listing):
            seen[worker.name] = _see(worker, self._seen.get(worker.name), seen_at)
        self.dispatch_rate = _dispatch_rate(before, listing, taken_at - self._taken_at)
        self._listing, self._taken_at, self._seen, self.seen_at = listing, taken_at, seen, seen_at

    def rows(self) -> list[Row]:
        """Return the workers as GET `/overview` lists them, as of the last update."""
        return list(self._rows.values())

    async def update_rows(self) -> Changes:
        """Update the rows to the last snapshot. A row changes only if its worker does: it has times instead of ages."""
        listing, before = self._listing, self._rows
        if listing is None or listing is self._rows_of:
            return Changes((), ())
        rows: dict[str, Row] = {}
        changed: list[Row] = []
        async for worker in _in_slices(listing):
            name = worker.name
            row, known = _row(worker, self._seen[name]), before.get(name)
            rows[name] = row
            if known is None:
                changed.append(row)
            elif known != row:
                changed.append({"worker_name": name, **{key: row[key] for key in row if row[key] != known[key]}})
        self._rows, self._rows_of = rows, listing
        return Changes(changed, [name for name in before if name not in rows])


async def _in_slices(listing: WorkerList) -> AsyncIterator[Worker]:
    """Yield the workers of a listing, with pauses."""
    for first in range(0, len(listing.workers), _SLICE):
        for worker in listing.workers[first : first + _SLICE]:
            yield worker
        await asyncio.sleep(0)


def _see(worker: Worker, before: _Seen | None, seen_at: float) -> _Seen:
    heartbeat_at = seen_at - worker.heartbeat_age
    expires_at = None if worker.expires_in is None else seen_at + worker.expires_in
    if before is None or before.registration != worker.registration:
        since: float | None = seen_at
    else:
        if abs(heartbeat_at - before.heartbeat_at) < _TOLERANCE:
            heartbeat_at = before.heartbeat_at
        if (
            expires_at is not None
            and before.expires_at is not None
            and abs(expires_at - before.expires_at) < _TOLERANCE
        ):
            expires_at = before.expires_at
        # A full worker may report the same number each time. Then its leases show that requests end.
        has_shrunk = worker.reported < before.reported or worker.leased < before.leased
        since = seen_at if has_shrunk or before.not_shrunk_since is None else before.not_shrunk_since
    return _Seen(
        worker.registration,
        worker.reported,
        worker.leased,
        heartbeat_at,
        expires_at,
        since if worker.reported else None,
    )


def _row(worker: Worker, seen: _Seen) -> Row:
    """Return a worker as GET `/overview` lists it."""
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
        "heartbeat_at": round(seen.heartbeat_at, 1) if worker.check_heart_beat else None,
        "expires_at": None if seen.expires_at is None else round(seen.expires_at, 1),
        "not_shrunk_since": None if seen.not_shrunk_since is None else round(seen.not_shrunk_since, 1),
    }


def _dispatch_rate(before: WorkerList | None, now: WorkerList, seconds: float) -> float | None:
    """Return how many requests for a worker Redis numbered per second between two listings.

    The sequence also counts registrations, which the workers' own numbers show, and the few drains and removals.
    """
    if before is None or before.epoch != now.epoch or now.sequence < before.sequence or seconds <= 0:
        return None
    registrations = sum(before.sequence < worker.registration <= now.sequence for worker in now.workers)
    return round(max(0, now.sequence - before.sequence - registrations) / seconds, 1)
