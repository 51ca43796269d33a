"""The command `controller register`: registers a worker that does not do so itself."""

from collections.abc import Sequence
from typing import Any

from controller.cli.api import request
from controller.cli.options import Controller
from controller.cli.tables import create_console
from controller.cli.worker import worker_table
from controller.cli.workers import fetch_workers
from controller.domain.errors import ControllerRefused, ControllerUnreachable, InvalidInput
from controller.domain.stalls import STALLED_AFTER
from controller.domain.worker import worker_name


async def register_worker(
    controller: Controller,
    url: str,
    models: Sequence[str],
    speed: float,
    queue_length: int,
    capacity: int | None,
    *,
    heartbeats: bool,
    multimodal: bool,
) -> list[str]:
    """Register a worker and print what the controller has registered. Return sentences about it.

    models: without any, the controller asks the worker for its status, and the next three values are ignored.

    Raises ControllerUnreachable.
    """
    try:
        name = worker_name(url)
    except InvalidInput as error:
        raise ControllerUnreachable(f"{url} {error.problem}.") from error
    body: dict[str, Any] = {"worker_name": name, "check_heart_beat": heartbeats, "multimodal": multimodal}
    if models:
        status: dict[str, Any] = {"model_names": list(models), "speed": speed, "queue_length": queue_length}
        body["worker_status"] = status if capacity is None else {**status, "capacity": capacity}
    await request(controller, "/register_worker", "", body)
    try:
        registered = {worker["worker_name"]: worker for worker in await fetch_workers(controller)}.get(name)
    except ControllerRefused:  # a token for workers may register, but not list
        return [f"Registered {name}."]
    if registered is None:
        return [f"Registered {name}, but it is not listed. `controller watch` shows what happened to it."]
    console = create_console()
    console.print(worker_table(registered, console, STALLED_AFTER))
    sentences = [f"Registered {name}."]
    if registered["expires_in"] is not None:
        sentences.append(
            f"It expires in {registered['expires_in']:.0f} s unless it sends heartbeats. Use --no-heartbeats for a "
            "worker that sends none."
        )
    return sentences
