"""The reference model of a worker's load, in the smallest examples."""

from functools import partial
from itertools import pairwise

import pytest

from controller.domain.checkpoints import CHECKPOINT_MS, MAX_CHECKPOINTS, RECENT_CHECKPOINTS
from controller.domain.cost import FAILING, FULL
from controller.domain.lease import LEASE
from tests.model.load import LATE_RELEASE_MS, OLDEST_MS, RECENT_MS, Load


def booked(load: Load, *times: float, leased: bool = False) -> Load:
    for time in times:
        load.book(time, 0.0, 1.0, leased)
    return load


def test_bookings_within_50_ms_share_a_checkpoint() -> None:
    load = booked(Load(1), 1_000, 1_000 + CHECKPOINT_MS - 1)
    assert load.checkpoints == [(1_000, 0, 0)]
    booked(load, 1_000 + CHECKPOINT_MS)
    assert load.checkpoints == [(1_000, 0, 0), (1_000 + CHECKPOINT_MS, 2, 0)]


def test_the_number_and_the_age_of_checkpoints_are_limited() -> None:
    load = booked(Load(1), *(1_000 + CHECKPOINT_MS * i for i in range(RECENT_CHECKPOINTS)))
    assert [at for at, _, _ in load.checkpoints] == [1_000 + CHECKPOINT_MS * i for i in range(RECENT_CHECKPOINTS)]
    while len(load.checkpoints) < MAX_CHECKPOINTS - 1:
        booked(load, load.checkpoint_at + RECENT_MS - 1)
    booked(load, load.checkpoint_at + RECENT_MS - 1)
    assert [dispatched for _, dispatched, _ in load.checkpoints] == [*range(MAX_CHECKPOINTS)][-RECENT_CHECKPOINTS:]
    booked(load, load.checkpoint_at + RECENT_MS)
    assert load.checkpoints == [(load.checkpoint_at, MAX_CHECKPOINTS, 0)], "the others are too old"


def test_checkpoints_of_leases_get_further_apart() -> None:
    load, now = Load(1), 1_000.0
    for _ in range(2_000):
        booked(load, now, leased=True)
        now += CHECKPOINT_MS
    times = [at for at, _, _ in load.checkpoints]
    assert len(times) < MAX_CHECKPOINTS
    assert times[0] == 1_000, "the first one stays until a report acknowledges the leases after it"
    for later, earlier in pairwise(reversed(times[1:])):
        assert later - earlier <= max(CHECKPOINT_MS, now - later), "the precision depends on the age"
    for in_flight_window in (90_000.0, 14_000.0, 3_000.0, 1_000.0, 200.0):
        granted_in_window = in_flight_window // CHECKPOINT_MS - 1
        load.report(0, now, now, 0.0, in_flight_window, is_engine=True)
        assert granted_in_window <= load.leased_since_report
        assert load.leased_since_report <= 2 * granted_in_window + 2 or in_flight_window > OLDEST_MS
        assert load.finished == load.leased - load.leased_since_report


def test_a_report_of_an_engine_counts_no_request_twice() -> None:
    """The report may be of any moment of the last 3 s. Only what exceeds the peak of that time is of other clients."""
    load = booked(Load(1), 1_000, 1_000, 1_000, leased=True)
    report = partial(load.report, reading=0, in_flight_window=200, is_engine=True)
    report(3, written_at=-2_000, now=1_500)
    assert (load.finished, load.untracked) == (0, 0)
    report(0, written_at=-1_500, now=2_000)
    assert load.finished == 0, "the report may lack requests that are this young"
    for _ in range(3):
        load.release(1_000, 2_400, expired=False)
    report(3, written_at=-500, now=2_500)
    assert (load.untracked, load.queue(0.0, 1.0)) == (0, 0), "these were ours"
    report(5, written_at=2_000, now=5_000)
    assert load.untracked == 2, "more than we had at any moment"
    report(5, written_at=6_000, now=9_000)
    assert load.untracked == 5


def test_an_engine_that_lost_requests_is_believed_after_the_window() -> None:
    load = booked(Load(1), 1_000, 1_000, leased=True)
    for now in range(2_000, 10_000, 1_000):
        booked(load, now, leased=True)
        load.release(now, now + 500, expired=False)
        load.report(0, now - 2_500, now + 500, 0.0, 200, is_engine=True)
    assert (load.leased, load.finished) == (2, 2)


def test_requests_in_flight_are_added_to_a_report() -> None:
    load = booked(Load(1), 1_000, 1_060, 1_120)
    booked(load, 1_180, leased=True)
    assert load.report(2, written_at=1_250, now=1_300, reading=0, in_flight_window=190) == (1_250, 0), (
        "exactly at the limit: acknowledged"
    )
    assert (load.dispatched, load.leased_since_report, load.leased, load.queue(0.0, 1.0)) == (1, 1, 1, 4)
    assert load.report(4, written_at=1_379, now=1_400, reading=0, in_flight_window=200) == (1_250 + 2.5 * 129, 0)
    assert (load.dispatched, load.leased_since_report, load.queue(0.0, 1.0)) == (0, 1, 5)
    assert load.report(4, written_at=1_380, now=1_400, reading=0, in_flight_window=200) == (
        1_250 + 2.5 * 129 + 3.5,
        0,
    )
    assert (load.leased_since_report, load.leased, load.queue(0.0, 1.0)) == (0, 1, 4)


