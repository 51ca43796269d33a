"""Checks that a recorded history is linearizable: that each call can have run at one instant while it was under way.

A call is given its instant only when another call ends, and states that were reached before are not explored again.
Porcupine and Knossos work in the same way.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.history.operations import Operation
from tests.history.realtime import Realtime
from tests.model.state import State

MAX_CONFIGURATIONS: Final = 20_000
_CALL, _RETURN = 0, 1


@dataclass
class Configuration:
    """A possible state, and the calls under way that have run in it."""

    state: State
    done: frozenset[Operation]


class TooManyConfigurations(Exception):
    """The search was given up. The history is neither accepted nor refused."""


def explain(
    operations: Iterable[Operation], start: State, rules: Realtime, differences: Callable[[State], Sequence[str]]
) -> list[str]:
    """Find an order of the calls in which the model gives the recorded answers and ends as Redis did.

    Return an empty list, or a description of the first call that no order explains.

    differences: returns the differences of a state from the one that was observed at the end.
    """
    search = _Search(rules, start)
    events: list[tuple[float, int, Operation]] = []
    for operation in operations:
        events += [(operation.start, _CALL, operation), (operation.until, _RETURN, operation)]
    for at, kind, operation in sorted(events, key=lambda event: event[:2]):
        if at > rules.end:
            break
        if kind == _CALL:
            search.begin(operation)
        elif problem := search.end(operation):
            return problem
    found = [differences(each.state) for each in search.ends()]
    closest = min(found, key=len)
    return ["the state at the end differs from that of Redis:", *closest] if closest else []


# The sources of the method:
# - Wing and Gong: Testing and Verifying Concurrent Objects, 1993. codespell:ignore
# - Lowe: Testing for Linearizability, 2016.
class _Search:
    def __init__(self, rules: Realtime, start: State) -> None:
        self._rules = rules
        self._under_way: list[Operation] = []
        self._configurations = [Configuration(start, frozenset())]
        self._recent: list[Operation] = []

    def begin(self, operation: Operation) -> None:
        self._under_way.append(operation)

    def end(self, operation: Operation) -> list[str]:
        """Keep the configurations in which the call has run by now. Return a description if there is none.

        A call with an unknown outcome need not have run.
        """
        reached = self._closure(operation)
        self._under_way.remove(operation)
        left: dict[Any, Configuration] = {}
        for each in reached:
            if operation.has_answer and operation not in each.done:
                continue
            kept = Configuration(each.state, each.done - {operation})
            left.setdefault((self._rules.key(kept.state), kept.done), kept)
        if not left:
            return self._describe(operation)
        self._configurations = list(left.values())
        self._recent = [*self._recent[-12:], operation]
        return []

    def ends(self) -> list[Configuration]:
        """Return the configurations at the end, in which the calls with an unknown outcome have run or not."""
        return self._closure(None)

    def _closure(self, goal: Operation | None) -> list[Configuration]:
        """Return the configurations that are reached when calls under way run. None runs after `goal`."""
        until = goal.until if goal is not None else self._rules.end
        found: dict[Any, Configuration] = {}
        stack = list(self._configurations)
        while stack:
            this = stack.pop()
            key = self._rules.key(this.state), this.done
            if key in found:
                continue
            if len(found) > MAX_CONFIGURATIONS:
                raise TooManyConfigurations(f"more than {MAX_CONFIGURATIONS} configurations")
            found[key] = this
            if goal is None or goal not in this.done:
                stack += self._next(this, until)
        return list(found.values())

    def _next(self, this: Configuration, until: float) -> list[Configuration]:
        waiting = [operation for operation in self._under_way if operation not in this.done]
        following = []
        for operation in waiting:
            for state in self._rules.after(operation, this.state, until):
                after = Configuration(state, this.done | {operation})
                if state is this.state and operation.has_answer:
                    return [after]  # it changes nothing, so to run it at once excludes no other order
                following.append(after)
        return following

    def _describe(self, operation: Operation) -> list[str]:
        workers = [
            f"  {name}: {worker}"
            for each in self._configurations[:2]
            for name, worker in sorted(each.state.workers.items())
        ]
        others = [f"  {each}" for each in self._under_way]
        return [
            f"no order explains this call: {operation}",
            "calls before it:",
            *(f"  {each}" for each in self._recent),
            "calls under way when it ended:",
            *others,
            f"workers before it, in at most 2 of {len(self._configurations)} possible states:",
            *workers,
        ]
