"""A circuit breaker between a replica and Redis, so that a hung Redis does not cost every request its deadline."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

from controller.domain.errors import ReplicaBusy, StoreError, StoreRejection, StoreUnavailable
from controller.metrics import Metrics
from controller.tasks import end, start_shared

logger = logging.getLogger("controller")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_PROBE_INTERVAL: Final = 0.25
_CALM: Final = 5.0  # seconds without a failure, after which an outage counts as over


class CircuitBreaker:
    """Lets calls through while Redis is available, and fails them at once while it is not.

    The breaker starts open. One call that finds Redis unavailable opens it again. While it is open, `probe` runs in the
    background about every 0.25 s. The first successful probe closes it.

    on_close: called after each outage, with the seconds for which the breaker was open and the reason. It must not
        raise.
    """

    def __init__(self, probe: Callable[[], Awaitable[None]], metrics: Metrics) -> None:
        self._probe = probe
        self._metrics = metrics
        self._closed = False
        self._reason: StoreUnavailable | None = None
        self._probing: asyncio.Task[None] | None = None
        self._first_probe_ended = asyncio.Event()
        self._last_logged: type[Exception] | None = None
        self._failing_since: float | None = None
        self._last_failure = 0.0
        self._opened_at: float | None = None  # None until the first outage
        self.on_close: Callable[[float, str], None] = lambda _seconds, _reason: None

    @property
    def reason(self) -> StoreUnavailable | None:
        """The error that opened the breaker. None while it is closed, and before the first probe."""
        return None if self._closed else self._reason

    @property
    def opened_at(self) -> float | None:
        """Monotonic time at which the breaker last opened after it was closed. None before the first outage."""
        return self._opened_at

    @property
    def failing_since(self) -> float | None:
        """Monotonic time of the first in a series of failures. None after a while without a failure."""
        return self._failing_since

    async def call(
        self, call: Callable[Arguments, Awaitable[Result]], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Return the result of a call to Redis. Raises StoreUnavailable at once while the breaker is open."""
        if not self._closed:
            await self._await_first_probe()
        return await self.force_call(call, *args, **kwargs)

    async def force_call(
        self, call: Callable[Arguments, Awaitable[Result]], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """Like call(), but runs even while the breaker is open."""
        try:
            result = await call(*args, **kwargs)
        except StoreError as error:
            self._record_failure(error)
            raise
        if self._failing_since is not None:
            self._log_recovery(self._failing_since)
        return result

    def check(self) -> None:
        """Raise the reason if the breaker is open. For a call that had to wait since call() let it through."""
        if self.reason is not None:
            raise self.reason.with_traceback(None)  # otherwise each raise would lengthen the traceback

    async def close(self) -> None:
        """End the background probe."""
        if self._probing is not None:
            await end([self._probing])

    async def _await_first_probe(self) -> None:
        """Raise the reason why the breaker is open. Before the first probe there is none, so wait for that probe."""
        if self._reason is None:
            self._start_probing()
            await self._first_probe_ended.wait()
        self.check()

    def _start_probing(self) -> None:
        if self._probing is None:
            self._probing = start_shared(self._probe_until_closed())

    async def _probe_until_closed(self) -> None:
        try:
            while not await self._probe_once():  # noqa: ASYNC110 - Redis sends no event that could be awaited
                await asyncio.sleep(_PROBE_INTERVAL * random.uniform(0.75, 1.25))  # noqa: S311 - replicas must not probe in step
        finally:
            self._probing = None

    async def _probe_once(self) -> bool:
        try:
            await self._probe()
        except StoreError as error:
            self._record_failure(error)
        except Exception as error:  # a bug, but without further probes the replica would never return to Redis
            if self._last_logged is not type(error):
                self._last_logged = type(error)
                logger.exception("Redis cannot be used because of a bug in the controller. Trying again.")
            self._reason = StoreUnavailable(f"Redis cannot be used because of a bug in the controller: {error!r}.")
        else:
            self._closed = True
            if self._opened_at is not None:
                self.on_close(time.monotonic() - self._opened_at, str(self._reason))
        finally:
            self._first_probe_ended.set()
        return self._closed

    def _record_failure(self, error: StoreError) -> None:
        if isinstance(error, ReplicaBusy) and self._closed:
            return  # the call was not sent, so this says nothing about Redis
        self._metrics.store_failures.inc()
        self._last_failure = time.monotonic()
        if self._failing_since is None:
            self._failing_since = self._last_failure
            self._last_logged = None
        if self._last_logged is not type(error):
            self._last_logged = type(error)
            # A rejection means a bug or foreign data in Redis. The traceback shows which call was rejected.
            logger.log(logging.ERROR, "%s", error, exc_info=isinstance(error, StoreRejection))
        if isinstance(error, StoreUnavailable) or not self._closed:
            if self._closed:
                self._metrics.store_outages.inc()
                self._opened_at = time.monotonic()
            self._closed = False
            self._reason = error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))
            self._start_probing()

    def _log_recovery(self, failing_since: float) -> None:
        """Log the end of an outage once.

        Redis may fail some calls and serve others, so the outage is over only after a while without a failure.
        """
        if time.monotonic() - self._last_failure > _CALM:
            failed_for = self._last_failure - failing_since
            logger.warning(
                "Redis has served every call for %g s. Before that, it failed for %.1f s.", _CALM, failed_for
            )
            self._failing_since = None
