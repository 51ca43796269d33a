"""Random histories of calls, faults and data losses on three replicas. The reference model has to explain each step."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from controller.domain.errors import StoreUnavailable
from tests.model import calls, worker_calls
from tests.model.calls import UNKNOWN, Call, Degraded, Dispatch
from tests.model.choice import NAMES, any_call
from tests.model.cluster import EXPIRATION, REPLICAS, Cluster, cancel_after
from tests.model.explain import Event, Fate, explain
from tests.model.losses import Losses
from tests.model.state import State, Unreconciled

ENDLESS: Final = 10**9


class History:
    """A random history. steps: what was done so far, for the message of a failure."""

    def __init__(self, cluster: Cluster, seed: int, booking_delay: float) -> None:
        self.cluster = cluster
        self.seed = seed
        self.rng = random.Random(seed)
        self.in_flight = booking_delay > 0
        self.states = [State(cluster.now, cluster.clock, unreconciled=[Unreconciled() for _ in range(REPLICAS)])]
        self.leases: list[str] = []
        # The replicas that will repeat a reconciliation whose reply was lost, and the time of that reconciliation.
        self.unacknowledged: dict[int, float] = {}
        self.losses = Losses(self, cluster)
        self.steps: list[str] = []

    @property
    def state(self) -> State:
        """One of the possible states. All have the same workers and leases, but may differ in `unreconciled`."""
        return self.states[0]

    async def run(self, number: int) -> None:
        await self.cluster.open()
        for step in range(number):
            self.rng.seed(f"{self.seed}-{step}")  # the random numbers of a step do not depend on earlier results
            await self.step()
            if step % 8 == 0:
                await self.cluster.check()
        await self.end()

    async def end(self) -> None:
        """End all faults, leases and workers. Then the store must be empty."""
        for replica in range(REPLICAS):
            await self.restore(replica)
        for name in NAMES:
            await self.make_concurrently([worker_calls.Remove(0, name)])
        await self.pass_time(1_000.0)
        await self.make_concurrently([worker_calls.Sweep(0)])
        state = await self.cluster.check()
        assert not state.hashes
        assert not state.indexes
        assert not state.leases

    async def step(self) -> None:
        cut = [replica for replica, link in enumerate(self.cluster.links) if link.is_cut]
        kinds: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (70, self.make_some_calls),
            (8, lambda: self.pass_time(self.rng.choice([0.001, 0.02, 0.06, 0.21, 0.4]))),
            (4, self.pass_much_time),
            (4, self.send_all_heartbeats),
            (5, self.refresh_snapshot),
            (1, self.cut),
            (6 * len(cut), lambda: self.restore(self.rng.choice(cut))),
            (3 * len(cut), lambda: self.reconcile_and_cut_off(self.rng.choice(cut))),
            (2, self.losses.dump),
            (0.7, self.losses.lose_everything),
            (1.2, self.losses.fail_over),
            (0.7, self.losses.lose_an_operation),
            (1, self.losses.set_clock),
        ]
        [action] = self.rng.choices([action for _, action in kinds], [weight for weight, _ in kinds])
        await action()

    # Calls

    async def make_some_calls(self) -> None:
        number = self.rng.choice([1, 1, 1, 2, 3])
        await self.make_concurrently(
            [any_call(self.rng, self.state, self.leases, self.in_flight) for _ in range(number)], faults=True
        )

    async def send_all_heartbeats(self) -> None:
        for name in self.state.workers:
            replica = self.rng.randrange(REPLICAS)
            await self.make_concurrently([worker_calls.Heartbeat(replica, name, 0, EXPIRATION, self.in_flight)])

    async def make_concurrently(self, group: list[Call], *, faults: bool = False) -> None:
        """Make calls concurrently, and check that the model can explain their results."""
        links = self.cluster.links
        group = [call for call in group if not (links[call.replica].is_cut and self.waits_for_store(call))]
        registering = [(call.replica, call.name) for call in group if isinstance(call, worker_calls.Register)]
        if not group or len(registering) > len(set(registering)):  # a replica combines these
            return
        fault = self.rng.choice(FAULTS) if faults and not any(link.is_cut for link in links) else ""
        victim = self.rng.randrange(len(group))
        self.steps.append(f"{fault or 'no fault'} ({group[victim].replica}): " + ", ".join(map(str, group)))
        failures = [self.cluster.failures(replica) for replica in range(REPLICAS)]
        known = self.known_models()
        answers = await self.make(group, fault, victim)
        self.steps[-1] += " -> " + ", ".join(map(str, answers))
        resent = [1 if fault == "connections broken" else min(2, link.lost) for link in links]
        for link in links:
            if not link.is_cut:
                link.restore()
        await self.cluster.wait_until_idle()
        events: list[Event] = []
        for call, answer in zip(group, answers, strict=True):
            event = self.event(call, answer, resent[call.replica] > 0, known[call.replica])
            again = resent[call.replica] if call.resends_undo_others and len(group) > 1 else 0
            events += [event, *(Event(call.replica, Fate.UNKNOWN, call, after=event) for _ in range(again))]
        for replica in range(REPLICAS):
            if self.cluster.failures(replica) > failures[replica] and not links[replica].is_cut:
                await self.cluster.wait_for_recovery(replica)
                failed = [event for event in events if event.replica == replica and event.fate is Fate.FAILED]
                reconciled = [Event(replica, Fate.RECONCILED, after=event) for event in failed]
                events += reconciled or [Event(replica, Fate.RECONCILED)]
        await self.explain(events)
        if fault == "held back":
            await links[group[victim].replica].run_held_back()
            await self.explain([])

    def waits_for_store(self, call: Call) -> bool:
        """Return True if a call waits during an outage of the store, instead of failing."""
        return isinstance(call, worker_calls.Register)

    async def make(self, group: list[Call], fault: str, victim: int) -> list[Any]:
        replica = group[victim].replica
        link = self.cluster.links[replica]
        helpers: list[Awaitable[None]] = []
        if fault == "reply lost":
            link.lose(1)
        elif fault == "replies lost":
            link.lose(2)
        elif fault == "held back":
            self.cluster.hold_back_dispatches(replica)
        elif fault == "refused":
            link.refuses = True
            helpers.append(self.restore_after(replica, self.rng.randrange(30)))
        tasks = [asyncio.create_task(call.make(self.cluster.replicas[call.replica])) for call in group]
        if fault == "cancelled":
            helpers.append(cancel_after(tasks[victim], self.rng.randrange(16)))
        elif fault == "connections broken":
            helpers.append(self.cluster.break_connections())
        async with asyncio.timeout(60.0):
            answers, _ = await asyncio.gather(asyncio.gather(*tasks, return_exceptions=True), asyncio.gather(*helpers))
        return answers

    async def restore_after(self, replica: int, iterations: int) -> None:
        for _ in range(iterations):
            await asyncio.sleep(0)
        self.cluster.links[replica].restore()

    def event(self, call: Call, answer: Any, resent: bool, known: dict[str, tuple[str, ...]]) -> Event:
        event = Event(call.replica, Fate.ANSWERED, call, answer)
        if isinstance(answer, Degraded):
            event.fate, event.answer, event.degraded = Fate.FAILED, UNKNOWN, answer.address
            assert isinstance(call, Dispatch)
            serving = [name for name, models in known.items() if call.model in models]
            assert answer.address in (serving or [""]), f"{answer} of {serving}"
        elif isinstance(answer, StoreUnavailable):
            event.fate, event.answer = Fate.FAILED, UNKNOWN
        elif isinstance(answer, asyncio.CancelledError):
            reports_booking = isinstance(call, Dispatch) and (call.direct or call.lottery)
            event.fate, event.answer = Fate.FAILED if reports_booking else Fate.UNKNOWN, UNKNOWN
        elif isinstance(answer, BaseException):
            raise answer
        elif resent and not call.resends_get_same_answer:
            event.fate = Fate.RAN
        return event

    async def explain(self, events: list[Event]) -> None:
        observed = await self.cluster.observe()
        new = observed.leases.keys() - self.state.leases.keys()
        self.states = explain(self.states, events, observed)
        self.leases += sorted(new)
        for event in events:
            if isinstance(event.call, worker_calls.Register | worker_calls.Probe | worker_calls.Heartbeat):
                for state in self.states:
                    state.last_heard[event.call.name] = state.now

    def known_models(self) -> list[dict[str, tuple[str, ...]]]:
        """Return the models of each worker, for each replica as of its last snapshot."""
        return [
            {worker.name: worker.status.model_names for worker in listed.workers if not worker.draining}
            if (listed := self.cluster.snapshot(replica)[0]) is not None
            else {}
            for replica in range(REPLICAS)
        ]

    # Time, and replicas

    async def pass_time(self, seconds: float) -> None:
        self.steps.append(f"{seconds} s pass")
        await self.cluster.pass_time(seconds)
        for state in self.states:
            state.pass_time(seconds)
        await self.explain([])

    async def pass_much_time(self) -> None:
        """Pass enough time for workers to expire. Leases of expired workers may still be in the store."""
        seconds = self.rng.choice([100.0, 100.0, 200.0, 300.0, 600.0])
        for replica, since in list(self.unacknowledged.items()):
            # The store recognizes a repeated reconciliation only until then.
            if self.state.now + seconds - since >= EXPIRATION:
                await self.restore(replica)
        await self.pass_time(seconds)
        if self.state.orphans:
            await self.make_concurrently([calls.Renew(self.rng.randrange(REPLICAS), min(self.state.orphans))])

    async def refresh_snapshot(self) -> None:
        uncut = [replica for replica, link in enumerate(self.cluster.links) if not link.is_cut]
        replicas = self.rng.sample(uncut, self.rng.randint(0, len(uncut)))
        self.steps.append(f"replicas {replicas} refresh their snapshots")
        for replica in replicas:
            await self.cluster.refresh_snapshot(replica)
        await self.explain([])

    async def cut(self) -> None:
        replica = self.rng.randrange(REPLICAS)
        link = self.cluster.links[replica]
        if self.rng.random() < 0.5:
            link.refuses = True
        else:
            link.lose(ENDLESS)
        self.steps.append(f"replica {replica} is cut off: {'refused' if link.refuses else 'all replies lost'}")

    async def restore(self, replica: int) -> None:
        self.steps.append(f"replica {replica} can reach the store again")
        failed = self.cluster.breaker_is_open(replica)
        self.cluster.links[replica].restore()
        self.unacknowledged.pop(replica, None)
        if failed:
            await self.cluster.wait_for_recovery(replica)
        await self.explain([Event(replica, Fate.RECONCILED)] if failed else [])

    async def reconcile_and_cut_off(self, replica: int) -> None:
        """Lose the reply of a reconciliation. The replica repeats it later, maybe much later."""
        has_bookings = all(
            state.unreconciled[replica].bookings or state.unreconciled[replica].lost for state in self.states
        )
        if not has_bookings or not self.cluster.breaker_is_open(replica) or replica in self.unacknowledged:
            return
        self.unacknowledged[replica] = self.state.now
        self.steps.append(f"replica {replica} reconciles, and is cut off before it gets the reply")
        await self.cluster.reconcile_and_cut_off(replica)
        await self.explain([Event(replica, Fate.RECONCILED)])
        if self.rng.random() < 0.5:
            await self.pass_time(100.0)
            await self.restore(replica)


FAULTS: Final = [
    *[""] * 12,
    *["reply lost"] * 2,
    "replies lost",
    "refused",
    "held back",
    *["cancelled"] * 2,
    "connections broken",
]
