"""All metrics of a replica, in the text format of Prometheus."""

import platform
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from controller import __version__
from controller.metrics import by_model
from controller.metrics.instruments import FAST, SIZES, SLOW, Counter, Gauge, Histogram, Labelled, OwnCounter
from controller.metrics.memory import CELLS, MetricsMemory, Row

# The limits that docs/guides/limits.md describes.
REFUSAL_LIMITS: Final = (
    "connections",
    "head_time",
    "head_size",
    "body_time",
    "send_time",
    "body_memory",
    "forwards",
    "workers",
    "leases",
    "registrations",
)
_OUTCOMES: Final = ("complete", "broken", "no_worker", "client_gone")
_NOT_SHARED: Final = (
    "# These are the counts of one replica only, because the {} replicas of this controller cannot share memory.\n"
)


class _Family(NamedTuple):
    """A metric with a series for each value of `label`. Without a label, the only value is "".

    kind: the class of its instruments.
    first: the first cell of the first series.
    bounds: of a histogram.
    """

    kind: type[object]
    name: str
    text: str
    label: str
    values: tuple[str, ...]
    first: int
    bounds: Sequence[float] = ()

    @property
    def width(self) -> int:
        """The cells of a series: of a histogram, the ranges, one without an upper bound, and the sum."""
        return len(self.bounds) + 2 if self.bounds else 1


