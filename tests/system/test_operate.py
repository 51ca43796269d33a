"""The commands of operators on a real controller: drain, resume, remove, refresh and watch."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, call, serves
from tests.system.servers import single

pytestmark = [pytest.mark.system]

A, B, C = (f"http://127.0.0.1:1/{name}" for name in "abc")


def command(controller: ControllerProcess, *arguments: str, **options: object) -> "subprocess.Popen[str]":
    environment = {**os.environ, "CONTROLLER_ADDRESS": controller.url}
    words = [sys.executable, "-m", "controller", *arguments]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(words, text=True, env=environment, **pipes)  # type: ignore[call-overload]


def output(controller: ControllerProcess, *arguments: str, answer: str = "") -> tuple[int, list[str]]:
    """Return the exit status and the lines of a command."""
    process = command(controller, *arguments)
    lines = process.communicate(answer, timeout=60)[0].splitlines()
    return process.returncode, lines


@contextmanager
def running(controller: ControllerProcess, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    process = command(controller, *arguments)
    try:
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


@pytest.fixture
def controller(controller: ControllerProcess) -> ControllerProcess:
    for name in (A, B, C):
        controller.register(name)
    return controller


def draining(controller: ControllerProcess) -> set[str]:
    return {worker["worker_name"] for worker in controller.workers() if worker["draining"]}


def test_drain_waits_until_the_worker_is_idle(controller: ControllerProcess) -> None:
    call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    with running(controller, "drain", A, "--wait", "--reason", "new driver") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"Draining {A}.\n"
        assert process.stdout.readline() == f"{A} has 2 requests left.\n"
        assert draining(controller) == {A}
        call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 0})
        assert process.stdout.readline() == f"{A} is idle.\n"
        assert process.wait(60) == 0


def test_a_worker_that_never_reports_its_queue_is_not_called_idle(controller: ControllerProcess) -> None:
    silent = "http://127.0.0.1:1/silent"
    controller.register(silent, check=False)
    status, lines = output(controller, "drain", silent, A, "--wait", "--yes")
    assert status == 5
    assert f"{A} is idle." in lines
    assert any(line.startswith(f"{silent}: it is not known whether requests are left.") for line in lines)


def test_a_deadline_ends_the_waiting_with_a_status_of_its_own(controller: ControllerProcess) -> None:
    call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    status, lines = output(controller, "drain", A, "--deadline", "0.5s")
    assert (status, lines[-1]) == (3, f"The deadline has passed. Still draining: {A}.")
    assert output(controller, "drain", A, "--deadline", "soon")[0] == 2


def test_ctrl_c_leaves_the_worker_draining(controller: ControllerProcess) -> None:
    call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    with running(controller, "drain", A, "--wait") as process:
        assert process.stdout is not None
        while "left" not in process.stdout.readline():
            pass
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert rest.strip() == (
        "Not waiting any more. The workers keep draining. `controller resume` lets them serve again."
    )
    assert process.returncode == 130
    assert draining(controller) == {A}


def test_patterns_cover_several_workers_after_a_question(controller: ControllerProcess) -> None:
    for answer in ("n\n", ""):  # "" is the end of the input, as Ctrl-C
        status, lines = output(controller, "drain", "127.0.0.1:1/*", answer=answer)
        assert (status, lines[-1].endswith("Nothing was changed.")) == (1, True)
    assert draining(controller) == set()
    assert output(controller, "drain", "127.0.0.1:1/*", answer="y\n")[0] == 0
    assert draining(controller) == {A, B, C}
    assert output(controller, "resume", "http://*/a", "127.0.0.1:?/b") == (0, [f"Resumed {A}.", f"Resumed {B}."])
    assert draining(controller) == {C}
    assert output(controller, "remove", C) == (0, [f"Removed {C}."])
    assert controller.names() == [A, B]


def test_brackets_of_ipv6_addresses_are_no_pattern(controller: ControllerProcess) -> None:
    controller.register("http://[::1]:1")
    assert output(controller, "drain", "http://[::1]:1")[0] == output(controller, "drain", "[::1]:*")[0] == 0
    assert draining(controller) == {"http://[::1]:1"}


def test_the_waiting_survives_a_restart_of_the_controller(serve: Serve) -> None:
    first = serve("--poll-interval", "0", data="same")
    first.register(A)
    call(f"{first.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    with running(first, "drain", A, "--wait") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        while "left" not in next(lines):
            pass
        first.popen.terminate()
        assert first.popen.wait(60) == 0
        assert "Trying again." in next(lines)
        again = serve("--poll-interval", "0", data="same", port=first.port)
        call(f"{again.url}/receive_heart_beat", {"worker_name": A, "queue_length": 0})
        assert next(lines) == f"{A} is idle.\n"
        assert process.wait(60) == 0


def test_names_that_a_pattern_covers_too_do_not_hide_the_question(controller: ControllerProcess) -> None:
    assert output(controller, "remove", "127.0.0.1:1/*", A, B, answer="n\n")[0] == 1
    assert controller.names() == [A, B, C]


def test_a_resumed_worker_ends_the_waiting_with_a_status_of_its_own(controller: ControllerProcess) -> None:
    call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    with running(controller, "drain", A, "--wait") as process:
        assert process.stdout is not None
        while "left" not in process.stdout.readline():
            pass
        assert output(controller, "resume", A)[0] == 0
        assert process.wait(60) == 4


def test_an_unknown_worker_is_an_error_and_changes_nothing(controller: ControllerProcess) -> None:
    status, lines = output(controller, "drain", A, "http://127.0.0.1:1/unknown")
    assert (status, draining(controller)) == (1, set())
    assert lines == ["Error: No live worker is named http://127.0.0.1:1/unknown. `controller workers` lists them."]


def test_a_removed_worker_ends_the_waiting(controller: ControllerProcess) -> None:
    call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
    with running(controller, "drain", A, "--wait") as process:
        assert process.stdout is not None
        while "left" not in process.stdout.readline():
            pass
        assert output(controller, "remove", A) == (0, [f"Removed {A}."])
        assert process.communicate(timeout=60)[0] == f"{A} is gone.\n"
        assert process.returncode == 0


async def test_ctrl_c_releases_the_leases_of_dispatch(controller: ControllerProcess) -> None:
    def leased() -> int:
        return sum(worker["leased"] for worker in controller.workers())

    with running(controller, "dispatch", "m", "--repeat", "10000") as process:
        await wait_until(leased, "some requests are booked")
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=120)[0]
        assert process.returncode == 130
        assert re.fullmatch(r"\nInterrupted after \d+ requests?. Released \d+ leases?: nothing stays booked.\n", rest)
        assert leased() == 0


async def test_the_waiting_does_not_trust_an_old_snapshot(serve: Serve, work_dir: Path) -> None:
    """Nor an empty Redis, in which the replica has not restored the worker yet."""
    async with single(work_dir) as store:
        controller = serve("--redis-url", store.url, "--poll-interval", "0", "--heartbeat-expiration", "600")
        controller.register(A)
        call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 2})
        with running(controller, "drain", A, "--wait") as process:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            assert [next(lines), next(lines)] == [f"Draining {A}.\n", f"{A} has 2 requests left.\n"]
            store.kill()
            assert "Redis is unavailable" in next(lines)
            store.start()  # it has lost its data
            await wait_until(lambda: serves(controller.url), "the replica uses Redis again")
            await wait_until(lambda: draining(controller) == {A}, "the worker is restored, and drains")
            call(f"{controller.url}/receive_heart_beat", {"worker_name": A, "queue_length": 0})
            rest = process.communicate(timeout=60)[0]
    assert (process.returncode, rest.splitlines()[-1]) == (0, f"{A} is idle.")


def test_a_revoked_token_ends_watch(serve: Serve) -> None:
    controller = serve(CONTROLLER_ADMIN_TOKENS="ops=a-secret-of-this-test")
    own = command(controller, "token", "list")
    assert "needs a token" in own.communicate(timeout=60)[0]
    assert own.returncode == 1
    ops = ("--controller-address", controller.url.replace("://", "://ops:a-secret-of-this-test@"))
    secret = output(controller, "token", "create", "--plane", "admin", "--name", "guest", *ops)[1][0]
    guest = ("--controller-address", controller.url.replace("://", f"://guest:{secret}@"))
    with running(controller, "watch", *guest) as process:
        assert process.stdout is not None
        while "create token" not in (line := process.stdout.readline()) and "create_token" not in line:
            assert line
        assert output(controller, "token", "revoke", "guest", *ops)[0] == 0
        rest = process.communicate(timeout=60)[0]
    assert "status 401" in rest
    assert process.returncode == 1


@pytest.mark.parametrize("arguments", [["watch", "--json"], ["watch"], ["workers", "--watch", "--json"]])
def test_ctrl_c_ends_watch_without_a_traceback(controller: ControllerProcess, arguments: list[str]) -> None:
    """`timeout` sends the signal twice."""
    with running(controller, *arguments) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        for _ in range(3):
            process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "Traceback" not in rest
    assert "KeyboardInterrupt" not in rest


def test_refresh_says_who_is_gone(controller: ControllerProcess) -> None:
    status, lines = output(controller, "refresh")
    assert (status, lines[0]) == (0, "Probing 3 workers.")


def test_watch_shows_who_did_what_and_why(serve: Serve) -> None:
    controller = serve("--poll-interval", "0")
    controller.register(A)
    output(controller, "drain", A, "--reason", "new \x1b[2J driver")
    with running(controller, "watch", "--last", "1") as process:
        assert process.stdout is not None
        day = process.stdout.readline().rstrip("\n")
        at, line = process.stdout.readline().rstrip("\n").split("  ", 1)
        controller.register(B)
        following = [process.stdout.readline() for _ in range(2)]
    assert time.strptime(f"{day} {at}", "%A, %d %B %Y %H:%M:%S")
    assert line == f"worker draining     {A}  by=no token from 127.0.0.1  (new ?[2J driver)"
    assert "models appeared" in following[0]
    assert B in following[1]


def test_watch_resumes_after_a_restart(serve: Serve) -> None:
    first = serve("--poll-interval", "0", data="same")
    first.register(A)
    with running(first, "watch", "--json") as process:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        while A not in next(lines):
            pass
        first.popen.terminate()
        assert first.popen.wait(60) == 0
        again = serve("--poll-interval", "0", data="same", port=first.port)
        again.register(B)
        events: list[str] = []
        while not events or B not in events[-1]:
            events.append(next(lines))
    assert not any(A in event or "gap" in event for event in events), "no event comes twice or is lost"
