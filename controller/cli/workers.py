"""The command `controller workers`: a table of the workers of a running controller."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from controller.cli.api import request
from controller.cli.tables import cell, create_console, create_table


async def show_workers(controller_address: str) -> None:
    """Print the live workers of a controller as a table. Raises ControllerUnreachable."""
    workers = await fetch_workers(controller_address)
    console = create_console()
    console.print(workers_table(workers, console.encoding))


async def fetch_workers(controller_address: str) -> list[dict[str, Any]]:
    """Return the workers that GET `/workers` lists. Raises ControllerUnreachable."""
    workers: list[dict[str, Any]] = (await request(controller_address, "/workers", "workers"))["workers"]
    return workers


def workers_table(workers: Sequence[Mapping[str, Any]], encoding: str = "utf-8") -> Table:
    """Return a table with one row for each worker."""
    table = create_table(f"{len(workers)} live workers")
    table.add_column("worker", overflow="fold", min_width=20)
    table.add_column("models", overflow="fold")
    for heading in ("speed", "queue", "leased", "slots", "state", "heartbeat", "expires in"):
        table.add_column(heading, justify="right")
    for worker in workers:
        expires_in = worker["expires_in"]
        table.add_row(
            cell(worker["worker_name"], encoding),
            cell(", ".join(worker["model_names"]), encoding),
            f"{worker['speed']:g}",
            str(worker["queue_length"]),
            str(worker["leased"]),
            _slots(worker),
            _state(worker),
            f"{worker['heartbeat_age']:.1f} s ago",
            "never" if expires_in is None else f"{expires_in:.1f} s",
        )
    return table


def _slots(worker: Mapping[str, Any]) -> str:
    """Return the capacity, followed by `set` if it is configured. Older controllers do not send the source."""
    if worker["capacity"] is None:
        return ""
    return f"{worker['capacity']} set" if worker.get("capacity_source") == "configured" else str(worker["capacity"])


def _state(worker: Mapping[str, Any]) -> str:
    if worker["draining"]:
        return "drained" if worker["drained"] else "draining"
    return "failing" if worker["failing"] else "serving"
