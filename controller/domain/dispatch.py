"""The rules by which a worker is chosen, as pure functions.

They say what the scripts in `lua/` mean; the tests hold the two equal. Whatever is random or depends on time is
an argument.
"""

import heapq
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final

from controller.domain.load import Load

LOOK: Final = 8


class DispatchMethod(StrEnum):
    """How a worker is chosen (FastChat: `--dispatch-method`)."""

    SHORTEST_QUEUE = "shortest_queue"
    LOTTERY = "lottery"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A live worker in the index of one model.

    turn is the sequence number of its last choice or, before the first, of its registration. ticket is the time,
    on the clock of the model's lottery, at which it is drawn next.
    """

    name: str
    speed: float
    queue_length: int
    turn: int
    ticket: float = 0.0

    @property
    def load(self) -> float:
        """What shortest_queue compares: requests per unit of speed (FastChat: `get_worker_address`)."""
        return self.queue_length / self.speed


def shortest_queue(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the least load; among equals, the one whose last turn is longest ago."""
    return min(candidates, key=lambda candidate: (candidate.load, candidate.turn), default=None)


def book(candidate: Candidate, turn: int) -> Candidate:
    """The candidate after it was chosen by shortest_queue as the `turn`-th choice of all."""
    return replace(candidate, queue_length=candidate.queue_length + 1, turn=turn)


@dataclass(slots=True)
class Indexed:
    """A worker in both indexes of a model.

    score is its load's index_cost() when it was last touched, place the number of the choice when it last took a new
    place among those of equal scores: its last with a lease, or, where bookings do not fade, its last.
    """

    load: Load
    turn: int = 0
    place: int = 0
    score: float = 0.0


def least_cost(workers: Collection[Indexed], *, leased: bool, fades: bool, phase: float, pace: float) -> Indexed | None:
    """The worker for a request, by the fronts of two indexes: one by index_cost(), one by what fades.

    Where all clients are of one kind, with leases or without, the first of one index has the least cost of all.
    Otherwise it is the best of the first LOOK of both. pace is that of a worker of speed 1.
    """

    def by_score(worker: Indexed) -> tuple[float, int]:
        return worker.score, worker.place

    def by_what_fades(worker: Indexed) -> tuple[float, int]:
        return worker.load.unleased_at(phase) / worker.load.speed, worker.turn

    def by_cost(worker: Indexed) -> tuple[float, int]:
        return worker.load.cost(phase, pace * worker.load.speed), worker.turn

    if leased or not fades:
        first = min(workers, key=by_score, default=None)
        if first is None or not fades or first.load.unleased == 0:
            return first
    else:
        first = min(workers, key=by_what_fades, default=None)
        if first is None or by_cost(first) == by_what_fades(first):
            return first
    front = heapq.nsmallest(LOOK, workers, key=by_score) + heapq.nsmallest(LOOK, workers, key=by_what_fades)
    return min(front, key=by_cost)


def lottery(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the earliest ticket.

    Tickets are the next arrivals of independent Poisson processes, one a worker, whose rates are the speeds. The
    arrivals of all of them together belong to a given worker with a probability proportional to its speed, each
    independently of those before: the "exponential race" (Efraimidis and Spirakis, Weighted random sampling,
    2006; Devroye, Non-Uniform Random Variate Generation, 1986, on competing exponentials).
    """
    return min(candidates, key=lambda candidate: (candidate.ticket, candidate.name), default=None)


def next_ticket(clock: float, speed: float, deviate: float) -> float:
    """The next arrival after `clock`; `deviate` is a draw from the exponential distribution of mean 1.

    After a draw, `clock` is the winner's ticket. A worker that joins a model's lottery, or changes its speed,
    draws from the last winner's: by the lack of memory of the exponential this disturbs nobody's odds.
    """
    return clock + deviate / speed
