"""What one replica observes of the workers from snapshot to snapshot: changes that no single snapshot shows."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

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


class Observations:
    """The live workers, as rows for the page, and the dispatch rate of the cluster.

    rows: by worker. They are those of GET `/overview`. A row changes only if its worker does: it has times instead of
        ages.
    seen_at: the time of the last snapshot. None before the first one.
    dispatch_rate: requests for a worker per second, between the last two snapshots. None if it is unknown.
    """

    def __init__(self) -> None:
        self.rows: Mapping[str, Row] = {}
        self.seen_at: float | None = None
        self.dispatch_rate: float | None = None
        self._listing: WorkerList | None = None
        self._taken_at = 0.0
        self._seen: Mapping[str, _Seen] = {}

    async def observe(self, listing: WorkerList, taken_at: float, age: float, now: float) -> None:
        """Take note of a snapshot, unless it is the last one.

        taken_at: its time on the monotonic clock.
        age: its age in seconds.
        now: in seconds since 1970.
        """
        before = self._listing
        if listing is before:
            return
        seen_at = now - age
        rows: dict[str, Row] = {}
        seen: dict[str, _Seen] = {}
        for number, worker in enumerate(listing.workers):
            if number % _SLICE == _SLICE - 1:
                await asyncio.sleep(0)
            seen[worker.name] = this = _see(worker, self._seen.get(worker.name), seen_at)
            row = _row(worker, this)
            known = self.rows.get(worker.name)
            rows[worker.name] = known if known == row else row  # so that `is` compares rows
        self.dispatch_rate = _dispatch_rate(before, listing, taken_at - self._taken_at)
        self._listing, self._taken_at, self._seen = listing, taken_at, seen
        self.rows, self.seen_at = rows, seen_at


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
