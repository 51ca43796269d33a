"""Looks up known vulnerabilities of the pinned packages with pip-audit.

The look-up needs PyPI or OSV. If neither answers, this says so and exits with status 0, because nothing was found. It
exits with status 1 if a package has a vulnerability.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
SERVICES = ("pypi", "osv")
TIMEOUT = 300.0  # seconds for one service


class Verdict(NamedTuple):
    """The contents of a report.

    vulnerable: a sentence for each vulnerability.
    audited: the number of packages that the service knows.
    skipped: the names of those that it does not know.
    """

    vulnerable: list[str]
    audited: int
    skipped: list[str]


def verdict(report: dict[str, Any]) -> Verdict:
    """Read the JSON report of pip-audit."""
    packages = report["dependencies"]
    # pip-audit counts a package that it could not look up as one without vulnerabilities.
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    vulnerable = [
        f"{package['name']} {package['version']} has {found['id']}. "
        f"Fixed in: {', '.join(found['fix_versions']) or 'no version yet'}."
        for package in packages
        for found in package.get("vulns", ())
    ]
    return Verdict(vulnerable, len(packages) - len(skipped), skipped)


def report(service: str) -> dict[str, Any] | str:
    """Run pip-audit with a service. Return its report, or the reason why there is none."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", str(ROOT / "constraints.txt")]
    # The file lists all packages, including those that other packages need, so pip does not have to resolve anything.
    options = ["--no-deps", "--disable-pip", "--vulnerability-service", service, "--timeout", "15"]
    output = ["--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run([*command, *options, *output], capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return f"no result within {TIMEOUT:g} s"
    try:
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return (done.stderr.strip() or "no output").splitlines()[-1][:200]
    return found


def main() -> int:
    """Print the result of the first service that knows any of the packages. Return the exit status."""
    reasons = []
    for service in SERVICES:
        found = report(service)
        if isinstance(found, str):
            reasons.append(f"{service}: {found}")
            continue
        result = verdict(found)
        if not result.audited:
            reasons.append(f"{service}: it has none of the {len(result.skipped)} packages")
            continue
        print(f"{result.audited} packages looked up at {service}, {len(result.vulnerable)} known vulnerabilities")
        if result.skipped:
            print(f"NOT AUDITED: {', '.join(result.skipped)} ({service} does not know them)")
        for each in result.vulnerable:
            print(each, file=sys.stderr)
        return 1 if result.vulnerable else 0
    print("NOT AUDITED: no service could be asked for vulnerabilities.")
    for reason in reasons:
        print(f"  {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
