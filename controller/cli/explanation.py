"""The command `controller explain`: which worker the next request of a model would get, and why."""

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

from rich.console import Console, RenderableType
from rich.text import Text

from controller.cli.api import request_reply
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, cell, create_console, fit_table, print_json
from controller.cli.text import count
from controller.cli.workers import DEGRADED

_STYLES: Final = {"free": "green", "full": "yellow", "failing": "red"}
_MEANINGS: Final = {
    "free": "Of the workers with a free slot or unknown slots, this one has the fewest requests for its speed.",
    "full": "No worker has a free slot. On this worker, the next request would wait for the shortest time.",
    "failing": "All workers of the model are failing. This worker has the lowest cost.",
}


async def show_explanation(controller: Controller, model: str, as_json: bool) -> bool:
    """Print the explanation. Return True if the model has a worker that can be chosen. Raises ControllerUnreachable."""
    reply = await request_reply(controller, f"/explain?model={quote(model, safe='')}", "candidates")
    explanation = reply.fields
    if as_json:
        print_json(explanation)
        return bool(explanation["candidates"])
    console = create_console()
    if explanation.get("routed_to"):  # an older replica does not say it
        text = f"{model} is a route to {', '.join(explanation['routed_to'])}. Its weights decide which model is first."
        console.print(cell(text, console.encoding), soft_wrap=not console.is_terminal)
    console.print(conclusion(explanation, console), soft_wrap=not console.is_terminal)
    if explanation["candidates"]:
        console.print(candidates_table(explanation, console))
    for worker in explanation["excluded"]:
        text = f"{worker['worker_name']} is excluded: {worker['reason']}."
        console.print(cell(text, console.encoding), soft_wrap=not console.is_terminal)
    if reply.is_degraded:
        console.print(DEGRADED, style="yellow")
    return bool(explanation["candidates"])


def conclusion(explanation: Mapping[str, Any], console: Console) -> Text:
    """Return what would happen to the next request, and why."""
    chosen, candidates = explanation["chosen"], explanation["candidates"]
    model = explanation.get("served_model", explanation["model"])
    if not explanation["workers"]:
        text = f"No live worker serves the model {model}. `controller models` lists the served models."
    elif not candidates:
        number = explanation["workers"]
        text = f"All {number} workers of the model {model} are draining."
        if number == 1:
            text = f"The only worker of the model {model} is draining."
    elif chosen is None:
        text = f"The next request of {model} goes to a worker at random, with these odds: dispatch by lottery."
    else:
        text = f"The next request of {model} goes to {chosen}. {_MEANINGS.get(candidates[0]['state'], '')}"
    return cell(text, console.encoding)


def candidates_table(explanation: Mapping[str, Any], console: Console) -> RenderableType:
    """Return a table with one row for each of the first candidates, the best first."""
    candidates = explanation["candidates"]
    has_odds = candidates[0]["odds"] is not None
    columns = (
        Column("worker", shortens=True, prefix="http://"),
        Column("state"),
        Column("odds" if has_odds else "cost", right=True),
        Column("requests", right=True),
        Column("slots", right=True),
        Column("speed", right=True),
        Column("leased", right=True),
    )
    rows: list[Row] = [
        {
            "worker": cell(each["worker_name"], console.encoding),
            "state": Text(_state(each["state"]), style=_STYLES.get(each["state"], "")),
            "odds": "" if each["odds"] is None else f"{each['odds']:.1%}",
            "cost": "" if each["cost"] is None else f"{each['cost']:.3g}",
            "requests": f"{each['queue_length']:.3g}",
            "slots": "" if each["capacity"] is None else str(each["capacity"]),
            "speed": f"{each['speed']:g}",
            "leased": str(each["leased"]),
        }
        for each in candidates
    ]
    others = explanation["workers"] - len(explanation["excluded"]) - len(candidates)
    title = f"{count(len(candidates), 'candidate')}, the best first"
    if others > 0:
        title += f" ({count(others, 'other')} not shown)"
    return fit_table(title, columns, 4, rows, console)


def _state(state: object) -> str:
    """Return the state of a candidate, or "?" if this version does not know it."""
    return state if isinstance(state, str) and state in _STYLES else "?"
