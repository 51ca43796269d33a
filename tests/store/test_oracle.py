"""Test that random histories of calls give the same state in the scripts and in the reference model in tests/model.

The test sets the clock of Redis, so time passes only between calls.
"""

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from controller.domain.capacity import CapacityTarget, DefaultCapacities
from controller.domain.checkpoints import CHECKPOINT_MS
from controller.domain.worker import Registration, WorkerStatus
from controller.store import keys
from controller.store.connection import connect
from controller.store.reconciliation import split
from controller.store.registry import Choice, Registry, Request
from tests.conftest import CLOCK, STORES
from tests.model.capacity import effective_capacity
from tests.model.decay import DecayClock
from tests.model.load import Load
from tests.model.lottery import Candidate, lottery
from tests.model.shortest_queue import Indexed, least_cost_of_pools
from tests.support.clients import Client
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, worker_of_lease
from tests.support.headers import listed_accesses
from tests.support.invariants import OVERFLOW, WholeState, check_invariants, load_of, pools_of
from tests.support.key_accesses import record_accesses, recorded_accesses
from tests.support.parts import examples
from tests.support.pools import Pools, allow_sets

NAMES = [f"http://w{i}:1" for i in range(6)]
MODELS = ["m", "n", "o"]
IN_FLIGHT_WINDOW = 200
LEASE_TTL = 5_000
NOW = 1_800_000_000_000
DEFAULT_CAPACITIES = DefaultCapacities({"n": 3, "o": 2})
_namespaces = itertools.count()
_request_ids = itertools.count()

names = st.sampled_from([*NAMES[:3], *NAMES])
targets = names.map(lambda name: CapacityTarget(worker_name=name)) | st.sampled_from(MODELS).map(
    lambda model: CapacityTarget(model=model)
)
queues = st.integers(0, 8)
ages = st.sampled_from([0, 0, 0, 30, 150, 400, 3_000])
models = st.sampled_from(["m", "m", "n", "n", "o", "absent"])
requests = st.lists(st.tuples(models, st.booleans()), min_size=1, max_size=6)
statuses = st.builds(
    WorkerStatus,
    model_names=st.lists(st.sampled_from(MODELS), unique=True, max_size=3).map(tuple),
    speed=st.sampled_from([1, 2, 0.5, 0.1, 7.5]),
    queue_length=queues,
    capacity=st.sampled_from([None, None, 1, 4]),
)


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


