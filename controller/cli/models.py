"""The command `controller models`: the load of each model, computed from its workers."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich.console import Console, RenderableType
from rich.text import Text

from controller.cli.api import request_reply
from controller.cli.options import Controller
from controller.cli.tables import Column, Row, bar, cell, create_console, fit_table, print_json
from controller.cli.text import count, duration
from controller.cli.workers import DEGRADED, Worker, is_stalled
from controller.domain.stalls import STALLED_AFTER

_COLUMNS: Final = (
    Column("model", shortens=True),
    Column("workers", right=True),
    Column("queue", right=True),
    Column("problems", wraps=True),
    Column("load"),
    Column("slots", right=True),
    Column("leased", right=True),
)
_ALWAYS_SHOWN: Final = 4
_BAR: Final = 10  # characters for a load of 100 %

NONE_MISSING: Final[Mapping[str, float]] = {}
SORTS: Final[Mapping[str, Any]] = {
    "name": lambda _: 0,
    "load": lambda model: (model["missing_since"] is None, -(model["saturation"] or 0), -model["queue_length"]),
    "queue": lambda model: -model["queue_length"],
    "workers": lambda model: -model["workers"],
}


async def show_models(controller: Controller, sort: str, stalled_after: float, as_json: bool) -> None:
    """Print the models of the live workers, and the models whose last worker is gone. Raises ControllerUnreachable."""
    reply = await request_reply(controller, "/workers", "workers")
    models = models_of(reply.fields["workers"], sort, stalled_after, missing_models(reply.fields))
    if as_json:
        print_json({"models": models})
        return
    console = create_console()
    console.print(models_table(models, console))
    if reply.is_degraded:
        console.print(DEGRADED, style="yellow")


def missing_models(fields: Mapping[str, Any]) -> dict[str, float]:
    """Return the models that have lost their workers, and when, from the response of GET `/workers`.

    Older controllers do not report them.
    """
    return {each["model"]: each["since"] for each in fields.get("missing_models", ())}


def models_of(
    workers: Sequence[Worker],
    sort: str = "name",
    stalled_after: float = STALLED_AFTER,
    missing: Mapping[str, float] = NONE_MISSING,
) -> list[dict[str, Any]]:
    """Return the sums of the workers of each model. missing: models without a worker, and since when.

    A worker with several models counts for each of them. Draining workers have a queue, but no capacity for new
    requests. The capacity is the sum of the known capacities, and null if none is known. The saturation is the queue of
    the workers with a known capacity, divided by their capacity.
    """
    by_models: dict[tuple[str, ...], dict[str, int]] = {}  # many workers have the same hundreds of models
    for worker in workers:
        total = by_models.setdefault(tuple(worker["model_names"]), dict.fromkeys(_COUNTED, 0))
        is_sized = worker["capacity"] is not None and not worker["draining"]
        counted = {
            "workers": 1,
            "serving": not worker["draining"] and not worker["failing"] and not is_stalled(worker, stalled_after),
            "failing": bool(worker["failing"]),
            "stalled": is_stalled(worker, stalled_after),
            "draining": worker["draining"],
            "queue_length": worker["queue_length"],
            "leased": worker["leased"],
            "sized": is_sized,
            "capacity": worker["capacity"] if is_sized else 0,
            "queue_of_sized": worker["queue_length"] if is_sized else 0,
        }
        for field in _COUNTED:
            total[field] += counted[field]
    totals = {name: dict.fromkeys(_COUNTED, 0) for name in missing}
    for names, some in by_models.items():
        for name in names:
            total = totals.setdefault(name, dict.fromkeys(_COUNTED, 0))
            for field in _COUNTED:
                total[field] += some[field]
    models = [{**_model(name, total), "missing_since": missing.get(name)} for name, total in sorted(totals.items())]
    return sorted(models, key=SORTS[sort])


_COUNTED: Final = (
    "workers",
    "serving",
    "failing",
    "stalled",
    "draining",
    "queue_length",
    "leased",
    "sized",
    "capacity",
    "queue_of_sized",
)


def _model(name: str, total: Mapping[str, int]) -> dict[str, Any]:
    shown = {field: total[field] for field in _COUNTED if field not in ("sized", "capacity", "queue_of_sized")}
    capacity = total["capacity"] or None
    saturation = round(total["queue_of_sized"] / capacity, 3) if capacity else None
    return {"model": name, **shown, "capacity": capacity, "saturation": saturation}


def models_table(models: Sequence[Mapping[str, Any]], console: Console, max_rows: int | None = None) -> RenderableType:
    """Return a table with one row for each model. max_rows: as in workers_table()."""
    shown = models if max_rows is None else models[: max(1, max_rows)]
    rows: list[Row] = [
        {
            "model": cell(model["model"], console.encoding),
            "workers": str(model["workers"]),
            "queue": str(model["queue_length"]),
            "slots": "" if model["capacity"] is None else str(model["capacity"]),
            "load": _load(model["saturation"], console.encoding),
            "problems": _problems(model),
            "leased": str(model["leased"]),
        }
        for model in shown
    ]
    title = count(len(models), "model")
    if len(shown) < len(models):
        title += f", the first {len(shown)} of them"
    return fit_table(title, _COLUMNS, _ALWAYS_SHOWN, rows, console, is_live=max_rows is not None)


def _load(saturation: float | None, encoding: str) -> Text:
    if saturation is None:
        return Text("")
    style = "green" if saturation < 0.8 else "yellow" if saturation < 1 else "red"
    return Text(f"{saturation:4.0%} {bar(saturation, _BAR, encoding)}", style=style)


def _problems(model: Mapping[str, Any]) -> Text:
    found = [f"{model[kind]} {kind}" for kind in ("failing", "stalled", "draining") if model[kind]]
    if model["missing_since"] is not None:
        return Text(f"no worker for {duration(max(0.0, time.time() - model['missing_since']))}", style="red")
    if not model["serving"]:
        return Text(", ".join(["none serves", *found]), style="red")
    return Text(", ".join(found), style="yellow")
