"""A fleet of workers, requests that arrive, and policies that choose a worker: a simulation by discrete events.

Used by benchmarks/dispatch_quality.py. Our own policy goes by the reference model of the Lua scripts in
tests/model; a worker serves `slots` requests at once, in order of arrival; between a choice and the worker's door, a
request is under way for `delay` seconds. Replicas of ours choose in the store, when their call arrives there: they see
one state, so their number changes nothing in the simulation. In life it changes how many dispatches share a call.
"""

import heapq
import itertools
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from pathlib import Path
from typing import Protocol

sys.path.append(str(Path(__file__).parents[1]))  # the reference model is in no installed package

from tests.model.decay import DecayClock
from tests.model.load import Load
from tests.model.shortest_queue import Indexed, least_cost

MS = 1000.0
HEARTBEAT_EXPIRATION = 90.0  # FastChat's, and ours
FAILED_POLLS = 2  # in a row, and a worker comes behind all others
TRIES = 2  # of a client that is refused
SWINGS = 2  # of drifting service times, in the course of a run
SERVICES = ("lognormal", "exponential", "constant", "pareto")

Range = tuple[float, float]


@dataclass(frozen=True)
class Fleet:
    """What is simulated. Times are in seconds; load is of what all slots together can do."""

    workers: int = field(default=40, metadata={"help": "how many there are"})
    slots: int = field(default=8, metadata={"help": "requests that a worker runs at once"})
    fast_share: float = field(default=1 / 3, metadata={"help": "share of the workers that are fast"})
    fast_speed: float = field(default=2.0, metadata={"help": "speed of the fast ones; that of the others is 1"})
    load: float = 0.85
    requests: int = field(default=20_000, metadata={"help": "in one run; the first tenth is not measured"})
    bursts: bool = field(default=False, metadata={"help": "arrivals in bursts, not as a Poisson process"})
    arrivals: Path | None = field(
        default=None,
        metadata={"help": "replay: a file of arrival times in seconds, one in a line, stretched to the load"},
    )
    service: str = field(default="lognormal", metadata={"help": "distribution of service times"})
    service_mean: float = field(default=8.0, metadata={"help": "mean service time at speed 1"})
    service_sigma: float = field(default=1.0, metadata={"help": "of the logarithm, for lognormal"})
    pareto_shape: float = field(default=2.0, metadata={"help": "tail index, for pareto; above 1"})
    drift: float = field(
        default=0.0, metadata={"help": "service times swing by this share up and down, twice in a run"}
    )
    heartbeat_interval: float = field(default=45.0, metadata={"help": "between a worker's heartbeats"})
    poll_interval: float = field(
        default=5.0, metadata={"help": "between our polls of a worker, in the rows with polls"}
    )
    booking_delay: float = field(default=0.2, metadata={"help": "our --booking-delay"})
    lease_share: float = field(default=0.5, metadata={"help": "share of the clients that lease, in the mixed rows"})
    routers: int = field(default=8, metadata={"help": "routers of two choices; replicas of ours"})
    delay: Range = field(default=(0.02, 0.2), metadata={"help": "from a choice to the worker"})
    report_delay: Range = field(default=(0.001, 0.05), metadata={"help": "of a heartbeat, a poll's way, a release"})
    store_latency: Range = field(default=(0.0002, 0.001), metadata={"help": "from a replica to the store, one way"})
    deaths: int = field(default=0, metadata={"help": "workers that die, in the middle half of a run"})
    health_interval: float = field(default=10.0, metadata={"help": "between health checks of the two choices' routers"})
    retry_delay: float = field(default=0.5, metadata={"help": "after which a refused client tries once more"})
    seed: int = 0

    def stream(self, name: str) -> random.Random:
        """Random numbers for one purpose, so that a change of one thing leaves the others as they were."""
        return random.Random(f"{self.seed} {name}")

    def speeds(self) -> list[float]:
        """Of each worker; the fast ones are spread evenly."""
        fast = round(self.workers * self.fast_share)
        return [self.fast_speed if (i * fast) % self.workers < fast else 1.0 for i in range(self.workers)]

    def rate(self) -> float:
        """Requests a second."""
        return self.load * self.slots * sum(self.speeds()) / self.service_mean

    def all_requests(self) -> Iterator["Request"]:
        """What arrives in one run; the same under every policy."""
        times = self.replayed() if self.arrivals else self.drawn()
        services, delays = self.stream("services"), self.stream("delays")
        routers, leases = self.stream("routers"), self.stream("leases")
        for i, arrived in enumerate(itertools.islice(times, self.requests)):
            yield Request(
                arrived,
                self.service_time(services, i / self.requests),
                delays.uniform(*self.delay),
                routers.randrange(self.routers),
                leases.random() < self.lease_share,
            )

    def drawn(self) -> Iterator[float]:
        """When requests arrive: a Poisson process, or one whose rate jumps between half and three times the mean."""
        rng, rate = self.stream("arrivals"), self.rate()
        now, factor, until = 0.0, 1.0, 0.0
        while True:
            if self.bursts and now >= until:
                # Bursts of 2 s at 3 times the rate, and lulls long enough that the mean is the same.
                factor, until = (
                    (0.5, now + rng.expovariate(1 / 8)) if factor > 1 else (3.0, now + rng.expovariate(1 / 2))
                )
            now += rng.expovariate(rate * factor)
            yield now

    def replayed(self) -> Iterator[float]:
        """The arrivals of a file at the rate that is asked for, over and over."""
        assert self.arrivals
        times = sorted(float(line) for line in self.arrivals.read_text().split())
        stretch = (len(times) - 1) / (times[-1] - times[0]) / self.rate()
        gaps = [(after - before) * stretch for before, after in itertools.pairwise(times)]
        return itertools.accumulate(itertools.cycle(gaps))

    def service_time(self, rng: random.Random, progress: float) -> float:
        """How long a request takes in a slot of speed 1."""
        mean = self.service_mean * (1 + self.drift * math.sin(2 * math.pi * SWINGS * progress))
        if self.service == "exponential":
            return rng.expovariate(1 / mean)
        if self.service == "pareto":
            return rng.paretovariate(self.pareto_shape) * mean * (1 - 1 / self.pareto_shape)
        if self.service == "constant":
            return mean
        return rng.lognormvariate(math.log(mean) - self.service_sigma**2 / 2, self.service_sigma)


