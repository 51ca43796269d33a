"""Stands between a replica and its store: lets calls through while the store serves, and refuses them at once while
it does not, so that a hung store does not cost every request its deadline (a circuit breaker).
"""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, ParamSpec, TypeVar

from controller.cancellation import end
from controller.domain.errors import StoreError, StoreRejection, StoreUnavailable
from controller.metrics import Metrics

logger = logging.getLogger("controller")

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")

_PROOF_INTERVAL: Final = 0.25
_CALM: Final = 5.0


class StoreGuard:
    """Knows whether the store serves, and why not.

    One failure, and calls are refused; `prove` is then tried again and again in the background, and when it succeeds
    they are let through. Before the first call is, `prove` must have succeeded once.
    """

    def __init__(self, prove: Callable[[], Awaitable[None]], metrics: Metrics) -> None:
        self._prove = prove
        self._metrics = metrics
        self._serves = False
        self._reason: StoreUnavailable | None = None
        self._proving: asyncio.Task[None] | None = None
        self._proof_tried = asyncio.Event()
        self._told: type[Exception] | None = None
        self._trouble_since: float | None = None
        self._failed_last = 0.0

    @property
    def reason(self) -> StoreUnavailable | None:
        """Why calls are refused; None while they are let through, or before the first."""
        return None if self._serves else self._reason

    @property
    def trouble_since(self) -> float | None:
        """When, on the monotonic clock, the first of the latest failures was; None after a while without any."""
        return self._trouble_since

    async def ask(
        self, call: Callable[Arguments, Awaitable[Result]], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """The result of a call to the store. Raises StoreUnavailable at once while the store does not serve."""
        if not self._serves:
            await self._first_proof()
        return await self.insist(call, *args, **kwargs)

    async def insist(
        self, call: Callable[Arguments, Awaitable[Result]], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Result:
        """As ask(), but the store is asked even when it is known not to serve."""
        try:
            result = await call(*args, **kwargs)
        except StoreError as error:
            self._failed(error)
            raise
        if self._trouble_since is not None:
            self._tell_of_calm(self._trouble_since)
        return result

    async def close(self) -> None:
        """End what goes on in the background."""
        if self._proving is not None:
            await end([self._proving])

    async def _first_proof(self) -> None:
        """Raise the reason why calls are refused. If there is none yet, let the store prove first that it serves."""
        if self._reason is None:
            self._start_proving()
            await self._proof_tried.wait()
        if self._reason is not None and not self._serves:
            raise self._reason.with_traceback(None)  # else each raise would add to the traceback of the last

    def _start_proving(self) -> None:
        if self._proving is None:
            self._proving = asyncio.create_task(self._prove_until_it_serves())

    async def _prove_until_it_serves(self) -> None:
        try:
            while not await self._proven():  # noqa: ASYNC110 - it is the store that is waited for
                await asyncio.sleep(_PROOF_INTERVAL * random.uniform(0.75, 1.25))  # noqa: S311 - not in step with others
        finally:
            self._proving = None

    async def _proven(self) -> bool:
        try:
            await self._prove()
        except StoreError as error:
            self._failed(error)
        except Exception as error:  # a bug; but to give up would be to serve never again
            if self._told is not type(error):
                self._told = type(error)
                logger.exception("The store cannot be taken into use; this is a bug.")
            self._reason = StoreUnavailable(f"The store cannot be taken into use, by a bug: {error!r}.")
        else:
            self._serves = True
        finally:
            self._proof_tried.set()
        return self._serves

    def _failed(self, error: StoreError) -> None:
        self._metrics.store_failures.inc()
        self._failed_last = time.monotonic()
        if self._trouble_since is None:
            self._trouble_since = self._failed_last
            self._told = None
        if self._told is not type(error):
            self._told = type(error)
            # A rejection is a bug, or keys of ours hold what is not ours: where it happened is of interest.
            logger.log(logging.ERROR, "%s", error, exc_info=isinstance(error, StoreRejection))
        if isinstance(error, StoreUnavailable) or not self._serves:
            if self._serves:
                self._metrics.store_outages.inc()
            self._serves = False
            self._reason = error if isinstance(error, StoreUnavailable) else StoreUnavailable(str(error))
            self._start_proving()

    def _tell_of_calm(self, trouble_since: float) -> None:
        """The beginning and the end of trouble are logged, once each.

        The store may refuse some calls and serve others, so it is well again only after a while without a failure.
        """
        if time.monotonic() - self._failed_last > _CALM:
            failed_for = self._failed_last - trouble_since
            logger.warning("The store has served for %g s again; it failed for %.1f s before.", _CALM, failed_for)
            self._trouble_since = None
