"""The command `controller register`: registers an engine, or a worker that does not register itself."""

import contextlib
from typing import Any, Final, NamedTuple

from controller.cli.api import request
from controller.cli.engine_options import Description
from controller.cli.options import Controller
from controller.cli.tables import create_console
from controller.cli.worker import worker_table
from controller.cli.workers import fetch_workers
from controller.domain.engine import Protocol
from controller.domain.engine_entry import AUTO
from controller.domain.errors import ControllerRefused, ControllerSilent, ControllerUnreachable, InvalidInput
from controller.domain.stalls import STALLED_AFTER
from controller.domain.worker import worker_name

_TIMEOUT: Final = 60.0  # seconds: the controller asks the worker, and its timeouts may be long


class Details(NamedTuple):
    """The options of the command that describe a worker.

    engine: a kind of engine, "fastchat", or "auto".
    queue_length, heartbeats, multimodal: of a worker of FastChat.
    """

    engine: str
    description: Description
    queue_length: int
    heartbeats: bool
    multimodal: bool


async def register_worker(controller: Controller, url: str, details: Details) -> list[str]:
    """Register a worker and print what the controller has registered. Return sentences about it.

    Raises ControllerUnreachable.
    """
    try:
        name = worker_name(url)
    except InvalidInput as error:
        raise ControllerUnreachable(f"{url} {error.problem}.") from error
    controller = controller._replace(timeout=max(controller.timeout, _TIMEOUT))
    if details.engine == Protocol.FASTCHAT:
        return await _register_fastchat(controller, name, details)
    try:
        return await _register_engine(controller, name, details)
    except ControllerSilent:  # nor would the controller answer the second request
        raise
    except ControllerUnreachable as no_engine:
        # An older controller has no route for engines.
        may_be_fastchat = not details.description.models or isinstance(no_engine, ControllerRefused)
        if details.engine != AUTO or details.description.key_file or not may_be_fastchat:
            raise
        try:
            return await _register_fastchat(controller, name, details)
        except ControllerUnreachable as no_worker:
            raise ControllerUnreachable(
                f"{str(no_engine).rstrip('.')}. It does not answer as a worker of FastChat either: {no_worker}"
            ) from no_worker


async def _register_engine(controller: Controller, name: str, details: Details) -> list[str]:
    description = details.description
    body: dict[str, Any] = {
        "worker_name": name,
        "engine": details.engine,
        "models": description.public_names(),
        "speed": description.speed,
        "capacity": description.capacity,
    }
    if description.key_file is not None:
        body["api_key"] = description.read_key()
    engine = await request(controller, "/register_engine", "worker_name", body)
    sentence = f"Registered {name}, an engine of the kind {engine['engine']}."
    if not engine["alive"]:
        problem = str(engine["problem"]).rstrip(".")
        return [f"{sentence} The engine gets no requests until it is ready: {problem}."]
    with contextlib.suppress(ControllerRefused):  # a token for workers may register, but not list
        await _print(controller, name)
    return [sentence, "The controller polls it until `controller remove`. `controller engines` shows its state."]


async def _register_fastchat(controller: Controller, name: str, details: Details) -> list[str]:
    """Register a worker of FastChat. Without models, the controller asks it for its status."""
    description = details.description
    body: dict[str, Any] = {
        "worker_name": name,
        "check_heart_beat": details.heartbeats,
        "multimodal": details.multimodal,
    }
    if description.models:
        status: dict[str, Any] = {
            "model_names": list(description.models),
            "speed": description.speed,
            "queue_length": details.queue_length,
        }
        capacity = {} if description.capacity is None else {"capacity": description.capacity}
        body["worker_status"] = status | capacity
    await request(controller, "/register_worker", "", body)
    try:
        registered = await _print(controller, name)
    except ControllerRefused:  # a token for workers may register, but not list
        return [f"Registered {name}."]
    if registered is None:
        return [f"Registered {name}, but it is not listed. `controller watch` shows what happened to it."]
    sentences = [f"Registered {name}."]
    if registered["expires_in"] is not None:
        sentences.append(
            f"It expires in {registered['expires_in']:.0f} s unless it sends heartbeats. Use --no-heartbeats for a "
            "worker that sends none."
        )
    return sentences


async def _print(controller: Controller, name: str) -> dict[str, Any] | None:
    """Print a worker as the controller lists it. Return None if it does not list it."""
    registered = {worker["worker_name"]: worker for worker in await fetch_workers(controller)}.get(name)
    if registered is not None:
        console = create_console()
        console.print(worker_table(registered, console, STALLED_AFTER))
    return registered
