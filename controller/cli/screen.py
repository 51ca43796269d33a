"""Screens that refresh in place until Ctrl-C, on a terminal that can. Elsewhere the same is printed line by line."""

import asyncio
import contextlib
import json
import os
import signal
import sys
import termios
import tty
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import TypeVar

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from controller.cli.api import Reply
from controller.cli.options import Controller
from controller.cli.tables import create_console
from controller.cli.text import printable
from controller.domain.errors import ControllerRefused, ControllerUnreachable

State = TypeVar("State")


class Watch:
    """Shows what a controller reports, at each interval.

    interval: seconds between two requests.
    on_key: called with each key that is pressed, on a terminal. Returns False to end.
    """

    def __init__(
        self, controller: Controller, interval: float, on_key: Callable[[str], bool] = lambda key: key != "q"
    ) -> None:
        self._controller = controller
        self._interval = max(0.1, interval)
        self._on_key = on_key
        self._is_over = False
        self._wake = asyncio.Event()

    async def show(
        self,
        read: Callable[[], Awaitable[State]],
        render: Callable[[State, Console, int | None], Sequence[RenderableType]],
        once_in_pipe: bool = False,
    ) -> None:
        """Read and render until Ctrl-C. If a read fails later on, the last state is shown with the reason.

        render: gets a state, the console and the number of lines that it has, or None if it has as many as it takes.
            Returns what to show, from top to bottom.
        once_in_pipe: without a terminal, show only one state.

        Raises ControllerUnreachable if the first read fails, and ControllerRefused if any is refused.
        """
        console = create_console()
        state = await read()
        if not can_refresh(console):
            while True:
                for part in render(state, console, None):
                    console.print(part)
                sys.stdout.flush()
                if once_in_pipe:
                    return
                await asyncio.sleep(self._interval)
                state = await self._read_again(read)
        with (
            Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
            self._listening(),
        ):
            problem = ""
            while not self._is_over:
                height = console.size.height - bool(problem)
                parts = [*render(state, console, height), *([Text(problem, style="red")] if problem else [])]
                live.update(Group(*parts), refresh=True)
                self._wake.clear()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await self._wake.wait()
                    continue  # a key was pressed, or the size has changed: show the same state
                try:
                    state, problem = await read(), ""
                except ControllerRefused:
                    raise
                except ControllerUnreachable as error:
                    problem = printable(f"{error} Trying again.")

    async def print_lines(self, read: Callable[[], Awaitable[Reply]]) -> None:
        """Print a line of JSON for each state, until Ctrl-C."""
        reply = await read()
        while True:
            click.echo(json.dumps(reply.fields))
            await asyncio.sleep(self._interval)
            reply = await self._read_again(read)

    async def _read_again(self, read: Callable[[], Awaitable[State]]) -> State:
        """Return the next state. While there is none, say so and wait."""
        while True:
            try:
                return await read()
            except ControllerRefused:
                raise
            except ControllerUnreachable as error:
                click.echo(printable(f"{error} Trying again."), err=True)
                await asyncio.sleep(max(1.0, self._interval))

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """React to keys and to changes of the size of the terminal."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGWINCH, self._wake.set)
        before = None
        if sys.stdin is not None and sys.stdin.isatty():
            number = sys.stdin.fileno()
            with contextlib.suppress(termios.error):
                before = termios.tcgetattr(number)
                tty.setcbreak(number, termios.TCSANOW)
                loop.add_reader(number, self._read_keys, number)
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGWINCH)
            if before is not None:
                loop.remove_reader(number)
                termios.tcsetattr(number, termios.TCSANOW, before)

    def _read_keys(self, number: int) -> None:
        for key in os.read(number, 64).decode(errors="replace"):
            self._is_over = self._is_over or not self._on_key(key)
        self._wake.set()


def can_refresh(console: Console) -> bool:
    """Return True if the terminal can show a screen in place."""
    return console.is_terminal and not console.is_dumb_terminal
