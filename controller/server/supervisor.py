"""Runs the replicas of one `controller serve` as child processes. Replaces crashed ones, and ends all together."""

import contextlib
import logging
import multiprocessing.resource_tracker
import os
import signal
import socket
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Process

from controller.server.signals import FROM_TERMINAL, EndSignals, Stage

logger = logging.getLogger("controller.server")

_TICK: Final = 0.5  # seconds between two checks of the replicas
_MAX_UNANSWERED: Final = 10  # ticks that a running replica may take to answer a ping
_MAX_STARTING: Final = 240  # ticks that a starting replica may take to answer its first ping


@dataclass(frozen=True)
class ReplicaArguments:
    """Arguments that the supervisor passes to a replica.

    slot: number of the replica. A replica that replaces a crashed one has the same number.
    orders: a pipe. The supervisor writes the value of a Stage to it when the replica must enter that stage.
    """

    slot: int
    orders: "Connection[Any, int]"


class _Replica(Process):
    """A child process and its health. uvicorn's Process starts it and answers pings from a thread in it."""

    def __init__(self, config: uvicorn.Config, listeners: list[socket.socket], slot: int) -> None:
        orders, self._order_writer = Pipe(duplex=False)
        self._arguments = ReplicaArguments(slot, orders)
        self._unanswered = 0
        self._has_answered = False
        super().__init__(config, listeners)

    def __getstate__(self) -> dict[str, Any]:
        # Only the supervisor may hold the writing end, so that the replica reads EOF when the supervisor dies.
        return {name: value for name, value in vars(self).items() if name != "_order_writer"}

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve. The child process calls this."""
        if self._arguments.orders.poll():
            return  # the shutdown began before the replica was started
        self.config.app = partial(cast(Callable[..., Any], self.config.app), arguments=self._arguments)
        super().target(sockets)

    def start(self) -> None:
        """Start the child process. The signals of the terminal are blocked until it can handle them."""
        try:
            Path.cwd()
        except OSError:
            os.chdir("/")  # the directory was deleted, and multiprocessing would raise
        multiprocessing.resource_tracker.ensure_running()  # its start unblocks SIGINT, so start it before blocking
        before = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_TERMINAL)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._arguments.orders.close()

    def is_healthy(self) -> bool:
        """Return False if the process has ended or does not answer a ping in time. Call this once for each tick.

        The limit is in ticks and not in seconds, because Ctrl-Z in a terminal stops the supervisor too.
        """
        if not self.process.is_alive():
            return False
        with contextlib.suppress(OSError, EOFError):
            if not self._unanswered:
                self.parent_conn.send(b"ping")
            elif self.parent_conn.poll():
                self.parent_conn.recv()
                self._unanswered, self._has_answered = 0, True
                return True
        self._unanswered += 1
        return self._unanswered <= (_MAX_UNANSWERED if self._has_answered else _MAX_STARTING)

    def order(self, stage: Stage) -> None:
        """Order the process to enter a stage of the shutdown."""
        with contextlib.suppress(OSError):  # the process has ended
            self._order_writer.send(int(stage))

    def end(self) -> None:
        """Kill the process if it runs, and release its resources."""
        self.process.kill()
        self.process.join()
        for connection in (self._order_writer, self.parent_conn, self.child_conn):
            connection.close()


class Supervisor:
    """Runs `config.workers` replicas until a signal ends them.

    end_timeout: seconds for the shutdown of the replicas. After that they are killed.
    """

    def __init__(self, config: uvicorn.Config, listeners: Sequence[socket.socket], end_timeout: float) -> None:
        self._config = config
        self._listeners = list(listeners)
        self._end_timeout = end_timeout
        self._replicas: list[_Replica] = []
        self._stage = Stage.SERVING
        self._signals = EndSignals()
        self._pending: list[int] = []
        self._last_error = ""  # the last logged error of a failed start

    def run(self) -> bool:
        """Run until a signal ends the replicas. Return False if a replica could not start."""
        started = True
        with self._caught_signals() as wakeup:
            for slot in range(self._config.workers):
                replica = _Replica(self._config, self._listeners, slot)
                replica.start()
                self._replicas.append(replica)
            while self._stage is Stage.SERVING and started:
                self._wait(wakeup, ())
                started = self._replace_dead()
            self._end(wakeup)
        return started

    @contextlib.contextmanager
    def _caught_signals(self) -> Iterator[socket.socket]:
        """Collect the signals that end the program. The socket becomes readable when one arrives."""
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            for number in EndSignals.handled():
                signal.signal(number, self._on_signal)
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(before)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._pending.append(number)

    def _wait(self, wakeup: socket.socket, sentinels: Collection[int]) -> None:
        """Wait for a signal, the end of a process, or the next tick."""
        if wakeup in wait([wakeup, *sentinels], _TICK):
            with contextlib.suppress(BlockingIOError):
                wakeup.recv(4096)
        self._take_signals()

    def _take_signals(self) -> None:
        while self._pending:
            number = self._pending.pop(0)
            logger.info("Received %s.", signal.Signals(number).name)
            self._reach(self._signals.stage(number))

    def _reach(self, stage: Stage) -> None:
        if stage > self._stage:
            self._stage = stage
            for replica in self._replicas:
                replica.order(stage)

    def _replace_dead(self) -> bool:
        """Replace each replica that has crashed. Return False if one ended because it cannot start."""
        for slot, replica in enumerate(self._replicas):
            if replica.is_healthy():
                continue
            self._take_signals()  # the replica may have ended because of a signal that this process received too
            if self._stage is not Stage.SERVING:
                return True
            replica.end()
            if replica.exitcode == STARTUP_FAILURE:
                logger.error(
                    "Replica %(replica)d (process %(pid)d) cannot start. Ending the others.",
                    {"replica": slot, "pid": replica.pid},
                )
                return False
            self._replace(slot, replica)
        return True

    def _replace(self, slot: int, replica: _Replica) -> None:
        successor = _Replica(self._config, self._listeners, slot)
        try:
            successor.start()
        except OSError as error:  # for example, the machine is out of processes
            if str(error) != self._last_error:
                logger.error(  # noqa: TRY400 - the message has all details
                    "Replica %(replica)d (process %(pid)d) crashed and cannot be replaced: %(reason)s. Trying again "
                    "every %(interval)g s.",
                    {"replica": slot, "pid": replica.pid, "reason": error, "interval": _TICK},
                )
            self._last_error = str(error)
            return
        self._last_error = ""
        logger.error(
            "Replica %(replica)d (process %(pid)d) crashed. Process %(successor)d replaces it.",
            {"replica": slot, "pid": replica.pid, "successor": successor.pid},
        )
        self._replicas[slot] = successor

    def _end(self, wakeup: socket.socket) -> None:
        self._reach(Stage.ENDING if self._stage is Stage.SERVING else self._stage)
        deadline = time.monotonic() + self._end_timeout
        while running := [replica for replica in self._replicas if replica.process.is_alive()]:
            self._wait(wakeup, [replica.process.sentinel for replica in running])
            if time.monotonic() > deadline:
                for replica in running:
                    logger.error("Process %d did not end within its time limit. Killing it.", replica.pid)
                    replica.process.kill()
        for replica in self._replicas:
            replica.end()
