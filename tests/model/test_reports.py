"""The reference model applies reports as of when they were written, although requests and reports are delayed.

Reports may overtake each other. Times are in milliseconds, and nothing decays.
"""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from operator import add

from hypothesis import example, given, settings
from hypothesis import strategies as st

from controller.domain.checkpoints import CHECKPOINT_MS, RECENT_CHECKPOINTS
from tests.model.load import Load

IN_FLIGHT_WINDOW = 200
# With at most this delay, there is still a checkpoint from before the report was written.
MAX_REPORT_DELAY = RECENT_CHECKPOINTS * CHECKPOINT_MS - IN_FLIGHT_WINDOW


@dataclass(frozen=True, eq=False)
class Request:
    """The times of a request. released: None if it has no lease."""

    booked: int
    arrived: int
    ended: int
    released: int | None


@dataclass(frozen=True)
class Report:
    written: int
    arrived: int


@st.composite
def requests(draw: st.DrawFn) -> list[Request]:
    booked, made = 1000, []
    for gap in draw(st.lists(st.sampled_from([0, 1, 20, 49, 50, 51, 120, 700]), max_size=40)):
        booked += gap
        arrived = booked + draw(st.integers(0, IN_FLIGHT_WINDOW - CHECKPOINT_MS))
        ended = arrived + draw(st.integers(1, 900))
        released = draw(st.none() | st.integers(0, 400).map(partial(add, ended)))
        made.append(Request(booked, arrived, ended, released))
    return made


reports = st.lists(
    st.tuples(st.integers(1000, 6000), st.integers(0, MAX_REPORT_DELAY)).map(lambda t: Report(t[0], sum(t))),
    max_size=12,
)


def history(requests: list[Request], reports: list[Report]) -> Iterator[tuple[int, str, Request | Report]]:
    """Return an iterator over all events by time. At the same time, bookings come first."""
    events: list[tuple[int, str, Request | Report]] = [(r.booked, "booked", r) for r in requests]
    events += [(r.released, "released", r) for r in requests if r.released is not None]
    events += [(r.arrived, "reported", r) for r in reports]
    return iter(sorted(events, key=lambda event: (event[0], event[1])))


def at_the_worker(requests: list[Request], time: int) -> list[Request]:
    return [r for r in requests if r.arrived <= time < r.ended]


@settings(max_examples=400)
@example([Request(1000, 1002, 1003, 1003), *(Request(1000, 1000, 1001, None) for _ in range(3))],
         [Report(1001, 1001), Report(1001, 1003)])  # fmt: skip
@given(requests(), reports)
def test_a_report_counts_as_of_when_it_was_written(requests: list[Request], reports: list[Report]) -> None:
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
        learned_now = load.report(len(there), subject.written, now, 0.0, IN_FLIGHT_WINDOW)
        if learned_now is None:
            assert subject.written < before.reported_at
            assert load == before, "a report older than the last one changes nothing"
            continue
        learned += learned_now[1]

        known_to_be_finished = {r for r in requests if r.released is not None and r.released <= now}
        in_flight = [r for r in requests if r.booked <= now and r.arrived > subject.written]
        true = len(set(there) - known_to_be_finished) + len(set(in_flight) - known_to_be_finished)
        # Two kinds of requests may be counted twice: arrived ones that are younger than the in-flight window, and
        # reported ones that were released before the report arrived.
        young = [r for r in requests if subject.written - IN_FLIGHT_WINDOW < r.booked and r.arrived <= subject.written]
        twice = len(young) + len(set(there) & known_to_be_finished)
        assert true <= load.queue(0.0, 1.0) <= true + twice
        assert load.finished <= load.leased
    booked = sum(event == "booked" for _, event, _ in history(requests, reports))
    since_report = load.dispatched + load.leased_since_report + load.released_since_report
    assert learned + load.own + since_report == booked, "each request is learned from once"


@given(requests())
def test_without_reports_every_request_counts_until_its_release(requests: list[Request]) -> None:
    load = Load(speed=1)
    for now, event, request in history(requests, []):
        assert isinstance(request, Request)
        if event == "booked":
            load.book(now, 0.0, 1.0, request.released is not None)
        else:
            load.release(request.booked, now, expired=False)
    assert load.queue(0.0, 1.0) == sum(request.released is None for request in requests)
