"""Simulate engines with a prefix cache, and compare policies by the wait of requests and the tokens processed.

    python benchmarks/affinity.py                             a table of all policies and workloads
    python benchmarks/affinity.py --plots docs/images         the wait against the load, for conversations
    python benchmarks/affinity.py --cache 0                   engines without a cache: the price of the affinity
    python benchmarks/affinity.py --workers 32 --no-capacity

An engine has slots, and processes the prompts of its requests one after the other, at a constant rate. It skips the
beginning of a prompt as far as its cache has it. The cache drops the blocks that were used least recently. Then the
engine generates tokens, for all of its slots at the same time. A request waits for a slot and for its prompt, so the
wait is the time to the first token.

The keys are those of controller/domain/affinity.py, of generated texts. The rules of "ours" are those of the scripts,
which tests compare with the same modules. "unbounded" is the rule of Higress: always the remembered worker.
"""

import argparse
import heapq
import itertools
import math
import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, Final

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from controller.domain.affinity import prefix_keys
from controller.domain.cost import cost
from tests.model.affinity import MAX_REMEMBERED, highest_cost, prefer

CHARACTERS: Final = 4  # of a token
BLOCK: Final = 64  # tokens of a block of the cache


@dataclass(frozen=True)
class Engines:
    """The parameters of a simulation. Times are in seconds.

    load: a share of the rate at which the engines could process all prompts without a cache.
    cache: tokens that the cache of an engine holds. 0: no cache.
    """

    workload: str = "conversations"
    load: float = 0.9
    workers: int = 8
    slots: int = 32
    prefill_rate: float = 4000.0
    token_time: float = 0.02
    cache: int = 150_000
    requests: int = 12_000
    reports_capacity: bool = True
    seed: int = 0


@dataclass(slots=True, eq=False)
class Request:
    """A request. segments: the pieces of its prompt, by id and length in tokens."""

    arrived: float
    segments: tuple[tuple[str, int], ...]
    output: int
    then: Callable[[float], "Request | None"] = lambda _: None
    keys: tuple[str, ...] = ()
    worker: int = -1

    @property
    def tokens(self) -> int:
        return sum(length for _, length in self.segments)


def text_of(segment: tuple[str, int]) -> str:
    """Return the text of a segment. Texts with different ids have no common beginning."""
    name, length = segment
    return (f"{name} " * (length * CHARACTERS // (len(name) + 1) + 1))[: length * CHARACTERS]


# The workloads. Each yields requests in order of arrival. A request may lead to another one after its end.


def lengths(rng: random.Random, mean: float, sigma: float = 0.8) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def arrivals(rng: random.Random, rate: float) -> Iterator[float]:
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def nothing_shared(engines: Engines, rng: random.Random) -> Iterator[Request]:
    """Each prompt is of its own: 2,000 tokens."""
    for number, now in enumerate(arrivals(rng, _rate(engines, 2000))):
        yield Request(now, ((f"p{number}", lengths(rng, 2000)),), lengths(rng, 150))


def conversations(engines: Engines, rng: random.Random) -> Iterator[Request]:
    """6 turns on average, each with 150 tokens of the user and 250 of the answer, after one of 20 system prompts."""
    turns = 6
    systems = [lengths(rng, 800) for _ in range(20)]
    for number, now in enumerate(arrivals(rng, _rate(engines, 800 + 150 + 400 * (turns - 1)) / turns)):
        system = rng.randrange(len(systems))
        own = random.Random(rng.random())
        yield _turn(now, own, number, ((f"s{system}", systems[system]),), 1 - 1 / turns)


def _turn(now: float, rng: random.Random, number: int, before: tuple[tuple[str, int], ...], goes_on: float) -> Request:
    segments = (*before, (f"c{number}m{len(before)}", lengths(rng, 150)))
    output = lengths(rng, 250)
    answer = (f"c{number}m{len(segments)}", output)
    pause = rng.expovariate(1 / 20)
    is_last = rng.random() > goes_on

    def then(ended: float) -> Request | None:
        return None if is_last else _turn(ended + pause, rng, number, (*segments, answer), goes_on)

    return Request(now, segments, output, then)


def documents(engines: Engines, rng: random.Random) -> Iterator[Request]:
    """A question about one of 300 documents of 4,000 tokens. Some documents are far more popular than others."""
    sizes = [lengths(rng, 4000, 0.5) for _ in range(300)]
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(len(sizes))))
    for number, now in enumerate(arrivals(rng, _rate(engines, 4200))):
        [i] = rng.choices(range(len(sizes)), cum_weights=weights)
        yield Request(now, (("system", 200), (f"d{i}", sizes[i]), (f"q{number}", lengths(rng, 60))), lengths(rng, 150))


