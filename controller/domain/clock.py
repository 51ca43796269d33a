"""The clock of the store, and how a replica notices that it was set."""

from typing import Final, NamedTuple, Self

LEAST_JUMP: Final = 1.0  # seconds: a smaller one shifts an expiration by no more than a late heartbeat does


class ClockReading(NamedTuple):
    """The store's clock, compared with this process's monotonic clock, which cannot be set.

    offset is the difference between the two, error the most by which that may be wrong. Both are in seconds.
    """

    offset: float
    error: float

    @classmethod
    def between(cls, sent_at: float, store_time: float, received_at: float) -> Self:
        """The reading of a call that was sent and answered at two monotonic times. All times are in seconds."""
        return cls(store_time - (sent_at + received_at) / 2, (received_at - sent_at) / 2)

    def jump_since(self, before: "ClockReading") -> float:
        """By how many seconds the store's clock was set since `before`; negative if back, 0 if it was not."""
        jump = self.offset - before.offset
        return jump if abs(jump) > LEAST_JUMP + self.error + before.error else 0.0
