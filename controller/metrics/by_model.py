"""The counters of dispatches, of requests to engines and of affinity, by model and outcome."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from controller.metrics.memory import MAX_NAMES, Row

DISPATCHES: Final = ("chosen", "no_worker", "degraded", "store_unavailable", "refused")
GATEWAY_REQUESTS: Final = (
    "complete",
    "client_error",
    "engine_error",
    "busy",
    "broken",
    "no_worker",
    "client_gone",
)
AFFINITY: Final = ("hit", "overloaded", "gone", "new")  # of dispatches with an affinity
UNKNOWN: Final = "(unknown)"  # models that have never had a worker, so that clients cannot add series
OTHER: Final = "(other)"  # models for which there is no room


class ModelNames:
    """The models that a replica counts under their names, in the row of the replica.

    A replica that replaces another one finds its names. numbers: by name, from 2. 0 is for UNKNOWN, 1 for OTHER.
    """

    def __init__(self, row: Row) -> None:
        self._row = row
        self.numbers: dict[str, int] = {name: number + 2 for number, name in enumerate(row.names())}

    def add(self, model: str) -> int:
        """Return the number of a model, which has one from now on if there is room."""
        number = self.numbers.get(model)
        if number is None:
            number = len(self.numbers)
            if number >= MAX_NAMES or not self._row.add_name(number, model):
                return 1
            number = self.numbers[model] = number + 2
        return number


class ModelCounters:
    """Counts by model and outcome in the row of a replica. A replica that replaces another one continues its counts.

    first: the first of cells_needed() cells. Each model has one for each outcome, in the order of the models' numbers.
    """

    def __init__(self, row: Row, names: ModelNames, outcomes: Sequence[str], first: int) -> None:
        self._cells = row.cells
        self._names = names
        self._numbers = names.numbers
        self._first = first
        self._outcomes = len(outcomes)
        self._offsets = {outcome: first + number for number, outcome in enumerate(outcomes)}

    def count(self, outcome: str, model: str, number: int = 1) -> None:
        """Count one or more requests for a model. One that has never had a worker is counted as UNKNOWN."""
        self._cells[self._offsets[outcome] + self._numbers.get(model, 0) * self._outcomes] += number

    def chosen(self, model: str) -> None:
        """Count a request with the first outcome, for a model that has a worker. On the hot path."""
        number = self._numbers.get(model)
        self._cells[self._first + (self._names.add(model) if number is None else number) * self._outcomes] += 1

    def know(self, models: Sequence[str]) -> None:
        """Count these models under their names from now on, because they have workers."""
        for model in models:
            self._names.add(model)


def cells_needed(outcomes: Sequence[str]) -> int:
    """Return how many cells a ModelCounters needs."""
    return (MAX_NAMES + 2) * len(outcomes)


def sums(rows: Sequence[Row], outcomes: Sequence[str], first: int) -> Mapping[tuple[str, str], float]:
    """Return the counts by model and outcome, as sums over rows."""
    total: defaultdict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        for number, model in enumerate([UNKNOWN, OTHER, *row.names()]):
            for place, outcome in enumerate(outcomes):
                total[model, outcome] += row.cells[first + number * len(outcomes) + place]
    return total
