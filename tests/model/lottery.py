"""Reference model of the choice of lua/dispatch/dispatch_lottery.lua."""

import functools
import math
from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Candidate(NamedTuple):
    """A live worker in the lottery of one pool."""

    name: str
    speed: float
    failing: bool = False


class Band(NamedTuple):
    """`size` workers from position `first` on in an index by speed. `top` is the speed of the fastest of them."""

    top: float
    first: int
    size: int


def speed_bands(speeds: Sequence[float]) -> list[Band]:
    """Split workers in order of speed into bands, fastest first: in each, all exceed half the speed of its fastest."""
    bands = []
    left = len(speeds)
    while left > 0:
        top = speeds[left - 1]
        first = bisect_right(speeds, top / 2)
        bands.append(Band(top, first, left - first))
        left = first
    return bands


def lottery(pools: Sequence[Collection[Candidate]], draw: float) -> Candidate | None:
    """Draw a candidate with odds proportional to speed: of those that are not failing, if there are any.

    `draw` is uniform on [0, 1). It chooses a pool and a band by weight, and in the band a position and a fraction of
    the top speed. The worker at that position is chosen if its speed exceeds the fraction. Otherwise the next draw
    decides. This is rejection sampling (von Neumann, 1951), in which a band bounds the share of rejected draws by half.
    """
    for failing in (False, True):
        indexes = [
            sorted((c for c in pool if c.failing is failing), key=lambda candidate: (candidate.speed, candidate.name))
            for pool in pools
        ]
        bands = [speed_bands([candidate.speed for candidate in index]) for index in indexes]
        while any(indexes):
            i, rest = (0, draw) if len(pools) == 1 else _pool(draw, [_weight(each) for each in bands])
            position, exceeded_speed = _position(rest, bands[i])
            if exceeded_speed < indexes[i][position].speed:
                return indexes[i][position]
            draw = _next_draw(draw)
    return None


def _weight(bands: Sequence[Band]) -> float:
    return functools.reduce(lambda weight, band: weight + band.size * band.top, bands, 0.0)


def _pool(draw: float, weights: Sequence[float]) -> tuple[int, float]:
    """Return the number of a pool, and what is left of the draw for a choice within it."""
    rest = draw * functools.reduce(lambda total, weight: total + weight, weights, 0.0)
    last = 0
    for i, weight in enumerate(weights):
        if weight > 0:
            if rest < weight:
                return i, rest / weight
            rest, last = rest - weight, i
    return last, 0.0


def _position(draw: float, bands: Sequence[Band]) -> tuple[int, float]:
    """Return a position in the index, and the speed that the worker there must exceed."""
    rest = draw * _weight(bands)
    remaining = iter(bands)
    top, first, size = next(remaining)
    while rest >= size * top and first > 0:
        rest -= size * top
        top, first, size = next(remaining)
    offset = min(math.floor(rest / top), size - 1)
    return first + offset, rest - offset * top


def _next_draw(draw: float) -> float:
    """Return the draw after `draw`: the "minimal standard" generator (Park, Miller and Stockmeyer, 1993)."""
    state = math.floor(draw * 2147483646) + 1
    return (state * 48271 % 2147483647 - 0.5) / 2147483646
