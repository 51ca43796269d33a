"""How a model's time constant is learned, and what cannot spoil it."""

import random

import pytest

from controller.domain.fade import FIRST_TIME_CONSTANT_MS, MAX_TIME_CONSTANT_MS, MIN_TIME_CONSTANT_MS, Fade


def learn(fade: Fade, reports: int, *, each: float, ended: int = 1) -> None:
    """Take reports of a worker of speed 1: in each, so many requests have ended, each after so many milliseconds."""
    for _ in range(reports):
        fade.learn(0.0, speed=1, work=each * ended, ended=ended)


def test_it_is_learned_from_work_and_ends() -> None:
    fade = Fade()
    learn(fade, 100, each=1_500.0, ended=20)
    assert fade.time_constant == pytest.approx(1_500, rel=0.05)
    assert fade.pace(1.0) == pytest.approx(1.0)


def test_bookings_of_faster_workers_fade_faster() -> None:
    fade = Fade()
    for i in range(200):
        fade.learn(1_000.0 * i, speed=1, work=40_000.0, ended=20)
        fade.learn(1_000.0 * i, speed=4, work=40_000.0, ended=80)
    assert fade.pace(4.0) == pytest.approx(4 * fade.pace(1.0))
    assert fade.time_constant / fade.pace(4.0) == pytest.approx(500, rel=0.1)
    assert fade.time_constant / fade.pace(1.0) == pytest.approx(2_000, rel=0.1)


def test_a_report_without_an_end_teaches_nothing() -> None:
    fade = Fade()
    for i in range(10_000):
        fade.learn(5_000.0 * i, speed=1, work=1e9 * 45_000, ended=0)
    assert fade.time_constant == FIRST_TIME_CONSTANT_MS
    assert fade.pace(1.0) == 1.0
    assert fade.phase == pytest.approx(5_000.0 * 9_999 / FIRST_TIME_CONSTANT_MS), "but the phase goes on"


@pytest.mark.parametrize("wrong", [MIN_TIME_CONSTANT_MS, 100.0, 100_000.0, MAX_TIME_CONSTANT_MS])
@pytest.mark.parametrize("ended", [1, 3, 25])
def test_a_wrong_constant_is_corrected_within_60_requests(wrong: float, ended: int) -> None:
    fade = Fade()
    learn(fade, 10_000, each=wrong)
    learn(fade, 7, each=wrong)  # a block has begun
    assert fade.time_constant == pytest.approx(wrong)
    learn(fade, 60 // ended, each=2_000.0, ended=ended)
    assert fade.time_constant == pytest.approx(2_000, rel=0.3)


def test_it_is_steady_where_times_vary() -> None:
    """Exponential times: the constant stays within a fifth of their mean."""
    draw = random.Random(1)
    fade = Fade()
    learn(fade, 2_000, each=8_000.0)
    for _ in range(20_000):
        learn(fade, 1, each=draw.expovariate(1 / 8_000))
        assert fade.time_constant == pytest.approx(8_000, rel=0.2)


@pytest.mark.parametrize("ended", [1, 19, 20, 1_000])
def test_one_report_that_is_wrong_does_not_spoil_it(ended: int) -> None:
    fade = Fade()
    learn(fade, 200, each=8_000.0, ended=20)
    fade.learn(0.0, speed=1, work=1e9 * 45_000, ended=ended)
    learn(fade, 3, each=8_000.0, ended=20)
    assert fade.time_constant < 20_000


@pytest.mark.parametrize("ended", [1, 1_000, 10**9])
def test_reports_of_nothing_to_do_end_at_the_least_constant(ended: int) -> None:
    """And not where it underflows, however long it goes on."""
    fade = Fade()
    for i in range(3_000):
        fade.learn(1_000.0 * i, speed=0.5, work=0.0, ended=ended)
    assert fade.time_constant == pytest.approx(MIN_TIME_CONSTANT_MS)
    assert fade.pace(0.5) == pytest.approx(1.0)


def test_no_constant_is_longer_than_an_hour() -> None:
    fade = Fade()
    for i in range(100):
        fade.learn(1_000.0 * i, speed=1, work=1e300, ended=20)
    assert fade.time_constant == pytest.approx(MAX_TIME_CONSTANT_MS, rel=0.01)
    assert fade.time_constant <= MAX_TIME_CONSTANT_MS


def test_a_phase_does_not_go_back_with_the_clock() -> None:
    fade = Fade(at=1_000.0)
    fade.learn(11_000.0, speed=1, work=0.0, ended=0)
    assert fade.phase == fade.phase_at(11_000.0) == fade.phase_at(5_000.0) == 1.0
    fade.learn(5_000.0, speed=1, work=0.0, ended=0)
    assert fade.phase_at(15_000.0) == 2.0
