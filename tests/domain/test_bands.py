"""The bands of cost: whatever is allowed, a failing worker comes behind a full one, and that behind one that serves."""

from hypothesis import given
from hypothesis import strategies as st

from controller.domain.load import FAILING, FULL, Load
from controller.domain.worker import MAX_CAPACITY, MAX_QUEUE_LENGTH, MAX_SPEED, MIN_SPEED

speeds = st.sampled_from([MIN_SPEED, MAX_SPEED]) | st.floats(MIN_SPEED, MAX_SPEED)
capacities = st.none() | st.sampled_from([1, MAX_CAPACITY]) | st.integers(1, MAX_CAPACITY)
lengths = st.sampled_from([0, MAX_QUEUE_LENGTH]) | st.integers(0, MAX_QUEUE_LENGTH)

loads = st.builds(
    lambda speed, capacity, leased, queue, failing: Load(
        speed, capacity, leased=leased, unleased=queue, expected=queue, failing=failing
    ),
    speeds,
    capacities,
    lengths,
    lengths,
    st.booleans(),
)


def band(load: Load) -> int:
    """0 with a free slot or without a known capacity, 1 without a free slot, 2 failing."""
    if load.failing:
        return 2
    return int(load.capacity is not None and load.queue(0.0, 1.0) + 1 > load.capacity)


@given(loads)
def test_a_cost_lies_in_its_band(load: Load) -> None:
    least, below = [(0.0, FULL), (FULL, FAILING), (FAILING, 3 * FAILING)][band(load)]
    assert least <= load.cost(0.0, 1.0) < below
    assert least <= load.index_cost(0.0, 1.0, fades=False) < below
    assert load.index_cost(0.0, 1.0, fades=True) < below


@given(st.lists(loads, min_size=2, max_size=5))
def test_bands_come_before_costs(several: list[Load]) -> None:
    best = min(several, key=lambda load: load.cost(0.0, 1.0))
    assert band(best) == min(map(band, several))
