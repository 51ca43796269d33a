"""Starts and ends background tasks."""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, Final, TypeVar

_Result = TypeVar("_Result")
_RETRY_INTERVAL: Final = 0.1  # seconds
_LARGE: Final = 256 * 1024  # bytes. Less is handled in about a millisecond


def start_shared(coroutine: Coroutine[Any, Any, _Result]) -> "asyncio.Task[_Result]":
    """Start a task that works for many requests, so it has neither the request id nor the trace of the current one."""
    return asyncio.create_task(coroutine, context=Context())


async def in_thread_if_large(size: int, call: Callable[[], _Result]) -> _Result:
    """Return the result of a call that handles `size` bytes. If they are many, other requests do not wait for it."""
    return await asyncio.to_thread(call) if size > _LARGE else call()


async def end(tasks: "Iterable[asyncio.Task[Any]]") -> None:
    """Cancel tasks and wait until they have ended.

    A task that continues is cancelled again: a cancellation may be lost if it arrives together with the awaited result.
    This happens in asyncio.wait_for() of Python 3.11, which redis-py uses.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=_RETRY_INTERVAL)
