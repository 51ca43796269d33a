"""Counts and limits the requests that a replica forwards at once."""

import asyncio
from collections.abc import Coroutine
from typing import Final

from controller.domain.errors import TooManyForwards
from controller.metrics import Metrics
from controller.tasks import end

MIB: Final = 1024 * 1024


class RunningForwards:
    """The requests that a replica is forwarding, to workers of every protocol.

    A request is *detached* if its client has left and its worker continues.

    max_forwards: how many requests are forwarded at once, including detached ones. 0: no limit.
    max_detached: memory for the bodies of detached requests, in bytes.
    """

    def __init__(self, metrics: Metrics, max_forwards: int = 0, max_detached: int = 256 * MIB) -> None:
        self._metrics = metrics
        self._max_forwards = max_forwards
        self._max_detached = max_detached
        self._running: set[object] = set()  # the requests whose clients are connected
        self._detached: dict[asyncio.Task[None], int] = {}  # see detach()

    @property
    def count(self) -> int:
        """The number of requests that are forwarded now, with those whose clients have left."""
        return len(self._running) + len(self._detached)

    def begin(self) -> object:
        """Count a request, until end() gets the returned object. Raises TooManyForwards at the limit."""
        if self._max_forwards and self.count >= self._max_forwards:
            self._metrics.refusals.labels("forwards").inc()
            raise TooManyForwards(
                f"This replica forwards {self._max_forwards} requests, which is its limit --max-forwards. Send the "
                "request again, or run more replicas."
            )
        request = object()
        self._running.add(request)
        return request

    def end(self, request: object) -> None:
        """Stop counting a request. Further calls do nothing."""
        self._running.discard(request)

    def has_memory_for(self, size: int) -> bool:
        """Return True if a body of `size` bytes may stay in memory after its client has left."""
        return size + sum(self._detached.values()) <= self._max_detached

    def detach(self, coroutine: Coroutine[None, None, None], size: int = 0) -> None:
        """Finish a request whose client has left, in the background.

        size: of the request's body in bytes, if the body stays in memory.
        """
        task = asyncio.create_task(coroutine)
        self._detached[task] = size
        task.add_done_callback(self._detached.pop)

    async def close(self, time_limit: float) -> None:
        """Wait for the detached requests. Those that take longer than `time_limit` seconds are cancelled.

        WorkerClient.end_streams() ends them sooner.
        """
        if self._detached:
            await asyncio.wait(self._detached, timeout=time_limit)
        await end(list(self._detached))
