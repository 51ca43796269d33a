"""The workloads of benchmarks/affinity.py. Each yields requests in order of arrival.

A request may lead to another one after its end: the next turn of its conversation.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

CHARACTERS: Final = 4  # of a token


@dataclass(frozen=True)
class Parameters:
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


def lengths(rng: random.Random, mean: float, sigma: float = 0.8) -> int:
    return max(1, round(rng.lognormvariate(math.log(mean) - sigma**2 / 2, sigma)))


def arrivals(rng: random.Random, rate: float) -> Iterator[float]:
    now = 0.0
    while True:
        now += rng.expovariate(rate)
        yield now


def nothing_shared(parameters: Parameters, rng: random.Random) -> Iterator[Request]:
    """Each prompt is of its own: 2,000 tokens."""
    for number, now in enumerate(arrivals(rng, _rate(parameters, 2000))):
        yield Request(now, ((f"p{number}", lengths(rng, 2000)),), lengths(rng, 150))


def conversations(parameters: Parameters, rng: random.Random) -> Iterator[Request]:
    """6 turns on average, each with 150 tokens of the user and 250 of the answer, after one of 20 system prompts."""
    turns = 6
    systems = [lengths(rng, 800) for _ in range(20)]
    for number, now in enumerate(arrivals(rng, _rate(parameters, 800 + 150 + 400 * (turns - 1)) / turns)):
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


def documents(parameters: Parameters, rng: random.Random) -> Iterator[Request]:
    """A question about one of 300 documents of 4,000 tokens. Some documents are far more popular than others."""
    sizes = [lengths(rng, 4000, 0.5) for _ in range(300)]
    weights = list(itertools.accumulate(1 / (i + 1) for i in range(len(sizes))))
    for number, now in enumerate(arrivals(rng, _rate(parameters, 4200))):
        [i] = rng.choices(range(len(sizes)), cum_weights=weights)
        yield Request(now, (("system", 200), (f"d{i}", sizes[i]), (f"q{number}", lengths(rng, 60))), lengths(rng, 150))


def one_system_prompt(parameters: Parameters, rng: random.Random) -> Iterator[Request]:
    """All prompts begin with the same 1,500 tokens, and continue with 500 of their own."""
    for number, now in enumerate(arrivals(rng, _rate(parameters, 2000))):
        yield Request(now, (("system", 1500), (f"q{number}", lengths(rng, 500))), lengths(rng, 150))


def _rate(parameters: Parameters, tokens: float) -> float:
    return parameters.load * parameters.workers * parameters.prefill_rate / tokens


WORKLOADS: Final = {
    "nothing shared": nothing_shared,
    "conversations": conversations,
    "documents": documents,
    "one system prompt": one_system_prompt,
}
