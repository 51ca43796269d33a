"""Lookups of host names, in threads of their own.

A lookup occupies a thread until a name server responds or the system gives up, which may take 20 s. uvloop looks up all
names in two threads. If the name servers of two workers were silent, no other worker could be looked up meanwhile.

The threads are daemons: those of a ThreadPoolExecutor would delay the end of the process until their lookups end.
"""

import asyncio
import socket
import time
from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from threading import Thread
from typing import Final, NamedTuple

from aiohttp.abc import AbstractResolver, ResolveResult

from controller.tasks import end, start_shared

_MAX_LOOKUPS: Final = 32  # at once
_MAX_SLOW_LOOKUPS: Final = 8  # at once, of names whose last lookup was slow
_SLOW: Final = 2.0  # seconds. Connections have the same timeout by default
_MAX_SLOW_NAMES: Final = 10_000  # that are remembered


class _Result(NamedTuple):
    """The result of a lookup: either addresses, each with its family, or an error."""

    is_slow: bool
    addresses: Sequence[tuple[str, int]] = ()
    error: OSError | ValueError | None = None


class Resolver(AbstractResolver):
    """Looks up names for aiohttp. Create and close it in the running event loop.

    Each name has at most one running lookup, so a silent name server occupies one thread for each name. A name whose
    last lookup was slow waits for other permits, so that it does not delay the lookups of other names.
    """

    def __init__(self) -> None:
        self._permits = asyncio.Semaphore(_MAX_LOOKUPS)
        self._slow_permits = asyncio.Semaphore(_MAX_SLOW_LOOKUPS)
        self._slow: dict[str, None] = {}  # the names, oldest first
        self._running: dict[str, asyncio.Task[_Result]] = {}  # by name
        self._is_closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of a name. Raises OSError, or ValueError if it cannot be a name."""
        running = self._running.get(host)
        if running is None:
            if self._is_closed:
                raise OSError("The connections are closed.")
            permits = self._slow_permits if host in self._slow else self._permits
            running = self._running[host] = start_shared(_look_up_in_thread(host, permits))
            running.add_done_callback(partial(self._ended, host))
        await asyncio.wait([running])  # if one caller is cancelled, the lookup continues for the others
        result = running.result()
        if result.error is not None:
            raise result.error.with_traceback(None)  # otherwise each raise would lengthen the traceback
        return [
            ResolveResult(hostname=host, host=address, port=port, family=kind, proto=0, flags=socket.AI_NUMERICHOST)
            for address, kind in result.addresses
            if family in (socket.AF_UNSPEC, kind)
        ]

    def _ended(self, host: str, running: "asyncio.Task[_Result]") -> None:
        del self._running[host]
        if running.cancelled() or running.exception() is not None:
            return
        self._slow.pop(host, None)
        if running.result().is_slow:
            self._slow[host] = None
            if len(self._slow) > _MAX_SLOW_NAMES:
                del self._slow[next(iter(self._slow))]

    async def close(self) -> None:
        """End the lookups. A thread that waits for a name server ends when its lookup or the process does."""
        self._is_closed = True
        await end(list(self._running.values()))


async def _look_up_in_thread(host: str, permits: asyncio.Semaphore) -> _Result:
    async with permits:
        outcome: Future[_Result] = Future()
        outcome.set_running_or_notify_cancel()  # so nothing cancels it, and the thread can set it

        def run() -> None:
            try:
                outcome.set_result(_look_up(host))
            except BaseException as error:  # noqa: BLE001 - a bug, which must not leave the callers waiting
                outcome.set_exception(error)

        Thread(target=run, name="lookup", daemon=True).start()
        return await asyncio.wrap_future(outcome)


def _look_up(host: str) -> _Result:
    began_at = time.monotonic()
    addresses, error = [], None
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
        addresses = [(_text(address), family) for family, *_, address in found]
    except (OSError, ValueError) as raised:  # ValueError: a label of the name is too long
        error = raised
    return _Result(time.monotonic() - began_at > _SLOW, addresses, error)


def _text(address: tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]) -> str:
    if len(address) == 4 and address[3]:  # a link-local address with a zone
        return socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)[0]
    return str(address[0])
