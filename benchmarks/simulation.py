"""A fleet of workers, requests that arrive, and policies that choose a worker: a simulation by discrete events.

Used by benchmarks/dispatch_quality.py. Our own policy goes by the very rules of controller/domain, to which the Lua is
tested equal; a worker serves `slots` requests at once, in order of arrival; between a choice and the worker's door, a
request is under way for `delay` seconds.
"""

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from controller.domain.fade import Fade
from controller.domain.load import Load

MS = 1000.0


@dataclass(frozen=True)
class Fleet:
    """What is simulated. Times are in seconds; load is of what all slots together can do."""

    workers: int = 40
    slots: int = 8
    fast_share: float = 1 / 3
    fast_speed: float = 2.0
    load: float = 0.85
    service_mean: float = 8.0
    service_sigma: float = 1.0  # of the logarithm
    drift: float = 0.0  # service times swing by this factor up and down, in the course of the run
    requests: int = 20_000
    delay: tuple[float, float] = (0.02, 0.2)
    heartbeat_interval: float = 45.0
    poll_interval: float = 0.0
    report_delay: tuple[float, float] = (0.001, 0.05)
    routers: int = 8
    lease_share: float = 0.0
    bursts: bool = False
    deaths: int = 0
    seed: int = 0

    def speeds(self) -> list[float]:
        """Of each worker; the fast ones are spread evenly."""
        fast = round(self.workers * self.fast_share)
        return [self.fast_speed if (i * fast) % self.workers < fast else 1.0 for i in range(self.workers)]

    def rate(self) -> float:
        """Requests a second."""
        return self.load * self.slots * sum(self.speeds()) / self.service_mean

    def arrivals(self, rng: random.Random) -> Iterator[float]:
        """When requests arrive: a Poisson process, or one whose rate jumps between a third and thrice the mean."""
        now, rate = 0.0, self.rate()
        factor, until = 1.0, 0.0
        while True:
            if self.bursts and now >= until:
                # Bursts of 2 s at 3 times the rate, and lulls long enough that the mean is the same.
                factor, until = (
                    (0.5, now + rng.expovariate(1 / 8)) if factor > 1 else (3.0, now + rng.expovariate(1 / 2))
                )
            now += rng.expovariate(rate * factor)
            yield now

    def service_time(self, rng: random.Random, progress: float) -> float:
        """How long a request takes in a slot of speed 1."""
        mu = math.log(self.service_mean) - self.service_sigma**2 / 2
        swing = 1 + self.drift * math.sin(2 * math.pi * 2 * progress) if self.drift else 1.0
        return rng.lognormvariate(mu, self.service_sigma) * swing

    def traffic(self, rng: random.Random) -> "deque[Request]":
        """All requests of a run, in order of arrival."""
        arrivals = self.arrivals(rng)
        lease_rng = random.Random(self.seed + 1)
        return deque(
            Request(
                arrived,
                self.service_time(rng, i / self.requests),
                rng.randrange(self.routers),
                lease_rng.random() < self.lease_share,
            )
            for i, arrived in enumerate(itertools.islice(arrivals, self.requests))
        )


class Worker:
    """A server with slots and a queue in front of them."""

    def __init__(self, slots: int, speed: float) -> None:
        self.slots = slots
        self.speed = speed
        self.running = 0
        self.waiting: deque[Request] = deque()
        self.dead = False

    @property
    def queue_length(self) -> int:
        """What it reports."""
        return self.running + len(self.waiting)


@dataclass(slots=True)
class Request:
    """One request on its way."""

    arrived: float
    service: float
    router: int
    leased: bool
    worker: int = -1
    booked_at: float = 0.0
    wait: float = math.nan
    tries: int = 0


class Policy(Protocol):
    """Chooses workers. All that it learns, it learns through these calls."""

    def choose(self, now: float, request: Request) -> int:
        """The worker for a request; -1 to hold it back until worker_free() asks for one."""

    def ended(self, now: float, request: Request) -> None:
        """A client says that its request has ended: those with leases, and all clients of policies that are told."""

    def reported(self, now: float, worker: int, queue_length: int, written_at: float, heartbeat: bool) -> None:
        """A heartbeat, or an answer to a poll."""


