"""Reads the metrics of a replica, in the text of GET /metrics."""

from prometheus_client.parser import text_string_to_metric_families

from controller.replica import Replica


def value(text: str, name: str, **labels: str) -> float:
    """Return the sum of the series of a metric that have these labels, among others. Fails if there is none."""
    found = [
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert found, f"there is no {name} with {labels}"
    return sum(found)


def dispatches(text: str, outcome: str) -> float:
    """Return the number of dispatches of all models with an outcome."""
    return value(text, "controller_dispatches_total", outcome=outcome)


def has_metric(replica: Replica, line: str) -> bool:
    """Return True if the text of a replica's metrics has this line, which is given without its prefix `controller_`."""
    return f"controller_{line}" in replica.metrics.render().decode()
