"""A discrete-event simulation of engines with a prefix cache, and the policies that benchmarks/affinity.py compares.

benchmarks/simulation.py has other workers: their requests differ in their time only, and each slot works for itself.
Here, the time of a request depends on what the cache of its engine holds, and prompts are processed in turn.
"""

import heapq
import itertools
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Final

from affinity_workloads import WORKLOADS, Parameters, Request, text_of

from controller.domain.affinity import prefix_keys
from controller.domain.cost import cost
from tests.model.affinity import MAX_REMEMBERED, highest_cost, prefer

BLOCK: Final = 64  # tokens of a block of the cache


class Cache:
    """The blocks of an engine, the least recently used ones first."""

    def __init__(self, tokens: int) -> None:
        self.size = tokens // BLOCK
        self.blocks: OrderedDict[tuple[str, int], None] = OrderedDict()

    def take(self, segments: Sequence[tuple[str, int]]) -> int:
        """Return how many tokens from the beginning on are there. Afterwards, all of them are."""
        blocks = list(_blocks(segments))
        found = 0
        while found < len(blocks) and blocks[found] in self.blocks:
            found += 1
        for block in reversed(blocks):  # the beginning is dropped last
            self.blocks[block] = None
            self.blocks.move_to_end(block)
        while len(self.blocks) > self.size:
            self.blocks.popitem(last=False)
        return found * BLOCK


def _blocks(segments: Sequence[tuple[str, int]]) -> Iterator[tuple[str, int]]:
    """Yield the whole blocks of a prompt: the segment in which a block ends, and where. Segments have one place."""
    position, end = 0, BLOCK
    for name, length in segments:
        position += length
        while end <= position:
            yield name, end
            end += BLOCK


@dataclass
class Engine:
    slots: int
    cache: Cache
    active: int = 0
    booked: int = 0
    prefill_until: float = 0.0
    waiting: deque[Request] = field(default_factory=deque)


# Returns the number of the worker for a request.
Policy = Callable[["Simulation", Request], int]


def round_robin(simulation: "Simulation", _: Request) -> int:
    return next(simulation.turns) % len(simulation.engines)


def least_requests(simulation: "Simulation", _: Request) -> int:
    return simulation.best()


def unbounded(simulation: "Simulation", request: Request) -> int:
    """Always the worker that is remembered for the longest beginning."""
    return next((workers[0] for workers in simulation.remembered_workers(request)), simulation.best())


def bounded_by_mean(simulation: "Simulation", request: Request) -> int:
    """The worker that is remembered for the longest beginning, if it costs at most 1.25 times the mean and 2 more."""
    costs = [simulation.cost(i) for i in range(len(simulation.engines))]
    for workers in simulation.remembered_workers(request):
        if costs[workers[0]] <= 1.25 * fmean(costs) + 2:
            return workers[0]
    return simulation.best()


def ours(simulation: "Simulation", request: Request) -> int:
    best = simulation.best()

    def is_overloaded(name: str, number: int) -> bool:
        highest = highest_cost(simulation.cost(best), simulation.cost(int(name)), 1.0, simulation.capacity, number)
        return simulation.cost(int(name)) > highest

    chosen, _, _ = prefer(
        [tuple(map(str, workers)) for workers in simulation.remembered_workers(request)],
        lambda _: True,
        lambda name: simulation.cost(int(name)),
        is_overloaded,
    )
    return best if chosen is None else int(chosen)


POLICIES: Final[dict[str, Policy]] = {
    "round robin": round_robin,
    "least requests": least_requests,
    "unbounded": unbounded,
    "1.25 mean + 2": bounded_by_mean,
    "ours": ours,
}


@dataclass
class Result:
    """waits: seconds to the first token. processed, tokens: of all prompts."""

    waits: list[float] = field(default_factory=list)
    processed: int = 0
    tokens: int = 0


class Simulation:
    """One run of a workload under a policy."""

    def __init__(self, parameters: Parameters, policy: Policy) -> None:
        self.parameters = parameters
        self.policy = policy
        self.workers_of_key = MAX_REMEMBERED if policy is ours else 1
        self.capacity = parameters.slots if parameters.reports_capacity else None
        self.engines = [Engine(parameters.slots, Cache(parameters.cache)) for _ in range(parameters.workers)]
        self.remembered: dict[str, tuple[int, ...]] = {}
        self.turns = itertools.count()
        self.last_used = [0] * parameters.workers
        self.order = itertools.count(1)
        self.events: list[tuple[float, int, Callable[..., None], Request]] = []
        self.result = Result()

    def at(self, time: float, call: Callable[[float, Request], None], request: Request) -> None:
        heapq.heappush(self.events, (time, next(self.order), call, request))

    def run(self) -> Result:
        parameters = self.parameters
        incoming = WORKLOADS[parameters.workload](parameters, random.Random(f"{parameters.seed} requests"))
        upcoming = next(incoming)
        while len(self.result.waits) < parameters.requests:
            if not self.events or upcoming.arrived <= self.events[0][0]:
                self.arrive(upcoming.arrived, upcoming)
                upcoming = next(incoming)
            else:
                now, _, call, request = heapq.heappop(self.events)
                call(now, request)
        return self.result

    def cost(self, i: int) -> float:
        booked = self.engines[i].booked
        return cost(booked, 1.0, booked, self.capacity, failing=False)

    def best(self) -> int:
        return min(range(len(self.engines)), key=lambda i: (self.engines[i].booked, self.last_used[i]))

    def remembered_workers(self, request: Request) -> Iterator[tuple[int, ...]]:
        """Yield the workers of each key that is remembered, the key of the longest beginning first."""
        for key in request.keys:
            if key in self.remembered:
                yield self.remembered[key]

    def arrive(self, now: float, request: Request) -> None:
        request.keys = prefix_keys("m", [text_of(segment) for segment in request.segments])
        request.worker = self.policy(self, request)
        for key in request.keys:
            workers = self.remembered.get(key, ())
            if request.worker not in workers:
                self.remembered[key] = (request.worker, *workers)[: self.workers_of_key]
        self.last_used[request.worker] = next(self.order)
        engine = self.engines[request.worker]
        engine.booked += 1
        if engine.active < engine.slots:
            self.start(now, request)
        else:
            engine.waiting.append(request)

    def start(self, now: float, request: Request) -> None:
        engine = self.engines[request.worker]
        engine.active += 1
        tokens = request.tokens
        processed = max(1, tokens - engine.cache.take(request.segments))
        engine.prefill_until = max(now, engine.prefill_until) + processed / self.parameters.prefill_rate
        self.result.waits.append(engine.prefill_until - request.arrived)
        self.result.processed += processed
        self.result.tokens += tokens
        self.at(engine.prefill_until + request.output * self.parameters.token_time, self.end, request)

    def end(self, now: float, request: Request) -> None:
        engine = self.engines[request.worker]
        engine.active -= 1
        engine.booked -= 1
        if engine.waiting:
            self.start(now, engine.waiting.popleft())
        following = request.then(now)
        if following:
            self.at(following.arrived, self.arrive, following)
