"""Implements `controller watch`: shows the events of a running controller when they happen."""

import asyncio
import json
import shutil
import sys
import textwrap
import time
from typing import Any, Final

import click
from rich.cells import cell_len

from controller.cli.api import follow
from controller.cli.options import Controller
from controller.cli.text import printable
from controller.domain.errors import ControllerRefused, ControllerUnreachable

_INDENT: Final = 10  # characters of the time
_PAUSE: Final = 1.0  # seconds before the next attempt to connect
_SHOWN_FIRST: Final = ("worker", "replica", "parent", "models", "target", "action")


async def watch_events(controller: Controller, last: int, as_json: bool) -> None:
    """Print the last events and all that follow.

    Raises ControllerUnreachable if the first connection fails, and ControllerRefused if any is refused, for example
    because the token was revoked.
    """
    position, day = "", ""
    was_connected = False
    while True:
        parameters = {"follow": "true", **({"after": position} if position else {"limit": str(last)})}
        try:
            async for line in follow(controller, "/events", parameters):
                was_connected = True
                if not line:
                    continue
                event = json.loads(line)
                position = event.get("id", position)
                if as_json:
                    click.echo(line.rstrip("\n"))
                    continue
                if "time" in event and day != (day := day_of(event["time"])):
                    click.echo(day)
                click.echo(fitted(as_line(event), width()))
        except ControllerRefused:
            raise
        except ControllerUnreachable as error:
            if not was_connected:
                raise
            click.echo(printable(f"{error} Trying again."), err=True)
        await asyncio.sleep(_PAUSE)


def width() -> int | None:
    """Return the width of the terminal. None if the output is no terminal: then, an event is one line."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def fitted(line: str, columns: int | None) -> str:
    """Return the line of an event in lines of at most `columns` characters, with the rest below its kind.

    A name that is longer is not broken, so that it can be copied. columns: None for one line.
    """
    if columns is None or cell_len(line) <= columns:
        return line
    indent = " " * min(_INDENT, columns // 4)
    return "\n".join(
        textwrap.wrap(line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    )


def as_line(event: dict[str, Any]) -> str:
    """Return an event as one line of text, with the local time."""
    if event["kind"] == "gap":
        return "--:--:--  (events are missing here)"
    at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
    subject = next((_text(event[field]) for field in _SHOWN_FIRST if field in event), "")
    rest = [
        f"{field}={_text(value)}"
        for field, value in event.items()
        if field not in ("id", "time", "kind", "reason", "count") and _text(value) != subject
    ]
    reason = [f"({_text(event['reason'])})"] if "reason" in event else []
    return printable(
        "  ".join([f"{at}  {event['kind'].replace('_', ' '):<18}", *filter(None, [subject, *rest, *reason])])
    )


def day_of(seconds: float) -> str:
    """Return the local day of a time, in seconds since the epoch."""
    return time.strftime("%A, %d %B %Y", time.localtime(seconds))


def _text(value: object) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