class Stock:
    """FastChat's shortest_queue: the first with the least count, which grows until a heartbeat sets it."""

    told_of_ends = False

    def __init__(self, speeds: Sequence[float], rng: random.Random) -> None:
        self.speeds = speeds
        self.rng = rng
        self.counts = [0] * len(speeds)

    def choose(self, now: float, request: Request) -> int:
        worker = min(range(len(self.speeds)), key=lambda i: self.counts[i] / self.speeds[i])
        self.counts[worker] += 1
        return worker

    def ended(self, now: float, request: Request) -> None: ...

    def reported(self, now: float, worker: int, queue_length: int, written_at: float, heartbeat: bool) -> None:
        self.counts[worker] = queue_length


class Lottery(Stock):
    """FastChat's lottery: at random, in proportion to speed."""

    def choose(self, now: float, request: Request) -> int:
        return self.rng.choices(range(len(self.speeds)), self.speeds)[0]


class RoundRobin(Stock):
    """One after the other."""

    def __init__(self, speeds: Sequence[float], rng: random.Random) -> None:
        super().__init__(speeds, rng)
        self.turns = itertools.cycle(range(len(speeds)))

    def choose(self, now: float, request: Request) -> int:
        return next(self.turns)


class TwoChoices:
    """Power of two choices by the requests that a router has under way itself, as routers in front of engines do it."""

    told_of_ends = True

    def __init__(self, speeds: Sequence[float], routers: int, rng: random.Random) -> None:
        self.speeds = speeds
        self.rng = rng
        self.counts = [[0] * len(speeds) for _ in range(routers)]

    def choose(self, now: float, request: Request) -> int:
        counts = self.counts[request.router]
        worker = min(
            self.rng.sample(range(len(self.speeds)), 2), key=lambda i: (counts[i] / self.speeds[i], self.rng.random())
        )
        counts[worker] += 1
        return worker

    def ended(self, now: float, request: Request) -> None:
        self.counts[request.router][request.worker] -= 1

    def reported(self, now: float, worker: int, queue_length: int, written_at: float, heartbeat: bool) -> None: ...


class Ideal:
    """One queue in front of all slots: a request is sent off when a slot is free, to the fastest that has one."""

    told_of_ends = True

    def __init__(self, speeds: Sequence[float], slots: int) -> None:
        self.order = sorted(range(len(speeds)), key=lambda i: -speeds[i])
        self.free = [slots] * len(speeds)

    def choose(self, now: float, request: Request) -> int:
        for worker in self.order:
            if self.free[worker]:
                self.free[worker] -= 1
                return worker
        return -1

    def ended(self, now: float, request: Request) -> None:
        self.free[request.worker] += 1

    def reported(self, now: float, worker: int, queue_length: int, written_at: float, heartbeat: bool) -> None: ...


class Ours:
    """This project's shortest_queue, by the rules in controller/domain: one view for any number of replicas."""

    told_of_ends = False

    def __init__(
        self, speeds: Sequence[float], capacity: int | None, decay: bool = True, unseen_for: float = 0.2
    ) -> None:
        self.loads = [Load(speed, capacity) for speed in speeds]
        self.fade = Fade()
        self.decay = decay
        self.unseen_for = unseen_for * MS
        self.turns = [0] * len(speeds)
        self.turn = 0

    def phase(self, now: float) -> float:
        return self.fade.phase_at(now * MS) if self.decay else 0.0

    def choose(self, now: float, request: Request) -> int:
        phase = self.phase(now)
        pace, loads, turns = self.fade.pace(1.0), self.loads, self.turns
        worker = min(range(len(loads)), key=lambda i: (loads[i].cost(phase, pace * loads[i].speed), turns[i]))
        load = loads[worker]
        load.book(now * MS, phase, pace * load.speed, request.leased)
        request.booked_at = now * MS
        self.turn += 1
        turns[worker] = self.turn
        return worker

    def ended(self, now: float, request: Request) -> None:
        if request.leased:
            self.loads[request.worker].release(request.booked_at, now * MS)

    def reported(self, now: float, worker: int, queue_length: int, written_at: float, heartbeat: bool) -> None:
        load = self.loads[worker]
        told = load.report(queue_length, written_at * MS, self.phase(now), self.unseen_for)
        if told is not None:
            self.fade.learn(now * MS, load.speed, *told)


