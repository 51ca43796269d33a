"""Checks one round of a history. docs/contributing/histories.md lists what is checked and what is not."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from tests.history.linearize import TooManyConfigurations, explain
from tests.history.operations import Operation, Round, WorkerCall
from tests.history.realtime import SLACK, Realtime
from tests.model.calls import UNKNOWN, Dispatch, Release
from tests.model.worker_calls import Drain, Heartbeat, Register, Remove
from tests.support.dispatches import worker_of, worker_of_lease


@dataclass
class Verdict:
    """The result of a check.

    problems: what is wrong; empty if the round is correct.
    exact: True if the costs were checked.
    given_up: models whose search was given up.
    """

    problems: list[str]
    exact: bool
    given_up: list[str]


def check(this: Round, exact: bool) -> Verdict:
    """Check a round. exact: False if calls may have run that no client made, as after an outage of Redis."""
    verdict = Verdict([], exact, [])
    for model, names in this.models.items():
        try:
            verdict.problems += _check_model(this, model, names, exact)
        except TooManyConfigurations:
            verdict.given_up.append(model)
    verdict.problems += _check_degraded(this)
    verdict.problems += _check_leases(this)
    if not exact:
        verdict.problems += _check_bookings(this)
    return verdict


def _check_model(this: Round, model: str, names: list[str], exact: bool) -> list[str]:
    """Check that the calls for a model are linearizable."""
    operations = [
        operation
        for operation in this.operations
        if operation.degraded is None
        and (operation.call.model == model if isinstance(operation.call, Dispatch) else operation.worker in names)
        and (exact or operation.has_answer or isinstance(operation.call, WorkerCall))
    ]
    dispatches = [operation for operation in operations if isinstance(operation.call, Dispatch)]
    in_flight = {
        heartbeat: sum(
            each.until >= heartbeat.start - SLACK
            and each.start <= heartbeat.until
            and each.worker in ("", heartbeat.worker)
            for each in dispatches
        )
        for heartbeat in operations
        if isinstance(heartbeat.call, Heartbeat)
    }
    doubtful = [] if exact else [each for each in in_flight if not each.has_answer]
    rules = Realtime(names, exact, in_flight, doubtful, _unclaimed(this, names), this.after.at[0])
    problem = explain(
        [each for each in operations if each not in doubtful],
        rules.begin(this.before),
        rules,
        lambda state: rules.differences(state, this.after),
    )
    return [f"model {model}: " + "\n".join(problem)] if problem else []


def _unclaimed(this: Round, names: Sequence[str]) -> set[str]:
    """Return the leases that were granted in the round, and that no client has got."""
    new = this.after.leases - this.before.leases - set(_granted(this))
    return {lease for lease in new if worker_of_lease(lease) in names}


def _granted(this: Round) -> Iterator[str]:
    for operation in this.operations:
        if isinstance(operation.call, Dispatch) and operation.answer is not UNKNOWN and "@" in operation.answer:
            yield operation.answer


# Answers from snapshots


def _check_degraded(this: Round) -> list[str]:
    """Check that each worker that was chosen from a snapshot could be chosen at some time since the snapshot."""
    problems = []
    for operation in this.operations:
        if operation.degraded is None or not isinstance(operation.call, Dispatch) or not operation.answer:
            continue
        name = worker_of(operation.answer)
        if name not in this.models.get(operation.call.model, ()):
            problems.append(f"the worker does not serve the model: {operation}")
            continue
        since = operation.start - operation.degraded - 0.05 - SLACK  # the header has one decimal
        if not _could_be_chosen(this, name, since, operation.end):
            problems.append(
                f"{name} was chosen from a snapshot, but it was expired, removed or draining since "
                f"{since:.4f}: {operation}"
            )
    return problems


def _could_be_chosen(this: Round, name: str, since: float, until: float) -> bool:
    """Return False if a worker was certainly expired, removed or draining in the whole interval."""
    if since < this.baseline.at[1]:
        return True  # the calls that matter are not known any more
    known = this.baseline.workers.get(name)
    calls = [
        each
        for each in (*this.earlier, *this.operations)
        if isinstance(each.call, WorkerCall) and each.call.name == name and each.start <= until
    ]
    expirations = [
        each.until + each.call.expiration
        for each in calls
        if isinstance(each.call, (Register, Heartbeat)) and each.answer is not False
    ]
    if max([*expirations, known.expires[1] if known else -inf]) + SLACK < since:
        return False
    registrations = [each for each in calls if isinstance(each.call, Register)]
    removals = [each for each in calls if isinstance(each.call, Remove)]
    resumes = [each for each in calls if isinstance(each.call, Drain) and not each.call.drain]
    drains = [each for each in calls if isinstance(each.call, Drain) and each.call.drain and each.answer is True]
    if ((known and known.draining) or name in this.baseline.drained) and not (resumes or removals):
        return False
    removed = any(each.end < since and not _any_after(registrations, each) for each in removals)
    drained = any(each.end < since and not _any_after([*resumes, *removals], each) for each in drains)
    return not (removed or drained)


def _any_after(calls: Sequence[Operation], other: Operation) -> bool:
    """Return True if one of the calls may have run after another one."""
    return any(each.until > other.start for each in calls)


# Bookings


def _check_leases(this: Round) -> list[str]:
    """Check that Redis has the leases that were granted and not released, and no others."""
    granted = list(_granted(this))
    releases = [each for each in this.operations if isinstance(each.call, Release)]
    released = {each.call.lease for each in releases if isinstance(each.call, Release) and each.has_answer}
    perhaps = {each.call.lease for each in releases if isinstance(each.call, Release)}
    twice = [lease for lease, number in Counter(granted).items() if number > 1]
    ended = Counter(each.call.lease for each in releases if isinstance(each.call, Release) and each.answer is True)
    lost_calls = sum(
        isinstance(each.call, Dispatch) and bool(each.call.lease_ms) and not each.has_answer for each in this.operations
    )
    lost_calls += len(_lost_with_replica(this))
    expected = this.before.leases | set(granted)
    lost = expected - perhaps - this.after.leases
    extra = this.after.leases - expected
    problems = []
    if twice:
        problems.append(f"leases that two clients got: {twice}")
    if again := [lease for lease, number in ended.items() if number > 1]:
        problems.append(f"leases that were released twice: {again}")
    if lost:
        problems.append(f"leases that Redis lost: {sorted(lost)}")
    if back := released & this.after.leases:
        problems.append(f"leases that are active after their release: {sorted(back)}")
    if len(extra) > lost_calls:
        problems.append(f"leases that no client asked for, after {lost_calls} calls without an answer: {sorted(extra)}")
    return problems


def _lost_with_replica(this: Round) -> list[Operation]:
    """Return the dispatches that a killed replica may have answered from its snapshot, and then could not reconcile.

    On a busy machine, a call to Redis may take longer than the replica waits for it.
    """
    if this.fault != "replica killed":
        return []
    return [each for each in this.operations if isinstance(each.call, Dispatch) and each.degraded is not None]


def _check_bookings(this: Round) -> list[str]:
    """Check the bookings without leases of the workers that never report: each dispatch is booked once."""
    problems = []
    for model in this.steady:
        dispatches = [each for each in this.operations if isinstance(each.call, Dispatch) and each.call.model == model]
        booked: Counter[str] = Counter(
            each.worker for each in dispatches if each.worker and "@" not in str(each.answer)
        )
        unknown = sum(not each.has_answer for each in dispatches)
        extra = 0
        for name in this.models[model]:
            added = _untracked(this, name, False) - _untracked(this, name, True)
            if added < booked[name] - sum(each.worker == name for each in _lost_with_replica(this)):
                problems.append(f"{name} got {booked[name]} requests without leases, but {added} were booked")
            extra += added - booked[name]
        if extra > unknown:
            problems.append(
                f"model {model}: {extra} more bookings than requests that clients know of, and {unknown} calls "
                "without an answer"
            )
    return problems


def _untracked(this: Round, name: str, before: bool) -> int:
    observed = this.before if before else this.after
    worker = observed.workers.get(name)
    if worker is None:
        return 0
    suffix = f"-{worker.incarnation}@{name}"
    return worker.load - sum(lease.endswith(suffix) for lease in observed.leases)
