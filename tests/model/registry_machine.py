"""Makes each call on the registry and on its reference model, and compares them."""

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

import fakeredis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from controller.domain.capacity import CapacityTarget
from controller.domain.worker import Registration, WorkerStatus
from controller.store import keys
from controller.store.connection import connect
from controller.store.reconciliation import split
from controller.store.registry import Choice, Registry, Request
from tests.conftest import CLOCK
from tests.model.oracle import (
    AFFINITY_TTL,
    DEFAULT_CAPACITIES,
    IN_FLIGHT_WINDOW,
    LEASE_TTL,
    MAX_AFFINITY_KEYS,
    Oracle,
)
from tests.support import rights
from tests.support.clients import Client
from tests.support.dispatches import dispatch_lottery, dispatch_shortest_queue, worker_of_lease
from tests.support.invariants import check_invariants

NAMES = [f"http://w{i}:1" for i in range(6)]
MODELS = ["m", "n", "o"]
NOW = 1_800_000_000_000
_namespaces = itertools.count()
_request_ids = itertools.count()

names = st.sampled_from([*NAMES[:3], *NAMES])
targets = names.map(lambda name: CapacityTarget(worker_name=name)) | st.sampled_from(MODELS).map(
    lambda model: CapacityTarget(model=model)
)
queues = st.integers(0, 8)
ages = st.sampled_from([0, 0, 0, 30, 150, 400, 3_000])
sources = st.sampled_from(["heartbeats", "polls", "polls of engines"])
models = st.sampled_from(["m", "m", "n", "n", "o", "absent"])
affinities = st.lists(st.integers(0, 25).map("key-{}".format), min_size=1, max_size=5, unique=True).map(tuple)
requests = st.lists(st.tuples(models, st.booleans()), min_size=1, max_size=6)
statuses = st.builds(
    WorkerStatus,
    model_names=st.lists(st.sampled_from(MODELS), unique=True, max_size=3).map(tuple),
    speed=st.sampled_from([1, 2, 0.5, 0.1, 7.5]),
    queue_length=queues,
    capacity=st.sampled_from([None, None, 1, 4]),
)


def _asked(requested: list[tuple[str, bool]]) -> list[Request]:
    return [Request(model, LEASE_TTL * leased) for model, leased in requested]


