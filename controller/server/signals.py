"""The signals that end a process, and the stages of its shutdown."""

import contextlib
import os
import signal
from collections import Counter
from enum import IntEnum
from functools import cache
from typing import Final

# Signals of the terminal's job control, and signals that other programs use for features that we lack.
IGNORED: Final = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2)
# A terminal sends these to all of its processes. A replica is started with them blocked, see unblock_signals().
FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Stage(IntEnum):
    """A stage of the shutdown of a process, which never returns to an earlier one."""

    SERVING = 0
    LEAVING = 1  # /readyz returns 503, and everything else is served
    ENDING = 2  # the port is closed, and running requests have some time
    FORCED = 3  # running requests have no time


_STAGES: Final = {
    signal.SIGTERM: (Stage.LEAVING, Stage.ENDING),
    signal.SIGINT: (Stage.ENDING, Stage.FORCED),
    signal.SIGHUP: (Stage.ENDING, Stage.ENDING),
    signal.SIGQUIT: (Stage.ENDING, Stage.ENDING),
}


@cache
def has_terminal() -> bool:
    """Return True if a terminal controls this process, so that SIGHUP says that it was closed."""
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK))
        return True
    return False


class EndSignals:
    """Maps signals to stages: one for the first signal of a kind, and one for each further one."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    @staticmethod
    def handled() -> list[signal.Signals]:
        """Return the signals that end the process.

        A signal that was ignored when the program started stays ignored: under `nohup`, SIGHUP ends nothing. Without a
        terminal, SIGHUP asks a service to read its files again.
        """
        ignorable = (signal.SIGHUP, signal.SIGQUIT)
        numbers = [number for number in _STAGES if number is not signal.SIGHUP or has_terminal()]
        return [number for number in numbers if number not in ignorable or signal.getsignal(number) != signal.SIG_IGN]

    def stage(self, number: int) -> Stage:
        """Return the stage that this signal leads to."""
        self._seen[number] += 1
        first, again = _STAGES[signal.Signals(number)]
        return first if self._seen[number] == 1 else again


def accept_reloads() -> None:
    """Let SIGHUP have no effect without a terminal: replicas read changed files again without a signal."""
    if not has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)  # not SIG_IGN, which child processes would inherit


def unblock_signals() -> None:
    """Unblock the signals of the terminal. A replica calls this once it has handlers for them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)
