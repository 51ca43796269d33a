"""Commands without Redis, with a connection that breaks, on a narrow terminal, and after Ctrl-C."""

import signal
import socketserver
import threading
from collections.abc import Coroutine
from typing import Any

import pytest
from click.testing import CliRunner

from controller import __main__ as entry_point
from controller.cli import operations, show
from controller.cli.events import as_line, fitted
from controller.cli.main import main
from controller.cli.workers import DEGRADED
from tests.cli.conftest import FakeController
from tests.cli.samples import listed
from tests.cli.test_commands import ROUTE, A, B


@pytest.mark.parametrize(
    "command", [["workers"], ["models"], ["top"], ["worker", A], ["capacity", "list"], ["route", "list"]]
)
@pytest.mark.parametrize("is_empty", [True, False])
def test_lists_say_that_they_are_old(fake: FakeController, command: list[str], is_empty: bool) -> None:
    fake.responses = {
        "/workers": {"workers": [listed(A, "m")] if not is_empty or command[0] == "worker" else []},
        "/events": "",
        "/capacities": {"capacities": [] if is_empty else [{"model": "m", "capacity": 5}]},
        "/model_routes": {"model_routes": [] if is_empty else [ROUTE]},
    }
    assert "Redis is unavailable" not in fake.run(*command).stdout
    fake.is_degraded = True
    assert DEGRADED in fake.run(*command).stdout


def test_refresh_without_redis_fails(fake: FakeController) -> None:
    fake.responses = {"/workers": {"workers": [listed(A, "m")]}, "/refresh_all_workers": "null"}
    ran = fake.run("refresh")
    assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (0, "1 live worker.")
    fake.is_degraded = True
    ran = fake.run("refresh")
    assert (ran.exit_code, "Redis is unavailable" in ran.stderr) == (1, True)


def test_remove_without_redis_names_what_failed(fake: FakeController) -> None:
    """The list of engines matters only for a name that no live worker has."""
    away = (503, {"error": {"message": "Redis is unavailable."}})
    fake.responses = {"/workers": {"workers": [listed(A, "m")]}, "/engines": away, "/remove_worker": away}
    ran = fake.run("remove", A)
    assert (ran.exit_code, fake.sent("/remove_worker")) == (1, [{"worker_name": A, "reason": ""}])
    assert f"{fake.url}/remove_worker returned status 503: Redis is unavailable." in ran.stderr
    ran = fake.run("remove", B)
    assert (ran.exit_code, "/engines returned status 503: Redis is unavailable." in ran.stderr) == (1, True)


def test_a_worker_that_redis_has_lost_for_a_moment_is_not_gone(
    fake: FakeController, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas restore what Redis has lost."""
    monkeypatch.setattr(operations, "_INTERVAL", 0.01)
    drains = listed(A, "m", draining=True)
    lists = iter([[drains], [drains], [], [], [{**drains, "drained": True}]])
    fake.responses = {"/workers": lambda: {"workers": next(lists)}, "/drain_worker": {"exist": True}}
    ran = fake.run("drain", A, "--wait")
    assert (ran.exit_code, ran.stdout.splitlines()[-1]) == (0, f"{A} is idle.")
    assert "is gone" not in ran.output


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_port_for_tls_is_named_as_a_cause(scheme: str) -> None:
    """A server that gets HTTP where it expects TLS closes the connection, or sends an alert."""
    with socketserver.TCPServer(("127.0.0.1", 0), Closing) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            ran = FakeController(f"{scheme}://127.0.0.1:{server.server_address[1]}").run("workers")
        finally:
            server.shutdown()
            thread.join()
    assert ran.exit_code == 1
    assert ("If the port is one for TLS, use https://" in ran.stderr) is (scheme == "http")


class Closing(socketserver.BaseRequestHandler):
    """Reads a request, and closes its connection."""

    def handle(self) -> None:
        self.request.recv(65_536)


@pytest.mark.parametrize("columns", [60, 80])
def test_events_fit_the_terminal(columns: int) -> None:
    event = {
        "id": "1-1",
        "time": 1_790_000_000.0,
        "kind": "worker_registered",
        "worker": "http://gpu-17.example.org:21002",
    }
    event |= {"models": ["vicuna-7b", "llama"], "by": "no token from 127.0.0.1", "reason": "it has registered again"}
    line = as_line(event)
    assert fitted(line, None) == line
    lines = fitted(line, columns).splitlines()
    assert max(map(len, lines)) <= columns
    assert all(rest.startswith(" " * 10) for rest in lines[1:])
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())
    assert "http://gpu-17.example.org:21002" in " ".join(lines).split()
    assert fitted("short", columns) == "short"
    url = f"http://{'h' * 200}"
    assert url in fitted(f"00:00:00  worker registered  {url}", columns), "a name is not broken"


def test_ctrl_c_before_a_command_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(call: Coroutine[Any, Any, None] | None = None, **_: object) -> None:
        if call is not None:
            call.close()
        raise KeyboardInterrupt

    monkeypatch.setattr(show, "run", interrupted)
    ran = CliRunner().invoke(main, ["models"])
    assert (ran.exit_code, ran.output) == (130, "")
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        monkeypatch.setattr(main, "main", interrupted)
        with pytest.raises(SystemExit) as exited:
            entry_point.main()
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert exited.value.code == 130
