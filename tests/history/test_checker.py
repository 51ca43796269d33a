"""The checker accepts what one controller could have answered, and nothing else. The histories are written by hand."""

from collections.abc import Mapping
from dataclasses import replace
from math import inf

import pytest

from tests.history.check import check
from tests.history.operations import Observation, ObservedWorker, Operation, Round
from tests.model.calls import Answer, Call, Dispatch, Release
from tests.model.worker_calls import Drain, Heartbeat, Register, Remove

A, B, C, S, T = (f"http://127.0.0.1:1/{name}" for name in "abcst")
MODELS = {"m": [A, B, C], "steady": [S, T]}
LEASE_OF_A, LEASE_OF_B = f"1800000000000-9000-7-1@{A}", f"1800000000000-9000-8-2@{B}"
LEASE_OF_S = f"1800000000000-9000-9-4@{S}"
DISPATCH, LEASED, STEADY = Dispatch(0, "m"), Dispatch(0, "m", 9_000), Dispatch(0, "steady")
END = 10.0


def worker(model: str, load: int, seq: int, expires: float = 100.0) -> ObservedWorker:
    return ObservedWorker((model,), 1.0, False, expires < inf, load, 0, seq, str(seq), (expires, expires))


def workers() -> dict[str, ObservedWorker]:
    """Return two workers of one model, of which A costs less, and two of another one."""
    return {A: worker("m", 3, 1), B: worker("m", 5, 2), S: worker("steady", 0, 4, inf), T: worker("steady", 0, 5, inf)}


def observed(at: float, changes: dict[str, ObservedWorker | None], leases: set[str] | None = None) -> Observation:
    found = {name: found for name, found in {**workers(), **changes}.items() if found is not None}
    drained = {name for name, found in changes.items() if found is None and name == C}
    return Observation((at, at), found, drained, leases or set())


def answered(call: Call, start: float, end: float, answer: Answer = None, degraded: float | None = None) -> Operation:
    return Operation(call, start, end, answer, degraded)


def unknown(call: Call, start: float, latest: float = inf) -> Operation:
    return Operation(call, start, latest=latest)


def register(name: str, queue: int = 0, ttl: float = 90.0) -> Register:
    return Register(0, name, ("m",), queue, True, False, ttl)


def heartbeat(name: str, queue: int = 0, ttl: float = 90.0) -> Heartbeat:
    return Heartbeat(0, name, queue, ttl, in_flight=False)


def problems(
    *operations: Operation,
    after: dict[str, ObservedWorker | None] | None = None,
    before: dict[str, ObservedWorker | None] | None = None,
    had: set[str] | None = None,
    has: set[str] | None = None,
    exact: bool = True,
) -> str:
    """Return the problems of a round that begins at 0 s with `before`, and ends with `after` in addition."""
    first = observed(0.0, before or {}, had)
    last = observed(END, {**(before or {}), **(after or {})}, has)
    this = Round(0, "none", MODELS, ["steady"], first, last, list(operations), first)
    return "\n".join(check(this, exact).problems)


Case = tuple[list[Operation], Mapping[str, ObservedWorker | None]]

BOOKED_A = {A: replace(worker("m", 4, 9), incarnation="1")}
DRAINING_A = {A: replace(worker("m", 3, 1), draining=True)}
ON_B = {B: worker("m", 6, 9)}

