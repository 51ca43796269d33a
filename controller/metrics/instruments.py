"""Counters, gauges and histograms whose numbers are cells of a replica's row. Updating one takes a fraction of 1 us."""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

from controller.metrics.memory import Cells

# Upper bounds in seconds. A dispatch takes 0.1 to 5 ms, a call to a hung Redis its deadline of 5 s.
FAST: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
# A language model takes from a few milliseconds for a look-up to many minutes for a long text.
SLOW: Final = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
SIZES: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)

Instrument = TypeVar("Instrument")


class Counter:
    """A number that only grows."""

    __slots__ = ("_cell", "_cells")

    def __init__(self, cells: Cells, cell: int) -> None:
        self._cells = cells
        self._cell = cell

    def inc(self, amount: float = 1) -> None:
        """Add to the counter."""
        self._cells[self._cell] += amount


class Gauge:
    """A number that belongs to one replica."""

    __slots__ = ("_cell", "_cells")

    def __init__(self, cells: Cells, cell: int) -> None:
        self._cells = cells
        self._cell = cell

    def set(self, value: float) -> None:
        """Set the number."""
        self._cells[self._cell] = value


class OwnCounter(Gauge):
    """A number that only grows while a replica lives, and is measured elsewhere."""


class Histogram:
    """Counts the values in each of some ranges, and adds them up.

    bounds: upper bounds of the ranges, without infinity. The cells are the counts of the ranges, and then the sum.
    """

    __slots__ = ("_bounds", "_cells", "_first", "_sum")

    def __init__(self, cells: Cells, first: int, bounds: Sequence[float]) -> None:
        self._cells = cells
        self._first = first
        self._bounds = bounds
        self._sum = first + len(bounds) + 1

    def observe(self, value: float) -> None:
        """Count a value."""
        self._cells[self._first + bisect_left(self._bounds, value)] += 1
        self._cells[self._sum] += value


class Labelled(Generic[Instrument]):
    """An instrument for each value of a label."""

    def __init__(self, instruments: Mapping[str, Instrument]) -> None:
        self._instruments = instruments

    def labels(self, value: str) -> Instrument:
        """Return the instrument for a value of the label."""
        return self._instruments[value]
