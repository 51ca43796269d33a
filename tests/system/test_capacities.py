"""`controller capacity` and the settings for capacities on a real controller."""

import os
import re
import subprocess
import sys

import pytest

from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call

pytestmark = pytest.mark.system

A, B = "http://127.0.0.1:1/a", "http://127.0.0.1:1/b"


class Console:
    """Runs commands with the address of a controller."""

    def __init__(self, controller: ControllerProcess) -> None:
        self.environment = {**os.environ, "CONTROLLER_ADDRESS": controller.url}

    def run(self, *arguments: str) -> tuple[int, str]:
        """Return the exit status, and the output or the error."""
        command = [sys.executable, "-m", "controller", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60)
        return done.returncode, done.stderr if done.returncode else done.stdout

    def slots(self) -> list[str]:
        """Return the column `slots` of the table of workers."""
        status, printed = self.run("workers")
        assert status == 0, printed
        return [re.split(r"  +", line.strip())[3] for line in printed.splitlines() if "http" in line]

    def rows(self, *arguments: str) -> list[list[str]]:
        """Return the cells of a table."""
        status, printed = self.run(*arguments)
        assert status == 0, printed
        return [line.split() for line in printed.splitlines() if line.split()[:1] in (["model"], ["worker"])]


def sources(controller: ControllerProcess) -> dict[str, tuple[int | None, str | None]]:
    workers = call(f"{controller.url}/workers", method="GET")["workers"]
    return {worker["worker_name"]: (worker["capacity"], worker["capacity_source"]) for worker in workers}


def test_operator_sets_lists_and_removes_capacities(serve: Serve) -> None:
    controller = serve("--replicas", "2", "--poll-interval", "0")
    console = Console(controller)
    for name in (A, B):
        controller.register(name)
    assert "No capacity is set." in console.run("capacity", "list")[1]
    assert console.run("capacity", "set", "m", "5") == (
        0,
        "Set the capacity of model m to 5. The model has 2 live workers.\n",
    )
    console.run("capacity", "set", A, "4")
    assert console.run("capacity", "set", A, "1") == (
        0,
        f"Set the capacity of worker {A} to 1 (previously 4). The worker is alive.\n",
    )
    assert console.rows("capacity", "list") == [["model", "m", "5"], ["worker", A, "1"]]
    assert console.slots() == ["1 set", "5 set"]
    first = controller.dispatch()
    assert {controller.dispatch() for _ in range(4)} == {B}, "A has one slot"
    assert first in (A, B)
    controller.register(B)
    assert sources(controller) == {A: (1, "configured"), B: (5, "configured")}
    removed = f"Removed the capacity 1 of worker {A}. The worker is alive.\n"
    assert console.run("capacity", "unset", A) == (0, removed)
    assert sources(controller)[A] == (5, "configured")
    assert console.run("capacity", "unset", A)[1].startswith(f"No capacity was set for worker {A}.")


def test_settings_apply_to_live_workers_and_what_was_set_survives_a_restart(serve: Serve) -> None:
    controller = serve("--poll-interval", "0")
    for name in (A, B):
        controller.register(name)
    Console(controller).run("capacity", "set", A, "3")
    assert sources(controller) == {A: (3, "configured"), B: (None, None)}
    controller.stop()
    controller = serve("--poll-interval", "0", "--capacity", "m=5,other=7", "--default-capacity", "9")
    controller.wait_for(lambda: sources(controller)[B] == (5, "configured"), "the settings apply")
    assert sources(controller)[A] == (3, "configured")


@pytest.mark.parametrize("number", ["0", "-1", "1.5", "many", "1000001"])
def test_invalid_number_is_rejected_before_the_call(number: str) -> None:
    command = [sys.executable, "-m", "controller", "capacity", "set", "--", "m", number]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert "Invalid value for 'N'" in done.stderr


def test_errors_of_the_controller_are_shown_in_one_line(serve: Serve) -> None:
    console = Console(serve())
    status, error = console.run("capacity", "set", "http://no host", "4")
    assert status == 1
    assert re.fullmatch(r"Error: http://\S+/set_capacity returned status 400: worker_name: has a character .*\n", error)
