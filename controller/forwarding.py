"""Forwards requests to workers, and their answers back; each is booked with a lease while it goes on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Final, NamedTuple, Protocol

from controller.domain.errors import (
    NoWorker,
    StoreError,
    StreamBroken,
    WorkerError,
    WorkerUnreachable,
)
from controller.metrics import Metrics
from controller.snapshot import Found
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_TRIES: Final = 3  # workers, for one request


class Leased(NamedTuple):
    """A worker's address and the lease that books it; both "" if there is no worker."""

    address: str
    lease: str


class Dispatcher(Protocol):
    """Chooses workers, and is told what became of it: the Controller."""

    async def dispatch_with_lease(self, model: str, lease_time: float | None = None) -> Found[Leased]:
        """Choose a worker for one request and book it."""

    async def release(self, lease: str) -> bool:
        """End a lease."""

    async def report_failure(self, name: str) -> bool:
        """Put a worker behind all others."""


class Passed(NamedTuple):
    """A worker's answer: its status, its media type, and its body as it comes, which is to be closed."""

    status: int
    content_type: str
    body: AsyncGenerator[bytes]


class Forwarder:
    """Forwards requests to workers that `dispatcher` chooses.

    A worker that cannot be reached, or breaks off before anything of its answer has gone out, is not the last to be
    tried; one that is silent is, for it may be at work.
    """

    def __init__(self, dispatcher: Dispatcher, workers: WorkerClient, metrics: Metrics) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._metrics = metrics
        self._errands: set[asyncio.Task[None]] = set()

    async def stream(self, model: str, body: bytes, headers: Mapping[str, str]) -> Found[AsyncGenerator[bytes]]:
        """Forward a request for a stream of frames; each piece is one or more whole frames.

        Raises NoWorker if the model has no live worker. The generator raises WorkerError when no worker can be reached
        or the one that has begun breaks off.
        """
        leased, snapshot_age = await self._first(model)
        return Found(self._frames(model, leased, body, headers), snapshot_age)

    async def call(self, model: str, path: str, body: bytes, headers: Mapping[str, str]) -> Found[Passed]:
        """Forward any other request. Returns when the head of an answer is there; raises as stream() does."""
        leased, snapshot_age = await self._first(model)
        tried = {leased.address}
        while True:
            context = AsyncExitStack()
            try:
                answer = await context.enter_async_context(self._workers.ask(leased.address, path, body, headers))
            except WorkerError as error:
                leased = await self._next(model, leased, tried, error)
            except BaseException:
                self._end(leased)
                raise
            else:
                body_as_it_comes = self._body(context, answer.pieces(), leased)
                return Found(Passed(answer.status, answer.content_type, body_as_it_comes), snapshot_age)

    async def close(self, patience: float) -> None:
        """Wait until the ends of the requests are told, for so many seconds at most."""
        if self._errands:
            await asyncio.wait(self._errands, timeout=patience)

    async def _first(self, model: str) -> Found[Leased]:
        found = await self._dispatcher.dispatch_with_lease(model)
        if not found.value.address:
            self._metrics.streams.labels("no_worker").inc()
            raise NoWorker(f"No live worker serves the model {model[:100]!r}.")
        return found

    async def _next(self, model: str, leased: Leased, tried: set[str], error: WorkerError) -> Leased:
        """Another worker in the place of one that failed. Raises `error` if there is none to be tried."""
        # Its own end, a refusal or silence tell nothing of the worker.
        failed = isinstance(error, WorkerUnreachable | StreamBroken) and not self._workers.ending
        told = self._end(leased, failed)
        if not failed or len(tried) == _TRIES:
            raise error
        await asyncio.shield(told)  # or it might be chosen once more
        try:
            another, _ = await self._choose(model)
        except StoreError:
            raise error from None
        if not another.address or another.address in tried:
            self._end(another)
            raise error
        tried.add(another.address)
        logger.warning("A request goes to another worker: %s", error)
        self._metrics.forward_retries.inc()
        return another

    async def _choose(self, model: str) -> Found[Leased]:
        """Choose a worker; should the client go away meanwhile, its lease is given back when it comes."""
        choice = asyncio.ensure_future(self._dispatcher.dispatch_with_lease(model))
        try:
            return await asyncio.shield(choice)
        except asyncio.CancelledError:
            choice.add_done_callback(self._give_back)
            raise

    def _give_back(self, choice: "asyncio.Future[Found[Leased]]") -> None:
        if not choice.cancelled() and choice.exception() is None:
            self._end(choice.result().value)

    async def _frames(
        self, model: str, leased: Leased, body: bytes, headers: Mapping[str, str]
    ) -> AsyncGenerator[bytes]:
        tried = {leased.address}
        begun = False
        outcome = "client_gone"
        try:
            while True:
                try:
                    async with aclosing(self._workers.stream(leased.address, body, headers)) as frames:
                        async for frame in frames:
                            begun = True
                            yield frame
                except WorkerError as error:
                    if begun:
                        raise
                    failed, leased = leased, Leased("", "")
                    leased = await self._next(model, failed, tried, error)
                else:
                    outcome = "complete"
                    return
        except WorkerError as error:
            outcome = "broken"
            logger.warning("A stream from a worker broke: %s", error)
            raise
        finally:
            self._metrics.streams.labels(outcome).inc()
            # Not here: what goes on in a generator that is closed may be cut off at any await.
            self._end(leased)

    async def _body(
        self, context: AsyncExitStack, pieces: AsyncGenerator[bytes], leased: Leased
    ) -> AsyncGenerator[bytes]:
        try:
            async with context, aclosing(pieces):
                async for piece in pieces:
                    yield piece
        finally:
            self._end(leased)

    def _end(self, leased: Leased, failed: bool = False) -> "asyncio.Task[None]":
        """See to it that the store is told that a request has ended, and whether its worker could not be reached."""
        task = asyncio.create_task(self._tell_the_end(leased, failed))
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        return task

    async def _tell_the_end(self, leased: Leased, failed: bool) -> None:
        with contextlib.suppress(StoreError):  # then the lease ends by itself
            if leased.lease:
                await self._dispatcher.release(leased.lease)
            if failed:
                await self._dispatcher.report_failure(leased.address)
