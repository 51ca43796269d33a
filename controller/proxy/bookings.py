"""Books forwarded requests: chooses their workers, and renews and releases their leases."""

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, Final

from controller.availability.snapshot import MaybeStale
from controller.dispatch.dispatcher import Assignment, Dispatcher
from controller.domain.affinity import Affinity
from controller.domain.engine import Protocol
from controller.domain.errors import StoreError, TooManyLeases

# Dispatch attempts per retry. A worker that fails instantly keeps the shortest queue, so it may be chosen repeatedly.
_MAX_DISPATCHES: Final = 16

# Seconds. If a replica is killed, its requests stay booked for at most this time.
_MAX_LEASE_TIME: Final = 60.0


class Bookings:
    """The leases of the requests that this replica forwards.

    lease_time: in seconds. The leases of longer requests are renewed.
    """

    def __init__(self, dispatcher: Dispatcher, lease_time: float) -> None:
        self._dispatcher = dispatcher
        self._lease_time = min(lease_time, _MAX_LEASE_TIME)
        self._renew_after = self._lease_time / 3  # one renewal may fail
        self._renewals: dict[str, float] = {}  # by lease: when it is renewed, in the loop's time. The next one is first
        self._timer: asyncio.TimerHandle | None = None
        self._background: set[asyncio.Future[Any]] = set()

    async def choose(
        self,
        model: str,
        protocol: Protocol = Protocol.FASTCHAT,
        *,
        is_load: bool = True,
        affinity: Affinity | None = None,
    ) -> MaybeStale[Assignment]:
        """Choose a worker. If the client disconnects meanwhile, the lease is released when the dispatch returns it.

        is_load: False for a request that is not booked.
        affinity: as in Dispatcher.dispatch_with_lease().

        Raises StoreError as Dispatcher.dispatch_with_lease().
        """
        if not is_load:
            address, snapshot_age = await self._dispatcher.find_worker(model, protocol=protocol)
            return MaybeStale(Assignment(address, ""), snapshot_age)
        try:
            return await self._dispatcher.dispatch_with_lease(
                model, self._lease_time, protocol=protocol, affinity=affinity, on_unused=self.end
            )
        except TooManyLeases:  # then the request counts as one without a lease
            address, snapshot_age = await self._dispatcher.dispatch(model, protocol)
            return MaybeStale(Assignment(address, ""), snapshot_age)

    async def choose_another(
        self, model: str, tried: set[str], protocol: Protocol = Protocol.FASTCHAT, *, is_load: bool = True
    ) -> Assignment | None:
        """Choose a worker not in `tried` and add it. Return None if there is none."""
        surplus: list[Assignment] = []
        try:
            while len(surplus) < _MAX_DISPATCHES:
                # A search that books nothing comes first: most often, the model has no other worker.
                if not is_load or not surplus:
                    address, _ = await self._dispatcher.find_worker(model, frozenset(tried), protocol)
                    if not address:
                        return None
                    if not is_load:
                        tried.add(address)
                        return Assignment(address, "")
                another, _ = await self.choose(model, protocol)
                if not another.address:
                    return None
                if another.address not in tried:
                    tried.add(another.address)
                    return another
                surplus.append(another)  # the extra lease raises its cost, so another worker is chosen sooner
        except StoreError:
            return None
        finally:
            for each in surplus:
                self.end(each)
        return None

    def renew_later(self, lease: str) -> None:
        """Renew a lease at intervals, until end()."""
        if lease:
            loop = asyncio.get_running_loop()
            self._renewals[lease] = loop.time() + self._renew_after
            if self._timer is None:  # one for all leases, because most requests end before it
                self._timer = loop.call_later(self._renew_after, self._renew_due)

    def end(self, chosen: Assignment, *, failed: bool = False) -> "asyncio.Future[Any]":
        """Start to release the lease of a request that has ended, and to report its worker's failure if `failed`."""
        self._renewals.pop(chosen.lease, None)
        if chosen.lease and not failed:  # almost always, so this path has no task
            release = self._dispatcher.start_release(chosen.lease)
            self._background.add(release)
            release.add_done_callback(self._end_release)
            return release
        return self._start(self._release(chosen, failed))

    def recover(self, worker: str) -> None:
        """Start to clear the failure of a worker that has served a request."""
        self._start(self._clear_failure(worker))

    async def close(self, time_limit: float) -> None:
        """Wait for the releases, for at most `time_limit` seconds."""
        if self._background:
            await asyncio.wait(self._background, timeout=time_limit)

    def _renew_due(self) -> None:
        """Renew the leases that are due, and set the timer for the next one."""
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._renewals:
            lease, due_at = next(iter(self._renewals.items()))
            if due_at > loop.time():
                self._timer = loop.call_later(due_at - loop.time(), self._renew_due)
                return
            del self._renewals[lease]
            self._renewals[lease] = loop.time() + self._renew_after  # as the last one
            self._start(self._renew_once(lease))

    def _start(self, coroutine: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    def _end_release(self, release: "asyncio.Future[bool]") -> None:
        self._background.discard(release)
        with contextlib.suppress(StoreError, asyncio.CancelledError):  # the lease is released later, or expires
            release.result()

    async def _renew_once(self, lease: str) -> None:
        with contextlib.suppress(StoreError):  # the circuit breaker has logged it
            await self._dispatcher.renew(lease)

    async def _release(self, chosen: Assignment, failed: bool) -> None:
        with contextlib.suppress(StoreError):  # the lease is released later, or expires
            if chosen.lease:
                await self._dispatcher.release(chosen.lease)
            if failed:
                await self._dispatcher.report_failure(chosen.address)

    async def _clear_failure(self, worker: str) -> None:
        with contextlib.suppress(StoreError):  # the next served request clears it
            await self._dispatcher.clear_failure(worker)
