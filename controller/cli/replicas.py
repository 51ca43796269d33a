"""The commands `controller replicas` and `controller version`: the replicas, and in what they differ."""

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType

from controller import __version__
from controller.cli.api import request
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count, duration, printable
from controller.domain.errors import ControllerUnreachable
from controller.settings import settings_of
from controller.settings.declaration import Scope

Replica = Mapping[str, Any]

_COLUMNS: Final = (
    Column("replica", breaks=True),
    Column("version"),
    Column("runs for", right=True),
    Column("differs in", wraps=True, breaks=True),
    Column("id"),
)
_DIFFERENCES: Final = (
    Column("setting"),
    Column("value", wraps=True, breaks=True),
    Column("replicas", wraps=True, breaks=True),
)


async def show_replicas(controller: Controller, as_json: bool) -> None:
    """Print the live replicas, and the settings that differ. Raises ControllerUnreachable."""
    replicas = await fetch_replicas(controller)
    if as_json:
        print_json({"replicas": replicas})
        return
    console = create_console()
    console.print(replicas_table(replicas, console))
    if differing := differing_settings(replicas):
        console.print(differences_table(differing, console))


async def show_version(controller: Controller, as_json: bool) -> None:
    """Print the version of this program, and those of the replicas if a controller can be reached."""
    problem, replicas = "", []
    try:
        replicas = await fetch_replicas(controller)
    except ControllerUnreachable as error:
        problem = printable(str(error))
    if as_json:
        shown = [{"name": replica["name"], "version": replica["version"]} for replica in replicas]
        print_json({"version": __version__, "replicas": shown, "problem": problem or None})
        return
    click.echo(f"controller {__version__}, this program")
    for replica in replicas:
        differs = "" if replica["version"] == __version__ else "  (differs)"
        click.echo(printable(f"controller {replica['version'] or '?'}, replica {replica['name']}{differs}"))
    if problem:
        click.echo(f"The versions of the replicas are unknown. {problem}", err=True)


async def fetch_replicas(controller: Controller) -> list[dict[str, Any]]:
    """Return the replicas that GET `/replicas` lists. Raises ControllerUnreachable."""
    replicas: list[dict[str, Any]] = (await request(controller, "/replicas", "replicas"))["replicas"]
    return replicas


def differing_settings(replicas: Sequence[Replica]) -> dict[str, dict[str, list[str]]]:
    """Return the settings that differ: for each one the names of the replicas by value, the most common value first.

    Settings of a machine, such as its address, are not compared.
    Settings that a replica does not report, because it is older, are not compared with it.
    """
    differing = {}
    reported = {name for replica in replicas for name in replica["settings"]}
    for name in sorted(reported - settings_of(Scope.MACHINE)):
        by_value: dict[str, list[str]] = {}
        for replica in replicas:
            if name in replica["settings"]:
                by_value.setdefault(_shown(replica["settings"][name]), []).append(replica["name"])
        if len(by_value) > 1:
            differing[name] = dict(sorted(by_value.items(), key=lambda item: -len(item[1])))
    return differing


def _shown(value: object) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)


def replicas_table(replicas: Sequence[Replica], console: Console) -> RenderableType:
    """Return a table with one row for each replica."""
    versions = Counter(replica["version"] for replica in replicas)
    usual = versions.most_common(1)[0][0] if versions else ""
    differing = differing_settings(replicas)
    rows: list[Row] = []
    for replica in replicas:
        names = [
            name
            for name, by_value in differing.items()
            if any(replica["name"] in others for others in list(by_value.values())[1:])
        ]
        differs = replica["version"] != usual
        started_at = replica["started_at"]
        rows.append(
            {
                "replica": cell(replica["name"], console.encoding),
                "version": cell(
                    f"{replica['version'] or '?'}{' (differs)' if differs else ''}",
                    console.encoding,
                    style="yellow" if differs else "",
                ),
                "runs for": "" if started_at is None else duration(max(0.0, time.time() - started_at)),
                "differs in": cell(", ".join([*(["version"] if differs else []), *names]), console.encoding, "yellow"),
                "id": cell(replica["id"], console.encoding),
            }
        )
    return fit_table(count(len(replicas), "live replica"), _COLUMNS, 4, rows, console)


def differences_table(differing: Mapping[str, Mapping[str, Sequence[str]]], console: Console) -> RenderableType:
    """Return a table with one row for each value of each setting that differs."""
    rows: list[Row] = []
    for name, by_value in differing.items():
        for number, (value, replicas) in enumerate(by_value.items()):
            rows.append(
                {
                    "setting": cell("" if number else name, console.encoding, "yellow"),
                    "value": cell(value, console.encoding),
                    "replicas": cell(", ".join(replicas), console.encoding),
                }
            )
    return fit_table("Settings that differ", _DIFFERENCES, 3, rows, console)
