"""Signals of terminals and service managers work alike with one replica and with several."""

import contextlib
import os
import pty
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves, stock_worker
from tests.system.test_serve import children, replicas
from tests.system.test_shutdown import MODEL, readiness, start_stream

pytestmark = pytest.mark.system

NUMBERS = pytest.mark.parametrize("number", [1, 2], ids=["1 replica", "2 replicas"])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux, which shows the loaded modules of a process")
IN_TERMINAL = 'exec "$@" <"$0" >"$0" 2>&1'  # the first terminal that a session opens becomes its controlling terminal
WITHOUT_EFFECT = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2)


async def start(serve: Serve, number: int, *flags: str, **options: Any) -> ControllerProcess:
    controller = serve("--replicas", str(number), *flags, **options)
    await wait_until(lambda: started(controller) == number, "all replicas serve")
    return controller


def started(controller: ControllerProcess) -> int:
    return controller.log.count("Application startup complete")


def send_to_all(controller: ControllerProcess, number: signal.Signals) -> None:
    """Send a signal to the whole process group, as a terminal does."""
    os.killpg(controller.popen.pid, number)


@pytest.fixture
def terminal() -> Iterator[tuple[str, ...]]:
    """Yield a wrapper of a command that gives it a controlling terminal. Its output goes elsewhere."""
    ours, theirs = pty.openpty()
    yield ("sh", "-c", ': <"$0"; exec "$@"', os.ttyname(theirs))
    os.close(ours)
    os.close(theirs)


@NUMBERS
@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
async def test_terminal_signals_shut_down_cleanly(
    serve: Serve, terminal: tuple[str, ...], number: int, sent: signal.Signals
) -> None:
    controller = await start(serve, number, "--shutdown-delay", "600", wrap=terminal)
    processes = [psutil.Process(pid) for pid in children(controller)]
    send_to_all(controller, sent)
    assert controller.popen.wait(120) == 0
    await wait_until(lambda: not any(process.is_running() for process in processes), "all processes have ended")
    assert controller.log.count("Finished server process") == number
    assert "died" not in controller.log
    assert "crashed" not in controller.log
    assert "Traceback" not in controller.log


@pytest.mark.parametrize("sent", [signal.SIGHUP, signal.SIGQUIT, signal.SIGINT])
async def test_the_supervisor_forwards_signals_to_its_replicas(
    serve: Serve, terminal: tuple[str, ...], sent: signal.Signals
) -> None:
    controller = await start(serve, 2, "--shutdown-delay", "600", wrap=terminal)
    os.kill(controller.popen.pid, sent)
    assert controller.popen.wait(120) == 0
    assert "serving for another 600 s" not in controller.log


@NUMBERS
async def test_a_second_sigterm_skips_the_delay(serve: Serve, number: int) -> None:
    controller = await start(serve, number, "--shutdown-delay", "600")
    os.kill(controller.popen.pid, signal.SIGTERM)
    await wait_until(
        lambda: controller.log.count("serving for another 600 s") == number, "all replicas are shutting down"
    )
    os.kill(controller.popen.pid, signal.SIGTERM)
    assert controller.popen.wait(120) == 0


@NUMBERS
async def test_one_sigterm_to_all_processes_counts_once(serve: Serve, number: int) -> None:
    """systemd sends SIGTERM to all processes of a service."""
    controller = await start(serve, number, "--shutdown-delay", "600")
    for pid in (*replicas(controller), controller.popen.pid):
        os.kill(pid, signal.SIGTERM)
    await wait_until(
        lambda: controller.log.count("serving for another 600 s") == number, "all replicas are shutting down"
    )
    if number > 1:
        await wait_until(lambda: "Received SIGTERM" in controller.log, "the supervisor has forwarded the signal")
    assert [readiness(controller) for _ in range(20)] == [(503, "shutting_down")] * 20
    assert '"message": "Shutting down"' not in controller.log, "uvicorn has not begun to end"
    os.kill(controller.popen.pid, signal.SIGTERM)
    assert controller.popen.wait(120) == 0


@NUMBERS
async def test_closing_the_terminal_ends_the_controller(serve: Serve, number: int) -> None:
    """The shutdown completes although its log lines cannot be written."""
    ours, terminal = pty.openpty()
    os.set_blocking(ours, False)
    name = os.ttyname(terminal)
    controller = serve("--replicas", str(number), wrap=("sh", "-c", IN_TERMINAL, name), ready=False)
    output = bytearray()

    def all_started() -> bool:
        with contextlib.suppress(BlockingIOError):
            output.extend(os.read(ours, 65536))
        return output.count(b"Application startup complete") == number

    await wait_until(all_started, "all replicas serve")
    processes = [psutil.Process(pid) for pid in children(controller)]
    assert number == 1 or len(processes) >= 4
    os.close(terminal)
    os.close(ours)
    assert controller.popen.wait(120) == 0
    await wait_until(lambda: not any(process.is_running() for process in processes), "all processes have ended")


