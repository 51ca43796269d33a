"""Explains concurrent calls: finds an order of single calls in which the reference model gives the same results."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from tests.model.calls import UNKNOWN, Answer, Call, Dispatch, Release
from tests.model.state import Observed, State


class Fate(Enum):
    """A call, as far as the test knows it."""

    ANSWERED = auto()
    RAN = auto()  # the answer is lost, or belongs to the second run
    UNKNOWN = auto()  # it may have run
    FAILED = auto()  # it may have run, and the replica will reconcile its bookings
    RECONCILED = auto()  # not a call: the replica has reconciled


@dataclass(eq=False)
class Event:
    """A call, or a reconciliation.

    degraded: the worker that was chosen from a snapshot. "" if there is none.
    after: an event that must come before this one.
    """

    replica: int
    fate: Fate
    call: Call | None = None
    answer: Answer = UNKNOWN
    degraded: str = ""
    after: "Event | None" = field(default=None, repr=False)

    def outcomes(self, state: State, leases: dict[str, int]) -> Iterator[State]:
        """Yield each state that the event can lead to, in the store and on the replica."""
        for after in self._in_store(state, leases):
            if isinstance(self.call, Release) and self.fate in (Fate.UNKNOWN, Fate.FAILED):
                unreleased = after.copy()
                unreleased.unreconciled[self.replica].released.add(self.call.lease)
                yield unreleased
                if self.fate is Fate.UNKNOWN:  # the call may also have been cancelled before it was sent
                    yield after
            elif self.degraded:
                booked = after.copy()
                booked.unreconciled[self.replica].bookings[self.degraded] += 1
                yield booked
            else:
                yield after

    def _in_store(self, state: State, leases: dict[str, int]) -> Iterator[State]:
        if self.call is None:
            after = state.copy()
            after.reconcile(self.replica)
            yield after
            return
        if self.fate in (Fate.UNKNOWN, Fate.FAILED):
            yield state
        if self.fate is Fate.FAILED and isinstance(self.call, Dispatch):
            yield from self.call.lost(state, leases)
        else:
            yield from self.call.run(state, self.answer if self.fate is Fate.ANSWERED else UNKNOWN, leases)


def explain(states: Sequence[State], events: Sequence[Event], observed: Observed) -> list[State]:
    """Return all states that the model can reach and that agree with the store. Fail if there is none.

    states: all states that the model may have before the events. Several states can agree with the same store.
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
                    _add(ends, event.outcomes(state, observed.leases))
    agreeing: list[State] = []
    disagreements: list[list[str]] = []
    for state in reached.get(frozenset(events), []):
        end = state.copy()
        differences = end.differences(observed)
        if differences:
            disagreements.append(differences)
        else:
            end.observe(observed)
            _add(agreeing, [end])
    if not agreeing:
        closest = min(disagreements, key=len, default=["no order of the calls gives these answers"])
        raise AssertionError("\n".join(["the model cannot explain these events:", *map(str, events), *closest]))
    return agreeing


def _add(states: list[State], more: Iterable[State]) -> None:
    for state in more:
        if state not in states:
            states.append(state)
