"""Registers real engines as an operator does it, and asks them as a client of the gateway does it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from openai import OpenAI

from tests.support.real_engines import Engine, EngineKit
from tests.system.processes import ControllerProcess, call

NO_TOKEN = "none"  # of a client, if the controller has no tokens. The SDK requires one


def command(controller: ControllerProcess, *arguments: str, address: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command of `controller`. address: of the controller, if it is not its URL."""
    run = [sys.executable, "-m", "controller", *arguments, "--controller-address", address or controller.url]
    return subprocess.run(run, capture_output=True, text=True, check=False)


def register(
    controller: ControllerProcess,
    engine: Engine,
    *options: str,
    kit: EngineKit,
    served_as: str = "tiny",
    address: str = "",
) -> None:
    """Register an engine with one command. It is alive when the command ends."""
    if served_as != kit.model:
        options += ("--model", f"{kit.model}={served_as}")
    ran = command(controller, "register", engine.address, *options, address=address)
    assert ran.returncode == 0, ran.stderr
    assert f"Registered {engine.address}, an engine of the kind {kit.kind}." in ran.stdout
    assert "gets no requests" not in ran.stdout


def listed(controller: ControllerProcess) -> dict[str, dict[str, Any]]:
    """Return the live workers by name."""
    return {worker["worker_name"]: worker for worker in call(f"{controller.url}/workers", method="GET")["workers"]}


def sdk(controller: ControllerProcess, token: str = NO_TOKEN) -> OpenAI:
    """Return a client of the `openai` package. It does not retry, so each failure is seen."""
    return OpenAI(base_url=f"{controller.url}/v1", api_key=token, max_retries=0, timeout=60.0)


def events(body: bytes) -> Sequence[str]:
    """Return the data of the events of a stream."""
    return [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event.startswith("data: ")]


def last_error(body: bytes) -> dict[str, Any]:
    """Return the error with which a stream ends. Fails if it ends with another event."""
    error: dict[str, Any] = json.loads(events(body)[-1])["error"]
    return error
