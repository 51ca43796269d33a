"""Random histories of bookings, leases, reports, drains and failures give in Redis what controller/domain says.

The clock of the store is the test's: time passes when it says so.
"""

import asyncio
import itertools
import math
from collections import Counter
from copy import copy
from dataclasses import replace
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from controller.domain.dispatch import Indexed, least_cost_of_pools
from controller.domain.fade import Fade
from controller.domain.load import MARK_MS, Load
from controller.domain.worker import Registration, WorkerStatus
from controller.store import keys
from controller.store.connection import connect
from controller.store.reconciliation import split
from controller.store.registry import NOT_ALIVE, Registry, Request
from tests.conftest import CLOCK, STORES
from tests.support.dispatches import texts_of, worker_of
from tests.support.invariants import REST, check_invariants, load_of, parts_of, pools_of
from tests.support.pools import Pools, allow_sets

NAMES = [f"http://w{i}:1" for i in range(6)]
MODELS = ["m", "n"]
UNSEEN_FOR = 200
LEASE = 5_000
NOW = 1_800_000_000_000
_namespaces = itertools.count()
_request_ids = itertools.count()

names = st.sampled_from([*NAMES[:3], *NAMES])
queues = st.integers(0, 8)
ages = st.sampled_from([0, 0, 0, 30, 150, 400, 3_000])
model_lists = st.lists(st.sampled_from(MODELS), min_size=1, unique=True)
requests = st.lists(st.tuples(st.sampled_from([*MODELS, *MODELS, "absent"]), st.booleans()), min_size=1, max_size=6)


class Known:
    """A worker as the rules see it, with its place in the indexes of its pools."""

    def __init__(self, name: str, models: list[str], pools: list[str], load: Load, turn: int, place: int) -> None:
        self.models = models
        self.pools = pools
        self.clock = REST if pools[0].startswith(REST) else pools[0]
        self.load = load
        self.indexed = Indexed(load, name=name)
        self.draining = False
        self.polled = False
        self.leases: dict[str, float] = {}  # when booked, by lease
        self.why = ""
        self.set_turn(turn, place)

    def set_turn(self, turn: int, place: int | None = None) -> None:
        self.turn = turn
        self.indexed.turn = turn
        if place is not None:
            self.indexed.place = self.place = place


