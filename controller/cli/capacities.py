"""Implements `controller capacity ...`: sends the requests to a running controller and formats the results."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType

from controller.cli.api import request, request_reply
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count
from controller.cli.workers import DEGRADED

_COLUMNS: Final = (Column("kind"), Column("name", breaks=True), Column("slots", right=True))


async def show_capacities(controller: Controller, as_json: bool) -> None:
    """Print the capacities that were set. Raises ControllerUnreachable."""
    reply = await request_reply(controller, "/capacities", "capacities")
    capacities = reply.fields["capacities"]
    if as_json:
        print_json({"capacities": capacities})
        return
    console = create_console()
    if capacities:
        console.print(capacities_table(capacities, console))
    else:
        click.echo("No capacity is set. `controller capacity set --help` shows how to set one.")
    if reply.is_degraded:
        console.print(DEGRADED, style="yellow")


async def set_capacity(controller: Controller, target: str, capacity: int | None) -> str:
    """Set a capacity, or remove it if `capacity` is None. Return a message. Raises ControllerUnreachable."""
    is_worker = target.lower().startswith(("http://", "https://"))
    kind, field = ("worker", "worker_name") if is_worker else ("model", "model")
    body = {field: target, "capacity": capacity}
    change = await request(controller, "/set_capacity", "workers", body)
    previous, workers = change["previous"], change["workers"]
    if capacity is None and previous is None:
        return f"No capacity was set for {kind} {target}. `controller capacity list` shows what is set."
    alive = f"is {'' if workers else 'not '}alive" if is_worker else f"has {count(workers, 'live worker')}"
    if capacity is None:
        return f"Removed the capacity {previous} of {kind} {target}. The {kind} {alive}."
    before = "" if previous is None else f" (previously {previous})"
    return f"Set the capacity of {kind} {target} to {capacity}{before}. The {kind} {alive}."


def capacities_table(capacities: Sequence[Mapping[str, Any]], console: Console) -> RenderableType:
    """Return a table with one row for each capacity that GET `/capacities` lists."""
    rows: list[Row] = []
    for each in capacities:
        kind, name = ("worker", each["worker_name"]) if "worker_name" in each else ("model", each["model"])
        rows.append({"kind": kind, "name": cell(name, console.encoding), "slots": str(each["capacity"])})
    title = "1 capacity" if len(capacities) == 1 else f"{len(capacities):,} capacities"
    return fit_table(title, _COLUMNS, len(_COLUMNS), rows, console)
