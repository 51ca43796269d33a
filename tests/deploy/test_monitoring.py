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


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_use_metrics_that_exist_and_are_in_the_runbook(alert: dict[str, object]) -> None:
    documented = set(re.findall(r"(?m)^\| `(\w+)`", (ROOT / "docs/reference/metrics.md").read_text()))
    for used in re.findall(r"controller_\w+", str(alert["expr"])):
        assert used in documented or used.removesuffix("_bucket") in documented, used
    assert f"\n## {alert['alert']}\n" in (ROOT / "docs/guides/runbook.md").read_text()