class RegistryMachine(RuleBasedStateMachine):
    """Make each call on the registry and on the reference model, and compare their states."""

    def __init__(self, kind: str, url: str, decays: bool, max_sets: int = 24) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.client: Client = (
            fakeredis.FakeAsyncRedis(decode_responses=True) if kind == "fakeredis" else connect(url, 10.0)
        )
        self.namespace = f"oracle-{kind}-{next(_namespaces)}"
        self.draws: Iterator[float] = iter(())
        self.registry = Registry(
            self.client,
            self.namespace,
            90.0,
            10.0,
            decays,
            IN_FLIGHT_WINDOW / 1000,
            draw=lambda: next(self.draws),
            default_capacities=DEFAULT_CAPACITIES,
        )
        self.decays = decays
        self.pools = Pools(max_sets)
        self.now = NOW
        self.sequence = 0
        self.known: dict[str, Known] = {}
        self.clocks: dict[str, DecayClock] = {}
        self.leases: dict[str, float] = {}  # when they expire, by lease
        self.ended: list[str] = []
        self.removed: set[str] = set()
        self.drained: set[str] = set()  # purged while they were draining
        self.capacities: dict[CapacityTarget, int] = {}
        self.tick(0)

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.client.delete(CLOCK, *self.run(self.client.keys(f"{{{self.namespace}}}*"))))
        self.run(self.client.aclose())
        self.runner.close()

    def tick(self, by: int) -> None:
        self.now += by
        self.run(self.client.set(CLOCK, self.now))

    # The reference model

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

    def report(self, known: Known, queue_length: int, age: int) -> None:
        self.decay(known)
        learned = known.load.report(queue_length, self.now - age, self.now, self.reading(known), IN_FLIGHT_WINDOW)
        if learned is not None:
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

    def check_dispatches(self, requested: list[tuple[str, bool]], choices: list[Choice]) -> None:
        """Check that the reference model makes the same choices, and book them."""
        first = self.sequence + 1
        self.sequence += len(requested)
        assert len(choices) == len(requested)
        for seq, (model, leased), choice in zip(itertools.count(first), requested, choices, strict=False):
            if leased:
                self.expire_leases()
            best = self.best(model, leased)
            assert (choice.worker != "") == (best is not None)
            if best is None:
                continue
            known = self.known[choice.worker]
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

    # The calls

    @rule(by=st.sampled_from([1, 20, 49, 50, 60, 300, 400, 999, 1_000, 1_500, 4_000, 20_000]))
    def advance_time(self, by: int) -> None:
        self.tick(by)

    @rule(by=st.sampled_from([1, 70, 350, 5_000]))
    def set_clock_back(self, by: int) -> None:
        self.tick(-by)

    @rule(name=names, status=statuses, multimodal=st.booleans())
    def register(self, name: str, status: WorkerStatus, multimodal: bool = False) -> None:
        registration = Registration(name, status, check_heart_beat=False, multimodal=multimodal)
        before = self.known.get(name)
        assert self.run(self.registry.register(registration)) == (before is None)
        self.begin(registration, before, draining=False)

    @rule(name=names, status=statuses, draining=st.booleans(), polled=st.booleans())
    def restore(self, name: str, status: WorkerStatus, draining: bool, polled: bool) -> None:
        registration = Registration(name, status, check_heart_beat=False, multimodal=False)
        is_lost = name not in self.known and name not in self.removed
        assert self.run(self.registry.restore(registration, draining=draining, polled=polled)) == is_lost
        if is_lost:
            self.begin(registration, None, draining).polled = polled

    @rule(name=names, queue_length=queues, age=ages, is_current=st.sampled_from([True, True, False]))
    def refresh(self, name: str, queue_length: int, age: int, is_current: bool) -> None:
        known = self.known.get(name)
        number = int(self.run(self.client.hget(keys.worker(self.namespace, name), "registration")) or 0)
        status = replace(known.registration.status, queue_length=queue_length) if known else WorkerStatus((), 1, 0)
        registration = Registration(name, status, check_heart_beat=False, multimodal=False)
        # The registry would compute ages by its own clock, but the clock of Redis is stopped.
        arguments = self.registry._registration_arguments(registration)
        number += not is_current
        result = self.run(self.registry._run("refresh", int(self.decays), IN_FLIGHT_WINDOW, *arguments, number, age))
        assert result == [0 if known and is_current else -1]
        if known is None or not is_current:
            return
        self.sequence += 1
        known.registration = registration
        known.load.failing, known.failure = False, ""  # without heartbeats, a poll clears any failure
        self.decay(known)  # decay by the old clock first
        pools, old_clock = self.pools.assign(known.models), known.clock
        known.set_pools(pools)
        self.learn(known)
        new_clock, known.clock = known.clock, old_clock
        self.report(known, queue_length, age)
        known.clock = new_clock
        self.decide_capacity(known)
        if new_clock != old_clock:
            known.load.decayed_at = self.reading(known)
        self.pools.put(name, [] if known.draining else pools, known.models)
        self.index(known)

    @rule(reported=st.lists(st.tuples(names, queues, ages), min_size=1, max_size=3), polls=st.booleans())
    def reports(self, reported: list[tuple[str, int, int]], polls: bool) -> None:
        common = *self.registry._repeatable(), "" if polls else 90_000, int(self.decays), IN_FLIGHT_WINDOW
        reports: Iterator[str | int] = itertools.chain.from_iterable(reported)
        known = self.run(self.registry._run("heartbeat", *common, *reports))
        assert known == [int(name in self.known) for name, _, _ in reported]
        for name, queue_length, age in reported:
            if name in self.known:
                worker = self.known[name]
                worker.polled = worker.polled or polls
                worker.failure, worker.load.failing = "", False  # as in refresh()
                self.report(worker, queue_length, age)
        self.expire_leases()

    @rule(requested=requests)
    def dispatch(self, requested: list[tuple[str, bool]]) -> None:
        call = dispatch_shortest_queue(
            self.registry, [Request(model, LEASE_TTL * leased) for model, leased in requested]
        )
        self.check_dispatches(requested, self.run(call))

    @rule(requested=requests, data=st.data())
    def dispatch_by_lottery(self, requested: list[tuple[str, bool]], data: st.DataObject) -> None:
        draws = [data.draw(st.floats(0, 1, exclude_max=True)) for _ in requested]
        self.check_draws(requested, self.draw(requested, draws), draws)

    def draw(self, requested: list[tuple[str, bool]], draws: list[float]) -> list[Choice]:
        self.draws = iter(draws)
        call = dispatch_lottery(self.registry, [Request(model, LEASE_TTL * leased) for model, leased in requested])
        choices: list[Choice] = self.run(call)
        return choices

    @rule(
        requested=requests,
        bookings=st.dictionaries(names, st.integers(0, 3)),
        runs=st.sampled_from(["before", "after", "never"]),
        by_lottery=st.booleans(),
        pause=st.sampled_from([0, 0, 60, 1_500, 6_000]),
        times=st.integers(1, 2),
        reported=st.none() | queues,
        kept=st.none() | requests,
    )
    def reconcile(
        self,
        requested: list[tuple[str, bool]],
        bookings: dict[str, int],
        runs: str,
        by_lottery: bool = False,
        pause: int = 0,
        times: int = 1,
        reported: int | None = None,
        kept: list[tuple[str, bool]] | None = None,
    ) -> None:
        """Reconcile bookings and a dispatch with a lost reply, which runs before, after or never.

        reported, kept: if it runs before, workers then report this queue length, and these requests are dispatched.
        """
        request_id = f"id-{next(_request_ids)}"
        method = "dispatch_lottery" if by_lottery else "dispatch_shortest_queue"
        arguments = ((m, LEASE_TTL * leased, "0.5")[: 3 if by_lottery else 2] for m, leased in requested)
        call = request_id, 90_000, int(self.decays), *itertools.chain(*arguments)
        choices: list[Choice] = []
        if runs == "before":
            reply = self.run(self.registry._run(method, *call))
            choices = [Choice(*pair) for pair in zip(reply[::2], reply[1::2], strict=True)]
            if by_lottery:
                self.check_draws(requested, choices, [0.5] * len(requested))
            else:
                self.check_dispatches(requested, choices)
            self.tick(pause)
            if reported is not None:
                self.reports([(name, reported, 0) for name in NAMES], polls=False)
            if kept:
                self.dispatch(kept)
        for part in split(bookings, [request_id], 0):
            for _ in range(times):
                self.run(self.registry.reconcile(part))
        for choice in choices:
            self.end_lease(choice.lease)
        undone = Counter(c.worker for c in choices if c.worker and not c.lease)
        if by_lottery:
            for name in undone.keys() & self.known.keys():
                load = self.known[name].load
                load.dispatched_by_lottery = max(0, load.dispatched_by_lottery - undone.pop(name))
            undone.clear()
        for name, number in [*((name, -count) for name, count in undone.items()), *bookings.items()]:
            if name in self.known:
                known = self.known[name]
                known.load.reconcile(number, self.reading(known), self.rate(known))
                self.index(known)
        if runs == "after":
            assert self.run(self.registry._run(method, *call)) == []

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.leases, *self.ended, f"{self.now}-1-1-1@{NAMES[0]}"]))
        in_time = self.leases.get(lease, 0) > self.now
        assert self.run(self.registry.release([lease])) == [self.end_lease(lease) and in_time]

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.leases, *self.ended, f"{self.now}-1-1-1@{NAMES[0]}"]))
        known = self.known.get(worker_of_lease(lease))
        is_active = self.leases.get(lease, 0) > self.now and known is not None and lease in known.leases
        assert self.run(self.registry.renew(lease)) == is_active
        if is_active:
            self.leases[lease] = self.now + LEASE_TTL

    @rule(name=names, drain=st.booleans())
    def drain(self, name: str, drain: bool) -> None:
        known = self.known.get(name)
        assert self.run(self.registry.drain(name, drain)) == (known is not None)
        if not drain:
            self.drained.discard(name)
        if known is None or known.draining == drain:
            return
        self.sequence += 1
        self.decay(known)
        known.draining = drain
        self.pools.put(name, [] if drain else known.pools, known.models)
        if self.decays and not drain and known.clock:
            self.learn(known)
            known.load.decayed_at = self.reading(known)
        self.index(known)

    @rule(
        name=targets,
        capacity=st.sampled_from([None, 1, 2, 4]),
        applied_to=st.sampled_from(["covered", "covered", "all", "none"]),
    )
    def set_capacity(self, name: CapacityTarget, capacity: int | None, applied_to: str) -> None:
        """Set a capacity. If it is not applied, workers keep theirs until they register or are refreshed."""
        assert self.run(self.registry.set_capacity(name, capacity)) == self.capacities.get(name)
        if capacity is None:
            self.capacities.pop(name, None)
        else:
            self.capacities[name] = capacity
        assert dict(self.run(self.registry.list_capacities()).by_target) == self.capacities
        listed = self.run(self.registry.list_workers()).workers if applied_to != "none" else []
        covered = [worker for worker in listed if applied_to == "all" or name.covers(worker)]
        assert self.run(self.registry.apply_capacities(covered)) == len(covered)
        for known in (self.known[worker.name] for worker in covered):
            before = copy(known.load)
            self.decide_capacity(known)
            if known.load.capacity != before.capacity:
                known.load.capacity = before.capacity
                self.decay(known)
                self.decide_capacity(known)
                self.index(known)

    @rule(name=names, polls=st.booleans())
    def report_failure(self, name: str, polls: bool) -> None:
        known = self.known.get(name)
        is_ignored = known is not None and polls and not known.polled
        expected = None if is_ignored else known is not None
        assert self.run(self.registry.report_failure(name, of_polls=polls)) is expected
        if known is not None and not is_ignored:
            self.decay(known)
            known.load.failing = True
            known.failure = "request" if known.failure == "request" or not polls else "polls"
            self.index(known)

    @rule(name=names)
    def remove(self, name: str) -> None:
        was_known = self.purge(name)
        self.drained.discard(name)
        assert self.run(self.registry.remove(name)) == was_known
        if was_known:
            self.sequence += 1
            self.removed.add(name)

    @rule(
        name=names,
        requested=requests,
        discovered_by=st.sampled_from(["dispatch", "lottery", "heartbeat", "failure", ""]),
    )
    def expire(self, name: str, requested: list[tuple[str, bool]], discovered_by: str) -> None:
        """Expire the heartbeat of a worker. A call may find the worker before the sweep."""
        if name not in self.known:
            return
        self.purge(name)
        self.run(self.client.delete(keys.heartbeat(self.namespace, name)))
        if discovered_by == "dispatch":
            self.dispatch(requested)
        elif discovered_by == "lottery":
            self.check_draws(requested, self.draw(requested, [0.5] * len(requested)), None)
        elif discovered_by == "heartbeat":
            self.reports([(name, 1, 0)], polls=False)
        elif discovered_by == "failure":
            assert not self.run(self.registry.report_failure(name))
        self.compare_listings()
        self.run(self.client.zadd(keys.workers(self.namespace), {name: 0}))
        self.sweep()

    @rule()
    def sweep(self) -> None:
        self.run(self.client.delete(keys.sweep(self.namespace)))
        self.run(self.registry.sweep(60.0))
        self.expire_leases()

    # The comparison

    @invariant()
    def compare_states(self) -> None:
        state = self.run(check_invariants(self.client, self.namespace, self.decays, clock=self.now))
        assert state.hashes.keys() == self.known.keys()
        assert set(state.leases) == set(self.leases)
        for known in self.known.values():
            self.compare_worker(known, state)
        for model, pools in state.pools.items():
            assert pools == self.pools.of(model)
        for name, clock in self.clocks.items():
            written = [float(part) for part in self.run(self.client.get(keys.decay(self.namespace, name))).split()]
            reading = written[0] + max(0.0, self.now - written[1]) / written[2]
            assert math.isclose(reading, clock.reading_at(self.now), abs_tol=1e-6)
            assert math.isclose(written[2], clock.time_constant, rel_tol=1e-9)
        self.compare_listings()

    def compare_worker(self, known: Known, state: WholeState) -> None:
        name = known.registration.name
        fields = state.hashes[name]
        load = load_of(fields, state.checkpoints.get(name, []))
        reading, rate = self.reading(known), self.rate(known)
        for fact in ("speed", "capacity", "leased", "finished", "failing", "reported", "reported_at", "own", "work",
                     "dispatched", "dispatched_by_lottery", "leased_since_report", "released_since_report",
                     "checkpoints"):  # fmt: skip
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

    def compare_listings(self) -> None:
        listed = {worker.name: worker for worker in self.run(self.registry.list_workers()).workers}
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
        for multimodal in (None, True, False):
            serving = {
                model
                for known in self.known.values()
                for model in known.models
                if not known.draining and multimodal in (None, known.registration.multimodal)
            }
            assert self.run(self.registry.list_models(multimodal)) == sorted(serving)


