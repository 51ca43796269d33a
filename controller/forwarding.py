"""Forwards requests to workers, and their answers back; each is booked with a lease while it goes on."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from typing import Final, NamedTuple, Protocol

from controller.domain.errors import (
    NoWorker,
    StoreError,
    StreamBroken,
    WorkerError,
    WorkerRefused,
    WorkerSilent,
    WorkerUnreachable,
)
from controller.metrics import Metrics
from controller.snapshot import Found
from controller.upstream.answer import WorkerAnswer
from controller.upstream.client import WorkerClient

logger = logging.getLogger("controller")

_DRAWS: Final = 16  # to find another one: who fails at once has the shortest queue, and is drawn again and again


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

    async def renew(self, lease: str) -> bool:
        """Let a lease last as long again."""

    async def report_failure(self, name: str) -> bool:
        """Put a worker behind all others."""


class Forwarded:
    """A worker's answer that has begun.

    Close it in any case: that ends the request, and gives the booking back. `end` is told how it ended, once.
    """

    def __init__(
        self, answer: WorkerAnswer, first: bytes, rest: AsyncGenerator[bytes], end: Callable[[str], None]
    ) -> None:
        self.status = answer.status
        self.headers = answer.headers
        self.encoded = answer.encoded
        self._answer = answer
        self._first = first
        self._rest = rest
        self._end = end
        self._outcome = "client_gone"
        self._closed = False

    async def pieces(self) -> AsyncGenerator[bytes]:
        """The body as it comes, once. Raises WorkerError when the worker breaks off."""
        try:
            if self._first:
                yield self._first
            async with aclosing(self._rest) as rest:
                async for piece in rest:
                    yield piece
        except WorkerError as error:
            self._outcome = "broken"
            logger.warning("An answer from a worker broke off: %s", error)
            raise
        self._outcome = "complete"

    def close(self) -> None:
        """End it, however far it is. This waits for nothing: whoever is cancelled may be so again at any await."""
        if not self._closed:
            self._closed = True
            self._answer.close()
            self._end(self._outcome)


class Forwarder:
    """Forwards requests to workers that `dispatcher` chooses.

    A worker that cannot be reached, breaks off before anything of its answer is there, or answers that it is at fault
    (5xx), is not the last to be tried. One that is silent is, for it may be at work: where all have too much of it,
    others would have that, too. lease_time is for how long a lease lasts, in seconds; those of requests that take
    longer are renewed. tries is the number of workers that one request may be given to.
    """

    def __init__(
        self, dispatcher: Dispatcher, workers: WorkerClient, metrics: Metrics, lease_time: float, tries: int
    ) -> None:
        self._dispatcher = dispatcher
        self._workers = workers
        self._metrics = metrics
        self._tries = tries
        self._renew_after = lease_time / 3  # so that one may fail
        self._renewals: dict[str, asyncio.TimerHandle] = {}  # by lease
        self._errands: set[asyncio.Task[None]] = set()

    async def stream(self, model: str, body: bytes, headers: Mapping[str, str]) -> Found[Forwarded]:
        """Forward a request for a stream of frames; each piece is one or more whole frames, unless they are encoded.

        Returns when the first is there. Raises NoWorker if the model has no live worker, WorkerError if none answers,
        WorkerRefused also where one answers with anything but 200.
        """
        return await self._forward(_Request(model, "/worker_generate_stream", body, headers, frames=True))

    async def call(self, model: str, path: str, body: bytes, headers: Mapping[str, str]) -> Found[Forwarded]:
        """Forward any other request. Returns when an answer has begun; raises as stream(), but a 4xx is an answer."""
        return await self._forward(_Request(model, path, body, headers, frames=False))

    async def close(self, patience: float) -> None:
        """Wait until the ends of the requests are told, for so many seconds at most."""
        if self._errands:
            await asyncio.wait(self._errands, timeout=patience)

    async def _forward(self, request: "_Request") -> Found[Forwarded]:
        outcome = "client_gone"
        try:
            leased, snapshot_age = await self._choose(request.model)
            if not leased.address:
                raise NoWorker(f"No live worker serves the model {request.model[:100]!r}.")  # noqa: TRY301 - counted below
            begun = await self._begin(request, leased)
        except (NoWorker, StoreError):
            outcome = "no_worker"
            raise
        except WorkerError as error:
            outcome = "broken"
            logger.warning("Nobody answers a request for the model %r: %s", request.model[:100], error)
            raise
        else:
            outcome = ""  # it is known when the answer ends
            return Found(begun, snapshot_age)
        finally:
            if outcome:
                self._count(request.frames, outcome)

    async def _begin(self, request: "_Request", leased: Leased) -> Forwarded:
        """The answer of the worker that was chosen, or of another in its place."""
        tried = {leased.address}
        while True:
            try:
                return await self._ask(request, leased)
            except WorkerError as error:
                another = await self._another(request.model, tried) if self._is_worth_another(error) else None
                if another is None:
                    raise
                logger.warning("A request goes to another worker: %s", error)
                self._metrics.forward_retries.inc()
                leased = another

    async def _ask(self, request: "_Request", leased: Leased) -> Forwarded:
        """The answer of one worker. When this raises, the lease has been given back, or is about to be."""
        self._keep(leased.lease)
        answer = None
        try:
            answer = await self._workers.ask(leased.address, request.path, request.body, request.headers)
            pieces = await _pieces(answer, request.frames)
            first = await anext(pieces, b"")
        except BaseException as error:
            if answer is not None:
                answer.close()
            failed = isinstance(error, WorkerUnreachable | StreamBroken) and not self._workers.ending
            told = self._end(leased, failed)
            if failed:
                await asyncio.shield(told)  # or it might be chosen once more
            raise

        frames = request.frames  # all that is kept of the request: its body may be large, and the answer take long

        def end(outcome: str) -> None:
            self._count(frames, outcome)
            self._end(leased)

        return Forwarded(answer, first, pieces, end)

    def _is_worth_another(self, error: WorkerError) -> bool:
        if self._workers.ending:  # it is us who break off
            return False
        return error.status >= 500 if isinstance(error, WorkerRefused) else not isinstance(error, WorkerSilent)

    async def _another(self, model: str, tried: set[str]) -> Leased | None:
        """A worker that was not tried, and from now on counts as such; None if there is none, or it is enough."""
        surplus: list[Leased] = []
        try:
            while len(tried) < self._tries and len(surplus) < _DRAWS:
                another, _ = await self._choose(model)
                if not another.address:
                    return None
                if another.address not in tried:
                    tried.add(another.address)
                    return another
                surplus.append(another)  # booked once more, it is not so soon the best
        except StoreError:
            return None
        finally:
            for each in surplus:
                self._end(each)
        return None

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

    def _count(self, frames: bool, outcome: str) -> None:
        (self._metrics.streams if frames else self._metrics.calls).labels(outcome).inc()

    def _keep(self, lease: str) -> None:
        """Renew a lease again and again, until _end()."""
        if lease:
            self._renewals[lease] = asyncio.get_running_loop().call_later(self._renew_after, self._renew, lease)

    def _renew(self, lease: str) -> None:
        self._keep(lease)
        self._send(self._tell_that_it_goes_on(lease))

    def _end(self, leased: Leased, failed: bool = False) -> "asyncio.Task[None]":
        """See to it that the store is told that a request has ended, and whether its worker could not be reached."""
        if leased.lease in self._renewals:
            self._renewals.pop(leased.lease).cancel()
        return self._send(self._tell_the_end(leased, failed))

    def _send(self, errand: Coroutine[None, None, None]) -> "asyncio.Task[None]":
        task = asyncio.create_task(errand)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)
        return task

    async def _tell_that_it_goes_on(self, lease: str) -> None:
        with contextlib.suppress(StoreError):  # the guard has told of it
            await self._dispatcher.renew(lease)

    async def _tell_the_end(self, leased: Leased, failed: bool) -> None:
        with contextlib.suppress(StoreError):  # then the lease ends by itself
            if leased.lease:
                await self._dispatcher.release(leased.lease)
            if failed:
                await self._dispatcher.report_failure(leased.address)


async def _pieces(answer: WorkerAnswer, frames: bool) -> AsyncGenerator[bytes]:
    """An answer's body as it comes. Raises WorkerRefused if its status says that it is none."""
    if answer.status >= 500 or (frames and answer.status != 200):
        raise await answer.refusal()
    return answer.frames() if frames and not answer.encoded else answer.pieces()


class _Request(NamedTuple):
    model: str
    path: str
    body: bytes
    headers: Mapping[str, str]
    frames: bool  # whether the answer is frames, of which no part is to be passed on
