"""Degraded mode: dispatching from a snapshot while Redis is unavailable."""

import logging
from collections.abc import Sequence
from typing import assert_never

from controller.availability.reconciler import Reconciler
from controller.availability.snapshot import Snapshot
from controller.availability.snapshots import SnapshotManager
from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreError
from controller.settings import Settings

logger = logging.getLogger("controller")


class DegradedMode:
    """Dispatches from the snapshot of one replica, and keeps the bookings for the reconciler."""

    def __init__(self, settings: Settings, snapshots: SnapshotManager, reconciler: Reconciler) -> None:
        self._method = settings.dispatch_method
        self._max_age = settings.heartbeat_expiration
        self._snapshots = snapshots
        self._reconciler = reconciler
        self._logged_for: float | None = None  # start of the outage that was logged last

    def dispatch(self, models: Sequence[str], cause: StoreError) -> tuple[list[str], float]:
        """Choose a worker for each model.

        Returns the addresses, "" where a model has no worker, and the age of the snapshot in seconds. Re-raises `cause`
        as SnapshotManager.get() does.
        """
        snapshot, age = self._snapshots.get(cause)
        self._log_once(snapshot, age)
        match self._method:
            case DispatchMethod.SHORTEST_QUEUE:
                addresses = [snapshot.shortest_queue(model) for model in models]
                self._reconciler.add_bookings(address for address in addresses if address)
            case DispatchMethod.LOTTERY:
                addresses = [snapshot.lottery(model) for model in models]
            case _:
                assert_never(self._method)
        return addresses, age

    def _log_once(self, snapshot: Snapshot, age: float) -> None:
        """Log the start of degraded mode, once for each outage."""
        failing_since = self._snapshots.breaker.failing_since
        if self._logged_for != failing_since:
            self._logged_for = failing_since
            logger.warning(
                "Redis is unavailable: dispatching from a snapshot of %(workers)d workers, %(age).1f s old, valid for "
                "another %(left).0f s.",
                {"workers": len(snapshot), "age": age, "left": self._max_age - age},
            )
