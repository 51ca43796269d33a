"""`controller route` on a real controller with two replicas."""

import json

import pytest
from click.testing import CliRunner

from controller.cli.main import main
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call

pytestmark = [pytest.mark.system]

A, B = "http://127.0.0.1:1/a", "http://127.0.0.1:1/b"


class Console:
    """Runs commands with the address of a controller."""

    def __init__(self, controller: ControllerProcess) -> None:
        self.environment = {"CONTROLLER_ADDRESS": controller.url}

    def run(self, *arguments: str) -> tuple[int, str, str]:
        """Return the exit status, the output and the errors."""
        ran = CliRunner().invoke(main, ["route", *arguments], env=self.environment)
        return ran.exit_code, ran.stdout, ran.stderr


def test_operator_sets_lists_and_removes_routes(serve: Serve) -> None:
    controller = serve("--replicas", "2", "--poll-interval", "0")
    controller.register(A, "qwen-7b")
    console = Console(controller)
    assert "No model name has a route." in console.run("list")[1]
    assert console.run("set", "gpt-small", "--to", "qwen-7b=90,qwen-7b-next=10", "--fallback", "qwen-1b") == (
        0,
        "Requests of gpt-small go to qwen-7b=90, qwen-7b-next=10, with the fallbacks qwen-1b. All replicas use this "
        "route now.\n",
        "Warning: No live worker serves qwen-7b-next, qwen-1b now. The other models get its requests until then.\n",
    )
    controller.register(B, "qwen-7b-next")
    assert console.run("set", "alias", "--to", "qwen-7b") == (
        0, "Requests of alias go to qwen-7b. All replicas use this route now.\n", "",
    )  # fmt: skip
    for _ in range(8):  # connections go to either replica
        names = [each["model"] for each in call(f"{controller.url}/model_routes", method="GET")["model_routes"]]
        assert names == ["alias", "gpt-small"]
    status, printed, _ = console.run("list")
    assert (status, "2 routes" in printed) == (0, True)
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert "gpt-small qwen-7b=90, qwen-7b-next=10 qwen-1b qwen-1b" in rows
    assert json.loads(console.run("list", "--json")[1])["model_routes"][1] == {
        "model": "gpt-small",
        "targets": {"qwen-7b": 90, "qwen-7b-next": 10},
        "fallbacks": ["qwen-1b"],
        "unserved": ["qwen-1b"],
    }
    assert console.run("remove", "alias") == (0, "Removed the route of alias. No replica uses it now.\n", "")
    status, _, error = console.run("remove", "alias")
    assert (status, error) == (
        1, "Error: alias has no route to remove. `controller route list` shows the routes.\n",
    )  # fmt: skip


def test_routes_survive_a_restart_with_their_data(serve: Serve) -> None:
    first = serve("--poll-interval", "0", data="same")
    Console(first).run("set", "gpt", "--to", "a=1", "--to", "b=2", "--fallback", "c,d")
    first.stop()
    again = serve("--poll-interval", "0", data="same")
    assert call(f"{again.url}/model_routes", method="GET")["model_routes"] == [
        {"model": "gpt", "targets": {"a": 1, "b": 2}, "fallbacks": ["c", "d"], "unserved": ["a", "b", "c", "d"]}
    ]


def test_warnings_say_what_happens_to_the_requests(serve: Serve) -> None:
    controller = serve("--poll-interval", "0")
    controller.register(A, "small")
    console = Console(controller)
    assert console.run("set", "gpt", "--to", "a,off=0")[2] == (
        "Warning: None of these models has a live worker now, so requests of gpt fail until one registers.\n"
    )
    assert console.run("set", "gpt", "--to", "a,small=0", "--fallback", "small")[2] == (
        "Warning: No target has a live worker now, so all requests of gpt go to the fallbacks.\n"
    )


def test_wrong_routes_are_refused_by_the_controller(serve: Serve) -> None:
    console = Console(serve())
    for arguments, message in (
        (["gpt", "--to", "a=0"], "targets: need a weight above 0"),
        (["gpt", "--to", "a=1000001"], "targets: each weight must be a whole number from 0 to 1000000"),
        (["gpt", "--to", "a", "--fallback", "b,b"], "fallbacks: must be at most 16 different models"),
        (["g\npt", "--to", "a"], "model: must have 1 to 512 characters, without control characters"),
    ):
        status, printed, error = console.run("set", *arguments)
        assert (status, printed, error.count("\n")) == (1, "", 1)
        assert message in error
