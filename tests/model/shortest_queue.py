"""Reference model of the choice of lua/dispatch/dispatch_shortest_queue.lua."""

import heapq
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Final

from controller.domain.cost import FAILING, FULL, MAX_SERVING
from tests.model.load import Load

CANDIDATES_PER_INDEX: Final = 8


@dataclass(slots=True)
class Indexed:
    """A worker in both indexes of a pool.

    score: its Load.index_cost() when it was last indexed.
    index_seq: the sequence number of the dispatch that last moved it among workers of equal score: its last dispatch
    with a lease, or its last one if bookings do not decay.
    decay_key: its Load.decay_key() when that last changed. If it is equal, for example for workers that were booked in
    the same millisecond, the decay index is in order of name.
    """

    load: Load
    seq: int = 0
    index_seq: int = 0
    score: float = 0.0
    decay_key: float = -math.inf
    name: str = ""


def least_cost(
    workers: Collection[Indexed],
    *,
    leased: bool,
    decays: bool,
    reading: float,
    rate: float,
    limit: int = CANDIDATES_PER_INDEX,
) -> Indexed | None:
    """Choose the worker for a request by the first ones of two indexes: one by index_cost(), one by decay_key().

    If all clients are of one kind, with leases or without, the first one of one index has the lowest cost. An exception
    are workers with a capacity: a score is as old as the last change, and if bookings have decayed since, the worker
    costs less now. Otherwise the best of the first `limit` workers of both indexes is chosen.

    rate: the decay rate of a worker of speed 1.
    """

    def by_score(worker: Indexed) -> tuple[float, int]:
        return worker.score, worker.index_seq

    def by_decay_key(worker: Indexed) -> tuple[bool, float, int, str]:
        seq = worker.seq if worker.decay_key == -math.inf else 0
        return worker.load.failing, worker.decay_key, seq, worker.name

    def cost(worker: Indexed) -> float:
        return worker.load.cost(reading, rate * worker.load.speed)

    def by_cost(worker: Indexed) -> tuple[float, int]:
        return cost(worker), worker.seq

    if leased or not decays:
        first = min(workers, key=by_score, default=None)
        if first is None or not decays:
            return first
        # If the first one is full, old scores do not count: bookings may have decayed since.
        is_sure = cost(first) < FULL or not any(w.decay_key > -math.inf or w.load.failing for w in workers)
        if first.load.untracked_at(reading) == 0 and is_sure:
            return first
    else:
        first = min(workers, key=by_decay_key, default=None)
        if first is None or (first.load.leased == first.load.finished and cost(first) < FULL):
            return first
    candidates = heapq.nsmallest(limit, workers, key=by_score) + heapq.nsmallest(limit, workers, key=by_decay_key)
    return min(candidates, key=by_cost)


@dataclass(slots=True)
class _Best:
    """The best worker of a pool. While it is unknown, cost and seq are the lowest that it can have."""

    cost: float
    seq: int
    workers: Collection[Indexed]
    worker: Indexed | None = None


def least_cost_of_pools(
    pools: Sequence[Collection[Indexed]], *, leased: bool, decays: bool, reading: float, rate: float
) -> Indexed | None:
    """Choose the worker for a request among several pools: the best of each pool, by least_cost(), are compared.

    Among equals the one dispatched to least recently is chosen, if no lease is requested or bookings do not decay. A
    pool is skipped if the head of its index shows that its best worker costs more, or if CANDIDATES_PER_INDEX others
    were read, as may happen with clients of both kinds.
    """
    if len(pools) == 1:
        return least_cost(pools[0], leased=leased, decays=decays, reading=reading, rate=rate)
    limit = max(1, math.ceil(CANDIDATES_PER_INDEX / len(pools)))  # as many workers in all
    best = [_bound(workers, leased or not decays, reading) for workers in pools if workers]
    pools_read = 0
    while best:
        known = [each for each in best if each.worker is not None] if pools_read == CANDIDATES_PER_INDEX else []
        lowest = min(known or best, key=lambda each: (each.cost, each.seq))
        if lowest.worker is not None:
            return lowest.worker
        lowest.worker = least_cost(
            lowest.workers, leased=leased, decays=decays, reading=reading, rate=rate, limit=limit
        )
        if lowest.worker is None:
            best.remove(lowest)
        else:
            # With clients of both kinds, the sequence numbers would order only workers that were read: all pools would
            # be.
            pools_read += 1
            lowest.seq = -1 if leased and decays else lowest.worker.seq
            lowest.cost = lowest.worker.load.cost(reading, rate * lowest.worker.load.speed)
    return None


def _bound(workers: Collection[Indexed], by_cost: bool, reading: float) -> _Best:
    if by_cost:
        cost, seq = min((worker.score, worker.index_seq) for worker in workers)
        return _Best(cost, seq, workers)
    first = min(workers, key=lambda worker: (worker.load.failing, worker.decay_key, worker.seq))
    failing = FAILING if first.load.failing else 0.0
    if first.decay_key == -math.inf:
        return _Best(failing, first.seq, workers)
    return _Best(failing + min(first.load.untracked_at(reading) / first.load.speed, MAX_SERVING), -1, workers)
