"""Forwards requests to workers and streams the responses back. A lease books each request while it runs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from typing import Final, NamedTuple

from controller.availability.snapshot import MaybeStale
from controller.dispatch.dispatcher import Assignment, Dispatcher
from controller.domain.errors import (
    NoWorker,
    StoreError,
    StreamBroken,
    TooManyForwards,
    TooManyLeases,
    WorkerError,
    WorkerRefused,
    WorkerSilent,
    WorkerUnreachable,
)
from controller.domain.hops import hop_headers
from controller.metrics import Metrics
from controller.proxy.forwarded import Forwarded
from controller.tasks import end
from controller.upstream.client import NO_HEADERS, WorkerClient
from controller.upstream.response import WorkerResponse

logger = logging.getLogger("controller")

# Dispatch attempts per retry. A worker that fails instantly keeps the shortest queue, so it may be chosen repeatedly.
_MAX_DISPATCHES: Final = 16

# Seconds. If a replica is killed, its requests stay booked for at most this time.
_MAX_LEASE_TIME: Final = 60.0
MIB: Final = 1024 * 1024


class Forwarder:
    """Forwards requests to workers that the dispatcher chooses.

    A request is retried on another worker if its worker is unreachable or returns a 5xx. It is also retried if the
    response ends early: before the first whole frame of a stream, or before the first piece of another body. A request
    to a silent worker is not retried: the worker may be working on it, and an overload would spread to other workers.

    A request is *detached* if its client has left and its worker goes on with it. Its lease is kept until it ends.

    cluster_id: returns the id of this cluster for the hop list.
    lease_time: in seconds. The leases of longer requests are renewed.
    tries: maximum number of workers that one request is sent to.
    max_forwards: how many requests are forwarded at once, including requests whose clients have left. 0: no limit.
    max_detached: memory for the bodies of detached requests, in bytes. A request that would exceed it is ended, and its
        lease is released although the worker may still be working on it.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        workers: WorkerClient,
        metrics: Metrics,
        cluster_id: Callable[[], str],
        lease_time: float,
        tries: int,
        max_forwards: int = 0,
        max_detached: int = 256 * MIB,
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._metrics = metrics
        self._cluster_id = cluster_id
        self._tries = tries
        self._lease_time = min(lease_time, _MAX_LEASE_TIME)
        self._renew_after = self._lease_time / 3  # one renewal may fail
        self._renewals: dict[str, asyncio.TimerHandle] = {}  # by lease
        self._background: set[asyncio.Task[None]] = set()
        self._max_forwards = max_forwards
        self._max_detached = max_detached
        self._running: set[object] = set()  # the requests whose clients are connected
        self._detached: dict[asyncio.Task[None], int] = {}  # see _detach()

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

        So its lease is kept until the worker has answered, also if the client leaves earlier. Returns and raises as
        call().
        """
        return await self._forward(_Request(model, path, body, self._headers(hops, passed), outlives_client=True))

    async def look_up(
        self, model: str, path: str, body: bytes, hops: str = "", passed: Mapping[str, str] = NO_HEADERS
    ) -> MaybeStale[Forwarded]:
        """Forward a request that puts no load on a worker, without a lease. Returns and raises as call()."""
        return await self._forward(_Request(model, path, body, self._headers(hops, passed), is_load=False))

    async def call(
        self, model: str, path: str, body: bytes, hops: str = "", passed: Mapping[str, str] = NO_HEADERS
    ) -> MaybeStale[Forwarded]:
        """Forward any other request. Returns when the first piece of the body has arrived.

        Raises as stream(), except that each status below 500 is a normal response.
        """
        return await self._forward(_Request(model, path, body, self._headers(hops, passed)))

    @property
    def running(self) -> int:
        """The number of requests that are forwarded now, with those whose clients have left."""
        return len(self._running) + len(self._detached)

    async def close(self, time_limit: float, time_limit_of_detached: float) -> None:
        """Wait for the requests whose clients have left, then for the releases of leases.

        The requests get `time_limit_of_detached` seconds. Longer ones are cancelled. WorkerClient.end_streams()
        ends them sooner. The releases get `time_limit` seconds.
        """
        if self._detached:
            await asyncio.wait(self._detached, timeout=time_limit_of_detached)
        await end(list(self._detached))
        if self._background:
            await asyncio.wait(self._background, timeout=time_limit)

    def _headers(self, hops: str, passed: Mapping[str, str]) -> Mapping[str, str]:
        return {**passed, **hop_headers(hops, self._cluster_id())}

    async def _forward(self, request: "_Request") -> MaybeStale[Forwarded]:
        if self._max_forwards and self.running >= self._max_forwards:
            self._metrics.refusals.labels("forwards").inc()
            raise TooManyForwards(
                f"This replica forwards {self._max_forwards} requests, which is its limit --max-forwards. Send the "
                "request again, or run more replicas."
            )
        request = request._replace(id=object())
        self._running.add(request.id)
        outcome = "client_gone"
        try:
            chosen, snapshot_age = await self._choose(request)
            if not chosen.address:
                raise NoWorker(f"No live worker serves the model {request.model[:100]!r}.")  # noqa: TRY301 - counted below
            forwarded = await self._try_workers(request, chosen)
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
                self._running.discard(request.id)
                self._count(request.frames, outcome)

    async def _try_workers(self, request: "_Request", chosen: Assignment) -> Forwarded:
        """Return the response of the chosen worker, or of another one if it fails before the first frame or piece."""
        tried = {chosen.address}
        while True:
            try:
                return await self._send(request, chosen)
            except WorkerError as error:
                another = await self._another(request, tried) if self._may_retry(error) else None
                if another is None:
                    raise
                logger.warning(
                    "Retrying a request on worker %(worker)s: %(reason)s", {"worker": another.address, "reason": error}
                )
                self._metrics.forward_retries.inc()
                chosen = another

    async def _send(self, request: "_Request", chosen: Assignment) -> Forwarded:
        """Return the response of one worker. If this raises, the lease is released, now or when the worker is done."""
        if not request.outlives_client:
            return await self._exchange(request, chosen)
        exchange = asyncio.create_task(self._exchange(request, chosen))
        try:
            return await asyncio.shield(exchange)
        except asyncio.CancelledError:
            size = len(request.body)
            if not exchange.done() and size + sum(self._detached.values()) > self._max_detached:
                exchange.cancel()  # which releases the lease
            else:
                self._detach(_finish(exchange), size)
            raise

    async def _exchange(self, request: "_Request", chosen: Assignment) -> Forwarded:
        """Return the response of one worker. If this raises, the release of the lease has been started."""
        began = time.perf_counter()
        self._renew_later(chosen.lease)
        response = None
        try:
            response = await self._workers.post(chosen.address, request.path, request.body, request.headers)
            pieces = await _pieces(response, request.frames)
            first = await anext(pieces, b"")
            self._metrics.first_byte_time.observe(time.perf_counter() - began)
        except BaseException as error:
            if response is not None:
                response.close()
            failed = isinstance(error, WorkerUnreachable | StreamBroken) and not self._workers.streams_ended
            ended = self._end(chosen, failed)
            if failed:
                await asyncio.shield(ended)  # the next dispatch must not choose this worker again
            raise

        # The closures must not keep the request in memory, whose body may be large.
        request_id, frames = request.id, request.frames

        def on_end(outcome: str, size: int) -> None:
            self._running.discard(request_id)
            self._metrics.forward_time.observe(time.perf_counter() - began)
            self._metrics.forwarded_bytes.inc(size)
            if outcome:
                self._count(frames, outcome)
            self._end(chosen)

        def detach(forwarded: Forwarded) -> None:
            self._running.discard(request_id)
            self._detach(forwarded.finish())

        return Forwarded(response, first, pieces, on_end, detach if request.outlives_client else None)

    def _detach(self, coroutine: Coroutine[None, None, None], size: int = 0) -> None:
        """Finish a request whose client has left, in the background.

        size: of the request's body in bytes, if the body stays in memory.
        """
        task = asyncio.create_task(coroutine)
        self._detached[task] = size
        task.add_done_callback(self._detached.pop)

    def _may_retry(self, error: WorkerError) -> bool:
        if self._workers.streams_ended:  # this replica ended the request itself
            return False
        return error.status >= 500 if isinstance(error, WorkerRefused) else not isinstance(error, WorkerSilent)

    async def _another(self, request: "_Request", tried: set[str]) -> Assignment | None:
        """Pick a worker not in `tried` and add it. Return None if there is none or the retry limit is reached."""
        surplus: list[Assignment] = []
        try:
            while len(tried) < self._tries and len(surplus) < _MAX_DISPATCHES:
                # A search that books nothing comes first: most often, the model has no other worker.
                if not request.is_load or not surplus:
                    address, _ = await self._dispatcher.find_worker(request.model, frozenset(tried))
                    if not address:
                        return None
                    if not request.is_load:
                        tried.add(address)
                        return Assignment(address, "")
                another, _ = await self._choose(request)
                if not another.address:
                    return None
                if another.address not in tried:
                    tried.add(another.address)
                    return another
                surplus.append(another)  # the extra lease raises its cost, so another worker is chosen sooner
        except StoreError:
            return None
        finally:
            for each in surplus:
                self._end(each)
        return None

    async def _choose(self, request: "_Request") -> MaybeStale[Assignment]:
        """Choose a worker. If the client disconnects meanwhile, the lease is released when the dispatch returns it."""
        if not request.is_load:
            address, snapshot_age = await self._dispatcher.find_worker(request.model)
            return MaybeStale(Assignment(address, ""), snapshot_age)
        choice = asyncio.ensure_future(self._dispatcher.dispatch_with_lease(request.model, self._lease_time))
        try:
            return await asyncio.shield(choice)
        except TooManyLeases:  # then the request counts as one without a lease
            address, snapshot_age = await self._dispatcher.dispatch(request.model)
            return MaybeStale(Assignment(address, ""), snapshot_age)
        except asyncio.CancelledError:
            choice.add_done_callback(self._release_unused)
            raise

    def _release_unused(self, choice: "asyncio.Future[MaybeStale[Assignment]]") -> None:
        if not choice.cancelled() and choice.exception() is None:
            self._end(choice.result().value)

    def _count(self, frames: bool, outcome: str) -> None:
        (self._metrics.streams if frames else self._metrics.calls).labels(outcome).inc()

    def _renew_later(self, lease: str) -> None:
        """Renew a lease at intervals, until _end()."""
        if lease:
            self._renewals[lease] = asyncio.get_running_loop().call_later(self._renew_after, self._renew, lease)

    def _renew(self, lease: str) -> None:
        self._renew_later(lease)
        self._start(self._renew_once(lease))

    def _end(self, chosen: Assignment, failed: bool = False) -> "asyncio.Task[None]":
        """Start to release the lease of a request that has ended, and to report its worker's failure if `failed`."""
        if chosen.lease in self._renewals:
            self._renewals.pop(chosen.lease).cancel()
        return self._start(self._release(chosen, failed))

    def _start(self, coroutine: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        return task

    async def _renew_once(self, lease: str) -> None:
        with contextlib.suppress(StoreError):  # the circuit breaker has logged it
            await self._dispatcher.renew(lease)

    async def _release(self, chosen: Assignment, failed: bool) -> None:
        with contextlib.suppress(StoreError):  # the lease is released later, or expires
            if chosen.lease:
                await self._dispatcher.release(chosen.lease)
            if failed:
                await self._dispatcher.report_failure(chosen.address)


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
    id: identifies the request while it runs.
    """

    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    frames: bool = False
    outlives_client: bool = False
    is_load: bool = True
    id: object = None
