"""Reads the gauges of an engine from its metrics, in the text format of Prometheus."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, NamedTuple

from prometheus_client.parser import text_string_to_metric_families

from controller.upstream.engines.reading import OtherShape, Reading, capacity, count, share

# The parser is written in Python, and its time grows with the square of a line's length. Engines stay below these
# limits: the gauges of a vLLM server with 64 data-parallel engines have about 80 KB.
_MAX_LINE: Final = 1024  # bytes
_MAX_BYTES: Final = 128 * 1024  # of all lines that are parsed
_MAX_VALUE: Final = 1e15
# A comment or a sample. An engine that was not used yet may have no samples, or an empty page.
_METRICS: Final = re.compile(
    rb"^(?:# (?:HELP|TYPE) |[a-zA-Z_:][a-zA-Z0-9_:]*(?:\{[^\n]*\})?[ \t]+[-+]?(?:[0-9.]|NaN|Inf))", re.MULTILINE
)
# Ranks that work on the same requests, and processes that report the same number. The other labels tell
# engines apart, whose requests are added up.
_COPIES: Final = frozenset({"tp_rank", "pp_rank", "moe_ep_rank", "pid"})
# SGLang repeats its totals for each priority. The total itself has an empty priority.
_PARTS: Final = "priority"


class Gauge(NamedTuple):
    """A gauge: its name, and the labels that its series must have."""

    name: str
    labels: Mapping[str, str] = {}


@dataclass(frozen=True)
class Gauges:
    """Reads an engine's metrics. Each field lists the names of one gauge, the newest name first.

    running, waiting: both are needed for a load. `active` may replace `waiting`.
    full: number of requests that wait for room. By default, all waiting requests do.
    active: number of all requests, for engines that do not count the waiting ones.
    awake: 1 for an engine that is not asleep.
    healthy: 1 for an engine that works.

    Raises OtherShape if a text is not one of metrics. A missing gauge is unknown.
    """

    running: Sequence[Gauge] = ()
    waiting: Sequence[Gauge] = ()
    full: Sequence[Gauge] = ()
    active: Sequence[Gauge] = ()
    kv_use: Sequence[Gauge] = ()
    capacity: Sequence[Gauge] = ()
    awake: Sequence[Gauge] = ()
    healthy: Sequence[Gauge] = ()

    def __post_init__(self) -> None:
        has_load = (bool(self.running), bool(self.waiting or self.active))
        if any(has_load) and not all(has_load):
            raise ValueError("Gauges of a load need `running`, and `waiting` or `active`: a part of it is no load.")

    def __call__(self, body: bytes) -> Reading:
        """Return what the metrics say."""
        series = self._series(body)
        running, waiting, active, full = (
            count(_sum(_values(series, gauges))) for gauges in (self.running, self.waiting, self.active, self.full)
        )
        if waiting is None and running is not None and active is not None and active >= running:
            waiting = active - running
        if full is None:
            full = waiting
        awake, healthy = _values(series, self.awake), _values(series, self.healthy)
        return Reading(
            problem="its engine processes are not healthy" if healthy and max(healthy) == 0 else "",
            asleep=max(awake) == 0 if awake else None,
            running=running,
            waiting=waiting,
            full=None if full is None else full > 0,
            kv_use=share(max(_values(series, self.kv_use), default=None)),
            capacity=capacity(_sum(_values(series, self.capacity))),
        )

    @cached_property
    def names(self) -> list[str]:
        """The names of all gauges."""
        load = (self.running, self.waiting, self.full, self.active, self.kv_use)
        state = (self.capacity, self.awake, self.healthy)
        return list(dict.fromkeys(gauge.name for gauges in (*load, *state) for gauge in gauges))

    @cached_property
    def _lines(self) -> re.Pattern[bytes]:
        names = b"|".join(re.escape(name.encode()) for name in self.names)
        return re.compile(rb"^(?:%s)[ \t{][^\n]*" % names, re.MULTILINE)

    def _series(self, body: bytes) -> "_Series":
        """Return the series of the wanted gauges. Only their lines are parsed: a page may have a megabyte of others."""
        lines = self._lines.findall(body)
        if not lines and body.strip() and not _METRICS.search(body, 0, _MAX_BYTES):
            raise OtherShape("has no metrics")
        if sum(map(len, lines)) > _MAX_BYTES or any(len(line) > _MAX_LINE for line in lines):
            return {}
        found: _Series = {}
        try:
            for family in text_string_to_metric_families(b"\n".join(lines).decode()):
                for sample in family.samples:
                    found.setdefault(sample.name, []).append((sample.labels, sample.value))
        except (ValueError, IndexError):
            return {}
        return found


_Series = dict[str, list[tuple[Mapping[str, str], float]]]


def _values(series: _Series, gauges: Sequence[Gauge]) -> list[float]:
    """Return the values of the first of the gauges that exists, one for each engine. No values if one is not usable."""
    for name, labels in gauges:
        by_engine: dict[frozenset[tuple[str, str]], float] = {}
        for found, value in series.get(name, ()):
            if found.get(_PARTS) or not labels.items() <= found.items():
                continue
            if not 0 <= value <= _MAX_VALUE:  # also NaN
                return []
            engine = frozenset(label for label in found.items() if label[0] not in _COPIES)
            by_engine[engine] = max(value, by_engine.get(engine, 0.0))
        if by_engine:
            return list(by_engine.values())
    return []


def _sum(values: Sequence[float]) -> float | None:
    return sum(values) if values else None