def test_a_report_older_than_the_last_one_changes_nothing() -> None:
    load = Load(1)
    load.report(3, written_at=1_000, now=1_000, reading=0, in_flight_window=200)
    assert load.report(9, written_at=999, now=1_000, reading=0, in_flight_window=200) is None
    assert load.reported == 3
    assert load.report(9, written_at=1_000, now=1_000, reading=0, in_flight_window=200) is not None
    assert load.reported == 9


def test_reports_count_again_after_the_clock_was_set_back() -> None:
    load = booked(Load(1), 10_000)
    load.report(3, written_at=10_000, now=10_000, reading=0, in_flight_window=200)
    assert load.dispatched == 1
    assert load.report(5, written_at=4_000, now=4_000, reading=0, in_flight_window=200) == (0, 0)
    assert (load.reported, load.dispatched, load.checkpoints) == (5, 0, []), "no checkpoint is left"
    booked(load, 4_001)
    assert load.checkpoints == [(4_001, 0, 0)]


def test_work_adds_up_until_requests_finish() -> None:
    load = booked(Load(1), 1_000, 1_000, 1_000)
    assert load.report(3, written_at=2_000, now=2_000, reading=0, in_flight_window=200) == (1.5 * 2_000, 0)
    assert load.report(3, written_at=3_000, now=3_000, reading=0, in_flight_window=200) == (6_000, 0)
    assert load.report(1, written_at=4_000, now=4_000, reading=0, in_flight_window=200) == (8_000, 2)
    assert load.report(0, written_at=5_000, now=5_000, reading=0, in_flight_window=200) == (500, 1)
    assert load.report(0, written_at=6_000, now=6_000, reading=0, in_flight_window=200) == (0, 0)


def test_requests_of_other_clients_do_not_count_as_work() -> None:
    load = Load(1)
    assert load.report(5, written_at=1_000, now=1_000, reading=0, in_flight_window=200) == (0, 0)
    booked(load, 1_500)
    assert load.report(6, written_at=2_000, now=2_000, reading=0, in_flight_window=200) == (500, 0)
    assert load.report(9, written_at=3_000, now=3_000, reading=0, in_flight_window=200) == (1_500, 0)
    assert load.report(0, written_at=4_000, now=4_000, reading=0, in_flight_window=200) == (2_000, 1)


def leased_and_reported(queue_length: int) -> Load:
    load = booked(Load(1), 1_000, 1_000, leased=True)
    load.report(queue_length, written_at=2_000, now=2_000, reading=0, in_flight_window=200)
    return load


def test_a_request_reported_as_finished_is_not_subtracted_again_by_its_release() -> None:
    load = leased_and_reported(1)
    assert (load.leased, load.finished, load.queue(0.0, 1.0)) == (2, 1, 1)
    load.release(1_000, 2_000 + LATE_RELEASE_MS - 1, expired=False)
    assert (load.leased, load.finished, load.queue(0.0, 1.0)) == (1, 0, 1)


def test_a_late_release_is_of_a_request_that_finished_after_the_report() -> None:
    load = leased_and_reported(1)
    load.release(1_000, 2_000 + LATE_RELEASE_MS, expired=False)
    assert (load.leased, load.finished, load.queue(0.0, 1.0)) == (1, 1, 0)
    load.release(1_000, 2_000 + LATE_RELEASE_MS, expired=False)
    assert (load.leased, load.finished, load.queue(0.0, 1.0)) == (0, 0, 0), "not below 0"


def test_an_expired_lease_is_not_subtracted_twice() -> None:
    load = leased_and_reported(0)
    assert (load.leased, load.finished) == (2, 2)
    load.book(3_000, 0.0, 1.0, leased=True)
    load.release(1_000, 600_000, expired=True)
    load.release(1_000, 600_000, expired=True)
    assert (load.leased, load.finished, load.queue(0.0, 1.0)) == (1, 0, 1), "the later request still runs"


@pytest.mark.parametrize(
    ("load", "cost"),
    [
        (Load(2, leased=3, untracked=1), 2.0),
        (Load(2, leased=3, finished=1), 1.0),
        (Load(2, capacity=4, leased=3), 1.5),
        (Load(2, capacity=4, leased=4), FULL + 1 / 8),
        (Load(2, capacity=4, leased=4, untracked=2, untracked_own_rate=2), FULL + 3 / 8),
        (Load(1, leased=1, failing=True), FAILING + 1),
    ],
)
def test_cost(load: Load, cost: float) -> None:
    assert load.cost(0.0, 1.0) == cost


def test_invalid_leases() -> None:
    assert LEASE.fullmatch("1800000000000-600000-17-3@http://a:1")
    assert not LEASE.fullmatch("\u0661800000000000-600000-17-3@http://a:1"), "digits are 0 to 9"
    assert not LEASE.fullmatch("1800000000000-600000-17-3@http://a:1\n")
