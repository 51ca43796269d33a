"""The counters of dispatches, by model and outcome."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

from controller.metrics.memory import MAX_NAMES, Row

OUTCOMES: Final = ("chosen", "no_worker", "degraded", "store_unavailable", "refused")
AFFINITY_OUTCOMES: Final = ("hit", "overloaded", "gone", "new")  # of dispatches with an affinity, besides "chosen"
UNKNOWN: Final = "(unknown)"  # models that have never had a worker, so that clients cannot add series
OTHER: Final = "(other)"  # models for which there is no room
_OUTCOME_CELLS: Final = {outcome: number for number, outcome in enumerate((*OUTCOMES, *AFFINITY_OUTCOMES))}
CELLS_NEEDED: Final = (MAX_NAMES + 2) * len(_OUTCOME_CELLS)


class DispatchCounters:
    """Counts dispatches in the row of a replica.

    first: the first of CELLS_NEEDED cells. Each model has one for each outcome: first UNKNOWN, then OTHER, then the
        named ones. A replica that replaces another one finds its names and goes on with its counts.
    """

    def __init__(self, row: Row, first: int) -> None:
        self._row = row
        self._first = first
        self._cells = row.cells
        self._models: dict[str, int] = {}  # the first cell of each model
        for name in row.names():
            self._models[name] = self._cell_of(len(self._models))

    def count(self, outcome: str, model: str, dispatches: int = 1) -> None:
        """Count dispatches of a model."""
        first = self._models.get(model, self._first)
        self._cells[first + _OUTCOME_CELLS[outcome]] += dispatches

    def chosen(self, model: str) -> None:
        """Count a dispatch for which a worker was chosen. On the hot path."""
        first = self._models.get(model)
        self._cells[self._add(model) if first is None else first] += 1

    def know(self, models: Sequence[str]) -> None:
        """Count these models under their names from now on, because they have workers."""
        for model in models:
            if model not in self._models:
                self._add(model)

    def _add(self, model: str) -> int:
        number = len(self._models)
        if number < MAX_NAMES and self._row.add_name(number, model):
            self._models[model] = self._cell_of(number)
            return self._models[model]
        return self._first + len(_OUTCOME_CELLS)

    def _cell_of(self, number: int) -> int:
        return self._first + (number + 2) * len(_OUTCOME_CELLS)


def sums(rows: Sequence[Row], first: int, outcomes: Sequence[str] = OUTCOMES) -> Mapping[tuple[str, str], float]:
    """Return the dispatches by model and outcome, as sums over rows."""
    total: defaultdict[tuple[str, str], float] = defaultdict(float)
    for row in rows:
        for number, model in enumerate([UNKNOWN, OTHER, *row.names()]):
            for outcome in outcomes:
                total[model, outcome] += row.cells[first + number * len(_OUTCOME_CELLS) + _OUTCOME_CELLS[outcome]]
    return total
