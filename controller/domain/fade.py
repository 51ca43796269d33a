"""How bookings fade: what is known of a request that nobody will say has ended.

A booking counts for exp(-age / time constant), the chance that it is still there if its time with the worker were
exponential. One time constant for all workers of a model keeps them in order while time passes, so an index need not be
touched: what it is sorted by is the logarithm of the load plus the model's phase, which says how far all of it has
faded since the beginning (forward decay: Cormode, Shkapenyuk, Srivastava and Xu, 2009). A new constant only makes
the phase run at another pace; nothing is sorted anew.

The constant is the mean time of a request with a worker, which Little's law (1961) tells from the reports: the work
that they tell of, in request-seconds, by the number of bookings that made it.
"""

import math
from dataclasses import dataclass
from typing import Final

FIRST_TIME_CONSTANT_MS: Final = 10_000.0
_FIRST_WEIGHT: Final = 10.0  # bookings that the first guess is worth
_MEMORY: Final = 2_000.0  # bookings after which an observation counts for 1/e
_MAX_BOOKINGS: Final = 100_000.0  # of one report: what was known before is then as good as forgotten
MIN_TIME_CONSTANT_MS: Final = 20.0
MAX_TIME_CONSTANT_MS: Final = 3_600_000.0


@dataclass(slots=True)
class Fade:
    """The phase of one model, which grows by 1 in each time constant. Times are in milliseconds."""

    phase: float = 0.0
    at: float = 0.0
    time_constant: float = FIRST_TIME_CONSTANT_MS
    bookings: float = _FIRST_WEIGHT
    work: float = FIRST_TIME_CONSTANT_MS * _FIRST_WEIGHT
    work_by_speed: float = FIRST_TIME_CONSTANT_MS * _FIRST_WEIGHT  # each worker's multiplied by its speed

    def phase_at(self, now: float) -> float:
        """The phase at a time; if the clock was set back, not before what was written down last."""
        return self.phase + max(0.0, now - self.at) / self.time_constant

    def pace(self, speed: float) -> float:
        """How many times as fast as the model's the bookings of a worker of that speed fade."""
        return speed * self.work / self.work_by_speed

    def learn(self, now: float, speed: float, work: float, bookings: int) -> None:
        """Take in what a report told: so much work, in request-milliseconds, of so many bookings.

        No report tells of more or less than a booking can take: one that is wrong does not spoil it all.
        """
        self.phase, self.at = self.phase_at(now), now
        kept = math.exp(-min(bookings, _MAX_BOOKINGS) / _MEMORY)
        work = max(MIN_TIME_CONSTANT_MS * bookings, min(work, MAX_TIME_CONSTANT_MS * (bookings + 1)))
        self.bookings = self.bookings * kept + bookings
        self.work = self.work * kept + work
        self.work_by_speed = self.work_by_speed * kept + work * speed
        constant = self.work / self.bookings
        self.time_constant = min(MAX_TIME_CONSTANT_MS, max(MIN_TIME_CONSTANT_MS, constant))
