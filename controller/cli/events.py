"""The command `controller watch`: the events of a running controller, as they happen."""

import asyncio
import json
import time
from typing import Any, Final

import click

from controller.cli.api import follow
from controller.cli.options import Controller
from controller.cli.text import printable
from controller.domain.errors import ControllerRefused, ControllerUnreachable

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
                click.echo(as_line(event))
        except ControllerRefused:
            raise
        except ControllerUnreachable as error:
            if not was_connected:
                raise
            click.echo(printable(f"{error} Trying again."), err=True)
        await asyncio.sleep(_PAUSE)


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
