"""The reference model of the registry: what the scripts store and answer, for calls in any order."""

import itertools
import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import replace

from controller.domain.capacity import CapacityTarget, DefaultCapacities
from controller.domain.worker import Registration, Worker
from controller.store.registry import Choice, Request
from tests.model.affinity import AffinityMap, highest_cost, prefer
from tests.model.capacity import effective_capacity
from tests.model.decay import DecayClock
from tests.model.load import Load
from tests.model.lottery import Candidate, lottery
from tests.model.shortest_queue import Indexed, least_cost_of_pools
from tests.support.dispatches import worker_of_lease
from tests.support.invariants import OVERFLOW, WholeState, load_of, pools_of
from tests.support.pools import Pools

IN_FLIGHT_WINDOW = 200
LEASE_TTL = 5_000
AFFINITY_TTL = 5_000
MAX_AFFINITY_KEYS = 20
DEFAULT_CAPACITIES = DefaultCapacities({"n": 3, "o": 2})


class Known:
    """A worker in the reference model."""

    def __init__(self, registration: Registration, pools: list[str], load: Load, seq: int, index_seq: int) -> None:
        self.registration = registration
        self.models = registration.status.model_names
        self.set_pools(pools)
        self.load = load
        self.indexed = Indexed(load, seq, index_seq, name=registration.name)
        self.draining = False
        self.polled = False
        self.failure = ""
        self.capacity_source = ""
        self.leases: dict[str, float] = {}  # when granted, by lease

    def set_pools(self, pools: list[str]) -> None:
        self.pools = pools
        self.clock = "" if not pools else OVERFLOW if pools[0].startswith(OVERFLOW) else pools[0]


