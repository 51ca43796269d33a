"""The command `controller engines`: a table of the engines that were registered."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType
from rich.text import Text

from controller.cli.api import request
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count

# From the most important one on. Where the terminal is too narrow, the last ones are left out.
_COLUMNS: Final = (
    Column("engine", breaks=True),
    Column("kind"),
    Column("state"),
    Column("models", wraps=True, breaks=True),
    Column("slots", right=True),
    Column("speed", right=True),
    Column("key"),
    Column("source"),
    Column("registered by"),
)
_ALWAYS_SHOWN: Final = 4
ENGINES_TIMEOUT: Final = 30.0  # seconds: the controller asks engines that do not respond


async def show_engines(controller: Controller, as_json: bool) -> None:
    """Print the registered engines. Raises ControllerUnreachable."""
    patient = controller._replace(timeout=max(controller.timeout, ENGINES_TIMEOUT))
    engines = (await request(patient, "/engines", "engines"))["engines"]
    if as_json:
        print_json({"engines": engines})
        return
    if not engines:
        click.echo("No engine is registered. `controller register --help` shows how to register one.")
        return
    console = create_console()
    console.print(engines_table(engines, console))
    for engine in engines:
        if engine["problem"]:
            amount = "requests only if no other can serve them" if engine["alive"] else "no requests"
            text = f"{engine['worker_name']} gets {amount}: {engine['problem'].rstrip('.')}."
            console.print(cell(text, console.encoding, style="red"), soft_wrap=True)


def engines_table(engines: Sequence[Mapping[str, Any]], console: Console) -> RenderableType:
    """Return a table with one row for each engine that GET `/engines` lists."""
    rows: list[Row] = [
        {
            "engine": cell(engine["worker_name"], console.encoding),
            "kind": cell(engine["engine"], console.encoding),
            "state": _state(engine),
            "models": cell(", ".join(engine["model_names"]), console.encoding),
            "slots": "" if engine["capacity"] is None else str(engine["capacity"]),
            "speed": f"{engine['speed']:g}",
            "key": "yes" if engine["has_key"] else "",
            "source": cell(engine.get("source") or "", console.encoding),
            "registered by": cell(engine["registered_by"] or "", console.encoding),
        }
        for engine in engines
    ]
    return fit_table(count(len(engines), "engine"), _COLUMNS, _ALWAYS_SHOWN, rows, console)


def _state(engine: Mapping[str, Any]) -> Text:
    if not engine["alive"]:
        return Text("not ready", style="red")
    return Text("failing", style="red") if engine["problem"] else Text("ready", style="green")
