"""Keeps the changes that Redis missed during an outage, and applies them when Redis is available again."""

from collections import Counter, deque
from collections.abc import Iterable
from typing import Final

from controller.domain.errors import StoreRejection
from controller.store.reconciliation import Reconciliation, split
from controller.store.registry import Registry

_MAX_UNANSWERED: Final = 1_000
_MAX_ROUNDS: Final = 3
_MAX_LEASES: Final = 20_000
_RELEASED_PER_CALL: Final = 1_000


class Reconciler:
    """The changes of one replica that Redis does not have yet.

    There are three kinds of changes: requests dispatched from the snapshot, dispatch calls without a reply, and leases
    that could not be released when their requests ended. Only the newest calls and leases are kept, which limits the
    memory. The leases are released after the next snapshot, too, because a busy replica fails calls without an outage.
    """

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._bookings: Counter[str] = Counter()
        self._unanswered: deque[str] = deque(maxlen=_MAX_UNANSWERED)
        self._leases: deque[str] = deque(maxlen=_MAX_LEASES)
        self._reports: list[Reconciliation] = []  # sent, but not acknowledged
        registry.on_unanswered = self._unanswered.append

    def add_bookings(self, workers: Iterable[str]) -> None:
        """Keep requests that were dispatched from the snapshot."""
        self._bookings.update(workers)

    def add_leases(self, leases: Iterable[str]) -> None:
        """Keep leases that could not be released. A lease that is added twice is released once."""
        self._leases.extend(leases)

    async def release_leases(self) -> None:
        """Release the kept leases. Raises StoreError, and then keeps the leases that are not released yet."""
        while leases := [self._leases.popleft() for _ in range(min(len(self._leases), _RELEASED_PER_CALL))]:
            try:
                await self._registry.release(leases)
            except BaseException:  # also when cancelled
                self._leases.extendleft(reversed(leases))
                raise

    async def reconcile(self, sequence: int = 0) -> None:
        """Report bookings and unanswered calls. Raises StoreError.

        A report without an acknowledgement is sent again unchanged, so Redis counts it once. A report that Redis
        rejects is dropped, because it would be rejected again. The next report of each worker corrects its load.

        Requests that are dispatched from the snapshot meanwhile are reported, too, in a few rounds. The rest is kept
        for the next call, because a busy replica would never come to an end.

        sequence: sequence number of the last snapshot if Redis has lost data since, or else 0.
        """
        for _ in range(_MAX_ROUNDS):
            while self._reports:
                try:
                    await self._registry.reconcile(self._reports[0])
                except StoreRejection:
                    del self._reports[0]
                    raise
                del self._reports[0]
            bookings, self._bookings = self._bookings, Counter()
            unanswered = list(self._unanswered)
            self._unanswered.clear()
            self._reports = split(bookings, unanswered, sequence)
            if not self._reports:
                return
            sequence = 0