async def accesses_in(url: str) -> set[tuple[str, str, str]]:
    client = connect(url, 10.0)
    accesses = await recorded_accesses(client)
    await client.aclose()
    return accesses


def status(queue_length: int = 0) -> WorkerStatus:
    return WorkerStatus(("m",), 1, queue_length)


@pytest.fixture
def machine(store_clock: None) -> Iterator[RegistryMachine]:
    machine = RegistryMachine("fakeredis", "", decays=True)
    yield machine
    machine.teardown()


# Random histories rarely reach the states that the following tests check.


def test_workers_booked_in_one_millisecond_are_in_order_of_name(machine: RegistryMachine) -> None:
    for name in (NAMES[1], NAMES[0]):
        machine.register(name=name, status=status())
    machine.dispatch(requested=[("m", False)] * 5)


def test_release_does_not_acknowledge_a_later_lease(machine: RegistryMachine) -> None:
    """The older of two leases is released. The next report acknowledges only that lease."""
    machine.register(name=NAMES[0], status=status())
    machine.dispatch(requested=[("m", True)])
    [older] = machine.leases
    machine.tick(100)
    machine.dispatch(requested=[("m", True)])
    assert machine.run(machine.registry.release([older])) == [machine.end_lease(older)] == [True]
    machine.compare_states()
    machine.tick(150)
    machine.reports(reported=[(NAMES[0], 0, 0)], polls=False)
    machine.compare_states()
    load = machine.known[NAMES[0]].load
    assert (load.leased_since_report, load.finished) == (1, 0)


