"""The metrics of the cluster, and those of this replica that are measured once a second."""

import asyncio
import contextlib
import heapq
import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.availability.known_models import KnownModels
from controller.availability.snapshots import SnapshotManager
from controller.domain.engine import model_of
from controller.domain.errors import StoreError
from controller.domain.worker import Worker
from controller.fleet import process
from controller.fleet.events import EventFeed
from controller.fleet.replicas import Replicas
from controller.metrics import Metrics
from controller.settings import Settings
from controller.store.registry import Registry

_INTERVAL: Final = 1.0
_CHECK_EVERY: Final = 10  # intervals between two looks at the memory of Redis
_MAX_MODELS: Final = 1_000
_MAX_WORKERS: Final = 1_000
_PREFIX: Final = "controller_cluster"


@dataclass
class _Load:
    """The workers of a model together. capacity: of those whose capacity is known, which are `sized`."""

    workers: int = 0
    serving: int = 0
    queue: int = 0
    leases: int = 0
    sized: int = 0
    capacity: int = 0
    queue_of_sized: int = 0

    def add(self, worker: Worker) -> None:
        """Add a worker. Draining workers still have requests, but no capacity for new ones."""
        self.workers += 1
        self.queue += worker.status.queue_length
        self.leases += worker.leased
        if worker.draining:
            return
        self.serving += not worker.failing
        if worker.status.capacity is not None:
            self.sized += 1
            self.capacity += worker.status.capacity
            self.queue_of_sized += worker.status.queue_length

    def merge(self, other: "_Load") -> None:
        """Add the workers of another load."""
        for counted in fields(self):
            setattr(self, counted.name, getattr(self, counted.name) + getattr(other, counted.name))

    @property
    def saturation(self) -> float:
        """Running and waiting requests per slot, of the workers whose capacity is known. 0 without any."""
        return self.queue_of_sized / self.capacity if self.capacity else 0.0

    def desired_workers(self, target: float) -> int:
        """Return how many workers of the same size would have the saturation `target`.

        If no capacity is known, it is the number of workers that there are.
        """
        if not self.capacity:
            return self.workers  # 0 of a model without a worker
        return max(1, math.ceil(self.queue / (target * self.capacity / self.sized)))


