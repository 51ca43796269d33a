"""Waits for conditions, so that tests need no fixed sleeps."""

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any, TypeVar

T = TypeVar("T")


async def wait_until(
    predicate: Callable[[], Any | Awaitable[Any]], description: str, timeout: float = 60.0, interval: float = 0.01
) -> Any:
    """Return the first true value of the predicate. Fail with the description if there is none within `timeout` s."""
    deadline = time.monotonic() + timeout
    while True:
        value = predicate()
        if inspect.isawaitable(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"timed out after {timeout:g} s, waiting until {description}"
        await asyncio.sleep(interval)


async def wait_for_each(
    items: Iterable[T],
    predicate: Callable[[T], Any | Awaitable[Any]],
    description: str,
    timeout: float = 60.0,
    interval: float = 0.01,
) -> None:
    """Wait until the predicate is true for each item. Items are checked in order, each with the whole timeout."""
    for item in items:
        await wait_until(partial(predicate, item), description, timeout, interval)


async def cancelled(task: "asyncio.Task[Any]") -> None:
    """Cancel a task repeatedly until it has ended. On Python 3.11, redis-py may lose a cancellation."""
    await wait_until(lambda: not task.cancel(), "the task has ended")
