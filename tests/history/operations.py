"""The records of the clients: each call with its start, its end and its answer."""

from dataclasses import dataclass, field
from math import inf
from typing import Final

from tests.model.calls import UNKNOWN, Answer, Call, Dispatch, Release
from tests.model.worker_calls import Drain, Heartbeat, Register, Remove
from tests.support.dispatches import worker_of, worker_of_lease

WorkerCall = Register | Heartbeat | Drain | Remove


@dataclass(eq=False)
class Operation:
    """A call of a client. All times are of time.monotonic(), in seconds.

    end: when the answer arrived. inf if the outcome is unknown.
    answer: UNKNOWN if the outcome is unknown, or if a second run may have answered the call.
    degraded: the age of the snapshot that answered the call. None if Redis did.
    latest: when a call with an unknown outcome had run at the latest.
    error: why the outcome is unknown, or why the answer is empty.
    """

    call: Call
    start: float
    end: float = inf
    answer: Answer = UNKNOWN
    degraded: float | None = None
    latest: float = inf
    error: str = ""

    @property
    def has_answer(self) -> bool:
        """Return True if the call has run."""
        return self.end < inf

    @property
    def until(self) -> float:
        """The time by which the call had run, if it ran."""
        return min(self.end, self.latest)

    @property
    def worker(self) -> str:
        """The worker of the call. "" if it is unknown."""
        if isinstance(self.call, Dispatch):
            return "" if self.answer is UNKNOWN else worker_of(self.answer)
        if isinstance(self.call, Release):
            return worker_of_lease(self.call.lease)
        assert isinstance(self.call, WorkerCall)
        return self.call.name

    def __str__(self) -> str:
        answer = "?" if self.answer is UNKNOWN else repr(self.answer)
        notes = [f"from a snapshot of {self.degraded} s"] if self.degraded is not None else []
        notes += [self.error] if self.error else []
        return f"{self.start:.4f} to {self.end:.4f}: {self.call} -> {answer} {', '.join(notes)}"


@dataclass
class ObservedWorker:
    """A worker in Redis.

    load: its requests, as the script counts them: leases without those that have finished, plus untracked requests.
    finished: leases whose requests have ended according to its last report.
    seq: its order among workers of equal cost.
    expires: when its heartbeat expires, at the earliest and at the latest.
    """

    models: tuple[str, ...]
    speed: float
    draining: bool
    checks: bool
    load: int
    finished: int
    seq: int
    incarnation: str
    expires: tuple[float, float]


@dataclass
class Observation:
    """The contents of Redis between two rounds, when no client has a call under way.

    at: times before and after the reading.
    workers: those that are alive.
    drained: workers that are not alive, and will be draining when they register.
    """

    at: tuple[float, float]
    workers: dict[str, ObservedWorker]
    drained: set[str]
    leases: set[str]


@dataclass
class Round:
    """Some seconds of a history, between two observations.

    models: the workers of each model, registered or not.
    steady: the models whose workers send no heartbeats and never register again.
    fault: its name.
    operations: those of this round.
    baseline: an observation of some seconds ago. Snapshots that were taken later can be checked.
    earlier: the calls of workers and operators between the baseline and this round.
    """

    number: int
    fault: str
    models: dict[str, list[str]]
    steady: list[str]
    before: Observation
    after: Observation
    operations: list[Operation]
    baseline: Observation
    earlier: list[Operation] = field(default_factory=list)


KINDS: Final = {
    "Dispatch": "dispatch",
    "Release": "release",
    "Register": "register",
    "Heartbeat": "heartbeat",
    "Drain": "drain or resume",
    "Remove": "remove",
}
