"""The rules by which a worker is chosen, as pure functions.

They say what the scripts in `lua/` mean; the tests hold the two equal. Whatever is random or depends on time is
an argument.
"""

import heapq
import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from controller.domain.load import FULL, Load

LOOK: Final = 8
MAX_PASSED_OVER: Final = 16


class DispatchMethod(StrEnum):
    """How a worker is chosen (FastChat: `--dispatch-method`)."""

    SHORTEST_QUEUE = "shortest_queue"
    LOTTERY = "lottery"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live worker in the index of one model.

    turn is the sequence number of its last choice or, before the first, of its registration. ticket is the time, on the
    clock of the model's lottery, at which it is drawn next. failing says that it comes behind all others.
    """

    name: str
    speed: float
    queue_length: int
    turn: int
    ticket: float = 0.0
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


def least_cost(workers: Collection[Indexed], *, leased: bool, fades: bool, phase: float, pace: float) -> Indexed | None:
    """The worker for a request, by the fronts of two indexes: one by index_cost(), one by what fades.

    Where all clients are of one kind, with leases or without, the first of one index has the least cost of all, but
    that of workers that tell a capacity a score is as old as the last touch, and those whose bookings have faded since
    cost less now. Otherwise it is the best of the first LOOK of both. pace is that of a worker of speed 1.
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
        if first is None or cost(first) == first.load.unleased_at(phase) / first.load.speed:
            return first
    front = heapq.nsmallest(LOOK, workers, key=by_score) + heapq.nsmallest(LOOK, workers, key=by_what_fades)
    return min(front, key=by_cost)


def lottery(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the earliest ticket; of those that do not fail, if one of the first MAX_PASSED_OVER does not.

    Those passed over draw new tickets from the winner's.

    Tickets are the next arrivals of independent Poisson processes, one a worker, whose rates are the speeds. The
    arrivals of all of them together belong to a given worker with a probability proportional to its speed, each
    independently of those before: the "exponential race" (Efraimidis and Spirakis, Weighted random sampling,
    2006; Devroye, Non-Uniform Random Variate Generation, 1986, on competing exponentials).
    """
    front = heapq.nsmallest(MAX_PASSED_OVER, candidates, key=lambda candidate: (candidate.ticket, candidate.name))
    return min(front, key=lambda candidate: candidate.failing, default=None)


def next_ticket(clock: float, speed: float, deviate: float) -> float:
    """The next arrival after `clock`; `deviate` is a draw from the exponential distribution of mean 1.

    After a draw, `clock` is the winner's ticket. A worker that joins a model's lottery, or changes its speed,
    draws from the last winner's: by the lack of memory of the exponential this disturbs nobody's odds.
    """
    return clock + deviate / speed