class LoadMachine(RuleBasedStateMachine):
    def __init__(self, kind: str, url: str, fades: bool, max_sets: int = 24) -> None:
        super().__init__()
        self.pools = Pools(max_sets)
        self.fades = fades
        self.runner = asyncio.Runner()
        self.client: Redis = (
            fakeredis.FakeAsyncRedis(decode_responses=True) if kind == "fakeredis" else connect(url, 10.0)
        )
        self.namespace = f"load-oracle-{kind}-{next(_namespaces)}"
        self.registry = Registry(self.client, self.namespace, 90.0, 10.0, fades, UNSEEN_FOR / 1000)
        self.now = NOW
        self.sequence = 0
        self.known: dict[str, Known] = {}
        self.fade: dict[str, Fade] = {}
        self.ends: dict[str, float] = {}
        self.ended: list[str] = []
        self.removed: set[str] = set()
        self.drains_when_back: set[str] = set()
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

    def phase(self, known: Known) -> float:
        return self.fade[known.clock].phase_at(self.now) if self.fades and known.clock in self.fade else 0.0

    def pace(self, known: Known) -> float:
        fade = self.fade.get(known.clock)
        return fade.pace(known.load.speed) if self.fades and fade else known.load.speed if self.fades else 1.0

    def learn(self, known: Known, work: float = 0, ended: int = 0) -> None:
        """Its pool does. For one that nothing is known of, the phase begins."""
        if self.fades and not known.draining:
            self.fade.setdefault(known.clock, Fade(at=self.now)).learn(self.now, known.load.speed, work, ended)

    def index(self, known: Known, what_fades: bool = True) -> None:
        known.indexed.score = known.load.index_cost(self.phase(known), self.pace(known), self.fades)
        if what_fades and self.fades:
            known.indexed.fading = known.load.what_fades()

    def touch(self, known: Known) -> None:
        """What changes a worker takes off, at the pace of now, what has faded until now."""
        known.load.fade(self.phase(known), self.pace(known))

    def report(self, known: Known, queue: int, age: int) -> None:
        self.touch(known)
        told = known.load.report(queue, self.now - age, self.now, self.phase(known), UNSEEN_FOR)
        if told is not None:
            self.learn(known, *told)
        self.index(known)

    def end(self, lease: str, expired: bool = False) -> bool:
        """A lease ends by itself or by its holder."""
        if lease not in self.ends:
            return False
        del self.ends[lease]
        self.ended.append(lease)
        known = self.known.get(worker_of(lease))
        if known is None or lease not in known.leases:
            return False
        self.touch(known)
        known.load.release(known.leases.pop(lease), self.now, expired=expired)
        self.index(known, what_fades=False)
        return True

    def end_overdue(self) -> None:
        for lease in [lease for lease, end in self.ends.items() if end <= self.now]:
            self.end(lease, expired=True)

    def forget(self, name: str) -> bool:
        known = self.known.pop(name, None)
        self.pools.move(name, ())
        if known is not None and known.draining:
            self.drains_when_back.add(name)
        return known is not None

    @rule(by=st.sampled_from([1, 20, 49, 50, 60, 300, 400, 999, 1_000, 1_500, 4_000, 20_000]))
    def time_passes(self, by: int) -> None:
        self.tick(by)

    @rule(by=st.sampled_from([1, 70, 350, 5_000]))
    def clock_is_set_back(self, by: int) -> None:
        self.tick(-by)

    @rule(
        name=names,
        models=model_lists,
        speed=st.sampled_from([1, 2, 0.5]),
        queue=queues,
        capacity=st.sampled_from([None, None, 1, 4]),
        restored=st.sampled_from([None, None, None, False, True]),
    )
    def register(
        self, name: str, models: list[str], speed: float, queue: int, capacity: int | None, restored: bool | None
    ) -> None:
        """restored: only if it is not alive, and whether it drains; None for a registration of its own."""
        registration = Registration(name, WorkerStatus(tuple(models), speed, queue, capacity), False, False)
        only_if = None if restored is None else NOT_ALIVE
        before = self.known.get(name)
        new = self.run(self.registry.register(registration, only_if=only_if, draining=bool(restored)))
        if restored is not None and (before is not None or name in self.removed):
            assert new is None
            return
        assert new == (before is None)
        self.removed.discard(name)
        self.sequence += 1
        turn, place = (before.turn, before.place) if before else (self.sequence, self.sequence)
        load = Load(speed, capacity, unleased=queue, expected=queue, reported=queue, reported_at=self.now)
        known = Known(name, models, self.pools.assign(models), load, turn, place)
        known.draining = (before is not None and before.draining) or name in self.drains_when_back or bool(restored)
        self.pools.put(name, [] if known.draining else known.pools, models)
        self.drains_when_back.discard(name)
        self.learn(known)
        load.faded_from = self.phase(known)
        self.known[name] = known
        self.index(known)

    @rule(name=names, queue=queues, age=ages)
    def refresh(self, name: str, queue: int, age: int) -> None:
        """As after a probe: the worker's life goes on."""
        known = self.known.get(name)
        if known is None:
            return
        number = int(self.run(self.client.hget(keys.worker(self.namespace, name), "registration")))
        status = WorkerStatus(tuple(known.models), known.load.speed, queue, known.load.capacity)
        # The registry tells ages by its own clock, and the store's stands still.
        arguments = self.run(self.arguments_of(Registration(name, status, False, False), number))
        arguments[13] = age
        self.run(self.registry._run("register", *arguments))
        self.sequence += 1
        known.load.failing, known.why = False, ""  # it sends no heartbeats, so an answer forgives all
        self.touch(known)  # before the phase goes on
        self.learn(known)
        self.report(known, queue, age)

    async def arguments_of(self, registration: Registration, only_if: int) -> list[Any]:
        seen: list[Any] = []

        async def see(_: str, *arguments: str | int) -> list[int]:
            seen.extend(arguments)
            return [0]

        run, self.registry._run = self.registry._run, see  # type: ignore[method-assign]
        await self.registry.register(registration, only_if=only_if)
        self.registry._run = run  # type: ignore[method-assign]
        return seen

    @rule(told=st.lists(st.tuples(names, queues, ages), min_size=1, max_size=3), polls=st.booleans())
    def reports(self, told: list[tuple[str, int, int]], polls: bool) -> None:
        arguments = [argument for each in told for argument in each]
        expiration = "" if polls else 90_000
        common = *self.registry._repeatable(), expiration, int(self.fades), UNSEEN_FOR
        known = self.run(self.registry._run("heartbeat", *common, *arguments))
        assert known == [int(name in self.known) for name, _, _ in told]
        for name, queue, age in told:
            if name in self.known:
                worker = self.known[name]
                worker.polled = worker.polled or polls
                worker.why, worker.load.failing = "", False  # without heartbeats, an answer to a poll forgives all
                self.report(worker, queue, age)
        self.end_overdue()

    def as_of_now(self, known: Known) -> Load:
        """Its load with nothing left to fade. A dispatch looks at it, and does not touch it."""
        load = copy(known.load)
        load.fade(self.phase(known), self.pace(known))
        return load

    def chosen_by_rule(self, model: str, leased: bool) -> Indexed | None:
        pools = []
        for pool in self.pools.of(model):
            members = [self.known[name] for name in self.pools.members[pool]]
            pools.append([replace(known.indexed, load=self.as_of_now(known)) for known in members])
        return least_cost_of_pools(pools or [[]], leased=leased, fades=self.fades, phase=-math.inf, pace=1.0)

    def booked(self, choice: str, turn: int, leased: bool) -> None:
        known = self.known[worker_of(choice)]
        self.touch(known)
        known.load.book(self.now, self.phase(known), self.pace(known), leased)
        known.set_turn(turn, turn if leased or not self.fades else None)
        self.index(known, what_fades=not leased)
        if leased:
            known.leases[choice] = self.now
            self.ends[choice] = self.now + LEASE

    def dispatched(self, asked: list[tuple[str, bool]], chosen: list[str]) -> None:
        """The choices were those that the rules make; now the rules book them."""
        first = self.sequence + 1
        self.sequence += len(asked)
        for turn, (model, leased), choice in zip(itertools.count(first), asked, chosen, strict=False):
            if leased:
                self.end_overdue()
            best = self.chosen_by_rule(model, leased)
            assert (choice != "") == (best is not None)
            if best is None:
                continue
            known = self.known[worker_of(choice)]
            costs = [load.cost(-math.inf, 1.0) for load in (best.load, self.as_of_now(known))]
            assert math.isclose(*costs, rel_tol=2e-6, abs_tol=1e-9), (choice, self.known)
            if costs[0] == costs[1]:
                assert known.turn == best.turn, "the one whose last turn is longest ago"
            self.booked(choice, turn, leased)

    @rule(asked=requests)
    def dispatch(self, asked: list[tuple[str, bool]]) -> None:
        all_asked = [Request(model, LEASE * leased) for model, leased in asked]
        self.dispatched(asked, texts_of(self.run(self.registry.dispatch_shortest_queue(all_asked))))

    @rule(asked=requests)
    def dispatch_by_lottery(self, asked: list[tuple[str, bool]]) -> None:
        self.drawn(
            asked,
            texts_of(self.run(self.registry.dispatch_lottery([Request(m, LEASE * leased) for m, leased in asked]))),
        )

    def drawn(self, asked: list[tuple[str, bool]], chosen: list[str]) -> None:
        first = self.sequence + 1
        if any(leased for _, leased in asked):
            self.sequence += len(asked)
            self.end_overdue()
        assert len(chosen) == len(asked)
        for turn, (model, leased), choice in zip(itertools.count(first), asked, chosen, strict=False):
            serving = {n: k for n, k in self.known.items() if model in k.models and not k.draining}
            assert (choice != "") == bool(serving)
            if serving:
                failing = serving[worker_of(choice)].load.failing
                assert not failing or all(known.load.failing for known in serving.values())
                if leased:
                    self.booked(choice, turn, leased)
                else:
                    serving[choice].load.drawn += 1

    @rule(
        asked=requests,
        bookings=st.dictionaries(names, st.integers(0, 3)),
        arrives=st.booleans(),
        lottery=st.booleans(),
        by=st.sampled_from([0, 0, 60, 1_500, 6_000]),
    )
    def settle(
        self, asked: list[tuple[str, bool]], bookings: dict[str, int], arrives: bool, lottery: bool, by: int
    ) -> None:
        """A dispatch whose answer is lost, which the store has got or has not, is taken back some time later."""
        request_id = f"id-{next(_request_ids)}"
        taken_back: Counter[str] = Counter()
        leases: list[str] = []
        if arrives:
            method = "dispatch_lottery" if lottery else "dispatch_shortest_queue"
            arguments = ((m, LEASE * leased, "0.5") if lottery else (m, LEASE * leased) for m, leased in asked)
            chosen = self.run(
                self.registry._run(method, request_id, 90_000, int(self.fades), *itertools.chain(*arguments))
            )
            (self.drawn if lottery else self.dispatched)(asked, chosen)
            leases = [choice for choice in chosen if "@" in choice]
            if not lottery:
                taken_back.update(choice for choice in chosen if choice and "@" not in choice)
            self.tick(by)
        for settlement in split(bookings, [request_id], 0):
            self.run(self.registry.reconcile(settlement))
        for lease in leases:
            self.end(lease)
        for name, number in [*((name, -times) for name, times in taken_back.items()), *bookings.items()]:
            if name in self.known:
                known = self.known[name]
                known.load.settle(number, self.phase(known), self.pace(known))
                self.index(known)

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.ends, *self.ended, f"{self.now}-1-1-1@{NAMES[0]}"]))
        in_time = self.ends.get(lease, 0) > self.now
        assert self.run(self.registry.release([lease])) == [self.end(lease) and in_time]

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.ends, *self.ended, f"{self.now}-1-1-1@{NAMES[0]}"]))
        known = self.known.get(worker_of(lease))
        out = lease in self.ends and self.ends[lease] > self.now and known is not None and lease in known.leases
        assert self.run(self.registry.renew(lease)) == out
        if out:
            self.ends[lease] = self.now + LEASE

    @rule(name=names, drain=st.booleans())
    def drain(self, name: str, drain: bool) -> None:
        known = self.known.get(name)
        assert self.run(self.registry.drain(name, drain)) == (known is not None)
        if not drain:
            self.drains_when_back.discard(name)
        if known is None or known.draining == drain:
            return
        self.sequence += 1
        self.touch(known)
        known.draining = drain
        self.pools.put(name, [] if drain else known.pools, known.models)
        if self.fades and not drain:
            self.learn(known)
            known.load.faded_from = self.phase(known)
        self.index(known)

    @rule(name=names, polls=st.booleans())
    def fails(self, name: str, polls: bool) -> None:
        known = self.known.get(name)
        never_answered = known is not None and polls and not known.polled
        told = None if never_answered else known is not None
        assert self.run(self.registry.report_failure(name, of_polls=polls)) is told
        if known is not None and told:
            self.touch(known)
            known.load.failing = True
            known.why = "request" if known.why == "request" or not polls else "polls"
            self.index(known)

    @rule(name=names)
    def remove(self, name: str) -> None:
        known = self.forget(name)
        self.drains_when_back.discard(name)
        assert self.run(self.registry.remove(name)) == known
        if known:
            self.sequence += 1
            self.removed.add(name)

    @rule(name=names, asked=requests, met_by=st.sampled_from(["dispatch", "lottery", "heartbeat", "failure"]))
    def dies(self, name: str, asked: list[tuple[str, bool]], met_by: str) -> None:
        """Its heartbeat lapses; somebody meets it, maybe; then it is swept."""
        known = self.known.get(name)
        if known is None:
            return
        self.forget(name)
        self.run(self.client.delete(keys.heartbeat(self.namespace, name)))
        if met_by == "dispatch":
            self.dispatch(asked)
        elif met_by == "lottery":
            self.dispatch_by_lottery(asked)
        elif met_by == "heartbeat":
            self.reports([(name, 1, 0)], polls=False)
        elif met_by == "failure":
            assert not self.run(self.registry.report_failure(name))
        self.run(self.client.zadd(keys.workers(self.namespace), {name: 0}))
        self.sweep()

    @rule()
    def sweep(self) -> None:
        self.run(self.client.delete(keys.sweep(self.namespace)))
        self.run(self.registry.sweep(60.0))
        self.end_overdue()

    @invariant()
    def the_store_has_what_the_rules_say(self) -> None:
        state = self.run(check_invariants(self.client, self.namespace, self.fades, clock=self.now))
        assert state.hashes.keys() == self.known.keys()
        assert set(state.leases) == set(self.ends)
        for name, known in self.known.items():
            load = load_of(state.hashes[name])
            phase, pace = self.phase(known), self.pace(known)
            for fact in ("speed", "capacity", "leased", "ended", "failing", "reported", "reported_at", "own", "work",
                         "booked", "drawn", "lent", "done", "marks"):  # fmt: skip
                assert getattr(load, fact) == getattr(known.load, fact), (name, fact, load, known.load)
            assert math.isclose(load.unleased_at(phase), known.load.unleased_at(phase), rel_tol=1e-6, abs_tol=1e-9)
            assert math.isclose(load.queue(phase, pace), known.load.queue(phase, pace), rel_tol=1e-6, abs_tol=1e-9)
            turn, place = (parts_of(state.hashes[name])[part] for part in ("turn", "place"))
            assert (int(turn), int(place)) == (known.turn, known.place)
            assert known.draining or pools_of(state.hashes[name]) == known.pools
            for pool in known.pools if self.fades and not known.draining else []:
                score = state.fading[pool][name] - 2**54 * load.failing
                fading = score / 1e6 if score > -1e9 else -math.inf
                assert math.isclose(fading, known.indexed.fading, abs_tol=1e-5), (name, pool, fading, known.indexed)
        for model, pools in state.pools.items():
            assert pools == self.pools.of(model)
        for clock, fade in self.fade.items():
            told = [float(part) for part in self.run(self.client.get(keys.fade(self.namespace, clock))).split()]
            phase = told[0] + max(0.0, self.now - told[1]) / told[2]
            assert math.isclose(phase, fade.phase_at(self.now), abs_tol=1e-6)
            assert math.isclose(told[2], fade.time_constant, rel_tol=1e-9)
        listed = {worker.name: worker for worker in self.run(self.registry.list_workers()).workers}
        for name, known in self.known.items():
            queue = known.load.queue(self.phase(known), self.pace(known))
            assert abs(listed[name].status.queue_length - queue) <= 0.5 + 1e-6
            assert (listed[name].leased, listed[name].draining) == (known.load.leased, known.draining)
            assert listed[name].reported == known.load.reported
            assert listed[name].booked == known.load.booked + known.load.drawn
            assert listed[name].failing == known.why


