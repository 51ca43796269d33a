"""The rules by which a worker is chosen, as pure functions.

They say what the scripts in `lua/` mean; the tests hold the two equal. Whatever is random or depends on time is
an argument.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


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
