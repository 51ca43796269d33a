"""Polls workers for their queue lengths between heartbeats. The replicas share the workers."""

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from controller.availability.batches import Batches
from controller.domain.errors import StoreError, WorkerError, WorkerNotAllowed
from controller.domain.worker import Worker
from controller.fleet.rendezvous import Share
from controller.fleet.replicas import Replicas
from controller.metrics import Metrics
from controller.store.registry import FailureCall, Report
from controller.tasks import end
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_MAX_POLLS: Final = 512  # at once, for workers that answered their last poll. The other workers get as many
_SHARING_INTERVAL: Final = 1.0  # seconds between two looks at which workers are ours
_STEPS: Final = 50  # start times of polls in one interval
_MAX_FAILURES: Final = 2  # consecutive failures after which a worker is deprioritised
_UNREACHABLE_FACTOR: Final = 12  # the interval is this much longer for a worker that has never answered


class Poller:
    """One replica's share of the polling.

    interval: between two polls of a worker, in seconds. 0 turns polling off.
    workers: returns the live workers of the last snapshot.

    A worker that has never answered a poll of any replica may be unreachable from here, or not listening yet. It is not
    deprioritised, and is polled less often.
    """

    def __init__(
        self,
        batches: Batches,
        client: WorkerClient,
        metrics: Metrics,
        replicas: Replicas,
        interval: float,
        workers: Callable[[], Sequence[Worker]],
    ) -> None:
        self._batches = batches
        self._client = client
        self._metrics = metrics
        self._interval = interval
        self._workers = workers
        self._replicas = replicas
        self._shared_at = float("-inf")
        self._due: dict[str, float] = {}  # time of the next poll, by worker of this replica
        self._failures: dict[tuple[str, int], int] = {}  # consecutive ones, by worker and registration
        self._unreachable: dict[str, int] = {}  # registration of each worker that has never answered
        self._permits = asyncio.Semaphore(_MAX_POLLS)
        self._permits_of_failing = asyncio.Semaphore(_MAX_POLLS)  # hung workers must not delay the polls of the others
        self._polls: dict[str, asyncio.Task[None]] = {}  # running ones, by worker

    async def run(self) -> None:
        """Poll until cancelled. Return at once if the interval is 0."""
        if not self._interval:
            return
        while True:
            if time.monotonic() - self._shared_at >= min(_SHARING_INTERVAL, self._interval):
                self._share_workers()
            self._start_polls()
            await asyncio.sleep(self._interval / _STEPS)

    async def close(self) -> None:
        """End the running polls."""
        await end(list(self._polls.values()))

    def _share_workers(self) -> None:
        """Update the list of workers that this replica polls. Without Redis it polls none, and could store no answer.

        Engines are polled by EnginePoller.
        """
        self._shared_at = time.monotonic()
        share = Share(self._replicas.id, self._replicas.ids)
        own = [worker for worker in self._workers() if worker.engine is None and share.has(worker.name)]
        registrations = {worker.name: worker.registration for worker in own}
        for name, registration in list(self._unreachable.items()):
            if registrations.get(name) != registration:
                del self._unreachable[name]
                self._due.pop(name, None)  # a worker that registered again is polled soon
        spread = random.uniform  # workers that register together are polled at different times
        self._due = {
            name: self._due.get(name) or time.monotonic() + spread(0, self._interval) for name in registrations
        }
        self._failures = {
            incarnation: failures
            for incarnation, failures in self._failures.items()
            if incarnation in registrations.items()
        }

    def _start_polls(self) -> None:
        now = time.monotonic()
        workers = {worker.name: worker for worker in self._workers()} if self._due else {}
        for name, due in self._due.items():
            if due <= now and name in workers and name not in self._polls:
                self._due[name] = max(due + self._interval, now)
                self._polls[name] = poll = asyncio.create_task(self._poll(workers[name]))
                poll.add_done_callback(partial(self._ended, name))

    def _ended(self, name: str, _: asyncio.Task[None]) -> None:
        del self._polls[name]

    async def _poll(self, worker: Worker) -> None:
        incarnation = worker.name, worker.registration
        async with self._permits_of_failing if incarnation in self._failures else self._permits:
            if worker.name not in self._due:
                return  # the worker moved to another replica while this poll waited for a permit
            sent_at = time.monotonic()
            try:
                status = await self._client.status(worker.name)
            except WorkerError as error:
                await self._failed(worker, error)
                return
        self._failures.pop(incarnation, None)
        self._unreachable.pop(worker.name, None)
        self._metrics.polls_answered.inc()
        with contextlib.suppress(StoreError):  # the circuit breaker has logged it
            await self._batches.take_poll_answer(Report(worker.name, status.queue_length, sent_at))

    async def _failed(self, worker: Worker, error: WorkerError) -> None:
        self._metrics.polls_failed.inc()
        incarnation = worker.name, worker.registration
        failures = self._failures[incarnation] = self._failures.get(incarnation, 0) + 1
        if failures < _MAX_FAILURES:
            return
        # A worker whose address is not allowed is deprioritised even if it has never answered a poll.
        of_polls = not isinstance(error, WorkerNotAllowed)
        try:
            # Redis knows whether the worker has ever answered a poll of any replica. Our snapshot may be older.
            deprioritised = await self._batches.report_failure(FailureCall(worker.name, of_polls=of_polls))
        except StoreError:
            return  # the circuit breaker has logged it
        if deprioritised is None:
            self._poll_less_often(worker, error)
        elif deprioritised and failures == _MAX_FAILURES:
            logger.warning(
                "Worker %(worker)s failed %(failures)d status polls; it gets requests only if no other worker can: "
                "%(reason)s",
                {"worker": worker.name, "failures": failures, "reason": error},
            )

    def _poll_less_often(self, worker: Worker, error: WorkerError) -> None:
        interval = _UNREACHABLE_FACTOR * self._interval
        if worker.name in self._due:  # it may have moved to another replica
            self._due[worker.name] = time.monotonic() + interval
        if self._unreachable.get(worker.name) != worker.registration:
            self._unreachable[worker.name] = worker.registration
            logger.info(
                "Worker %(worker)s has never answered a status poll; polling it every %(interval)g s from now on: "
                "%(reason)s",
                {"worker": worker.name, "interval": interval, "reason": error},
            )
