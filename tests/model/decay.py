"""Reference model of the decay clocks: include/decay/decay_clock.lua and learn_decay.lua.

A request without a lease counts for exp(-age / time constant), the chance that it still runs if its time with the
worker is exponential. One time constant for all workers of a pool keeps them in order while time passes, so an index
need not be updated. It is sorted by the logarithm of the load plus the reading of the pool's decay clock, which
advances by 1 in each time constant (forward decay: Cormode, Shkapenyuk, Srivastava and Xu, 2009). A new time constant
only lets the clock continue at another rate. No index is sorted again.

The time constant is the mean time of a request with a worker. It is estimated from the reports as for exponential times
of which some are not over: the time that requests spent with their workers, divided by the number of finished requests.
In a steady state this is Little's law (1961). Requests that still run add their time so far and no end. So neither a
burst of new requests nor a queue that does not move makes the estimate wrong.
"""

import math
from dataclasses import dataclass
from typing import Final

FIRST_TIME_CONSTANT_MS: Final = 10_000.0
_FIRST_WEIGHT: Final = 10.0  # requests that the first estimate is worth
_MEMORY: Final = 1_000.0  # requests after which an observation counts for 1/e
_BLOCK: Final = 20.0  # requests that are observed together
_CONTRADICTION: Final = 3.0  # a block contradicts the time constant if they differ by more than this factor
_MAX_FINISHED: Final = 100_000.0  # in one report: earlier observations count no more then
MIN_TIME_CONSTANT_MS: Final = 20.0
MAX_TIME_CONSTANT_MS: Final = 3_600_000.0

# A clock that gets here starts again at 0, so that index scores stay below the band of failing workers. With the
# shortest time constant that takes 2.5 years. A worker then comes behind those that have reported since, until it
# reports, too.
CLOCK_PERIOD: Final = 4e9


@dataclass(slots=True)
class DecayClock:
    """The decay clock of one pool. Times are in milliseconds."""

    reading: float = 0.0
    read_at: float = 0.0
    time_constant: float = FIRST_TIME_CONSTANT_MS
    finished: float = _FIRST_WEIGHT
    work: float = FIRST_TIME_CONSTANT_MS * _FIRST_WEIGHT
    work_times_speed: float = FIRST_TIME_CONSTANT_MS * _FIRST_WEIGHT  # the work of each worker times its speed

    block_finished: float = 0.0
    block_work: float = 0.0
    block_times_speed: float = 0.0
    contradiction: int = 0  # of the last block: 1 if it was too slow for the time constant, -1 if too fast, else 0

    def reading_at(self, now: float) -> float:
        """Return the reading at a time. If the clock of Redis was set back, it does not go back."""
        return self.reading + max(0.0, now - self.read_at) / self.time_constant

    def rate(self, speed: float) -> float:
        """Return the decay rate of a worker's own requests, relative to this clock."""
        return speed * self.work / self.work_times_speed

    def learn(self, now: float, speed: float, work: float, finished: int) -> None:
        """Learn from a report that `finished` requests have finished, after `work` request-milliseconds.

        Without finished requests nothing is learned. The work of one request counts as MIN_TIME_CONSTANT_MS at least
        and MAX_TIME_CONSTANT_MS at most.
        """
        self.reading, self.read_at = self.reading_at(now) % CLOCK_PERIOD, now
        work = max(MIN_TIME_CONSTANT_MS * finished, min(work, MAX_TIME_CONSTANT_MS * finished))
        self.block_finished += finished
        self.block_work += work
        self.block_times_speed += work * speed
        if self.block_finished >= _BLOCK:
            self._complete_block()

    def _complete_block(self) -> None:
        """Add a block to the earlier observations, or replace them if two blocks contradict them alike."""
        ratio = self.block_work / self.block_finished / self.time_constant
        contradiction = (ratio > _CONTRADICTION) - (ratio < 1 / _CONTRADICTION)
        is_confirmed = contradiction != 0 and contradiction == self.contradiction
        kept = 0.0 if is_confirmed else math.exp(-min(self.block_finished, _MAX_FINISHED) / _MEMORY)
        self.contradiction = 0 if is_confirmed else contradiction
        self.finished = self.finished * kept + self.block_finished
        self.work = self.work * kept + self.block_work
        self.work_times_speed = self.work_times_speed * kept + self.block_times_speed
        self.block_finished = self.block_work = self.block_times_speed = 0.0
        self.time_constant = min(MAX_TIME_CONSTANT_MS, max(MIN_TIME_CONSTANT_MS, self.work / self.finished))
