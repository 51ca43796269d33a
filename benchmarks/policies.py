"""The policies of a simulation: ours, FastChat's, and others to compare with.

Our own policy runs the reference model of the Lua scripts in tests/model, with which tests compare the scripts.
"""

import itertools
import sys
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

from simulated_fleet import Fleet, Request

sys.path.append(str(Path(__file__).parents[1]))  # the reference model is in no installed package

from tests.model.decay import DecayClock
from tests.model.load import Load
from tests.model.shortest_queue import Indexed, least_cost

MS = 1000.0


class Notice(Enum):
    """The way in which a policy learns that a worker has crashed."""

    CRASH = auto()  # at the moment of the crash, for the ideal queue only
    EXPIRY = auto()  # the heartbeat has expired
    CHECK = auto()  # a health check of a router failed
    POLLS = auto()  # several polls in a row failed
    REFUSAL = auto()  # a client with a lease was refused and reported it


class ChosenAt(Enum):
    """The place at which a policy chooses the worker of a request."""

    ROUTER = auto()
    STORE = auto()
    ON_THE_WAY = auto()  # a replica chooses in the store when the request itself arrives, and forwards it
    CENTRAL_QUEUE = auto()  # one queue in front of all workers


class Policy(Protocol):
    """Chooses workers. These calls are its only sources of information."""

    sees_ends: bool  # ended() is called for all requests, without delay
    chosen_at: ChosenAt

    def choose(self, now: float, request: Request) -> int:
        """Return the worker for a request. A central queue returns -1 to hold the request until a slot is free."""

    def ended(self, now: float, request: Request) -> None:
        """Handle the end of a request. Without `sees_ends`, only requests with leases report their end."""

    def reported(self, now: float, worker: int, queue_length: int, polled_at: float | None) -> None:
        """Handle a heartbeat, or the response to a poll that was sent at `polled_at`."""

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        """Handle a sign that a worker has crashed. For Notice.CHECK, only `router` has seen it."""


class Stock:
    """FastChat's shortest_queue: the first worker with the lowest count. A heartbeat replaces the worker's count."""

    sees_ends = False
    chosen_at = ChosenAt.ROUTER

    def __init__(self, fleet: Fleet) -> None:
        self.speeds = fleet.speeds()
        self.rng = fleet.stream("policy")
        self.counts = [0] * fleet.workers
        self.known = list(range(fleet.workers))

    def choose(self, now: float, request: Request) -> int:
        worker = min(self.known, key=lambda i: self.counts[i] / self.speeds[i])
        self.counts[worker] += 1
        return worker

    def ended(self, now: float, request: Request) -> None: ...

    def reported(self, now: float, worker: int, queue_length: int, polled_at: float | None) -> None:
        self.counts[worker] = queue_length

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.EXPIRY:
            self.known.remove(worker)


class Lottery(Stock):
    """FastChat's lottery: a random worker, with odds proportional to speed."""

    def choose(self, now: float, request: Request) -> int:
        return self.rng.choices(self.known, [self.speeds[i] for i in self.known])[0]


