"""Counters for GET /metrics, in the text format of Prometheus."""

import errno
import mmap
import os
import tempfile
from collections.abc import Iterator, Sequence
from multiprocessing.reduction import DupFd
from typing import Any, Final, TypeAlias

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

_ROW_BYTES: Final = 4096
_CELL_BYTES: Final = 8  # a double
_NOT_SHARED: Final = (
    "# These are the counts of one replica only, because the {} replicas of this controller cannot share memory.\n"
)

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

Row: TypeAlias = "memoryview[float]"


class CounterMemory:
    """Memory that the replicas of one `serve` share, with a row of counters for each replica.

    The memory is a file without a name, so it cannot be deleted. On Linux it needs no disk. It is freed when the last
    process closes it. The supervisor creates it and passes it to each replica. Raises OSError if it cannot be created.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._descriptor = _nameless_file(replicas * _ROW_BYTES)

    def __getstate__(self) -> dict[str, Any]:
        return {"_replicas": self._replicas, "_descriptor": DupFd(self._descriptor)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._replicas = state["_replicas"]
        self._descriptor = state["_descriptor"].detach()

    def rows(self) -> list[Row]:
        """Return the rows of all replicas. A replica writes only to its own row."""
        cells = memoryview(mmap.mmap(self._descriptor, self._replicas * _ROW_BYTES)).cast("d")
        width = _ROW_BYTES // _CELL_BYTES
        return [cells[slot * width : (slot + 1) * width] for slot in range(self._replicas)]


def _nameless_file(size: int) -> int:
    """Open a file without a name and reserve its space. Writing to a mapped page without space kills the process."""
    try:
        descriptor = os.memfd_create("controller-metrics")
    except (AttributeError, OSError):  # not Linux, or a sandbox forbids the call
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        _reserve(descriptor, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _reserve(descriptor: int, size: int) -> None:
    if os.write(descriptor, bytes(size)) < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class Counter:
    """A number that only grows."""

    __slots__ = ("_cell", "_row")

    def __init__(self, row: Row, cell: int) -> None:
        self._row = row
        self._cell = cell

    def inc(self, amount: int = 1) -> None:
        """Add to the counter."""
        self._row[self._cell] += amount


class LabelledCounter:
    """A counter for each value of a label."""

    def __init__(self, counters: dict[str, Counter]) -> None:
        self._counters = counters

    def labels(self, value: str) -> Counter:
        """Return the counter for a value of the label."""
        return self._counters[value]


class Metrics(Collector):
    """The counters of one replica.

    memory: shared with the other replicas of the `serve`, so that each can report the sums. Without it, this replica
        reports its own counts.
    slot: number of this replica. A replica that replaces another one continues its counts.
    replicas: number of replicas.
    """

    def __init__(self, memory: CounterMemory | None = None, slot: int = 0, replicas: int = 1) -> None:
        self._rows: Sequence[Row] = memory.rows() if memory else [memoryview(bytearray(_ROW_BYTES)).cast("d")]
        self._row = self._rows[slot if memory else 0]
        self._preface = _NOT_SHARED.format(replicas) if replicas > 1 and not memory else ""
        self._families: list[tuple[str, str, str, tuple[str, ...]]] = []
        self._cells = 0
        self._registry = CollectorRegistry()
        dispatches = self._labelled(
            "dispatches",
            "Requests for a worker.",
            outcome=("chosen", "no_worker", "degraded", "store_unavailable", "refused"),
        )
        self.dispatches_chosen = dispatches.labels("chosen")
        self.dispatches_no_worker = dispatches.labels("no_worker")
        self.dispatches_degraded = dispatches.labels("degraded")
        self.dispatches_store_unavailable = dispatches.labels("store_unavailable")
        self.dispatches_refused = dispatches.labels("refused")
        self.dispatch_batches = self._counter("dispatch_batches", "Calls to Redis that dispatched requests.")
        heartbeats = self._labelled(
            "heartbeats", "Heartbeats received.", outcome=("known", "unknown", "store_unavailable")
        )
        self.heartbeats_known = heartbeats.labels("known")
        self.heartbeats_unknown = heartbeats.labels("unknown")
        self.heartbeats_store_unavailable = heartbeats.labels("store_unavailable")
        polls = self._labelled("polls", "Status polls of workers.", outcome=("answered", "failed"))
        self.polls_answered = polls.labels("answered")
        self.polls_failed = polls.labels("failed")
        self.registrations = self._labelled(
            "registrations", "Registrations of workers.", outcome=("new", "again", "failed")
        )
        self.removals = self._labelled("removals", "Removals of workers.", reason=("request", "refresh", "expired"))
        outcomes = ("complete", "broken", "no_worker", "client_gone")
        self.streams = self._labelled("streams", "Forwarded streams.", outcome=outcomes)
        self.calls = self._labelled("calls", "Other forwarded requests.", outcome=outcomes)
        self.forward_retries = self._counter(
            "forward_retries", "Retries of forwarded requests on another worker, also after a 5xx."
        )
        self.store_failures = self._counter("store_failures", "Failed calls to Redis.")
        self.store_clock_jumps = self._labelled(
            "store_clock_jumps",
            "Changes of the clock of Redis by more than a second.",
            direction=("ahead", "back"),
        )
        self.store_outages = self._counter("store_outages", "Times that Redis became unavailable.")
        self.refusals = self._labelled(
            "refusals",
            "Requests and connections that were refused because a limit was reached.",
            limit=REFUSAL_LIMITS,
        )
        self._registry.register(self)

    def _counter(self, name: str, text: str) -> Counter:
        return self._add(name, text, "", ("",))[0]

    def _labelled(self, name: str, text: str, **label: tuple[str, ...]) -> LabelledCounter:
        [(key, values)] = label.items()
        return LabelledCounter(dict(zip(values, self._add(name, text, key, values), strict=True)))

    def _add(self, name: str, text: str, label: str, values: tuple[str, ...]) -> list[Counter]:
        """Give each value of a label its own cell of the row."""
        self._families.append((name, text, label, values))
        first, self._cells = self._cells, self._cells + len(values)
        return [Counter(self._row, cell) for cell in range(first, self._cells)]

    def collect(self) -> Iterator[CounterMetricFamily]:
        """Yield the counters for prometheus_client, as sums over the replicas that share the memory."""
        sums = (sum(row[cell] for row in self._rows) for cell in range(self._cells))
        for name, text, label, values in self._families:
            family = CounterMetricFamily(f"controller_{name}", text, labels=[label] if label else [])
            for value in values:
                family.add_metric([value] if label else [], next(sums))
            yield family

    def render(self) -> bytes:
        """Return all counters as text."""
        return self._preface.encode() + generate_latest(self._registry)
