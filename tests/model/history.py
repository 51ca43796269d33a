"""A random history of calls, faults and losses on three replicas, and what the reference model makes of it."""

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
from tests.model.state import Debt, State

ENDLESS: Final = 10**9


class History:
    """A history. steps lists what was done, for the message of a failure."""

    def __init__(self, cluster: Cluster, seed: int, booking_delay: float) -> None:
        self.cluster = cluster
        self.seed = seed
        self.rng = random.Random(seed)
        self.unseen = booking_delay > 0
        self.states = [State(cluster.now, cluster.clock, debts=[Debt() for _ in range(REPLICAS)])]
        self.leases: list[str] = []
        # The replicas that will settle once more what they have settled, and since when.
        self.unacknowledged: dict[int, float] = {}
        self.losses = Losses(self, cluster)
        self.steps: list[str] = []

    @property
    def state(self) -> State:
        """One of the possible states. They have the same workers and leases, and may have different debts."""
        return self.states[0]

    async def run(self, number: int) -> None:
        await self.cluster.open()
        for step in range(number):
            self.rng.seed(f"{self.seed}-{step}")  # a step draws the same numbers, whatever came out before
            await self.step()
            if step % 8 == 0:
                await self.cluster.check()
        await self.end()

    async def end(self) -> None:
        """End all faults, leases and workers: nothing must be left."""
        for replica in range(REPLICAS):
            await self.mend(replica)
        for name in NAMES:
            await self.together([worker_calls.Remove(0, name)])
        await self.pass_time(1_000.0)
        await self.together([worker_calls.Sweep(0)])
        state = await self.cluster.check()
        assert not state.hashes
        assert not state.indexes
        assert not state.leases

    async def step(self) -> None:
        cut = [replica for replica, line in enumerate(self.cluster.lines) if line.is_cut]
        kinds: list[tuple[float, Callable[[], Awaitable[None]]]] = [
            (70, self.some_calls),
            (8, lambda: self.pass_time(self.rng.choice([0.001, 0.02, 0.06, 0.21, 0.4]))),
            (4, self.pass_much_time),
            (4, self.all_send_heartbeats),
            (5, self.look),
            (1, self.cut),
            (6 * len(cut), lambda: self.mend(self.rng.choice(cut))),
            (3 * len(cut), lambda: self.settle_and_be_cut_off(self.rng.choice(cut))),
            (2, self.losses.dump),
            (0.7, self.losses.lose_everything),
            (1.2, self.losses.fail_over),
            (0.7, self.losses.lose_an_act),
            (1, self.losses.set_clock),
        ]
        [act] = self.rng.choices([act for _, act in kinds], [weight for weight, _ in kinds])
        await act()

    # Calls

    async def some_calls(self) -> None:
        number = self.rng.choice([1, 1, 1, 2, 3])
        await self.together(
            [any_call(self.rng, self.state, self.leases, self.unseen) for _ in range(number)], faults=True
        )

    async def all_send_heartbeats(self) -> None:
        for name in self.state.workers:
            replica = self.rng.randrange(REPLICAS)
            await self.together([worker_calls.Heartbeat(replica, name, 0, EXPIRATION, self.unseen)])

    async def together(self, group: list[Call], *, faults: bool = False) -> None:
        """Make calls at once, and check that the model can do what they did."""
        lines = self.cluster.lines
        group = [call for call in group if not (lines[call.replica].is_cut and self.waits(call))]
        registering = [(call.replica, call.name) for call in group if isinstance(call, worker_calls.Register)]
        if not group or len(registering) > len(set(registering)):  # a replica makes two registrations one
            return
        fault = self.rng.choice(FAULTS) if faults and not any(line.is_cut for line in lines) else ""
        victim = self.rng.randrange(len(group))
        self.steps.append(f"{fault or 'together'} ({group[victim].replica}): " + ", ".join(map(str, group)))
        failures = [self.cluster.failures(replica) for replica in range(REPLICAS)]
        known = self.known_addresses()
        answers = await self.make(group, fault, victim)
        self.steps[-1] += " -> " + ", ".join(map(str, answers))
        resent = [1 if fault == "connections broken" else min(2, line.lost) for line in lines]
        for line in lines:
            if not line.is_cut:
                line.mend()
        await self.cluster.rest()
        events: list[Event] = []
        for call, answer in zip(group, answers, strict=True):
            event = self.event(call, answer, resent[call.replica] > 0, known[call.replica])
            again = resent[call.replica] if call.runs_twice and len(group) > 1 else 0
            events += [event, *(Event(call.replica, Fate.UNKNOWN, call, after=event) for _ in range(again))]
        for replica in range(REPLICAS):
            if self.cluster.failures(replica) > failures[replica] and not lines[replica].is_cut:
                await self.cluster.use_store(replica)
                failed = [event for event in events if event.replica == replica and event.fate is Fate.FAILED]
                reconciled = [Event(replica, Fate.SETTLED, after=event) for event in failed]
                events += reconciled or [Event(replica, Fate.SETTLED)]
        await self.explain(events)
        if fault == "held back":
            await lines[group[victim].replica].let_through()
            await self.explain([])

    def waits(self, call: Call) -> bool:
        """Return True if a call waits for the store while that does not serve."""
        return isinstance(call, worker_calls.Register)

    async def make(self, group: list[Call], fault: str, victim: int) -> list[Any]:
        replica = group[victim].replica
        line = self.cluster.lines[replica]
        helpers: list[Awaitable[None]] = []
        if fault == "reply lost":
            line.lose(1)
        elif fault == "replies lost":
            line.lose(2)
        elif fault == "held back":
            self.cluster.hold_dispatches_back(replica)
        elif fault == "refused":
            line.refuses = True
            helpers.append(self.mend_after(replica, self.rng.randrange(30)))
        tasks = [asyncio.create_task(call.make(self.cluster.replicas[call.replica])) for call in group]
        if fault == "cancelled":
            helpers.append(cancel_after(tasks[victim], self.rng.randrange(16)))
        elif fault == "connections broken":
            helpers.append(self.cluster.break_connections())
        async with asyncio.timeout(60.0):
            answers, _ = await asyncio.gather(asyncio.gather(*tasks, return_exceptions=True), asyncio.gather(*helpers))
        return answers

    async def mend_after(self, replica: int, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        self.cluster.lines[replica].mend()

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
            owes = isinstance(call, Dispatch) and (call.direct or call.lottery)
            event.fate, event.answer = Fate.FAILED if owes else Fate.UNKNOWN, UNKNOWN
        elif isinstance(answer, BaseException):
            raise answer
        elif resent and not call.resent_answer:
            event.fate = Fate.RAN
        return event

    async def explain(self, events: list[Event]) -> None:
        seen = await self.cluster.observe()
        new = seen.leases.keys() - self.state.leases.keys()
        self.states = explain(self.states, events, seen)
        self.leases += sorted(new)
        for event in events:
            if isinstance(event.call, worker_calls.Register | worker_calls.Probe | worker_calls.Heartbeat):
                for state in self.states:
                    state.signs[event.call.name] = state.now

    def known_addresses(self) -> list[dict[str, tuple[str, ...]]]:
        """Return the models that each worker serves, as each replica knows it."""
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
        """Some workers expire, and leases of theirs are still in the store."""
        seconds = self.rng.choice([100.0, 100.0, 200.0, 300.0, 600.0])
        for replica, since in list(self.unacknowledged.items()):
            if self.state.now + seconds - since >= EXPIRATION:  # the store remembers what was settled for so long
                await self.mend(replica)
        await self.pass_time(seconds)
        if self.state.ghosts:
            await self.together([calls.Renew(self.rng.randrange(REPLICAS), min(self.state.ghosts))])

    async def look(self) -> None:
        uncut = [replica for replica, line in enumerate(self.cluster.lines) if not line.is_cut]
        replicas = self.rng.sample(uncut, self.rng.randint(0, len(uncut)))
        self.steps.append(f"{replicas} take snapshots")
        for replica in replicas:
            await self.cluster.look(replica)
        await self.explain([])

    async def cut(self) -> None:
        replica = self.rng.randrange(REPLICAS)
        line = self.cluster.lines[replica]
        if self.rng.random() < 0.5:
            line.refuses = True
        else:
            line.lose(ENDLESS)
        self.steps.append(f"{replica} is cut off: {'refused' if line.refuses else 'all replies lost'}")

    async def mend(self, replica: int) -> None:
        self.steps.append(f"{replica} has its store again")
        failed = self.cluster.refuses_calls(replica)
        self.cluster.lines[replica].mend()
        self.unacknowledged.pop(replica, None)
        if failed:
            await self.cluster.use_store(replica)
        await self.explain([Event(replica, Fate.SETTLED)] if failed else [])

    async def settle_and_be_cut_off(self, replica: int) -> None:
        """The replica will settle the same once more, maybe much later."""
        owes = all(state.debts[replica].bookings or state.debts[replica].lost for state in self.states)
        if not owes or not self.cluster.refuses_calls(replica) or replica in self.unacknowledged:
            return
        self.unacknowledged[replica] = self.state.now
        self.steps.append(f"{replica} settles, and is cut off before it gets the reply")
        await self.cluster.settle_and_be_cut_off(replica)
        await self.explain([Event(replica, Fate.SETTLED)])
        if self.rng.random() < 0.5:
            await self.pass_time(100.0)
            await self.mend(replica)


FAULTS: Final = [
    *[""] * 12,
    *["reply lost"] * 2,
    "replies lost",
    "refused",
    "held back",
    *["cancelled"] * 2,
    "connections broken",
]
