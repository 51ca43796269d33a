"""Child processes of a benchmark, each with its own log."""

import os
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

START_TIMEOUT = 30.0
STOP_TIMEOUT = 10.0


class ProcessFailed(Exception):
    """A process did not start, or ended too early. The message has the end of its log."""


class Processes:
    """Child processes, each with its own log. Leaving the `with` block ends them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._started: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._started:
            process.terminate()
        for process in self._started:
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def start(self, *command: str) -> "Child":
        log = self._directory / f"{len(self._started)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self._directory,
                env={**os.environ, "LOGDIR": str(self._directory)},  # FastChat writes its logs there
                start_new_session=True,  # Ctrl-C must reach this process only, which then ends the others
            )
        self._started.append(process)
        return Child(process, log, command)


@dataclass(frozen=True)
class Child:
    """A child process and its log."""

    process: subprocess.Popen[bytes]
    log: Path
    command: tuple[str, ...]

    def has_logged(self, word: str) -> bool:
        return word in self.log.read_text(errors="replace")

    def wait_until(self, ready: Callable[[], bool], timeout: float = START_TIMEOUT) -> None:
        """Wait for a condition, for at most `timeout` seconds. Raises ProcessFailed."""
        deadline = time.monotonic() + timeout
        while not ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-8:])
                raise ProcessFailed(f"{' '.join(self.command)} did not start. The end of its log:\n{tail}")
            time.sleep(0.02)


def responds(url: str) -> bool:
    """Return True if a GET request returns 200."""
    try:
        with urllib.request.urlopen(url, timeout=2):
            return True
    except OSError:
        return False
