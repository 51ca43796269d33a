"""The best guess from heartbeats: an estimate of the shortest waits that any policy can reach without polls.

The policy is a particle filter. It knows more than a controller: the slots, the true speeds, and the distribution of
service times, but not their drift. For each worker it keeps DRAWS random histories that agree with all bookings and
with the last report. It chooses the worker where the next LOOK_AHEAD requests would wait least, on the average of all
histories. The result is not a strict bound, because the policy ignores later choices and has few histories. It needs
numpy.
"""

from typing import Any

import numpy as np
from policies import ChosenAt, Notice
from simulated_fleet import Fleet, Request

DRAWS = 300
LOOK_AHEAD = 4
KEPT = 128  # bookings that are kept for a worker, the latest ones
LEAST_THAT_AGREE = 4
SAMPLES = 100_001

Array = Any  # an array of numpy


class BestGuess:
    """A policy of the simulation. Times are in seconds."""

    sees_ends = False
    chosen_at = ChosenAt.STORE

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.speeds = fleet.speeds()
        self.rng = np.random.default_rng(fleet.seed)
        services = fleet.stream("services of the best guess")
        steady = [fleet.service_time(services, 0.0) for _ in range(SAMPLES)]
        self.services = np.sort(np.array(steady))
        shape = (fleet.workers, DRAWS, KEPT)
        # For each booking in each history: when it arrives at the worker, starts and ends.
        self.comes, self.begins, self.ends = (np.full(shape, -np.inf) for _ in range(3))
        self.free = np.zeros((fleet.workers, DRAWS, fleet.slots))  # when each slot becomes free, sorted
        self.booked = [0] * fleet.workers
        self.last_chosen = np.zeros(fleet.workers)
        self.penalty = np.zeros(fleet.workers)  # infinite for an expired worker

    def drawn(self, ages: Array) -> Array:
        """Return random service times, each longer than the given age."""
        first = np.minimum(np.searchsorted(self.services, ages, side="right"), SAMPLES - 1)
        return self.services[first + (self.rng.random(len(ages)) * (SAMPLES - first)).astype(int)]

    def choose(self, now: float, request: Request) -> int:
        arrives = now + sum(self.fleet.delay) / 2
        waits = np.maximum(self.free[:, :, :LOOK_AHEAD] - arrives, 0).mean(1).sum(1) + self.penalty
        equals = np.flatnonzero(waits <= waits.min() + 1e-3)
        worker = int(equals[self.last_chosen[equals].argmin()])
        self.last_chosen[worker] = now
        column = self.booked[worker] % KEPT
        self.booked[worker] += 1
        comes = now + self.rng.uniform(*self.fleet.delay, DRAWS)
        self.comes[worker, :, column] = comes
        self.begin(worker, np.arange(DRAWS), np.full(DRAWS, column), comes)
        return worker

    def begin(self, worker: int, draws: Array, columns: Array, not_before: Array) -> None:
        """Start a booking in the slot that becomes free first, in each of the histories `draws`."""
        free = self.free[worker]
        begins = np.maximum(free[draws, 0], not_before)
        ends = begins + self.drawn(np.zeros(len(draws))) / self.speeds[worker]
        self.begins[worker, draws, columns], self.ends[worker, draws, columns] = begins, ends
        free[draws, 0] = ends
        free[draws] = np.sort(free[draws], 1)

    def reported(self, now: float, worker: int, queue_length: int, polled_at: float | None) -> None:
        """Keep the histories that agree with the report, and draw new random numbers for their future."""
        then = (now if polled_at is None else polled_at) - sum(self.fleet.report_delay) / 2
        comes, begins, ends = self.comes[worker], self.begins[worker], self.ends[worker]
        missed = queue_length - ((ends > then) & (comes <= then)).sum(1)
        agree = np.flatnonzero(missed == 0)
        if len(agree) < LEAST_THAT_AGREE:  # rare: correct the histories that are nearest
            agree = np.argsort(np.abs(missed), kind="stable")[: 2 * LEAST_THAT_AGREE]
        kept = np.resize(self.rng.permutation(agree), DRAWS)
        for times in (comes, begins, ends):
            times[:] = times[kept]
        for draw in np.flatnonzero(missed[kept]):
            self.correct(comes[draw], begins[draw], ends[draw], int(missed[kept[draw]]), then)
        runs, waits = (ends > then) & (begins <= then), (ends > then) & (begins > then)
        had = (then - begins[runs]) * self.speeds[worker]
        ends[runs] = begins[runs] + self.drawn(had) / self.speeds[worker]
        slots = self.fleet.slots
        self.free[worker] = np.sort(np.sort(np.where(runs, ends, then), 1)[:, -slots:], 1)
        in_order = np.argsort(np.where(waits, comes, np.inf), 1)
        for position in range(int(waits.sum(1).max())):
            draws = np.flatnonzero(waits.sum(1) > position)
            columns = in_order[draws, position]
            self.begin(worker, draws, columns, np.maximum(comes[draws, columns], then))

    def correct(self, comes: Array, begins: Array, ends: Array, missed: int, then: float) -> None:
        """Correct a history that has `missed` requests too few at the worker, or too many if it is negative."""
        if missed < 0:
            inside = np.flatnonzero((ends > then) & (comes <= then))
            ends[inside[np.argsort(ends[inside])][:-missed]] = then
        else:
            columns = np.argsort(ends)[:missed]
            comes[columns] = begins[columns] = then - 1
            ends[columns] = then + 1

    def ended(self, now: float, request: Request) -> None: ...

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.EXPIRY:
            self.penalty[worker] = np.inf