class RoundRobin(Stock):
    """One worker after the other, without regard to reports and crashes."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.cycle = itertools.cycle(self.known)

    def choose(self, now: float, request: Request) -> int:
        return next(self.cycle)

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None: ...


class TwoChoices:
    """Power of two choices: the less loaded of two random workers. Many routers for LLM engines do this.

    Each router counts only its own running requests, and checks the health of each worker itself.
    """

    sees_ends = True
    chosen_at = ChosenAt.ROUTER

    def __init__(self, fleet: Fleet) -> None:
        self.speeds = fleet.speeds()
        self.rng = fleet.stream("policy")
        self.counts = [[0] * fleet.workers for _ in range(fleet.routers)]
        self.known = [list(range(fleet.workers)) for _ in range(fleet.routers)]

    def choose(self, now: float, request: Request) -> int:
        counts = self.counts[request.router]
        drawn = self.rng.sample(self.known[request.router], 2)
        worker = min(drawn, key=lambda i: (counts[i] / self.speeds[i], self.rng.random()))
        counts[worker] += 1
        return worker

    def ended(self, now: float, request: Request) -> None:
        self.counts[request.router][request.worker] -= 1

    def reported(self, now: float, worker: int, queue_length: int, polled_at: float | None) -> None: ...

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.CHECK:
            self.known[router].remove(worker)


class Ideal:
    """One queue in front of all slots. A request that arrives there starts in the fastest free slot.

    Requests have the delay to the workers before the queue. Otherwise slots would be idle during this delay.
    """

    sees_ends = True
    chosen_at = ChosenAt.CENTRAL_QUEUE

    def __init__(self, fleet: Fleet) -> None:
        speeds = fleet.speeds()
        self.order = sorted(range(fleet.workers), key=lambda i: -speeds[i])
        self.free = [fleet.slots] * fleet.workers

    def choose(self, now: float, request: Request) -> int:
        for worker in self.order:
            if self.free[worker]:
                self.free[worker] -= 1
                return worker
        return -1

    def ended(self, now: float, request: Request) -> None:
        self.free[request.worker] += 1

    def reported(self, now: float, worker: int, queue_length: int, polled_at: float | None) -> None: ...

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.CRASH:
            self.order.remove(worker)


class Ours:
    """This project's shortest_queue, by the reference model in tests/model. All replicas share one state."""

    sees_ends = False
    chosen_at = ChosenAt.STORE

    def __init__(self, fleet: Fleet, capacity_reported: bool = False, decay: bool = True) -> None:
        capacity = fleet.slots if capacity_reported else None
        self.workers = {i: Indexed(Load(speed, capacity), i, i) for i, speed in enumerate(fleet.speeds())}
        self.known = dict(self.workers)
        self.numbers = {id(worker): i for i, worker in self.workers.items()}
        self.clock = DecayClock()
        self.decay = decay
        self.in_flight_window = fleet.booking_delay * MS
        self.seq = fleet.workers

    def reading(self, now: float) -> float:
        return self.clock.reading_at(now * MS) if self.decay else 0.0

    def index(self, worker: Indexed, now: float) -> None:
        load = worker.load
        worker.score = load.index_cost(self.reading(now), self.clock.rate(load.speed), self.decay)
        worker.decay_key = load.decay_key()

    def choose(self, now: float, request: Request) -> int:
        reading, rate = self.reading(now), self.clock.rate(1.0)
        worker = least_cost(self.known.values(), leased=request.leased, decays=self.decay, reading=reading, rate=rate)
        assert worker is not None
        load = worker.load
        load.book(now * MS, reading, rate * load.speed, request.leased)
        request.booked_at = now * MS
        self.seq += 1
        worker.seq = self.seq
        if request.leased or not self.decay:
            worker.index_seq = self.seq
        if request.leased or not self.decay or load.capacity is not None:
            self.index(worker, now)
        worker.decay_key = load.decay_key()
        return self.numbers[id(worker)]

    def ended(self, now: float, request: Request) -> None:
        if request.leased:
            worker = self.workers[request.worker]
            worker.load.release(request.booked_at, now * MS, expired=False)
            self.index(worker, now)

    def reported(self, now: float, worker: int, queue_length: int, polled_at: float | None) -> None:
        load = self.workers[worker].load
        written_at = now if polled_at is None else polled_at  # FastChat's heartbeats carry no time
        observed = load.report(queue_length, written_at * MS, now * MS, self.reading(now), self.in_flight_window)
        if observed is not None:
            self.clock.learn(now * MS, load.speed, *observed)
        self.index(self.workers[worker], now)

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.EXPIRY:
            del self.known[worker]
        elif notice in (Notice.POLLS, Notice.REFUSAL):
            self.workers[worker].load.failing = True
            self.index(self.workers[worker], now)


class OursByWay(Ours):
    """Ours with `--by-way`: requests pass through a replica, which holds a lease from the choice to the end."""

    chosen_at = ChosenAt.ON_THE_WAY
