"""A shell in a real terminal: keys go in, and a test reads the screen as a person would."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from pathlib import Path

import pyte

from tests.support.waiting import wait_until

_PROMPT = "ready> "
_STATUS = re.compile(r"^status=(\d+)$", re.MULTILINE)
# The shell needs the terminal as its controlling terminal, or Ctrl-C and changes of its size send no signal.
_IN_SESSION = "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execvp('bash', {})"
_SHELL = ["bash", "--noprofile", "--norc", "--noediting", "-i"]


class Terminal:
    """A terminal with bash, in which `controller` is the command of this checkout. Use it as a context manager."""

    def __init__(self, directory: Path, columns: int, lines: int, env: Mapping[str, str]) -> None:
        command = directory / "controller"
        command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m controller "$@"\n')
        command.chmod(0o755)
        self.screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self.screen)
        self._ours, theirs = pty.openpty()
        self.resize(columns, lines)
        path = f"{directory}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "TERM": "xterm-256color", "PATH": path, "PS1": _PROMPT, **env}
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            environment.pop(name, None)
        self._process = subprocess.Popen(
            [sys.executable, "-c", _IN_SESSION.format(_SHELL)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)

    async def __aenter__(self) -> "Terminal":
        asyncio.get_running_loop().add_reader(self._ours, self._read)
        await self.until(lambda text: _PROMPT.strip() in text, "the shell is ready")
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self._ours)
        os.close(self._ours)  # the shell and its command get SIGHUP
        try:
            await asyncio.to_thread(self._process.wait, 30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # Linux reports the end of the output this way
            self._stream.feed(os.read(self._ours, 65536))

    def resize(self, columns: int, lines: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def press(self, keys: str) -> None:
        os.write(self._ours, keys.encode())

    @property
    def lines(self) -> list[str]:
        """The lines of the screen, without spaces at their ends."""
        return [line.rstrip() for line in self.screen.display]

    async def until(self, condition: Callable[[str], object], description: str) -> None:
        """Wait until a condition holds for the text on the screen."""

        def holds() -> bool:
            return bool(condition("\n".join(self.lines)))

        try:
            await wait_until(holds, description, timeout=120)
        except AssertionError as error:
            raise AssertionError("\n".join([str(error), *self.lines])) from None

    async def run(self, command: str) -> tuple[int, list[str]]:
        """Run a command to its end, and return its exit status and the lines on the screen."""
        await self.start(command)
        return await self.ended()

    async def start(self, command: str) -> None:
        """Clear the screen and type a command, when the prompt is there."""
        await self.until(_has_prompt, "the prompt is there")
        self.press("clear\n")
        await self.until(lambda text: text.strip() == _PROMPT.strip(), "the screen is clear")
        self.press(f"{command}; echo status=$?\n")

    async def ended(self) -> tuple[int, list[str]]:
        """Wait until the command has ended. Return its exit status and the lines on the screen."""
        await self.until(_STATUS.search, "the command has ended")
        await self.until(_has_prompt, "the prompt is back")
        status = _STATUS.search("\n".join(self.lines))
        assert status
        return int(status[1]), self.lines


def _has_prompt(text: str) -> bool:
    return text.rstrip().endswith(_PROMPT.strip())
