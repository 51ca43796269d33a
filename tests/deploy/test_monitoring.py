"""The alerts for Prometheus: their unit tests pass, they use metrics that exist, and the runbook has each of them."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
ALERTS = [
    rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]
]


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
    text = (MONITORING / "prometheus.yaml").read_text().replace("/etc/prometheus/", f"{MONITORING}/")
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
    documented = set(re.findall(r"(?m)^\| `(\w+)`", (ROOT / "docs/reference/metrics.md").read_text()))
    for used in re.findall(r"controller_\w+", str(alert["expr"])):
        assert used in documented or used.removesuffix("_bucket") in documented, used
    assert f"\n## {alert['alert']}\n" in (ROOT / "docs/guides/runbook.md").read_text()
