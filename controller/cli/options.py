"""Options and error messages that the commands for a running controller share."""

import asyncio
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import click

from controller.domain.errors import ControllerError

Result = TypeVar("Result")

controller_address: Final = click.option(
    "--controller-address",
    default="http://localhost:21001",
    show_default=True,
    envvar="CONTROLLER_ADDRESS",
    show_envvar=True,
    help="Address of the controller.",
)


def run(call: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a call. An error of the controller ends the command with its message."""
    try:
        return asyncio.run(call)
    except ControllerError as error:
        raise click.ClickException(str(error)) from error
