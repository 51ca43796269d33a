"""What the commands `controller token ...` do: requests to a running controller, and their results as text."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
from rich.table import Table

from controller.cli.api import request
from controller.cli.tables import cell, create_console, create_table
from controller.domain.errors import ControllerUnreachable


async def create_token(
    controller_address: str, plane: str, name: str, workers: Sequence[str], models: Sequence[str]
) -> str:
    """Create a token and return its secret. Raises ControllerUnreachable."""
    body = {"plane": plane, "name": name, "workers": list(workers), "models": list(models)}
    return str((await request(controller_address, "/create_token", "token", body))["token"])


async def revoke_token(controller_address: str, name: str) -> str:
    """Revoke a token. Return a sentence about it. Raises ControllerUnreachable."""
    if not (await request(controller_address, "/revoke_token", "exist", {"name": name}))["exist"]:
        raise ControllerUnreachable(f"There is no token {name} to revoke. `controller token list` shows the tokens.")
    return f"Revoked the token {name}. All replicas refuse it now."


async def show_tokens(controller_address: str) -> None:
    """Print the tokens as a table. Raises ControllerUnreachable."""
    tokens = (await request(controller_address, "/tokens", "tokens"))["tokens"]
    console = create_console()
    if tokens:
        console.print(tokens_table(tokens, console.encoding))
    else:
        click.echo("There is no token: the controller accepts requests without one. See `controller token --help`.")


def tokens_table(tokens: Sequence[Mapping[str, Any]], encoding: str = "utf-8") -> Table:
    """Return a table with one row for each token that GET `/tokens` lists."""
    table = create_table("1 token" if len(tokens) == 1 else f"{len(tokens)} tokens")
    for heading in ("plane", "name", "from"):
        table.add_column(heading)
    for heading in ("workers", "models"):
        table.add_column(heading, overflow="fold")
    for each in tokens:
        patterns = (cell(", ".join(each[kind]) or "all", encoding) for kind in ("workers", "models"))
        is_worker = each["plane"] == "worker"
        table.add_row(each["plane"], each["name"], each["source"], *(patterns if is_worker else ("", "")))
    return table
