"""Readings of the store's clock, and jumps between two of them."""

import pytest

from controller.domain.clock import ClockReading

BEFORE = ClockReading.between(sent_at=10.0, store_time=1000.0, received_at=10.2)


def test_reading_is_exact_to_half_the_duration_of_the_call() -> None:
    assert pytest.approx((989.9, 0.1)) == BEFORE


@pytest.mark.parametrize(("set_by", "jump"), [(0, 0), (0.9, 0), (-1.0, 0), (1.5, 1.5), (120, 120), (-3600, -3600)])
def test_jump_is_the_change_of_the_clock_if_it_exceeds_the_error(set_by: float, jump: float) -> None:
    later = ClockReading.between(sent_at=70.0, store_time=1060.0 + set_by, received_at=70.2)
    assert later.jump_since(BEFORE) == pytest.approx(jump)


def test_slow_call_is_not_a_jump() -> None:
    """The store may read its clock at any time between the start and the end of the call."""
    for read_at in (70.0, 80.0):
        later = ClockReading.between(sent_at=70.0, store_time=read_at + 990.0, received_at=80.0)
        assert later.jump_since(BEFORE) == 0
