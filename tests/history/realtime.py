"""The reference model in real time: it steps from state to state with the calls that clients have recorded.

tests/model decides what each call does. This module adds what a recorded history needs:

- An expiration happens at an unknown time within a few milliseconds, so a worker may be alive or not in that time.
- The cost of each worker is known exactly, so the model determines which worker a dispatch chooses.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from math import inf
from typing import Any, Final

from tests.history.operations import Observation, ObservedWorker, Operation
from tests.model.calls import UNKNOWN, Dispatch, Release
from tests.model.load import Load
from tests.model.shortest_queue import Indexed, least_cost
from tests.model.state import State, Worker
from tests.model.worker_calls import Drain, Heartbeat, Register, Remove
from tests.support.dispatches import worker_of, worker_of_lease

SLACK: Final = 0.005  # seconds between the clocks of Redis and of this process
MAX_IN_FLIGHT: Final = 8
NEVER: Final = 10**15  # leases do not expire within a history


@dataclass
class TimedWorker(Worker):
    """A worker whose heartbeat expires between `expires_from` and `expires_at`.

    reported: its requests without `booked` and `leases`. None if the model does not determine it.
    seq: its order among workers of equal cost.
    """

    speed: float = 1.0
    expires_from: float = inf
    reported: int | None = 0
    seq: int = 0

    @property
    def load(self) -> int | None:
        return None if self.reported is None else self.reported + self.booked[0] + len(self.leases)

    def indexed(self) -> Indexed:
        load = Load(self.speed, untracked=float(self.load or 0))
        return Indexed(load, self.seq, self.seq, load.index_cost(0.0, 1.0, False))


Workers = dict[str, TimedWorker]


def workers_of(state: State) -> Workers:
    return state.workers  # type: ignore[return-value] # begin() and _registered() put only these there


@dataclass
class Realtime:
    """The rules for the calls of one round to the workers of one model.

    exact: False if the costs are not known: some calls have run that no client knows of.
    in_flight: how many dispatches the report of each heartbeat may have left out.
    doubtful: heartbeats with an unknown outcome. They only make it uncertain when their worker expires. It would take
        too long to try out for each of them whether it ran.
    unclaimed: leases in Redis at the end of the round that no client has got.
    end: when the round ended.
    """

    names: list[str]
    exact: bool
    in_flight: Mapping[Operation, int]
    doubtful: Sequence[Operation]
    unclaimed: set[str]
    end: float
    _unclaimed: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self._unclaimed = dict.fromkeys(self.unclaimed, NEVER)

    # States

    def begin(self, observed: Observation) -> State:
        leases = {lease: NEVER for lease in observed.leases if worker_of_lease(lease) in self.names}
        state = State(0.0, 0, leases=leases if self.exact else {})
        for name, worker in observed.workers.items():
            if name in self.names:
                state.workers[name] = self._observed(name, worker, state.leases)
        state.orphans = {lease for lease in state.leases if worker_of_lease(lease) not in state.workers}
        state.drained = dict.fromkeys(observed.drained & set(self.names), 0.0)
        return state

    def _observed(self, name: str, worker: ObservedWorker, leases: Iterable[str]) -> TimedWorker:
        active = {lease for lease in leases if lease.endswith(f"-{worker.incarnation}@{name}")}
        return TimedWorker(
            worker.models,
            False,
            worker.checks,
            worker.expires[1],
            worker.draining,
            leases=active,
            speed=worker.speed,
            expires_from=worker.expires[0],
            reported=None if worker.finished else worker.load - len(active),
            seq=worker.seq,
        )

    def key(self, state: State) -> Any:
        """Return a value that is equal for states from which the same calls lead to the same answers."""
        workers = workers_of(state)
        order = sorted(workers, key=lambda name: workers[name].seq) if self.exact else sorted(workers)
        return (
            tuple(
                (name, w.models, w.draining, w.expires_from, w.expires_at, w.load, w.speed, frozenset(w.leases))
                for name in order
                for w in (workers[name],)
            ),
            frozenset(state.leases),
            frozenset(state.orphans),
            frozenset(state.drained),
        )

    # Calls

    def after(self, operation: Operation, state: State, until: float) -> Iterator[State]:
        """Yield each state after a call that ran before the time `until`. Yields `state` itself if nothing changed."""
        match operation.call:
            case Dispatch():
                names = [name for name in state.workers if operation.call.model in state.workers[name].models]
            case _:
                names = [operation.worker]
        for possible in self.expirations(state, names, operation.start, until):
            yield from self._run(operation, possible)

    def expirations(self, state: State, names: Iterable[str], start: float, until: float) -> Iterator[State]:
        """Yield the state with each set of workers expired that may have expired at some time in an interval."""
        workers = workers_of(state)
        known = [name for name in names if name in workers]
        must = [name for name in known if self._latest_expiration(name, workers[name], start) + SLACK < start]
        may = [name for name in known if name not in must and workers[name].expires_from - SLACK <= until]
        for number in range(len(may) + 1):
            for some in combinations(may, number):
                if not must and not some:
                    yield state
                    continue
                after = state.copy()
                for name in (*must, *some):
                    after.expire(name)
                yield after

    def _latest_expiration(self, name: str, worker: TimedWorker, start: float) -> float:
        ends = [
            self._expiration(each, each.call.expiration, worker.checks)[1]
            for each in self.doubtful
            if isinstance(each.call, Heartbeat) and each.worker == name and each.start <= start
        ]
        return max([worker.expires_at, *ends])

    def _run(self, operation: Operation, state: State) -> Iterator[State]:
        call = operation.call
        match call:
            case Dispatch():
                yield from self._dispatch(operation, call, state)
            case Release() if self.exact:
                yield from call.run(state, operation.answer, {})
            case Release():
                yield state  # check.py checks leases by other means
            case Register():
                for after in call.run(state, operation.answer, {}):
                    after.workers[call.name] = self._registered(operation, call, state, after.workers[call.name])
                    yield after
            case Heartbeat():
                for after in call.run(state, operation.answer, {}):
                    yield from self._reported(operation, call, after)
            case Drain() | Remove():
                yield from call.run(state, operation.answer, {})
            case _:
                raise AssertionError(f"no rule for {call}")

    def _dispatch(self, operation: Operation, call: Dispatch, state: State) -> Iterator[State]:
        if not self.exact:
            serving = state.serving(call.model)
            if operation.answer is UNKNOWN or worker_of(operation.answer) in (serving or [""]):
                yield state
            return
        allowed = self._cheapest(call, state)
        if operation.answer == "":
            yield from [] if allowed else [state]
        elif operation.answer is UNKNOWN or worker_of(operation.answer) in allowed:
            for after in call.run(state, operation.answer, self._unclaimed):
                [chosen] = [name for name in after.workers if _is_booked(after, state, name)]
                if chosen in allowed:
                    workers = workers_of(after)
                    workers[chosen].seq = 1 + max(worker.seq for worker in workers.values())
                    yield after

    def _cheapest(self, call: Dispatch, state: State) -> list[str]:
        """Return the worker with the lowest cost, and the workers whose costs the model does not determine."""
        workers = workers_of(state)
        serving = state.serving(call.model)
        known = {name: workers[name].indexed() for name in serving if workers[name].reported is not None}
        best = least_cost(list(known.values()), leased=bool(call.lease_ms), decays=False, reading=0.0, rate=1.0)
        return [name for name in serving if name not in known or known[name] is best]

    def _expiration(self, operation: Operation, seconds: float, checks: bool) -> tuple[float, float]:
        if not checks:
            return inf, inf
        return operation.start + seconds, min(operation.until, self.end) + seconds

    def _registered(self, operation: Operation, call: Register, before: State, new: Worker) -> TimedWorker:
        expires = self._expiration(operation, call.expiration, call.checks)
        workers = workers_of(before)
        latest = 1 + max((worker.seq for worker in workers.values()), default=0)
        return TimedWorker(
            new.models,
            new.multimodal,
            new.checks,
            expires[1],
            new.draining,
            speed=call.speed,
            expires_from=expires[0],
            reported=call.queue,
            seq=workers[call.name].seq if call.name in workers else latest,
        )

    def _reported(self, operation: Operation, call: Heartbeat, after: State) -> Iterator[State]:
        worker = workers_of(after).get(call.name)
        if worker is None:
            yield after
            return
        worker.expires_from, worker.expires_at = self._expiration(operation, call.expiration, worker.checks)
        if not self.exact:
            worker.reported = 0
            yield after
            return
        # The report does not replace bookings that were made while the heartbeat was on its way.
        left_out = self.in_flight.get(operation, 0)
        if call.queue < len(worker.leases) or left_out > MAX_IN_FLIGHT:
            worker.reported = None
            yield after
            return
        for number in range(left_out + 1):
            other = after.copy()
            workers_of(other)[call.name].reported = call.queue + number - len(worker.leases)
            yield other

    # The end

    def differences(self, state: State, observed: Observation) -> list[str]:
        """Return the differences between the state and Redis at the end of the round."""
        found = [self._differences(each, observed) for each in self.expirations(state, self.names, *observed.at)]
        return min(found, key=len)

    def _differences(self, state: State, observed: Observation) -> list[str]:
        workers = workers_of(state)
        theirs = {name: worker for name, worker in observed.workers.items() if name in self.names}
        found = []
        if workers.keys() != theirs.keys():
            found.append(f"live workers {sorted(workers)}, in Redis {sorted(theirs)}")
        common = workers.keys() & theirs.keys()
        for name in common:
            for attribute in ("models", "speed", "draining", "checks"):
                if getattr(workers[name], attribute) != getattr(theirs[name], attribute):
                    found.append(
                        f"{name}: {attribute} {getattr(workers[name], attribute)}, "
                        f"in Redis {getattr(theirs[name], attribute)}"
                    )
            load = workers[name].load
            if self.exact and load is not None and load != theirs[name].load:
                found.append(f"{name}: {load} requests, in Redis {theirs[name].load}")
        drained = observed.drained & set(self.names)
        if drained != state.drained.keys() - workers.keys():
            found.append(f"will drain again {sorted(state.drained)}, in Redis {sorted(drained)}")
        if not self.exact:
            return found
        if sorted(common, key=lambda name: workers[name].seq) != sorted(common, key=lambda name: theirs[name].seq):
            found.append("the order among workers of equal cost differs")
        leases = {lease for lease in observed.leases if worker_of_lease(lease) in self.names}
        if leases != state.leases.keys():
            lost, extra = sorted(state.leases.keys() - leases), sorted(leases - state.leases.keys())
            found.append(f"leases that Redis lacks: {lost}, leases that only Redis has: {extra}")
        return found


def _is_booked(after: State, before: State, name: str) -> bool:
    was, now = before.workers[name], after.workers[name]
    return now.booked != was.booked or now.leases != was.leases
