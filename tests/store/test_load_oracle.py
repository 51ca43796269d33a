"""Random histories of bookings, leases, reports, drains and failures give in Redis what controller/domain says.

The clock of the store is the test's: time passes when it says so.
"""

import asyncio
import itertools
import math
from typing import Any

import fakeredis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from redis.asyncio import Redis

from controller.domain.dispatch import Indexed, least_cost
from controller.domain.fade import Fade
from controller.domain.load import Load
from controller.domain.worker import Registration, WorkerStatus
from controller.store import keys, scripts
from controller.store.connection import connect
from controller.store.registry import Registry, Request, worker_of
from tests.conftest import STORES
from tests.invariants import check_invariants, load_of

NAMES = [f"http://w{i}:1" for i in range(6)]
MODELS = ["m", "n"]
UNSEEN_FOR = 200
LEASE = 5_000
NOW = 1_800_000_000_000
_namespaces = itertools.count()

names = st.sampled_from(NAMES)
queues = st.integers(0, 8)
ages = st.sampled_from([0, 0, 0, 30, 150, 400, 3_000])


class Known:
    """A worker as the rules see it."""

    def __init__(self, model: str, load: Load) -> None:
        self.model = model
        self.load = load
        self.indexed = Indexed(load)
        self.draining = False
        self.polled = False
        self.leases: dict[str, float] = {}  # when booked, by lease
        self.why = ""