@pytest.mark.usefixtures("store_clock")
def test_those_booked_in_one_millisecond_are_in_order_of_name() -> None:
    """Random histories come there seldom: equal workers, not registered in the order of their names."""
    machine = LoadMachine("fakeredis", "", fades=True)
    for name in (NAMES[1], NAMES[0]):
        machine.register(name=name, models=["m"], speed=1, queue=0, capacity=None, restored=None)
    machine.dispatch(asked=[("m", False)] * 5)
    machine.teardown()


@pytest.mark.usefixtures("store_clock")
def test_a_lease_that_has_ended_makes_no_later_one_seen() -> None:
    """Random histories come there seldom: of two leases the older ends, and a report has seen that one alone."""
    machine = LoadMachine("fakeredis", "", fades=True)
    machine.register(name=NAMES[0], models=["m"], speed=1, queue=0, capacity=None, restored=None)
    machine.dispatch(asked=[("m", True)])
    [older] = machine.ends
    machine.tick(100)
    machine.dispatch(asked=[("m", True)])
    assert machine.run(machine.registry.release([older])) == [machine.end(older)] == [True]
    machine.the_store_has_what_the_rules_say()
    machine.tick(150)
    machine.reports(told=[(NAMES[0], 0, 0)], polls=False)
    machine.the_store_has_what_the_rules_say()
    assert (machine.known[NAMES[0]].load.lent, machine.known[NAMES[0]].load.ended) == (1, 0)
    machine.teardown()


