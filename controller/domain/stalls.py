"""Notices workers that report requests of which none finishes."""

from collections.abc import Iterable
from typing import Final, NamedTuple

from controller.domain.worker import Worker

STALLED_AFTER: Final = 60.0  # seconds for which none of a worker's requests has finished, until it counts as stalled
_MAX_GAP: Final = 30.0  # seconds between two observations. After a longer outage, nothing is known of what has finished


class _Stall(NamedTuple):
    """A worker as it was last listed. since: the earliest time at which one of its requests may have finished."""

    since: float
    registration: int
    reported: int
    own_work: float


class Stalls:
    """Measures for how long each worker has finished none of its requests, from one listing to the next.

    A request has finished if a worker reports fewer requests than before. But a busy worker may always report the same
    number. So Redis also records whether requests that this cluster dispatched have finished. Only the number of
    requests from other clients is known. An engine that has only these may be busy for good, so it is not measured.

    A worker that sends no heartbeats and has answered no poll has reported its requests once, at its registration. So
    nothing is known of these.
    """

    def __init__(self) -> None:
        self._stalls: dict[str, _Stall] = {}
        self._observed_at = 0.0

    def observe(self, workers: Iterable[Worker], now: float) -> None:
        """Compare all live workers with the last listing. now: in seconds, on any clock that is not set."""
        if now - self._observed_at > _MAX_GAP:
            self._stalls = {}
        stalls = {}
        for worker in workers:
            if worker.reported and worker.reports and (worker.own or worker.engine is None):
                since = self._since(worker, now)
                stalls[worker.name] = _Stall(since, worker.registration, worker.reported, worker.own_work)
        self._stalls, self._observed_at = stalls, now

    def _since(self, worker: Worker, now: float) -> float:
        last = self._stalls.get(worker.name)
        if last is None or last.registration != worker.registration:
            # Redis has measured the work on our own requests, even before this replica was started.
            return now - (worker.own_work / worker.own if worker.own else 0.0)
        has_finished = (
            worker.reported < last.reported
            or worker.own_work < last.own_work
            or bool(worker.own and not worker.own_work)
        )
        return now if has_finished else last.since

    def stalled_for(self, worker: Worker) -> float | None:
        """Return the seconds for which no request of a worker has finished, at least.

        None if it reported none, if it reports nothing, or if it is an engine with requests of other clients only.

        The seconds are as of the last observation, so they do not grow during an outage of Redis.
        """
        stall = self._stalls.get(worker.name)
        if stall is None or stall.registration != worker.registration or not (worker.reported and worker.reports):
            return None
        return self._observed_at - stall.since
