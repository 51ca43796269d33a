"""How a model's time constant is learned, and what cannot spoil it."""

import math

import pytest

from controller.domain.fade import FIRST_TIME_CONSTANT_MS, MAX_TIME_CONSTANT_MS, MIN_TIME_CONSTANT_MS, Fade


def test_it_is_learned_by_littles_law() -> None:
    fade = Fade()
    for i in range(100):
        fade.learn(1_000.0 * i, speed=1, work=30_000.0, bookings=20)  # 1.5 s each
    assert fade.time_constant == pytest.approx(1_500, rel=0.05)
    assert fade.pace(1.0) == pytest.approx(1.0)


def test_bookings_of_faster_workers_fade_faster() -> None:
    fade = Fade()
    for i in range(200):
        fade.learn(1_000.0 * i, speed=1, work=40_000.0, bookings=20)
        fade.learn(1_000.0 * i, speed=4, work=40_000.0, bookings=80)
    assert fade.pace(4.0) == pytest.approx(4 * fade.pace(1.0))
    assert fade.time_constant / fade.pace(4.0) == pytest.approx(500, rel=0.1)
    assert fade.time_constant / fade.pace(1.0) == pytest.approx(2_000, rel=0.1)


def test_one_report_that_is_wrong_does_not_spoil_it() -> None:
    fade = Fade()
    for i in range(200):
        fade.learn(1_000.0 * i, speed=1, work=160_000.0, bookings=20)
    assert fade.time_constant == pytest.approx(8_000, rel=0.05)
    fade.learn(200_000.0, speed=1, work=1e9 * 45_000, bookings=0)
    assert fade.time_constant < 11_000
    new = Fade()
    new.learn(0.0, speed=1, work=1e9 * 45_000, bookings=1)
    for i in range(30):
        new.learn(1_000.0 * i, speed=1, work=160_000.0, bookings=20)
    assert new.time_constant < 25_000, "a model that nothing was known of"


@pytest.mark.parametrize("bookings", [1, 1_000, 10**9])
def test_reports_of_nothing_to_do_end_at_the_least_constant(bookings: int) -> None:
    """And not where it underflows, however long it goes on."""
    fade = Fade()
    for i in range(3_000):
        fade.learn(1_000.0 * i, speed=0.5, work=0.0, bookings=bookings)
    assert MIN_TIME_CONSTANT_MS <= fade.time_constant < FIRST_TIME_CONSTANT_MS
    assert math.isfinite(fade.pace(1.0))
    if bookings > 1:
        assert fade.time_constant == pytest.approx(MIN_TIME_CONSTANT_MS)
        assert fade.pace(0.5) == pytest.approx(1.0)


def test_no_constant_is_longer_than_an_hour() -> None:
    fade = Fade()
    for i in range(100):
        fade.learn(1_000.0 * i, speed=1, work=1e300, bookings=3)
    assert fade.time_constant == MAX_TIME_CONSTANT_MS


def test_a_phase_does_not_go_back_with_the_clock() -> None:
    fade = Fade(at=1_000.0)
    fade.learn(11_000.0, speed=1, work=0.0, bookings=0)
    assert fade.phase == fade.phase_at(11_000.0) == fade.phase_at(5_000.0) == 1.0
    fade.learn(5_000.0, speed=1, work=0.0, bookings=0)
    assert fade.phase_at(15_000.0) == 2.0
