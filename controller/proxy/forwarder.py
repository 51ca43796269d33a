"""Forwards requests to workers of FastChat's protocol and streams the responses back."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import NamedTuple

from controller.availability.snapshot import MaybeStale
from controller.dispatch.dispatcher import Assignment
from controller.domain.errors import (
    NoWorker,
    StoreError,
    StreamBroken,
    WorkerError,
    WorkerRefused,
    WorkerSilent,
    WorkerUnreachable,
)
from controller.domain.hops import hop_headers
from controller.metrics import Metrics
from controller.proxy.bookings import Bookings
from controller.proxy.exchanges import Exchanges
from controller.proxy.forwarded import Forwarded
from controller.proxy.running import RunningForwards
from controller.proxy.tries import Tries
from controller.upstream.client import NO_HEADERS, WorkerClient
from controller.upstream.response import WorkerResponse

logger = logging.getLogger("controller")


class Forwarder:
    """Forwards requests to workers that the dispatcher chooses.

    A request is retried on another worker if its worker is unreachable or returns a 5xx. It is also retried if the
    response ends early: before the first whole frame of a stream, or before the first piece of another body. A request
    to a silent worker is not retried: the worker may be working on it, and an overload would spread to other workers.

    A request is *detached* if its client has left and its worker continues. Its lease is kept until it ends. If there
    is no memory for the body of such a request, the request is ended, and its lease is released although the worker may
    still be working on it.

    cluster_id: returns the id of this cluster for the hop list.
    tries: maximum number of workers that one request is sent to.
    """

    def __init__(
        self,
        workers: WorkerClient,
        bookings: Bookings,
        running: RunningForwards,
        metrics: Metrics,
        cluster_id: Callable[[], str],
        tries: int,
    ) -> None:
        self._workers = workers
        self._bookings = bookings
        self._running = running
        self._metrics = metrics
        self._cluster_id = cluster_id
        self._tries = tries
        self._exchanges = Exchanges(workers, bookings, metrics)

    async def stream(
        self, model: str, body: bytes, hops: str = "", passed: Mapping[str, str] = NO_HEADERS
    ) -> MaybeStale[Forwarded]:
        """Forward a request for a stream of frames. Each piece is one or more whole frames, unless the body is encoded.

        hops: hop list of the request.
        passed: headers of the request that the worker gets, too.

        Returns when the first frame has arrived. Raises TooManyForwards at the limit, NoWorker if the model has no live
        worker, StoreError if Redis is unavailable and there is no fresh snapshot, LoopDetected if the request passed
        this cluster before or too many clusters, and WorkerError if each worker that was tried has failed. A response
        with a status other than 200 raises WorkerRefused.
        """
        headers = self._headers(hops, passed)
        return await self._forward(_Request(model, "/worker_generate_stream", body, headers, frames=True))

    async def generate(
        self, model: str, path: str, body: bytes, hops: str = "", passed: Mapping[str, str] = NO_HEADERS
    ) -> MaybeStale[Forwarded]:
        """Forward a request that FastChat's workers answer as a whole and finish even if their client has left.

        So its lease is kept until the worker has answered, even if the client leaves earlier. Returns and raises as
        call().
        """
        return await self._forward(_Request(model, path, body, self._headers(hops, passed), outlives_client=True))

    async def look_up(
        self, model: str, path: str, body: bytes, hops: str = "", passed: Mapping[str, str] = NO_HEADERS
    ) -> MaybeStale[Forwarded]:
        """Forward a request that puts no load on a worker, without a lease. Returns and raises as call()."""
        return await self._forward(_Request(model, path, body, self._headers(hops, passed), is_load=False))

    async def call(
        self,
        model: str,
        path: str,
        body: bytes,
        hops: str = "",
        passed: Mapping[str, str] = NO_HEADERS,
        *,
        tries: Tries | None = None,
    ) -> MaybeStale[Forwarded]:
        """Forward any other request. Returns when the first piece of the body has arrived.

        tries: of the request, at least one of which must be left. By default, none was used.

        Raises as stream(), except that each status below 500 is a normal response.
        """
        return await self._forward(_Request(model, path, body, self._headers(hops, passed)), tries)

    def _headers(self, hops: str, passed: Mapping[str, str]) -> Mapping[str, str]:
        return {**passed, **hop_headers(hops, self._cluster_id())}

    async def _forward(self, request: "_Request", tries: Tries | None = None) -> MaybeStale[Forwarded]:
        running = self._running.begin()
        outcome = "client_gone"
        try:
            chosen, snapshot_age = await self._bookings.choose(request.model, is_load=request.is_load)
            if not chosen.address:
                raise NoWorker(f"No live worker serves the model {request.model[:100]!r}.")  # noqa: TRY301 - counted below
            forwarded = await self._try_workers(request, chosen, running, tries or Tries(self._tries))
        except (NoWorker, StoreError):
            outcome = "no_worker"
            raise
        except WorkerError as error:
            outcome = "broken"
            logger.warning(
                "A request for the model %(model)r failed, and its client gets an error: %(reason)s",
                {"model": request.model[:100], "reason": error},
            )
            raise
        else:
            outcome = ""  # it is counted when the response ends
            return MaybeStale(forwarded, snapshot_age)
        finally:
            if outcome:
                self._running.end(running)
                self._count(request.frames, outcome)

    async def _try_workers(self, request: "_Request", chosen: Assignment, running: object, tries: Tries) -> Forwarded:
        """Return the response of the chosen worker, or of another one if it fails before the first frame or piece."""
        tried = {chosen.address}
        while True:
            tries.use()
            try:
                return await self._send(request, chosen, running)
            except WorkerError as error:
                another = None
                if self._may_retry(error) and tries.left:
                    another = await self._bookings.choose_another(request.model, tried, is_load=request.is_load)
                if another is None:
                    raise
                logger.warning(
                    "Retrying a request on worker %(worker)s: %(reason)s", {"worker": another.address, "reason": error}
                )
                self._metrics.forward_retries.inc()
                chosen = another

    async def _send(self, request: "_Request", chosen: Assignment, running: object) -> Forwarded:
        """Return the response of one worker. If this raises, the lease is released, now or when the worker is done."""
        if not request.outlives_client:
            return await self._exchange(request, chosen, running)
        exchange = asyncio.create_task(self._exchange(request, chosen, running))
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            size = len(request.body)
            if not exchange.done() and not self._running.has_memory_for(size):
                exchange.cancel()  # which releases the lease
            else:
                self._running.detach(_finish(exchange), size)
            raise

    async def _exchange(self, request: "_Request", chosen: Assignment, running: object) -> Forwarded:
        # The closures must not keep the request in memory, whose body may be large.
        frames = request.frames

        def on_end(outcome: str, _: int) -> None:
            self._running.end(running)
            if outcome:
                self._count(frames, outcome)

        def detach(forwarded: Forwarded) -> None:
            self._running.end(running)
            self._running.detach(forwarded.finish())

        return await self._exchanges.run(
            chosen,
            lambda: self._workers.post(chosen.address, request.path, request.body, request.headers),
            lambda response: _pieces(response, frames),
            _is_failure,
            on_end,
            detach=detach if request.outlives_client else None,
        )

    def _may_retry(self, error: WorkerError) -> bool:
        if not self._exchanges.may_retry:
            return False
        return error.status >= 500 if isinstance(error, WorkerRefused) else not isinstance(error, WorkerSilent)

    def _count(self, frames: bool, outcome: str) -> None:
        (self._metrics.streams if frames else self._metrics.calls).labels(outcome).inc()


def _is_failure(error: WorkerError) -> bool:
    """Return True if an error deprioritises the worker. A 5xx does not: the request may be at fault."""
    return isinstance(error, WorkerUnreachable | StreamBroken)


async def _pieces(response: WorkerResponse, frames: bool) -> AsyncGenerator[bytes]:
    """Return the body of a response. Raises WorkerRefused if the status of the response is an error."""
    if response.status >= 500 or (frames and response.status != 200):
        raise await response.refusal()
    return response.frames() if frames and not response.encoded else response.pieces()


async def _finish(exchange: "asyncio.Task[Forwarded]") -> None:
    """Wait for the response to a request whose client has left, and read it to its end."""
    with contextlib.suppress(WorkerError):
        forwarded = await exchange
        await forwarded.finish(counted=True)


class _Request(NamedTuple):
    """A request to forward.

    frames: the response is a stream of frames, and only whole frames are forwarded.
    outlives_client: the worker does not end the request if its client leaves.
    is_load: it is booked with a lease.
    """

    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    frames: bool = False
    outlives_client: bool = False
    is_load: bool = True
