"""The reference model of a cluster: the workers, the leases and the operators' acts, with no Redis and no replicas."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf

from controller.domain import worker as domain
from tests.support.dispatches import worker_of, worker_of_lease

DRAINING_KEPT = 3_600.0  # seconds that the store remembers of a worker that is gone that it was draining
REPLY_KEPT_MS = 360_000  # as a registry with a deadline of 60 s keeps the reply to a dispatch


@dataclass
class Worker:
    """A live worker. booked is a range, because a report leaves out bookings that may still be on their way.

    registration is None if it has a new number that was not observed yet.
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

    def book(self, number: int) -> None:
        self.booked = max(0, self.booked[0] + number), max(0, self.booked[1] + number)

    def report(self, unseen: bool) -> None:
        """The worker has reported its queue. unseen: bookings of the last moments were perhaps not in it."""
        self.booked = 0, self.booked[1] if unseen else 0
        self.drawn = 0

    def forgive(self) -> None:
        if self.failing == "polls" or not self.checks:
            self.failing = ""


@dataclass
class Debt:
    """What a replica tells the store when it returns to it.

    lost are dispatches whose answers did not come: the worker or lease, and when. released are leases that ended while
    the store did not serve.
    """

    bookings: Counter[str] = field(default_factory=Counter)
    lost: list[tuple[str, int]] = field(default_factory=list)
    released: set[str] = field(default_factory=set)


@dataclass
class Observed:
    """What the store holds: the live workers, and all leases with the times in ms at which they end."""

    workers: dict[str, domain.Worker]
    leases: dict[str, int]


@dataclass
class State:
    """now is the replicas' monotonic clock in seconds, clock the store's in milliseconds.

    leases has all that the store holds, those of earlier lives of a worker too, which ended with that life. ghosts are
    those of expired workers: the store may or may not have deleted these workers. drained has when draining workers
    expired, or -inf where the store may have lost it.
    """

    now: float
    clock: int
    workers: dict[str, Worker] = field(default_factory=dict)
    leases: dict[str, int] = field(default_factory=dict)
    ghosts: set[str] = field(default_factory=set)
    drained: dict[str, float] = field(default_factory=dict)
    debts: list[Debt] = field(default_factory=list)
    signs: dict[str, float] = field(default_factory=dict)
    removed: set[str] = field(default_factory=set)

    def copy(self) -> "State":
        return State(
            self.now,
            self.clock,
            {name: replace(worker, leases=set(worker.leases)) for name, worker in self.workers.items()},
            dict(self.leases),
            set(self.ghosts),
            dict(self.drained),
            [Debt(Counter(debt.bookings), list(debt.lost), set(debt.released)) for debt in self.debts],
            dict(self.signs),
            set(self.removed),
        )

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.clock += round(1000 * seconds)
        for name in [name for name, worker in self.workers.items() if worker.expires_at <= self.now]:
            if self.workers[name].draining:
                self.drained[name] = self.now
            self.ghosts |= self.workers.pop(name).leases

    def serving(self, model: str) -> list[str]:
        return [name for name, worker in self.workers.items() if model in worker.models and not worker.draining]

    def end_lease(self, lease: str) -> None:
        self.leases.pop(lease, None)
        self.ghosts.discard(lease)
        if worker_of_lease(lease) in self.workers:
            self.workers[worker_of_lease(lease)].leases.discard(lease)

    def begin_life(self, name: str) -> bool | None:
        """End what belonged to an earlier life; return whether the worker drains, None if it may or may not."""
        self.ghosts = {lease for lease in self.ghosts if worker_of_lease(lease) != name}
        expired_at = self.drained.pop(name, None)
        if name in self.workers:
            return self.workers[name].draining
        if expired_at is None:
            return False
        return True if self.now - expired_at < DRAINING_KEPT else None

    def settle(self, replica: int) -> None:
        """The replica returns to the store: see lua/dispatch/reconcile.lua."""
        debt, self.debts[replica] = self.debts[replica], Debt()
        for lease in debt.released:
            self.end_lease(lease)
        for chosen, at in debt.lost:
            if self.clock - at >= REPLY_KEPT_MS:
                continue  # the store does not know any more what it booked
            if worker_of(chosen) != chosen:
                self.end_lease(chosen)
            elif chosen in self.workers:
                self.workers[chosen].book(-1)
        for name, number in debt.bookings.items():
            if name in self.workers:
                self.workers[name].book(number)

    def drop_overdue(self, leases: Mapping[str, int]) -> None:
        """Leases whose time is over end at any time: follow the store."""
        for lease in [lease for lease, ends_at in self.leases.items() if ends_at <= self.clock and lease not in leases]:
            self.end_lease(lease)

    def differences(self, seen: Observed) -> list[str]:
        """What the store holds otherwise than the model."""
        self.drop_overdue(seen.leases)
        found = []
        if self.workers.keys() != seen.workers.keys():
            found.append(f"live workers {sorted(self.workers)}, in the store {sorted(seen.workers)}")
        for name in self.workers.keys() & seen.workers.keys():
            ours, theirs = self.workers[name], seen.workers[name]
            for what, expected, held in (
                ("models", ours.models, theirs.status.model_names),
                ("multimodal", ours.multimodal, theirs.multimodal),
                ("check_heart_beat", ours.checks, theirs.check_heart_beat),
                ("draining", ours.draining, theirs.draining),
                ("failing", ours.failing, theirs.failing),
                ("polled", ours.polled, theirs.polled),
                ("leased", len(ours.leases), theirs.leased),
                ("registration", ours.registration or theirs.registration, theirs.registration),
            ):
                if expected != held:
                    found.append(f"{name}: {what} {expected}, in the store {held}")
            if not ours.booked[0] <= theirs.booked - ours.drawn <= ours.booked[1]:
                found.append(f"{name}: booked {ours.booked} + {ours.drawn}, in the store {theirs.booked}")
            expires_in = inf if theirs.expires_in is None else theirs.expires_in
            if (expires_in == inf) != (ours.expires_at == inf) or (
                expires_in < inf and abs(ours.expires_at - self.now - expires_in) > 10
            ):
                found.append(f"{name}: expires in {ours.expires_at - self.now} s, in the store {expires_in} s")
        for lease in self.leases.keys() | seen.leases.keys():
            if self.leases.get(lease) != seen.leases.get(lease):
                found.append(f"lease {lease}: {self.leases.get(lease)}, in the store {seen.leases.get(lease)}")
        return found

    def observe(self, seen: Observed) -> None:
        """Take what the model leaves open from the store, which agrees with it otherwise."""
        for name, worker in self.workers.items():
            worker.registration = seen.workers[name].registration
            booked = seen.workers[name].booked - worker.drawn
            worker.booked = booked, booked

    def adopt(self, seen: Observed, hashes: Mapping[str, Mapping[str, str]]) -> None:
        """Begin again from what the store holds. hashes are those of the workers."""
        self.leases = dict(seen.leases)
        self.drained = dict.fromkeys(self.signs, -inf)
        self.debts = [Debt() for _ in self.debts]
        self.removed |= self.workers.keys() - seen.workers.keys()
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
                {lease for lease in seen.leases if lease.endswith(f"-{hashes[name]['incarnation']}@{name}")},
                worker.registration,
            )
            for name, worker in seen.workers.items()
        }
        self.ghosts = {lease for lease in seen.leases if worker_of_lease(lease) not in self.workers}
