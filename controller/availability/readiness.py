"""Decides whether this replica is ready for requests."""

from controller.availability.batches import Batches
from controller.availability.snapshot import MaybeStale
from controller.availability.snapshots import SnapshotManager
from controller.domain.errors import ShuttingDown, StoreError


class Readiness:
    """The state that GET /readyz reports."""

    def __init__(self, batches: Batches, snapshots: SnapshotManager) -> None:
        self._batches = batches
        self._snapshots = snapshots
        self._shutting_down = False

    @property
    def shutting_down(self) -> bool:
        """True after begin_shutdown()."""
        return self._shutting_down

    def begin_shutdown(self) -> None:
        """Become unready, so that load balancers send requests to other replicas. The replica keeps serving."""
        self._shutting_down = True

    async def check(self) -> MaybeStale[str | None]:
        """Return None if this replica serves from Redis, or the reason why it is in degraded mode.

        Raises ShuttingDown, and StoreUnavailable with the reason if the replica cannot serve at all.
        """
        if self._shutting_down:
            raise ShuttingDown("This replica is shutting down. It still answers requests; send new ones to another.")
        try:
            await self._batches.check()
            return MaybeStale(None)
        except StoreError as error:
            _, age = self._snapshots.get(error)
            return MaybeStale(str(error), age)

    @property
    def recent_clock_jump(self) -> tuple[float, float] | None:
        """The value of Recovery.recent_clock_jump."""
        return self._snapshots.recent_clock_jump
