"""The dashboard and the alerts of deploy/monitoring, and a real Prometheus that runs their queries."""

import json
import math
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import yaml

from tests.deploy.compose import ROOT, Compose
from tests.support.waiting import wait_until
from tests.system.processes import call

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


async def check_panels(cluster: Compose) -> None:
    """Assert that every panel has data, after requests of each kind. A model that loses its worker is in the alerts."""
    prometheus = Prometheus(cluster.prometheus_url)
    await wait_until(lambda: prometheus.targets() == {"controller": 3, "haproxy": 1}, "all targets are scraped")
    assert prometheus.alerts() == [alert["alert"] for alert in ALERTS]
    worker = {"worker_name": "http://127.0.0.1:1/retired", "check_heart_beat": False}
    status = {"model_names": ["retired"], "speed": 1, "queue_length": 0}
    assert call(f"{cluster.url}/register_worker", {**worker, "worker_status": status}) is None
    seen = 'controller_cluster_model_serving_workers{model="retired"}'
    await wait_until(partial(prometheus.has_data, seen), "Prometheus has seen the model")
    assert call(f"{cluster.url}/remove_worker", {"worker_name": worker["worker_name"]}) == {"exist": True}
    for path in ("get_worker_address", "worker_generate_stream", "worker_generate"):  # after the first scrape
        assert httpx.post(f"{cluster.url}/{path}", json={"model": "m", "prompt": "a"}, timeout=30.0).status_code == 200
    for title, expression in queries():
        await wait_until(partial(prometheus.has_data, expression), f"{title} has data: {expression}")
    [(_, connections)] = prometheus.query("haproxy_process_max_connections")
    assert float(connections) >= 8000