@dataclass(slots=True, eq=False)
class Request:
    """One request on its way."""

    arrived: float
    service: float
    delay: float
    router: int
    leased: bool
    worker: int = -1
    booked_at: float = 0.0
    tries: int = 1


class Worker:
    """A server with slots and a queue in front of them."""

    def __init__(self, slots: int, speed: float) -> None:
        self.slots = slots
        self.speed = speed
        self.running: list[Request] = []
        self.waiting: deque[Request] = deque()
        self.dead = False
        self.last_heartbeat = 0.0
        self.failed_polls = 0

    @property
    def queue_length(self) -> int:
        """What it reports."""
        return len(self.running) + len(self.waiting)


@dataclass
class Result:
    """What came of one run. Waits are from arrival to a slot, in seconds, in the order in which they ended."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0  # sent to a dead worker, second tries included
    lost_at_the_door: int = 0  # refused at each try
    lost_inside: int = 0  # with a worker when it died

    def measured(self) -> list[float]:
        """The waits but for the first tenth, sorted."""
        return sorted(self.waits[len(self.waits) // 10 :])


class Notice(Enum):
    """How it becomes known that a worker is dead."""

    DEATH = auto()  # the moment itself, which none but an ideal queue knows of
    LAPSE = auto()  # its last heartbeat is too long ago
    CHECK = auto()  # a router's health check failed
    POLLS = auto()  # polls failed in a row
    REFUSAL = auto()  # a client that leases was refused, and reported it


class Place(Enum):
    """Where a worker is chosen."""

    ROUTER = auto()
    STORE = auto()
    DOOR = auto()  # of all workers at once


class Policy(Protocol):
    """Chooses workers. All that it learns, it learns through these calls."""

    told_of_ends: bool  # of all requests, at once
    place: Place

    def choose(self, now: float, request: Request) -> int:
        """The worker for a request; at the door, -1 to hold it back until one is free."""

    def ended(self, now: float, request: Request) -> None:
        """A client says that its request has ended: those with leases, and all clients of policies that are told."""

    def reported(self, now: float, worker: int, queue_length: int, asked_at: float | None) -> None:
        """A heartbeat, or the answer to a poll, which was sent at `asked_at`."""

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        """Something tells that a worker is dead; router says to whom, where it is told to one."""


class Stock:
    """FastChat's shortest_queue: the first with the least count, which grows until a heartbeat sets it."""

    told_of_ends = False
    place = Place.ROUTER

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

    def reported(self, now: float, worker: int, queue_length: int, asked_at: float | None) -> None:
        self.counts[worker] = queue_length

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.LAPSE:
            self.known.remove(worker)