ACCEPTED: dict[str, Case] = {
    "the cheapest worker": ([answered(DISPATCH, 1, 2, A)], BOOKED_A),
    "calls in the order in which they do not overlap": (
        [answered(Drain(0, A, True), 1, 2, True), answered(DISPATCH, 3, 4, B)],
        {**DRAINING_A, **ON_B},
    ),
    "a dispatch that ran before a removal under way": (
        [answered(Remove(0, A), 1, 3, True), answered(DISPATCH, 2, 4, A)],
        {A: None},
    ),
    "a dispatch that ran after a removal under way": (
        [answered(Remove(0, A), 1, 3, True), answered(DISPATCH, 2, 4, B)],
        {A: None, **ON_B},
    ),
    "a call without an answer that ran": (
        [unknown(Drain(0, A, True), 1), answered(DISPATCH, 3, 4, B)],
        {**DRAINING_A, **ON_B},
    ),
    "a call without an answer that did not run": (
        [unknown(Drain(0, A, True), 1), answered(DISPATCH, 3, 4, A)],
        BOOKED_A,
    ),
    "a dispatch without an answer that booked": ([unknown(DISPATCH, 1)], BOOKED_A),
    "a heartbeat that left out a booking on its way": (
        [answered(DISPATCH, 1, 2, A), answered(heartbeat(A, 3), 1.5, 2.5, True)],
        {A: worker("m", 4, 9, 92.0)},
    ),
    "a worker that drained, expired and registered again": (
        [answered(register(C, 9), 1, 2)],
        {C: replace(worker("m", 9, 8, 91.5), draining=True)},
    ),
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(case: str) -> None:
    operations, after = ACCEPTED[case]
    before: dict[str, ObservedWorker | None] = {C: None} if "drained, expired" in case else {}
    assert problems(*operations, before=before, after=dict(after)) == ""


REFUSED: dict[str, Case] = {
    "not the cheapest worker": ([answered(DISPATCH, 1, 2, B)], ON_B),
    "a draining worker": ([answered(Drain(0, A, True), 1, 2, True), answered(DISPATCH, 3, 4, A)], DRAINING_A),
    "a removed worker": ([answered(Remove(0, A), 1, 2, True), answered(DISPATCH, 3, 4, A)], {A: None}),
    "a worker that a call without an answer cannot have drained yet": (
        [answered(DISPATCH, 1, 2, B), unknown(Drain(0, A, True), 3)],
        {**DRAINING_A, **ON_B},
    ),
    "a call without an answer that ran too late": (
        [unknown(Drain(0, A, True), 1, latest=2), answered(DISPATCH, 3, 4, A), answered(DISPATCH, 5, 6, B)],
        {A: replace(worker("m", 4, 9), draining=True), B: worker("m", 6, 10)},
    ),
    "no worker, though there is one": ([answered(DISPATCH, 1, 2, "")], {}),
    "a wrong answer to a heartbeat": ([answered(heartbeat(A), 1, 2, False)], {}),
    "a booking that was lost": ([answered(DISPATCH, 1, 2, A)], {A: worker("m", 3, 9)}),
    "a booking that was doubled": ([answered(DISPATCH, 1, 2, A)], {A: worker("m", 5, 9)}),
    "a resumed worker that drains": (
        [answered(Drain(0, A, True), 1, 2, True), answered(Drain(0, A, False), 3, 4, True)],
        DRAINING_A,
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    operations, after = REFUSED[case]
    assert problems(*operations, after=dict(after)) != ""


@pytest.mark.parametrize(("at", "expected"), [(4.9, ""), (5.1, "no order explains this call")])
def test_a_worker_gets_nothing_after_its_expiration(at: float, expected: str) -> None:
    before: dict[str, ObservedWorker | None] = {A: worker("m", 3, 1, expires=5.0)}
    assert expected in problems(answered(DISPATCH, at - 0.02, at, A), before=before, after={A: None})


def test_a_heartbeat_extends_the_life_of_a_worker() -> None:
    before: dict[str, ObservedWorker | None] = {A: worker("m", 3, 1, expires=5.0)}
    calls = [answered(heartbeat(A, 3, ttl=4.0), 4, 4.5, True), answered(DISPATCH, 8, 8.2, A)]
    assert problems(*calls, before=before, after={A: None}) == ""
    assert "no order explains" in problems(*calls, answered(DISPATCH, 8.9, 9.0, A), before=before, after={A: None})


def test_leases() -> None:
    leased = replace(BOOKED_A[A])
    granted = answered(LEASED, 1, 2, LEASE_OF_A)
    released = answered(Release(0, LEASE_OF_A), 3, 4, True)
    again = answered(Release(0, LEASE_OF_A), 5, 6, False)
    free = {A: replace(leased, load=3)}
    assert problems(granted, after={A: leased}, has={LEASE_OF_A}) == ""
    assert problems(granted, released, again, after=dict(free)) == ""
    assert "Redis lost" in problems(granted, after=dict(free))
    assert "after their release" in problems(granted, released, after={A: leased}, has={LEASE_OF_A})
    assert "released twice" in problems(granted, released, replace(again, answer=True), after=dict(free))
    assert "two clients" in problems(granted, granted, after={A: leased}, has={LEASE_OF_A})
    assert "no client asked for" in problems(after={A: leased}, has={LEASE_OF_A})
    assert problems(unknown(LEASED, 1), after={A: leased}, has={LEASE_OF_A}) == ""
    assert problems(unknown(LEASED, 1), after={B: worker("m", 6, 9)}, has={LEASE_OF_B}) != "", "A was the cheapest"


@pytest.mark.parametrize(("age", "accepted"), [(0.3, False), (2.0, True)])
@pytest.mark.parametrize("call", [Remove(0, A), Drain(0, A, True)])
def test_an_answer_from_a_snapshot_is_accepted_up_to_its_age(call: Call, age: float, accepted: bool) -> None:
    calls = [answered(call, 1, 2, True), answered(DISPATCH, 3.0, 3.1, A, degraded=age)]
    after: dict[str, ObservedWorker | None] = {A: None} if isinstance(call, Remove) else dict(DRAINING_A)
    assert (problems(*calls, after=after, exact=False) == "") is accepted


def test_an_answer_from_a_snapshot_names_no_expired_worker() -> None:
    before: dict[str, ObservedWorker | None] = {A: worker("m", 3, 1, expires=2.0)}
    late = answered(DISPATCH, 5.0, 5.1, A, degraded=1.0)
    assert "chosen from a snapshot" in problems(late, before=before, after={A: None}, exact=False)
    assert problems(replace(late, degraded=4.0), before=before, after={A: None}, exact=False) == ""
    refreshed = unknown(heartbeat(A), 1.0)
    assert problems(late, refreshed, before=before, after={A: None}, exact=False) == ""


@pytest.mark.parametrize(
    ("booked", "expected"), [(1, "got 2 requests"), (2, ""), (3, ""), (4, "more bookings than requests")]
)
def test_bookings_after_an_outage(booked: int, expected: str) -> None:
    """Two requests had answers, one of them from a snapshot. One has no answer."""
    calls = [
        answered(STEADY, 1, 2, S),
        answered(Dispatch(0, "steady", 9_000), 2, 3, S, degraded=0.5),
        unknown(STEADY, 4),
    ]
    found = problems(*calls, after={S: worker("steady", booked, 9, inf)}, exact=False)
    assert expected in found
    assert bool(expected) is bool(found)


def test_leases_are_no_untracked_bookings() -> None:
    calls = [answered(Dispatch(0, "steady", 9_000), 1, 2, LEASE_OF_S)]
    after: dict[str, ObservedWorker | None] = {S: worker("steady", 1, 4, inf)}
    assert problems(*calls, after=after, has={LEASE_OF_S}, exact=False) == ""
