"""The retries of a cluster are a share of its requests, and a few more."""

from hypothesis import given
from hypothesis import strategies as st

from controller.proxy.retry_budget import RetryBudget


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_budget_is_a_share_of_the_requests_and_a_part_of_ten() -> None:
    clock, replicas = Clock(), 1
    budget = RetryBudget(0.2, lambda: replicas, clock)
    assert sum(budget.take() for _ in range(100)) == 10
    for _ in range(100):
        budget.count_request()
    assert sum(budget.take() for _ in range(100)) == 20
    clock.now += 9.9
    assert not budget.take()
    clock.now += 1.1
    assert sum(budget.take() for _ in range(100)) == 10


def test_replicas_share_the_ten_and_the_last_known_number_counts() -> None:
    known = 4
    budget = RetryBudget(0.0, lambda: known, Clock())
    assert sum(budget.take() for _ in range(100)) == 2
    known = 0  # Redis is unavailable
    assert not budget.take()
    known = 1
    assert sum(budget.take() for _ in range(100)) == 8


def test_retry_that_had_no_other_engine_is_given_back() -> None:
    budget = RetryBudget(0.0, lambda: 1, Clock())
    for _ in range(100):
        assert budget.take()
        budget.give_back()
    assert sum(budget.take() for _ in range(100)) == 10


def test_retry_is_given_back_in_a_later_second() -> None:
    clock = Clock()
    budget = RetryBudget(0.0, lambda: 1, clock)
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]
    clock.now += 9
    budget.give_back()
    assert [budget.take(), budget.take()] == [True, False]
    clock.now += 20
    budget.give_back()  # that retry counts no more
    assert [budget.take() for _ in range(11)] == [True] * 10 + [False]


@given(st.lists(st.tuples(st.floats(0, 3), st.integers(0, 5), st.integers(0, 5)), max_size=60), st.integers(1, 4))
def test_no_ten_seconds_have_more_retries_than_the_budget(steps: list[tuple[float, int, int]], replicas: int) -> None:
    clock = Clock()
    budget = RetryBudget(0.2, lambda: replicas, clock)
    events: list[tuple[int, int, int]] = []
    for pause, requests, retries in steps:
        clock.now += pause
        for _ in range(requests):
            budget.count_request()
        taken = sum(budget.take() for _ in range(retries))
        events.append((int(clock.now), requests, taken))
        window = [event for event in events if event[0] > int(clock.now) - 10]
        assert sum(event[2] for event in window) <= 0.2 * sum(event[1] for event in window) + 10 / replicas or not taken
