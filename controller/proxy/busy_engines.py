"""Remembers which engines have said that they are busy."""

import time
from collections.abc import Callable
from typing import Final

from controller.domain.errors import WorkerBusy

_DEFAULT: Final = 1.0  # seconds, if an engine does not say when to try again
_LONGEST: Final = 30.0


class BusyEngines:
    """The engines that have returned 429, or a 503 that says that they are busy, on one replica.

    An engine that refuses requests at once has no load, so it would be chosen before all others. Each is remembered for
    the seconds of its Retry-After, from 1 s to 30 s.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._busy_until: dict[str, float] = {}

    def note(self, name: str, error: WorkerBusy) -> None:
        """Remember an engine that has returned an error."""
        self._busy_until[name] = self._clock() + _seconds(error)

    def names(self) -> set[str]:
        """Return the engines that are busy now."""
        if self._busy_until:
            now = self._clock()
            self._busy_until = {name: until for name, until in self._busy_until.items() if until > now}
        return set(self._busy_until)


def _seconds(error: WorkerBusy) -> float:
    values = [value for name, value in error.headers if name == b"retry-after"]
    # It may also be a date. The clocks of engines may be wrong, so a date counts as the default.
    is_number = bool(values) and len(values[0]) <= 9 and values[0].isdigit()
    return min(max(float(values[0]), _DEFAULT), _LONGEST) if is_number else _DEFAULT
