"""The counters and measurements of a replica, for GET /metrics."""

from controller.metrics.families import REFUSAL_LIMITS, Metrics
from controller.metrics.instruments import Counter, Gauge, Histogram
from controller.metrics.memory import MetricsMemory

__all__ = ["REFUSAL_LIMITS", "Counter", "Gauge", "Histogram", "Metrics", "MetricsMemory"]
