"""What must be there after the store lost data or its clock was set, and all replicas have looked."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

from controller.store.registry import WorkerList
from tests.model.state import Observed, State

SLACK: Final = 10.0  # seconds


class Knowledge(NamedTuple):
    """What a replica knew before, and how many seconds ago it had looked."""

    listed: WorkerList
    age: float

    def time_left(self, name: str) -> float:
        """Return the seconds that a worker has left, by what this replica knows."""
        left = [worker.expires_in for worker in self.listed.workers if worker.name == name]
        return -inf if not left else inf if left[0] is None else left[0] - self.age

    def living(self) -> dict[str, bool]:
        """Return whether each worker drained that must still be alive."""
        return {
            worker.name: worker.draining
            for worker in self.listed.workers
            if worker.expires_in is None or worker.expires_in > self.age
        }


def check_after_loss(left: State, sequence: int, known: Sequence[Knowledge], seen: Observed, noticed: bool) -> None:
    """left is what the store was left with, at `sequence`. noticed: all replicas have to notice the loss.

    The replicas that notice the loss restore what they know. Where they know different things, any of these is right:
    their snapshots are older here than those of replicas that take them every second.
    """
    noticing = [each for each in known if noticed or each.listed.sequence > sequence]
    if not noticing:
        assert not (found := left.copy().differences(seen)), found
        return
    assert seen.leases.keys() <= left.leases.keys(), "leases out of nowhere"
    living = [each.living() for each in noticing]
    for name in {*left.workers, *seen.workers, *(name for one in living for name in one)}:
        there = [name in one for one in living]
        draining = {one[name] for one in living if name in one}
        if name in left.workers:
            assert name in seen.workers or not all(there), f"{name} was lost, though the store and all replicas knew it"
        else:
            # The copy may say that the worker was removed, and not that it registered after that. It then stays away.
            removed = name in left.removed
            assert name in seen.workers or removed or not all(there), f"{name} was lost, though all replicas knew it"
            assert name not in seen.workers or any(there), f"{name} is back, though no replica knew it"
            if name in seen.workers:
                most = max(each.time_left(name) for each in noticing)
                assert (seen.workers[name].expires_in or 0.0) < most + SLACK, f"{name} lives for longer than before"
        if name in seen.workers and len(draining) == 1 and all(there):
            assert seen.workers[name].draining in draining, f"{name}: draining is not as all replicas knew it"
    _check_removals(left, noticing, seen)


def _check_removals(left: State, noticing: Sequence[Knowledge], seen: Observed) -> None:
    """A worker stays away that was removed before all replicas looked, and gave no sign since."""
    for name, worker in left.workers.items():
        if worker.registration is None or any(name in each.living() for each in noticing):
            continue
        if all(worker.registration <= each.listed.sequence for each in noticing) and all(
            left.now - left.signs[name] > each.age for each in noticing
        ):
            assert name not in seen.workers, f"{name} is back, though it was removed"


def check_after_jump(left: State, before: Mapping[str, bool], known: Sequence[Knowledge], seen: Observed) -> None:
    """left is what the jump left alive; before has whether each worker drained that was alive before it."""
    living = [each.living() for each in known]
    for name in {*before, *seen.workers}:
        there = [name in one for one in living]
        if name in left.workers or (name in before and any(there)):
            assert name in seen.workers, f"{name} was lost"
        elif not any(there):
            assert name not in seen.workers, f"{name} is back, though no replica knew it"
        if name in left.workers:
            assert seen.workers[name].draining == before[name], f"{name}: draining has changed"
        elif name in seen.workers and name in before and {one[name] for one in living if name in one} == {before[name]}:
            assert seen.workers[name].draining == before[name], f"{name}: draining was forgotten"
    for name, worker in left.workers.items():
        assert seen.workers[name].leased == sum(lease in seen.leases for lease in worker.leases), name
        assert worker.booked[0] <= seen.workers[name].booked - worker.drawn <= worker.booked[1], name