class RegistryMachine(Oracle, RuleBasedStateMachine):
    """Make each call on the registry and on the reference model, and compare their states."""

    def __init__(self, kind: str, url: str, decays: bool, max_sets: int = 24) -> None:
        Oracle.__init__(self, decays, max_sets, NOW)
        RuleBasedStateMachine.__init__(self)
        self.runner = asyncio.Runner()
        self.client: Client
        self.replica_client: Client
        if kind == "fakeredis":
            self.client = self.replica_client = fakeredis.FakeAsyncRedis(decode_responses=True)
        elif kind == "redis-server-acl":
            self.client = connect(rights.as_user(url, "admin"), 10.0)
            self.replica_client = connect(rights.as_user(url, "controller"), 10.0)
        else:
            self.client = self.replica_client = connect(url, 10.0)
        self.namespace = f"oracle-{kind}-{next(_namespaces)}"
        self.draws: Iterator[float] = iter(())
        self.registry = Registry(
            self.replica_client,
            self.namespace,
            90.0,
            10.0,
            decays,
            IN_FLIGHT_WINDOW / 1000,
            draw=lambda: next(self.draws),
            default_capacities=DEFAULT_CAPACITIES,
            affinity_ttl=AFFINITY_TTL / 1000,
            max_affinity_keys=MAX_AFFINITY_KEYS,
        )
        self.tick(0)

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.client.delete(CLOCK, *self.run(self.client.keys(f"{{{self.namespace}}}*"))))
        self.run(self.client.aclose())
        self.run(self.replica_client.aclose())
        self.runner.close()

    def tick(self, by: int) -> None:
        self.now += by
        self.run(self.client.set(CLOCK, self.now))

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

    @rule(reported=st.lists(st.tuples(names, queues, ages), min_size=1, max_size=3), source=sources)
    def reports(self, reported: list[tuple[str, int, int]], source: str) -> None:
        """Report queue lengths. The source decides how they are applied, whatever the worker is."""
        polls, is_engine = source != "heartbeats", source == "polls of engines"
        expiration = "" if source == "polls" else 90_000
        common = *self.registry._repeatable(), expiration, int(polls), int(self.decays), IN_FLIGHT_WINDOW
        reports: Iterator[str | int] = itertools.chain.from_iterable(reported)
        known = self.run(self.registry._run("heartbeat", *common, *reports))
        assert known == [int(name in self.known) for name, _, _ in reported]
        for name, queue_length, age in reported:
            if name in self.known:
                worker = self.known[name]
                worker.polled = worker.polled or polls
                worker.failure, worker.load.failing = "", False  # as in refresh()
                self.report(worker, queue_length, age, is_engine)
        self.expire_leases()

    @rule(requested=requests)
    def dispatch(self, requested: list[tuple[str, bool]]) -> None:
        """Dispatch requests. The first one goes to the worker that was ranked first, unless a lease may end before."""
        asked = _asked(requested)
        ranked = [each.name for each in self.run(self.registry.rank_workers(asked[0].model))]
        choices = self.run(dispatch_shortest_queue(self.registry, asked))
        assert asked[0].lease_ms or choices[0].worker == (ranked[0] if ranked else "")
        self.check_dispatches(asked, choices)

    @rule(requested=st.lists(st.tuples(models, st.booleans(), affinities | st.just(())), min_size=1, max_size=6))
    def dispatch_with_affinity(self, requested: list[tuple[str, bool, tuple[str, ...]]]) -> None:
        asked = [Request(model, LEASE_TTL * leased, "", keys_) for model, leased, keys_ in requested]
        self.check_dispatches(asked, self.run(dispatch_shortest_queue(self.registry, asked)))

    @rule(requested=requests, data=st.data())
    def dispatch_by_lottery(self, requested: list[tuple[str, bool]], data: st.DataObject) -> None:
        draws = [data.draw(st.floats(0, 1, exclude_max=True)) for _ in requested]
        self.check_draws(requested, self.draw(requested, draws), draws)

    def draw(self, requested: list[tuple[str, bool]], draws: list[float]) -> list[Choice]:
        self.draws = iter(draws)
        return self.run(dispatch_lottery(self.registry, [Request(m, LEASE_TTL * leased) for m, leased in requested]))

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
        call = request_id, 90_000, int(self.decays), 0, *itertools.chain(*arguments)
        choices: list[Choice] = []
        if runs == "before":
            reply = self.run(self.registry._run(method, *call))
            choices = [Choice(*pair) for pair in zip(reply[::2], reply[1::2], strict=True)]
            if by_lottery:
                self.check_draws(requested, choices, [0.5] * len(requested))
            else:
                self.check_dispatches(_asked(requested), choices)
            self.tick(pause)
            if reported is not None:
                self.reports([(name, reported, 0) for name in NAMES], source="heartbeats")
                self.tick(pause)
            if kept:
                self.dispatch(kept)
        for part in split(bookings, [request_id], 0):
            for _ in range(times):
                self.run(self.registry.reconcile(part))
        for choice in choices:
            self.end_lease(choice.lease, expired=True)
        undone = Counter(c.worker for c in choices if c.worker and not c.lease)
        if by_lottery:
            for name in undone.keys() & self.known.keys():
                load = self.known[name].load
                load.dispatched_by_lottery = max(0, load.dispatched_by_lottery - undone.pop(name))
            undone.clear()
        for name, number in [*((name, -count) for name, count in undone.items()), *bookings.items()]:
            if name in self.known:
                known = self.known[name]
                if known.load.reconcile(number, self.reading(known), self.rate(known)):
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
        if not drain and known.pools and known.pools[0].startswith("\x1e"):
            known.set_pools(self.pools.assign(known.models))
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
            self.reports([(name, 1, 0)], source="heartbeats")
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
        clocks = {name: self.run(self.client.get(keys.decay(self.namespace, name))) for name in self.clocks}
        self.check_state(state, clocks)
        self.compare_listings()

    def compare_listings(self) -> None:
        self.check_listing(self.run(self.registry.list_workers()).workers)
        for multimodal in (None, True, False):
            assert self.run(self.registry.list_models(multimodal)) == self.models(multimodal)
