"""The limits of a replica's connections, and one timer that checks the progress of all of them."""

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Protocol

_CHECKS: Final = 4  # per time limit
_AT_ONCE: Final = 500  # connections that are checked before other events are handled


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of the connections of a replica. 0 means no limit. Times are in seconds.

    head: for a client to send the head of a request, from the start of the connection or from its first byte.
    body: for a client to send the body of a request, from the end of the head.
    send: how long a client may read nothing of a response that waits for it.
    connections: number of connections.

    A time limit is checked several times in its duration, so it is exceeded by up to a quarter.
    """

    head: float = 0.0
    body: float = 0.0
    send: float = 0.0
    connections: int = 0


class _Watched(Protocol):
    def check_progress(self, now: float) -> None: ...


class ConnectionWatch:
    """Calls check_progress() of all connections at intervals.

    A timer for each connection would cost more than anything else that a limit costs, because FastChat's clients open
    a connection for each request.

    limits: the limits that each connection checks.
    """

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self._interval = min((each for each in (limits.head, limits.body, limits.send) if each), default=0.0) / _CHECKS
        self.running = not self._interval  # there is nothing to check

    def start(self, loop: asyncio.AbstractEventLoop, connections: Iterable[_Watched]) -> None:
        """Check the connections from now on, until there is none. Nothing happens if this runs already."""
        if not self.running:
            self.running = True
            loop.call_later(self._interval, self._check_all, loop, connections)

    def _check_all(self, loop: asyncio.AbstractEventLoop, connections: Iterable[_Watched]) -> None:
        self._check_some(loop, connections, list(connections))

    def _check_some(
        self, loop: asyncio.AbstractEventLoop, connections: Iterable[_Watched], left: list[_Watched]
    ) -> None:
        now = loop.time()
        for connection in left[-_AT_ONCE:]:
            connection.check_progress(now)
        del left[-_AT_ONCE:]
        if left:
            loop.call_soon(self._check_some, loop, connections, left)
            return
        self.running = False
        if any(True for _ in connections):
            self.start(loop, connections)