@pytest.mark.usefixtures("store_clock")
def test_checkpoints_count_more_than_a_million_bookings() -> None:
    """A report after 10 checkpoints keeps the bookings that it cannot have seen, however many there were before."""
    machine = LoadMachine("fakeredis", "", fades=True)
    machine.register(name=NAMES[0], models=["m"], speed=1, queue=0, capacity=None, restored=None)
    machine.settle(asked=[("absent", False)], bookings={NAMES[0]: 1_000_000}, arrives=False, lottery=False, by=0)
    for _ in range(10):
        machine.tick(MARK_MS)
        machine.dispatch(asked=[("m", False)])
        machine.the_store_has_what_the_rules_say()
    machine.reports(told=[(NAMES[0], 1_000_000, 7 * MARK_MS - UNSEEN_FOR)], polls=False)
    machine.the_store_has_what_the_rules_say()
    assert machine.known[NAMES[0]].load.booked == 7
    machine.teardown()


@pytest.mark.usefixtures("store_clock")
@pytest.mark.parametrize(("fades", "max_sets"), [(True, 24), (True, 0), (False, 24), (False, 0)])
@pytest.mark.parametrize("kind", STORES)
def test_any_history_gives_what_the_rules_say(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, fades: bool, max_sets: int
) -> None:
    allow_sets(monkeypatch, max_sets)
    url = "" if kind == "fakeredis" else request.getfixturevalue(f"{kind.replace('-', '_')}_url")
    run_state_machine_as_test(
        lambda: LoadMachine(kind, url, fades, max_sets),
        settings=settings(
            max_examples={"fakeredis": 3, "embedded": 40}.get(kind, 10),  # fakeredis compiles a script at each run
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
