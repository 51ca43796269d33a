"""Reference model of the affinity of lua/include/affinity/."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from controller.domain.cost import FULL, MAX_SERVING

FACTOR: Final = 1.25
MAX_REMEMBERED: Final = 4  # workers of a key
MAX_READ: Final = 8  # workers

Names = tuple[str, ...]


def extra_requests(capacity: int | None) -> float:
    """Return how many more requests a remembered worker may have, if it is the only one of its key."""
    return 2 if capacity is None else max(2, min(capacity / 4, 8))


def highest_cost(lowest: float, cost: float, speed: float, capacity: int | None, number: int) -> float:
    """Return the highest cost at which a remembered worker is not overloaded.

    lowest: the cost of the best worker. cost, speed, capacity: those of the remembered one.
    number: how many workers the key remembers that can be chosen.
    """
    if number >= MAX_REMEMBERED:
        return lowest
    extra = extra_requests(capacity) / number
    if cost >= FULL and lowest >= FULL:
        assert capacity is not None
        return FULL + FACTOR * (lowest - FULL) + extra / (capacity * speed)
    return min(FACTOR * lowest + extra / speed, MAX_SERVING)


def prefer(
    remembered: Sequence[Names],
    can_be_chosen: Callable[[str], bool],
    cost: Callable[[str], float],
    is_overloaded: Callable[[str, int], bool],
) -> tuple[str | None, str, set[str]]:
    """Return the remembered worker to choose, or None, the outcome, and the workers that were found to be gone.

    remembered: for each key, the workers that it remembers.
    is_overloaded: gets a worker and the number of the workers of its key.
    """
    outcome = "new"
    read: set[str] = set()
    gone: set[str] = set()
    for names in remembered:
        if len(read) >= MAX_READ:
            break
        if not names:
            continue
        read.update(names)
        gone.update(name for name in names if not can_be_chosen(name))
        found = [name for name in names if name not in gone]
        fit = [name for name in found if not is_overloaded(name, len(found))]
        if fit:
            return min(fit, key=cost), "hit", gone
        if found:
            outcome = "overloaded"
        elif outcome == "new":
            outcome = "gone"
    return None, outcome, gone


@dataclass
class AffinityMap:
    """The workers that are remembered for each key, the latest first.

    ttl: in milliseconds. max_keys: how many keys are remembered, about.
    """

    ttl: int
    max_keys: int
    generations: dict[int, dict[str, Names]] = field(default_factory=dict)

    def remembered(self, keys: Sequence[str], now: int) -> list[Names]:
        """Return the remembered workers of each key."""
        current, older = self._generation(now), self._generation(now - self.ttl)
        return [current.get(key, older.get(key, ())) for key in keys]

    def remember(self, keys: Sequence[str], name: str, gone: Collection[str], now: int) -> None:
        """Remember a worker for all of the keys."""
        number = now // self.ttl
        current = self._generation(now)
        changed = {
            key: (name, *(other for other in names if other != name and other not in gone))[:MAX_REMEMBERED]
            for key, names in zip(keys, self.remembered(keys, now), strict=True)
            if name not in current.get(key, ())
        }
        if not changed:
            return
        if number not in self.generations:
            self.generations[number] = {}
            self.generations.pop(number - 2, None)
        before = len(self.generations[number])
        self.generations[number].update(changed)
        if max(before, self.max_keys / 2) < len(self.generations[number]):
            self.generations[number - 1] = self.generations.pop(number)

    def _generation(self, now: int) -> Mapping[str, Names]:
        return self.generations.get(now // self.ttl, {})
