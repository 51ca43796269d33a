"""How bookings fade: what is known of a request that nobody will say has ended.

A booking counts for exp(-age / time constant), the chance that it is still there if its time with the worker were
exponential. One time constant for all workers of a model keeps them in order while time passes, so an index need not be
touched: what it is sorted by is the logarithm of the load plus the model's phase, which says how far all of it has
faded since the beginning (forward decay: Cormode, Shkapenyuk, Srivastava and Xu, 2009). A new constant only makes
the phase run at another pace; nothing is sorted anew.

The constant is the mean time of a request with a worker, estimated from the reports as for exponential times of which
some are not over yet: the time that requests spent with their workers, divided by the number of requests that ended.
In a steady state this is Little's law (1961). Requests that still run add their time so far and no end, so that neither
a burst of new requests nor a queue that does not move makes the estimate wrong.
"""

import math
from dataclasses import dataclass
from typing import Final

FIRST_TIME_CONSTANT_MS: Final = 10_000.0
_FIRST_WEIGHT: Final = 10.0  # requests that the first guess is worth
_MEMORY: Final = 1_000.0  # requests after which an observation counts for 1/e
_BLOCK: Final = 20.0  # requests that are observed together
_CONTRADICTION: Final = 3.0  # a block contradicts the constant if they differ by more than this factor
_MAX_ENDED: Final = 100_000.0  # in one report: what was learned before no longer counts
MIN_TIME_CONSTANT_MS: Final = 20.0
MAX_TIME_CONSTANT_MS: Final = 3_600_000.0

# A phase that gets here starts again at 0, so that what an index is sorted by stays below the band of failing workers.
# At the shortest constant that takes 2.5 years. A worker then comes behind those that have reported since, until it
# reports, too.
PHASE_PERIOD: Final = 4e9


@dataclass(slots=True)
class Fade:
    """The phase of one model, which grows by 1 in each time constant. Times are in milliseconds."""

    phase: float = 0.0
    at: float = 0.0
    time_constant: float = FIRST_TIME_CONSTANT_MS
    ended: float = _FIRST_WEIGHT
    work: float = FIRST_TIME_CONSTANT_MS * _FIRST_WEIGHT
    work_by_speed: float = FIRST_TIME_CONSTANT_MS * _FIRST_WEIGHT  # each worker's multiplied by its speed

    block_ended: float = 0.0
    block_work: float = 0.0
    block_by_speed: float = 0.0
    contradiction: int = 0  # of the last block: 1 if its times were too long for the constant, -1 if too short, else 0

    def phase_at(self, now: float) -> float:
        """The phase at a time; if the clock was set back, not before what was written down last."""
        return self.phase + max(0.0, now - self.at) / self.time_constant

    def pace(self, speed: float) -> float:
        """How many times as fast as the model's the bookings of a worker of that speed fade."""
        return speed * self.work / self.work_by_speed

    def learn(self, now: float, speed: float, work: float, ended: int) -> None:
        """Learn from a report that `ended` requests have ended, after `work` request-milliseconds.

        A report without an end teaches nothing. The work of one request counts as MIN_TIME_CONSTANT_MS at least and
        MAX_TIME_CONSTANT_MS at most.
        """
        self.phase, self.at = self.phase_at(now) % PHASE_PERIOD, now
        work = max(MIN_TIME_CONSTANT_MS * ended, min(work, MAX_TIME_CONSTANT_MS * ended))
        self.block_ended += ended
        self.block_work += work
        self.block_by_speed += work * speed
        if self.block_ended >= _BLOCK:
            self._complete_block()

    def _complete_block(self) -> None:
        """Add a block of requests to what was learned before, or replace that if two blocks contradict it alike."""
        ratio = self.block_work / self.block_ended / self.time_constant
        contradiction = (ratio > _CONTRADICTION) - (ratio < 1 / _CONTRADICTION)
        is_confirmed = contradiction != 0 and contradiction == self.contradiction
        kept = 0.0 if is_confirmed else math.exp(-min(self.block_ended, _MAX_ENDED) / _MEMORY)
        self.contradiction = 0 if is_confirmed else contradiction
        self.ended = self.ended * kept + self.block_ended
        self.work = self.work * kept + self.block_work
        self.work_by_speed = self.work_by_speed * kept + self.block_by_speed
        self.block_ended = self.block_work = self.block_by_speed = 0.0
        self.time_constant = min(MAX_TIME_CONSTANT_MS, max(MIN_TIME_CONSTANT_MS, self.work / self.ended))
