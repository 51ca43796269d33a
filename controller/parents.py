"""Joins this cluster to the controllers above it, as one worker: N replicas, one heartbeat."""

import asyncio
import json
import logging
import random
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

from controller.domain.errors import ParentUnreachable, StoreError
from controller.domain.way import HEADER
from controller.domain.worker import Worker, WorkerStatusTotal, total_status
from controller.guard import StoreGuard
from controller.store.registry import Registry
from controller.upstream.parent import ParentClient

logger = logging.getLogger("controller")

# Shares of the interval. A replica that dies with the duty in its hands has held it for HOLD when another takes it, a
# LOOK later at most; and all of that together must come to no more than one interval.
_DUE: Final = 0.7
_HOLD: Final = 0.15
_LOOK: Final = 0.05
_AGAIN: Final = 0.1  # after a parent could not be reached
_SLOWEST_LOOK: Final = 1.0  # seconds: so soon a parent knows of other models


class Parents:
    """One replica's part in it. interval is that of heartbeats, in seconds; known gives the live workers, as of a while
    ago, and after look as of now.

    While the store is away each replica sends heartbeats of its own: what it goes by itself, a parent may go by too.
    """

    def __init__(
        self,
        guard: StoreGuard,
        registry: Registry,
        parents: Sequence[str],
        name: str,
        interval: float,
        known: Callable[[], Sequence[Worker]],
        look: Callable[[], Awaitable[None]],
        cluster: Callable[[], str],
    ) -> None:
        self._guard = guard
        self._registry = registry
        self._parents = parents
        self._name = name
        self._interval = interval
        self._known = known
        self._look = look
        self._cluster = cluster
        self._id = secrets.token_hex(8)
        self._client = ParentClient(max(0.05, interval * _HOLD * 0.9))
        self._alone_at: dict[str, float] = {}  # when this replica sent a heartbeat without the store, by parent
        self._in_trouble: set[str] = set()
        self._late: set[str] = set()  # the parents that were told something when the duty was another's already

    async def join_forever(self) -> None:
        """Send heartbeats to all parents for ever."""
        joining = [asyncio.create_task(self._join(parent)) for parent in self._parents]
        try:
            await asyncio.gather(*joining)
        finally:
            for each in joining:
                each.cancel()  # if one has failed, by a bug: all are begun anew

    async def close(self) -> None:
        """Close all connections. The cluster stays with its parents for as long as heartbeats live."""
        await self._client.close()

    async def _join(self, parent: str) -> None:
        while True:
            await asyncio.sleep(min(self._interval * _LOOK, _SLOWEST_LOOK) * random.uniform(0.5, 1.0))  # noqa: S311
            try:
                taken, told = await self._take(parent, urgent=False)
                workers, news = self._seen()  # now that the store has answered: before, it may have told of nobody yet
                # Other models are told at once; what else heartbeats do not tell, with the next of them. And what was
                # told too late may have come behind what another replica knew better.
                if not taken and (parent in self._late or (told and json.loads(told)[0] != json.loads(news)[0])):
                    taken, told = await self._take(parent, urgent=True)
                if taken and told != news:
                    await self._look()  # another replica may have seen more, and told it
                    workers, news = self._seen()
            except StoreError:
                await self._do_alone(parent, self._known())
                continue
            if taken:
                await self._do(parent, workers, "" if parent in self._late else told, news)

    def _seen(self) -> tuple[Sequence[Worker], str]:
        """The live workers, and what heartbeats do not tell of them."""
        workers = self._known()
        status = total_status(workers)
        return workers, json.dumps([status.model_names, status.speed, status.capacity])

    async def _take(self, parent: str, urgent: bool) -> tuple[bool, str]:
        return await self._guard.ask(
            lambda: self._registry.take_duty(
                parent, self._id, self._interval * _HOLD, longest=self._interval * max(_DUE, _HOLD), urgent=urgent
            )
        )

    async def _do(self, parent: str, workers: Sequence[Worker], told: str, news: str) -> None:
        done = await self._tell(parent, workers, again=told != news)
        due_in = self._interval * (_DUE if done else _AGAIN)
        self._late.discard(parent)
        try:
            in_time = await self._guard.ask(
                lambda: self._registry.end_duty(parent, self._id, due_in, news if done else "", 10 * self._interval)
            )
        except StoreError:
            return  # then another does it once more, when the duty's time is over
        if done and not in_time:
            self._late.add(parent)

    async def _do_alone(self, parent: str, workers: Sequence[Worker]) -> None:
        now = time.monotonic()
        if workers and now >= self._alone_at.get(parent, float("-inf")) + self._interval * _DUE:
            self._alone_at[parent] = now
            await self._tell(parent, workers, again=False)

    async def _tell(self, parent: str, workers: Sequence[Worker], again: bool) -> bool:
        """Send a heartbeat, or register anew; whether the parent has taken it."""
        status = total_status(workers)
        try:
            if again or not await self._client.heartbeat(parent, self._name, status.queue_length):
                await self._register(parent, workers, status)
        except ParentUnreachable as error:
            if parent not in self._in_trouble:
                logger.warning("The parent does not take this cluster, which tries on: %s", error)
            self._in_trouble.add(parent)
            return False
        if parent in self._in_trouble:
            logger.info("The parent %s takes this cluster again.", parent)
            self._in_trouble.discard(parent)
        return True

    async def _register(self, parent: str, workers: Sequence[Worker], status: WorkerStatusTotal) -> None:
        multimodal = bool(workers) and all(worker.multimodal for worker in workers)
        await self._client.register(parent, self._name, status, multimodal, {HEADER: self._cluster()})
        logger.info("Registered at the parent %s: models %s", parent, list(status.model_names))
