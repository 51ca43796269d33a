"""Detects that the clock of Redis was set."""

from typing import Final, NamedTuple, Self

MIN_JUMP: Final = 1.0  # seconds: a smaller jump shifts an expiration by no more than a late heartbeat does


class ClockReading(NamedTuple):
    """The clock of Redis compared with the monotonic clock of this process, which cannot be set.

    offset: the clock of Redis minus the monotonic clock, in seconds.
    error: maximum error of the offset, in seconds.
    """

    offset: float
    error: float

    @classmethod
    def between(cls, sent_at: float, store_time: float, received_at: float) -> Self:
        """Return a reading from one call to Redis. All times are in seconds.

        sent_at, received_at: monotonic times of the call and of its reply.
        store_time: time of Redis in the reply.
        """
        return cls(store_time - (sent_at + received_at) / 2, (received_at - sent_at) / 2)

    def jump_since(self, before: "ClockReading") -> float:
        """Return by how many seconds the clock was set ahead since `before`. Negative means back, 0 means not set."""
        jump = self.offset - before.offset
        return jump if abs(jump) > MIN_JUMP + self.error + before.error else 0.0