class Simulation:
    """One run of a fleet under a policy: the waits before a slot of all requests, in seconds.

    first_heartbeats says when each worker sends its first one; it is drawn where that is not given.
    """

    def __init__(self, fleet: Fleet, policy: Policy, first_heartbeats: Sequence[float] = ()) -> None:
        self.fleet = fleet
        self.policy = policy
        self.first_heartbeats = first_heartbeats
        self.rng = random.Random(fleet.seed)
        self.workers = [Worker(fleet.slots, speed) for speed in fleet.speeds()]
        self.events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self.order = itertools.count()
        self.held: deque[Request] = deque()
        self.waits: list[float] = []
        self.left = fleet.requests

    def at(self, time: float, call: Callable[..., None], *arguments: object) -> None:
        heapq.heappush(self.events, (time, next(self.order), call, arguments))

    def run(self, progress: Callable[[float], None] = lambda _: None) -> list[float]:
        fleet, rng = self.fleet, self.rng
        requests = fleet.traffic(rng)
        for i in range(len(self.workers)):
            first = self.first_heartbeats[i] if self.first_heartbeats else rng.uniform(0, fleet.heartbeat_interval)
            self.at(first, self.beat, i, fleet.heartbeat_interval, True)
            if fleet.poll_interval:
                self.at(rng.uniform(0, fleet.poll_interval), self.beat, i, fleet.poll_interval, False)
        while self.left:
            if requests and (not self.events or requests[0].arrived <= self.events[0][0]):
                request = requests.popleft()
                self.arrive(request.arrived, request)
                if len(requests) % 1000 == 0:
                    progress(1 - len(requests) / fleet.requests)
            else:
                now, _, call, arguments = heapq.heappop(self.events)
                call(now, *arguments)
        return self.waits

    def arrive(self, now: float, request: Request) -> None:
        request.worker = self.policy.choose(now, request)
        if request.worker < 0:
            self.held.append(request)
        else:
            self.at(now + self.rng.uniform(*self.fleet.delay), self.enter, request)

    def enter(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        if worker.running < worker.slots:
            self.start(now, worker, request)
        else:
            worker.waiting.append(request)

    def start(self, now: float, worker: Worker, request: Request) -> None:
        worker.running += 1
        request.wait = now - request.arrived
        self.waits.append(request.wait)
        self.at(now + request.service / worker.speed, self.end, request)

    def end(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        worker.running -= 1
        self.left -= 1
        if worker.waiting:
            self.start(now, worker, worker.waiting.popleft())
        if self.policy.told_of_ends:
            self.tell(now, request)
        elif request.leased:
            self.at(now + self.rng.uniform(*self.fleet.report_delay), self.tell, request)

    def tell(self, now: float, request: Request) -> None:
        self.policy.ended(now, request)
        if self.held:
            self.arrive(now, self.held.popleft())

    def beat(self, now: float, worker: int, interval: float, heartbeat: bool) -> None:
        queue_length = self.workers[worker].queue_length
        self.at(now + self.rng.uniform(*self.fleet.report_delay), self.report, worker, queue_length, now, heartbeat)
        self.at(now + interval, self.beat, worker, interval, heartbeat)

    def report(self, now: float, worker: int, queue_length: int, written_at: float, heartbeat: bool) -> None:
        self.policy.reported(now, worker, queue_length, written_at, heartbeat)
