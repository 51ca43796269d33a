"""Commands with unusual terminals, pipes, disks and directories work, or print why they fail in one line."""

import os
import pty
import select
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from ports import free_port

from tests.support.waiting import wait_until
from tests.system.conftest import Serve
from tests.system.processes import ControllerProcess, serves
from tests.system.test_serve import A

pytestmark = pytest.mark.system

CONTROLLER = (sys.executable, "-m", "controller")
LLAMA = "llama 🦙 名前"
NO_UTF_8 = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
ENVIRONMENTS: dict[str, Mapping[str, str]] = {
    "C locale": NO_UTF_8,
    "ASCII": {"PYTHONIOENCODING": "ascii"},
    "Latin-1": {"PYTHONIOENCODING": "latin-1"},
    "UTF-8": {"PYTHONIOENCODING": "utf-8"},
    "dumb": {"TERM": "dumb", **NO_UTF_8},
}


def shell(command: str, *words: str | bytes, **env: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a shell command in which "$@" is `controller` followed by the words."""
    return subprocess.run(
        ["/bin/sh", "-c", command, "sh", *CONTROLLER, *words],
        capture_output=True,
        env={**os.environ, **env},
        timeout=60,
        check=False,
    )


def error_of(finished: "subprocess.CompletedProcess[bytes]") -> str:
    """Return the error of a failed command, which must be one line."""
    error = finished.stderr.decode()
    assert finished.returncode == 1, error
    assert error.startswith("Error: ")
    assert error.count("\n") == 1
    return error


@pytest.mark.parametrize("case", ENVIRONMENTS)
def test_the_table_uses_the_characters_of_the_encoding(controller: ControllerProcess, case: str) -> None:
    controller.register(A, LLAMA, check=False)
    shown = shell('exec "$@"', "workers", "--controller-address", controller.url, **ENVIRONMENTS[case])
    assert (shown.returncode, shown.stderr) == (0, b"")
    text = shown.stdout.decode("utf-8" if case == "UTF-8" else "ascii")
    assert A in text
    assert (LLAMA if case == "UTF-8" else "llama ? ??") in text
    if case != "UTF-8":
        assert len({len(line) for line in text.splitlines()[1:]}) == 1, "the columns are aligned"


@pytest.mark.parametrize("case", ["ASCII", "Latin-1", "UTF-8"])
def test_sentences_use_the_characters_of_the_encoding(controller: ControllerProcess, case: str) -> None:
    address = ("--controller-address", controller.url)
    for words, status in ((("capacity", "set", LLAMA, "5"), 0), (("explain", LLAMA), 1), (("dispatch", LLAMA), 1)):
        shown = shell('exec "$@"', *words, *address, **ENVIRONMENTS[case])
        assert (shown.returncode, shown.stderr) == (status, b"")
        assert any(name in shown.stdout.decode() for name in (LLAMA, "llama ? ??"))


def test_the_table_on_a_terminal_without_utf_8(controller: ControllerProcess) -> None:
    controller.register(A, LLAMA, check=False)
    ours, theirs = pty.openpty()
    command = [*CONTROLLER, "workers", "--controller-address", controller.url]
    env = {**os.environ, **NO_UTF_8, "TERM": "xterm", "COLUMNS": "200"}
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=env) as process:
        assert process.wait(120) == 0
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 0)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # Linux reports the end of the output this way
            break
    os.close(ours)
    assert b"llama ? ??" in shown
    assert b"Traceback" not in shown


@pytest.mark.slow
def test_a_closed_pipe_causes_no_traceback(controller: ControllerProcess) -> None:
    for i in range(300):  # more output than a pipe buffers
        controller.register(f"http://127.0.0.1:1/{i}", "m" * 200, check=False)
    for words in (("workers", "--controller-address", controller.url), ("serve", "--help")):
        assert shell('"$@" | head -n 1', *words).stderr == b""
        assert shell('exec "$@" >&-', *words).stderr == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_output_that_cannot_be_written(controller: ControllerProcess) -> None:
    for words in (
        ("workers", "--controller-address", controller.url),
        ("--help",),
        ("serve", "--help"),
        ("--version",),
    ):
        error = error_of(shell('exec "$@" >/dev/full', *words))
        assert error == "Error: The output cannot be written: No space left on device.\n"


@pytest.mark.parametrize("env", [{}, NO_UTF_8], ids=["UTF-8", "C locale"])
@pytest.mark.parametrize(
    "words",
    [
        ("serve", "--host", b"caf\xe9"),
        ("serve", "--host", "🦙.invalid"),
        ("serve", "--data-dir", b"/proc/caf\xe9"),
        ("serve", "--namespace", b"caf\xe9"),
        ("serve", "--redis-url", b"redis://caf\xe9"),
        ("serve", "--redis-url", "redis://h", "--redis-password-file", b"/caf\xe9"),
        ("serve", "--ssl", "--ssl-certfile", "x", "--ssl-keyfile", b"/caf\xe9"),
        ("serve", "--parent", b"http://caf\xe9", "--advertise", "http://x:1"),
        ("workers", "--controller-address", b"http://caf\xe9"),
        ("workers", "--controller-address", b"caf\xe9"),
    ],
)
def test_values_that_are_not_text_are_rejected_with_one_line(
    words: tuple[str | bytes, ...], env: dict[str, str]
) -> None:
    """error_of() checks the exit status and the line."""
    error_of(shell('exec "$@"', *words, **env))


def test_help_without_utf_8() -> None:
    for words in (("--help",), ("serve", "--help"), ("workers", "--help")):
        shown = shell('exec "$@"', *words, **NO_UTF_8)
        assert (shown.returncode, shown.stderr) == (0, b"")


@pytest.mark.parametrize("flags", [(), ("--replicas", "2")])
async def test_the_controller_serves_in_a_directory_whose_name_is_not_utf_8(
    work_dir: Path, flags: tuple[str, ...]
) -> None:
    """The name is part of the address that replicas get, and of messages in the log and in responses."""
    directory = work_dir / os.fsdecode(b"caf\xe9")
    directory.mkdir()
    port = free_port()
    command = [*CONTROLLER, "serve", "--host", "127.0.0.1", "--port", str(port), "--shutdown-delay", "0", *flags]
    with (
        (work_dir / "log").open("wb") as log,
        subprocess.Popen(command, cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL) as process,
    ):
        try:
            await wait_until(lambda: serves(f"http://127.0.0.1:{port}"), "the controller is ready")
            assert (directory / "controller-data" / "store.sock").exists()
        finally:
            process.terminate()
    logged = (work_dir / "log").read_text()
    assert process.returncode == 0
    assert "caf\\udce9/controller-data" in logged
    assert "Traceback" not in logged


def test_names_outside_the_encoding_of_the_log_are_escaped(serve: Serve) -> None:
    controller = serve("--poll-interval", "0", "--log-format", "text", **NO_UTF_8)
    controller.register(A, LLAMA, check=False)
    assert f"Registered new worker {A}: models ['llama \\U0001f999" in controller.log
    assert "Traceback" not in controller.log


def test_a_working_directory_that_was_deleted(work_dir: Path) -> None:
    (work_dir / "gone").mkdir()
    error = error_of(shell(f'cd {work_dir}/gone && rmdir {work_dir}/gone && exec "$@"', "serve"))
    assert error == "Error: The controller cannot run: [Errno 2] No such file or directory.\n"


@pytest.mark.parametrize("streams", ["<&-", ">&- 2>&-", "<&- >&- 2>&-", "2>/dev/full"])
async def test_the_controller_serves_without_standard_streams(work_dir: Path, streams: str) -> None:
    port = free_port()
    flags = ["--port", str(port), "--data-dir", str(work_dir / "data"), "--shutdown-delay", "0", "--replicas", "2"]
    script = f'exec "$@" {streams}'
    with subprocess.Popen(["/bin/sh", "-c", script, "sh", *CONTROLLER, "serve", *flags]) as process:
        try:
            await wait_until(lambda: serves(f"http://127.0.0.1:{port}"), "the controller is ready")
        finally:
            process.terminate()
    assert process.returncode == 0
