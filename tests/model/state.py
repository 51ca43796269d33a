"""The reference model of a cluster: workers, leases and operators' calls, without Redis and without replicas."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple, Self

from controller.domain import worker as domain
from tests.support.dispatches import worker_of, worker_of_lease

DRAINING_KEPT = 3_600.0  # seconds for which the store keeps the draining flag of an expired or removed worker
REPLY_KEPT_MS = 360_000  # a registry with a deadline of 60 s keeps the reply to a dispatch for this long


@dataclass
class Worker:
    """A live worker.

    booked: least and greatest possible number of bookings without a lease since the last report. Both are possible,
    because a report does not acknowledge bookings that may be in flight.
    drawn: bookings by the lottery since the last report.
    registration: None if it has a new number that was not observed yet.
    """

    models: tuple[str, ...]
    multimodal: bool
    checks: bool
    expires_at: float
    draining: bool = False
    failing: str = ""
    polled: bool = False
    booked: tuple[int, int] = (0, 0)
    drawn: int = 0
    leases: set[str] = field(default_factory=set)
    registration: int | None = None

    def copy(self) -> Self:
        return replace(self, leases=set(self.leases))

    def book(self, number: int) -> None:
        self.booked = max(0, self.booked[0] + number), max(0, self.booked[1] + number)

    def report(self, in_flight: bool) -> None:
        """Apply a report of the worker. in_flight: True if the report may leave out recent bookings."""
        self.booked = 0, self.booked[1] if in_flight else 0
        self.drawn = 0

    def clear_failure(self) -> None:
        """Apply a status response. It clears a failed request only if the worker sends no heartbeats."""
        if self.failing == "polls" or not self.checks:
            self.failing = ""


class Lost(NamedTuple):
    """A dispatch without an answer: the worker or lease, the time, and whether the worker was drawn by the lottery."""

    chosen: str
    at: int
    drawn: bool


@dataclass
class Unreconciled:
    """The report of a replica that reconciles.

    bookings: number of requests that were sent to each worker in degraded mode.
    lost: dispatches without an answer.
    released: leases that ended during the outage.
    """

    bookings: Counter[str] = field(default_factory=Counter)
    lost: list[Lost] = field(default_factory=list)
    released: set[str] = field(default_factory=set)


@dataclass
class Observed:
    """The contents of the store: the live workers, and all leases with their expiration times in ms."""

    workers: dict[str, domain.Worker]
    leases: dict[str, int]


@dataclass
class State:
    """A state of the model.

    now: monotonic clock of the replicas, in seconds.
    clock: clock of the store, in milliseconds.
    leases: expiration times of all leases in the store. A lease of an earlier incarnation of its worker is inactive.
    orphans: leases of expired workers. The store may have deleted these workers or not.
    drained: when draining workers expired, or were removed by a refresh. -inf if the store may have lost the flag.
    unreconciled: for each replica.
    last_heard: time of the last registration, refresh or heartbeat of each worker.
    removed: workers that were removed and have not registered since.
    """

    now: float
    clock: int
    workers: dict[str, Worker] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    orphans: set[str] = field(default_factory=set)
    drained: dict[str, float] = field(default_factory=dict)
    unreconciled: list[Unreconciled] = field(default_factory=list)
    last_heard: dict[str, float] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)

    def copy(self) -> "State":
        return State(
            self.now,
            self.clock,
            {name: worker.copy() for name, worker in self.workers.items()},
            dict(self.leases),
            set(self.orphans),
            dict(self.drained),
            [
                Unreconciled(Counter(report.bookings), list(report.lost), set(report.released))
                for report in self.unreconciled
            ],
            dict(self.last_heard),
            set(self.removed),
        )

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.clock += round(1000 * seconds)
        for name in [name for name, worker in self.workers.items() if worker.expires_at <= self.now]:
            self.expire(name)

    def expire(self, name: str) -> None:
        """Expire the heartbeat of a worker."""
        if self.workers[name].draining:
            self.drained[name] = self.now
        self.orphans |= self.workers.pop(name).leases

    def serving(self, model: str) -> list[str]:
        return [name for name, worker in self.workers.items() if model in worker.models and not worker.draining]

    def end_lease(self, lease: str) -> None:
        self.leases.pop(lease, None)
        self.orphans.discard(lease)
        if worker_of_lease(lease) in self.workers:
            self.workers[worker_of_lease(lease)].leases.discard(lease)

    def begin_incarnation(self, name: str) -> bool | None:
        """Begin a new incarnation of a worker, which ends the leases of the one before.

        Returns True if the worker is draining, and None if the model does not determine it.
        """
        self.orphans = {lease for lease in self.orphans if worker_of_lease(lease) != name}
        expired_at = self.drained.pop(name, None)
        if name in self.workers:
            return self.workers[name].draining
        if expired_at is None:
            return False
        return True if self.now - expired_at < DRAINING_KEPT else None

    def reconcile(self, replica: int) -> None:
        """Reconcile a replica: see lua/dispatch/reconcile.lua."""
        report, self.unreconciled[replica] = self.unreconciled[replica], Unreconciled()
        for lease in report.released:
            self.end_lease(lease)
        for chosen, at, drawn in report.lost:
            if self.clock - at >= REPLY_KEPT_MS:
                continue  # the reply has expired, so the store cannot take the booking back
            if worker_of(chosen) != chosen:
                self.end_lease(chosen)
            elif chosen in self.workers and drawn:
                self.workers[chosen].drawn = max(0, self.workers[chosen].drawn - 1)
            elif chosen in self.workers:
                self.workers[chosen].book(-1)
        for name, number in report.bookings.items():
            if name in self.workers:
                self.workers[name].book(number)

    def drop_overdue(self, leases: Mapping[str, int]) -> None:
        """End the expired leases that the store has ended. It may do this at any time after the expiration."""
        for lease in [lease for lease, ends_at in self.leases.items() if ends_at <= self.clock and lease not in leases]:
            self.end_lease(lease)

    def differences(self, observed: Observed) -> list[str]:
        """Return the differences between the model and the store."""
        self.drop_overdue(observed.leases)
        found = []
        if self.workers.keys() != observed.workers.keys():
            found.append(f"live workers {sorted(self.workers)}, in the store {sorted(observed.workers)}")
        for name in self.workers.keys() & observed.workers.keys():
            ours, theirs = self.workers[name], observed.workers[name]
            for field_name, expected, actual in (
                ("models", ours.models, theirs.status.model_names),
                ("multimodal", ours.multimodal, theirs.multimodal),
                ("check_heart_beat", ours.checks, theirs.check_heart_beat),
                ("draining", ours.draining, theirs.draining),
                ("failing", ours.failing, theirs.failing),
                ("polled", ours.polled, theirs.polled),
                ("leased", len(ours.leases), theirs.leased),
                ("registration", ours.registration or theirs.registration, theirs.registration),
            ):
                if expected != actual:
                    found.append(f"{name}: {field_name} {expected}, in the store {actual}")
            if not ours.booked[0] <= theirs.booked - ours.drawn <= ours.booked[1]:
                found.append(f"{name}: booked {ours.booked} + {ours.drawn}, in the store {theirs.booked}")
            expires_in = inf if theirs.expires_in is None else theirs.expires_in
            if (expires_in == inf) != (ours.expires_at == inf) or (
                expires_in < inf and abs(ours.expires_at - self.now - expires_in) > 10
            ):
                found.append(f"{name}: expires in {ours.expires_at - self.now} s, in the store {expires_in} s")
        for lease in self.leases.keys() | observed.leases.keys():
            if self.leases.get(lease) != observed.leases.get(lease):
                found.append(f"lease {lease}: {self.leases.get(lease)}, in the store {observed.leases.get(lease)}")
        return found

    def observe(self, observed: Observed) -> None:
        """Copy from the store what the model does not determine. Call this only if differences() is empty."""
        for name, worker in self.workers.items():
            worker.registration = observed.workers[name].registration
            booked = observed.workers[name].booked - worker.drawn
            worker.booked = booked, booked

    def adopt(self, observed: Observed, hashes: Mapping[str, Mapping[str, str]]) -> None:
        """Replace this state with the contents of the store. hashes: the hash of each worker."""
        self.leases = dict(observed.leases)
        self.drained = dict.fromkeys(self.last_heard, -inf)
        self.unreconciled = [Unreconciled() for _ in self.unreconciled]
        self.removed |= self.workers.keys() - observed.workers.keys()
        self.workers = {
            name: Worker(
                worker.status.model_names,
                worker.multimodal,
                worker.check_heart_beat,
                inf if worker.expires_in is None else self.now + worker.expires_in,
                worker.draining,
                worker.failing,
                worker.polled,
                (worker.booked - int(hashes[name]["dispatched_by_lottery"]),) * 2,
                int(hashes[name]["dispatched_by_lottery"]),
                {lease for lease in observed.leases if lease.endswith(f"-{hashes[name]['incarnation']}@{name}")},
                worker.registration,
            )
            for name, worker in observed.workers.items()
        }
        self.orphans = {lease for lease in observed.leases if worker_of_lease(lease) not in self.workers}
