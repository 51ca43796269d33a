"""The Lua against the rules in `controller/domain/dispatch.py`: any history of calls, the same answers and state."""

import asyncio
import itertools
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from redis.asyncio import Redis

from controller.domain import dispatch
from controller.domain.dispatch import Candidate
from controller.domain.worker import Registration, WorkerStatus
from controller.store.connection import connect
from controller.store.reconciliation import split
from controller.store.registry import Registry
from tests.conftest import STORES, Store
from tests.support.dispatches import workers_of
from tests.support.invariants import check_invariants, parts_of
from tests.support.pools import Pools, allow_sets
from tests.support.samples import asks, reports

NAMES = [f"http://w{i}:1" for i in range(5)]
MODELS = ["m", "n", "o"]
_namespaces = itertools.count()
_request_ids = itertools.count()

names = st.sampled_from(NAMES)
model_lists = st.lists(st.sampled_from(MODELS), unique=True, max_size=3)
speeds = st.sampled_from([1, 2, 3, 0.1, 7.5])
queue_lengths = st.integers(0, 6)
draws = st.floats(0, 1, exclude_max=True)


@dataclass
class Known:
    """What the oracle knows of a worker."""

    registration: Registration
    turn: int
    failing: bool = False

    def candidate(self) -> Candidate:
        status = self.registration.status
        return Candidate(self.registration.name, status.speed, status.queue_length, self.turn, self.failing)

    def set_queue_length(self, queue_length: int) -> None:
        status = replace(self.registration.status, queue_length=queue_length)
        self.registration = replace(self.registration, status=status)


class Oracle:
    """The registry as one would write it with dicts; dead workers do not exist."""

    def __init__(self, max_sets: int) -> None:
        self.workers: dict[str, Known] = {}
        self.sequence = 0
        self.pools = Pools(max_sets)

    def register(self, registration: Registration) -> bool:
        self.sequence += 1
        known = self.workers.get(registration.name)
        self.pools.move(registration.name, registration.status.model_names)
        self.workers[registration.name] = Known(registration, known.turn if known else self.sequence)
        return known is None

    def candidates(self, model: str) -> list[Candidate]:
        return [w.candidate() for w in self.workers.values() if model in w.registration.status.model_names]

    def dispatch_shortest_queue(self, models: list[str]) -> list[str]:
        chosen = []
        for i, model in enumerate(models):
            candidate = dispatch.shortest_queue(self.candidates(model))
            if candidate is not None:
                booked = dispatch.book(candidate, self.sequence + i + 1)
                known = self.workers[booked.name]
                known.set_queue_length(booked.queue_length)
                known.turn = booked.turn
            chosen.append(candidate.name if candidate else "")
        self.sequence += len(models)
        return chosen

    def dispatch_lottery(self, models: list[str], draws: list[float]) -> list[str]:
        drawn = [dispatch.lottery(self.in_pools(m), draw) for m, draw in zip(models, draws, strict=True)]
        return [candidate.name if candidate else "" for candidate in drawn]

    def in_pools(self, model: str) -> list[list[Candidate]]:
        pools = self.pools.of(model)
        return [[self.workers[name].candidate() for name in self.pools.members[pool]] for pool in pools] or [[]]

    def forget(self, name: str) -> bool:
        self.pools.move(name, ())
        return self.workers.pop(name, None) is not None