@NUMBERS
async def test_under_nohup_closing_the_terminal_has_no_effect(
    serve: Serve, terminal: tuple[str, ...], number: int
) -> None:
    controller = await start(serve, number, wrap=(*terminal, "sh", "-c", """trap '' HUP; exec "$@\"""", "sh"))
    before = replicas(controller)
    send_to_all(controller, signal.SIGHUP)
    if sys.platform == "linux":
        assert all(ignores(pid, signal.SIGHUP) for pid in (controller.popen.pid, *before))
    assert serves(controller.url)
    assert replicas(controller) == before
    assert controller.stop() == 0
    assert "SIGHUP" not in controller.log
    assert started(controller) == number, "no replica was replaced"


def ignores(pid: int, number: int) -> bool:
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(status["SigIgn"], 16) >> (number - 1) & 1)


@NUMBERS
async def test_job_control_and_user_signals_have_no_effect(serve: Serve, number: int) -> None:
    controller = await start(serve, number)
    before = replicas(controller)
    for each in WITHOUT_EFFECT:
        send_to_all(controller, each)
    assert serves(controller.url)
    assert replicas(controller) == before
    assert controller.stop() == 0
    assert started(controller) == number, "no replica was replaced or added"


@pytest.mark.parametrize(
    "moment", ["no child yet", pytest.param("importing", marks=(LINUX, pytest.mark.slow)), "started"]
)
async def test_ctrl_c_while_replicas_start_leaves_no_traceback(serve: Serve, moment: str) -> None:
    controller = serve("--replicas", "3", ready=False)
    reached = {
        "no child yet": lambda: "Listening on" in controller.log,
        "importing": lambda: any(imports(pid, "_asyncio") for pid in replicas(controller)),
        "started": lambda: "Started server process" in controller.log,
    }[moment]
    await wait_until(reached, moment, interval=0.001)
    send_to_all(controller, signal.SIGINT)
    assert controller.popen.wait(120) == 0
    assert "Traceback" not in controller.log
    assert "died" not in controller.log
    assert "crashed" not in controller.log


def imports(pid: int, library: str) -> bool:
    """Return True if a process has loaded a compiled module of this name."""
    with contextlib.suppress(psutil.Error):
        return any(library in mapped.path for mapped in psutil.Process(pid).memory_maps())
    return False


async def test_ctrl_c_while_the_store_starts_leaves_no_traceback(serve: Serve) -> None:
    controller = serve(ready=False)
    await wait_until((controller.data_dir / "lock").exists, "the data directory is locked", interval=0.001)
    send_to_all(controller, signal.SIGINT)
    assert controller.popen.wait(120) == 0
    assert controller.log == ""


@pytest.mark.slow
async def test_a_hung_replica_does_not_prevent_the_shutdown(serve: Serve) -> None:
    controller = await start(serve, 2, "--shutdown-timeout", "0")
    hung = replicas(controller)[0]
    os.kill(hung, signal.SIGSTOP)
    os.kill(controller.popen.pid, signal.SIGTERM)
    assert controller.popen.wait(120) == 0
    assert f"Process {hung} did not end within its time limit. Killing it." in controller.log
    assert not psutil.pid_exists(hung)


async def test_replicas_are_replaced_after_the_working_directory_is_deleted(serve: Serve, work_dir: Path) -> None:
    directory = work_dir / "working"
    directory.mkdir()
    controller = await start(serve, 2, wrap=("sh", "-c", """cd "$0"; exec "$@\"""", str(directory)))
    directory.rmdir()
    before = replicas(controller)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    await wait_until(lambda: started(controller) == 4, "both replicas are replaced")
    assert not set(replicas(controller)) & set(before)
    await wait_until(lambda: serves(controller.url), "the replicas serve")


@NUMBERS
async def test_sighup_does_not_end_a_service(serve: Serve, number: int) -> None:
    """Without a terminal it asks to read files again, which happens without a signal."""
    controller = await start(serve, number)
    before = replicas(controller)
    send_to_all(controller, signal.SIGHUP)
    os.kill(controller.popen.pid, signal.SIGHUP)
    assert serves(controller.url)
    assert replicas(controller) == before
    assert controller.stop() == 0
    assert started(controller) == number, "no replica was replaced"


async def test_sighup_finishes_a_running_stream(serve: Serve, terminal: tuple[str, ...], work_dir: Path) -> None:
    controller = await start(serve, 2, "--shutdown-timeout", "30", wrap=terminal)
    with stock_worker(work_dir, controller.url, *MODEL, "--delay", "0.1", interval=60):
        task = await start_stream(controller, 20)
        send_to_all(controller, signal.SIGHUP)
        frames, last = await task
        assert (frames, last["error_code"]) == (21, 0)
        assert controller.popen.wait(120) == 0
