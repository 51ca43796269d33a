"""Limits the retries of a whole cluster, so that failing engines do not multiply the load of the others."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final

_WINDOW: Final = 10  # seconds
_CLUSTER_RETRIES: Final = 10  # that a whole cluster may make in a window, besides the share of its requests


class RetryBudget:
    """The retries that one replica may make.

    In any 10 s, a replica may make `share` times as many retries as it has requests, plus its part of 10 retries of the
    cluster. So the retries of the cluster are limited without any call between replicas.

    share: of the requests of the window, from 0 to 1.
    replicas: returns the number of live replicas, or 0 if it is unknown. The last known number then counts.
    """

    def __init__(self, share: float, replicas: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._share = share
        self._replicas = replicas
        self._clock = clock
        self._known_replicas = 1
        self._seconds: deque[list[int]] = deque()  # second, requests, retries
        self._requests = 0
        self._retries = 0

    def count_request(self) -> None:
        """Count a request, which is not a retry."""
        self._now()[1] += 1
        self._requests += 1

    @property
    def has_room(self) -> bool:
        """True if a retry is allowed now."""
        self._now()
        self._known_replicas = self._replicas() or self._known_replicas
        return self._retries + 1 <= self._share * self._requests + _CLUSTER_RETRIES / self._known_replicas

    def take(self) -> bool:
        """Count a retry if it is allowed. Return False if it is not."""
        if not self.has_room:
            return False
        self._now()[2] += 1
        self._retries += 1
        return True

    def give_back(self) -> None:
        """Undo take(), because there was nothing to retry on."""
        self._now()
        for second in reversed(self._seconds):
            if second[2]:
                second[2] -= 1
                self._retries -= 1
                return

    def _now(self) -> list[int]:
        """Return the counts of this second, and drop those that have left the window."""
        second = int(self._clock())
        while self._seconds and self._seconds[0][0] <= second - _WINDOW:
            _, requests, retries = self._seconds.popleft()
            self._requests -= requests
            self._retries -= retries
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append([second, 0, 0])
        return self._seconds[-1]
