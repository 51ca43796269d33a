"""Implements `controller route ...`: sends the requests to a running controller and formats the results."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType

from controller.cli.api import request, request_reply
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count, printable
from controller.cli.workers import DEGRADED
from controller.domain.errors import ControllerUnreachable

_COLUMNS: Final = (
    Column("name", breaks=True),
    Column("targets", wraps=True, breaks=True),
    Column("fallbacks", wraps=True, breaks=True),
    Column("without a worker", wraps=True, breaks=True),
)


async def set_route(
    controller: Controller, name: str, targets: Mapping[str, int], fallbacks: Sequence[str]
) -> tuple[str, str]:
    """Set the route of a name. Return a sentence about it, and a warning or "". Raises ControllerUnreachable."""
    body = {"model": name, "targets": dict(targets), "fallbacks": list(fallbacks)}
    unserved = list((await request(controller, "/set_model_route", "unserved", body))["unserved"])
    to = _weights(targets) + (f", with the fallbacks {', '.join(fallbacks)}" if fallbacks else "")
    done = f"Requests of {name} go to {to}. All replicas use this route now."
    return printable(done), printable(_warning(name, targets, fallbacks, unserved))


async def remove_route(controller: Controller, name: str) -> str:
    """Remove the route of a name. Return a sentence about it. Raises ControllerUnreachable."""
    if not (await request(controller, "/remove_model_route", "exist", {"model": name}))["exist"]:
        raise ControllerUnreachable(f"{name} has no route to remove. `controller route list` shows the routes.")
    return printable(f"Removed the route of {name}. No replica uses it now.")


async def show_routes(controller: Controller, as_json: bool) -> None:
    """Print the routes. Raises ControllerUnreachable."""
    reply = await request_reply(controller, "/model_routes", "model_routes")
    routes = reply.fields["model_routes"]
    if as_json:
        print_json({"model_routes": routes})
        return
    console = create_console()
    if routes:
        console.print(routes_table(routes, console))
    else:
        click.echo("No model name has a route. `controller route --help` shows how to set one.")
    if reply.is_degraded:
        console.print(DEGRADED, style="yellow")


def routes_table(routes: Sequence[Mapping[str, Any]], console: Console) -> RenderableType:
    """Return a table with one row for each route that GET `/model_routes` lists."""
    encoding = console.encoding
    rows: list[Row] = [
        {
            "name": cell(each["model"], encoding),
            "targets": cell(_weights(each["targets"]), encoding),
            "fallbacks": cell(", ".join(each["fallbacks"]), encoding),
            "without a worker": cell(", ".join(each["unserved"]), encoding, style="yellow"),
        }
        for each in routes
    ]
    return fit_table(count(len(routes), "route"), _COLUMNS, len(_COLUMNS), rows, console)


def _weights(targets: Mapping[str, int]) -> str:
    """Return the targets with their weights. The weight of a single one is left out."""
    if len(targets) == 1:
        return next(iter(targets))
    return ", ".join(f"{name}={weight}" for name, weight in targets.items())


def _warning(name: str, targets: Mapping[str, int], fallbacks: Sequence[str], unserved: Sequence[str]) -> str:
    if not unserved:
        return ""
    drawn = {target for target, weight in targets.items() if weight}
    if not {*drawn, *fallbacks} - set(unserved):
        return f"Warning: None of these models has a live worker now, so requests of {name} fail until one registers."
    if not drawn - set(unserved):
        return f"Warning: No target has a live worker now, so all requests of {name} go to the fallbacks."
    return f"Warning: No live worker serves {', '.join(unserved)} now. The other models get its requests until then."
