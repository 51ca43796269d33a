import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.domain.engine_status import EngineStatus, LearnedCapacity


def report(running: int | None, full: bool | None = False) -> EngineStatus:
    return EngineStatus(running=running, full=full)


def test_capacity_is_unknown_until_the_engine_was_full() -> None:
    learned = LearnedCapacity()
    for second, status in enumerate([report(5), report(None, full=True), report(0, full=True), report(9, full=None)]):
        learned.observe(status, float(second))
        assert learned.value is None
    learned.observe(report(8, full=True), 10.0)
    assert learned.value == 8


def test_capacity_learned_elsewhere_is_only_a_beginning() -> None:
    learned = LearnedCapacity(half_life=60.0)
    learned.continue_from(8)
    assert learned.value == 8
    learned.observe(report(12, full=True), 0.0)
    learned.continue_from(8)
    assert learned.value == 12


def test_capacity_grows_at_once() -> None:
    learned = LearnedCapacity()
    learned.observe(report(8, full=True), 0.0)
    learned.observe(report(16, full=True), 1.0)
    assert learned.value == 16
    learned.observe(report(20, full=False), 2.0)  # it can run 20, although it may run more
    assert learned.value == 20


def test_half_of_a_decrease_is_learned_in_the_half_life() -> None:
    learned = LearnedCapacity(half_life=60.0)
    learned.observe(report(100, full=True), 0.0)
    for second in range(1, 62):
        learned.observe(report(20, full=True), float(second))
    assert learned.value == pytest.approx(60, abs=2)
    for second in range(62, 1000):
        learned.observe(report(20, full=True), float(second))
    assert learned.value == 20


def test_time_in_which_the_engine_was_not_full_teaches_nothing() -> None:
    learned = LearnedCapacity(half_life=60.0)
    learned.observe(report(100, full=True), 0.0)
    for hour in range(1, 24):
        learned.observe(report(1), hour * 3600.0)
    learned.observe(report(20, full=True), 100_000.0)
    assert learned.value == 100
    learned.observe(report(20, full=True), 200_000.0)  # nor does a gap between two reports, of which 10 s count
    assert learned.value == pytest.approx(20 + 80 * 0.5 ** (10 / 60), abs=0.5)


def test_clock_that_goes_back_changes_nothing() -> None:
    learned = LearnedCapacity()
    learned.observe(report(100, full=True), 50.0)
    learned.observe(report(20, full=True), 0.0)
    assert learned.value == 100


@given(
    st.lists(
        st.tuples(st.none() | st.integers(0, 10**9), st.none() | st.booleans(), st.floats(0, 1e6, allow_nan=False))
    )
)
def test_capacity_stays_between_the_reported_numbers(reports: list[tuple[int | None, bool | None, float]]) -> None:
    learned = LearnedCapacity()
    now = 0.0
    for running, full, gap in reports:
        now += gap
        learned.observe(report(running, full), now)
        if learned.value is not None:
            seen = [number for number, _, _ in reports if number]
            assert min(seen) <= learned.value <= max(seen)


@pytest.mark.parametrize(
    ("running", "waiting", "queue_length"), [(2, 3, 5), (0, 0, 0), (None, 3, None), (2, None, None), (None, None, None)]
)
def test_queue_length_is_unknown_unless_both_parts_are_known(
    running: int | None, waiting: int | None, queue_length: int | None
) -> None:
    assert EngineStatus(running=running, waiting=waiting).queue_length == queue_length