def one_system_prompt(engines: Engines, rng: random.Random) -> Iterator[Request]:
    """All prompts begin with the same 1,500 tokens, and go on with 500 of their own."""
    for number, now in enumerate(arrivals(rng, _rate(engines, 2000))):
        yield Request(now, (("system", 1500), (f"q{number}", lengths(rng, 500))), lengths(rng, 150))


def _rate(engines: Engines, tokens: float) -> float:
    return engines.load * engines.workers * engines.prefill_rate / tokens


WORKLOADS: Final = {
    "nothing shared": nothing_shared,
    "conversations": conversations,
    "documents": documents,
    "one system prompt": one_system_prompt,
}


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


# The policies. Each returns the number of a worker.
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

    def __init__(self, engines: Engines, policy: Policy) -> None:
        self.parameters = engines
        self.policy = policy
        self.workers_of_key = MAX_REMEMBERED if policy is ours else 1
        self.capacity = engines.slots if engines.reports_capacity else None
        self.engines = [Engine(engines.slots, Cache(engines.cache)) for _ in range(engines.workers)]
        self.remembered: dict[str, tuple[int, ...]] = {}
        self.turns = itertools.count()
        self.last_used = [0] * engines.workers
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


def run(job: tuple[Engines, str]) -> tuple[float, float, float]:
    """Return the mean and the 95th percentile of the waits, and the share of the tokens that were processed."""
    engines, name = job
    result = Simulation(engines, POLICIES[name]).run()
    waits = result.waits[len(result.waits) // 10 :]
    return fmean(waits), quantiles(waits, n=20)[-1], result.processed / result.tokens


def run_all(jobs: Sequence[tuple[Engines, str]], console: Console) -> list[tuple[float, float, float]]:
    with (
        ProcessPoolExecutor(mp_context=get_context("spawn")) as pool,
        Progress(console=console, transient=True) as progress,
    ):
        return list(progress.track(pool.map(run, jobs), total=len(jobs)))


def mean_of(runs: Sequence[tuple[float, float, float]]) -> tuple[float, float, float]:
    wait, slow, processed = (fmean(values) for values in zip(*runs, strict=True))
    return wait, slow, processed


def plot(folder: Path, engines: Engines, rows: Sequence[str], seeds: int, console: Console) -> None:
    from dispatch_plots import draw  # imported here, because only plots need matplotlib

    loads = (0.5, 0.7, 0.9, 1.1, 1.3)
    jobs = [
        (replace(engines, workload="conversations", load=load, seed=seed), row)
        for row in rows
        for load in loads
        for seed in range(seeds)
    ]
    runs = run_all(jobs, console)
    means: dict[str, dict[float, float]] = {row: {} for row in rows}
    for i, (row, load) in enumerate(itertools.product(rows, loads)):
        means[row][load] = mean_of(runs[i * seeds : (i + 1) * seeds])[0]
    label = "load, as a share of what the engines could process without a cache"
    draw(folder / "wait-by-affinity.svg", label, False, means, "mean time to the first token, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(POLICIES), default=list(POLICIES), metavar="ROW")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS), metavar="WORKLOAD")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row (default: 3)")
    parser.add_argument("--no-capacity", action="store_true", help="the engines do not report their slots")
    for name in ("load", "workers", "slots", "cache", "requests"):
        default: Any = getattr(Engines, name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"default: {default}")
    parser.add_argument("--plots", type=Path, help="folder for a plot instead of the table")
    arguments = parser.parse_args()
    engines = Engines(
        load=arguments.load,
        workers=arguments.workers,
        slots=arguments.slots,
        cache=arguments.cache,
        requests=arguments.requests,
        reports_capacity=not arguments.no_capacity,
    )
    console = Console(width=140)
    if arguments.plots:
        plot(arguments.plots, engines, arguments.rows, arguments.seeds, console)
        return
    cells = list(itertools.product(arguments.workloads, arguments.rows))
    jobs = [
        (replace(engines, workload=workload, seed=seed), row)
        for workload, row in cells
        for seed in range(arguments.seeds)
    ]
    runs = run_all(jobs, console)
    table = Table("policy", title="mean and 95th percentile of the time to the first token in s, tokens processed")
    results = {cell: mean_of(runs[i * arguments.seeds : (i + 1) * arguments.seeds]) for i, cell in enumerate(cells)}
    for workload in arguments.workloads:
        table.add_column(workload, justify="right")
    for row in arguments.rows:
        texts = (results[workload, row] for workload in arguments.workloads)
        table.add_row(row, *(f"{wait:.2f}  {slow:.2f}  {100 * processed:.0f} %" for wait, slow, processed in texts))
    console.print(table)


if __name__ == "__main__":
    main()
