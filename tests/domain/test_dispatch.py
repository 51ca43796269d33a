"""The rules themselves, in the smallest examples."""

import random
from collections import Counter
from dataclasses import replace

from controller.domain.dispatch import (
    LOOK,
    Candidate,
    Indexed,
    book,
    least_cost,
    lottery,
    shortest_queue,
    speed_bands,
)
from controller.domain.load import Load


def test_shortest_queue() -> None:
    slow, fast = Candidate("slow", 1, 2, turn=1), Candidate("fast", 4, 6, turn=2)
    assert shortest_queue([]) is None
    assert shortest_queue([slow, fast]) == fast
    assert shortest_queue([slow, Candidate("late", 2, 4, turn=0)]) == Candidate("late", 2, 4, turn=0)


def test_booking() -> None:
    assert book(Candidate("w", 2, 3, turn=1), turn=9) == Candidate("w", 2, 4, turn=9)


def test_lottery() -> None:
    slow, fast = Candidate("slow", 1, 0, 1), Candidate("fast", 4, 0, 2)
    assert lottery([[]], 0.5) is None
    assert lottery([[slow, fast]], 0.79) == fast, "four fifths of all draws"
    assert lottery([[slow, fast]], 0.81) == slow
    assert lottery([[slow, replace(fast, failing=True)]], 0.5) == slow
    assert lottery([[replace(fast, failing=True)]], 0.5) == replace(fast, failing=True)
    assert lottery([[], [slow], [fast]], 0.19) == slow, "in several pools the odds are the same"
    assert lottery([[], [slow], [fast]], 0.21) == fast
    assert lottery([[replace(fast, failing=True)], [slow]], 0.99) == slow
    assert lottery([[], []], 0.5) is None


def test_a_rejected_draw_decides_nothing() -> None:
    """The slower of two in one band: a quarter of its part of the draws is rejected."""
    draw = random.Random(1)
    fleet = [Candidate("slow", 3, 0, 1), Candidate("fast", 4, 0, 2)]
    drawn = Counter(candidate.name for _ in range(7000) if (candidate := lottery([fleet], draw.random())))
    assert 2850 < drawn["slow"] < 3150


def test_in_a_band_all_have_more_than_half_the_speed_of_the_fastest() -> None:
    assert speed_bands([]) == []
    assert speed_bands([1, 1, 1]) == [(1, 0, 3)]
    assert speed_bands([1e-6, 1, 2, 2, 3, 4]) == [(4, 4, 2), (2, 2, 2), (1, 1, 1), (1e-6, 0, 1)]
    assert len(speed_bands([1e9 * 1.01**-n for n in range(3471)])) <= 50, "over the whole range that is allowed"


def indexed(load: Load, turn: int) -> Indexed:
    return Indexed(load, turn, turn, load.index_cost(0.0, 1.0, fades=True), load.what_fades())


def test_the_first_of_an_index_is_the_one_where_all_clients_are_of_one_kind() -> None:
    leasing = [indexed(Load(1, leased=n), turn=n) for n in (2, 1, 3)]
    assert least_cost(leasing, leased=True, fades=True, phase=0, pace=1) is leasing[1]
    others = [indexed(Load(1, unleased=n), turn=n) for n in (2, 1, 3)]
    assert least_cost(others, leased=False, fades=True, phase=0, pace=1) is others[1]
    assert least_cost([], leased=True, fades=True, phase=0, pace=1) is None


def test_where_they_are_not_it_is_the_best_of_the_first_of_both() -> None:
    half_leased = [indexed(Load(1, leased=1, unleased=9), turn=i) for i in range(LOOK)]
    half_not = [indexed(Load(1, leased=9, unleased=1), turn=i) for i in range(LOOK)]
    both = indexed(Load(1, leased=2, unleased=2), turn=0)
    for leased in (True, False):
        found = least_cost([*half_leased, both], leased=leased, fades=True, phase=0, pace=1)
        assert found is both, "what fades of it is the least"
        found = least_cost([*half_leased, both, *half_not], leased=leased, fades=True, phase=0, pace=1)
        assert found is half_leased[0], "nobody looked so far"
