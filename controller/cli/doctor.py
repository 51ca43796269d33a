"""The command `controller doctor`: asks a controller for facts, and judges them."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.cli.api import request
from controller.cli.checks.engines import check_engines
from controller.cli.checks.finding import Finding, Level, has_problem, ok, problem, unknown, warning
from controller.cli.checks.replicas import check_heartbeats, check_process, check_replicas
from controller.cli.checks.store import check_store
from controller.cli.checks.workers import check_workers
from controller.cli.environment import warnings_of
from controller.cli.models import missing_models
from controller.cli.options import Controller
from controller.cli.tables import cell, create_console, print_json
from controller.cli.text import count, printable
from controller.domain.errors import ControllerRefused, ControllerUnreachable

_STYLES: Final = {Level.OK: "green", Level.UNKNOWN: "dim", Level.WARNING: "yellow", Level.PROBLEM: "red"}


async def examine(controller: Controller, stalled_after: float, as_json: bool) -> bool:
    """Check a cluster and print the findings. Return True if there is no problem.

    Raises ControllerUnreachable if the controller does not list its workers. With `as_json` that is a finding, too.
    """
    try:
        findings = await find(controller, stalled_after)
    except ControllerUnreachable as error:
        findings = [problem("controller", str(error), "Correct the address or the token, or start the controller.")]
        if not as_json:
            for warned in _environment():  # a misspelt CONTROLLER_ADDRESS may be the cause
                click.echo(printable(f"Warning: {warned.found}"), err=True)
            raise
        findings += _environment()
    if as_json:
        print_json({"findings": [finding._asdict() for finding in findings]})
    else:
        _print(findings)
    return not has_problem(findings)


def _environment() -> list[Finding]:
    return [warning("environment", text, "Correct or remove it.") for text in warnings_of(os.environ)]


async def find(controller: Controller, stalled_after: float) -> list[Finding]:
    """Return all findings. Raises ControllerUnreachable as examine()."""
    began = time.monotonic()
    listed = await request(controller, "/workers", "workers")
    workers = listed["workers"]
    findings = [ok("controller", f"answers in {(time.monotonic() - began) * 1000:.0f} ms")]
    findings += _environment()
    settings: Mapping[str, Any] = {}
    try:
        replicas: Sequence[Mapping[str, Any]] = (await request(controller, "/replicas", "replicas"))["replicas"]
        findings += check_replicas(replicas)
        settings = replicas[0]["settings"] if replicas else {}
    except ControllerUnreachable as error:
        findings.append(_unreadable("replicas", error))
    try:
        diagnosis = await request(controller, "/diagnosis", "store")
        findings += check_process(diagnosis["replica"])
        findings += check_store(diagnosis["store"])
    except ControllerUnreachable as error:
        findings.append(_unreadable("Redis", error))
    try:
        findings += check_engines((await request(controller, "/engines", "engines"))["engines"])
    except ControllerUnreachable as error:
        findings.append(_unreadable("engines", error))
    findings += check_heartbeats(settings, workers)
    findings += check_workers(workers, settings, stalled_after, missing_models(listed))
    return findings


def _unreadable(check: str, error: ControllerUnreachable) -> Finding:
    advice = "Update the replicas, or use a token for admins." if isinstance(error, ControllerRefused) else ""
    return unknown(check, str(error), advice)


def _print(findings: Sequence[Finding]) -> None:
    console = create_console()
    console.print(findings_table(findings, console))
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    problems, warnings = counts[Level.PROBLEM], counts[Level.WARNING]
    summary = f"{count(problems, 'problem')}, {count(warnings, 'warning')}, {counts[Level.OK]} ok"
    if counts[Level.UNKNOWN]:
        summary += f", {counts[Level.UNKNOWN]} unknown"
    style = _STYLES[Level.PROBLEM if problems else Level.WARNING if warnings else Level.OK]
    console.print(f"{summary}.", style=style)


def findings_table(findings: Sequence[Finding], console: Console) -> Table:
    """Return the findings, each with what to do in a line of its own. The problems come last, near the prompt."""
    order = list(Level)
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in sorted(findings, key=lambda finding: order.index(finding.level)):
        text = Text.assemble(
            cell(f"{finding.check}: ", console.encoding, "bold"), cell(finding.found, console.encoding)
        )
        table.add_row(Text(finding.level, style=_STYLES[finding.level]), text)
        if finding.advice:
            table.add_row("", cell(f"-> {finding.advice}", console.encoding))
    return table
