"""The dashboard and the alerts of deploy/monitoring, and a real Prometheus that runs their queries."""

import json
import math
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from typing import Any

import yaml

from tests.deploy.compose import ROOT

MONITORING = ROOT / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/controller.json").read_text())
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


def queries() -> Iterator[tuple[str, str]]:
    """Yield the title of a panel and a query, for each query of the dashboard. Grafana's variables have values."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "10m").replace("$model", ".*")


class Prometheus:
    """A client of the HTTP API of Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url

    def _get(self, path: str, **parameters: str) -> Any:
        with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}") as response:
            return json.load(response)["data"]

    def targets(self) -> Counter[str]:
        """Return how many targets of each job are scraped without an error."""
        try:
            targets = self._get("targets")["activeTargets"]
        except OSError:  # Prometheus is starting
            return Counter()
        return Counter(target["labels"]["job"] for target in targets if target["health"] == "up")

    def alerts(self) -> list[str]:
        """Return the names of the loaded alerts."""
        return [rule["name"] for group in self._get("rules")["groups"] for rule in group["rules"]]

    def query(self, expression: str) -> list[tuple[dict[str, str], str]]:
        """Return the labels and the value of each series of an instant query."""
        return [(series["metric"], series["value"][1]) for series in self._get("query", query=expression)["result"]]

    def has_data(self, expression: str) -> bool:
        """Return True if a query returns a number, which is not the case for a quantile of nothing."""
        return any(not math.isnan(float(value)) for _, value in self.query(expression))