class Telemetry(Collector):
    """Measures this replica once a second, and reports the cluster as the replica's last snapshot of Redis shows it.

    Every replica reports the same figures of the cluster, so take the maximum of several replicas, not the sum. A model
    without a worker is reported with 0 for as long as it is known, even by a replica that has started since: an alert
    or an autoscaler needs the 0. Of more than 1,000 models, the first ones by name are reported.

    forwards: returns the number of requests that this replica is forwarding.
    """

    def __init__(
        self,
        settings: Settings,
        metrics: Metrics,
        snapshots: SnapshotManager,
        known: KnownModels,
        replicas: Replicas,
        events: EventFeed,
        registry: Registry,
        forwards: Callable[[], int],
    ) -> None:
        self._target = settings.target_utilization
        self._has_worker_labels = settings.worker_metrics == "on"
        self._metrics = metrics
        self._snapshots = snapshots
        self._known = known
        self._replicas = replicas
        self._events = events
        self._registry = registry
        self._forwards = forwards
        self._measured_at = time.monotonic()
        metrics.started_at.set(round(time.time(), 1))

    async def run(self) -> None:
        """Measure until cancelled."""
        for number in itertools.count():
            self.measure()
            if number % _CHECK_EVERY == 0:
                with contextlib.suppress(StoreError):  # the circuit breaker has logged it
                    await self._snapshots.breaker.call(self._registry.check)
            await asyncio.sleep(_INTERVAL)

    def measure(self) -> None:
        """Measure this replica now."""
        metrics, now = self._metrics, time.monotonic()
        is_available = self._snapshots.breaker.reason is None
        if not is_available:
            metrics.degraded_seconds.inc(now - self._measured_at)
        self._measured_at = now
        metrics.store_available.set(is_available)
        metrics.can_dispatch.set(self._snapshots.can_dispatch)
        metrics.snapshot_age.set(self._snapshots.age)
        metrics.forwards.set(self._forwards())
        metrics.followers.set(self._events.followers)
        metrics.cpu_seconds.set(process.cpu_seconds())
        metrics.memory_bytes.set(process.resident_memory() or 0)
        metrics.open_files.set(process.open_files() or 0)
        models = [model_of(model) for model in self._snapshots.models(None)]
        metrics.dispatches.know([*models, *self._known.missing()])

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics of the cluster for prometheus_client."""
        workers = self._snapshots.workers()
        yield from self._collect_models(workers)
        states = GaugeMetricFamily(f"{_PREFIX}_workers", "Live workers, by state.", labels=["state"])
        for state, count in _states(workers).items():
            states.add_metric([state], count)
        yield states
        yield GaugeMetricFamily(f"{_PREFIX}_replicas", "Live replicas.", self._replicas.last_count)
        yield GaugeMetricFamily(
            f"{_PREFIX}_oldest_heartbeat_seconds",
            "Age of the oldest heartbeat of a live worker. 0 without workers.",
            max((worker.heartbeat_age for worker in workers if worker.check_heart_beat), default=0.0),
        )
        used, limit = self._registry.memory
        yield GaugeMetricFamily(f"{_PREFIX}_redis_memory_bytes", "Memory that Redis uses. 0 if it is unknown.", used)
        yield GaugeMetricFamily(
            f"{_PREFIX}_redis_max_memory_bytes", "Limit of the memory of Redis. 0 if there is none.", limit
        )
        if self._has_worker_labels:
            yield from _collect_workers(workers[:_MAX_WORKERS])

    def _collect_models(self, workers: Sequence[Worker]) -> Iterator[Metric]:
        by_models: dict[tuple[str, ...], _Load] = {}  # many workers have the same hundreds of models
        for worker in workers:
            by_models.setdefault(worker.status.model_names, _Load()).add(worker)
        named = {model for models in by_models for model in models}
        loads = {model: _Load() for model in heapq.nsmallest(_MAX_MODELS, named.union(self._known.missing()))}
        for models, load in by_models.items():
            for model in models:
                if model in loads:
                    loads[model].merge(load)
        families = {
            "workers": ("model_workers", "Live workers of a model."),
            "serving": ("model_serving_workers", "Workers of a model that are neither draining nor failing."),
            "queue": ("model_queue_length", "Running and waiting requests of the workers of a model."),
            "leases": ("model_leases", "Active leases of the workers of a model."),
            "capacity": ("model_capacity", "Requests that the workers of a model run at once, as far as it is known."),
            "saturation": (
                "model_saturation",
                "Running and waiting requests per slot, of the workers whose capacity is known.",
            ),
        }
        for attribute, (name, text) in families.items():
            family = GaugeMetricFamily(f"{_PREFIX}_{name}", text, labels=["model"])
            for model, load in loads.items():
                family.add_metric([model], getattr(load, attribute))
            yield family
        desired = GaugeMetricFamily(
            "controller_desired_workers",
            "Workers that a model needs for the saturation --target-utilization, for autoscalers.",
            labels=["model"],
        )
        for model, load in loads.items():
            desired.add_metric([model], load.desired_workers(self._target))
        yield desired


def _states(workers: Sequence[Worker]) -> dict[str, int]:
    counts = dict.fromkeys(("serving", "failing", "draining", "drained"), 0)
    for worker in workers:
        if worker.draining:
            counts["drained" if worker.drained else "draining"] += 1
        else:
            counts["failing" if worker.failing else "serving"] += 1
    return counts


def _collect_workers(workers: Sequence[Worker]) -> Iterator[Metric]:
    queues = GaugeMetricFamily(
        f"{_PREFIX}_worker_queue_length", "Running and waiting requests of a worker.", labels=["worker"]
    )
    capacities = GaugeMetricFamily(
        f"{_PREFIX}_worker_capacity", "Requests that a worker runs at once, if it is known.", labels=["worker"]
    )
    ages = GaugeMetricFamily(
        f"{_PREFIX}_worker_heartbeat_seconds", "Age of the heartbeat of a worker.", labels=["worker"]
    )
    for worker in workers:
        queues.add_metric([worker.name], worker.status.queue_length)
        ages.add_metric([worker.name], worker.heartbeat_age)
        if worker.status.capacity is not None:
            capacities.add_metric([worker.name], worker.status.capacity)
    yield from (queues, capacities, ages)
