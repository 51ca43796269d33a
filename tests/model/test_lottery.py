"""The reference model of the lottery, in the smallest examples."""

import random
from collections import Counter

from tests.model.lottery import Candidate, lottery, speed_bands


def test_lottery() -> None:
    slow, fast = Candidate("slow", 1), Candidate("fast", 4)
    assert lottery([[]], 0.5) is None
    assert lottery([[slow, fast]], 0.79) == fast, "four fifths of all draws"
    assert lottery([[slow, fast]], 0.81) == slow
    assert lottery([[slow, fast._replace(failing=True)]], 0.5) == slow
    assert lottery([[fast._replace(failing=True)]], 0.5) == fast._replace(failing=True)
    assert lottery([[], [slow], [fast]], 0.19) == slow, "the odds do not depend on the pools"
    assert lottery([[], [slow], [fast]], 0.21) == fast
    assert lottery([[fast._replace(failing=True)], [slow]], 0.99) == slow
    assert lottery([[], []], 0.5) is None


def test_a_rejected_draw_decides_nothing() -> None:
    """Of two workers in one band, a quarter of the draws of the slower one is rejected."""
    draw = random.Random(1)
    fleet = [Candidate("slow", 3), Candidate("fast", 4)]
    drawn = Counter(candidate.name for _ in range(7000) if (candidate := lottery([fleet], draw.random())))
    assert 2850 < drawn["slow"] < 3150


def test_all_in_a_band_exceed_half_the_speed_of_the_fastest() -> None:
    assert speed_bands([]) == []
    assert speed_bands([1, 1, 1]) == [(1, 0, 3)]
    assert speed_bands([1e-6, 1, 2, 2, 3, 4]) == [(4, 4, 2), (2, 2, 2), (1, 1, 1), (1e-6, 0, 1)]
    assert len(speed_bands([1e9 * 1.01**-n for n in range(3471)])) <= 50, "over the whole range of valid speeds"
