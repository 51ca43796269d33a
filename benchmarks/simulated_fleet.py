"""The parameters of a simulation, and the requests that arrive in it."""

import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
