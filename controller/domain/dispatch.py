"""The rules by which a worker is chosen, as pure functions.

They say what the scripts in `lua/` mean; the tests hold the two equal. Whatever is random or depends on time is
an argument.
"""

import functools
import heapq
import math
from bisect import bisect_right
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, NamedTuple

from controller.domain.load import FAILING, FULL, MOST_SERVING, Load

LOOK: Final = 8


class DispatchMethod(StrEnum):
    """How a worker is chosen (FastChat: `--dispatch-method`)."""

    SHORTEST_QUEUE = "shortest_queue"
    LOTTERY = "lottery"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live worker in the index of one model.

    turn is the sequence number of its last choice or, before the first, of its registration. failing says that it comes
    behind all others.
    """

    name: str
    speed: float
    queue_length: int
    turn: int
    failing: bool = False

    @property
    def load(self) -> float:
        """What shortest_queue compares: requests per unit of speed (FastChat: `get_worker_address`)."""
        return self.queue_length / self.speed


def shortest_queue(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the least load; among equals, the one whose last turn is longest ago; one that fails, last."""
    return min(candidates, key=lambda candidate: (candidate.failing, candidate.load, candidate.turn), default=None)


def book(candidate: Candidate, turn: int) -> Candidate:
    """The candidate after it was chosen by shortest_queue as the `turn`-th choice of all."""
    return replace(candidate, queue_length=candidate.queue_length + 1, turn=turn)


@dataclass(slots=True)
class Indexed:
    """A worker in both indexes of a model.

    score is its load's index_cost() when it was last touched, place the number of the choice when it last took a new
    place among those of equal scores: its last with a lease, or, where bookings do not fade, its last. fading is its
    load's what_fades() when that last changed; where that is the same, as of workers that were booked in the same
    millisecond, the second index is in order of name.
    """

    load: Load
    turn: int = 0
    place: int = 0
    score: float = 0.0
    fading: float = -math.inf
    name: str = ""


def least_cost(
    workers: Collection[Indexed], *, leased: bool, fades: bool, phase: float, pace: float, look: int = LOOK
) -> Indexed | None:
    """The worker for a request, by the fronts of two indexes: one by index_cost(), one by what fades.

    Where all clients are of one kind, with leases or without, the first of one index has the least cost of all, but
    that of workers that tell a capacity a score is as old as the last touch, and those whose bookings have faded since
    cost less now. Otherwise it is the best of the first `look` of both. pace is that of a worker of speed 1.
    """

    def by_score(worker: Indexed) -> tuple[float, int]:
        return worker.score, worker.place

    def by_what_fades(worker: Indexed) -> tuple[bool, float, int, str]:
        turn = worker.turn if worker.fading == -math.inf else 0
        return worker.load.failing, worker.fading, turn, worker.name

    def cost(worker: Indexed) -> float:
        return worker.load.cost(phase, pace * worker.load.speed)

    def by_cost(worker: Indexed) -> tuple[float, int]:
        return cost(worker), worker.turn

    if leased or not fades:
        first = min(workers, key=by_score, default=None)
        if first is None or not fades:
            return first
        # Where the first was full, old scores are not trusted: what fades may have made room since.
        is_sure = cost(first) < FULL or not any(worker.fading > -math.inf or worker.load.failing for worker in workers)
        if first.load.unleased_at(phase) == 0 and is_sure:
            return first
    else:
        first = min(workers, key=by_what_fades, default=None)
        if first is None or (first.load.leased == first.load.ended and cost(first) < FULL):
            return first
    front = heapq.nsmallest(look, workers, key=by_score) + heapq.nsmallest(look, workers, key=by_what_fades)
    return min(front, key=by_cost)


@dataclass(slots=True)
class _Head:
    """The best worker of a pool. Without one, cost and turn are the least that it can have."""

    cost: float
    turn: int
    workers: Collection[Indexed]
    best: Indexed | None = None


