"""Reports of replicas to Redis after an outage."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_MAX_BOOKINGS: Final = 1_000  # in one report. A call that stops early is repeated with the rest of the report


class Reconciliation(NamedTuple):
    """A report of a replica to Redis after an outage.

    unanswered: ids of dispatch calls without an answer. Their bookings are taken back, including those of calls that
    Redis has yet to run.
    bookings: the number of requests that the replica dispatched from its snapshot, by worker.
    sequence: as in WorkerList, if Redis lost data. Otherwise 0.
    """

    request_id: str
    sequence: int
    unanswered: list[str]
    bookings: Mapping[str, int]


def split(bookings: Mapping[str, int], unanswered: Sequence[str], sequence: int) -> list[Reconciliation]:
    """Split a report into parts of bounded size. Return an empty list if there is nothing to report."""
    if not (bookings or unanswered or sequence):
        return []
    items = list(bookings.items())
    parts = [dict(items[first : first + _MAX_BOOKINGS]) for first in range(0, len(items), _MAX_BOOKINGS)]
    return [
        Reconciliation(secrets.token_hex(12), sequence, [] if i else list(unanswered), part)
        for i, part in enumerate(parts or [{}])
    ]
