"""Asks workers for their queue lengths between their heartbeats: each of them is asked by one of the replicas."""

import asyncio
import contextlib
import logging
import random
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from zlib import crc32

from controller.batches import Batches
from controller.cancellation import end
from controller.domain.errors import StoreError, WorkerError
from controller.domain.worker import Worker
from controller.guard import StoreGuard
from controller.metrics import Metrics
from controller.store.registry import FailureCall, Registry, Report
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_MAX_POLLS_AT_ONCE: Final = 512  # of workers that answered the last one; and as many of those that did not
_MEETING_INTERVAL: Final = 1.0
_STAY: Final = 3.0  # for so long after its last word a replica is believed to be there
_STEPS: Final = 50  # in an interval: polls begin at so many times
_FAILURES: Final = 2  # in a row, and a worker comes behind all others
_SELDOM: Final = 12  # intervals, from one poll to the next of a worker that never answered


class Poller:
    """One replica's part of the polling.

    interval is in seconds; known gives the workers, as this replica saw them last. A worker that has never answered any
    replica sits where it cannot be reached, or does not listen yet: it is left alone, but for a poll now and then.
    """

    def __init__(
        self,
        guard: StoreGuard,
        registry: Registry,
        batches: Batches,
        workers: WorkerClient,
        metrics: Metrics,
        interval: float,
        known: Callable[[], Sequence[Worker]],
    ) -> None:
        self._guard = guard
        self._registry = registry
        self._batches = batches
        self._workers = workers
        self._metrics = metrics
        self._interval = interval
        self._known = known
        self._id = secrets.token_hex(8)
        self._replicas: list[str] = []
        self._met_at = float("-inf")
        self._due: dict[str, float] = {}  # when each of this replica's workers is asked next
        self._failures: dict[tuple[str, int], int] = {}  # in a row, by worker and registration
        self._left_alone: dict[str, int] = {}  # the registration that does not answer
        self._places = asyncio.Semaphore(_MAX_POLLS_AT_ONCE)
        self._places_of_failing = asyncio.Semaphore(_MAX_POLLS_AT_ONCE)  # or those that hang would delay the others
        self._polls: dict[str, asyncio.Task[None]] = {}  # under way, by worker

    async def poll_forever(self) -> None:
        """Poll for ever; never, if the interval is 0."""
        if not self._interval:
            return
        while True:
            if time.monotonic() - self._met_at >= min(_MEETING_INTERVAL, self._interval):
                await self._meet()
            self._begin_polls()
            await asyncio.sleep(self._interval / _STEPS)

    async def close(self) -> None:
        """End the polls that are under way, and leave the workers to the other replicas."""
        await end(list(self._polls.values()))
        if self._replicas:
            with contextlib.suppress(StoreError):  # then they will find out
                await self._guard.ask(self._registry.meet, self._id, 0.0)

    async def _meet(self) -> None:
        """Find out which replicas there are, and which workers are this one's.

        Each worker goes to the replica for which it draws the highest number (rendezvous hashing: Thaler and
        Ravishankar, 1998), so that one that comes or goes moves its own share and no other.
        """
        self._met_at = time.monotonic()
        try:
            self._replicas = await self._guard.ask(self._registry.meet, self._id, _STAY)
        except StoreError:
            self._replicas = []  # what they would tell could not be written down
        salts = [(replica, crc32(replica.encode())) for replica in self._replicas]
        mine = [
            worker
            for worker in self._known()
            if salts and max(salts, key=lambda salt: crc32(worker.name.encode(), salt[1]))[0] == self._id
        ]
        registrations = {worker.name: worker.registration for worker in mine}
        for name, registration in list(self._left_alone.items()):
            if registrations.get(name) != registration:
                del self._left_alone[name]
                self._due.pop(name, None)  # if it has registered again, it is asked soon
        spread = random.uniform  # polls of workers that come together are spread in time
        self._due = {
            name: self._due.get(name) or time.monotonic() + spread(0, self._interval) for name in registrations
        }
        self._failures = {life: number for life, number in self._failures.items() if life in registrations.items()}

    def _begin_polls(self) -> None:
        now = time.monotonic()
        workers = {worker.name: worker for worker in self._known()} if self._due else {}
        for name, due in self._due.items():
            if due <= now and name in workers and name not in self._polls:
                self._due[name] = max(due + self._interval, now)
                self._polls[name] = poll = asyncio.create_task(self._poll(workers[name]))
                poll.add_done_callback(partial(self._ended, name))

    def _ended(self, name: str, _: asyncio.Task[None]) -> None:
        del self._polls[name]

    async def _poll(self, worker: Worker) -> None:
        life = worker.name, worker.registration
        async with self._places_of_failing if life in self._failures else self._places:
            if worker.name not in self._due:
                return  # while this waited for a place, the worker went to another replica
            asked_at = time.monotonic()
            try:
                status = await self._workers.status(worker.name)
            except WorkerError as error:
                await self._failed(worker, error)
                return
        self._failures.pop(life, None)
        self._left_alone.pop(worker.name, None)
        self._metrics.polls_answered.inc()
        with contextlib.suppress(StoreError):  # the guard has told of it
            await self._batches.take_poll_answer(Report(worker.name, status.queue_length, asked_at))

    async def _failed(self, worker: Worker, error: WorkerError) -> None:
        self._metrics.polls_failed.inc()
        life = worker.name, worker.registration
        failures = self._failures[life] = self._failures.get(life, 0) + 1
        if failures < _FAILURES:
            return
        try:
            # The store knows whether it has ever answered, us or another replica; what we know of it may be older.
            fails = await self._batches.report_failure(FailureCall(worker.name, of_polls=True))
        except StoreError:
            return  # the guard has told of it
        if fails is None:
            self._leave_alone(worker, error)
        elif fails and failures == _FAILURES:
            logger.warning("A worker does not answer, and comes behind all others: %s", error)

    def _leave_alone(self, worker: Worker, error: WorkerError) -> None:
        if worker.name in self._due:  # or it went to another replica
            self._due[worker.name] = time.monotonic() + _SELDOM * self._interval
        if self._left_alone.get(worker.name) != worker.registration:
            self._left_alone[worker.name] = worker.registration
            logger.info("A worker cannot be asked for its status, and is seldom asked from now on: %s", error)
