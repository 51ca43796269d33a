"""The store loses data, fails over to an older copy, or has its clock set, in the middle of a history."""

from math import inf
from typing import TYPE_CHECKING

from controller.store import keys
from tests.model import worker_calls
from tests.model.choice import MODELS
from tests.model.cluster import EXPIRATION, REPLICAS, Cluster
from tests.model.explain import Event, Fate
from tests.model.rules import Knowledge, check_after_jump, check_after_loss
from tests.model.state import Debt, State

if TYPE_CHECKING:
    from tests.model.history import History


class Losses:
    """dumped is a copy of the store: its keys, the state of the model then, and the sequence."""

    def __init__(self, history: "History", cluster: Cluster) -> None:
        self.history = history
        self.cluster = cluster
        self.rng = history.rng
        self.dumped: tuple[list[tuple[bytes, int, bytes]], State, int] | None = None

    async def quiet(self) -> None:
        """All replicas have the store, and nothing to settle. Otherwise a loss has too many outcomes."""
        for replica in range(REPLICAS):
            await self.history.mend(replica)
            if any(state.debts[replica] != Debt() for state in self.history.states):
                await self.cluster.settle(replica)
                await self.history.explain([Event(replica, Fate.SETTLED)])

    def knowledge(self) -> list[Knowledge]:
        return [
            Knowledge(listed, age)
            for listed, age in (self.cluster.snapshot(replica) for replica in range(REPLICAS))
            if listed is not None
        ]

    async def all_look(self) -> None:
        for replica in self.rng.sample(range(REPLICAS), REPLICAS):
            await self.cluster.look(replica)

    async def adopt(self) -> None:
        whole = await self.cluster.check()
        self.history.states = [self.history.state]
        self.history.state.adopt(await self.cluster.observe(), whole.hashes)

    async def dump(self) -> None:
        await self.quiet()
        self.history.steps.append("the store is copied")
        sequence = int(await self.cluster.aside.get(keys.sequence(self.cluster.namespace)) or 0)
        self.dumped = await self.cluster.dump(), self.history.state.copy(), sequence

    async def lose_everything(self) -> None:
        await self.quiet()
        known = self.knowledge()
        self.history.steps.append("FLUSHALL")
        await self.cluster.forget_everything()
        self.dumped = None
        await self.dispatch_after_loss()
        await self.all_look()
        left = State(self.history.state.now, self.history.state.clock)
        check_after_loss(left, 0, known, await self.cluster.observe(), noticed=True)
        self.history.state.removed.clear()
        await self.adopt()

    async def dispatch_after_loss(self) -> None:
        """The first request finds no worker, and makes its replica look."""
        replica, model = self.rng.randrange(REPLICAS), self.rng.choice(MODELS)
        listed, age = self.cluster.snapshot(replica)
        if listed is None or self.rng.random() < 0.5:
            return
        living = Knowledge(listed, age).living()
        serving = [w.name for w in listed.workers if model in w.status.model_names and living.get(w.name) is False]
        address, _ = await self.cluster.replicas[replica].dispatcher.dispatch(model)
        assert address in (serving or [""]), f"{address or 'no worker'} of {serving}"

    async def fail_over(self, *, noticed: bool = False) -> None:
        if self.dumped is None:
            return
        dumped, left, sequence = self.dumped
        await self.quiet()
        known, age = self.knowledge(), self.history.state.now - left.now
        self.history.steps.append(f"failover to the copy, {age} s old")
        await self.cluster.fail_over(dumped, age)
        left = left.copy()
        left.pass_time(age)
        left.clock = self.history.state.clock
        await self.all_look()
        check_after_loss(left, sequence, known, await self.cluster.observe(), noticed=noticed)
        self.dumped = None
        self.history.state.removed |= left.removed  # replicas repeat removals that were lost
        await self.adopt()

    async def lose_an_act(self) -> None:
        """All replicas have seen what an operator did, and it is all that is lost by a failover."""
        if not self.history.state.workers:
            return
        await self.dump()
        name = self.rng.choice(sorted(self.history.state.workers))
        replica = self.rng.randrange(REPLICAS)
        drain = worker_calls.Drain(replica, name, drain=not self.history.state.workers[name].draining)
        await self.history.together([self.rng.choice([drain, worker_calls.Remove(replica, name)])])
        await self.history.pass_time(0.02)
        await self.all_look()
        await self.fail_over(noticed=True)

    async def set_clock(self) -> None:
        await self.quiet()
        known = self.knowledge()
        seconds = self.rng.choice([-1, 1]) * self.rng.choice([100.0, 300.0, 1_200.0])
        self.history.steps.append(f"the clock is set by {seconds} s")
        self.dumped = None
        before = {name: worker.draining for name, worker in self.history.state.workers.items()}
        self.history.states = [self.history.state]
        self.history.state.clock += round(1000 * seconds)
        if seconds < 0:
            # The last signs of life are now later than the store's clock.
            self.history.state.signs = dict.fromkeys(self.history.state.signs, inf)
        left = self.history.state.copy()
        for name, worker in self.history.state.workers.items():
            if worker.expires_at < inf and worker.expires_at - left.now <= seconds:
                del left.workers[name]
        await self.cluster.set_clock_by(seconds)
        await self.all_look()
        seen = await self.cluster.observe()
        check_after_jump(left, before, known, seen)
        for lease, ends_at in seen.leases.items():
            assert ends_at <= min(self.history.state.leases[lease], left.clock + int(lease.split("-")[1])), lease
        assert all((worker.expires_in or 0) <= EXPIRATION for worker in seen.workers.values())
        await self.adopt()
