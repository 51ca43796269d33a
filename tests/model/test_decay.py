"""A decay clock learns its time constant, and some reports cannot distort it."""

import random

import pytest

from tests.model.decay import FIRST_TIME_CONSTANT_MS, MAX_TIME_CONSTANT_MS, MIN_TIME_CONSTANT_MS, DecayClock


def learn(clock: DecayClock, reports: int, *, each: float, finished: int = 1) -> None:
    """Learn from reports of a worker of speed 1: in each, `finished` requests have finished, each after `each` ms."""
    for _ in range(reports):
        clock.learn(0.0, speed=1, work=each * finished, finished=finished)


def test_the_time_constant_is_learned_from_work_and_finished_requests() -> None:
    clock = DecayClock()
    learn(clock, 100, each=1_500.0, finished=20)
    assert clock.time_constant == pytest.approx(1_500, rel=0.05)
    assert clock.rate(1.0) == pytest.approx(1.0)


def test_bookings_of_faster_workers_decay_faster() -> None:
    clock = DecayClock()
    for i in range(200):
        clock.learn(1_000.0 * i, speed=1, work=40_000.0, finished=20)
        clock.learn(1_000.0 * i, speed=4, work=40_000.0, finished=80)
    assert clock.rate(4.0) == pytest.approx(4 * clock.rate(1.0))
    assert clock.time_constant / clock.rate(4.0) == pytest.approx(500, rel=0.1)
    assert clock.time_constant / clock.rate(1.0) == pytest.approx(2_000, rel=0.1)


def test_nothing_is_learned_without_finished_requests() -> None:
    clock = DecayClock()
    for i in range(10_000):
        clock.learn(5_000.0 * i, speed=1, work=1e9 * 45_000, finished=0)
    assert clock.time_constant == FIRST_TIME_CONSTANT_MS
    assert clock.rate(1.0) == 1.0
    assert clock.reading == pytest.approx(5_000.0 * 9_999 / FIRST_TIME_CONSTANT_MS), "but the clock continues"


@pytest.mark.parametrize("wrong", [MIN_TIME_CONSTANT_MS, 100.0, 100_000.0, MAX_TIME_CONSTANT_MS])
@pytest.mark.parametrize("finished", [1, 3, 25])
def test_a_wrong_constant_is_corrected_within_60_requests(wrong: float, finished: int) -> None:
    clock = DecayClock()
    learn(clock, 10_000, each=wrong)
    learn(clock, 7, each=wrong)  # a block has begun
    assert clock.time_constant == pytest.approx(wrong)
    learn(clock, 60 // finished, each=2_000.0, finished=finished)
    assert clock.time_constant == pytest.approx(2_000, rel=0.3)


def test_the_time_constant_is_steady_although_times_vary() -> None:
    """With exponential times, the time constant stays within a fifth of their mean."""
    draw = random.Random(1)
    clock = DecayClock()
    learn(clock, 2_000, each=8_000.0)
    for _ in range(20_000):
        learn(clock, 1, each=draw.expovariate(1 / 8_000))
        assert clock.time_constant == pytest.approx(8_000, rel=0.2)


@pytest.mark.parametrize("finished", [1, 19, 20, 1_000])
def test_one_wrong_report_does_not_distort_the_time_constant(finished: int) -> None:
    clock = DecayClock()
    learn(clock, 200, each=8_000.0, finished=20)
    clock.learn(0.0, speed=1, work=1e9 * 45_000, finished=finished)
    learn(clock, 3, each=8_000.0, finished=20)
    assert clock.time_constant < 20_000


@pytest.mark.parametrize("finished", [1, 1_000, 10**9])
def test_reports_without_work_lead_to_the_shortest_time_constant(finished: int) -> None:
    """It does not underflow."""
    clock = DecayClock()
    for i in range(3_000):
        clock.learn(1_000.0 * i, speed=0.5, work=0.0, finished=finished)
    assert clock.time_constant == pytest.approx(MIN_TIME_CONSTANT_MS)
    assert clock.rate(0.5) == pytest.approx(1.0)


def test_the_time_constant_is_at_most_an_hour() -> None:
    clock = DecayClock()
    for i in range(100):
        clock.learn(1_000.0 * i, speed=1, work=1e300, finished=20)
    assert clock.time_constant == pytest.approx(MAX_TIME_CONSTANT_MS, rel=0.01)
    assert clock.time_constant <= MAX_TIME_CONSTANT_MS


def test_a_decay_clock_does_not_go_back_with_the_clock_of_redis() -> None:
    clock = DecayClock(read_at=1_000.0)
    clock.learn(11_000.0, speed=1, work=0.0, finished=0)
    assert clock.reading == clock.reading_at(11_000.0) == clock.reading_at(5_000.0) == 1.0
    clock.learn(5_000.0, speed=1, work=0.0, finished=0)
    assert clock.reading_at(15_000.0) == 2.0
