"""Runs calls to Redis with a limit and a deadline. Distinguishes a silent Redis from a lost connection."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from controller.domain.errors import ReplicaBusy
from controller.tasks import end, start_shared

Result = TypeVar("Result")

_MAX_CALLS: Final = 32  # at once
_MAX_WAIT: Final = 60.0  # seconds that a call waits for a permit
_TICKS: Final = 8  # checks per deadline


class _Call:
    """A running call.

    since: when the call was sent, on the clock of StoreCalls.
    """

    __slots__ = ("connection_lost", "scope", "since")

    def __init__(self, since: float) -> None:
        self.since = since
        self.scope = asyncio.timeout(None)
        self.connection_lost = False


class StoreCalls:
    """Runs the calls of one replica to Redis.

    A call fails if Redis is silent for `deadline` seconds, that is, sends no reply to any call. The time counts from
    the sending of the call. It does not count while the event loop is late, so a busy replica does not look like an
    outage of Redis.

    After half of the deadline without a reply, `ping` is called on another connection. If Redis replies to it but not
    to the call, the connection of the call is lost. The call is then sent once more on another connection, so every
    call must be repeatable.
    """

    def __init__(self, ping: Callable[[], Awaitable[object]], deadline: float) -> None:
        self.deadline = deadline
        self._ping = ping
        self._permits = asyncio.Semaphore(_MAX_CALLS)
        self._calls: set[_Call] = set()
        self._pinging: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._clock = 0.0  # seconds for which the event loop was on time, as of the last tick
        self._ticked_at = 0.0
        self._last_reply = 0.0
        self._latest_replied = 0.0  # when the latest call with a reply was sent
        self._silences = 0

    async def run(self, call: Callable[[], Awaitable[Result]]) -> Result:
        """Return the result of a call.

        Raises TimeoutError if Redis is silent. Raises ReplicaBusy if too many calls were running, so that this one was
        not sent. Errors of the call itself are raised unchanged.
        """
        silences = self._silences
        if self._permits.locked():
            await self._wait_for_permit()
        else:
            await self._permits.acquire()
        try:
            if silences != self._silences:
                raise TimeoutError  # Redis fell silent while this call waited
            try:
                return await self._attempt(call)
            except _ConnectionLost:
                return await self._attempt(call)
        except _ConnectionLost as error:
            raise TimeoutError from error
        finally:
            self._permits.release()

    async def close(self) -> None:
        """End the running ping."""
        if self._pinging is not None:
            await end([self._pinging])

    async def _wait_for_permit(self) -> None:
        try:
            async with asyncio.timeout(_MAX_WAIT):
                await self._permits.acquire()
        except TimeoutError as error:
            raise ReplicaBusy(
                f"This replica is already running {_MAX_CALLS} calls to Redis. Another call waited for {_MAX_WAIT:g} s "
                "and was not sent. Redis itself is available. Try again, or run more replicas."
            ) from error

    async def _attempt(self, call: Callable[[], Awaitable[Result]]) -> Result:
        if not self._calls:
            self._start_clock()
        this = _Call(self._now())
        self._calls.add(this)
        try:
            async with this.scope:
                result = await call()
        except ResponseError:
            self._record_reply(this)
            raise
        except TimeoutError as error:
            if this.connection_lost:
                raise _ConnectionLost from error
            self._silences += 1
            raise
        except RedisTimeoutError as error:  # the client's own timeout, which a busy event loop may cause
            if self._was_overtaken(this):
                raise _ConnectionLost from error
            raise
        finally:
            self._calls.discard(this)
            if not self._calls:
                self._stop_clock()
        self._record_reply(this)
        return result

    def _record_reply(self, call: _Call) -> None:
        self._last_reply = self._now()
        self._latest_replied = max(self._latest_replied, call.since)

    def _was_overtaken(self, call: _Call) -> bool:
        """Return True if Redis has replied to a call that was sent much later."""
        return self._latest_replied >= call.since + self.deadline / 2

    # The clock

    def _now(self) -> float:
        return self._clock + self._since_tick()

    def _since_tick(self) -> float:
        elapsed = asyncio.get_running_loop().time() - self._ticked_at
        return min(elapsed, 1.5 * self.deadline / _TICKS)  # if more has elapsed, the event loop was late

    def _start_clock(self) -> None:
        loop = asyncio.get_running_loop()
        self._ticked_at = loop.time()
        self._timer = loop.call_later(self.deadline / _TICKS, self._tick)

    def _stop_clock(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._clock = self._now()
        self._ticked_at = asyncio.get_running_loop().time()

    def _tick(self) -> None:
        self._clock = self._now()
        loop = asyncio.get_running_loop()
        self._ticked_at = loop.time()
        self._timer = loop.call_later(self.deadline / _TICKS, self._tick)
        for call in self._calls:
            if not call.scope.expired():
                self._check(call)

    def _check(self, call: _Call) -> None:
        age = self._clock - call.since
        silent_for = min(age, self._clock - self._last_reply)
        if silent_for >= self.deadline:
            call.scope.reschedule(0.0)
        elif age >= 1.5 * self.deadline and self._was_overtaken(call):
            call.connection_lost = True
            call.scope.reschedule(0.0)
        elif silent_for >= self.deadline / 2 and self._pinging is None:
            self._pinging = start_shared(self._ping_once())

    async def _ping_once(self) -> None:
        try:
            with contextlib.suppress(Exception):  # the waiting call raises the cause
                await self._attempt(self._ping)
        finally:
            self._pinging = None


class _ConnectionLost(Exception):
    """A call got no reply, although Redis has replied to a later call."""