class LoadMachine(RuleBasedStateMachine):
    def __init__(self, kind: str, url: str, fades: bool) -> None:
        super().__init__()
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
        self.tick(0)

    def run(self, call: Any) -> Any:
        return self.runner.run(call)

    def teardown(self) -> None:
        self.run(self.client.delete("test-clock", *self.run(self.client.keys(f"{{{self.namespace}}}*"))))
        self.run(self.client.aclose())
        self.runner.close()

    def tick(self, by: int) -> None:
        self.now += by
        self.run(self.client.set("test-clock", self.now))

    def phase(self, model: str) -> float:
        return self.fade[model].phase_at(self.now) if self.fades and model in self.fade else 0.0

    def pace(self, known: Known) -> float:
        fade = self.fade.get(known.model)
        return fade.pace(known.load.speed) if self.fades and fade else known.load.speed if self.fades else 1.0

    def begin(self, model: str) -> None:
        self.fade.setdefault(model, Fade(at=self.now))

    def forget_fades(self) -> None:
        served = {known.model for known in self.known.values() if not known.draining}
        self.fade = {model: fade for model, fade in self.fade.items() if model in served}

    def index(self, known: Known) -> None:
        known.indexed.score = known.load.index_cost(self.phase(known.model), self.pace(known), self.fades)

    def touch(self, known: Known) -> None:
        """What changes a worker takes off, at the pace of now, what has faded until now."""
        known.load.fade(self.phase(known.model), self.pace(known))

    def report(self, known: Known, queue: int, age: int) -> None:
        self.touch(known)
        told = known.load.report(queue, self.now - age, self.phase(known.model), UNSEEN_FOR)
        if told is not None and self.fades and not known.draining:
            self.fade[known.model].learn(self.now, known.load.speed, *told)
        self.index(known)

    def end(self, lease: str) -> bool:
        """A lease ends by itself or by its holder."""
        if lease not in self.ends:
            return False
        del self.ends[lease]
        self.ended.append(lease)
        known = self.known.get(worker_of(lease))
        if known is None or lease not in known.leases:
            return False
        self.touch(known)
        known.load.release(known.leases.pop(lease), self.now)
        self.index(known)
        return True

    def end_overdue(self) -> None:
        for lease in [lease for lease, end in self.ends.items() if end <= self.now]:
            self.end(lease)

    @rule(by=st.sampled_from([1, 20, 60, 300, 1_500, 4_000, 20_000]))
    def time_passes(self, by: int) -> None:
        self.tick(by)

    @rule(name=names, model=st.sampled_from(MODELS), speed=st.sampled_from([1, 2, 0.5]), queue=queues,
          capacity=st.sampled_from([None, None, 1, 4]))  # fmt: skip
    def register(self, name: str, model: str, speed: float, queue: int, capacity: int | None) -> None:
        status = WorkerStatus((model,), speed, queue, capacity)
        self.run(self.registry.register(Registration(name, status, False, False)))
        before = self.known.get(name)
        draining = before is not None and before.draining
        if self.fades and not draining:
            self.begin(model)
        load = Load(speed, capacity, unleased=queue, expected=queue, reported=queue, reported_at=self.now)
        load.faded_from = self.phase(model)
        self.sequence += 1
        known = Known(model, load)
        known.draining = draining
        known.indexed.turn = before.indexed.turn if before else self.sequence
        known.indexed.place = before.indexed.place if before else self.sequence
        self.known[name] = known
        self.index(known)
        self.forget_fades()

    @rule(name=names, queue=queues, age=ages)
    def refresh(self, name: str, queue: int, age: int) -> None:
        """As after a probe: the worker's life goes on."""
        known = self.known.get(name)
        if known is None:
            return
        number = int(self.run(self.client.hget(keys.worker(self.namespace, name), "registration")))
        status = WorkerStatus((known.model,), known.load.speed, queue, known.load.capacity)
        # The registry tells ages by its own clock, and the store's stands still.
        arguments = self.run(self.arguments_of(Registration(name, status, False, False), number))
        arguments[10] = age
        self.run(self.registry._run("register", *arguments))
        self.sequence += 1
        if self.fades and not known.draining:
            self.fade[known.model].learn(self.now, known.load.speed, 0, 0)
        self.report(known, queue, age)

    async def arguments_of(self, registration: Registration, only_if: int) -> list[Any]:
        seen: list[Any] = []

        async def see(_: str, *arguments: str | int) -> int:
            seen.extend(arguments)
            return 0

        run, self.registry._run = self.registry._run, see  # type: ignore[method-assign]
        await self.registry.register(registration, only_if=only_if)
        self.registry._run = run  # type: ignore[method-assign]
        return seen

    @rule(told=st.lists(st.tuples(names, queues, ages), min_size=1, max_size=3), polls=st.booleans())
    def reports(self, told: list[tuple[str, int, int]], polls: bool) -> None:
        arguments = [argument for each in told for argument in each]
        expiration = "" if polls else 90_000
        known = self.run(self.registry._run("heartbeat", expiration, int(self.fades), UNSEEN_FOR, *arguments))
        assert known == [int(name in self.known) for name, _, _ in told]
        for name, queue, age in told:
            if name in self.known:
                worker = self.known[name]
                worker.polled = worker.polled or polls
                if not polls or worker.why == "polls":
                    worker.why, worker.load.failing = "", False
                self.report(worker, queue, age)
        self.end_overdue()

    @rule(asked=st.lists(st.tuples(st.sampled_from([*MODELS, "absent"]), st.booleans()), min_size=1, max_size=6))
    def dispatch(self, asked: list[tuple[str, bool]]) -> None:
        chosen = self.run(
            self.registry.dispatch_shortest_queue([Request(model, LEASE * leased) for model, leased in asked])
        )
        first = self.sequence + 1
        self.sequence += len(asked)
        for turn, (model, leased), choice in zip(itertools.count(first), asked, chosen, strict=False):
            if leased:
                self.end_overdue()
            serving = {n: k for n, k in self.known.items() if k.model == model and not k.draining}
            assert (choice != "") == bool(serving)
            if not serving:
                continue
            phase = self.phase(model)
            pace = self.fade[model].pace(1.0) if self.fades and model in self.fade else 1.0
            indexed = [known.indexed for known in serving.values()]
            best = least_cost(indexed, leased=leased, fades=self.fades, phase=phase, pace=pace)
            assert best is not None
            known = serving[worker_of(choice)]
            costs = [load.cost(phase, pace * load.speed) for load in (best.load, known.load)]
            assert math.isclose(*costs, rel_tol=2e-6, abs_tol=1e-9), (choice, self.known)
            self.touch(known)
            known.load.book(self.now, phase, self.pace(known), leased)
            known.indexed.turn = turn
            if leased or not self.fades:
                known.indexed.place = turn
            if leased or not self.fades or known.load.capacity is not None:
                self.index(known)
            if leased:
                known.leases[choice] = self.now
                self.ends[choice] = self.now + LEASE

    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        lease = data.draw(st.sampled_from([*self.ends, *self.ended, f"{self.now}-1-1-1@{NAMES[0]}"]))
        assert self.run(self.registry.release([lease])) == [self.end(lease)]

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
        if known is None or known.draining == drain:
            return
        self.touch(known)
        known.draining = drain
        if self.fades and not drain:
            self.begin(known.model)
            self.fade[known.model].learn(self.now, known.load.speed, 0, 0)
        self.index(known)
        self.forget_fades()

    @rule(name=names, polls=st.booleans())
    def fails(self, name: str, polls: bool) -> None:
        known = self.known.get(name)
        told = known is not None and (known.polled or not polls)
        assert self.run(self.registry.report_failure(name, of_polls=polls)) == told
        if known is not None and told:
            self.touch(known)
            known.load.failing = True
            known.why = "request" if known.why == "request" or not polls else "polls"
            self.index(known)

    @rule(name=names)
    def remove(self, name: str) -> None:
        assert self.run(self.registry.remove(name)) == (self.known.pop(name, None) is not None)
        self.forget_fades()

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
            phase, pace = self.phase(known.model), self.pace(known)
            for fact in ("speed", "capacity", "leased", "ended", "failing", "reported", "reported_at", "booked",
                         "lent", "done", "marks"):  # fmt: skip
                assert getattr(load, fact) == getattr(known.load, fact), (name, fact, load, known.load)
            assert math.isclose(load.unleased_at(phase), known.load.unleased_at(phase), rel_tol=1e-6, abs_tol=1e-9)
            assert math.isclose(load.queue(phase, pace), known.load.queue(phase, pace), rel_tol=1e-6, abs_tol=1e-9)
        for model, fade in self.fade.items():
            told = [float(part) for part in state.fades[model].split()]
            assert math.isclose(told[0] + (self.now - told[1]) / told[2], fade.phase_at(self.now), abs_tol=1e-6)
            assert math.isclose(told[2], fade.time_constant, rel_tol=1e-9)
        listed = {worker.name: worker for worker in self.run(self.registry.list_workers()).workers}
        for name, known in self.known.items():
            queue = known.load.queue(self.phase(known.model), self.pace(known))
            assert abs(listed[name].status.queue_length - queue) <= 0.5 + 1e-6
            assert (listed[name].leased, listed[name].draining) == (known.load.leased, known.draining)
            assert listed[name].failing == known.why


@pytest.mark.parametrize("fades", [True, False])
@pytest.mark.parametrize("kind", STORES)
def test_any_history_gives_what_the_rules_say(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, fades: bool
) -> None:
    source = scripts.source

    def with_a_clock(name: str) -> str:
        before, now, after = source(name).partition('local time = redis.call("TIME")\n')
        return (
            before
            + ('if true then return tonumber(redis.call("GET", "test-clock")) end\n' if now else "")
            + now
            + after
        )

    monkeypatch.setattr(scripts, "source", with_a_clock)
    url = "" if kind == "fakeredis" else request.getfixturevalue(f"{kind.replace('-', '_')}_url")
    run_state_machine_as_test(
        lambda: LoadMachine(kind, url, fades),
        settings=settings(
            max_examples=6 if kind == "fakeredis" else 60,  # which compiles a script each time it is run
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
