"""Sends a request to one worker, and keeps its lease until the response has ended."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable

from controller.dispatch.dispatcher import Assignment
from controller.domain.errors import WorkerError
from controller.metrics import Metrics
from controller.proxy.bookings import Bookings
from controller.proxy.forwarded import Forwarded
from controller.upstream.client import WorkerClient
from controller.upstream.response import WorkerResponse

Read = Callable[[WorkerResponse], Awaitable[AsyncGenerator[bytes]]]


class Exchanges:
    """Exchanges with workers, of every protocol."""

    def __init__(self, workers: WorkerClient, bookings: Bookings, metrics: Metrics) -> None:
        self._workers = workers
        self._bookings = bookings
        self._metrics = metrics

    @property
    def may_retry(self) -> bool:
        """False if this replica is shutting down, and has ended the requests itself."""
        return not self._workers.streams_ended

    async def run(
        self,
        chosen: Assignment,
        send: Callable[[], Awaitable[WorkerResponse]],
        read: Read,
        is_failure: Callable[[WorkerError], bool],
        on_end: Callable[[str, int], None],
        *,
        detach: Callable[[Forwarded], object] | None = None,
        late_failures_count: bool = False,
    ) -> Forwarded:
        """Return the response of one worker, when the first piece of its body has arrived.

        send: sends the request, and returns when the head of the response has arrived.
        read: returns the body of the response, or raises WorkerError if the status is an error.
        is_failure: returns True if an error is the worker's failure, which deprioritises it.
        on_end, detach: as in Forwarded, but on_end gets only outcome and size. Like `send`, they live as long as the
            response, so they must not hold the body of the request in memory.
        late_failures_count: a response that breaks off after its first piece is a failure of the worker, too, unless
            its client did not read.

        If this raises, the release of the lease has been started.
        """
        began = time.perf_counter()
        self._bookings.renew_later(chosen.lease)
        response = None
        try:
            response = await send()
            pieces = await read(response)
            first = await anext(pieces, b"")
            self._metrics.first_byte_time.observe(time.perf_counter() - began)
        except BaseException as error:
            if response is not None:
                response.close()
            failed = isinstance(error, WorkerError) and is_failure(error) and self.may_retry
            ended = self._bookings.end(chosen, failed=failed)
            if failed:
                await asyncio.shield(ended)  # the next dispatch must not choose this worker again
            raise

        def end(outcome: str, size: int, client_held: bool) -> None:
            self._metrics.forward_time.observe(time.perf_counter() - began)
            self._metrics.forwarded_bytes.inc(size)
            failed = late_failures_count and outcome == "broken" and not client_held and self.may_retry
            self._bookings.end(chosen, failed=failed)
            on_end(outcome, size)

        return Forwarded(response, first, pieces, end, detach)
