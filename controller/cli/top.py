"""The command `controller top`: models, workers and events on one screen."""

import json
import time
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from rich.console import Console, RenderableType
from rich.text import Text

from controller.cli.api import Reply, follow, request_reply
from controller.cli.events import as_line
from controller.cli.models import missing_models, models_of, models_table
from controller.cli.options import Controller
from controller.cli.screen import Watch
from controller.cli.tables import TABLE_LINES, cell
from controller.cli.text import count
from controller.cli.workers import DEGRADED, SORTS, sort_workers, state_of, workers_table
from controller.domain.errors import ControllerUnreachable

_EVENTS: Final = 6
_LEAST_ROWS: Final = 3
_OTHER_LINES: Final = 2 * TABLE_LINES + 2  # of a screen, besides the header, the rows of tables and the events


class _State(NamedTuple):
    workers: Reply
    events: Sequence[dict[str, Any]]
    problem: str  # shown instead of the title of the events, if they are not available


class _Keys:
    """Handles keys: `s` and `S` change the order of the workers, and `q` quits."""

    def __init__(self, sort: str) -> None:
        self.sort = sort

    def press(self, key: str) -> bool:
        """Handle a key. Return False to end."""
        orders = list(SORTS)
        if key in "sS":
            step = 1 if key == "s" else -1
            self.sort = orders[(orders.index(self.sort) + step) % len(orders)]
        return key not in "qQ"


async def show_top(controller: Controller, sort: str, stalled_after: float, interval: float) -> None:
    """Show the models, the workers and the last events until Ctrl-C or `q`. Without a terminal, print them once."""
    keys = _Keys(sort)

    async def read() -> _State:
        workers = await request_reply(controller, "/workers", "workers")
        try:
            lines = [line async for line in follow(controller, "/events", {"limit": str(_EVENTS)})]
        except ControllerUnreachable:  # also an older controller, which has no such route
            return _State(workers, (), "Events are not available.")
        return _State(workers, [json.loads(line) for line in lines if line], "")

    def render(state: _State, console: Console, height: int | None) -> list[RenderableType]:
        workers = state.workers.fields["workers"]
        events = [cell(as_line(event), console.encoding) for event in state.events]
        models = models_of(workers, "load", stalled_after, missing_models(state.workers.fields))
        header = _header(controller, state, stalled_after, console)
        model_rows, worker_rows = None, None
        if height is not None:
            room = height - header.plain.count("\n") - 1 - _OTHER_LINES
            events = events[max(0, len(events) - max(0, room - 2 * _LEAST_ROWS)) :]
            model_rows = min(len(models), max(_LEAST_ROWS, (room - len(events)) // 3))
            worker_rows = max(_LEAST_ROWS, room - len(events) - model_rows)
            for line in (header, *events):
                line.no_wrap, line.overflow = True, "crop"
        return [
            header,
            models_table(models, console, model_rows),
            workers_table(sort_workers(workers, keys.sort, stalled_after), console, stalled_after, worker_rows),
            Text(state.problem or "Last events", style="bold"),
            *events,
            *([Text(_HELP.format(keys.sort), style="dim")] if height is not None else []),
        ]

    await Watch(controller, interval, keys.press).show(read, render, once_in_pipe=True)


_HELP: Final = "sorted by {}   s: next order   q: quit"


def _header(controller: Controller, state: _State, stalled_after: float, console: Console) -> Text:
    """Return the time, the address, and the number of workers in each state. Degraded mode adds a line."""
    workers = state.workers.fields["workers"]
    states: dict[str, int] = {}
    for worker in workers:
        name = state_of(worker, stalled_after)
        states[name] = states.get(name, 0) + 1
    address = controller.address.rpartition("@")[2].rpartition("://")[2]
    parts = [
        time.strftime("%H:%M:%S"),
        address,
        count(len(workers), "worker"),
        *(f"{number:,} {name}" for name, number in sorted(states.items())),
    ]
    header = cell("   ".join(parts), console.encoding, style="bold")
    if state.workers.is_degraded:
        header.append(f"\n{DEGRADED}", style="yellow")
    return header
