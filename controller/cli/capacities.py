"""What the commands `controller capacity ...` do: requests to a running controller, and their results as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.table import Table

from controller.cli.api import request
from controller.cli.tables import cell, create_console, create_table


async def show_capacities(controller_address: str) -> None:
    """Print the capacities that were set as a table. Raises ControllerUnreachable."""
    capacities = (await request(controller_address, "/capacities", "capacities"))["capacities"]
    console = create_console()
    if capacities:
        console.print(capacities_table(capacities, console.encoding))
    else:
        click.echo("No capacity is set. `controller capacity set --help` shows how to set one.")


async def set_capacity(controller_address: str, target: str, capacity: int | None) -> str:
    """Set a capacity, or remove it with None. Return a sentence about it. Raises ControllerUnreachable."""
    is_worker = target.lower().startswith(("http://", "https://"))
    kind, field = ("worker", "worker_name") if is_worker else ("model", "model")
    body = {field: target, "capacity": capacity}
    change = await request(controller_address, "/set_capacity", "workers", body)
    previous, workers = change["previous"], change["workers"]
    if capacity is None and previous is None:
        return f"No capacity was set for {kind} {target}. `controller capacity list` shows what is set."
    if capacity is None:
        return f"Removed the capacity {previous} of {kind} {target}. Live workers: {workers}."
    before = "" if previous is None else f" (before: {previous})"
    return f"Set the capacity of {kind} {target} to {capacity}{before}. Live workers: {workers}."


def capacities_table(capacities: Sequence[Mapping[str, Any]], encoding: str = "utf-8") -> Table:
    """Return a table with one row for each capacity that GET `/capacities` lists."""
    table = create_table(f"{len(capacities)} capacities")
    table.add_column("for")
    table.add_column("name", overflow="fold")
    table.add_column("slots", justify="right")
    for each in capacities:
        kind, name = ("worker", each["worker_name"]) if "worker_name" in each else ("model", each["model"])
        table.add_row(kind, cell(name, encoding), str(each["capacity"]))
    return table