class Metrics(Collector):
    """The counters and measurements of one replica.

    memory: shared with the other replicas of the `serve`, so that each can report the sums. Without it, this replica
        reports its own counts.
    slot: number of this replica. A replica that replaces another one continues its counts.
    replicas: number of replicas.
    method: how workers are chosen, for the label of dispatches.
    """

    def __init__(
        self,
        memory: MetricsMemory | None = None,
        slot: int = 0,
        replicas: int = 1,
        method: str = "shortest_queue",
    ) -> None:
        self._rows: Sequence[Row] = memory.rows() if memory else [Row.private()]
        self._row = self._rows[slot if memory else 0]
        self._preface = _NOT_SHARED.format(replicas) if replicas > 1 and not memory else ""
        self._method = method
        self._families: list[_Family] = []
        names = by_model.ModelNames(self._row)
        self.dispatches = by_model.ModelCounters(self._row, names, by_model.DISPATCHES, 0)
        self._first_of_gateway = by_model.cells_needed(by_model.DISPATCHES)
        self.gateway_requests = by_model.ModelCounters(
            self._row, names, by_model.GATEWAY_REQUESTS, self._first_of_gateway
        )
        self._first_of_affinity = self._first_of_gateway + by_model.cells_needed(by_model.GATEWAY_REQUESTS)
        self.affinity = by_model.ModelCounters(self._row, names, by_model.AFFINITY, self._first_of_affinity)
        self._used = self._first_of_affinity + by_model.cells_needed(by_model.AFFINITY)
        self._registry = CollectorRegistry()
        self.dispatch_batches = self._counter("dispatch_batches", "Calls to Redis that dispatched requests.")
        self.batch_size = self._histogram("dispatch_batch_size", "Requests that one call to Redis dispatched.", SIZES)
        self.dispatch_time = self._histogram(
            "dispatch_seconds", "Time from a request for a worker until one is chosen, in this process.", FAST
        )
        self._store_calls: Labelled[Histogram] | None = None
        heartbeats = self._counters(
            "heartbeats", "Heartbeats received.", outcome=("known", "unknown", "store_unavailable")
        )
        self.heartbeats_known = heartbeats.labels("known")
        self.heartbeats_unknown = heartbeats.labels("unknown")
        self.heartbeats_store_unavailable = heartbeats.labels("store_unavailable")
        polls = self._counters("polls", "Status polls of workers.", outcome=("answered", "failed"))
        self.polls_answered = polls.labels("answered")
        self.polls_failed = polls.labels("failed")
        self.registrations = self._counters(
            "registrations", "Registrations of workers.", outcome=("new", "again", "failed")
        )
        self.removals = self._counters("removals", "Removals of workers.", reason=("request", "refresh", "expired"))
        self.parent_heartbeats = self._counters(
            "parent_heartbeats", "Heartbeats and registrations sent to parents.", outcome=("accepted", "failed")
        )
        self.streams = self._counters("streams", "Forwarded streams.", outcome=_OUTCOMES)
        self.calls = self._counters("calls", "Other forwarded requests.", outcome=_OUTCOMES)
        self.first_byte_time = self._histogram(
            "forward_first_byte_seconds", "Time until the first piece of a forwarded response has arrived.", SLOW
        )
        self.forward_time = self._histogram("forward_seconds", "Time until a forwarded request has ended.", SLOW)
        self.forwarded_bytes = self._counter("forwarded_bytes", "Bytes of bodies that workers sent to clients.")
        self.forward_retries = self._counter(
            "forward_retries", "Retries of forwarded requests on another worker, including those after a 5xx."
        )
        self.refused_retries = self._counter(
            "forward_refused_retries", "Retries of requests to engines that --retry-budget did not allow."
        )
        self.store_failures = self._counter("store_failures", "Failed calls to Redis.")
        self.store_clock_jumps = self._counters(
            "store_clock_jumps",
            "Changes of the clock of Redis by more than a second.",
            direction=("ahead", "back"),
        )
        self.store_outages = self._counter("store_outages", "Times that Redis became unavailable.")
        self.degraded_seconds = self._counter("degraded_seconds", "Time in which a replica did not use Redis.")
        self.refusals = self._counters(
            "refusals",
            "Requests and connections that were refused because a limit was reached.",
            limit=REFUSAL_LIMITS,
        )
        self.store_available = self._gauge("replica_store_available", "1 if the replica uses Redis, otherwise 0.")
        self.can_dispatch = self._gauge(
            "replica_can_dispatch", "1 if the replica dispatches, with Redis or from a fresh snapshot, otherwise 0."
        )
        self.snapshot_age = self._gauge("replica_snapshot_age_seconds", "Age of the replica's snapshot of the workers.")
        self.forwards = self._gauge("replica_forwards", "Requests that the replica is forwarding.")
        self.followers = self._gauge("replica_event_followers", "Clients that follow the events at the replica.")
        self.cpu_seconds = self._own_counter("replica_cpu_seconds", "Processor time of the replica's process.")
        self.memory_bytes = self._gauge("replica_resident_memory_bytes", "Memory of the replica's process.")
        self.open_files = self._gauge("replica_open_fds", "Open files and connections of the replica's process.")
        self.started_at = self._gauge("replica_start_time_seconds", "When the replica started, in seconds since 1970.")
        self._registry.register(self)

    def measure_scripts(self, scripts: Sequence[str]) -> None:
        """Measure the calls to Redis that run these scripts. All replicas of a `serve` pass the same ones."""
        if self._store_calls is None:
            self._store_calls = self._histograms(
                "store_call_seconds", "Time of the calls to Redis that run a script.", FAST, script=tuple(scripts)
            )

    def observe_script(self, script: str, seconds: float) -> None:
        """Record how long a call to Redis took that ran a script."""
        if self._store_calls is not None:
            self._store_calls.labels(script).observe(seconds)

    def add(self, collector: Collector) -> None:
        """Report the metrics of another collector, too."""
        self._registry.register(collector)

    def collect(self) -> Iterator[Metric]:
        """Yield the metrics for prometheus_client. Counters are sums over the replicas that share the memory."""
        yield from self._collect_models()
        for family in self._families:
            label = [family.label] if family.label else []
            if family.kind in (Gauge, OwnCounter):
                yield self._collect_of_replicas(family)
            elif family.kind is Histogram:
                yield self._collect_histogram(family, label)
            else:
                counters = CounterMetricFamily(f"controller_{family.name}", family.text, labels=label)
                for number, value in enumerate(family.values):
                    counters.add_metric([value] if label else [], self._sum(family.first + number))
                yield counters
        build = GaugeMetricFamily(
            "controller_build_info",
            "1, with the versions of the controller and of Python.",
            labels=["version", "python"],
        )
        build.add_metric([__version__, platform.python_version()], 1)
        yield build

    def count_dispatches(self) -> float:
        """Return the number of requests for a worker, of all replicas that share the memory."""
        return sum(by_model.sums(self._rows, by_model.DISPATCHES, 0).values())

    def render(self) -> bytes:
        """Return all metrics as text."""
        return self._preface.encode() + generate_latest(self._registry)

    def _collect_models(self) -> Iterator[Metric]:
        found = CounterMetricFamily(
            "controller_dispatches", "Requests for a worker.", labels=["model", "method", "outcome"]
        )
        for (model, outcome), count in by_model.sums(self._rows, by_model.DISPATCHES, 0).items():
            found.add_metric([model, self._method, outcome], count)
        yield found
        found = CounterMetricFamily(
            "controller_gateway_requests", "Requests to engines, by OpenAI's protocol.", labels=["model", "outcome"]
        )
        first = self._first_of_gateway
        for (model, outcome), count in by_model.sums(self._rows, by_model.GATEWAY_REQUESTS, first).items():
            found.add_metric([model, outcome], count)
        yield found
        found = CounterMetricFamily(
            "controller_dispatch_affinity",
            "Dispatches with an affinity, by whether a remembered worker was chosen. Only models that have some.",
            labels=["model", "outcome"],
        )
        counts = by_model.sums(self._rows, by_model.AFFINITY, self._first_of_affinity)
        used = {model for (model, _), count in counts.items() if count}
        for (model, outcome), count in counts.items():
            if model in used:
                found.add_metric([model, outcome], count)
        yield found

    def _collect_of_replicas(self, family: _Family) -> Metric:
        kind = GaugeMetricFamily if family.kind is Gauge else CounterMetricFamily
        found = kind(f"controller_{family.name}", family.text, labels=["replica"])
        for slot, row in enumerate(self._rows):
            found.add_metric([str(slot)], row.cells[family.first])
        return found

    def _collect_histogram(self, family: _Family, label: Sequence[str]) -> Metric:
        histogram = HistogramMetricFamily(f"controller_{family.name}", family.text, labels=label)
        for number, value in enumerate(family.values):
            first = family.first + number * family.width
            count = 0.0
            buckets = []
            for place, bound in enumerate([*family.bounds, float("inf")]):
                count += self._sum(first + place)
                buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", count))
            histogram.add_metric([value] if label else [], buckets, self._sum(first + family.width - 1))
        return histogram

    def _sum(self, cell: int) -> float:
        return sum(row.cells[cell] for row in self._rows)

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(self._row.cells, self._add(Counter, name, text, "", ("",))[0])

    def _counters(self, name: str, text: str, **label: tuple[str, ...]) -> Labelled[Counter]:
        [(key, values)] = label.items()
        cells = self._add(Counter, name, text, key, values)
        return Labelled({value: Counter(self._row.cells, cell) for value, cell in zip(values, cells, strict=True)})

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(self._row.cells, self._add(Gauge, name, text, "replica", ("",))[0])

    def _own_counter(self, name: str, text: str) -> OwnCounter:
        return OwnCounter(self._row.cells, self._add(OwnCounter, name, text, "replica", ("",))[0])

    def _histogram(self, name: str, text: str, bounds: Sequence[float]) -> Histogram:
        return Histogram(self._row.cells, self._add(Histogram, name, text, "", ("",), bounds)[0], bounds)

    def _histograms(
        self, name: str, text: str, bounds: Sequence[float], **label: tuple[str, ...]
    ) -> Labelled[Histogram]:
        [(key, values)] = label.items()
        cells = self._add(Histogram, name, text, key, values, bounds)
        return Labelled(
            {value: Histogram(self._row.cells, cell, bounds) for value, cell in zip(values, cells, strict=True)}
        )

    def _add(
        self,
        kind: type[object],
        name: str,
        text: str,
        label: str,
        values: tuple[str, ...],
        bounds: Sequence[float] = (),
    ) -> list[int]:
        """Give each value of a label its own cells of the row. Return the first cell of each."""
        family = _Family(kind, name, text, label, values, self._used, bounds)
        self._families.append(family)
        self._used += family.width * len(values)
        if self._used > CELLS:
            raise RuntimeError(f"{name} does not fit into the {CELLS} cells of a row")
        return [family.first + number * family.width for number in range(len(values))]
