"""Reports against what really was: requests and reports that take their time on the way, reports that overtake others.

Time is in milliseconds, nothing fades.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass

from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.domain.load import MARK_MS, MAX_MARKS, Load

UNSEEN_FOR = 200
LATEST_REPORT = MAX_MARKS * MARK_MS - UNSEEN_FOR  # so long on its way, and there is a mark from before it was written


@dataclass(frozen=True, eq=False)
class Request:
    """From its booking until a lease's end is known here; without a lease, that is never known."""

    booked: int
    arrived: int
    ended: int
    released: int | None


@dataclass(frozen=True)
class Report:
    written: int
    came: int


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    booked, made = 1000, []
    for gap in draw(st.lists(st.sampled_from([0, 1, 20, 49, 50, 51, 120, 700]), max_size=40)):
        booked += gap
        arrived = booked + draw(st.integers(0, UNSEEN_FOR - MARK_MS))
        ended = arrived + draw(st.integers(1, 900))
        released = draw(st.none() | st.integers(0, 400).map(lambda delay, ended=ended: ended + delay))
        made.append(Request(booked, arrived, ended, released))
    return made


reports = st.lists(
    st.tuples(st.integers(1000, 6000), st.integers(0, LATEST_REPORT)).map(lambda t: Report(t[0], sum(t))), max_size=12
)


def history(requests: list[Request], reports: list[Report]) -> Iterator[tuple[int, str, Request | Report]]:
    """What is heard of here, in the order of time; of what happens at once, a booking is the first."""
    events: list[tuple[int, str, Request | Report]] = [(r.booked, "booked", r) for r in requests]
    events += [(r.released, "released", r) for r in requests if r.released is not None]
    events += [(r.came, "reported", r) for r in reports]
    return iter(sorted(events, key=lambda event: (event[0], event[1])))


def at_the_worker(requests: list[Request], time: int) -> list[Request]:
    return [r for r in requests if r.arrived <= time < r.ended]


@settings(max_examples=400)
@example([Request(1000, 1002, 1003, 1003), *(Request(1000, 1000, 1001, None) for _ in range(3))],
         [Report(1001, 1001), Report(1001, 1003)])  # fmt: skip
@given(requests(), reports)
def test_a_report_is_taken_for_what_was_true_when_it_was_written(
    requests: list[Request], reports: list[Report]
) -> None:
    load = Load(speed=1)
    learned = 0
    for now, event, subject in history(requests, reports):
        if isinstance(subject, Request):
            if event == "booked":
                load.book(now, 0.0, 1.0, subject.released is not None)
            else:
                load.release(subject.booked, now, expired=False)
            continue
        before = deepcopy(load)
        there = at_the_worker(requests, subject.written)
        told = load.report(len(there), subject.written, now, 0.0, UNSEEN_FOR)
        if told is None:
            assert subject.written < before.reported_at
            assert load == before, "one that was overtaken by a later one changes nothing"
            continue
        learned += told[1]

        known_to_have_ended = {r for r in requests if r.released is not None and r.released <= now}
        on_their_way = [r for r in requests if r.booked <= now and r.arrived > subject.written]
        true = len(set(there) - known_to_have_ended) + len(set(on_their_way) - known_to_have_ended)
        # What may be counted twice: bookings so young that they might have been on their way, but had arrived; and
        # requests that the report tells of and whose end was known before it came.
        young = [r for r in requests if subject.written - UNSEEN_FOR < r.booked and r.arrived <= subject.written]
        twice = len(young) + len(set(there) & known_to_have_ended)
        assert true <= load.queue(0.0, 1.0) <= true + twice
        assert load.ended <= load.leased
    booked = sum(event == "booked" for _, event, _ in history(requests, reports))
    assert learned + load.own + load.booked + load.lent + load.done == booked, "each booking is learned from once"


@given(requests())
def test_without_reports_nothing_is_lost(requests: list[Request]) -> None:
    load = Load(speed=1)
    for now, event, request in history(requests, []):
        assert isinstance(request, Request)
        if event == "booked":
            load.book(now, 0.0, 1.0, request.released is not None)
        else:
            load.release(request.booked, now, expired=False)
    assert load.queue(0.0, 1.0) == sum(request.released is None for request in requests)
