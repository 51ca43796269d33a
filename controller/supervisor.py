"""The replicas of one `serve` as child processes: starts them, replaces those that die, and ends them together."""

import contextlib
import logging
import multiprocessing.resource_tracker
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Final, cast

import uvicorn
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Process

logger = logging.getLogger("controller.server")

_TICK: Final = 0.5  # seconds between two looks at the replicas
_MAX_UNANSWERED: Final = 10  # ticks in which a replica that has started may leave a ping unanswered
_MAX_STARTING: Final = 240  # ticks until a replica must answer its first ping

# Signals of the terminal's job control, and signals that others use for what we do not have.
CHANGE_NOTHING: Final = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2)
# Those that a terminal sends to all of its processes. A replica is started with them blocked, see unblock_signals().
_FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Stage(IntEnum):
    """How far a process is on the way to its end. It never goes back."""

    SERVING = 0
    LEAVING = 1  # /readyz is 503, all else is served
    ENDING = 2  # the port is closed, requests and streams under way have some time
    FORCED = 3  # they have none


_STAGES: Final = {
    signal.SIGTERM: (Stage.LEAVING, Stage.ENDING),
    signal.SIGINT: (Stage.ENDING, Stage.FORCED),
    signal.SIGHUP: (Stage.ENDING, Stage.ENDING),
    signal.SIGQUIT: (Stage.ENDING, Stage.ENDING),
}


class EndSignals:
    """The signals that end a process, and the stage that each leads to: one when it comes first, one when again."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    @staticmethod
    def heeded() -> list[signal.Signals]:
        """All but those that were ignored when the program was started: under `nohup`, SIGHUP ends nothing."""
        ignorable = (signal.SIGHUP, signal.SIGQUIT)
        return [number for number in _STAGES if number not in ignorable or signal.getsignal(number) != signal.SIG_IGN]

    def stage(self, number: int) -> Stage:
        """The stage to go to, unless the process is beyond it."""
        self._seen[number] += 1
        first, again = _STAGES[signal.Signals(number)]
        return first if self._seen[number] == 1 else again


def unblock_signals() -> None:
    """Let the signals of the terminal through. A replica calls this once it has handlers for them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_TERMINAL)


@dataclass(frozen=True)
class Place:
    """What a replica is given by its supervisor.

    slot: its number. No two replicas have the same at a time, and one that takes the place of a dead one has its.
    orders: yields the value of a Stage whenever the replica is to go to it.
    """

    slot: int
    orders: "Connection[Any, int]"


class _Replica(Process):
    """A child process, and how it is doing. uvicorn's Process starts it and answers pings from a thread in it."""

    def __init__(self, config: uvicorn.Config, listeners: list[socket.socket], slot: int) -> None:
        orders, self._give = Pipe(duplex=False)
        self._place = Place(slot, orders)
        self._unanswered = 0
        self._has_answered = False
        super().__init__(config, listeners)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_give"}  # it stays here

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve. This is called in the child process."""
        if self._place.orders.poll():
            return  # to end, before it has begun
        self.config.app = partial(cast(Callable[..., Any], self.config.app), place=self._place)
        super().target(sockets)

    def start(self) -> None:
        """Start the child process, with the signals of the terminal blocked until it can handle them."""
        try:
            Path.cwd()
        except OSError:
            os.chdir("/")  # the directory was deleted, and multiprocessing would raise
        multiprocessing.resource_tracker.ensure_running()  # it would unblock SIGINT
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_TERMINAL)
        try:
            super().start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            self._place.orders.close()

    def is_well(self) -> bool:
        """Return False if the process has ended, or has left a ping unanswered for too long. Call this once a tick.

        Ticks are counted instead of seconds, because a terminal's Ctrl-Z stops this process as well.
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
        """Tell the process to go to a stage."""
        with contextlib.suppress(OSError):  # it has ended
            self._give.send(int(stage))

    def end(self) -> None:
        """Kill the process if it lives, and forget it."""
        self.process.kill()
        self.process.join()
        for connection in (self._give, self.parent_conn, self.child_conn):
            connection.close()


class Supervisor:
    """Runs `config.workers` replicas until a signal comes.

    end_timeout: seconds that replicas have to end by themselves. Those that have not are killed.
    """

    def __init__(self, config: uvicorn.Config, listeners: Sequence[socket.socket], end_timeout: float) -> None:
        self._config = config
        self._listeners = list(listeners)
        self._end_timeout = end_timeout
        self._replicas: list[_Replica] = []
        self._stage = Stage.SERVING
        self._signals = EndSignals()
        self._pending: list[int] = []
        self._obstacle = ""  # to the start of a replica, as it was logged

    def run(self) -> bool:
        """Serve until the end. Return False if a replica could not start at all."""
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
        """Collect the signals that end the program. The socket becomes readable when one comes."""
        reader, writer = socket.socketpair()
        with reader, writer:
            reader.setblocking(False)
            writer.setblocking(False)
            before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
            for number in EndSignals.heeded():
                signal.signal(number, self._signalled)
            try:
                yield reader
            finally:
                signal.set_wakeup_fd(before)

    def _signalled(self, number: int, _frame: FrameType | None) -> None:
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
        """Start a replica for each one that has died. Return False if one has died because it cannot start."""
        for slot, replica in enumerate(self._replicas):
            if replica.is_well():
                continue
            self._take_signals()  # it may have died by a signal that has come to us as well
            if self._stage is not Stage.SERVING:
                return True
            replica.end()
            if replica.exitcode == STARTUP_FAILURE:
                logger.error("Replica %d (process %d) cannot start; ending the others.", slot, replica.pid)
                return False
            self._replace(slot, replica)
        return True

    def _replace(self, slot: int, replica: _Replica) -> None:
        successor = _Replica(self._config, self._listeners, slot)
        try:
            successor.start()
        except OSError as error:  # such as that the machine has no process left; the next tick tries again
            if str(error) != self._obstacle:
                logger.error("Replica %d (process %d) died and cannot be replaced yet: %s.", slot, replica.pid, error)  # noqa: TRY400 - the message says it all
            self._obstacle = str(error)
            return
        self._obstacle = ""
        logger.error("Replica %d (process %d) died; started process %d instead.", slot, replica.pid, successor.pid)
        self._replicas[slot] = successor

    def _end(self, wakeup: socket.socket) -> None:
        self._reach(Stage.ENDING if self._stage is Stage.SERVING else self._stage)
        deadline = time.monotonic() + self._end_timeout
        while running := [replica for replica in self._replicas if replica.process.is_alive()]:
            self._wait(wakeup, [replica.process.sentinel for replica in running])
            if time.monotonic() > deadline:
                for replica in running:
                    logger.error("Process %d does not end; killing it.", replica.pid)
                    replica.process.kill()
        for replica in self._replicas:
            replica.end()
