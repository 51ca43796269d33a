"""The command `controller workers`: a table of the workers of a running controller."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from controller.cli.api import request
from controller.cli.tables import cell, create_console, create_table

# From the most important one on. Where the terminal is too narrow, the last ones are left out.
_COLUMNS: Final = ("worker", "state", "queue", "slots", "models", "leased", "heartbeat", "expires in", "speed")
_ALWAYS_SHOWN: Final = 5
_HEADINGS: Final[dict[str, Text | str]] = {column: column for column in _COLUMNS}
_GAP: Final = 2  # between two columns: the padding, and a space instead of a line


async def show_workers(controller_address: str) -> None:
    """Print the live workers of a controller as a table. Raises ControllerUnreachable."""
    workers = await fetch_workers(controller_address)
    console = create_console()
    console.print(workers_table(workers, console))


async def fetch_workers(controller_address: str) -> list[dict[str, Any]]:
    """Return the workers that GET `/workers` lists. Raises ControllerUnreachable."""
    workers: list[dict[str, Any]] = (await request(controller_address, "/workers", "workers"))["workers"]
    return workers


def workers_table(workers: Sequence[Mapping[str, Any]], console: Console) -> Table:
    """Return a table with one row for each worker, and with the columns that the console has room for.

    Worker names and models are broken if the console has no room for the most important columns either.
    """
    rows = [_row(worker, console.encoding) for worker in workers]
    widths = {column: max(_width(column, row[column]) for row in [_HEADINGS, *rows]) for column in _COLUMNS}
    for number in range(len(_COLUMNS), _ALWAYS_SHOWN - 1, -1):
        columns: dict[str, int] = {column: widths[column] for column in _COLUMNS[:number]}
        if sum(columns.values()) + _GAP * number + 1 <= console.width:
            return _table(rows, columns, wrapped=("models",))
    return _table(rows, columns | {"worker": 10, "models": 10}, wrapped=("worker", "models"))


def _width(column: str, content: Text | str) -> int:
    """Return the width that a cell needs, so that no word in it is broken."""
    words = str(content).split() if column == "models" else [str(content)]
    return max(map(cell_len, words), default=0)


def _table(rows: Sequence[Mapping[str, Text | str]], min_widths: Mapping[str, int], wrapped: Sequence[str]) -> Table:
    """Return a table with the columns for which `min_widths` has a width. The columns in `wrapped` are wrapped."""
    table = create_table(
        "1 live worker" if len(rows) == 1 else f"{len(rows)} live workers", box=SIMPLE_HEAD, padding=(0, 1, 0, 0)
    )
    for column, width in min_widths.items():
        justify: JustifyMethod = "left" if column in ("worker", "state", "models") else "right"
        table.add_column(column, justify=justify, overflow="fold", no_wrap=column not in wrapped, min_width=width)
    for row in rows:
        table.add_row(*(row[column] for column in min_widths))
    if left_out := _COLUMNS[len(min_widths) :]:
        table.caption = f"Not shown for lack of space: {', '.join(left_out)}. `| cat` shows all columns."
        table.caption_justify = "left"
    return table


def _row(worker: Mapping[str, Any], encoding: str) -> dict[str, Text | str]:
    expires_in = worker["expires_in"]
    return {
        "worker": cell(worker["worker_name"], encoding),
        "state": _state(worker),
        "queue": str(worker["queue_length"]),
        "slots": _slots(worker),
        "models": cell(", ".join(worker["model_names"]), encoding),
        "leased": str(worker["leased"]),
        "heartbeat": f"{worker['heartbeat_age']:.1f} s ago",
        "expires in": "never" if expires_in is None else f"{expires_in:.1f} s",
        "speed": f"{worker['speed']:g}",
    }


def _slots(worker: Mapping[str, Any]) -> str:
    """Return the capacity, followed by `set` if it is configured. Older controllers do not send the source."""
    if worker["capacity"] is None:
        return ""
    return f"{worker['capacity']} set" if worker.get("capacity_source") == "configured" else str(worker["capacity"])


def _state(worker: Mapping[str, Any]) -> str:
    if worker["draining"]:
        return "drained" if worker["drained"] else "draining"
    return "failing" if worker["failing"] else "serving"