class Lottery(Stock):
    """FastChat's lottery: at random, in proportion to speed."""

    def choose(self, now: float, request: Request) -> int:
        return self.rng.choices(self.known, [self.speeds[i] for i in self.known])[0]


class RoundRobin(Stock):
    """One after the other. Nobody tells it of anything, deaths included."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.turns = itertools.cycle(self.known)

    def choose(self, now: float, request: Request) -> int:
        return next(self.turns)

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None: ...


class TwoChoices:
    """Power of two choices by the requests that a router has under way itself, as routers in front of engines do it.

    Each router checks the health of each worker by itself.
    """

    told_of_ends = True
    place = Place.ROUTER

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

    def reported(self, now: float, worker: int, queue_length: int, asked_at: float | None) -> None: ...

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.CHECK:
            self.known[router].remove(worker)


class Ideal:
    """One queue in front of all slots: a request that has come there begins in the fastest that is free.

    It has its way to the workers behind it, or slots would stand free while their next requests are under way.
    """

    told_of_ends = True
    place = Place.DOOR

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

    def reported(self, now: float, worker: int, queue_length: int, asked_at: float | None) -> None: ...

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.DEATH:
            self.order.remove(worker)


class Ours:
    """This project's shortest_queue, by the reference model in tests/model: one view for any number of replicas."""

    told_of_ends = False
    place = Place.STORE

    def __init__(self, fleet: Fleet, capacity_told: bool = False, decay: bool = True) -> None:
        capacity = fleet.slots if capacity_told else None
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

    def reported(self, now: float, worker: int, queue_length: int, asked_at: float | None) -> None:
        load = self.workers[worker].load
        written_at = now if asked_at is None else asked_at  # FastChat's heartbeats carry no time
        learned = load.report(queue_length, written_at * MS, now * MS, self.reading(now), self.in_flight_window)
        if learned is not None:
            self.clock.learn(now * MS, load.speed, *learned)
        self.index(self.workers[worker], now)

    def noticed(self, now: float, worker: int, notice: Notice, router: int) -> None:
        if notice is Notice.LAPSE:
            del self.known[worker]
        elif notice in (Notice.POLLS, Notice.REFUSAL):
            self.workers[worker].load.failing = True
            self.index(self.workers[worker], now)


