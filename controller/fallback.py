"""What a replica goes by while the store does not serve, and how it returns to the store.

It keeps a snapshot of the live workers. Dispatches that the store cannot make are made from it, and when the store is
back it is told of them. A store that comes back without its memory is given the workers again.
"""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from controller.domain.dispatch import DispatchMethod
from controller.domain.errors import StoreError, StoreIncompatible, StoreRejection, StoreUnavailable
from controller.domain.worker import Worker
from controller.guard import StoreGuard
from controller.metrics import Metrics
from controller.recovery import Recovery
from controller.settings import Settings
from controller.snapshot import Snapshot
from controller.store.registry import Registry, WorkerList
from controller.store.settlement import Settlement

logger = logging.getLogger("controller")

_MAX_UNRELEASED: Final = 20_000
_RELEASED_AT_ONCE: Final = 1_000
_LEAST_PAUSE: Final = 0.02
_PAUSE_PER_WORKER: Final = 0.75e-3  # 50 times what it costs the store and us to list one: 15 us, benchmarks/scripts.py


class Fallback:
    """One replica's snapshot, and what it did by itself.

    guard is what the replica's calls to the store go through. draw gives random numbers from 0 to 1.
    """

    def __init__(
        self, settings: Settings, registry: Registry, metrics: Metrics, draw: Callable[[], float] = random.random
    ) -> None:
        self._settings = settings
        self._registry = registry
        self._draw = draw
        self._snapshot: Snapshot | None = None
        self._told: WorkerList | None = None  # what it was made from
        self._bookings: Counter[str] = Counter()
        self._unsettled: list[Settlement] = []
        self._unreleased: deque[str] = deque(maxlen=_MAX_UNRELEASED)  # leases that ended; the oldest first
        self._logged_for: float | None = None
        self._news = asyncio.Event()
        self._own_name = secrets.token_hex(8)
        # One at a time tells the store what it must know: a snapshot may find that it has forgotten something.
        self._talking = asyncio.Lock()
        self._recovery = Recovery(registry, metrics, settings.heartbeat_expiration)
        self.guard = StoreGuard(self._return_to_store, metrics)

    def snapshot(self, cause: StoreError) -> tuple[Snapshot, float]:
        """The snapshot and its age in seconds. Raises `cause` if there is none, or it is too old to go by.

        And if `cause` is not that the store does not serve: then it is for somebody to look at.
        """
        if (
            self._snapshot is not None
            and isinstance(cause, StoreUnavailable)
            and not isinstance(cause, StoreIncompatible)
        ):
            age = time.monotonic() - self._snapshot.taken_at
            if age <= self._settings.heartbeat_expiration:
                return self._snapshot, age
        raise cause

    def dispatch(self, models: Sequence[str], cause: StoreError) -> tuple[list[str], float]:
        """Choose a worker for each model from the snapshot, and keep in mind what the store must be told.

        Returns the addresses, "" where a model has no worker, and the age of the snapshot. Raises as snapshot().
        """
        snapshot, age = self.snapshot(cause)
        self._tell_once(snapshot, age)
        if self._settings.dispatch_method is DispatchMethod.LOTTERY:
            return [snapshot.lottery(model) for model in models], age
        addresses = [snapshot.shortest_queue(model) for model in models]
        self._bookings.update(address for address in addresses if address)
        return addresses, age

    async def keep_forever(self) -> None:
        """Take snapshots for ever. What that costs depends on the number of workers, not on that of dispatches."""
        while True:
            self._news.clear()
            with contextlib.suppress(StoreError):  # the guard has told of it
                await self.guard.ask(self._look)
            # By the number of workers, and not by the clock: a moment in which the machine was busy must not keep the
            # next snapshot from coming while it is of use.
            workers = len(self._snapshot) if self._snapshot is not None else 0
            rest = min(_LEAST_PAUSE + _PAUSE_PER_WORKER * workers, self._settings.heartbeat_expiration / 8)
            await asyncio.sleep(rest)
            pause = min(self._settings.snapshot_interval, self._settings.heartbeat_expiration / 4) - rest
            out_of_step = random.uniform(0.9, 1.1)  # noqa: S311 - to be out of step
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, pause) * out_of_step):  # wait_for() may lose a cancellation
                    await self._news.wait()

    async def look(self) -> None:
        """Take a snapshot now. Raises StoreError."""
        await self.guard.ask(self._look)

    def release_later(self, leases: Iterable[str]) -> None:
        """Keep leases that ended while the store did not serve. They are released when it serves again."""
        self._unreleased.extend(leases)  # to release a lease twice does no harm

    def tell_news(self) -> None:
        """A worker has registered: take the next snapshot soon."""
        self._news.set()

    @property
    def cluster(self) -> str:
        """A name that the replicas of this store share with nobody else; one of this replica's own, at first."""
        return self._told.epoch if self._told is not None and self._told.epoch else self._own_name

    @property
    def recent_clock_jump(self) -> tuple[float, float] | None:
        """As Recovery.recent_clock_jump."""
        return self._recovery.recent_clock_jump

    def known_workers(self) -> Sequence[Worker]:
        """The live workers as of the last snapshot."""
        return self._told.workers if self._told is not None else ()

    def expected_models(self, multimodal: bool | None) -> list[str]:
        """What Registry.list_models() should say, by the snapshot; nothing if there is none."""
        return self._snapshot.list_models(multimodal) if self._snapshot is not None else []

    async def find_again(self, models: Iterable[str]) -> bool:
        """Whether any of the models has a worker, though the store has just said that none of them has one.

        It may have lost its memory since the last snapshot; if so, it is given it again before this returns. Raises
        StoreUnavailable.
        """
        before = self._snapshot
        if before is None:
            return False
        missing = [model for model in models if before.serves(model)]
        if not missing:
            return False
        await self.guard.ask(self._look, before)
        now = self._snapshot
        return now is not None and any(now.serves(model) for model in missing)

    async def close(self) -> None:
        """End what goes on in the background."""
        await self.guard.close()

    async def _return_to_store(self) -> None:
        """Prove that the store serves, and tell it what it missed. Raises StoreError if it does not serve yet."""
        async with self._talking:
            await self._registry.reconnect()
            await self._registry.check()
            try:
                await self._take_snapshot()
            except StoreRejection as error:  # what cannot be read must not keep others from being served
                logger.error("No snapshot can be taken: %s", error)  # noqa: TRY400 - the message says it all
            await self._release_ended()
            await self._settle()  # last, without a pause until the guard lets calls through: nothing is left behind

    async def _look(self, since: Snapshot | None = None) -> None:
        """Take a snapshot; if `since` is given, only if none was taken since that one."""
        async with self._talking:
            if since is None or self._snapshot is since:
                await self._take_snapshot()

    async def _take_snapshot(self) -> None:
        taken_at = time.monotonic()
        told = await self._registry.list_workers()
        before = self._told
        if before is None or self._snapshot is None:
            await self._recovery.correct_overlong_heartbeats(told)
        elif await self._recovery.repair(before, taken_at - self._snapshot.taken_at, told):
            if told.epoch != before.epoch or told.sequence < before.sequence:
                await self._settle(before.sequence)
            told = await self._registry.list_workers()
        self._keep(told, taken_at)  # before a rename, which may fail
        if await self._recovery.rename(told.workers):
            taken_at = time.monotonic()
            self._keep(await self._registry.list_workers(), taken_at)

    def _keep(self, told: WorkerList, taken_at: float) -> None:
        self._told = told
        self._snapshot = Snapshot(told.workers, taken_at, self._draw)

    async def _settle(self, sequence: int = 0) -> None:
        """Tell the store of what was dispatched without it, and of the calls that it never answered.

        What was told and not acknowledged is told again in the same words, so that it counts once.
        """
        while True:
            while self._unsettled:
                await self._registry.settle(self._unsettled[0])
                del self._unsettled[0]
            bookings, self._bookings = self._bookings, Counter()
            self._unsettled = self._registry.settlements(bookings, sequence)
            if not self._unsettled:
                return
            sequence = 0

    async def _release_ended(self) -> None:
        while leases := [self._unreleased.popleft() for _ in range(min(len(self._unreleased), _RELEASED_AT_ONCE))]:
            try:
                await self._registry.release(leases)
            except BaseException:  # cancelled, too
                self._unreleased.extendleft(reversed(leases))
                raise

    def _tell_once(self, snapshot: Snapshot, age: float) -> None:
        """Log that dispatches are made from a snapshot: once in a time of trouble."""
        if self._logged_for != self.guard.trouble_since:
            self._logged_for = self.guard.trouble_since
            logger.warning(
                "Dispatching by a snapshot of %d workers, %.1f s old, until the store serves; for %.0f s at most.",
                len(snapshot),
                age,
                self._settings.heartbeat_expiration - age,
            )
