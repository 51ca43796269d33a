"""The command `controller workers`: a table of the workers of a running controller."""

import io
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.domain.errors import ControllerUnreachable
from controller.upstream.trust import trusted, warn_of_bundle


async def show_workers(controller_address: str) -> None:
    """Print the live workers of a controller as a table. Raises ControllerUnreachable."""
    workers = await fetch_workers(controller_address)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    console = Console()
    if not console.is_terminal:
        console.width = 250  # in pipes and files, long lines must not be cut
    console.print(workers_table(workers, console.encoding))


async def fetch_workers(controller_address: str) -> list[dict[str, Any]]:
    """Return the workers that GET `/workers` lists. Raises ControllerUnreachable."""
    if not controller_address.lower().startswith(("http://", "https://")):
        raise ControllerUnreachable(f"--controller-address must begin with http:// or https://: {controller_address}")
    url = f"{controller_address.rstrip('/')}/workers"
    if url.lower().startswith("https:"):
        warn_of_bundle()
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=trusted()), timeout=aiohttp.ClientTimeout(total=10)
            ) as session,
            session.get(url, raise_for_status=True) as response,
        ):
            workers: list[dict[str, Any]] = (await response.json())["workers"]
            return workers
    except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
        raise ControllerUnreachable(
            f"{url} did not return a list of workers: {error or type(error).__name__}. Is the controller running, and "
            "is --controller-address right?"
        ) from error


def workers_table(workers: Sequence[Mapping[str, Any]], encoding: str = "utf-8") -> Table:
    """Return a table with one row for each worker.

    Characters that the encoding lacks become question marks here, before rich computes the widths of the columns.
    """
    table = Table(title=f"{len(workers)} live workers", title_justify="left")
    table.add_column("worker", overflow="fold", min_width=20)
    table.add_column("models", overflow="fold")
    for heading in ("speed", "queue", "leased", "slots", "state", "heartbeat", "expires in"):
        table.add_column(heading, justify="right")
    for worker in workers:
        expires_in = worker["expires_in"]
        table.add_row(
            _text(worker["worker_name"], encoding),
            _text(", ".join(worker["model_names"]), encoding),
            f"{worker['speed']:g}",
            str(worker["queue_length"]),
            str(worker["leased"]),
            "" if worker["capacity"] is None else str(worker["capacity"]),
            _state(worker),
            f"{worker['heartbeat_age']:.1f} s ago",
            "never" if expires_in is None else f"{expires_in:.1f} s",
        )
    return table


def _text(text: str, encoding: str) -> Text:
    return Text(text.encode(encoding, errors="replace").decode(encoding))


def _state(worker: Mapping[str, Any]) -> str:
    if worker["draining"]:
        return "drained" if worker["drained"] else "draining"
    return "failing" if worker["failing"] else "serving"