def test_checkpoints_count_more_than_a_million_bookings(machine: RegistryMachine) -> None:
    """A report after 10 checkpoints keeps the bookings in flight, despite a million earlier ones."""
    machine.register(name=NAMES[0], status=status())
    machine.reconcile(requested=[("absent", False)], bookings={NAMES[0]: 1_000_000}, runs="never")
    for _ in range(10):
        machine.tick(CHECKPOINT_MS)
        machine.dispatch(requested=[("m", False)])
        machine.compare_states()
    machine.reports(reported=[(NAMES[0], 1_000_000, 7 * CHECKPOINT_MS - IN_FLIGHT_WINDOW)], polls=False)
    machine.compare_states()
    assert machine.known[NAMES[0]].load.dispatched == 7


@pytest.mark.deep
@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize(("decays", "max_sets"), [(True, 24), (True, 0), (False, 24), (False, 1)])
@pytest.mark.parametrize("kind", STORES)
def test_random_histories_agree_with_the_reference_model(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, decays: bool, max_sets: int
) -> None:
    allow_sets(monkeypatch, max_sets)
    url = "" if kind == "fakeredis" else request.getfixturevalue(f"{kind.replace('-', '_')}_url")
    if kind == "embedded":
        record_accesses(monkeypatch)

    class Machine(RegistryMachine):
        def __init__(self) -> None:
            super().__init__(kind, url, decays, max_sets)

    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=examples(
                {"fakeredis": 3, "embedded": 40}.get(kind, 10)
            ),  # fakeredis compiles a script at each run
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    if kind == "embedded":
        assert asyncio.run(accesses_in(url)) <= listed_accesses()
