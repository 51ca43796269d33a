"""Lists the workers, and notices if Redis lost something that an earlier listing had."""

from typing import Final

from controller.domain.errors import StoreUnavailable
from controller.store.registry import Registry, WorkerList

_MAX_LISTINGS: Final = 3


class Listings:
    """The listings of one replica.

    Each listing has a number, which Redis stores after the listing. Redis replicates and saves changes in their order,
    so if it still has this number, it has all that was listed. The sequence number alone does not always show a loss:
    after a failover, dispatches may bring it to where it was.
    """

    def __init__(self, registry: Registry, replica_id: str) -> None:
        self._registry = registry
        self._replica_id = replica_id
        self._count = 0
        self._stored = 0  # the last number that Redis has stored
        self._last: WorkerList | None = None
        self._lost_data = False  # since the last listing that take() returned

    async def take(self) -> tuple[WorkerList, bool]:
        """List the workers. Return the list, and True if Redis lost data since the last call that returned.

        Raises StoreError.
        """
        for _ in range(_MAX_LISTINGS):
            listing = await self._registry.list_workers()
            if self._last is not None and _is_older(listing, self._last):
                self._lost_data = True
            self._last = listing
            self._count += 1
            if await self._registry.mark_listing(self._replica_id, self._stored, self._count):
                self._stored = self._count
                lost_data, self._lost_data = self._lost_data, False
                return listing, lost_data
            self._stored, self._lost_data = 0, True  # the loss may be later than the listing: list again
        raise StoreUnavailable(
            f"Redis lost data during each of {_MAX_LISTINGS} attempts to list the workers. Check its persistence and "
            "its log."
        )


def _is_older(listing: WorkerList, other: WorkerList) -> bool:
    """Return True if Redis has certainly lost data of the other listing. Its epoch is "" if Redis was empty."""
    return (other.epoch != "" and listing.epoch != other.epoch) or listing.sequence < other.sequence
