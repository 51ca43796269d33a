"""The alerts and the dashboard: their tests pass, they use metrics that exist, and the runbook has each alert."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.monitoring.grafana import dashboard
from tests.deploy.compose import ROOT
from tests.deploy.dashboards import ALERTS, DASHBOARD, MONITORING, queries

DOCUMENTED = set(re.findall(r"(?m)^\| `(\w+)`", (ROOT / "docs/reference/metrics.md").read_text()))


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
@pytest.mark.parametrize("command", [("check", "rules", "alerts.yaml"), ("test", "rules", "alerts-test.yaml")])
def test_promtool_accepts_the_alerts(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=MONITORING, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_in_which_it_fires() -> None:
    tests = yaml.safe_load((MONITORING / "alerts-test.yaml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {alert["alert"] for alert in ALERTS}


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool is not installed")
def test_promtool_accepts_the_configuration(tmp_path: Path) -> None:
    (tmp_path / "metrics-token").touch()
    text = (MONITORING / "prometheus.yaml").read_text().replace("/etc/prometheus/", f"{MONITORING}/")
    text = text.replace("/run/secrets/", f"{tmp_path}/")
    (tmp_path / "prometheus.yaml").write_text(text)
    command = ("promtool", "check", "config", tmp_path / "prometheus.yaml")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_scaled_object_asks_for_a_metric_that_exists() -> None:
    [trigger] = yaml.safe_load((MONITORING / "scaled-object.yaml").read_text())["spec"]["triggers"]
    [metric] = re.findall(r"controller_\w+", trigger["metadata"]["query"])
    assert f"| `{metric}` | gauge | `model` |" in (ROOT / "docs/reference/metrics.md").read_text()


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_use_metrics_that_exist_and_are_in_the_runbook(alert: dict[str, object]) -> None:
    assert_documented(str(alert["expr"]))
    assert f"\n## {alert['alert']}\n" in (ROOT / "docs/guides/runbook.md").read_text()


def assert_documented(expression: str) -> None:
    for used in re.findall(r"controller_\w+", expression):
        assert used in DOCUMENTED or used.removesuffix("_bucket") in DOCUMENTED, used


def test_the_dashboard_is_generated() -> None:
    assert dashboard.text() == dashboard.FILE.read_text(), "run python -m deploy.monitoring.grafana.dashboard"


def test_grafana_knows_all_fields_of_the_dashboard() -> None:
    """The model of the SDK keeps the fields that Grafana has, and drops others."""
    register_default_plugins()
    read = JSONEncoder().encode(Dashboard.from_json(DASHBOARD))
    assert yaml.safe_load(read) == DASHBOARD
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids) > 30


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    """tests/deploy/test_compose.py runs the queries."""
    found = list(queries())
    assert len(found) > 30
    for _, expression in found:
        assert_documented(expression)


def test_the_dashboard_names_sections_of_the_runbook() -> None:
    runbook = (ROOT / "docs/guides/runbook.md").read_text()
    named = {
        name for panel in DASHBOARD["panels"] for name in re.findall(r"Runbook: (\w+)", panel.get("description", ""))
    }
    assert named == {alert["alert"] for alert in ALERTS}
    assert all(f"\n## {name}\n" in runbook for name in named)


def test_grafana_is_provisioned_with_the_data_source_and_the_dashboard() -> None:
    compose = yaml.safe_load((ROOT / "deploy/docker-compose.yml").read_text())["services"]["grafana"]
    folder = MONITORING / "grafana/provisioning"
    [provider] = yaml.safe_load((folder / "dashboards/controller.yaml").read_text())["providers"]
    home = Path(compose["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert f"./monitoring/grafana/{dashboard.FILE.name}:{home}:ro" in compose["volumes"]
    [source] = yaml.safe_load((folder / "datasources/prometheus.yaml").read_text())["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    interval = yaml.safe_load((MONITORING / "prometheus.yaml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == interval