class Oracle:
    """The workers, leases and capacities of a registry.

    decays: bookings decay. max_sets: how many pools of several models a model may have.
    now: the time of Redis in milliseconds.
    """

    def __init__(self, decays: bool, max_sets: int, now: int) -> None:
        self.decays = decays
        self.pools = Pools(max_sets)
        self.now = now
        self.sequence = 0
        self.known: dict[str, Known] = {}
        self.clocks: dict[str, DecayClock] = {}
        self.leases: dict[str, float] = {}  # when they expire, by lease
        self.ended: list[str] = []
        self.removed: set[str] = set()
        self.drained: set[str] = set()  # purged while they were draining
        self.capacities: dict[CapacityTarget, int] = {}
        self.affinity = AffinityMap(AFFINITY_TTL, MAX_AFFINITY_KEYS)

    def reading(self, known: Known) -> float:
        clock = self.clocks.get(known.clock)
        return clock.reading_at(self.now) if self.decays and clock else 0.0

    def rate(self, known: Known) -> float:
        if not self.decays:
            return 1.0
        clock = self.clocks.get(known.clock)
        return clock.rate(known.load.speed) if clock else known.load.speed

    def learn(self, known: Known, work: float = 0, finished: int = 0) -> None:
        if self.decays and known.clock and not known.draining:
            clock = self.clocks.setdefault(known.clock, DecayClock(read_at=self.now))
            clock.learn(self.now, known.load.speed, work, finished)

    def index(self, known: Known, decay_index: bool = True) -> None:
        known.indexed.score = known.load.index_cost(self.reading(known), self.rate(known), self.decays)
        if decay_index and self.decays:
            known.indexed.decay_key = known.load.decay_key()

    def decay(self, known: Known) -> None:
        known.load.decay(self.reading(known), self.rate(known))

    def decide_capacity(self, known: Known) -> None:
        status = known.registration.status
        known.load.capacity, known.capacity_source = effective_capacity(
            known.registration.name,
            known.models,
            status.capacity,
            self.capacities,
            DEFAULT_CAPACITIES.of(status.model_names),
        )

    def report(self, known: Known, queue_length: int, age: int, is_engine: bool = False) -> None:
        self.decay(known)
        learned = known.load.report(
            queue_length, self.now - age, self.now, self.reading(known), IN_FLIGHT_WINDOW, is_engine=is_engine
        )
        if learned is not None and not is_engine:
            self.learn(known, *learned)
        self.index(known)

    def begin(self, registration: Registration, before: Known | None, draining: bool) -> Known:
        """Register a worker that begins a new incarnation."""
        name, status = registration.name, registration.status
        self.removed.discard(name)
        self.sequence += 1
        seq, index_seq = (before.indexed.seq, before.indexed.index_seq) if before else (self.sequence, self.sequence)
        queue = status.queue_length
        load = Load(
            status.speed,
            untracked=queue,
            untracked_own_rate=queue,
            reported=queue,
            reported_at=self.now,
        )
        if before is not None:  # these begin again only for engines
            load.least_before, load.peak_before = before.load.least_before, before.load.peak_before
            load.peak_since = before.load.peak_since
        known = Known(registration, self.pools.assign(status.model_names), load, seq, index_seq)
        self.decide_capacity(known)
        known.draining = draining or name in self.drained or (before is not None and before.draining)
        self.drained.discard(name)
        self.pools.put(name, [] if known.draining else known.pools, known.models)
        self.learn(known)
        load.decayed_at = self.reading(known)
        self.known[name] = known
        self.index(known)
        return known

    def end_lease(self, lease: str, expired: bool = False) -> bool:
        if lease not in self.leases:
            return False
        del self.leases[lease]
        self.ended.append(lease)
        known = self.known.get(worker_of_lease(lease))
        if known is None or lease not in known.leases:
            return False
        if known.load.capacity is not None:
            self.decay(known)
        known.load.release(known.leases.pop(lease), self.now, expired=expired)
        self.index(known, decay_index=False)
        return True

    def expire_leases(self) -> None:
        for lease in [lease for lease, expires_at in self.leases.items() if expires_at <= self.now]:
            self.end_lease(lease, expired=True)

    def purge(self, name: str) -> bool:
        known = self.known.pop(name, None)
        self.pools.move(name, ())
        if known is not None and known.draining:
            self.drained.add(name)
        return known is not None

    def decayed_load(self, known: Known) -> Load:
        """Return the load as of now. A dispatch reads the decayed load without storing it."""
        load = copy(known.load)
        load.decay(self.reading(known), self.rate(known))
        return load

    def best(self, model: str, leased: bool) -> Indexed | None:
        pools = []
        for pool in self.pools.of(model):
            members = [self.known[name] for name in self.pools.members[pool]]
            pools.append([replace(known.indexed, load=self.decayed_load(known)) for known in members])
        return least_cost_of_pools(pools or [[]], leased=leased, decays=self.decays, reading=-math.inf, rate=1.0)

    def book(self, choice: Choice, seq: int) -> None:
        known = self.known[choice.worker]
        leased = choice.lease != ""
        known.load.book(self.now, self.reading(known), self.rate(known), leased)
        known.indexed.seq = seq
        if leased or not self.decays:
            known.indexed.index_seq = seq
        self.index(known, decay_index=not leased)
        if leased:
            known.leases[choice.lease] = self.now
            self.leases[choice.lease] = self.now + LEASE_TTL

    def preferred(self, request: Request, best: Indexed, chosen: Choice) -> tuple[str | None, str]:
        """Return the remembered worker to choose, or None, and the outcome. Remember the worker that was chosen.

        If a cost is so close to the limit that rounding decides, the answer follows the choice.
        """
        serving = set(itertools.chain(*(self.pools.members[pool] for pool in self.pools.of(request.model))))

        def can_be_chosen(name: str) -> bool:
            return name in serving and not self.known[name].load.failing

        def cost(name: str) -> float:
            return self.decayed_load(self.known[name]).cost(-math.inf, 1.0)

        def is_overloaded(name: str, number: int) -> bool:
            load = self.known[name].load
            highest = highest_cost(best.load.cost(-math.inf, 1.0), cost(name), load.speed, load.capacity, number)
            if math.isclose(cost(name), highest, rel_tol=2e-6, abs_tol=1e-9):
                return (chosen.worker, chosen.affinity) != (name, "hit")
            return cost(name) > highest

        remembered = self.affinity.remembered(request.affinity, self.now)
        preferred, outcome, gone = prefer(remembered, can_be_chosen, cost, is_overloaded)
        self.affinity.remember(request.affinity, chosen.worker, gone, self.now)
        if preferred and chosen.affinity == "hit" and math.isclose(cost(preferred), cost(chosen.worker), rel_tol=2e-6):
            return chosen.worker, outcome
        return preferred, outcome

    def check_dispatches(self, requests: Sequence[Request], choices: list[Choice]) -> None:
        """Check that the reference model makes the same choices, and book them."""
        first = self.sequence + 1
        self.sequence += len(requests)
        assert len(choices) == len(requests)
        for seq, request, choice in zip(itertools.count(first), requests, choices, strict=False):
            leased = request.lease_ms > 0
            if leased:
                self.expire_leases()
            best = self.best(request.model, leased)
            assert (choice.worker != "") == (best is not None)
            if best is None:
                assert choice.affinity == ""
                continue
            known = self.known[choice.worker]
            preferred, outcome = self.preferred(request, best, choice) if request.affinity else (None, "")
            assert choice.affinity == outcome
            if preferred is not None:
                assert choice.worker == preferred
                self.book(choice, seq)
                continue
            costs = [load.cost(-math.inf, 1.0) for load in (best.load, self.decayed_load(known))]
            assert math.isclose(*costs, rel_tol=2e-6, abs_tol=1e-9), (choice, self.known)
            if costs[0] == costs[1]:
                assert known.indexed.seq == best.seq, "the worker dispatched to least recently is chosen"
            assert (choice.lease != "") == leased
            self.book(choice, seq)

    def check_draws(self, requested: list[tuple[str, bool]], choices: list[Choice], draws: list[float] | None) -> None:
        """Check that the reference model draws the same workers, and book the leases.

        draws: None if a draw of an expired worker may have been repeated.
        """
        first = self.sequence + 1
        if any(leased for _, leased in requested):
            self.sequence += len(requested)
            self.expire_leases()
        assert len(choices) == len(requested)
        for i, ((model, leased), choice) in enumerate(zip(requested, choices, strict=True)):
            pools = [
                [Candidate(name, self.known[name].load.speed, self.known[name].load.failing) for name in members]
                for members in (self.pools.members[pool] for pool in self.pools.of(model))
            ]
            candidates = {candidate.name: candidate for candidate in itertools.chain(*pools)}
            assert (choice.worker != "") == bool(candidates)
            if not candidates:
                continue
            is_failing = candidates[choice.worker].failing
            assert not is_failing or all(candidate.failing for candidate in candidates.values())
            assert draws is None or candidates[choice.worker] == lottery(pools, draws[i])
            assert (choice.lease != "") == leased
            if leased:
                self.book(choice, first + i)
            else:
                self.known[choice.worker].load.dispatched_by_lottery += 1

    def check_state(self, state: WholeState, clocks: Mapping[str, str]) -> None:
        """Check what the store contains. clocks: what is written of each decay clock."""
        assert state.hashes.keys() == self.known.keys()
        assert set(state.leases) == set(self.leases)
        for known in self.known.values():
            self.check_worker(known, state)
        for model, pools in state.pools.items():
            assert pools == self.pools.of(model)
        assert state.affinity == {
            str(number): {key: "\n".join(names) for key, names in by_key.items()}
            for number, by_key in self.affinity.generations.items()
        }
        for name, clock in self.clocks.items():
            written = [float(part) for part in clocks[name].split()]
            reading = written[0] + max(0.0, self.now - written[1]) / written[2]
            assert math.isclose(reading, clock.reading_at(self.now), abs_tol=1e-6)
            assert math.isclose(written[2], clock.time_constant, rel_tol=1e-9)

    def check_worker(self, known: Known, state: WholeState) -> None:
        name = known.registration.name
        fields = state.hashes[name]
        load = load_of(fields, state.checkpoints.get(name, []))
        reading, rate = self.reading(known), self.rate(known)
        for fact in ("speed", "capacity", "leased", "finished", "failing", "reported", "reported_at", "own", "work",
                     "dispatched", "dispatched_by_lottery", "leased_since_report", "released_since_report",
                     "least", "peak", "least_before", "peak_before", "peak_since", "checkpoints"):  # fmt: skip
            assert getattr(load, fact) == getattr(known.load, fact), (name, fact, load, known.load)
        assert math.isclose(load.untracked_at(reading), known.load.untracked_at(reading), rel_tol=1e-6, abs_tol=1e-9)
        assert math.isclose(load.queue(reading, rate), known.load.queue(reading, rate), rel_tol=1e-6, abs_tol=1e-9)
        reported_capacity = known.registration.status.capacity
        assert fields["reported_capacity"] == ("" if reported_capacity is None else str(reported_capacity))
        assert fields["capacity_source"] == known.capacity_source
        assert (int(fields["seq"]), int(fields["index_seq"])) == (known.indexed.seq, known.indexed.index_seq)
        assert pools_of(fields) == known.pools
        for pool in known.pools if self.decays and not known.draining else []:
            score = state.decay_indexes[pool][name] - 2**54 * load.failing
            key = score / 1e6 if score > -1e9 else -math.inf
            assert math.isclose(key, known.indexed.decay_key, abs_tol=1e-5), (name, pool, key, known.indexed)

    def check_listing(self, workers: Sequence[Worker]) -> None:
        """Check what the registry lists."""
        listed = {worker.name: worker for worker in workers}
        assert listed.keys() == self.known.keys()
        for name, known in self.known.items():
            worker, load = listed[name], known.load
            queue = load.queue(self.reading(known), self.rate(known))
            assert abs(worker.status.queue_length - queue) <= 0.5 + 1e-6
            assert replace(worker.status, queue_length=0) == replace(
                known.registration.status, queue_length=0, capacity=load.capacity
            )
            assert worker.reported_capacity == known.registration.status.capacity
            assert worker.capacity_source == known.capacity_source
            assert worker.multimodal == known.registration.multimodal
            assert (worker.leased, worker.draining, worker.failing) == (load.leased, known.draining, known.failure)
            assert (worker.polled, worker.reported) == (known.polled, load.reported)
            assert worker.booked == load.dispatched + load.dispatched_by_lottery

    def models(self, multimodal: bool | None) -> list[str]:
        """Return the models of live workers as Registry.list_models() does."""
        serving = {
            model
            for known in self.known.values()
            for model in known.models
            if not known.draining and multimodal in (None, known.registration.multimodal)
        }
        return sorted(serving)
