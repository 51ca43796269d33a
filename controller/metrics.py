"""What is counted, for GET /metrics in the text format of Prometheus."""

from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector


class Metrics:
    """The counters of one replica.

    shared_dir is the directory in which the replicas of one `serve` keep their counters, so that any of them
    can tell the sum; None for a replica on its own.
    """

    def __init__(self, shared_dir: Path | None = None) -> None:
        self._shared_dir = shared_dir
        self._registry = CollectorRegistry()
        dispatches = self._counter("dispatches", "Answers to requests for a worker.", "outcome")
        self.dispatches_chosen = dispatches.labels("chosen")
        self.dispatches_no_worker = dispatches.labels("no_worker")
        self.dispatches_degraded = dispatches.labels("degraded")
        self.dispatches_store_unavailable = dispatches.labels("store_unavailable")
        self.dispatch_batches = self._counter("dispatch_batches", "Calls to the store that chose workers.")
        heartbeats = self._counter("heartbeats", "Heartbeats received.", "outcome")
        self.heartbeats_known = heartbeats.labels("known")
        self.heartbeats_unknown = heartbeats.labels("unknown")
        self.heartbeats_store_unavailable = heartbeats.labels("store_unavailable")
        polls = self._counter("polls", "Workers asked for their queue length.", "outcome")
        self.polls_answered = polls.labels("answered")
        self.polls_failed = polls.labels("failed")
        self.registrations = self._counter("registrations", "Workers registered.", "outcome")
        self.removals = self._counter("removals", "Workers removed.", "reason")
        self.streams = self._counter("streams", "Streams forwarded.", "outcome")
        self.calls = self._counter("calls", "Other requests forwarded.", "outcome")
        self.forward_retries = self._counter("forward_retries", "Requests that went to another worker than the first.")
        self.store_failures = self._counter("store_failures", "Calls that the store did not serve.")
        self.store_clock_jumps = self._counter(
            "store_clock_jumps", "Times that the clock of the store was set by more than a second.", "direction"
        )
        self.store_outages = self._counter("store_outages", "Times that the store stopped serving.")

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"controller_{name}", text, labels, registry=self._registry)

    def render(self) -> bytes:
        """All counters, summed over the replicas that share a directory."""
        if self._shared_dir is None:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        # prometheus_client gives this class no types
        MultiProcessCollector(registry, path=str(self._shared_dir))  # type: ignore[no-untyped-call]
        return generate_latest(registry)
