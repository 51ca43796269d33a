"""The command `controller workers`: a table of the workers of a running controller."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.text import Text

from controller.cli.api import Reply, request, request_reply
from controller.cli.options import Controller
from controller.cli.screen import Watch
from controller.cli.tables import TABLE_LINES, Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count, duration
from controller.domain.stalls import STALLED_AFTER

Worker = Mapping[str, Any]

# From the most important one on. Where the terminal is too narrow, the last ones are left out.
_COLUMNS: Final = (
    Column("worker", shortens=True, prefix="http://"),
    Column("state"),
    Column("queue", right=True),
    Column("slots", right=True),
    Column("models", wraps=True, shortens=True),
    Column("leased", right=True),
    Column("heartbeat", right=True),
    Column("expires in", right=True),
    Column("speed", right=True),
)
_ALWAYS_SHOWN: Final = 5
# The states that need a look come first.
_STYLES: Final = {"failing": "red", "stalled": "red", "draining": "yellow", "drained": "yellow", "serving": "green"}
_ORDER: Final = {state: number for number, state in enumerate(_STYLES)}


async def show_workers(
    controller: Controller, model: str, sort: str, stalled_after: float, as_json: bool, interval: float | None
) -> bool:
    """Print the live workers of a controller, once or every `interval` seconds.

    model: only the workers of this model, or "" for all. Return False if it has none.

    Raises ControllerUnreachable.
    """

    async def read() -> Reply:
        reply = await request_reply(controller, "/workers", "workers")
        listed = [worker for worker in reply.fields["workers"] if not model or model in worker["model_names"]]
        return Reply({"workers": sort_workers(listed, sort, stalled_after)}, reply.is_degraded)

    if interval is None:
        reply = await read()
        listed, console = reply.fields["workers"], create_console()
        if as_json:
            print_json(reply.fields)
        elif listed or not model:
            console.print(workers_table(listed, console, stalled_after))
        else:
            console.print(_without_workers(model, console), soft_wrap=not console.is_terminal)
        if reply.is_degraded and not as_json:
            console.print(DEGRADED, style="yellow")
        return bool(listed) or not model
    watch = Watch(controller, interval)
    if as_json:
        await watch.print_lines(read)
        return True

    def render(reply: Reply, console: Console, height: int | None) -> list[RenderableType]:
        rows = None if height is None else height - TABLE_LINES - int(reply.is_degraded)
        listed = reply.fields["workers"]
        table = workers_table(listed, console, stalled_after, max_rows=rows)
        shown = table if listed or not model else _without_workers(model, console)
        return [shown, *([Text(DEGRADED, style="yellow")] if reply.is_degraded else [])]

    await watch.show(read, render)
    return True


def _without_workers(model: str, console: Console) -> Text:
    return cell(
        f"No live worker serves the model {model}. `controller models` lists the served models.", console.encoding
    )


DEGRADED: Final = "Redis is unavailable: this is the state from before, as the replica remembers it."


async def fetch_workers(controller: Controller) -> list[dict[str, Any]]:
    """Return the workers that GET `/workers` lists. Raises ControllerUnreachable."""
    workers: list[dict[str, Any]] = (await request(controller, "/workers", "workers"))["workers"]
    return workers


def sort_workers(workers: Sequence[Worker], sort: str, stalled_after: float = STALLED_AFTER) -> list[Worker]:
    """Return the workers in an order of SORTS."""
    return sorted(workers, key=lambda worker: (*SORTS[sort](worker, stalled_after), worker["worker_name"]))


def load_of(worker: Worker) -> float:
    """Return the requests of a worker per slot, or per unit of speed if its slots are unknown."""
    return float(worker["queue_length"] / (worker["capacity"] or worker["speed"] or 1))


SORTS: Final[Mapping[str, Callable[[Worker, float], tuple[float, ...]]]] = {
    "name": lambda _, __: (),
    "state": lambda worker, after: (_ORDER[state_of(worker, after)], -load_of(worker)),
    "load": lambda worker, _: (-load_of(worker),),
    "queue": lambda worker, _: (-worker["queue_length"],),
    "stalled": lambda worker, _: (-(worker.get("stalled_for") or 0),),
    "heartbeat": lambda worker, _: (-worker["heartbeat_age"],),
}


def state_of(worker: Worker, stalled_after: float = STALLED_AFTER) -> str:
    """Return the state of a worker in one word. A draining worker may be failing or stalled, too."""
    if worker["draining"]:
        return "drained" if worker["drained"] else "draining"
    if worker["failing"]:
        return "failing"
    return "stalled" if is_stalled(worker, stalled_after) else "serving"


def is_stalled(worker: Worker, stalled_after: float = STALLED_AFTER) -> bool:
    """Return True if none of a worker's requests has finished for a while. Older controllers do not report it."""
    return (worker.get("stalled_for") or 0.0) >= stalled_after


def workers_table(
    workers: Sequence[Worker], console: Console, stalled_after: float = STALLED_AFTER, max_rows: int | None = None
) -> RenderableType:
    """Return a table with one row for each worker, and with the columns that the console has room for.

    Worker names and models are broken if the console has no room for the most important columns either.

    max_rows: how many rows a screen that refreshes has room for.
    """
    shown = workers if max_rows is None else workers[: max(1, max_rows)]
    rows = [worker_row(worker, console.encoding, stalled_after) for worker in shown]
    title = count(len(workers), "live worker")
    if len(shown) < len(workers):
        title += f", the first {len(shown)} of them"
    return fit_table(title, _COLUMNS, _ALWAYS_SHOWN, rows, console, is_live=max_rows is not None)


def worker_row(worker: Worker, encoding: str, stalled_after: float) -> Row:
    """Return the cells of a worker."""
    expires_in = worker["expires_in"]
    return {
        "worker": cell(worker["worker_name"], encoding),
        "state": state_cell(worker, stalled_after),
        "queue": str(worker["queue_length"]),
        "slots": slots(worker),
        "models": cell(", ".join(worker["model_names"]), encoding),
        "leased": str(worker["leased"]),
        "heartbeat": f"{worker['heartbeat_age']:.1f} s ago",
        "expires in": "never" if expires_in is None else f"{expires_in:.1f} s",
        "speed": f"{worker['speed']:g}",
    }


def state_cell(worker: Worker, stalled_after: float) -> Text:
    """Return the state of a worker, in its color, with the time for which it is stalled."""
    state = state_of(worker, stalled_after)
    suffix = f" {duration(worker['stalled_for'])}" if is_stalled(worker, stalled_after) and state != "drained" else ""
    return Text(f"{state}{suffix}", style=_STYLES[state])


def slots(worker: Worker) -> str:
    """Return the capacity, with `set` if it is configured, or `learned`. Older controllers do not send the source."""
    if worker["capacity"] is None:
        return ""
    suffix = {"configured": " set", "learned": " learned"}.get(worker.get("capacity_source") or "", "")
    return f"{worker['capacity']}{suffix}"
