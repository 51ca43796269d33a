"""Checks of the store after a data loss or a change of its clock, when all replicas have refreshed their snapshots."""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Final, NamedTuple

from controller.store.registry import WorkerList
from tests.model.state import Observed, State

SLACK: Final = 10.0  # seconds


class LastSnapshot(NamedTuple):
    """The last snapshot of a replica before the loss, and its age in seconds."""

    listed: WorkerList
    age: float

    def time_left(self, name: str) -> float:
        """Return the seconds until a worker expires according to this snapshot. -inf if it is not listed."""
        left = [worker.expires_in for worker in self.listed.workers if worker.name == name]
        return -inf if not left else inf if left[0] is None else left[0] - self.age

    def alive(self) -> dict[str, bool]:
        """Return the workers that have not expired since. Each value is True if the worker was draining."""
        return {
            worker.name: worker.draining
            for worker in self.listed.workers
            if worker.expires_in is None or worker.expires_in > self.age
        }


def check_after_loss(
    left: State, sequence: int, known: Sequence[LastSnapshot], observed: Observed, noticed: bool
) -> None:
    """Check the store after a data loss.

    The replicas that notice the loss restore their snapshots. If snapshots differ, any of them is accepted. They are
    older here than in practice, because a replica usually takes one each second.

    left: state of the store after the loss.
    sequence: its sequence number.
    noticed: True if all replicas have to notice the loss.
    """
    noticing = [each for each in known if noticed or each.listed.sequence > sequence]
    if not noticing:
        assert not (found := left.copy().differences(observed)), found
        return
    assert observed.leases.keys() <= left.leases.keys(), "leases appear that were not in the copy"
    alive = [each.alive() for each in noticing]
    for name in {*left.workers, *observed.workers, *(name for one in alive for name in one)}:
        is_listed = [name in one for one in alive]
        draining = {one[name] for one in alive if name in one}
        if name in left.workers:
            assert name in observed.workers or not all(is_listed), (
                f"{name} was lost, though the store and all snapshots had it"
            )
        else:
            # The copy may contain the removal of the worker, but not its later registration. Then it is not restored.
            removed = name in left.removed
            assert name in observed.workers or removed or not all(is_listed), (
                f"{name} was lost, though all snapshots had it"
            )
            assert name not in observed.workers or any(is_listed), f"{name} is back, though no snapshot had it"
            if name in observed.workers:
                most = max(each.time_left(name) for each in noticing)
                assert (observed.workers[name].expires_in or 0.0) < most + SLACK, f"{name} expires later than before"
        if name in observed.workers and len(draining) == 1 and all(is_listed):
            assert observed.workers[name].draining in draining, f"{name}: draining differs from all snapshots"
    _check_removals(left, noticing, observed)


def _check_removals(left: State, noticing: Sequence[LastSnapshot], observed: Observed) -> None:
    """Check that a worker is not restored if it was removed before all snapshots, and not heard of since."""
    for name, worker in left.workers.items():
        if worker.registration is None or any(name in each.alive() for each in noticing):
            continue
        if all(worker.registration <= each.listed.sequence for each in noticing) and all(
            left.now - left.last_heard[name] > each.age for each in noticing
        ):
            assert name not in observed.workers, f"{name} is back, though it was removed"


def check_after_jump(
    left: State, before: Mapping[str, bool], known: Sequence[LastSnapshot], observed: Observed
) -> None:
    """Check the store after its clock was changed.

    left: state of the model without the workers that expired through the change.
    before: the workers that were alive before. Each value is True if the worker was draining.
    """
    alive = [each.alive() for each in known]
    for name in {*before, *observed.workers}:
        is_listed = [name in one for one in alive]
        if name in left.workers or (name in before and any(is_listed)):
            assert name in observed.workers, f"{name} was lost"
        elif not any(is_listed):
            assert name not in observed.workers, f"{name} is back, though no snapshot had it"
        if name in left.workers:
            assert observed.workers[name].draining == before[name], f"{name}: draining has changed"
        elif (
            name in observed.workers
            and name in before
            and {one[name] for one in alive if name in one} == {before[name]}
        ):
            assert observed.workers[name].draining == before[name], f"{name}: draining was lost"
    for name, worker in left.workers.items():
        assert observed.workers[name].leased == sum(lease in observed.leases for lease in worker.leases), name
        assert worker.booked[0] <= observed.workers[name].booked - worker.drawn <= worker.booked[1], name
