"""The best guess from heartbeats: about how far a rule gets that is told no more than ours are without polls.

It knows what no controller does: the slots, the true speeds, and how service times are distributed (but not that they
drift). For each worker it draws DRAWS histories that agree with all bookings and with the last report, and chooses the
worker where the next LOOK_AHEAD requests would wait least, on the average of them (a particle filter). It is no strict
bound: it weighs no later choices, and the histories are few. Needs numpy.
"""

from typing import Any

import numpy as np
from simulation import Fleet, Notice, Place, Request

DRAWS = 300
LOOK_AHEAD = 4
KEPT = 128  # bookings that are remembered of a worker; no more are with it at once, or it goes by the last ones
LEAST_THAT_AGREE = 4
SAMPLES = 100_001

Array = Any  # of numpy


class BestGuess:
    """A policy of the simulation. Times are in seconds, as there."""

    told_of_ends = False
    place = Place.STORE

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.speeds = fleet.speeds()
        self.rng = np.random.default_rng(fleet.seed)
        services = fleet.stream("services of the best guess")
        steady = [fleet.service_time(services, 0.0) for _ in range(SAMPLES)]
        self.services = np.sort(np.array(steady))
        shape = (fleet.workers, DRAWS, KEPT)
        # Of each booking in each history: when it comes to the worker, begins and ends.
        self.comes, self.begins, self.ends = (np.full(shape, -np.inf) for _ in range(3))
        self.free = np.zeros((fleet.workers, DRAWS, fleet.slots))  # when each slot falls free, the first one first
        self.booked = [0] * fleet.workers
        self.turns = np.zeros(fleet.workers)
        self.known = np.zeros(fleet.workers)  # infinite for one that is known to be dead

    def drawn(self, ages: Array) -> Array:
        """Service times of requests that have had so much of it."""
        first = np.minimum(np.searchsorted(self.services, ages, side="right"), SAMPLES - 1)
        return self.services[first + (self.rng.random(len(ages)) * (SAMPLES - first)).astype(int)]

    def choose(self, now: float, request: Request) -> int:
        arrives = now + sum(self.fleet.delay) / 2
        waits = np.maximum(self.free[:, :, :LOOK_AHEAD] - arrives, 0).mean(1).sum(1) + self.known
        equals = np.flatnonzero(waits <= waits.min() + 1e-3)
        worker = int(equals[self.turns[equals].argmin()])
        self.turns[worker] = now
        place = self.booked[worker] % KEPT
        self.booked[worker] += 1
        comes = now + self.rng.uniform(*self.fleet.delay, DRAWS)
        self.comes[worker, :, place] = comes
        self.begin(worker, np.arange(DRAWS), np.full(DRAWS, place), comes)
        return worker

    def begin(self, worker: int, draws: Array, places: Array, not_before: Array) -> None:
        """A booking gets the first slot that falls free."""
        free = self.free[worker]
        begins = np.maximum(free[draws, 0], not_before)
        ends = begins + self.drawn(np.zeros(len(draws))) / self.speeds[worker]
        self.begins[worker, draws, places], self.ends[worker, draws, places] = begins, ends
        free[draws, 0] = ends
        free[draws] = np.sort(free[draws], 1)

    def reported(self, now: float, worker: int, queue_length: int, asked_at: float | None) -> None:
        """Keep the histories that agree, and draw anew what is still to come in them."""
        then = (now if asked_at is None else asked_at) - sum(self.fleet.report_delay) / 2
        comes, begins, ends = self.comes[worker], self.begins[worker], self.ends[worker]
        missed = queue_length - ((ends > then) & (comes <= then)).sum(1)
        agree = np.flatnonzero(missed == 0)
        if len(agree) < LEAST_THAT_AGREE:  # rare; the nearest, put right
            agree = np.argsort(np.abs(missed), kind="stable")[: 2 * LEAST_THAT_AGREE]
        kept = np.resize(self.rng.permutation(agree), DRAWS)
        for times in (comes, begins, ends):
            times[:] = times[kept]
        for draw in np.flatnonzero(missed[kept]):
            self.put_right(comes[draw], begins[draw], ends[draw], int(missed[kept[draw]]), then)
        runs, waits = (ends > then) & (begins <= then), (ends > then) & (begins > then)
        had = (then - begins[runs]) * self.speeds[worker]
        ends[runs] = begins[runs] + self.drawn(had) / self.speeds[worker]
        slots = self.fleet.slots
        self.free[worker] = np.sort(np.sort(np.where(runs, ends, then), 1)[:, -slots:], 1)
        in_order = np.argsort(np.where(waits, comes, np.inf), 1)
        for turn in range(int(waits.sum(1).max())):
            draws = np.flatnonzero(waits.sum(1) > turn)
            places = in_order[draws, turn]
            self.begin(worker, draws, places, np.maximum(comes[draws, places], then))

    def put_right(self, comes: Array, begins: Array, ends: Array, missed: int, then: float) -> None:
        """So many more requests are with the worker than in this history, or fewer."""
        if missed < 0:
            inside = np.flatnonzero((ends > then) & (comes <= then))
            ends[inside[np.argsort(ends[inside])][:-missed]] = then
        else:
            places = np.argsort(ends)[:missed]
            comes[places] = begins[places] = then - 1
            ends[places] = then + 1

    def ended(self, now: float, request: Request) -> None: ...

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.LAPSE:
            self.known[worker] = np.inf