class RegistryMachine(RuleBasedStateMachine):
    """Calls the registry and the oracle alike, and compares all that can be seen.

    With `sweeps`, lapsed workers are swept at once. Without, they stay where they are until they are met, and must
    not be seen all the same; then the lottery is left out, which repeats a draw that chose one of them.
    """

    def __init__(self, kind: str, url: str, sweeps: bool, max_sets: int) -> None:
        super().__init__()
        self.sweeps = sweeps
        self.runner = asyncio.Runner()
        client: Redis = fakeredis.FakeAsyncRedis(decode_responses=True) if kind == "fakeredis" else connect(url, 10.0)
        self.store = Store(kind, client, client, f"oracle-{kind}-{next(_namespaces)}")
        self.draws: list[float] = []
        self.registry: Registry = self.store.registry(draw=lambda: self.draws.pop(0))
        self.oracle = Oracle(max_sets)

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        for name in NAMES:
            self.run(self.registry.remove(name))
        self.run(self.store.client.delete(f"{{{self.store.namespace}}}:sequence"))
        self.run(self.store.client.aclose())
        self.runner.close()

    @rule(name=names, models=model_lists, speed=speeds, queue=queue_lengths, flags=st.tuples(*[st.booleans()] * 2))
    def register(self, name: str, models: list[str], speed: float, queue: int, flags: tuple[bool, bool]) -> None:
        registration = Registration(name, WorkerStatus(tuple(models), speed, queue), *flags)
        expected = self.oracle.register(registration)
        assert self.run(self.registry.register(registration)) == expected

    @rule(told=st.lists(st.tuples(names, queue_lengths), min_size=1, max_size=4))
    def heartbeat(self, told: list[tuple[str, int]]) -> None:
        expected = [name in self.oracle.workers for name, _ in told]
        for name, queue_length in told:
            if name in self.oracle.workers:
                self.oracle.workers[name].set_queue_length(queue_length)
                self.oracle.workers[name].failing = False
        assert self.run(self.registry.heartbeat(reports(told))) == expected

    @rule(models=st.lists(st.sampled_from([*MODELS, "absent"]), min_size=1, max_size=8))
    def dispatch_shortest_queue(self, models: list[str]) -> None:
        expected = self.oracle.dispatch_shortest_queue(models)
        assert workers_of(self.run(self.registry.dispatch_shortest_queue(asks(models)))) == expected

    @precondition(lambda self: self.sweeps)
    @rule(requests=st.lists(st.tuples(st.sampled_from([*MODELS, "absent"]), draws), min_size=1, max_size=8))
    def dispatch_lottery(self, requests: list[tuple[str, float]]) -> None:
        models, draws = [model for model, _ in requests], [draw for _, draw in requests]
        self.draws = list(draws)
        expected = self.oracle.dispatch_lottery(models, draws)
        assert workers_of(self.run(self.registry.dispatch_lottery(asks(models)))) == expected

    @rule(
        unanswered=st.lists(st.sampled_from([*MODELS, "absent"]), max_size=4),
        bookings=st.dictionaries(names, st.integers(0, 3)),
        arrives=st.sampled_from(["before", "after", "never"]),
        times=st.integers(1, 2),
    )
    def settle(self, unanswered: list[str], bookings: dict[str, int], arrives: str, times: int) -> None:
        """A dispatch whose answer is lost, which the store gets before the settlement, after it or not at all."""
        request_id = f"id-{next(_request_ids)}"
        call = ("dispatch_shortest_queue", request_id, 6000, 0, *itertools.chain(*asks(unanswered)))
        taken_back: Counter[str] = Counter()
        if unanswered and arrives == "before":
            taken_back.update(name for name in self.oracle.dispatch_shortest_queue(unanswered) if name)
            self.run(self.registry._run(*call))
        for settlement in split(bookings, [request_id] if unanswered else [], 0):
            for _ in range(times):
                self.run(self.registry.reconcile(settlement))
        for name, number in [*((name, -times) for name, times in taken_back.items()), *bookings.items()]:
            if name in self.oracle.workers:
                known = self.oracle.workers[name]
                known.set_queue_length(max(0, known.registration.status.queue_length + number))
        if unanswered and arrives == "after":
            assert self.run(self.registry._run(*call)) == []

    @rule(name=names)
    def fails(self, name: str) -> None:
        known = self.oracle.workers.get(name)
        if known is not None:
            known.failing = True
        assert self.run(self.registry.report_failure(name)) == (known is not None)

    @rule(name=names)
    def remove(self, name: str) -> None:
        removed = self.oracle.forget(name)
        self.oracle.sequence += removed
        assert self.run(self.registry.remove(name)) == removed

    @rule(name=names)
    def time_passes(self, name: str) -> None:
        known = self.oracle.workers.get(name)
        if known is None or not known.registration.check_heart_beat:
            return
        self.oracle.forget(name)
        self.run(self.store.expire_heartbeat(name))
        if self.sweeps:
            self.run(self.store.client.delete(f"{{{self.store.namespace}}}:sweep"))
            assert self.run(self.registry.sweep(60.0)) == [name]

    @invariant()
    def both_know_the_same(self) -> None:
        known = {
            w.name: (w.status, w.check_heart_beat, w.multimodal) for w in self.run(self.registry.list_workers()).workers
        }
        expected = {
            name: (w.registration.status, w.registration.check_heart_beat, w.registration.multimodal)
            for name, w in self.oracle.workers.items()
        }
        assert known == expected
        for multimodal in (None, True, False):
            models = {
                model
                for status, _, is_multimodal in expected.values()
                for model in status.model_names
                if multimodal in (None, is_multimodal)
            }
            assert self.run(self.registry.list_models(multimodal)) == sorted(models)
        state = self.run(check_invariants(self.store.client, self.store.namespace))
        turns = {name: known.turn for name, known in self.oracle.workers.items()}
        assert {name: int(parts_of(f)["turn"]) for name, f in state.hashes.items() if name in state.heartbeats} == turns


@pytest.mark.parametrize(("sweeps", "max_sets"), [(True, 24), (True, 1), (False, 24), (False, 0)])
@pytest.mark.parametrize("kind", STORES)
def test_any_history_gives_what_the_rules_say(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, sweeps: bool, max_sets: int
) -> None:
    allow_sets(monkeypatch, max_sets)
    url = "" if kind == "fakeredis" else request.getfixturevalue(f"{kind.replace('-', '_')}_url")
    run_state_machine_as_test(
        lambda: RegistryMachine(kind, url, sweeps, max_sets),
        settings=settings(
            max_examples=20 if kind == "embedded" else 8,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
