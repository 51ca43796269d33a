"""Capacities that operators configure: targets, values, and the defaults of the settings."""

import math

import pytest

from controller.domain.capacity import CapacityTarget, DefaultCapacities, check_capacity
from controller.domain.errors import InvalidInput
from controller.domain.worker import MAX_CAPACITY, Worker, WorkerStatus


def worker(name: str, *models: str) -> Worker:
    return Worker(name, WorkerStatus(models, 1, 0), True, False, 1, 0.0, None)


@pytest.mark.parametrize("target", [CapacityTarget(worker_name="http://a:1"), CapacityTarget(model="worker:http://a")])
def test_target_is_the_same_after_a_round_trip(target: CapacityTarget) -> None:
    assert CapacityTarget.from_key(target.key) == target


def test_target_covers_a_worker_or_the_workers_of_a_model() -> None:
    assert CapacityTarget(worker_name="http://a:1").covers(worker("http://a:1", "m"))
    assert not CapacityTarget(worker_name="http://a:1").covers(worker("http://b:1", "http://a:1"))
    assert CapacityTarget(model="m").covers(worker("http://a:1", "n", "m"))
    assert not CapacityTarget(model="m").covers(worker("http://a:1"))


def test_default_is_the_smallest_capacity_of_a_model_or_that_for_all() -> None:
    defaults = DefaultCapacities({"m": 5, "n": 3}, 9)
    assert [defaults.of(models) for models in (["m"], ["m", "n"], ["o", "m"], ["o"], [])] == [5, 3, 5, 9, 9]
    assert DefaultCapacities().of(["m"]) is None


@pytest.mark.parametrize("capacity", [0, -1, 1.5, math.nan, math.inf, MAX_CAPACITY + 1])
def test_capacity_is_a_whole_number_within_bounds(capacity: float) -> None:
    with pytest.raises(InvalidInput, match="capacity: must be a whole number from 1 to 1000000"):
        check_capacity(capacity)
    assert [check_capacity(valid) for valid in (1, 4.0, MAX_CAPACITY)] == [1, 4, MAX_CAPACITY]