def least_cost_of_pools(
    pools: Sequence[Collection[Indexed]], *, leased: bool, fades: bool, phase: float, pace: float
) -> Indexed | None:
    """The worker for a request among several pools: of the best of each, by least_cost(), the one with the least cost.

    Among equals it is the one whose last turn is longest ago, if no lease is asked for or bookings do not fade. A pool
    is left out where what stands in front of its index shows that its best worker costs more, and where LOOK others
    were looked at, as may happen with clients of both kinds.
    """
    if len(pools) == 1:
        return least_cost(pools[0], leased=leased, fades=fades, phase=phase, pace=pace)
    look = max(1, math.ceil(LOOK / len(pools)))  # at as many workers in all
    heads = [_bound(workers, leased or not fades, phase) for workers in pools if workers]
    looked_at = 0
    while heads:
        known = [head for head in heads if head.best is not None] if looked_at == LOOK else []
        head = min(known or heads, key=lambda head: (head.cost, head.turn))
        if head.best is not None:
            return head.best
        head.best = least_cost(head.workers, leased=leased, fades=fades, phase=phase, pace=pace, look=look)
        if head.best is None:
            heads.remove(head)
        else:
            # With clients of both kinds the order of turns says little: to keep to it takes a look at all pools.
            looked_at += 1
            head.turn = -1 if leased and fades else head.best.turn
            head.cost = head.best.load.cost(phase, pace * head.best.load.speed)
    return None


def _bound(workers: Collection[Indexed], by_leases: bool, phase: float) -> _Head:
    if by_leases:
        cost, place = min((worker.score, worker.place) for worker in workers)
        return _Head(cost, place, workers)
    first = min(workers, key=lambda worker: (worker.load.failing, worker.fading, worker.turn))
    failing = FAILING if first.load.failing else 0.0
    if first.fading == -math.inf:
        return _Head(failing, first.turn, workers)
    return _Head(failing + min(first.load.unleased_at(phase) / first.load.speed, MOST_SERVING), -1, workers)


class Band(NamedTuple):
    """`size` workers from place `first` on in an index by speed; `top` is the speed of the fastest of them."""

    top: float
    first: int
    size: int


def speed_bands(speeds: Sequence[float]) -> list[Band]:
    """Split workers in order of speed into bands, fastest first: in each, all exceed half the speed of its fastest."""
    bands = []
    left = len(speeds)
    while left > 0:
        top = speeds[left - 1]
        first = bisect_right(speeds, top / 2)
        bands.append(Band(top, first, left - first))
        left = first
    return bands


def lottery(pools: Sequence[Collection[Candidate]], draw: float) -> Candidate | None:
    """A candidate at random, with odds proportional to speed: of those that do not fail, if there are any.

    draw is uniform on [0, 1). It chooses a pool and a band by weight, and in the band a place and a fraction of the top
    speed. The worker at that place is taken if its speed exceeds the fraction. Otherwise the next draw chooses. This is
    rejection sampling (von Neumann, 1951), in which a band bounds the share of rejected draws by half.
    """
    for failing in (False, True):
        indexes = [
            sorted((c for c in pool if c.failing is failing), key=lambda candidate: (candidate.speed, candidate.name))
            for pool in pools
        ]
        bands = [speed_bands([candidate.speed for candidate in index]) for index in indexes]
        while any(indexes):
            i, rest = (0, draw) if len(pools) == 1 else _pool(draw, [_weight(each) for each in bands])
            place, exceeded_speed = _place(rest, bands[i])
            if exceeded_speed < indexes[i][place].speed:
                return indexes[i][place]
            draw = _next_draw(draw)
    return None


def _weight(bands: Sequence[Band]) -> float:
    return functools.reduce(lambda weight, band: weight + band.size * band.top, bands, 0.0)


def _pool(draw: float, weights: Sequence[float]) -> tuple[int, float]:
    """The number of a pool, and what is left of the draw for a choice within it."""
    rest = draw * functools.reduce(lambda all_weights, weight: all_weights + weight, weights, 0.0)
    last = 0
    for i, weight in enumerate(weights):
        if weight > 0:
            if rest < weight:
                return i, rest / weight
            rest, last = rest - weight, i
    return last, 0.0


def _place(draw: float, bands: Sequence[Band]) -> tuple[int, float]:
    """A place in the index, and the speed that the worker there must exceed."""
    rest = draw * _weight(bands)
    remaining = iter(bands)
    top, first, size = next(remaining)
    while rest >= size * top and first > 0:
        rest -= size * top
        top, first, size = next(remaining)
    place = min(math.floor(rest / top), size - 1)
    return first + place, rest - place * top


def _next_draw(draw: float) -> float:
    """The next number of a sequence: the "minimal standard" generator (Park, Miller and Stockmeyer, 1993)."""
    state = math.floor(draw * 2147483646) + 1
    return (state * 48271 % 2147483647 - 0.5) / 2147483646
