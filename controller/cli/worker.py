"""The command `controller worker`: all about one worker, and its last events."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from controller.cli.api import follow, request_reply
from controller.cli.events import as_line, day_of, fitted
from controller.cli.options import Controller
from controller.cli.patterns import covered
from controller.cli.tables import cell, create_console, print_json
from controller.cli.text import duration, printable
from controller.cli.workers import DEGRADED, slots, state_cell
from controller.domain.errors import ControllerUnreachable

_EVENTS_READ: Final = 1_000  # the controller returns at most this many


async def show_worker(controller: Controller, name: str, last: int, stalled_after: float, as_json: bool) -> None:
    """Print all about one worker. Raises ControllerUnreachable, also if the name covers no worker, or several."""
    reply = await request_reply(controller, "/workers", "workers")
    by_name = {worker["worker_name"]: worker for worker in reply.fields["workers"]}
    found = covered(list(by_name), [name])
    if len(found) > 1:
        shown = ", ".join(found[:3]) + (", ..." if len(found) > 3 else "")
        raise ControllerUnreachable(f"{name} covers {len(found)} workers: {shown}. Name one of them.")
    worker = by_name[found[0]]
    try:
        events = await _events_of(controller, found[0], last) if last else []
        problem = ""
    except ControllerUnreachable as error:  # also an older controller, which has no such route
        events, problem = [], printable(f"Its events are not available. {error}")
    if as_json:
        print_json({"worker": worker, "events": events})
        return
    console = create_console()
    console.print(worker_table(worker, console, stalled_after))
    if reply.is_degraded:
        console.print(DEGRADED, style="yellow")
    if problem:
        console.print(problem, style="yellow")
    columns = console.width if console.is_terminal else None
    for line in event_lines(events):
        console.print(
            cell(line, console.encoding)
            if columns is None
            else Text(fitted(cell(line, console.encoding).plain, columns)),
            soft_wrap=True,
        )


async def _events_of(controller: Controller, name: str, last: int) -> list[dict[str, Any]]:
    """Return the last events of a worker. Those from before the last 1,000 events of the cluster are not found."""
    events = [json.loads(line) async for line in follow(controller, "/events", {"limit": str(_EVENTS_READ)}) if line]
    return [event for event in events if event.get("worker") == name][-last:]


def event_lines(events: Sequence[dict[str, Any]]) -> list[str]:
    """Return events as lines of text, with a line for each day."""
    lines, day = [], ""
    for event in events:
        if "time" in event and day != (day := day_of(event["time"])):
            lines.append(day)
        lines.append(as_line(event))
    return lines


def worker_table(worker: Mapping[str, Any], console: Console, stalled_after: float) -> Table:
    """Return a table with one row for each fact about a worker."""
    encoding = console.encoding
    expires_in, stalled_for = worker["expires_in"], worker.get("stalled_for")
    failing = {
        "request": "yes: a request to it has failed since its last heartbeat",
        "polls": "yes: it does not answer status polls",
    }.get(worker["failing"], worker["failing"])
    facts: dict[str, str | Text] = {
        "worker": cell(worker["worker_name"], encoding, style="bold"),
        "state": state_cell(worker, stalled_after),
        "models": cell(", ".join(worker["model_names"]), encoding),
        "queue": f"{worker['queue_length']} running or waiting, of which {worker['leased']} have a lease",
        "slots": slots(worker) or "unknown",
        "last finished": _last_finished(worker, stalled_for),
        "speed": f"{worker['speed']:g}",
        "failing": cell(failing, encoding, style="red") if failing else "no",
        "polls": "answers" if worker["polled"] else "has never answered one",
        "heartbeat": f"{duration(worker['heartbeat_age'])} ago" if worker["check_heart_beat"] else "sends none",
        "expires in": "never, because it need not send heartbeats" if expires_in is None else duration(expires_in),
        "multimodal": "yes" if worker["multimodal"] else "no",
        "registered by": cell(worker["registered_by"] or "no token", encoding),
    }
    if worker.get("engine"):
        facts["engine"] = cell(worker["engine"], encoding)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for fact, value in facts.items():
        table.add_row(fact, value)
    return table


def _last_finished(worker: Mapping[str, Any], stalled_for: float | None) -> str:
    if "stalled_for" not in worker:
        return "unknown: this controller does not report it"
    if stalled_for is not None:
        return f"none of its requests for {duration(stalled_for)}"
    if not (worker["check_heart_beat"] or worker["polled"]):
        return "unknown: it sends no heartbeats and has answered no poll"
    if worker.get("engine"):
        return "no request of this cluster is in its last report"
    return "its last report was 0"
