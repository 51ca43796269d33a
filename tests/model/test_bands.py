"""The bands of cost: with all valid values, failing workers cost more than full ones, and these more than others."""

from hypothesis import given
from hypothesis import strategies as st

from controller.domain.cost import FAILING, FULL
from controller.domain.worker import MAX_CAPACITY, MAX_QUEUE_LENGTH, MAX_SPEED, MIN_SPEED
from tests.model.load import Load

speeds = st.sampled_from([MIN_SPEED, MAX_SPEED]) | st.floats(MIN_SPEED, MAX_SPEED)
capacities = st.none() | st.sampled_from([1, MAX_CAPACITY]) | st.integers(1, MAX_CAPACITY)
lengths = st.sampled_from([0, MAX_QUEUE_LENGTH]) | st.integers(0, MAX_QUEUE_LENGTH)

loads = st.builds(
    lambda speed, capacity, leased, queue, failing: Load(
        speed, capacity, leased=leased, untracked=queue, untracked_own_rate=queue, failing=failing
    ),
    speeds,
    capacities,
    lengths,
    lengths,
    st.booleans(),
)


def band(load: Load) -> int:
    """Return 0 with a free slot or without a known capacity, 1 without a free slot, 2 for a failing worker."""
    if load.failing:
        return 2
    return int(load.capacity is not None and load.queue(0.0, 1.0) + 1 > load.capacity)


@given(loads)
def test_a_cost_lies_in_its_band(load: Load) -> None:
    least, below = [(0.0, FULL), (FULL, FAILING), (FAILING, 3 * FAILING)][band(load)]
    assert least <= load.cost(0.0, 1.0) < below
    assert least <= load.index_cost(0.0, 1.0, decays=False) < below
    assert load.index_cost(0.0, 1.0, decays=True) < below


@given(st.lists(loads, min_size=2, max_size=5))
def test_the_lowest_cost_is_in_the_lowest_band(several: list[Load]) -> None:
    best = min(several, key=lambda load: load.cost(0.0, 1.0))
    assert band(best) == min(map(band, several))
