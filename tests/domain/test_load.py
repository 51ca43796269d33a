"""One worker's load, in the smallest examples; tests/store/test_load_oracle.py holds the Lua equal."""

import pytest

from controller.domain.load import FAILING, FULL, LATE_RELEASE_MS, LEASE, MARK_MS, MAX_MARKS, Load


def booked(load: Load, *times: float, leased: bool = False) -> Load:
    for time in times:
        load.book(time, 0.0, 1.0, leased)
    return load


def test_bookings_of_one_moment_share_a_mark() -> None:
    load = booked(Load(1), 1_000, 1_000 + MARK_MS - 1)
    assert load.marks == [(1_000, 0, 0)]
    booked(load, 1_000 + MARK_MS)
    assert load.marks == [(1_000, 0, 0), (1_000 + MARK_MS, 2, 0)]


def test_there_are_so_many_marks_and_none_is_older_than_they_reach() -> None:
    load = booked(Load(1), *(1_000 + MARK_MS * i for i in range(MAX_MARKS)))
    assert [at for at, _, _ in load.marks] == [1_000 + MARK_MS * i for i in range(MAX_MARKS)]
    last = load.marks[-1][0]
    booked(load, last + MAX_MARKS * MARK_MS - 1)
    assert len(load.marks) == MAX_MARKS
    assert load.marks[0][0] == 1_000 + MARK_MS, "the oldest has made room"
    booked(load, load.marked_at + MAX_MARKS * MARK_MS)
    assert load.marks == [(load.marked_at, MAX_MARKS + 1, 0)], "the others are too old"


def test_a_report_adds_what_it_cannot_have_seen() -> None:
    load = booked(Load(1), 1_000, 1_060, 1_120)
    booked(load, 1_180, leased=True)
    assert load.report(2, written_at=1_250, now=1_300, phase=0.0, unseen_for=190) == (1_250, 0), "at the bound: seen"
    assert (load.booked, load.lent, load.leased, load.queue(0.0, 1.0)) == (1, 1, 1, 4)
    assert load.report(4, written_at=1_379, now=1_400, phase=0.0, unseen_for=200) == (1_250 + 2.5 * 129, 0)
    assert (load.booked, load.lent, load.queue(0.0, 1.0)) == (0, 1, 5)
    assert load.report(4, written_at=1_380, now=1_400, phase=0.0, unseen_for=200) == (1_250 + 2.5 * 129 + 3.5, 0)
    assert (load.lent, load.leased, load.queue(0.0, 1.0)) == (0, 1, 4)


def test_a_report_that_was_overtaken_changes_nothing() -> None:
    load = Load(1)
    load.report(3, written_at=1_000, now=1_000, phase=0.0, unseen_for=200)
    assert load.report(9, written_at=999, now=1_000, phase=0.0, unseen_for=200) is None
    assert load.reported == 3
    assert load.report(9, written_at=1_000, now=1_000, phase=0.0, unseen_for=200) is not None
    assert load.reported == 9


def test_after_the_clock_was_set_back_reports_count_again() -> None:
    load = booked(Load(1), 10_000)
    load.report(3, written_at=10_000, now=10_000, phase=0.0, unseen_for=200)
    assert load.booked == 1
    assert load.report(5, written_at=4_000, now=4_000, phase=0.0, unseen_for=200) == (0, 0)
    assert (load.reported, load.booked, load.marks) == (5, 0, []), "a mark from then tells nothing now"
    booked(load, 4_001)
    assert load.marks == [(4_001, 0, 0)]


def test_work_counts_until_the_requests_have_ended() -> None:
    load = booked(Load(1), 1_000, 1_000, 1_000)
    assert load.report(3, written_at=2_000, now=2_000, phase=0.0, unseen_for=200) == (1.5 * 2_000, 0)
    assert load.report(3, written_at=3_000, now=3_000, phase=0.0, unseen_for=200) == (6_000, 0)
    assert load.report(1, written_at=4_000, now=4_000, phase=0.0, unseen_for=200) == (8_000, 2)
    assert load.report(0, written_at=5_000, now=5_000, phase=0.0, unseen_for=200) == (500, 1)
    assert load.report(0, written_at=6_000, now=6_000, phase=0.0, unseen_for=200) == (0, 0)


def test_requests_of_other_clients_are_no_work_of_ours() -> None:
    load = Load(1)
    assert load.report(5, written_at=1_000, now=1_000, phase=0.0, unseen_for=200) == (0, 0)
    booked(load, 1_500)
    assert load.report(6, written_at=2_000, now=2_000, phase=0.0, unseen_for=200) == (500, 0)
    assert load.report(9, written_at=3_000, now=3_000, phase=0.0, unseen_for=200) == (1_500, 0)
    assert load.report(0, written_at=4_000, now=4_000, phase=0.0, unseen_for=200) == (2_000, 1)


def leased_and_reported(queue_length: int) -> Load:
    load = booked(Load(1), 1_000, 1_000, leased=True)
    load.report(queue_length, written_at=2_000, now=2_000, phase=0.0, unseen_for=200)
    return load


def test_a_lease_whose_end_was_reported_already_is_not_counted_out_twice() -> None:
    load = leased_and_reported(1)
    assert (load.leased, load.ended, load.queue(0.0, 1.0)) == (2, 1, 1)
    load.release(1_000, 2_000 + LATE_RELEASE_MS - 1, expired=False)
    assert (load.leased, load.ended, load.queue(0.0, 1.0)) == (1, 0, 1)


def test_a_lease_that_ends_long_after_a_report_has_ended_since() -> None:
    load = leased_and_reported(1)
    load.release(1_000, 2_000 + LATE_RELEASE_MS, expired=False)
    assert (load.leased, load.ended, load.queue(0.0, 1.0)) == (1, 1, 0)
    load.release(1_000, 2_000 + LATE_RELEASE_MS, expired=False)
    assert (load.leased, load.ended, load.queue(0.0, 1.0)) == (0, 0, 0), "never below zero"


def test_a_lease_that_nobody_released_is_not_counted_out_twice() -> None:
    load = leased_and_reported(0)
    assert (load.leased, load.ended) == (2, 2)
    load.book(3_000, 0.0, 1.0, leased=True)
    load.release(1_000, 600_000, expired=True)
    load.release(1_000, 600_000, expired=True)
    assert (load.leased, load.ended, load.queue(0.0, 1.0)) == (1, 0, 1), "the later request still runs"


@pytest.mark.parametrize(
    ("load", "cost"),
    [
        (Load(2, leased=3, unleased=1), 2.0),
        (Load(2, leased=3, ended=1), 1.0),
        (Load(2, capacity=4, leased=3), 1.5),
        (Load(2, capacity=4, leased=4), FULL + 1 / 8),
        (Load(2, capacity=4, leased=4, unleased=2, expected=2), FULL + 3 / 8),
        (Load(1, leased=1, failing=True), FAILING + 1),
    ],
)
def test_what_is_compared(load: Load, cost: float) -> None:
    assert load.cost(0.0, 1.0) == cost


def test_what_is_no_lease() -> None:
    assert LEASE.fullmatch("1800000000000-600000-17-3@http://a:1")
    assert not LEASE.fullmatch("\u0661800000000000-600000-17-3@http://a:1"), "digits are 0 to 9"
    assert not LEASE.fullmatch("1800000000000-600000-17-3@http://a:1\n")
