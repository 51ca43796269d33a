"""A snapshot of the live workers, from which a replica dispatches while Redis is unavailable."""

import heapq
from bisect import bisect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import accumulate
from typing import Generic, NamedTuple, TypeVar

from controller.domain.cost import cost
from controller.domain.engine import model_of
from controller.domain.worker import Worker

Result = TypeVar("Result")


class MaybeStale(NamedTuple, Generic[Result]):
    """A value that came from Redis or from a snapshot.

    snapshot_age: age of the snapshot in seconds. None if the value came from Redis.
    """

    value: Result
    snapshot_age: float | None = None


class Snapshot:
    """The live workers as Redis listed them at `taken_at`, and the requests dispatched from the snapshot since.

    While Redis is unavailable, it also has the failures that this replica has seen.

    taken_at: in seconds on the replica's monotonic clock.
    draw: returns a random number from 0 to 1.

    Models are keyed by their names in the indexes (controller/domain/engine.py). The snapshot itself never expires.
    SnapshotManager.get() decides how old it may be.
    """

    def __init__(self, workers: Sequence[Worker], taken_at: float, draw: Callable[[], float]) -> None:
        self.taken_at = taken_at
        self._workers = {worker.name: worker for worker in workers}
        self._queues = {worker.name: worker.status.queue_length for worker in workers}
        self._draw = draw
        self._serving: dict[str, list[str]] = {}  # by model
        for worker in workers:
            if worker.draining:
                continue
            for model in worker.indexed_models:
                self._serving.setdefault(model, []).append(worker.name)
        self._heaps: dict[str, list[tuple[float, float, str]]] = {}
        self._odds: dict[str, tuple[list[str], list[float]]] = {}

    def __len__(self) -> int:
        return len(self._workers)

    def serves(self, model: str) -> bool:
        """Return True if a worker serves the model and is not draining."""
        return model in self._serving

    def worker(self, name: str) -> Worker | None:
        """Return a worker, with the queue length that Redis listed. None if it is not in the snapshot."""
        return self._workers.get(name)

    @cached_property
    def failing_engines(self) -> Mapping[str, Sequence[str]]:
        """The engines that failed a request, by model. They get none while a ready worker serves the model."""
        failed = [
            worker
            for worker in self._workers.values()
            if worker.failing == "request" and worker.engine is not None and not worker.draining
        ]
        found: dict[str, list[str]] = {}
        if failed:
            ready = (worker for worker in self._workers.values() if not (worker.failing or worker.draining))
            served = {model for worker in ready for model in worker.indexed_models}
            for worker in failed:
                for model in served.intersection(worker.indexed_models):
                    found.setdefault(model_of(model), []).append(worker.name)
        return found

    def shortest_queue(self, model: str) -> str:
        """Choose the worker with the lowest cost and book it. Return "" if the model has no worker.

        Ties are broken at random. Redis breaks them by the least recent dispatch. Here, that rule would make all
        replicas choose the same worker, because each replica counts only its own dispatches.
        """
        if model not in self._serving:
            return ""
        heap = self._heaps.get(model)
        if heap is None:
            heap = self._heaps[model] = [self._entry(name) for name in self._serving[model]]
            heapq.heapify(heap)
        while heap[0][0] < self._cost(heap[0][2]):  # the worker was booked for another of its models
            heapq.heapreplace(heap, self._entry(heap[0][2]))
        name = heap[0][2]
        self._queues[name] += 1
        heapq.heapreplace(heap, self._entry(name))
        return name

    def fail(self, name: str, of_polls: bool = False) -> None:
        """Deprioritise a worker that failed while Redis was unavailable.

        of_polls: it did not answer a poll. Otherwise, it failed a request, and its answers to polls do not clear this.
        """
        worker = self._workers.get(name)
        if worker is not None and worker.failing != "request":
            self._set_failing(worker, "polls" if of_polls else "request")

    def clear_failure(self, name: str, of_polls: bool = False) -> None:
        """Clear the failure of a worker that served a request while Redis was unavailable, or answered a poll.

        of_polls: it answered a poll.
        """
        worker = self._workers.get(name)
        if worker is not None and worker.failing and (worker.failing == "polls" or not of_polls):
            self._set_failing(worker, "")

    def _set_failing(self, worker: Worker, failing: str) -> None:
        self._workers[worker.name] = replace(worker, failing=failing)
        vars(self).pop("failing_engines", None)
        for model in worker.indexed_models:
            self._heaps.pop(model, None)
            self._odds.pop(model, None)

    def lottery(self, model: str) -> str:
        """Draw a worker with odds proportional to speed. Return "" if the model has no worker.

        Failing workers are drawn only if all workers of the model are failing.
        """
        if model not in self._serving:
            return ""
        if model not in self._odds:
            serving = self._serving[model]
            names = [name for name in serving if not self._workers[name].failing] or serving
            self._odds[model] = names, list(accumulate(self._workers[name].status.speed for name in names))
        names, odds = self._odds[model]
        return names[min(bisect(odds, self._draw() * odds[-1]), len(names) - 1)]

    def find(self, model: str, excluded: Collection[str]) -> str:
        """Find a worker at random, and book nothing. Return "" if the model has no worker that is not excluded.

        Failing workers are found only if there are no others.
        """
        names = [name for name in self._serving.get(model, ()) if name not in excluded]
        names = [name for name in names if not self._workers[name].failing] or names
        return names[int(self._draw() * len(names)) % len(names)] if names else ""

    def list_models(self, multimodal: bool | None = None) -> list[str]:
        """Return the models as Registry.list_models() does."""
        return sorted(
            model
            for model, names in self._serving.items()
            if multimodal is None or any(self._workers[name].multimodal == multimodal for name in names)
        )

    def workers(self, now: float) -> list[Worker]:
        """Return the workers with the bookings made since the snapshot. expires_in is 0 if a heartbeat is overdue.

        now: in seconds on the replica's monotonic clock.
        """
        age = now - self.taken_at
        return [
            replace(
                worker,
                status=replace(worker.status, queue_length=self._queues[name]),
                heartbeat_age=worker.heartbeat_age + age,
                expires_in=None if worker.expires_in is None else max(0.0, worker.expires_in - age),
            )
            for name, worker in self._workers.items()
        ]

    def _entry(self, name: str) -> tuple[float, float, str]:
        return self._cost(name), self._draw(), name

    def _cost(self, name: str) -> float:
        worker = self._workers[name]
        status, queue = worker.status, self._queues[name]
        return cost(queue, status.speed, queue, status.capacity, failing=bool(worker.failing))
