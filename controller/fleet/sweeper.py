"""Purges expired workers from the indexes."""

import asyncio
import logging
import random

from controller.availability.circuit_breaker import CircuitBreaker
from controller.domain.errors import StoreError
from controller.metrics import Metrics
from controller.store.registry import Registry

logger = logging.getLogger("controller")


class Sweeper:
    """Purges expired workers once per interval, on one replica at a time.

    Correctness does not depend on the sweep, because the scripts check that a worker is alive.

    interval: in seconds.
    """

    def __init__(self, breaker: CircuitBreaker, registry: Registry, metrics: Metrics, interval: float) -> None:
        self._breaker = breaker
        self._registry = registry
        self._metrics = metrics
        self._interval = interval

    async def run(self) -> None:
        """Sweep until cancelled."""
        while True:
            await asyncio.sleep(self._interval * random.uniform(0.5, 1.5))  # noqa: S311 - replicas must not sweep in step
            try:
                # A full Redis rejects writes and so opens the circuit breaker, but it needs the sweep most.
                removed = await self._breaker.force_call(self._registry.sweep, self._interval)
            except StoreError:
                continue  # the circuit breaker has logged it
            if removed:
                self._metrics.removals.labels("expired").inc(len(removed))
                logger.warning("Removed workers whose heartbeat expired: %(workers)s", {"workers": ", ".join(removed)})
