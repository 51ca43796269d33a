"""Data losses, failovers to an older copy, and changes of the store's clock in the middle of a history."""

from math import inf
from typing import TYPE_CHECKING

from controller.store import keys
from tests.model import worker_calls
from tests.model.choice import MODELS
from tests.model.cluster import EXPIRATION, REPLICAS, Cluster
from tests.model.explain import Event, Fate
from tests.model.rules import LastSnapshot, check_after_jump, check_after_loss
from tests.model.state import State, Unreconciled

if TYPE_CHECKING:
    from tests.model.history import History


class Losses:
    """Makes the losses of a history.

    dumped: a copy of the store: its keys, the state of the model at that time, and the sequence.
    """

    def __init__(self, history: "History", cluster: Cluster) -> None:
        self.history = history
        self.cluster = cluster
        self.rng = history.rng
        self.dumped: tuple[list[tuple[bytes, int, bytes]], State, int] | None = None

    async def reconcile_all(self) -> None:
        """Connect and reconcile all replicas. Otherwise a loss has too many possible outcomes."""
        for replica in range(REPLICAS):
            await self.history.restore(replica)
            if any(state.unreconciled[replica] != Unreconciled() for state in self.history.states):
                await self.cluster.reconcile(replica)
                await self.history.explain([Event(replica, Fate.RECONCILED)])

    def last_snapshots(self) -> list[LastSnapshot]:
        return [
            LastSnapshot(listed, age)
            for listed, age in (self.cluster.snapshot(replica) for replica in range(REPLICAS))
            if listed is not None
        ]

    async def refresh_all_snapshots(self) -> None:
        for replica in self.rng.sample(range(REPLICAS), REPLICAS):
            await self.cluster.refresh_snapshot(replica)

    async def adopt(self) -> None:
        whole = await self.cluster.check()
        self.history.states = [self.history.state]
        self.history.state.adopt(await self.cluster.observe(), whole.hashes)

    async def dump(self) -> None:
        await self.reconcile_all()
        self.history.steps.append("the store is copied")
        sequence = int(await self.cluster.admin.get(keys.sequence(self.cluster.namespace)) or 0)
        self.dumped = await self.cluster.dump(), self.history.state.copy(), sequence

    async def lose_everything(self) -> None:
        await self.reconcile_all()
        known = self.last_snapshots()
        self.history.steps.append("FLUSHALL")
        await self.cluster.flush()
        self.dumped = None
        await self.dispatch_after_loss()
        await self.refresh_all_snapshots()
        left = State(self.history.state.now, self.history.state.clock)
        check_after_loss(left, 0, known, await self.cluster.observe(), noticed=True)
        self.history.state.removed.clear()
        await self.adopt()

    async def dispatch_after_loss(self) -> None:
        """Dispatch a request. It finds no worker, so its replica refreshes the snapshot and notices the loss."""
        replica, model = self.rng.randrange(REPLICAS), self.rng.choice(MODELS)
        listed, age = self.cluster.snapshot(replica)
        if listed is None or self.rng.random() < 0.5:
            return
        alive = LastSnapshot(listed, age).alive()
        serving = [w.name for w in listed.workers if model in w.status.model_names and alive.get(w.name) is False]
        address, _ = await self.cluster.replicas[replica].dispatcher.dispatch(model)
        assert address in (serving or [""]), f"{address or 'no worker'} of {serving}"

    async def fail_over(self, *, noticed: bool = False) -> None:
        if self.dumped is None:
            return
        dumped, left, sequence = self.dumped
        await self.reconcile_all()
        known, age = self.last_snapshots(), self.history.state.now - left.now
        self.history.steps.append(f"failover to a copy that is {age} s old")
        await self.cluster.fail_over(dumped, age)
        left = left.copy()
        left.pass_time(age)
        left.clock = self.history.state.clock
        await self.refresh_all_snapshots()
        check_after_loss(left, sequence, known, await self.cluster.observe(), noticed=noticed)
        self.dumped = None
        self.history.state.removed |= left.removed  # replicas repeat removals that were lost
        await self.adopt()

    async def lose_an_operation(self) -> None:
        """Lose an operator's call, and only that, in a failover. All snapshots already contain its effect."""
        if not self.history.state.workers:
            return
        await self.dump()
        name = self.rng.choice(sorted(self.history.state.workers))
        replica = self.rng.randrange(REPLICAS)
        drain = worker_calls.Drain(replica, name, drain=not self.history.state.workers[name].draining)
        await self.history.make_concurrently([self.rng.choice([drain, worker_calls.Remove(replica, name)])])
        await self.history.pass_time(0.02)
        await self.refresh_all_snapshots()
        await self.fail_over(noticed=True)

    async def set_clock(self) -> None:
        await self.reconcile_all()
        known = self.last_snapshots()
        seconds = self.rng.choice([-1, 1]) * self.rng.choice([100.0, 300.0, 1_200.0])
        self.history.steps.append(f"the clock of the store moves by {seconds} s")
        self.dumped = None
        before = {name: worker.draining for name, worker in self.history.state.workers.items()}
        self.history.states = [self.history.state]
        self.history.state.clock += round(1000 * seconds)
        if seconds < 0:
            # All these times are now later than the store's clock.
            self.history.state.last_heard = dict.fromkeys(self.history.state.last_heard, inf)
        left = self.history.state.copy()
        for name, worker in self.history.state.workers.items():
            if worker.expires_at < inf and worker.expires_at - left.now <= seconds:
                del left.workers[name]
        await self.cluster.set_clock_by(seconds)
        await self.refresh_all_snapshots()
        observed = await self.cluster.observe()
        check_after_jump(left, before, known, observed)
        for lease, ends_at in observed.leases.items():
            assert ends_at <= min(self.history.state.leases[lease], left.clock + int(lease.split("-")[1])), lease
        assert all((worker.expires_in or 0) <= EXPIRATION for worker in observed.workers.values())
        await self.adopt()
