"""Implements `controller token ...`: sends the requests to a running controller and formats the results."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from rich.console import Console, RenderableType

from controller.cli.api import request
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count, printable
from controller.domain.errors import ControllerUnreachable

_COLUMNS: Final = (
    Column("plane"),
    Column("name", breaks=True),
    Column("from"),
    Column("workers", wraps=True, breaks=True),
    Column("models", wraps=True, breaks=True),
)


async def create_token(
    controller: Controller, plane: str, name: str, workers: Sequence[str], models: Sequence[str]
) -> str:
    """Create a token and return its secret. Raises ControllerUnreachable."""
    body = {"plane": plane, "name": name, "workers": list(workers), "models": list(models)}
    return printable(str((await request(controller, "/create_token", "token", body))["token"]))


async def revoke_token(controller: Controller, name: str) -> str:
    """Revoke a token. Return a sentence about it. Raises ControllerUnreachable."""
    if not (await request(controller, "/revoke_token", "exist", {"name": name}))["exist"]:
        raise ControllerUnreachable(f"There is no token {name} to revoke. `controller token list` shows the tokens.")
    return f"Revoked the token {name}. All replicas refuse it now."


async def show_tokens(controller: Controller, as_json: bool) -> None:
    """Print the tokens. Raises ControllerUnreachable."""
    tokens = (await request(controller, "/tokens", "tokens"))["tokens"]
    if as_json:
        print_json({"tokens": tokens})
        return
    console = create_console()
    if tokens:
        console.print(tokens_table(tokens, console))
    else:
        click.echo("There is no token: the controller accepts requests without one. See `controller token --help`.")


def tokens_table(tokens: Sequence[Mapping[str, Any]], console: Console) -> RenderableType:
    """Return a table with one row for each token that GET `/tokens` lists."""
    encoding = console.encoding
    rows: list[Row] = [
        {
            "plane": cell(each["plane"], encoding),
            "name": cell(each["name"], encoding),
            "from": cell(each["source"], encoding),
            **{
                kind: cell((", ".join(each[kind]) or "all") if each["plane"] == "worker" else "", encoding)
                for kind in ("workers", "models")
            },
        }
        for each in tokens
    ]
    return fit_table(count(len(tokens), "token"), _COLUMNS, len(_COLUMNS), rows, console)
