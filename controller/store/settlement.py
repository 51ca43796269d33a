"""What a replica tells the store when it has found it again."""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

_BOOKINGS_AT_ONCE: Final = 1_000


class Settlement(NamedTuple):
    """What a replica tells the store when it has found it again.

    unanswered are ids of dispatch calls whose answers never came: what they booked is taken back, and what they would
    still book is not. bookings are what the replica dispatched by itself, by worker. sequence is as in WorkerList.
    """

    request_id: str
    sequence: int
    unanswered: list[str]
    bookings: Mapping[str, int]


def split(bookings: Mapping[str, int], unanswered: Sequence[str], sequence: int) -> list[Settlement]:
    """Settlements of a size that does not hold up the store; none if there is nothing to settle."""
    if not (bookings or unanswered or sequence):
        return []
    items = list(bookings.items())
    parts = [dict(items[first : first + _BOOKINGS_AT_ONCE]) for first in range(0, len(items), _BOOKINGS_AT_ONCE)]
    return [
        Settlement(secrets.token_hex(12), sequence, [] if i else list(unanswered), part)
        for i, part in enumerate(parts or [{}])
    ]