class Simulation:
    """One run of a fleet under a policy.

    first_heartbeats says when each worker sends its first one; it is drawn where that is not given.
    """

    def __init__(self, fleet: Fleet, policy: Policy, first_heartbeats: Sequence[float] = ()) -> None:
        self.fleet = fleet
        self.policy = policy
        self.first_heartbeats = first_heartbeats
        self.ways = fleet.stream("ways to the store")
        self.reports = fleet.stream("reports")
        self.deaths = fleet.stream("deaths")
        self.workers = [Worker(fleet.slots, speed) for speed in fleet.speeds()]
        self.events: list[tuple[float, int, Callable[..., object], tuple[object, ...]]] = []
        self.order = itertools.count()
        self.held: deque[Request] = deque()
        self.result = Result()
        self.left = fleet.requests

    def at(self, time: float, call: Callable[..., object], *arguments: object) -> None:
        heapq.heappush(self.events, (time, next(self.order), call, arguments))

    def run(self) -> Result:
        requests = deque(self.fleet.all_requests())
        self.schedule(requests[-1].arrived)
        while self.left:
            if requests and (not self.events or requests[0].arrived <= self.events[0][0]):
                request = requests.popleft()
                self.arrive(request.arrived, request)
            else:
                now, _, call, arguments = heapq.heappop(self.events)
                call(now, *arguments)
        return self.result

    def schedule(self, duration: float) -> None:
        """Heartbeats, polls and deaths."""
        fleet, phases = self.fleet, self.fleet.stream("phases")
        for i in range(fleet.workers):
            drawn = phases.uniform(0, fleet.heartbeat_interval)
            self.at(self.first_heartbeats[i] if self.first_heartbeats else drawn, self.beat, i)
            if fleet.poll_interval:
                self.at(phases.uniform(0, fleet.poll_interval), self.poll, i)
        for i, worker in enumerate(self.deaths.sample(range(fleet.workers), fleet.deaths)):
            self.at(duration * (0.25 + 0.5 * (i + self.deaths.random()) / fleet.deaths), self.die, worker)

    # Requests

    def arrive(self, now: float, request: Request) -> None:
        if self.policy.place is Place.DOOR:
            self.at(now + request.delay, self.queue, request)
        elif self.policy.place is Place.STORE:
            way, way_back = (self.ways.uniform(*self.fleet.store_latency) for _ in range(2))
            self.at(now + way, self.send, request, way_back + request.delay)
        else:
            self.send(now, request, request.delay)

    def queue(self, now: float, request: Request) -> None:
        if not self.send(now, request, 0.0):
            self.held.append(request)

    def send(self, now: float, request: Request, way: float) -> bool:
        request.worker = self.policy.choose(now, request)
        if request.worker < 0:
            return False
        self.at(now + way, self.enter, request)
        return True

    def enter(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        if worker.dead:
            self.refuse(now, request)
        elif len(worker.running) < worker.slots:
            self.start(now, worker, request)
        else:
            worker.waiting.append(request)

    def start(self, now: float, worker: Worker, request: Request) -> None:
        worker.running.append(request)
        self.result.waits.append(now - request.arrived)
        self.at(now + request.service / worker.speed, self.end, request)

    def end(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        if worker.dead:
            return  # it was lost with its worker
        worker.running.remove(request)
        self.left -= 1
        if worker.waiting:
            self.start(now, worker, worker.waiting.popleft())
        self.leave(now, request)

    def leave(self, now: float, request: Request, refused: bool = False) -> None:
        if self.policy.told_of_ends:
            self.tell(now, request, refused)
        elif request.leased:
            self.at(now + self.reports.uniform(*self.fleet.report_delay), self.tell, request, refused)

    def tell(self, now: float, request: Request, refused: bool) -> None:
        self.policy.ended(now, request)
        if refused and request.leased:
            self.notice(now, request.worker, Notice.REFUSAL)
        while self.held and self.send(now, self.held[0], 0.0):
            self.held.popleft()

    # Heartbeats and polls

    def beat(self, now: float, i: int) -> None:
        worker = self.workers[i]
        if worker.dead:
            return
        worker.last_heartbeat = now
        self.at(now + self.reports.uniform(*self.fleet.report_delay), self.report, i, worker.queue_length, None)
        self.at(now + self.fleet.heartbeat_interval, self.beat, i)

    def poll(self, now: float, i: int) -> None:
        self.at(now + self.reports.uniform(*self.fleet.report_delay), self.answer, i, now)
        self.at(now + self.fleet.poll_interval, self.poll, i)

    def answer(self, now: float, i: int, asked_at: float) -> None:
        worker = self.workers[i]
        back_at = now + self.reports.uniform(*self.fleet.report_delay)
        if not worker.dead:
            self.at(back_at, self.report, i, worker.queue_length, asked_at)
            return
        worker.failed_polls += 1
        if worker.failed_polls == FAILED_POLLS:
            self.at(back_at, self.notice, i, Notice.POLLS)

    def report(self, now: float, i: int, queue_length: int, asked_at: float | None) -> None:
        self.policy.reported(now, i, queue_length, asked_at)

    # Deaths

    def die(self, now: float, i: int) -> None:
        worker = self.workers[i]
        worker.dead = True
        self.notice(now, i, Notice.DEATH)
        self.at(max(now, worker.last_heartbeat + HEARTBEAT_EXPIRATION), self.notice, i, Notice.LAPSE)
        for router in range(self.fleet.routers):
            self.at(now + self.deaths.uniform(0, self.fleet.health_interval), self.notice, i, Notice.CHECK, router)
        for request in (*worker.running, *worker.waiting):
            self.left -= 1
            self.result.lost_inside += 1
            self.leave(now, request)

    def notice(self, now: float, i: int, notice: Notice, router: int = 0) -> None:
        self.policy.noticed(now, i, notice, router)

    def refuse(self, now: float, request: Request) -> None:
        self.result.refused += 1
        self.leave(now, request, refused=True)
        if request.tries < TRIES:
            # Another object: the word of the first try is under way yet.
            self.at(now + self.fleet.retry_delay, self.arrive, replace(request, tries=request.tries + 1))
        else:
            self.left -= 1
            self.result.lost_at_the_door += 1
