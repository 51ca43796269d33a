"""Explains which worker the next request of a model would get."""

from collections.abc import Sequence
from typing import Final, NamedTuple, assert_never

from controller.availability.batches import Batches
from controller.availability.snapshots import SnapshotManager
from controller.domain.cost import FAILING, FULL, cost
from controller.domain.dispatch import DispatchMethod, RankedWorker
from controller.domain.engine import Protocol, indexed_name
from controller.domain.errors import StoreError
from controller.domain.worker import Worker
from controller.settings import Settings
from controller.store.registry import Registry

_MAX_CANDIDATES: Final = 16


class Candidate(NamedTuple):
    """A worker that the next request may go to.

    state: "free", "full" if it has no free slot, or "failing". Each state comes after the ones before it.
    cost: what shortest_queue compares within a state. While the worker is free, it is the requests per unit of speed.
        While it is full, it is how long the next request waits, in units of the time of a request. None in the lottery.
    odds: the probability with which the lottery draws the worker. None with shortest_queue.
    """

    worker: RankedWorker
    state: str
    cost: float | None = None
    odds: float | None = None


class Explanation(NamedTuple):
    """The dispatch of the next request of a model, with the reasons.

    If engines and workers of FastChat's protocol serve the model, it is about the engines, as long as one of them is
    not draining. The gateway chooses them first.

    chosen: the name of the worker. "" in the lottery, and if the model has no worker.
    workers: how many live workers serve the model.
    candidates: the first of them, the best first.
    draining: the names of the draining workers, which get no requests.
    """

    model: str
    method: DispatchMethod
    chosen: str
    workers: int
    candidates: Sequence[Candidate]
    draining: Sequence[str]


class Explainer:
    """Explains dispatches without booking anything. It reads Redis two times, so both parts may differ by a moment."""

    def __init__(self, settings: Settings, registry: Registry, batches: Batches, snapshots: SnapshotManager) -> None:
        self._method = settings.dispatch_method
        self._registry = registry
        self._batches = batches
        self._snapshots = snapshots

    async def explain(self, *models: str) -> tuple[Explanation, float | None]:
        """Return the explanation, and the age in seconds of the snapshot that it came from.

        models: the models of a route. The first of them that has a worker for the request is explained, or the first.

        The age is None if it came from Redis. Raises StoreUnavailable if Redis is unavailable and there is no fresh
        snapshot.
        """
        age = None
        try:
            model, indexed, workers = _first_served(await self._batches.list_workers(), models)
            ranked = await self._snapshots.breaker.call(self._registry.rank_workers, indexed)
        except StoreError as error:
            snapshot, age = self._snapshots.get(error)
            model, _, workers = _first_served(snapshot.workers(snapshot.taken_at + age), models)
            ranked = _rank(workers)
        match self._method:
            case DispatchMethod.SHORTEST_QUEUE:
                candidates = [_compared(worker) for worker in ranked[:_MAX_CANDIDATES]]
                chosen = ranked[0].name if ranked else ""
            case DispatchMethod.LOTTERY:
                candidates, chosen = _drawn(_rank(workers)), ""
            case _:
                assert_never(self._method)
        draining = [worker.name for worker in workers if worker.draining]
        return Explanation(model, self._method, chosen, len(workers), candidates, draining), age


def _first_served(workers: Sequence[Worker], models: Sequence[str]) -> tuple[str, str, list[Worker]]:
    """Return the first model with a worker for the next request, or the first one, and the result of _serving()."""
    for model in models:
        indexed, serving = _serving(workers, model)
        if not all(worker.draining for worker in serving):
            return model, indexed, serving
    return models[0], *_serving(workers, models[0])


def _serving(workers: Sequence[Worker], model: str) -> tuple[str, list[Worker]]:
    """Return the name of a model in the indexes, and the workers that serve it under this name."""
    names = [indexed_name(model, protocol) for protocol in (Protocol.OPENAI, Protocol.FASTCHAT)]
    serving = {name: [worker for worker in workers if name in worker.indexed_models] for name in names}
    for name, found in serving.items():
        if not all(worker.draining for worker in found):
            return name, found
    return next(((name, found) for name, found in serving.items() if found), (names[-1], []))


def _rank(workers: Sequence[Worker]) -> list[RankedWorker]:
    """Return the workers that are not draining, the best first."""
    ranked = []
    for worker in workers:
        queue, speed, capacity = worker.status.queue_length, worker.status.speed, worker.status.capacity
        failing = bool(worker.failing)
        if not worker.draining:
            this = cost(queue, speed, queue, capacity, failing=failing)
            ranked.append(RankedWorker(worker.name, this, queue, worker.leased, capacity, speed, failing))
    return sorted(ranked, key=lambda worker: worker.cost)


def _compared(worker: RankedWorker) -> Candidate:
    """Return a worker with its cost, without what is added to it for its state."""
    within = worker.cost - FAILING if worker.failing else worker.cost
    is_full = within >= FULL
    state = "failing" if worker.failing else "full" if is_full else "free"
    return Candidate(worker, state, cost=within - FULL if is_full else within)


def _drawn(workers: Sequence[RankedWorker]) -> list[Candidate]:
    """Return the workers with the highest odds. Failing workers are drawn only if all are failing."""
    drawn = [worker for worker in workers if not worker.failing] or workers
    total = sum(worker.speed for worker in drawn)
    names = {worker.name for worker in drawn}
    candidates = [
        _compared(worker)._replace(cost=None, odds=worker.speed / total if worker.name in names else 0.0)
        for worker in workers
    ]
    return sorted(candidates, key=lambda candidate: -(candidate.odds or 0.0))[:_MAX_CANDIDATES]
