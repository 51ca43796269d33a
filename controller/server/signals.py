"""The signals that end a process, and the stages of its shutdown."""

import signal
from collections import Counter
from enum import IntEnum
from typing import Final

# Signals of the terminal's job control, and signals that other programs use for features that we lack.
IGNORED: Final = (signal.SIGTTIN, signal.SIGTTOU, signal.SIGWINCH, signal.SIGUSR1, signal.SIGUSR2)
# A terminal sends these to all of its processes. A replica is started with them blocked, see unblock_signals().
FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class Stage(IntEnum):
    """How far the shutdown of a process is. It never goes back."""

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


class EndSignals:
    """Maps signals to stages: one for the first signal of a kind, and one for each further one."""

    def __init__(self) -> None:
        self._seen: Counter[int] = Counter()

    @staticmethod
    def handled() -> list[signal.Signals]:
        """Return the signals that end the process.

        A signal that was ignored when the program started stays ignored: under `nohup`, SIGHUP ends nothing.
        """
        ignorable = (signal.SIGHUP, signal.SIGQUIT)
        return [number for number in _STAGES if number not in ignorable or signal.getsignal(number) != signal.SIG_IGN]

    def stage(self, number: int) -> Stage:
        """Return the stage that this signal leads to."""
        self._seen[number] += 1
        first, again = _STAGES[signal.Signals(number)]
        return first if self._seen[number] == 1 else again


def unblock_signals() -> None:
    """Unblock the signals of the terminal. A replica calls this once it has handlers for them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_TERMINAL)
