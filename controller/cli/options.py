"""Options and error messages that the commands for a running controller share."""

import asyncio
import functools
import os
import re
import signal
from collections.abc import Callable, Coroutine
from typing import Any, Final, NamedTuple, TypeVar

import click

from controller.cli.text import printable
from controller.domain.errors import ControllerError
from controller.domain.stalls import STALLED_AFTER

Result = TypeVar("Result")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600}
INTERRUPTED: Final = 130  # exit status after Ctrl-C, as shells and other programs have it: 128 + SIGINT


class Controller(NamedTuple):
    """A running controller, as the command line names it. timeout: for one request, in seconds."""

    address: str
    timeout: float = 10.0


class Duration(click.ParamType[float]):
    """A number of seconds, written as 90, 90s, 10m or 2h."""

    name = "duration"

    def __init__(self, *, is_positive: bool = False) -> None:
        self._is_positive = is_positive

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        match = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smh]?)", str(value), re.ASCII)
        if not match:
            self.fail(f"{value!r} is not a time such as 90s, 10m or 2h.", param, ctx)
        seconds = float(match[1]) * _UNITS[match[2] or "s"]
        if self._is_positive and not seconds:
            self.fail("must be more than 0.", param, ctx)
        return seconds


def connects(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that name a running controller, as one argument `controller`."""

    @click.option(
        "--controller-address",
        "--controller",
        "controller_address",
        default="http://localhost:21001",
        show_default=True,
        envvar="CONTROLLER_ADDRESS",
        show_envvar=True,
        help="Address of the controller.",
    )
    @click.option(
        "--timeout",
        type=Duration(is_positive=True),
        default="10s",
        show_default=True,
        envvar="CONTROLLER_TIMEOUT",
        show_envvar=True,
        help="How long to wait for each response of the controller.",
    )
    @functools.wraps(command)
    def connected(*args: Any, controller_address: str, timeout: float, **values: Any) -> None:
        command(*args, controller=Controller(controller_address, timeout), **values)

    return connected


def _turn_off_colors(_: click.Context, __: click.Parameter, value: bool) -> None:
    if value:
        os.environ["NO_COLOR"] = "1"  # rich reads it


no_color: Final = click.option(
    "--no-color",
    is_flag=True,
    expose_value=False,
    callback=_turn_off_colors,
    help="Print without colors, as if NO_COLOR were set.",
)
as_json: Final = click.option(
    "--json", "as_json", is_flag=True, help="Print JSON. Its fields have the names of the HTTP API."
)
interval: Final = click.option(
    "--interval", type=Duration(), default="2s", show_default=True, help="Time between two refreshes of the screen."
)
stalled_after: Final = click.option(
    "--stalled-after",
    type=Duration(),
    default=f"{STALLED_AFTER:g}s",
    show_default=True,
    help="Call a worker stalled if none of its requests has finished for this long.",
)


class Interrupted(Exception):
    """Ctrl-C has ended a command. The message says what was done, and what continues."""


def run(call: Coroutine[Any, Any, Result], interrupted: str = "Interrupted. Nothing was changed.") -> Result:
    """Return the result of a call. An error of the controller ends the command with its message.

    interrupted: what to say after Ctrl-C, unless the call raises Interrupted. Commands that change something need it.
    """
    try:
        return _run(call)
    except (KeyboardInterrupt, Interrupted) as error:
        click.echo(f"\n{printable(str(error) or interrupted)}", err=True)  # after the ^C of the terminal
        raise SystemExit(INTERRUPTED) from error


def _run(call: Coroutine[Any, Any, Result]) -> Result:
    try:
        return asyncio.run(_interruptible(call))
    except ControllerError as error:
        raise click.ClickException(printable(str(error))) from error
    except (AttributeError, KeyError, TypeError) as error:
        raise click.ClickException(
            printable(
                f"The response of the controller is not what this command expects ({type(error).__name__}: {error}). "
                "It may run another version: `controller version` shows both."
            )
        ) from error


async def _interruptible(call: Coroutine[Any, Any, Result]) -> Result:
    """Return the result of a call. If Ctrl-C has ended it, nothing interrupts the end of the program."""
    try:
        return await call
    except (asyncio.CancelledError, Interrupted):
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        raise


def run_until_interrupted(call: Coroutine[Any, Any, object]) -> None:
    """Run a call that runs until Ctrl-C, which is a normal end."""
    try:
        _run(_until_interrupted(call))
    except (KeyboardInterrupt, asyncio.CancelledError):
        click.echo()


async def _until_interrupted(call: Coroutine[Any, Any, object]) -> None:
    """Run a call until Ctrl-C. Only the first signal counts.

    The program timeout(1) sends the signal twice. Python would print a traceback if the second one came while it ends.
    """
    task, loop, before = asyncio.current_task(), asyncio.get_running_loop(), signal.getsignal(signal.SIGINT)

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if task is not None:
            loop.call_soon_threadsafe(task.cancel)

    if before is signal.SIG_IGN:  # the shell runs the command in the background
        await call
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        await call
    finally:
        if signal.getsignal(signal.SIGINT) is interrupt:
            signal.signal(signal.SIGINT, before)
