"""A discrete-event simulation: a fleet of workers, arriving requests, and policies that choose a worker for each.

benchmarks/dispatch_quality.py uses it. Our own policy runs the reference model of the Lua scripts in tests/model, with
which tests compare the scripts. A worker runs `slots` requests at a time, in order of arrival. A request arrives at its
worker `delay` seconds after the choice.

Our replicas choose in Redis when their call arrives there. They share one state, so their number changes nothing in the
simulation. In practice it changes how many dispatches share a call. With `--by-way`, the request itself comes to a
replica after its delay. The replica chooses a worker, holds a lease, and forwards the request.
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
HEARTBEAT_EXPIRATION = 90.0  # the default of FastChat and of ours
FAILED_POLLS = 2  # failed polls in a row that deprioritise a worker
TRIES = 2  # attempts of a client that is refused
SWINGS = 2  # periods of drifting service times in a run
SERVICES = ("lognormal", "exponential", "constant", "pareto")

Range = tuple[float, float]


@dataclass(frozen=True)
class Fleet:
    """The parameters of a simulation. Times are in seconds. `load` is a share of the capacity of all slots."""

    workers: int = field(default=40, metadata={"help": "number of workers"})
    slots: int = field(default=8, metadata={"help": "requests that a worker runs at the same time"})
    fast_share: float = field(default=1 / 3, metadata={"help": "share of the workers that are fast"})
    fast_speed: float = field(default=2.0, metadata={"help": "speed of the fast workers, the others have speed 1"})
    load: float = 0.85
    requests: int = field(default=20_000, metadata={"help": "requests of a run, the first tenth is not measured"})
    bursts: bool = field(default=False, metadata={"help": "arrivals in bursts instead of a Poisson process"})
    arrivals: Path | None = field(
        default=None,
        metadata={"help": "replay a file of arrival times in seconds, one a line, scaled to the load"},
    )
    service: str = field(default="lognormal", metadata={"help": "distribution of service times"})
    service_mean: float = field(default=8.0, metadata={"help": "mean service time at speed 1"})
    service_sigma: float = field(default=1.0, metadata={"help": "standard deviation of the logarithm, for lognormal"})
    pareto_shape: float = field(default=2.0, metadata={"help": "tail index for pareto, above 1"})
    drift: float = field(default=0.0, metadata={"help": "share by which service times rise and fall, twice in a run"})
    heartbeat_interval: float = field(default=45.0, metadata={"help": "time between the heartbeats of a worker"})
    poll_interval: float = field(default=5.0, metadata={"help": "time between polls of a worker, in rows with polls"})
    booking_delay: float = field(default=0.2, metadata={"help": "our --booking-delay"})
    lease_share: float = field(default=0.5, metadata={"help": "share of clients with leases, in the mixed rows"})
    routers: int = field(default=8, metadata={"help": "number of routers of two choices, or of our replicas"})
    delay: Range = field(default=(0.02, 0.2), metadata={"help": "time from a choice to the arrival at the worker"})
    report_delay: Range = field(
        default=(0.001, 0.05), metadata={"help": "one-way delay of heartbeats, polls, releases"}
    )
    store_latency: Range = field(default=(0.0002, 0.001), metadata={"help": "one-way delay between replica and store"})
    forward_delay: Range = field(
        default=(0.0005, 0.002), metadata={"help": "time from a replica to the worker, in rows by way"}
    )
    deaths: int = field(default=0, metadata={"help": "workers that crash in the middle half of a run"})
    health_interval: float = field(default=10.0, metadata={"help": "time between health checks of a router"})
    retry_delay: float = field(default=0.5, metadata={"help": "delay before a refused client tries again"})
    seed: int = 0

    def stream(self, name: str) -> random.Random:
        """Return a random number generator for one purpose.

        Each purpose has its own generator, so that a change of one parameter does not change the other random numbers.
        The name is part of the seed, so renaming a purpose changes all figures.
        """
        return random.Random(f"{self.seed} {name}")

    def speeds(self) -> list[float]:
        """Return the speed of each worker. The fast workers are spread evenly."""
        fast = round(self.workers * self.fast_share)
        return [self.fast_speed if (i * fast) % self.workers < fast else 1.0 for i in range(self.workers)]

    def rate(self) -> float:
        """Return the arrival rate in requests a second."""
        return self.load * self.slots * sum(self.speeds()) / self.service_mean

    def all_requests(self) -> Iterator["Request"]:
        """Yield the requests of a run, which are the same under each policy."""
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
        """Yield arrival times of a Poisson process. With `bursts`, its rate jumps between 0.5 and 3 times the mean."""
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
        """Yield the arrival times of a file repeatedly, scaled to the rate."""
        assert self.arrivals
        times = sorted(float(line) for line in self.arrivals.read_text().split())
        stretch = (len(times) - 1) / (times[-1] - times[0]) / self.rate()
        gaps = [(after - before) * stretch for before, after in itertools.pairwise(times)]
        return itertools.accumulate(itertools.cycle(gaps))

    def service_time(self, rng: random.Random, progress: float) -> float:
        """Return the service time of a request in a slot of speed 1."""
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
    """One request and its state."""

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
        self.crashed = False
        self.last_heartbeat = 0.0
        self.failed_polls = 0

    @property
    def queue_length(self) -> int:
        """Return the number of running and waiting requests, as the worker reports it."""
        return len(self.running) + len(self.waiting)


@dataclass
class Result:
    """The result of a run. `waits` has the times from arrival to a slot, in seconds, in the order of their ends."""

    waits: list[float] = field(default_factory=list)
    refused: int = 0  # attempts that reached a crashed worker
    lost_refused: int = 0  # requests that were refused at each attempt
    lost_inside: int = 0  # requests that ran or waited at a worker when it crashed

    def measured(self) -> list[float]:
        """Return the sorted waits without the first tenth."""
        return sorted(self.waits[len(self.waits) // 10 :])


class Notice(Enum):
    """How a policy learns that a worker has crashed."""

    CRASH = auto()  # at the moment of the crash, for the ideal queue only
    EXPIRY = auto()  # the heartbeat has expired
    CHECK = auto()  # a health check of a router failed
    POLLS = auto()  # several polls in a row failed
    REFUSAL = auto()  # a client with a lease was refused and reported it


class ChosenAt(Enum):
    """Where a policy chooses the worker of a request."""

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


class Simulation:
    """One run of a fleet under a policy.

    first_heartbeats: time of each worker's first heartbeat. Random times by default.
    """

    def __init__(self, fleet: Fleet, policy: Policy, first_heartbeats: Sequence[float] = ()) -> None:
        self.fleet = fleet
        self.policy = policy
        self.first_heartbeats = first_heartbeats
        self.store_delays = fleet.stream("ways to the store")
        self.forward_delays = fleet.stream("forwarding")
        self.reports = fleet.stream("reports")
        self.crashes = fleet.stream("deaths")
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
        """Schedule heartbeats, polls and crashes."""
        fleet, phases = self.fleet, self.fleet.stream("phases")
        for i in range(fleet.workers):
            drawn = phases.uniform(0, fleet.heartbeat_interval)
            self.at(self.first_heartbeats[i] if self.first_heartbeats else drawn, self.send_heartbeat, i)
            if fleet.poll_interval:
                self.at(phases.uniform(0, fleet.poll_interval), self.poll, i)
        for i, worker in enumerate(self.crashes.sample(range(fleet.workers), fleet.deaths)):
            self.at(duration * (0.25 + 0.5 * (i + self.crashes.random()) / fleet.deaths), self.crash, worker)

    # Requests

    def arrive(self, now: float, request: Request) -> None:
        if self.policy.chosen_at is ChosenAt.CENTRAL_QUEUE:
            self.at(now + request.delay, self.queue, request)
        elif self.policy.chosen_at is ChosenAt.STORE:
            self.choose_in_store(now, request, request.delay)
        elif self.policy.chosen_at is ChosenAt.ON_THE_WAY:
            self.at(now + request.delay, self.forward, request)
        else:
            self.send(now, request, request.delay)

    def choose_in_store(self, now: float, request: Request, delay: float) -> None:
        call_delay, reply_delay = (self.store_delays.uniform(*self.fleet.store_latency) for _ in range(2))
        self.at(now + call_delay, self.send, request, reply_delay + delay)

    def forward(self, now: float, request: Request) -> None:
        self.choose_in_store(now, request, self.forward_delays.uniform(*self.fleet.forward_delay))

    def queue(self, now: float, request: Request) -> None:
        if not self.send(now, request, 0.0):
            self.held.append(request)

    def send(self, now: float, request: Request, delay: float) -> bool:
        request.worker = self.policy.choose(now, request)
        if request.worker < 0:
            return False
        self.at(now + delay, self.enter, request)
        return True

    def enter(self, now: float, request: Request) -> None:
        worker = self.workers[request.worker]
        if worker.crashed:
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
        if worker.crashed:
            return  # the request was lost with its worker
        worker.running.remove(request)
        self.left -= 1
        if worker.waiting:
            self.start(now, worker, worker.waiting.popleft())
        self.report_end(now, request)

    def report_end(self, now: float, request: Request, refused: bool = False) -> None:
        if self.policy.sees_ends:
            self.handle_end(now, request, refused)
        elif request.leased:
            self.at(now + self.reports.uniform(*self.fleet.report_delay), self.handle_end, request, refused)

    def handle_end(self, now: float, request: Request, refused: bool) -> None:
        self.policy.ended(now, request)
        if refused and request.leased:
            self.notice(now, request.worker, Notice.REFUSAL)
        while self.held and self.send(now, self.held[0], 0.0):
            self.held.popleft()

    # Heartbeats and polls

    def send_heartbeat(self, now: float, i: int) -> None:
        worker = self.workers[i]
        if worker.crashed:
            return
        worker.last_heartbeat = now
        self.at(now + self.reports.uniform(*self.fleet.report_delay), self.report, i, worker.queue_length, None)
        self.at(now + self.fleet.heartbeat_interval, self.send_heartbeat, i)

    def poll(self, now: float, i: int) -> None:
        self.at(now + self.reports.uniform(*self.fleet.report_delay), self.respond, i, now)
        self.at(now + self.fleet.poll_interval, self.poll, i)

    def respond(self, now: float, i: int, polled_at: float) -> None:
        worker = self.workers[i]
        received_at = now + self.reports.uniform(*self.fleet.report_delay)
        if not worker.crashed:
            self.at(received_at, self.report, i, worker.queue_length, polled_at)
            return
        worker.failed_polls += 1
        if worker.failed_polls == FAILED_POLLS:
            self.at(received_at, self.notice, i, Notice.POLLS)

    def report(self, now: float, i: int, queue_length: int, polled_at: float | None) -> None:
        self.policy.reported(now, i, queue_length, polled_at)

    # Crashes

    def crash(self, now: float, i: int) -> None:
        worker = self.workers[i]
        worker.crashed = True
        self.notice(now, i, Notice.CRASH)
        self.at(max(now, worker.last_heartbeat + HEARTBEAT_EXPIRATION), self.notice, i, Notice.EXPIRY)
        for router in range(self.fleet.routers):
            self.at(now + self.crashes.uniform(0, self.fleet.health_interval), self.notice, i, Notice.CHECK, router)
        for request in (*worker.running, *worker.waiting):
            self.left -= 1
            self.result.lost_inside += 1
            self.report_end(now, request)

    def notice(self, now: float, i: int, notice: Notice, router: int = 0) -> None:
        self.policy.noticed(now, i, notice, router)

    def refuse(self, now: float, request: Request) -> None:
        self.result.refused += 1
        forwarded = self.policy.chosen_at is ChosenAt.ON_THE_WAY
        if forwarded:
            self.handle_end(now, request, refused=True)  # the replica reports it before it chooses again
        else:
            self.report_end(now, request, refused=True)
        if request.tries < TRIES:
            # A new object, because handle_end() of the first attempt may still be scheduled.
            again = replace(request, tries=request.tries + 1)
            if forwarded:
                self.forward(now, again)
            else:
                self.at(now + self.fleet.retry_delay, self.arrive, again)
        else:
            self.left -= 1
            self.result.lost_refused += 1
