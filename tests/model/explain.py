"""Whether the reference model can do what concurrent calls on several replicas did: in any order, one after another."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.model.calls import UNKNOWN, Answer, Call, Dispatch, Release
from tests.model.state import Observed, State


class Fate(Enum):
    """What is known of a call."""

    ANSWERED = auto()
    RAN = auto()  # its answer is lost, or not that of its first run
    UNKNOWN = auto()  # it ran or did not
    FAILED = auto()  # the same, and the replica will settle what it booked
    SETTLED = auto()  # no call: the replica returned to the store


@dataclass(eq=False)
class Event:
    """degraded is the worker to which a dispatch was sent from a snapshot. after: this happened after that."""

    replica: int
    fate: Fate
    call: Call | None = None
    answer: Answer = UNKNOWN
    degraded: str = ""
    after: "Event | None" = field(default=None, repr=False)

    def outcomes(self, state: State, leases: dict[str, int]) -> Iterator[State]:
        for after in self._in_store(state, leases):
            if isinstance(self.call, Release) and self.fate in (Fate.UNKNOWN, Fate.FAILED):
                owing = after.copy()
                owing.debts[self.replica].released.add(self.call.lease)
                yield owing
                if self.fate is Fate.UNKNOWN:  # cancelled: before the call was made, or while it was
                    yield after
            elif self.degraded:
                booked = after.copy()
                booked.debts[self.replica].bookings[self.degraded] += 1
                yield booked
            else:
                yield after

    def _in_store(self, state: State, leases: dict[str, int]) -> Iterator[State]:
        if self.call is None:
            after = state.copy()
            after.settle(self.replica)
            yield after
            return
        if self.fate in (Fate.UNKNOWN, Fate.FAILED):
            yield state
        if self.fate is Fate.FAILED and isinstance(self.call, Dispatch):
            yield from self.call.lost(state, leases)
        else:
            yield from self.call.run(state, self.answer if self.fate is Fate.ANSWERED else UNKNOWN, leases)


def explain(states: Sequence[State], events: Sequence[Event], seen: Observed) -> list[State]:
    """Return all states that the model can come to and that agree with the store. Fail if there is none.

    states are those in which the model may have been: what is in the store does not always tell them apart.
    """
    reached: dict[frozenset[Event], list[State]] = {frozenset(): list(states)}
    for _ in events:
        before, reached = reached, {}
        for done, possible in before.items():
            for event in events:
                if event in done or (event.after is not None and event.after not in done):
                    continue
                ends = reached.setdefault(done | {event}, [])
                for state in possible:
                    _add(ends, event.outcomes(state, seen.leases))
    agreeing: list[State] = []
    disagreements: list[list[str]] = []
    for state in reached.get(frozenset(events), []):
        end = state.copy()
        differences = end.differences(seen)
        if differences:
            disagreements.append(differences)
        else:
            end.observe(seen)
            _add(agreeing, [end])
    if not agreeing:
        closest = min(disagreements, key=len, default=["no order of the calls gives these answers"])
        raise AssertionError("\n".join(["the model cannot do this:", *map(str, events), *closest]))
    return agreeing


def _add(states: list[State], more: Iterable[State]) -> None:
    for state in more:
        if state not in states:
            states.append(state)
